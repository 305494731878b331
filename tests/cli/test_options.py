"""The options of ``relay``."""

from __future__ import annotations

import os
import pwd
import subprocess

import pytest

from tests.cli._programs import PROGRAM
from tests.tools.limits import HANG
from trio_console import ClientLimits, Log, RelayOptions, Rights
from trio_console._cli.arguments import parser
from trio_console._cli.options import relay_options

NOTHING = Rights(run=False, files=None, tcp=False, shutdown=False)


def given(*words: str) -> RelayOptions:
    return relay_options(parser().parse_args(["relay", "--listen", "s", *words]))


def test_without_options_a_relay_has_the_usual_ones_and_ends_idle_clients() -> None:
    assert given() == RelayOptions(idle_timeout=3600)


@pytest.mark.parametrize(
    ("words", "rights"),
    [
        ("7=all", Rights()),
        ("7=none", NOTHING),
        ("7=run", Rights(files=None, tcp=False, shutdown=False)),
        ("7=read", Rights(run=False, files="read", tcp=False, shutdown=False)),
        ("7=write", Rights(run=False, tcp=False, shutdown=False)),
        ("7=read,write", Rights(run=False, tcp=False, shutdown=False)),
        ("7=run,tcp,shutdown,read", Rights(files="read")),
    ],
)
def test_rights_are_words(words: str, rights: Rights) -> None:
    assert dict(given("--rights", words).rights) == {7: rights}


def test_users_have_names_and_numbers_and_rights_of_their_own() -> None:
    name = pwd.getpwuid(os.geteuid()).pw_name
    options = given("--rights", f"{name}=all", "--rights", "7=none")
    assert dict(options.rights) == {os.geteuid(): Rights(), 7: NOTHING}


@pytest.mark.parametrize(("option", "field"), [("--limits", "limits"), ("--uid-limits", "uid_limits")])
def test_limits_are_numbers_with_names(option: str, field: str) -> None:
    words = "sessions=1,processes=2,handles=3,queued-bytes=8192,frames_per_second=5"
    expected = ClientLimits(sessions=1, processes=2, handles=3, queued_bytes=8192, frames_per_second=5)
    options = given(option, words)
    assert getattr(options, field) == expected
    assert {options.limits, options.uid_limits} == {expected, ClientLimits()}


def test_each_other_option_is_passed_on() -> None:
    numbers = ["--clients", "5", "--clients-per-uid", "3", "--idle-timeout", "0", "--slow-client-timeout", "2.5"]
    logs = ["--session-log", "log", "--audit-log", "audit", "--audit-log-bytes", "7", "--audit-log-backups", "2"]
    assert given(*numbers, "--slow-client", "drop", *logs) == RelayOptions(
        clients=5,
        clients_per_uid=3,
        slow_client_timeout=2.5,
        slow_client="drop",
        session_log=Log("log"),
        audit_log=Log("audit", max_bytes=7, backups=2),
    )


@pytest.mark.parametrize(
    ("words", "why"),
    [
        (["--rights", "7"], "'7' has no rights: give some, as 7=run,read"),
        (["--rights", "7=fly"], "'fly' is no right"),
        (["--rights", "no-such-user=all"], "there is no user 'no-such-user'"),
        (["--limits", "colour=3"], "'colour' is no limit"),
        (["--limits", "sessions"], "sessions needs a number, as sessions=100"),
        (["--limits", "sessions=-1"], "sessions needs a number"),
        (["--uid-limits", "processes=0"], "processes must be at least 1"),
        (["--clients", "129"], "clients must be between 1 and 128, not 129"),
        (["--idle-timeout", "-1"], "idle_timeout must be above 0 seconds"),
    ],
    ids=str,
)
def test_a_mistake_is_said_and_nothing_is_started(words: list[str], why: str) -> None:
    command = [*PROGRAM, "relay", "--listen", "/tmp/no/such/place", *words]
    done = subprocess.run(command, check=False, capture_output=True, timeout=HANG)
    assert done.returncode in (1, 2)
    assert why in done.stderr.decode()
    assert b"Traceback" not in done.stderr

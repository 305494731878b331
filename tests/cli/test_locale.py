"""Arguments in an ASCII locale: they are passed on as the bytes that they are."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import pytest

from tests.cli._programs import execute, relay_at

if TYPE_CHECKING:
    from pathlib import Path

TEXT = "zoë-日本"
RAW = TEXT.encode()
ASCII = {**os.environ, "LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}


@pytest.fixture(params=["C", "POSIX", "C.utf8"])
def locale(request: pytest.FixtureRequest) -> dict[str, str]:
    return {**ASCII, "LC_ALL": request.param}


def test_arguments_are_passed_on(relay: str, locale: dict[str, str]) -> None:
    done = execute(relay, "printf", "[%s]", RAW, env=locale)
    assert (done.stdout, done.stderr) == (b"[%s]" % RAW, b"")


def test_variables_are_passed_on(relay: str, locale: dict[str, str]) -> None:
    given = ("--env", b"ONE=%s" % RAW, "--env", "OTHER")
    done = execute(relay, "sh", "-c", 'echo "$ONE $OTHER"', arguments=given, env={**locale, "OTHER": TEXT})
    assert (done.stdout, done.stderr) == (RAW + b" " + RAW + b"\n", b"")


def test_a_directory_is_passed_on(relay: str, locale: dict[str, str], tmp_path: Path) -> None:
    (tmp_path / TEXT).mkdir()
    done = execute(relay, "pwd", arguments=("--cwd", os.fsencode(tmp_path / TEXT)), env=locale)
    assert (done.stdout, done.stderr) == (os.fsencode(tmp_path / TEXT) + b"\n", b"")


def test_a_message_has_the_bytes_of_a_name(relay: str, locale: dict[str, str]) -> None:
    done = execute(relay, b"no-" + RAW, env=locale)
    assert done.returncode == 127
    assert b"no-" + RAW in done.stderr


def test_a_relay_has_a_path_with_such_a_name(tmp_path: Path, locale: dict[str, str]) -> None:
    path = str(tmp_path / TEXT)
    with relay_at(path, env=locale):  # which tells its path
        assert execute(path, "echo", "hi", env=locale).stdout == b"hi\n"

"""``exec`` as a process: streams, arguments and statuses."""

from __future__ import annotations

import os
import random
import signal
import socket
import subprocess
from typing import TYPE_CHECKING

import pytest

from tests.cli._programs import PROGRAM, execute, stop
from tests.tools.limits import HANG

if TYPE_CHECKING:
    import pathlib
    from pathlib import Path


def test_stdin_stdout_stderr_and_the_status_pass_through(relay: str) -> None:
    done = execute(relay, "sh", "-c", "cat; echo oops >&2; exit 7", input=b"in")
    assert (done.stdout, done.stderr, done.returncode) == (b"in", b"oops\n", 7)


def test_megabytes_pass_through(relay: str) -> None:
    data = random.Random(3).randbytes(3_000_000)
    assert execute(relay, "cat", input=data).stdout == data


def test_a_command_that_does_not_read_its_stdin_just_ends(relay: str) -> None:
    done = execute(relay, "true", input=bytes(2_000_000))
    assert (done.returncode, done.stderr) == (0, b"")


@pytest.mark.parametrize("words", [["-n", "x"], ["--", "x"], ["a", "--", "b"], ["--relay", "x"], [""]])
def test_arguments_of_the_command_are_its_own(relay: str, words: list[str]) -> None:
    done = execute(relay, "printf", "[%s]", "lead", *words)
    assert done.stdout.decode() == "".join(f"[{word}]" for word in ["lead", *words])


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL, signal.SIGUSR1, signal.SIGSEGV])
def test_a_command_killed_by_a_signal_looks_like_one(relay: str, number: signal.Signals) -> None:
    assert execute(relay, "sh", "-c", f"kill -{number.value} $$").returncode == -number


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_signals_are_passed_on(relay: str, number: int) -> None:
    process = subprocess.Popen(
        [
            *PROGRAM,
            "exec",
            "--relay",
            relay,
            "--",
            "sh",
            "-c",
            "trap 'exit 42' TERM INT HUP; echo up; while :; do sleep 0.1; done",
        ],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    assert process.stdout is not None
    assert process.stdout.readline() == b"up\n"
    assert stop(process, number)[0] == 42


def test_a_command_that_is_not_there_is_127(relay: str) -> None:
    done = execute(relay, "no-such-command")
    assert done.returncode == 127
    assert b"no-such-command" in done.stderr
    assert b"Traceback" not in done.stderr


def test_a_command_that_cannot_be_run_is_126(relay: str) -> None:
    done = execute(relay, "/")
    assert done.returncode == 126
    assert b"Traceback" not in done.stderr


@pytest.mark.parametrize("cwd", ["/no/dir", "", "/etc/passwd"])
def test_a_directory_that_cannot_be_entered_is_126_and_blamed(relay: str, cwd: str) -> None:
    done = execute(relay, "true", arguments=("--cwd", cwd))
    assert done.returncode == 126
    assert done.stderr.startswith(f"trio_console: cannot enter the working directory {cwd!r}: ".encode())


def test_a_user_that_is_not_known_is_126(relay: str) -> None:
    done = execute(relay, "true", arguments=("--user", "no-such-user"))
    assert done.returncode == 126
    assert b"no-such-user" in done.stderr
    assert b"Traceback" not in done.stderr


def test_a_relay_that_is_not_there_is_125(tmp_path: Path) -> None:
    done = execute(str(tmp_path / "none"), "true")
    assert done.returncode == 125
    assert str(tmp_path / "none").encode() in done.stderr
    assert b"Traceback" not in done.stderr


def test_something_that_is_no_relay_is_125(tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(tmp_path / "s"))
        server.listen(1)
        process = subprocess.Popen(
            [*PROGRAM, "exec", "--relay", str(tmp_path / "s"), "--", "true"],
            stdin=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
        )
        with server.accept()[0] as connection:
            connection.sendall(b"220 mail.example ESMTP\r\n")
            _, said = process.communicate(timeout=HANG)
    assert process.returncode == 125
    assert b"220 mail.example ESMTP" in said
    assert b"Traceback" not in said


def test_whoever_stops_reading_the_output_ends_the_command(relay: str) -> None:
    done = subprocess.run(
        ["sh", "-c", f'{" ".join(PROGRAM)} exec --relay "$0" -- yes | head -c 4; exit 0', relay],
        check=False,
        capture_output=True,
        timeout=HANG,
    )
    assert (done.stdout, done.stderr) == (b"y\ny\n", b"")
    # It is not left running in the guest either.
    assert execute(relay, "sh", "-c", "pgrep -P $PPID -x yes || echo none").stdout == b"none\n"


#: Some builds of libffi open a descriptor when ctypes is imported, and keep it.
HOLDS_A_DESCRIPTOR = """
import importlib.abc, os, sys
class Finder(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name == "ctypes":
            os.open("/dev/zero", os.O_RDONLY)
sys.meta_path.insert(0, Finder())
"""


@pytest.mark.parametrize("holding", [False, True])
@pytest.mark.parametrize("closed", ["<&-", ">&-", "2>&-", "<&- >&-", "<&- 2>&-", ">&- 2>&-", "<&- >&- 2>&-"])
def test_descriptors_that_are_closed_are_no_obstacle(
    relay: str, closed: str, holding: bool, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if holding:
        (tmp_path / "sitecustomize.py").write_text(HOLDS_A_DESCRIPTOR)
        monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    script = f'{" ".join(PROGRAM)} exec --relay "$0" -- sh -c "cat; echo out; echo err >&2; exit 3" {closed}'
    done = subprocess.run(
        ["sh", "-c", script, relay],
        check=False,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        timeout=HANG,
    )
    assert done.returncode == 3
    assert b"Traceback" not in done.stderr
    assert done.stdout == (b"" if ">&-" in closed.replace("2>&-", "") else b"out\n")


def test_directory_environment_and_user_are_passed_on(relay: str) -> None:
    done = execute(
        relay, "sh", "-c", 'echo "$PWD $A $B $(id -u)"', arguments=("--cwd", "/", "--env", "A=1", "--env", "B=x=y")
    )
    assert done.stdout.decode().split() == ["/", "1", "x=y", str(os.geteuid())]


def test_a_terminal_is_given_on_request(relay: str) -> None:
    assert execute(relay, "sh", "-c", "test -t 0 && echo yes", arguments=("--tty",)).stdout == b"yes\r\n"
    assert execute(relay, "sh", "-c", "test -t 0 || echo no").stdout == b"no\n"


def test_several_at_once(relay: str) -> None:
    processes = [
        subprocess.Popen(
            [*PROGRAM, "exec", "--relay", relay, "--", "sh", "-c", f"sleep 0.1; echo {number}; exit {number}"],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
        )
        for number in range(4)
    ]
    for number, process in enumerate(processes):
        assert process.communicate(timeout=HANG)[0] == f"{number}\n".encode()
        assert process.returncode == number


@pytest.mark.parametrize(("uid", "status"), [(os.geteuid(), 0), (os.geteuid() + 1, 125)])
def test_a_relay_is_taken_only_of_the_named_users(relay: str, uid: int, status: int) -> None:
    command = [*PROGRAM, "exec", "--relay", relay, "--server-uid", str(uid), "--", "true"]
    done = subprocess.run(command, check=False, capture_output=True, timeout=HANG)
    assert done.returncode == status
    assert (b"listens there, who is not one of the server_uids" in done.stderr) is bool(status)

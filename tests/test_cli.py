"""The command line: ``relay`` and ``exec``, as processes."""

from __future__ import annotations

import os
import random
import signal
import socket
import subprocess
import sys
import tempfile
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import pytest

import trio_console
from tests.tools.limits import HANG
from trio_console import __main__ as cli

if TYPE_CHECKING:
    import pathlib
    from collections.abc import Iterator
    from pathlib import Path

PROGRAM = [sys.executable, "-m", "trio_console"]


@contextmanager
def relay_at(path: str, *arguments: str) -> Iterator[subprocess.Popen[bytes]]:
    """A relay that serves already."""
    process = subprocess.Popen(
        [*PROGRAM, "relay", "--listen", path, *arguments], stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    try:
        assert process.stdout is not None
        assert process.stdout.readline() == f"ready {path}\n".encode()
        yield process
    finally:
        process.terminate()
        try:
            process.communicate(timeout=HANG)
        finally:
            process.kill()


@pytest.fixture(scope="module")
def relay() -> Iterator[str]:
    """One relay for all tests that leave it as they found it."""
    with tempfile.TemporaryDirectory() as place:
        path = os.path.join(place, "relay.sock")
        with relay_at(path):
            yield path


def execute(relay: str, *command: str, **options: Any) -> subprocess.CompletedProcess[bytes]:
    more = options.pop("arguments", ())
    options = {"stdin": subprocess.DEVNULL} | options if "input" not in options else options
    return subprocess.run(
        [*PROGRAM, "exec", "--relay", relay, *more, "--", *command],
        check=False,
        capture_output=options.pop("capture_output", True),
        timeout=HANG,
        **options,
    )


def stop(process: subprocess.Popen[bytes], number: int) -> tuple[int, bytes]:
    """Send a signal; returns the exit status and the output."""
    process.send_signal(number)
    _, said = process.communicate(timeout=HANG)
    return process.returncode, said


# relay


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_relay_ends_in_order_at_a_signal(tmp_path: Path, number: int) -> None:
    with relay_at(str(tmp_path / "s")) as process:
        assert (tmp_path / "s").is_socket()
        assert stop(process, number) == (0, b"")
    assert not (tmp_path / "s").exists()


def test_a_relay_serves_a_console_socket(tmp_path: Path) -> None:
    console = tmp_path / "console.sock"
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(console))
        server.listen(1)
        # As a VM does it: the agent is at the other end of the console.
        process = subprocess.Popen(
            [*PROGRAM, "relay", "--console", str(console), "--listen", str(tmp_path / "s")], stdout=subprocess.PIPE
        )
        with server.accept()[0] as connection:
            agent = subprocess.Popen(
                [sys.executable, "-m", "trio_console.agent", "--fd", str(connection.fileno())],
                pass_fds=[connection.fileno()],
            )
    try:
        assert process.stdout is not None
        assert process.stdout.readline() == f"ready {tmp_path / 's'}\n".encode()
        assert execute(str(tmp_path / "s"), "echo", "hi").stdout == b"hi\n"
        assert stop(process, signal.SIGTERM)[0] == 0
        assert agent.wait(HANG) == 0
    finally:
        process.kill()
        agent.kill()
        process.communicate()
        agent.wait()


def test_a_relay_without_its_console_says_why(tmp_path: Path) -> None:
    done = subprocess.run(
        [*PROGRAM, "relay", "--console", str(tmp_path / "no"), "--listen", str(tmp_path / "s")],
        check=False,
        capture_output=True,
        timeout=HANG,
    )
    assert done.returncode == 1
    assert b"connecting to the guest's console" in done.stderr
    assert b"Traceback" not in done.stderr
    assert not list(tmp_path.iterdir())


def test_a_relay_in_a_place_that_is_taken_says_so(relay: str) -> None:
    done = subprocess.run([*PROGRAM, "relay", "--listen", relay], check=False, capture_output=True, timeout=HANG)
    assert done.returncode == 1
    assert b"listening there already" in done.stderr
    assert execute(relay, "true").returncode == 0


def test_a_relay_whose_guest_dies_says_why(tmp_path: Path) -> None:
    with relay_at(str(tmp_path / "s")) as process:
        lost = execute(str(tmp_path / "s"), "sh", "-c", "kill -KILL $PPID; sleep 9")
        assert lost.returncode == 125
        assert b"Traceback" not in lost.stderr
        _, said = process.communicate(timeout=HANG)
        assert process.returncode == 1
        assert b"SIGKILL" in said
        assert b"Traceback" not in said
    assert not (tmp_path / "s").exists()


def test_a_signal_before_the_guest_is_ready_ends_it_in_order(tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(tmp_path / "console"))
        server.listen(1)
        process = subprocess.Popen(
            [*PROGRAM, "relay", "--console", str(tmp_path / "console"), "--listen", str(tmp_path / "s")],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )
        with server.accept()[0]:
            assert stop(process, signal.SIGTERM) == (0, b"")
    assert not (tmp_path / "s").exists()


# exec


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
        relay, "sh", "-c", 'echo "$PWD $A $B $(id -u)"', arguments=["--cwd", "/", "--env", "A=1", "--env", "B=x=y"]
    )
    assert done.stdout.decode().split() == ["/", "1", "x=y", str(os.geteuid())]


def test_a_terminal_is_given_on_request(relay: str) -> None:
    assert execute(relay, "sh", "-c", "test -t 0 && echo yes", arguments=["--tty"]).stdout == b"yes\r\n"
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


# In this process


@pytest.mark.parametrize("arguments", [[], ["relay"], ["exec", "--relay", "x"], ["dance"]])
def test_a_command_line_that_makes_no_sense_is_2(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        cli.main(arguments)
    assert caught.value.code == 2
    assert "usage:" in capsys.readouterr().err


@pytest.mark.parametrize("module", ["trio_console", "trio_console.agent"])
def test_both_command_lines_tell_the_version(module: str) -> None:
    done = subprocess.run(
        [sys.executable, "-m", module, "--version"], check=True, capture_output=True, text=True, timeout=HANG
    )
    assert done.stdout == f"trio_console {trio_console.__version__}\n"


def test_the_help_names_both_commands(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        cli.main(["--help"])
    assert caught.value.code == 0
    said = capsys.readouterr().out
    assert "relay" in said
    assert "exec" in said

"""The command line's programs, as processes of the tests."""

from __future__ import annotations

import fcntl
import os
import subprocess
import sys
import termios
import time
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from tests.tools.limits import HANG

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

PIPE = subprocess.PIPE
PROGRAM = [sys.executable, "-m", "trio_console"]


@contextmanager
def relay_at(path: str, *arguments: str, **options: Any) -> Iterator[subprocess.Popen[bytes]]:
    """A relay that serves already."""
    process = subprocess.Popen(
        [*PROGRAM, "relay", "--listen", path, *arguments], stdout=PIPE, stderr=PIPE, **options
    )
    try:
        assert process.stdout is not None
        assert process.stdout.readline() == b"ready %s\n" % os.fsencode(path)
        yield process
    finally:
        process.terminate()
        try:
            process.communicate(timeout=HANG)
        finally:
            process.kill()


def command_line(relay: str, *command: str | bytes, arguments: tuple[str | bytes, ...] = ()) -> list[str | bytes]:
    return [*PROGRAM, "exec", "--relay", relay, *arguments, "--", *command]


def execute(
    relay: str, *command: str | bytes, arguments: tuple[str | bytes, ...] = (), **options: Any
) -> subprocess.CompletedProcess[bytes]:
    options = {"stdin": subprocess.DEVNULL} | options if "input" not in options else options
    return subprocess.run(
        command_line(relay, *command, arguments=arguments),
        check=False,
        capture_output=options.pop("capture_output", True),
        timeout=HANG,
        **options,
    )


@contextmanager
def executing(
    relay: str, *command: str, says: bytes = b"", ignoring: str = "", **options: Any
) -> Iterator[subprocess.Popen[bytes]]:
    """An ``exec`` that runs, and has said ``says``, a line without its end; killed behind the block.

    Args:
        ignoring: signals that it is started with ignored, such as ``HUP INT``.
    """
    argv = command_line(relay, *command)
    if ignoring:
        argv = ["sh", "-c", f'trap "" {ignoring}; exec "$@"', "sh", *argv]
    process = subprocess.Popen(argv, **{"stdin": PIPE, "stdout": PIPE, "stderr": PIPE} | options)
    try:
        if says:
            assert process.stdout is not None
            assert process.stdout.readline() == says + b"\n"
        yield process
    finally:
        process.kill()
        for stream in (process.stdin, process.stdout, process.stderr):
            if stream is not None:
                stream.close()
        process.wait(HANG)


def stop(process: subprocess.Popen[bytes], number: int) -> tuple[int, bytes]:
    """Send a signal; returns the exit status and the output."""
    process.send_signal(number)
    _, said = process.communicate(timeout=HANG)
    return process.returncode, said


def wait_until(true: Callable[[], object], what: str) -> None:
    deadline = time.monotonic() + HANG
    while not true():
        assert time.monotonic() < deadline, f"still not so: {what}"
        time.sleep(0.005)


def wait_full(fd: int) -> None:
    """Wait until a pipe is full. (A pipe is full when it has no free page, and a page may be filled in part.)"""

    def is_full() -> bool:
        queued = int.from_bytes(fcntl.ioctl(fd, termios.FIONREAD, bytes(4)), sys.byteorder)
        return queued > int(fcntl.fcntl(fd, fcntl.F_GETPIPE_SZ)) - 4096

    wait_until(is_full, "the pipe is full")


def state_of(pid: int) -> str:
    """The letter of a process's state; empty if there is none."""
    try:
        with open(f"/proc/{pid}/stat", encoding="utf-8", errors="replace") as file:
            return file.read().rpartition(")")[2].split()[0]
    except (FileNotFoundError, ProcessLookupError):
        return ""

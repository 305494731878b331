"""The line on a terminal about something that takes its time."""

from __future__ import annotations

import io
import os
import pty
import signal
import sys
import termios
from types import SimpleNamespace
from typing import TYPE_CHECKING, NamedTuple, TextIO

import pytest
import trio

from trio_console._guests.machine.stock import progress
from trio_console._guests.machine.stock.progress import shown

if TYPE_CHECKING:
    from collections.abc import Iterator

    from trio.testing import MockClock


def let_stderr_be(stderr: TextIO | None, monkeypatch: pytest.MonkeyPatch) -> None:
    # (pytest has a stderr of its own in `sys`, which it exchanges between a fixture and its test.)
    monkeypatch.setattr(progress, "sys", SimpleNamespace(stderr=stderr))


#: What no line holds.
END = b"\a"


class Terminal(NamedTuple):
    """Both ends of a terminal that is stderr."""

    ours: int
    theirs: int

    def said(self) -> bytes:
        """All that was written to it. It is passed on later, and in pieces, so an end of ours is the last."""
        os.write(self.theirs, END)
        said = b""
        while not said.endswith(END):
            said += os.read(self.ours, 4096)
        return said.removesuffix(END)

    def go(self) -> None:
        with open(os.devnull) as other:
            os.dup2(other.fileno(), self.ours)


@pytest.fixture
def terminal(monkeypatch: pytest.MonkeyPatch) -> Iterator[Terminal]:
    ours, theirs = pty.openpty()
    with os.fdopen(theirs, "w") as stderr:
        let_stderr_be(stderr, monkeypatch)
        yield Terminal(ours, theirs)
    os.close(ours)


async def test_a_line_says_what_takes_how_long_and_goes(terminal: Terminal, autojump_clock: MockClock) -> None:
    async with shown("making it"):
        await trio.sleep(2.5)
    assert terminal.said() == b"\rmaking it: 1 s\rmaking it: 2 s\r" + b" " * 14 + b"\r"


async def test_what_is_quick_is_not_told(terminal: Terminal, autojump_clock: MockClock) -> None:
    async with shown("making it"):
        await trio.sleep(0.5)
    assert terminal.said() == b""


async def test_a_terminal_that_was_stopped_holds_nobody_up(terminal: Terminal, autojump_clock: MockClock) -> None:
    termios.tcflow(terminal.theirs, termios.TCOOFF)
    async with shown("making it"):
        await trio.sleep(5)
    termios.tcflow(terminal.theirs, termios.TCOON)
    assert terminal.said() == b""


async def test_a_terminal_that_has_gone_holds_nobody_up(terminal: Terminal, autojump_clock: MockClock) -> None:
    async with shown("making it"):
        terminal.go()
        await trio.sleep(5)


@pytest.fixture
def pipe(monkeypatch: pytest.MonkeyPatch) -> Iterator[int]:
    """The other end of a pipe that is stderr."""
    reading, writing = os.pipe()
    os.set_blocking(reading, False)
    with os.fdopen(writing, "w") as stderr:
        let_stderr_be(stderr, monkeypatch)
        yield reading
    os.close(reading)


async def test_a_stderr_that_is_no_terminal_gets_nothing(pipe: int, autojump_clock: MockClock) -> None:
    async with shown("making it"):
        await trio.sleep(5)
    with pytest.raises(BlockingIOError):
        os.read(pipe, 1)


@pytest.mark.parametrize("stderr", [None, io.StringIO()])
async def test_a_program_may_have_no_stderr(
    stderr: io.StringIO | None, monkeypatch: pytest.MonkeyPatch, autojump_clock: MockClock
) -> None:
    let_stderr_be(stderr, monkeypatch)
    async with shown("making it"):
        await trio.sleep(5)


async def test_what_the_block_raises_comes_out_as_it_is(terminal: Terminal, autojump_clock: MockClock) -> None:
    with pytest.raises(ZeroDivisionError):
        async with shown("making it"):
            raise ZeroDivisionError


def test_a_program_in_the_background_is_not_stopped_by_its_terminal() -> None:
    pid, terminal = pty.fork()
    if not pid:
        _in_background()
    try:
        _, status = os.waitpid(pid, 0)
    finally:
        os.close(terminal)
    assert os.waitstatus_to_exitcode(status) == 0


def _in_background() -> None:
    """Show a line as a process group that is not the terminal's, which stops those that write; exit with 0."""
    settings = termios.tcgetattr(2)
    settings[3] |= termios.TOSTOP
    termios.tcsetattr(2, termios.TCSANOW, settings)
    child = os.fork()
    if child:
        _, status = os.waitpid(child, os.WUNTRACED)
        if os.WIFSTOPPED(status):
            os.kill(child, signal.SIGKILL)
            os._exit(1)
        os._exit(os.waitstatus_to_exitcode(status))
    os.setpgid(0, 0)
    sys.stderr = open(2, "w", closefd=False)  # noqa: SIM115  (the process ends here)

    async def main() -> None:
        async with shown("making it"):
            await trio.sleep(5)

    clock = trio.testing.MockClock(autojump_threshold=0)
    trio.run(main, clock=clock)
    os._exit(0)

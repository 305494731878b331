"""A line on the terminal about something that takes its time, gone when that is over; nothing where there is none.

Only the terminal that is this program's stderr is written to. It may have been stopped (Ctrl-S), so it is opened
anew, without blocking: what it does not take at once is left out. And a terminal may stop a program in the
background that writes to it, so such a program writes nothing.

This module must not know what takes its time.
"""

from __future__ import annotations

import math
import os
import sys
from contextlib import asynccontextmanager, suppress
from typing import TYPE_CHECKING, Final

import trio

from trio_console._forked import let_go_in_child, no_fork
from trio_console._trio.interrupts import interrupt_safe
from trio_console._trio.nursery import hidden_nursery

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from io import FileIO

__all__ = ["shown"]

#: Seconds until the line is shown, so that short work shows none, and between two changes of it.
_PATIENCE: Final = 1.0
_TURN: Final = 1.0

_FLAGS: Final = os.O_WRONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC


@interrupt_safe
@asynccontextmanager
async def shown(what: str) -> AsyncIterator[None]:
    """Show what is done, and for how many seconds, until the block is left."""
    terminal = _terminal()
    if terminal is None:
        yield
        return
    with terminal:
        async with hidden_nursery() as nursery:
            nursery.start_soon(_show, terminal, what)
            try:
                yield
            finally:
                nursery.cancel_scope.cancel()


async def _show(terminal: FileIO, what: str) -> None:
    began = trio.current_time()
    line = ""
    try:
        await trio.sleep(_PATIENCE)
        while True:
            line = f"{what}: {math.floor(trio.current_time() - began)} s"
            _write(terminal, f"\r{line}")
            await trio.sleep(_TURN)
    finally:
        if line:
            _write(terminal, f"\r{' ' * len(line)}\r")


def _terminal() -> FileIO | None:
    """The terminal that is stderr, if it is one."""
    try:
        fd = sys.stderr.fileno()
        if not os.isatty(fd):
            return None
        with no_fork():
            path = f"/proc/self/fd/{fd}"
            return let_go_in_child(open(path, "wb", buffering=0, opener=lambda name, _: os.open(name, _FLAGS)))
    except (AttributeError, OSError, ValueError):  # there is no stderr, it was closed, or may not be opened
        return None


def _write(terminal: FileIO, text: str) -> None:
    with suppress(OSError):
        if not _is_in_background(terminal.fileno()):
            terminal.write(text.encode(errors="backslashreplace"))


def _is_in_background(fd: int) -> bool:
    try:
        return os.tcgetpgrp(fd) != os.getpgrp()
    except OSError:
        return False  # it is not the terminal of this program, and so does not stop it

"""Any console as a stream: a device through `open_console` or `open_polled`, and a stream as it is.

Whoever is given a console owns it: it is closed at the end, whatever happens.
"""

from __future__ import annotations

import logging
from contextlib import asynccontextmanager
from functools import partial
from typing import TYPE_CHECKING, Final

import trio

from trio_console._console.channel import SHORT_GRACE, open_console
from trio_console._console.devices import FdDevice, as_device, close_quietly
from trio_console._console.polled import open_polled
from trio_console._trio.ending import see_through
from trio_console._trio.interrupts import interrupt_safe

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from trio_console._console.devices import ConsoleDevice, GuestDevice

__all__ = ["aclose_by_force", "aclose_quietly", "close_console", "console_of", "opened_console"]

_log: Final = logging.getLogger("trio_console.console")


def console_of(what: ConsoleDevice | trio.abc.Stream) -> GuestDevice | trio.abc.Stream:
    """Take ownership of a console: a stream, or whatever `as_device` takes, with the errors of that."""
    return what if isinstance(what, trio.abc.Stream) else as_device(what)


@interrupt_safe
@asynccontextmanager
async def opened_console(console: GuestDevice | trio.abc.Stream) -> AsyncIterator[trio.abc.Stream]:
    """The console as a stream for the time of a block, after which it is closed."""
    if isinstance(console, trio.abc.Stream):
        try:
            yield console
        finally:
            close = partial(_close, console)
            await see_through(close, grace=SHORT_GRACE, hurried=SHORT_GRACE)  # noqa: ASYNC102  (shields itself)
    elif isinstance(console, FdDevice) and console.by_tasks:
        async with open_polled(console, grace=SHORT_GRACE) as polled:
            yield polled
    else:
        async with open_console(console, grace=SHORT_GRACE) as channel:
            yield channel


async def close_console(console: ConsoleDevice | trio.abc.Stream) -> None:
    """Close a console that nobody has used, by force."""
    if isinstance(console, trio.abc.Stream):
        await aclose_by_force(console)
        return
    try:
        device = as_device(console)
    except (TypeError, ValueError, OSError) as exc:
        _log.warning("%r is no console and was not closed: %s", console, exc)
        await trio.lowlevel.checkpoint()
    else:
        close_quietly(device)
        await trio.lowlevel.checkpoint()


async def aclose_quietly(stream: trio.abc.Stream) -> None:
    """Close a stream in order. What its `aclose` raises is logged. If cancelled, it is closed by force."""
    try:
        await stream.aclose()
    except Exception as exc:  # noqa: BLE001  (the stream may be the user's)
        _log.warning("%r: aclose() raised %r; the stream may still be open", stream, exc)


async def aclose_by_force(stream: trio.abc.Stream) -> None:
    """Close a stream by force, and quietly."""
    with trio.CancelScope() as scope:
        scope.cancel()
        await aclose_quietly(stream)


async def _close(stream: trio.abc.Stream, patience: trio.CancelScope) -> None:
    with patience:
        await aclose_quietly(stream)

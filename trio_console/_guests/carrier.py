"""The task that runs a `GuestSpec`, and its end.

A spec is the user's code as well as ours. It runs in a task of its own, because an exception that passes through a
context manager with a nursery in it may come out as another one. And it runs shielded: when the user's block is
cancelled, the guest is still to be told, and ends in order. Only `Carrier` ends the task.
"""

from __future__ import annotations

import logging
import warnings
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Final, final

import trio

from trio_console._console.opened import close_console
from trio_console._guests.spec import GuestHost
from trio_console._trio.clocks import Stopwatch, within
from trio_console._trio.ending import see_through
from trio_console._trio.interrupts import interrupt_safe
from trio_console._trio.lost import GuestLostError
from trio_console._trio.nursery import hidden_nursery

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from trio_console._console.devices import ConsoleDevice
    from trio_console._guests.spec import GuestSpec

__all__ = ["Carrier", "carried"]

_log: Final = logging.getLogger("trio_console.guest")

#: Seconds that a spec has to return by itself after its guest was killed, before it is cancelled.
_KILL_TIME: Final = 0.5

#: Seconds for a spec without words of its own to end, when its console has.
_WORDS_TIME: Final = 0.2

#: Seconds that a cancelled spec may take before a warning says so. Our own take three at most.
_END_TIME: Final = 5.0


@interrupt_safe
@asynccontextmanager
async def carried(spec: GuestSpec, timeout: float) -> AsyncIterator[Carrier]:
    """Run a spec for the time of a block, which begins when the spec has started its guest.

    Raises:
        GuestLostError: the spec has not started it within ``timeout`` seconds, or has returned before.
        Exception: what the spec has raised before it was started.
    """
    carrier: Carrier | None = None
    try:
        async with hidden_nursery() as nursery:
            carrier = Carrier(spec, nursery.cancel_scope)
            nursery.start_soon(carrier._run)
            try:
                await carrier._wait_started(timeout)
                yield carrier
            finally:
                await see_through(carrier._end)  # noqa: ASYNC102  (shields itself)
    finally:
        if carrier is not None and spec._fails_its_test and carrier.error is not None:
            raise carrier.error  # in place of what it has caused in the block, which becomes its context


@final
class Carrier:
    """A spec that runs: see `carried`.

    Attributes:
        host: what it has started.
        error: what the spec has raised after it was started.
    """

    def __init__(self, spec: GuestSpec, body: trio.CancelScope) -> None:
        self.host: GuestHost
        self.error: Exception | None = None
        self._spec = spec
        self._body = body
        self._taken = False
        self._status = _Status()
        self._scope = trio.CancelScope(shield=True)
        self._ended = trio.Event()

    def take_console(self) -> ConsoleDevice | trio.abc.Stream:
        """The console, which is the caller's from now on. Not taken, it is closed at the end of the carrier."""
        assert not self._taken, "a console has one owner"
        self._taken = True
        return self.host.console

    @trio.lowlevel.enable_ki_protection
    async def _run(self) -> None:
        try:
            with self._scope:
                await self._spec.run(task_status=self._status)
        except Exception as exc:  # noqa: BLE001  (kept: whoever waits for the guest gets it)
            self.error = exc
            if self._spec._fails_its_test:
                self._body.cancel()
        finally:
            self._ended.set()
            self._status.changed.set()

    async def _wait_started(self, seconds: float) -> None:
        watch = Stopwatch()
        with trio.move_on_after(seconds):
            await self._status.changed.wait()
        if self._status.host is not None:
            self.host = self._status.host
            return
        if not self._ended.is_set():
            late = f"the guest was not ready within {seconds:g} seconds: {self._spec!r} has no console yet"
            raise GuestLostError(f"{late}{watch.note()}")
        if self.error is None:
            raise GuestLostError(f"{self._spec!r} returned without a console")
        error, self.error = self.error, None
        try:
            raise error
        finally:
            del error  # its traceback refers to this frame

    async def wait_ended(self) -> None:
        """Wait until the spec has returned or raised. If cancelled, nothing changes."""
        await self._ended.wait()

    def check(self) -> None:
        """Raise what the spec has raised after it was started, if it has."""
        if self.error is not None:
            raise self.error

    async def explain(self) -> str:
        """Why the console ended, as far as the spec knows.

        Raises:
            Exception: what the spec has raised while it explained.
        """
        host = self.host
        words = "the other end is gone"
        if host.explain is not None:
            words = await host.explain()
        else:
            with trio.move_on_after(_WORDS_TIME):  # the console may be gone because the spec is just ending
                await self._ended.wait()
        return words if self.error is None else f"{self._spec!r} failed: {self.error!r}"

    def kill(self) -> None:
        """End the guest by force, if the spec knows how. Does not wait."""
        host = self._status.host
        if host is None or host.kill is None or self._ended.is_set():
            return
        try:
            host.kill()
        except Exception:  # noqa: BLE001  (logged)
            _log.exception("%r: kill() raised; the guest may still run", self._spec)

    async def _end(self, _patience: trio.CancelScope) -> None:
        """End the spec: by closing its console, by its kill function, and by cancelling it."""
        try:
            await self._close_untaken()
            self.kill()
            if self._status.host is not None and self._status.host.kill is not None:
                await within(_KILL_TIME, self._ended.wait)
        finally:
            self._scope.cancel()
        await within(_END_TIME, self._ended.wait)
        if not self._ended.is_set():
            warnings.warn(
                f"{self._spec!r} was cancelled {_END_TIME:g} seconds ago and has not ended: its run() must not "
                "shield itself without a deadline. The block that is left waits for it",
                RuntimeWarning,
                stacklevel=1,
            )
            await self._ended.wait()
        await self._close_untaken()  # it may have started the guest after it was cancelled

    async def _close_untaken(self) -> None:
        if self._status.host is not None and not self._taken:
            self.host = self._status.host
            await close_console(self.take_console())


@final
class _Status(trio.TaskStatus[GuestHost]):
    """What a spec calls when it has started its guest."""

    def __init__(self) -> None:
        self.host: GuestHost | None = None
        self.changed = trio.Event()  # it was called, or the spec has ended

    def started(self, value: GuestHost | None = None) -> None:
        if self.host is not None:
            raise RuntimeError("started() was called a second time")
        if not isinstance(value, GuestHost):
            raise TypeError(f"started() must be called with a GuestHost, not {type(value).__name__}")
        self.host = value
        self.changed.set()

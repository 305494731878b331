"""A console device, pumped by two worker threads, as a trio stream.

`open_console` owns the device, the lanes, the threads and their ending. The order of an ending is always the
same: nothing more is accepted; what is queued is given to the device; the device is closed, which frees a
worker in a blocked call; the workers are joined; the descriptors go. All of it has one deadline.

The workers run as trio threads on a limiter of their own. trio's default limiter has 40 tokens, and a console
uses two for its whole life: the 21st console would wait for the first to be closed.
"""

from __future__ import annotations

import warnings
from contextlib import asynccontextmanager, suppress
from typing import TYPE_CHECKING, Final, final

import trio

from trio_console._console.backend import ConsoleSharedState
from trio_console._console.devices import as_device, close_quietly
from trio_console._console.ring import DEFAULT_CAPACITY, DEFAULT_MAX_BYTES, ChunkRing
from trio_console._console.stream import ConsoleStream
from trio_console._console.workers import pump_from_device, pump_to_device
from trio_console._trio.clocks import within
from trio_console._trio.ending import see_through
from trio_console._trio.interrupts import interrupt_safe
from trio_console._trio.nursery import hidden_nursery
from trio_console._trio.threads import NoThreadError, in_thread

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

    from trio_console._console.backend import Lane
    from trio_console._console.devices import ConsoleDevice, GuestDevice

__all__ = ["open_console"]

#: Seconds that leaving a console may take while the device still takes what was sent.
DEFAULT_GRACE: Final = 2.0

#: Seconds for the same when the leaving was cancelled.
SHORT_GRACE: Final = 0.2

#: Seconds for workers to come back from a closed device. It takes them microseconds. But with six programs on two
#: processors 0.2 s were once not enough for a thread to get its turn, and an innocent device was accused.
JOIN_TIME: Final = 1.0


@interrupt_safe
@asynccontextmanager
async def open_console(
    device: ConsoleDevice,
    *,
    capacity: int = DEFAULT_CAPACITY,
    max_bytes: int = DEFAULT_MAX_BYTES,
    grace: float = DEFAULT_GRACE,
) -> AsyncIterator[ConsoleStream]:
    """Pump a console device with two worker threads, and give the host's end of it.

    Leaving the block closes the channel: what was sent still reaches the device if it takes it within
    ``grace`` (when cancelled, within 0.2 s), then the device is closed and the threads are joined. What could
    not be delivered is counted as dropped. Closing the channel inside the block does the same, in the
    background.

    Args:
        device: the guest's end of the console: a connected stream socket, a descriptor open for reading and
            writing, a ``(read_fd, write_fd)`` pair, or an object with the blocking methods of
            `GuestDevice`. It is owned, and closed, from here on. A terminal's master side has its end of file when
            nobody has the terminal open any more. Descriptors are non-blocking until they are closed, and where
            others have the same thing open it is for them what it was before, then.
        capacity: chunks queued at most in each direction.
        max_bytes: bytes queued at most in each direction.
        grace: seconds that leaving may take at most while the device still takes what was sent.

    Raises:
        TypeError, ValueError: ``device`` is nothing that can be a console, or a bound is below 1. The device was
            left alone.
        OSError: a descriptor is not open, or none could be made. The device was closed.
        RuntimeError: no thread could be started. The device was closed.

    Warns:
        RuntimeWarning: a `GuestDevice` did not come back from a blocked call although it was closed. Its
            thread is abandoned; it holds the device until it returns.
    """
    ChunkRing(capacity, max_bytes)  # refuses wrong bounds while the device is untouched
    port = as_device(device)
    try:
        shared = ConsoleSharedState(capacity, max_bytes)
    except BaseException:
        close_quietly(port)
        raise
    channel = ConsoleStream(shared)
    async with hidden_nursery() as nursery:
        workers = _Workers(port, shared)
        try:
            workers.start(nursery, channel)
            await workers.wait_started()
            yield channel
        finally:
            await _leave(channel, workers, grace)  # noqa: ASYNC102  (shields itself, for the grace)


async def _leave(channel: ConsoleStream, workers: _Workers, grace: float) -> None:
    async def leave(patience: trio.CancelScope) -> None:
        with patience:
            await channel.aclose()
            await workers.wait_delivered()
        channel.drop()  # which closes the device
        await within(JOIN_TIME, workers.wait_done)  # threads live by the machine's clock, and not by a MockClock
        workers.abandon()

    await see_through(leave, grace=grace, hurried=min(grace, SHORT_GRACE))


@final
class _Workers:
    """The two threads of one console, and the tasks that close its device.

    All tasks are shielded and end by themselves once `_leave` has run. One that was cancelled from outside would
    come out of the nursery beside the body's own exception, and wrap it into a group.
    """

    def __init__(self, device: GuestDevice, shared: ConsoleSharedState) -> None:
        self._device = device
        self._shared = shared
        self._limiter = trio.CapacityLimiter(2)
        self._delivered = trio.Event()
        self._received = trio.Event()
        self._started = (trio.Event(), trio.Event())
        self._missing: NoThreadError | None = None
        self._scopes: list[trio.CancelScope] = []

    def start(self, nursery: trio.Nursery, channel: ConsoleStream) -> None:
        shared, (writer, reader) = self._shared, self._started
        nursery.start_soon(self._run, pump_to_device, shared.rx, writer, self._delivered)
        nursery.start_soon(self._run, pump_from_device, shared.tx, reader, self._received)
        nursery.start_soon(self._close_device_after, channel)
        nursery.start_soon(self._close_device_when_dropped, channel)

    @trio.lowlevel.enable_ki_protection
    async def _run(
        self, pump: Callable[[GuestDevice, Lane], None], lane: Lane, started: trio.Event, done: trio.Event
    ) -> None:
        token = trio.lowlevel.current_trio_token()

        def work() -> None:
            with suppress(trio.RunFinishedError):
                token.run_sync_soon(started.set)
            pump(self._device, lane)

        # Shielded: a worker is ended through its lane and its device, so that it can hand over what it
        # holds. Only `abandon` lets go of a thread that is still running.
        with trio.CancelScope(shield=True) as scope:
            self._scopes.append(scope)
            try:
                await in_thread("for a console, which takes two", work, limiter=self._limiter, abandon=True)
            except NoThreadError as exc:
                self._missing = exc
                started.set()
            done.set()

    async def wait_started(self) -> None:
        """Wait until both threads run.

        Raises:
            NoThreadError: one could not be started.
        """
        for event in self._started:
            await event.wait()
        if self._missing is not None:
            raise self._missing

    async def wait_delivered(self) -> None:
        """Wait until the device has taken everything, or takes nothing any more."""
        await self._delivered.wait()

    async def wait_done(self) -> None:
        await self._delivered.wait()
        await self._received.wait()

    @trio.lowlevel.enable_ki_protection
    async def _close_device_after(self, channel: ConsoleStream) -> None:
        """Once the user has closed the channel and the queue is out, nobody needs the device."""
        with trio.CancelScope(shield=True) as scope:
            self._scopes.append(scope)
            await channel.wait_closed()
            await self.wait_delivered()
            self.close_device()

    @trio.lowlevel.enable_ki_protection
    async def _close_device_when_dropped(self, channel: ConsoleStream) -> None:
        """A forceful close does not wait for a guest that may never read: closing the device frees the worker."""
        with trio.CancelScope(shield=True):
            await channel.wait_dropped()
            self.close_device()

    def close_device(self) -> None:
        """Free the workers from whatever call they are in. Nothing a device raises here stops the ending."""
        try:
            self._device.close()
        except Exception as exc:  # noqa: BLE001  (a device of the user's)
            self._shared.guest_gone(exc)

    def abandon(self) -> None:
        """Let go of workers that did not come back, loudly.

        The wakes stay open then: the thread may still use them, and the last reference closes them.
        """
        if self._delivered.is_set() and self._received.is_set():
            self._shared.close_wakes()
            return
        for scope in self._scopes:
            scope.cancel()
        warnings.warn(
            f"{self._device!r} was closed, but a blocked call on it did not return: its worker thread is "
            "abandoned. A GuestDevice's close() must end its read() and write().",
            RuntimeWarning,
            stacklevel=1,
        )

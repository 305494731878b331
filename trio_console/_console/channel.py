"""A console device as a trio stream: two worker threads move the bytes.

`open_console` owns the device, the lanes, the threads and their ending. An ending always has the same order: no
more bytes are accepted; the queued bytes are written to the device; the device is closed, which frees a worker
that is blocked in a call; the workers are joined; the descriptors are closed. All steps together have one
deadline.

The workers run as trio threads with a limiter of their own. trio's default limiter has 40 tokens, and a console
needs two for its whole life: the 21st console would wait until the first is closed.
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

#: Seconds that leaving a console may take while the device still takes the queued bytes.
DEFAULT_GRACE: Final = 2.0

#: Seconds for the same if the leaving was cancelled.
SHORT_GRACE: Final = 0.2

#: Seconds for the workers to return from the calls on a closed device. They need microseconds. But with six
#: programs on two processors a thread once did not run for 0.2 s, and the warning blamed a device that was right.
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
    """Move a console device's bytes with two worker threads, and yield the host's end as a stream.

    Leaving the block closes the channel: the bytes already sent still reach the device if it takes them within
    ``grace``; then the device is closed and the threads are joined. Bytes that could not be delivered are counted
    as dropped. If the block is cancelled, leaving does the same, with 0.2 seconds in place of ``grace``. Closing
    the channel inside the block does the same, in the background.

    Args:
        device: the guest's end of the console: a connected stream socket, a descriptor open for reading and
            writing, a ``(read_fd, write_fd)`` pair, or an object with the blocking methods of
            `GuestDevice`. `open_console` owns it from the call on, and closes it. The master side of a terminal is
            at end of file when no program has the terminal open any more. Descriptors are made non-blocking, and
            set back before they are closed, because that flag also concerns other processes that share the open
            file.
        capacity: the most chunks queued in each direction; by default 2048.
        max_bytes: the most bytes queued in each direction; by default 1 MiB.
        grace: seconds, by default 2, that leaving may take while the device still takes the bytes sent.

    Raises:
        TypeError, ValueError: ``device`` cannot be a console, or a bound is below 1. The device is unchanged and
            still the caller's.
        OSError: a descriptor is not open, or no descriptor could be made. The device was closed.
        RuntimeError: no thread could be started. The device was closed.

    Warns:
        RuntimeWarning: a call of a `GuestDevice` did not return although the device was closed. The thread is
            abandoned, and refers to the device until the call returns.
    """
    ChunkRing(capacity, max_bytes)  # raises ValueError for a wrong bound before the device is taken over
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
        channel._drop()  # this also closes the device
        await within(JOIN_TIME, workers.wait_done)  # threads need time of the machine's clock, not of a MockClock
        workers.abandon()

    await see_through(leave, grace=grace, hurried=min(grace, SHORT_GRACE))


@final
class _Workers:
    """The two threads of one console, and the tasks that close its device.

    All tasks are shielded, and return by themselves once `_leave` has run. If a task could be cancelled from
    outside, its `Cancelled` would leave the nursery together with the body's own exception, wrapped in a group.
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
        nursery.start_soon(self._run, pump_to_device, shared._rx, writer, self._delivered)
        nursery.start_soon(self._run, pump_from_device, shared._tx, reader, self._received)
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

        # Shielded, because a worker is ended through its lane and its device, so that it can pass on the bytes
        # that it holds. Only `abandon` gives up a thread that still runs.
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
            NoThreadError: a thread could not be started.
        """
        for event in self._started:
            await event.wait()
        if self._missing is not None:
            raise self._missing

    async def wait_delivered(self) -> None:
        """Wait until the device has taken all bytes, or takes no more."""
        await self._delivered.wait()

    async def wait_done(self) -> None:
        await self._delivered.wait()
        await self._received.wait()

    @trio.lowlevel.enable_ki_protection
    async def _close_device_after(self, channel: ConsoleStream) -> None:
        """Close the device when the user has closed the channel and all queued bytes were written."""
        with trio.CancelScope(shield=True) as scope:
            self._scopes.append(scope)
            await channel._wait_closed()
            await self.wait_delivered()
            self.close_device()

    @trio.lowlevel.enable_ki_protection
    async def _close_device_when_dropped(self, channel: ConsoleStream) -> None:
        """Close the device when the user has closed the channel by force: do not wait for the guest to read."""
        with trio.CancelScope(shield=True):
            await channel._wait_dropped()
            self.close_device()

    def close_device(self) -> None:
        """Close the device, so that its blocked calls return. If its `close` raises, the ending goes on."""
        try:
            self._device.close()
        except Exception as exc:  # noqa: BLE001  (the device may be the user's)
            self._shared.guest_gone(exc)

    def abandon(self) -> None:
        """Close the wakes if both workers have returned; otherwise abandon the workers, with a warning.

        An abandoned thread may still use the wakes, so they stay open until it drops its references.
        """
        if self._delivered.is_set() and self._received.is_set():
            ended = self._shared._rx.abandoned and self._shared._tx.finished
            assert ended or self._missing is not None, "a worker ends its lane before it returns"
            self._shared.close_wakes()
            return
        for scope in self._scopes:
            scope.cancel()
        warnings.warn(
            f"{self._device!r} was closed, but a blocked call on it did not return: its worker thread is "
            "abandoned. A GuestDevice's close() must make blocked read() and write() calls return.",
            RuntimeWarning,
            stacklevel=1,
        )

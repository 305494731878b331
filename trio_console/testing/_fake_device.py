"""A console device without a machine, for a test that plays the guest and lets the device fail.

The threads are in ``_device_threads``; here are the guest's side of their queues, the faults, and the shutdown.

This module must not know what the bytes mean, nor import trio.
"""

from __future__ import annotations

import threading
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, final

from trio_console._buffers import flat_view
from trio_console._console.backend import AgentConsoleBackend, ConsoleSharedState
from trio_console._console.wake import WakePipe
from trio_console.testing._device_threads import DESCRIPTORS, PAGE_SIZE, WRITE_SIZE, Gate, Receiver, Transmitter

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import TracebackType

    from trio_console.testing._device_threads import DeviceBackend

__all__ = ["FakeConsoleDevice", "FakeDeviceStatistics"]

#: Seconds after which a blocking call of a test fails by default; no call of a correct test comes near it.
DEFAULT_TIMEOUT: Final = 10.0


@dataclass(frozen=True, slots=True)
class FakeDeviceStatistics:
    """The work that a `FakeConsoleDevice` has done so far.

    Attributes:
        bytes_written: bytes of the guest that the backend has taken.
        bytes_read: bytes that were put into the guest's pages.
        pages_filled: pages used; each is one interrupt of the guest.
        writes_blocked: how often a write would have blocked. Many of them in one wait are a busy loop.
        reads_blocked: how often a read would have blocked.
        descriptors_pending: descriptors of the guest that the backend has not taken yet.
        pages_pending: filled pages that the guest has not read yet.
    """

    bytes_written: int
    bytes_read: int
    pages_filled: int
    writes_blocked: int
    reads_blocked: int
    descriptors_pending: int
    pages_pending: int


@final
class FakeConsoleDevice:
    """A virtio console device for tests. Its threads run from the moment it is made.

    A test, or another thread, plays the guest through the ``guest_*`` calls, which block. A trio program calls
    them through `trio.to_thread.run_sync`. As a context manager it is shut down when the block is left, and raises
    if the backend has violated its contract. All methods may be called from any thread.

    Args:
        console: the state whose guest end the device drives, or a backend.
        stalled: start stalled, as after `stall`; by default not.

    Attributes:
        violations: the calls in which the backend violated its contract, so that a real device would hang, as
            `AssertionError`s; it should be empty.
    """

    def __init__(self, console: ConsoleSharedState | DeviceBackend, *, stalled: bool = False) -> None:
        backend: DeviceBackend
        shared: ConsoleSharedState | None = None
        if isinstance(console, ConsoleSharedState):
            shared, backend = console, AgentConsoleBackend(console)
        else:
            backend = console
            if isinstance(console, AgentConsoleBackend):
                shared = console._shared
        self._shared = shared
        self._gate = Gate(stalled=stalled)
        self._stop = WakePipe()
        self._tx = Transmitter(backend, self._gate)
        self._rx = Receiver(backend, self._gate, self._stop)
        # Daemons: a thread that hangs makes `shutdown` fail, and must not also keep the program from exiting.
        self._threads = [
            threading.Thread(target=self._tx.run, name="fake console tx", daemon=True),
            threading.Thread(target=self._rx.run, name="fake console rx", daemon=True),
        ]
        for thread in self._threads:
            thread.start()

    @property
    def violations(self) -> tuple[BaseException, ...]:
        """The violations of the backend's contract; see the class."""
        with self._gate.changed:
            return tuple(self._gate.violations)

    # The guest

    def guest_write(self, data: bytes | bytearray | memoryview, timeout: float = DEFAULT_TIMEOUT) -> None:
        """Write as the guest: queue all of ``data`` in descriptors of up to 32 KiB.

        Blocks while all 32 descriptors are in use. Returns when the last one is queued; see `guest_flush`.

        Args:
            data: the bytes to write.
            timeout: seconds for all of it; by default 10.

        Raises:
            TimeoutError: no descriptor was free in time; a first part of ``data`` may be queued.
            OSError: ``ENODEV``: the device has died or was shut down.
            AssertionError: the backend has violated its contract.
        """
        deadline = time.monotonic() + timeout
        queue = self._tx.queue
        gate = self._gate
        with flat_view(data) as view:
            for start in range(0, len(view), WRITE_SIZE):
                with gate.changed:
                    if not gate.wait_for(lambda: self._guest_interrupted() or len(queue) < DESCRIPTORS, deadline):
                        raise TimeoutError(f"{start} of {len(view)} bytes were queued in {timeout} s")
                    gate.check_guest()
                    queue.append(bytes(view[start : start + WRITE_SIZE]))
                    gate.changed.notify_all()

    def guest_flush(self, timeout: float = DEFAULT_TIMEOUT) -> None:
        """Block until the backend has taken all descriptors.

        Args:
            timeout: seconds; by default 10.

        Raises:
            TimeoutError: descriptors are still queued after that time.
            OSError, AssertionError: as in `guest_write`.
        """
        gate = self._gate
        with gate.changed:
            deadline = time.monotonic() + timeout
            if not gate.wait_for(lambda: self._guest_interrupted() or not self._tx.queue, deadline):
                raise TimeoutError(f"{len(self._tx.queue)} descriptors are still queued after {timeout} s")
            gate.check_guest()

    def guest_read(self, max_bytes: int = PAGE_SIZE, timeout: float = DEFAULT_TIMEOUT) -> bytes:
        """Read as the guest: at least one byte, at most ``max_bytes``, from one page.

        Args:
            max_bytes: the most bytes to return, at least 1; by default a page of 4096.
            timeout: seconds; by default 10.

        Returns:
            The bytes; ``b""`` at end of file.

        Raises:
            TimeoutError: no bytes came in time.
            OSError: ``ENODEV``: the device has died or was shut down, and every page was read.
            AssertionError: the backend has violated its contract.
            ValueError: ``max_bytes`` is below 1.
        """
        if max_bytes < 1:
            raise ValueError(f"max_bytes must be at least 1, not {max_bytes}")
        gate = self._gate
        rx = self._rx
        with gate.changed:
            deadline = time.monotonic() + timeout
            if not gate.wait_for(lambda: bool(rx.pages) or rx.eof or self._guest_interrupted(), deadline):
                raise TimeoutError(f"no bytes came in {timeout} s")
            if not rx.pages:
                if rx.eof:
                    return b""
                gate.check_guest()
            page = rx.pages.popleft()
            if len(page) > max_bytes:
                rx.pages.appendleft(page[max_bytes:])
                return page[:max_bytes]
            rx.free += 1  # the driver reuses a page when all of it was read
            gate.changed.notify_all()
            return page

    @property
    def guest_eof(self) -> bool:
        """Whether the guest is at end of file: it has read all bytes, and no more will come."""
        with self._gate.changed:
            return self._rx.eof and not self._rx.pages

    def _guest_interrupted(self) -> bool:
        gate = self._gate
        return gate.dead or gate.stopping or bool(gate.violations)

    # Faults

    def stall(self) -> None:
        """Stop both threads before their next call to the backend, until `resume`. Returns when no call runs.

        A thread that is blocked in ``wait_until_writable`` or poll stays there.
        """
        self._throw(lambda: self._gate.set(stalled=True))

    def resume(self) -> None:
        """End a `stall`."""
        self._gate.set(stalled=False)

    def die(self, cause: BaseException | None = None, *, mid_chunk: bool = False) -> None:
        """Make no more calls, and tell the state that the guest has gone.

        Does not wait for the host, whatever the rings hold. A thread that is blocked in ``wait_until_writable``
        ends when that call returns. A second call does nothing.

        Args:
            cause: the cause of the error that the host gets; `None`, the default, is an orderly end.
            mid_chunk: write the first half of the oldest descriptor that was not written yet, if there is one and
                the ring takes it, and never its second half. Call `stall` before `guest_write` to make sure that
                there is one.
        """

        def end() -> None:
            already = self._gate.dead
            self._gate.set(dead=True)
            if not already and self._shared is not None:
                self._shared.guest_gone(cause)

        self._throw(end, cut=mid_chunk)
        self._stop.wake()

    def _throw(self, switch: Callable[[], None], *, cut: bool = False) -> None:
        self._rx.freeze(lambda: self._tx.freeze(switch, cut=cut))

    # The end

    def shutdown(self, timeout: float = DEFAULT_TIMEOUT) -> None:
        """Stop and join both threads, as the monitor does before it can exit. A second call does nothing.

        The transmitting thread ends only when its current write was taken: the host must read, or close.

        Args:
            timeout: seconds; by default 10.

        Raises:
            AssertionError: a thread did not end in time; the message names it. The thread is left running.
        """
        self._gate.set(stopping=True)
        self._stop.wake()
        deadline = time.monotonic() + timeout
        for thread in self._threads:
            thread.join(max(0.0, deadline - time.monotonic()))
        late = [thread.name for thread in self._threads if thread.is_alive()]
        if late:
            raise AssertionError(f"these threads did not end within {timeout} s: {', '.join(late)}")
        self._stop.close()

    def statistics(self) -> FakeDeviceStatistics:
        """The work done so far."""
        with self._gate.changed:
            return FakeDeviceStatistics(
                bytes_written=self._tx.written,
                bytes_read=self._rx.read,
                pages_filled=self._rx.filled,
                writes_blocked=self._tx.blocked,
                reads_blocked=self._rx.blocked,
                descriptors_pending=len(self._tx.queue),
                pages_pending=len(self._rx.pages),
            )

    def __enter__(self) -> FakeConsoleDevice:
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        try:
            self.shutdown()
        except AssertionError:
            if exc is None:
                raise
            return  # the body's own error says more
        if exc is None and self.violations:
            raise self.violations[0]

"""The two threads of a console device, as a virtual machine monitor runs them.

They move bytes between a guest and an `AgentConsoleBackend`. They react to each result as a virtio console device
does, also where that is bad for the backend:

* A queue has 32 descriptors. The guest writes descriptors of up to 32 KiB; it reads from pages of 4 KiB, each of
  which is filled by one ``readinto`` and then signalled to the guest.
* When a read would block, the receiving thread polls the backend's descriptor and its own stop signal. It takes a
  result of 0 for end of file, and never reads again.
* When a write would block, the transmitting thread calls ``wait_until_writable``, and tries again. **It does not
  check its stop flag in that loop.** Any other result than "all bytes" or would-block makes a real device spin for
  ever; here it is recorded as a violation of the contract, and the thread ends.

The threads meet at `Gate`: it holds everything that a test can switch (stop, stall, death), and its condition
guards the queues too. A backend call is made under its direction's own lock, and the switches are checked after
the lock was taken. So when a switch was set inside ``freeze``, no earlier call is still running, and no new one
begins. A call that *blocks* (``wait_until_writable``, poll) is made under no lock. Locks are always taken in the
order receiver's, transmitter's, gate's.

This module must not know what the bytes mean, nor import trio.
"""

from __future__ import annotations

import errno
import select
import threading
import time
from collections import deque
from typing import TYPE_CHECKING, Final, Protocol, final

if TYPE_CHECKING:
    from collections.abc import Callable

    from trio_console._console.wake import WakePipe

__all__ = ["DESCRIPTORS", "PAGE_SIZE", "WRITE_SIZE", "DeviceBackend", "Gate", "Receiver", "Transmitter"]

#: Descriptors in each queue: the number that virtio console devices offer.
DESCRIPTORS: Final = 32

#: Bytes of one in-buffer: the guest's driver offers single pages.
PAGE_SIZE: Final = 4096

#: The most bytes of one out-buffer: the guest's driver cuts a ``write`` into pieces of this size.
WRITE_SIZE: Final = 32 * 1024


class DeviceBackend(Protocol):
    """The calls that a console device makes. `AgentConsoleBackend` has them, and says the whole contract."""

    def readinto(self, buffer: bytearray | memoryview) -> int:
        """Fill ``buffer``; return the bytes copied, or 0 at end of file; `BlockingIOError` if none has come."""
        ...

    def write(self, data: bytes) -> int:
        """Take all of ``data`` and return its size, or raise `BlockingIOError` if it does not fit."""
        ...

    def read_wake_fd(self) -> int:
        """The descriptor that is readable when ``readinto`` would not block."""
        ...

    def wait_until_writable(self) -> bool:
        """Block until the refused ``write`` would fit or the host has gone."""
        ...


@final
class Gate:
    """The switches, and the condition under which they and the queues change."""

    def __init__(self, *, stalled: bool) -> None:
        self.changed = threading.Condition()
        self.stalled = stalled
        self.stopping = False
        self.dead = False
        self.violations: list[BaseException] = []

    def set(self, *, stalled: bool | None = None, stopping: bool = False, dead: bool = False) -> None:
        with self.changed:
            if stalled is not None:
                self.stalled = stalled
            self.stopping |= stopping
            self.dead |= dead
            self.changed.notify_all()

    def wait_for(self, predicate: Callable[[], bool], deadline: float | None = None) -> bool:
        """Wait for ``predicate``, with `changed` held; returns `False` at the deadline."""
        left = None if deadline is None else max(0.0, deadline - time.monotonic())
        return self.changed.wait_for(predicate, left)

    def violated(self, what: str, cause: BaseException | None = None) -> None:
        violation = AssertionError(what)
        violation.__cause__ = cause
        with self.changed:
            self.violations.append(violation)
            self.changed.notify_all()

    def check_guest(self) -> None:
        """Raise the error of a guest's call if the device has gone or the backend has violated its contract."""
        if self.violations:
            raise self.violations[0]
        if self.dead or self.stopping:
            raise OSError(errno.ENODEV, "the console device is gone")


@final
class Transmitter:
    """Guest to host: the thread that takes descriptors and writes them to the backend."""

    def __init__(self, backend: DeviceBackend, gate: Gate) -> None:
        self._backend = backend
        self._gate = gate
        self._lock = threading.Lock()  # held around a write
        self.queue: deque[bytes] = deque()  # the thread may be writing the first one
        self.written = 0
        self.blocked = 0

    def run(self) -> None:
        gate = self._gate
        while True:
            with gate.changed:
                gate.wait_for(self._may_take)
                if gate.dead or gate.stopping:
                    return
                descriptor = self.queue[0]
            if not self._place(descriptor):
                return
            with gate.changed:
                self.queue.popleft()
                gate.changed.notify_all()

    def _may_take(self) -> bool:
        gate = self._gate
        return gate.dead or gate.stopping or (bool(self.queue) and not gate.stalled)

    def _place(self, descriptor: bytes) -> bool:
        """Write a descriptor, retrying as a device does: the loop ends with the write, and not at a stop.

        Returns `False` once the device is dead, or would spin for ever.
        """
        gate = self._gate
        while True:
            with gate.changed:
                # A stop ends a stall, because the threads are about to be joined.
                gate.wait_for(lambda: gate.dead or gate.stopping or not gate.stalled)
            with self._lock:
                if gate.dead:
                    return False
                if gate.stalled and not gate.stopping:
                    continue
                count = self._write(descriptor)
            if count == len(descriptor):
                return True
            if count is not None:
                return False
            self.blocked += 1
            try:
                self._backend.wait_until_writable()
            except Exception as exc:  # noqa: BLE001  (any exception violates the contract)
                gate.violated(f"wait_until_writable() raised {exc!r}", exc)
                return False

    def _write(self, data: bytes) -> int | None:
        """Make one write; returns the bytes taken, `None` if it would block, -1 after a violation."""
        try:
            count = self._backend.write(data)
        except BlockingIOError:
            return None
        except Exception as exc:  # noqa: BLE001  (any exception violates the contract)
            self._gate.violated(f"write() raised {exc!r}, which a device retries for ever", exc)
            return -1
        if count != len(data):
            self._gate.violated(
                f"write() of {len(data)} bytes returned {count!r}: it must take all, or would block"
            )
            return -1
        self.written += count
        return count

    def freeze(self, switch: Callable[[], None], *, cut: bool = False) -> None:
        """Call ``switch`` between two writes; with ``cut`` after half of the next descriptor was written."""
        with self._lock:
            if cut and self.queue and not self._gate.dead:
                first = self.queue[0]
                self._write(first[: len(first) // 2])
            switch()


@final
class Receiver:
    """Host to guest: the thread that fills the guest's pages from the backend."""

    def __init__(self, backend: DeviceBackend, gate: Gate, stop: WakePipe) -> None:
        self._backend = backend
        self._gate = gate
        self._stop = stop
        self._lock = threading.Lock()  # held around a read
        self.free = DESCRIPTORS
        self.pages: deque[bytes] = deque()  # filled, waiting for the guest
        self.eof = False
        self.read = 0
        self.filled = 0
        self.blocked = 0

    def run(self) -> None:
        gate = self._gate
        while True:
            with gate.changed:
                gate.wait_for(self._may_fill)
                if gate.dead or gate.stopping:
                    return
                self.free -= 1
            page = bytearray(PAGE_SIZE)
            count = self._fill(page)
            if count is None:
                return
            with gate.changed:
                if count:
                    self.pages.append(bytes(page[:count]))
                    self.read += count
                    self.filled += 1
                else:
                    self.eof = True
                gate.changed.notify_all()
                if self.eof:
                    return

    def _may_fill(self) -> bool:
        gate = self._gate
        return gate.dead or gate.stopping or (bool(self.free) and not gate.stalled)

    def _fill(self, page: bytearray) -> int | None:
        """Fill a page; returns the bytes put into it, 0 at end of file, `None` if the thread has to end."""
        gate = self._gate
        while True:
            with gate.changed:
                gate.wait_for(lambda: gate.dead or gate.stopping or not gate.stalled)
            with self._lock:
                if gate.dead or gate.stopping:
                    return None
                if gate.stalled:
                    continue
                try:
                    count = self._backend.readinto(page)
                except BlockingIOError:
                    pass
                except Exception as exc:  # noqa: BLE001  (any exception violates the contract)
                    gate.violated(f"readinto() raised {exc!r}", exc)
                    return None
                else:
                    if 0 <= count <= PAGE_SIZE:
                        return count
                    gate.violated(f"readinto() of a page of {PAGE_SIZE} bytes returned {count!r}")
                    return None
            self.blocked += 1
            fd = self._backend.read_wake_fd()
            if fd < 0:
                gate.violated(
                    "read_wake_fd() returned no descriptor: the wakes were closed before the device ended"
                )
                return None
            self._poll(fd)

    def _poll(self, fd: int) -> None:
        poller = select.poll()
        poller.register(fd, select.POLLIN)
        poller.register(self._stop.fileno(), select.POLLIN)
        poller.poll()

    def freeze(self, switch: Callable[[], None]) -> None:
        """Call ``switch`` between two reads."""
        with self._lock:
            switch()

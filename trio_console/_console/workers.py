"""The work of a console's two threads: moving bytes between a blocking device and the console's lanes.

Each function serves one direction and returns when that direction has ended, at either end. It does not raise an
error of the device: it stores the error in the lane, as the cause for the trio side.

This module must not import trio.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from trio_console._console.backend import wait_for_room

if TYPE_CHECKING:
    from trio_console._console.backend import Lane
    from trio_console._console.devices import GuestDevice

__all__ = ["pump_from_device", "pump_to_device"]

#: Bytes per write to a device. (A block of twice this size is returned to the system by the C library's allocator,
#: and has to be requested again for the next write.)
_SIZE: Final = 128 * 1024


def pump_from_device(device: GuestDevice, lane: Lane) -> None:
    """Guest to host: read chunks from the device, and push them into the lane's ring.

    The thread waits for room before it reads, so bytes that do not fit stay in the guest. After the host has gone,
    the thread goes on reading, and counts the bytes as dropped: otherwise a guest could be stuck in a write while
    the host's last bytes are still on their way to it. Closing the device ends the reading.
    """
    cause: BaseException | None = None
    size = lane.ring.piece
    try:
        while True:
            while not (lane.abandoned or lane.ring.fits(size)):
                wait_for_room(lane, size)
            data = device.read(size)
            if type(data) is not bytes:
                data = _copied(device, data)
            if not data:
                break
            _push(lane, data)
    except Exception as exc:  # noqa: BLE001  (any exception of a device ends this direction, and becomes its cause)
        cause = exc
    lane.finish(cause)


def _copied(device: GuestDevice, data: object) -> bytes:
    """A copy as `bytes` of the bytes-like object that a device returned."""
    try:
        return bytes(memoryview(data))  # type: ignore[arg-type]  # raises TypeError if it is not bytes-like
    except TypeError:
        raise TypeError(f"{device!r}: read() returned {data!r:.80}; it must return bytes") from None


def _push(lane: Lane, data: bytes) -> None:
    try:
        while not lane.ring.offer(data):
            if lane.abandoned:  # before the call of `offer` or during it
                lane.swallow(len(data))
                break
            # The device returned more bytes than it was asked for, so they may not fit yet.
            wait_for_room(lane, len(data))
    except MemoryError:
        lane.swallow(len(data))
        raise


def pump_to_device(device: GuestDevice, lane: Lane) -> None:
    """Host to guest: take bytes from the lane's ring, and write them to the device."""
    try:
        while True:
            finished = lane.finished  # read before the ring, see `Lane`
            data = b"" if lane.discarded else lane.ring.take(_SIZE)
            if data:
                if not _write_all(device, lane, data):
                    break
            elif finished:
                if not lane.discarded:
                    device.close_write()
                break
            else:
                _wait_for_data(lane)
    except Exception as exc:  # noqa: BLE001  (any exception of a device ends this direction, and becomes its cause)
        lane.abandon(exc)
        return
    lane.abandon()


def _write_all(device: GuestDevice, lane: Lane, data: bytes) -> bool:
    """Write all of ``data``, or count the rest as lost; `False` if the device was closed."""
    view = memoryview(data)
    left = len(data)
    try:
        while left:
            count = device.write(view[-left:])
            if type(count) is not int or not 0 <= count <= left:
                wrong = _wrong_count(device, count, left)
                if type(count) is not int or count > left:
                    left = 0  # the device returned and may have taken all: so none is counted as dropped
                raise wrong
            if not count:
                return False
            left -= count
    finally:
        assert 0 <= left <= len(data), "no more bytes are lost than were taken from the ring"
        lane.undelivered += left
    return True


def _wrong_count(device: GuestDevice, count: object, size: int) -> Exception:
    message = (
        f"{device!r}: write() returned {count!r:.80} for {size} bytes; it must return the number of bytes taken"
    )
    return ValueError(message) if type(count) is int else TypeError(message)


def _wait_for_data(lane: Lane) -> None:
    try:
        # No end is missed: the flag is read after the wake was armed, and `finish` rings after it has set the
        # flag.
        if lane.ring.arm_data() and not lane.finished:
            lane.data_wake.wait()
    finally:
        lane.ring.disarm_data()
    lane.data_wake.drain()

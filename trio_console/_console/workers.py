"""The two threads' work: a blocking device on one side, the lanes of a console on the other.

Each function is one direction and runs until that direction has ended, whoever ended it. It never raises for
what a device does: the lane carries the cause to the trio side.

This module must not import trio.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from trio_console._console.backend import wait_for_room

if TYPE_CHECKING:
    from trio_console._console.backend import Lane
    from trio_console._console.devices import GuestDevice

__all__ = ["pump_from_device", "pump_to_device"]

#: Bytes per write to a device. (Twice as much is beyond what the C library's allocator keeps for the next.)
_SIZE: Final = 128 * 1024


def pump_from_device(device: GuestDevice, lane: Lane) -> None:
    """Guest to host: read the device, and push.

    Room is waited for before the bytes are read, so what does not fit stays in the guest. Once the host has
    gone, the device is read on and the bytes are counted as dropped, so that a guest is not stuck
    in a write while what the host had sent is still on its way; closing the device ends that.
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
    except Exception as exc:  # noqa: BLE001  (whatever a device raises ends this direction, with a cause)
        cause = exc
    lane.finish(cause)


def _copied(device: GuestDevice, data: object) -> bytes:
    """What a device returned, if it is bytes-like."""
    try:
        return bytes(memoryview(data))  # type: ignore[arg-type]  # that is the question
    except TypeError:
        raise TypeError(f"{device!r}: read() returned {data!r:.80}, which is no bytes") from None


def _push(lane: Lane, data: bytes) -> None:
    try:
        while not lane.ring.offer(data):
            if lane.abandoned:  # before that call or during it
                lane.swallow(len(data))
                break
            # A device returned more than it was asked for: it waits its turn.
            wait_for_room(lane, len(data))
    except MemoryError:
        lane.swallow(len(data))
        raise


def pump_to_device(device: GuestDevice, lane: Lane) -> None:
    """Host to guest: take from the lane, and write to the device."""
    try:
        while True:
            finished = lane.finished  # before the look at the ring, see `Lane`
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
    except Exception as exc:  # noqa: BLE001  (as above)
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
                    left = 0  # it has returned, and has had them all: they are not counted as dropped
                raise wrong
            if not count:
                return False
            left -= count
    finally:
        lane.undelivered += left
    return True


def _wrong_count(device: GuestDevice, count: object, size: int) -> Exception:
    message = f"{device!r}: write() returned {count!r:.80} for {size} bytes; it is to return how many it has taken"
    return ValueError(message) if type(count) is int else TypeError(message)


def _wait_for_data(lane: Lane) -> None:
    try:
        # The look at the flag comes after the arming, and its setter rings after setting it.
        if lane.ring.arm_data() and not lane.finished:
            lane.data_wake.wait()
    finally:
        lane.ring.disarm_data()
    lane.data_wake.drain()

"""Both ends of a console as streams of one trio program, without threads."""

from __future__ import annotations

from trio_console._console.backend import ConsoleSharedState
from trio_console._console.ring import DEFAULT_CAPACITY, DEFAULT_MAX_BYTES
from trio_console._console.stream import ConsoleStream, LaneStream

__all__ = ["console_stream_pair"]


def console_stream_pair(
    *, capacity: int = DEFAULT_CAPACITY, max_bytes: int = DEFAULT_MAX_BYTES
) -> tuple[ConsoleStream, LaneStream]:
    """Make a console whose two ends are both trio streams.

    For tests of code that speaks over a console: the host's code runs on the first end, and the test plays the
    guest on the second. Bounds, backpressure and endings are the real ones; only the device and its threads are
    missing.

    Args:
        capacity: the most chunks queued in each direction; by default 2048.
        max_bytes: the most bytes queued in each direction; by default 1 MiB. When they are queued, `send_all`
            blocks until the other end has received some; choose a small number to test backpressure.

    Returns:
        ``(host, guest)``: two `trio.abc.HalfCloseableStream`; the host's also has ``statistics()``. Together they
        own four descriptors, which are closed when both ends have been garbage-collected.

    Raises:
        OSError: no descriptor could be made.
        ValueError: a bound is below 1.
    """
    shared = ConsoleSharedState(capacity, max_bytes)
    return ConsoleStream(shared), LaneStream(send=shared._tx, receive=shared._rx)

"""Both ends of a console as streams of one trio program.

This module must not know of threads: nothing here is driven by one.
"""

from __future__ import annotations

from trio_console._console.backend import ConsoleSharedState
from trio_console._console.ring import DEFAULT_CAPACITY, DEFAULT_MAX_BYTES
from trio_console._console.stream import ConsoleStream, LaneStream

__all__ = ["console_stream_pair"]


def console_stream_pair(
    *, capacity: int = DEFAULT_CAPACITY, max_bytes: int = DEFAULT_MAX_BYTES
) -> tuple[ConsoleStream, LaneStream]:
    """Make a console whose two ends are both trio streams.

    For tests of what speaks over a console: a host's code runs on the first end, and what plays the guest on
    the second. Bounds, backpressure and endings are the real ones; only the device and its threads are
    left out.

    Args:
        capacity: chunks queued at most in each direction.
        max_bytes: bytes queued at most in each direction. A `send_all` blocks beyond it until the other
            end has received; choose a small one to test backpressure.

    Returns:
        ``(host, guest)``: two `trio.abc.HalfCloseableStream`. The host's has ``statistics()`` besides. Four
        descriptors are theirs together, given back when both ends have been collected.

    Raises:
        OSError: no descriptor could be made.
        ValueError: a bound is below 1.
    """
    shared = ConsoleSharedState(capacity, max_bytes)
    return ConsoleStream(shared), LaneStream(send=shared.tx, receive=shared.rx)

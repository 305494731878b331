"""Bytes in = bytes out + bytes queued + bytes dropped: for each lane of a console, at any time."""

from __future__ import annotations

from typing import TYPE_CHECKING

from trio_console._console.polled import PolledStream
from trio_console._console.stream import ConsoleStream

if TYPE_CHECKING:
    from trio_console import ConsoleSharedState, LaneStatistics

__all__ = ["check_conserved", "conserved"]


def conserved(lane: LaneStatistics) -> bool:
    """Whether the bytes of one direction add up."""
    parts = (lane.bytes_out, lane.current_buffer_bytes, lane.bytes_dropped)
    return lane.bytes_in == sum(parts) and min(parts) >= 0


def check_conserved(console: ConsoleStream | PolledStream | ConsoleSharedState) -> None:
    """Every byte of both directions is accounted for."""
    if isinstance(console, (ConsoleStream, PolledStream)):
        now = console.statistics()
        lanes = (now.tx, now.rx)
    else:
        lanes = (console._tx.statistics(), console._rx.statistics())
    for name, lane in zip(("tx", "rx"), lanes, strict=True):
        assert conserved(lane), f"{name} does not add up: {lane}"

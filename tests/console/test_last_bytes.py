"""Bytes that arrive, followed by the end, between a consumer's read of the ring and its next step."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from trio_console._console.backend import AgentConsoleBackend, ConsoleSharedState
from trio_console._console.stream import ConsoleStream
from trio_console._console.workers import pump_to_device

if TYPE_CHECKING:
    from collections.abc import Iterator

    from trio_console._console.backend import Lane


class EndsBehindTheLook:
    """A ring whose producer pushes its last chunk, and finishes, as soon as the consumer has found it empty."""

    def __init__(self, lane: Lane) -> None:
        self._lane = lane
        self._ring = lane.ring
        self._is_over = False

    def __getattr__(self, name: str) -> Any:
        return getattr(self._ring, name)

    def __bool__(self) -> bool:
        found = bool(self._ring)
        self._end()
        return found

    def take(self, limit: int, **options: bool) -> bytes:
        data = self._ring.take(limit, **options)
        self._end()
        return data

    def take_whole(self, limit: int) -> bytes:
        data = self._ring.take_whole(limit)
        self._end()
        return data

    def _end(self) -> None:
        if not self._is_over:
            self._is_over = True
            self._ring.push(b"last")
            self._lane.finish()


@pytest.fixture
def shared() -> Iterator[ConsoleSharedState]:
    shared = ConsoleSharedState()
    for lane in (shared._rx, shared._tx):
        lane.ring = EndsBehindTheLook(lane)  # type: ignore[misc, assignment]
    yield shared
    shared.close_wakes()


def test_a_device_reads_them_before_end_of_file(shared: ConsoleSharedState) -> None:
    backend = AgentConsoleBackend(shared)
    assert [backend.read(100), backend.read(100)] == [b"last", b""]


async def test_a_stream_receives_them_before_end_of_file(shared: ConsoleSharedState) -> None:
    async with ConsoleStream(shared) as stream:
        assert [await stream.receive_some(), await stream.receive_some()] == [b"last", b""]


async def test_so_does_a_receive_with_a_limit(shared: ConsoleSharedState) -> None:
    async with ConsoleStream(shared) as stream:
        assert [await stream.receive_some(3), await stream.receive_some(3)] == [b"las", b"t"]


def test_a_worker_writes_them_to_its_device_before_it_closes_that(shared: ConsoleSharedState) -> None:
    seen: list[bytes | None] = []

    class Device:
        def write(self, data: memoryview) -> int:
            seen.append(bytes(data))
            return len(data)

        def close_write(self) -> None:
            seen.append(None)

    device: Any = Device()
    pump_to_device(device, shared._rx)
    assert seen == [b"last", None]

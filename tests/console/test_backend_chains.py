"""Chains of a device's buffers: as one call on the joined bytes."""

from __future__ import annotations

from typing import Any

import pytest

from tests.tools.descriptors import is_readable
from trio_console._console import backend as _console
from trio_console._console.backend import AgentConsoleBackend, ConsoleSharedState


def make(capacity: int = 8, max_bytes: int = 100) -> tuple[ConsoleSharedState, AgentConsoleBackend]:
    shared = ConsoleSharedState(capacity, max_bytes)
    return shared, AgentConsoleBackend(shared)


# Reading


def test_buffers_are_filled_one_after_the_other_across_chunks() -> None:
    shared, backend = make()
    for chunk in (b"abc", b"d", b"efghi"):
        shared.rx_ring.push(chunk)
    pages = [bytearray(4), memoryview(bytearray(2)), bytearray(4)]
    assert backend.readv(pages) == 9
    assert [bytes(page) for page in pages] == [b"abcd", b"ef", b"ghi\0"]


def test_what_does_not_fit_into_the_chain_is_read_next() -> None:
    shared, backend = make()
    shared.rx_ring.push(b"abcdef")
    assert backend.readv([bytearray(2), bytearray(1)]) == 3
    page = bytearray(9)
    assert backend.readv([page]) == 3
    assert page[:3] == b"def"


def test_a_chain_of_an_empty_ring_would_block_and_the_descriptor_waits() -> None:
    shared, backend = make()
    with pytest.raises(BlockingIOError):
        backend.readv([bytearray(4)])
    assert not is_readable(backend.read_wake_fd())
    shared.rx_ring.push(b"x")
    assert is_readable(backend.read_wake_fd())
    assert backend.readv([bytearray(4)]) == 1


@pytest.mark.parametrize("chain", [[], [bytearray()], [bytearray(), bytearray()]])
def test_a_chain_without_room_is_never_end_of_file(chain: list[bytearray]) -> None:
    shared, backend = make()
    for _ in range(2):
        with pytest.raises(BlockingIOError):
            backend.readv(chain)
        shared.rx_ring.push(b"x")


def test_a_chain_is_at_end_of_file_when_all_was_read() -> None:
    shared, backend = make()
    shared.rx_ring.push(b"xy")
    shared._rx.finish()
    assert backend.readv([bytearray(), bytearray(5)]) == 2
    assert backend.readv([bytearray(5)]) == 0


def test_buffers_of_any_item_size_are_filled() -> None:
    shared, backend = make()
    shared.rx_ring.push(b"abcdefgh")
    page = bytearray(8)
    assert backend.readv([memoryview(page).cast("I")]) == 8
    assert page == b"abcdefgh"


# Writing


@pytest.mark.parametrize("kind", [list, tuple, iter])
def test_a_chain_is_one_chunk(kind: Any) -> None:
    shared, backend = make(capacity=1)
    assert backend.writev(kind([b"ab", bytearray(b"c"), memoryview(b"d-e-")[::2], b""])) == 5
    assert shared.tx_ring.pop() == b"abcde"


def test_a_chain_is_taken_whole_or_not_at_all() -> None:
    shared, backend = make(max_bytes=10)
    assert backend.writev([bytes(6)]) == 6
    with pytest.raises(BlockingIOError):
        backend.writev([bytes(2), bytes(2), bytes(1)])
    assert shared.tx_ring.nbytes == 6
    assert backend.writev([bytes(2), bytes(2)]) == 4


def test_a_chain_that_was_refused_is_waited_for_as_a_whole() -> None:
    shared, backend = make(max_bytes=10)
    backend.write(bytes(6))
    backend.write(bytes(4))
    with pytest.raises(BlockingIOError):
        backend.writev([bytes(3), bytes(3)])
    shared.tx_ring.pop()
    assert backend.wait_until_writable(0)
    assert backend.writev([bytes(3), bytes(3)]) == 6


def test_a_chain_larger_than_the_ring_fits_into_an_empty_one() -> None:
    _, backend = make(max_bytes=10)
    assert backend.writev([bytes(50), bytes(50)]) == 100


def test_an_empty_chain_is_written_and_not_stored() -> None:
    shared, backend = make()
    assert backend.writev([]) == 0
    assert backend.writev([b"", b""]) == 0
    assert shared.tx_ring.pop() is None


def test_a_chain_for_a_host_that_has_gone_is_dropped_and_counted() -> None:
    shared, backend = make()
    shared.host_gone()
    assert backend.writev([b"ab", b"c"]) == 3
    assert shared._tx.statistics().bytes_dropped == 3


def test_a_want_of_memory_for_a_chain_fails_the_channel_and_not_the_device(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    shared, backend = make()

    def no_memory(_data: object) -> memoryview:
        raise MemoryError

    monkeypatch.setattr(_console, "flat_view", no_memory)
    assert backend.writev([b"ab", b"c"]) == 3
    assert backend.writev([b"d"]) == 1
    assert isinstance(shared._tx.cause, MemoryError)
    assert shared._tx.statistics().bytes_dropped == 4

"""Endings against a device that retries for ever and is then joined, with full rings and without.

The fake device behaves like a real one, so a wrong result of the backend hangs its threads. Each test ends with
their join, and with no violation recorded.
"""

from __future__ import annotations

from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

import pytest
import trio
import trio.testing

from tests.tools.conserved import check_conserved
from trio_console._console.backend import ConsoleSharedState
from trio_console._console.stream import ConsoleStream
from trio_console.testing import DESCRIPTORS, PAGE_SIZE, WRITE_SIZE, FakeConsoleDevice

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

#: Bytes that a device takes from the ring before it has no page left.
PAGES = DESCRIPTORS * PAGE_SIZE


async def in_thread(call: Callable[..., object], *args: object) -> object:
    return await trio.to_thread.run_sync(call, *args)


@asynccontextmanager
async def driven(
    *, stalled: bool = False, capacity: int = 64, max_bytes: int = 64 * 1024
) -> AsyncIterator[tuple[ConsoleStream, FakeConsoleDevice]]:
    """A stream whose guest end the fake device drives. At the end the host goes, then the device is joined."""
    shared = ConsoleSharedState(capacity, max_bytes)
    stream = ConsoleStream(shared)
    device = FakeConsoleDevice(shared, stalled=stalled)
    try:
        yield stream, device
    finally:
        with trio.CancelScope(shield=True):
            await trio.aclose_forcefully(stream)
            await in_thread(device.shutdown)
    assert device.violations == ()
    check_conserved(stream)


async def fill_to_the_brim(stream: ConsoleStream, device: FakeConsoleDevice) -> None:
    """The ring to the host full and the device in its would-block loop; all pages full and a sender blocked."""
    await in_thread(device.guest_write, bytes(WRITE_SIZE) * 8)
    async with trio.open_nursery() as nursery:

        @nursery.start_soon
        async def _sends() -> None:
            while True:
                await stream.send_all(bytes(4096))

        while not (
            device.statistics().writes_blocked
            and device.statistics().pages_pending == DESCRIPTORS
            and stream.statistics().tasks_waiting_send
        ):
            await trio.lowlevel.checkpoint()
        nursery.cancel_scope.cancel()


async def test_bytes_pass_both_ways() -> None:
    data = bytes(range(256)) * 2000
    async with driven() as (stream, device):
        received = bytearray()
        read = bytearray()

        def guest_reads() -> None:
            while chunk := device.guest_read():
                read.extend(chunk)

        async with trio.open_nursery() as nursery:
            nursery.start_soon(in_thread, device.guest_write, data)
            nursery.start_soon(in_thread, guest_reads)

            @nursery.start_soon
            async def _sends() -> None:
                await stream.send_all(data)
                await stream.send_eof()

            while len(received) < len(data):
                received += await stream.receive_some()
        assert bytes(received) == data
        assert bytes(read) == data
        assert device.guest_eof
        # Fills pages across chunks: an interrupt a page and a few more, not one a fragment.
        assert device.statistics().bytes_read == len(data)


async def test_a_full_ring_keeps_the_device_asleep_and_not_spinning() -> None:
    async with driven(max_bytes=WRITE_SIZE) as (stream, device):
        await in_thread(device.guest_write, bytes(WRITE_SIZE) * 3)
        received = 0
        while received < 3 * WRITE_SIZE:
            received += len(await stream.receive_some(1024))
        await in_thread(device.guest_flush)
        assert device.statistics().writes_blocked <= 6


@pytest.mark.parametrize("how", ["aclose", "forcefully", "host_gone"])
async def test_closing_with_both_rings_full_frees_a_device_that_never_looks_at_its_stop_flag(how: str) -> None:
    async with driven() as (stream, device):
        await fill_to_the_brim(stream, device)
        if how == "aclose":
            await stream.aclose()
        elif how == "forcefully":
            await trio.aclose_forcefully(stream)
        else:
            stream._shared.host_gone()
        await in_thread(device.guest_flush)  # what was refused is swallowed
        await in_thread(device.shutdown)
    now = stream.statistics()
    assert now.tx.bytes_in == 8 * WRITE_SIZE
    assert now.tx.bytes_dropped == now.tx.bytes_in - now.tx.bytes_out > 0


async def test_an_orderly_close_with_a_full_ring_still_delivers_everything() -> None:
    async with driven() as (stream, device):
        await fill_to_the_brim(stream, device)
        sent = stream.statistics().rx.bytes_in
        await stream.aclose()

        def reads_to_the_end() -> int:
            count = 0
            while chunk := device.guest_read():
                count += len(chunk)
            return count

        assert await in_thread(reads_to_the_end) == sent
        assert stream.statistics().rx.bytes_dropped == 0


async def test_a_forceful_close_with_a_full_ring_drops_and_counts_the_rest() -> None:
    async with driven() as (stream, device):
        await fill_to_the_brim(stream, device)
        sent = stream.statistics().rx.bytes_in
        await trio.aclose_forcefully(stream)

        def reads_to_the_end() -> int:
            count = 0
            while chunk := device.guest_read():
                count += len(chunk)
            return count

        assert await in_thread(reads_to_the_end) == PAGES
    assert stream.statistics().rx.bytes_dropped == sent - PAGES


async def test_a_shutdown_waits_for_the_host_and_names_the_thread_that_did_not_end() -> None:
    async with driven() as (stream, device):
        await fill_to_the_brim(stream, device)
        with pytest.raises(AssertionError, match="fake console tx"):
            await in_thread(device.shutdown, 0.01)
        await stream.aclose()
        await in_thread(device.shutdown)


async def test_a_device_that_dies_in_the_middle_of_a_chunk_leaves_its_first_part_and_the_cause() -> None:
    cause = OSError("the machine has crashed")
    async with driven() as (stream, device):
        await in_thread(device.guest_write, b"whole")
        await in_thread(device.guest_flush)
        device.stall()
        await in_thread(device.guest_write, b"0123456789")
        device.die(cause, mid_chunk=True)
        received = bytearray()
        with pytest.raises(trio.BrokenResourceError) as caught:
            while True:
                received += await stream.receive_some()
        assert caught.value.__cause__ is cause
        assert bytes(received) == b"whole01234"
        with pytest.raises(trio.BrokenResourceError):
            await stream.send_all(b"x")


async def test_a_device_that_dies_with_full_rings_loses_nothing_that_it_had_handed_over() -> None:
    async with driven() as (stream, device):
        await fill_to_the_brim(stream, device)
        queued = stream.statistics().tx.current_buffer_bytes
        device.die()
        received = 0
        async for chunk in stream:
            received += len(chunk)
        assert received == queued
        await in_thread(device.shutdown)
        with pytest.raises(trio.BrokenResourceError):
            await stream.send_all(b"x")


async def test_blocked_tasks_learn_at_once_that_the_device_has_died() -> None:
    async with driven(capacity=1) as (stream, device):
        device.stall()
        await stream.send_all(b"x")

        async def expect_broken() -> None:
            with pytest.raises(trio.BrokenResourceError):
                await stream.send_all(b"y")

        async def expect_end() -> None:
            assert await stream.receive_some() == b""

        async with trio.open_nursery() as nursery:
            nursery.start_soon(expect_broken)
            nursery.start_soon(expect_end)
            await trio.testing.wait_all_tasks_blocked()
            await in_thread(device.die)


@pytest.mark.parametrize("turns", range(1, 16))
async def test_cancelled_at_any_turn_the_device_can_be_joined(turns: int) -> None:
    async with driven(max_bytes=8192) as (stream, device):
        await in_thread(device.guest_write, bytes(WRITE_SIZE) * 2)
        left = turns
        with trio.CancelScope() as scope:
            while True:
                await stream.send_all(bytes(3000))
                await stream.receive_some(500)
                left -= 1
                if left == 0:
                    scope.cancel()


async def test_a_stalled_device_is_no_end() -> None:
    async with driven(stalled=True) as (stream, device):
        await stream.send_all(b"to the guest")
        await in_thread(device.guest_write, b"to the host")
        with trio.CancelScope() as scope:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(stream.receive_some)
                await trio.testing.wait_all_tasks_blocked()
                scope.cancel()
        device.resume()
        assert await in_thread(device.guest_read) == b"to the guest"
        assert await stream.receive_some() == b"to the host"

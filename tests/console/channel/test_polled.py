"""A console whose bytes are moved by tasks: what is its own, beside the tests that it shares with threads."""

from __future__ import annotations

import contextlib
import errno
import os
import select
import socket
from typing import TYPE_CHECKING, Any

import pytest
import trio
import trio.testing

from tests.console.channel.consoles import BLOCK, KINDS, OPENERS, Kind, by_pipes, by_socket, open_by_tasks
from tests.tools.conserved import check_conserved
from tests.tools.limits import HANG
from tests.tools.streams import fill, receive_all
from trio_console._console import devices as _devices

if TYPE_CHECKING:
    from pathlib import Path


def pair() -> tuple[socket.socket, socket.socket]:
    """A device, and the guest's end, which does not block."""
    ours, theirs = socket.socketpair()
    theirs.setblocking(False)
    return ours, theirs


def empty(sock: socket.socket) -> bytes:
    """All that has come."""
    data = b""
    with contextlib.suppress(BlockingIOError):
        while piece := sock.recv(1 << 20):
            data += piece
    return data


async def receive(sock: socket.socket) -> bytes:
    await trio.lowlevel.wait_readable(sock)
    return sock.recv(1 << 20)


# Sending


async def test_what_is_sent_while_nothing_is_queued_is_with_the_guest_before_another_task_runs() -> None:
    ours, theirs = pair()
    with theirs:
        async with open_by_tasks(ours) as channel:
            await channel.send_gathered([b"a frame ", b"", b"in pieces"])
            assert theirs.recv(100) == b"a frame in pieces"
            assert channel.statistics().rx.current_buffer_bytes == 0


async def test_gathered_pieces_that_fit_are_no_checkpoint() -> None:
    ours, theirs = pair()
    with theirs:
        async with open_by_tasks(ours) as channel:
            with trio.testing.assert_no_checkpoints():
                await channel.send_gathered([b"x"])
                await channel.send_gathered([])
            with trio.testing.assert_checkpoints():
                await channel.send_all(b"x")
            with trio.testing.assert_checkpoints():
                await channel.send_all(b"")


@pytest.mark.parametrize("gathered", [False, True])
async def test_bytes_go_behind_those_that_are_queued_although_there_is_room_again(gathered: bool) -> None:
    ours, theirs = pair()
    ours.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 64 * 1024)
    with theirs:
        async with open_by_tasks(ours, grace=HANG) as channel:
            sent = b"1" * 150_000
            await channel.send_gathered([sent])
            assert channel.statistics().rx.current_buffer_bytes
            got = empty(theirs)  # from here on the descriptor has room, and no task has run
            await (channel.send_gathered([b"2"]) if gathered else channel.send_all(b"2"))
            while len(got) <= len(sent):
                await trio.testing.wait_all_tasks_blocked()
                got += empty(theirs)
        assert got == sent + b"2"


async def test_a_cancelled_send_of_bytes_that_fit_the_bounds_has_sent_nothing() -> None:
    ours, theirs = pair()
    with theirs:
        async with open_by_tasks(ours, max_bytes=4096, grace=HANG) as channel:
            sent = await fill(channel, BLOCK)
            await fill(channel, b"y" * 4096)
            before = channel.statistics().rx
            assert before.bytes_in == sent * len(BLOCK)
            assert before.current_buffer_bytes <= 4096
            check_conserved(channel)
            got = b""
            while len(got) < before.bytes_in:
                await trio.testing.wait_all_tasks_blocked()
                got += empty(theirs)
            assert b"y" not in got


async def test_no_more_bytes_are_queued_than_the_bound() -> None:
    ours, theirs = pair()
    with theirs:
        async with open_by_tasks(ours, max_bytes=100, grace=0) as channel:
            await fill(channel, b"x")
            assert channel.statistics().rx.current_buffer_bytes == 100
        check_conserved(channel)


async def test_no_more_chunks_are_queued_than_the_capacity() -> None:
    ours, theirs = pair()
    with theirs:
        async with open_by_tasks(ours, capacity=3, grace=0) as channel:
            await channel.send_gathered([b"x" * 100_000] * 10)  # as one, because nothing was queued
            assert channel.statistics().rx.current_buffer_used == 1
            await fill(channel, BLOCK)
            assert channel.statistics().rx.current_buffer_used == 3
        check_conserved(channel)


async def test_pieces_larger_than_the_bound_are_taken_when_nothing_is_queued_and_then_wait() -> None:
    ours, theirs = pair()
    large = b"x" * 2_000_000
    with theirs:
        async with open_by_tasks(ours, max_bytes=1000, grace=HANG) as channel:
            await channel.send_gathered([large])
            queued = channel.statistics().rx.current_buffer_bytes
            assert queued > 1000
            got = b""
            async with trio.open_nursery() as nursery:
                nursery.start_soon(channel.send_gathered, [b"y" * 1001])
                await trio.testing.wait_all_tasks_blocked()
                assert channel.statistics().tasks_waiting_send == 1
                assert channel.statistics().rx.current_buffer_bytes == queued
                while len(got) < len(large) + 1001:
                    got += empty(theirs)
                    await trio.testing.wait_all_tasks_blocked()
            assert got == large + b"y" * 1001


async def test_frames_wait_where_control_frames_can_overtake_them() -> None:
    ours, theirs = pair()
    with theirs:
        async with open_by_tasks(ours, grace=0) as channel, trio.open_nursery() as nursery:

            @nursery.start_soon
            async def _sends() -> None:
                while True:
                    await channel.send_gathered([bytes(1000)])
                    await trio.lowlevel.checkpoint()

            await trio.testing.wait_all_tasks_blocked()
            assert channel.statistics().rx.current_buffer_bytes <= 128 * 1024
            assert channel.statistics().tasks_waiting_send == 1
            nursery.cancel_scope.cancel()


async def test_room_ends_the_wait_for_it() -> None:
    ours, theirs = pair()
    with theirs:
        async with open_by_tasks(ours, max_bytes=1000, grace=0) as channel, trio.open_nursery() as nursery:
            await fill(channel, b"x" * 100)
            nursery.start_soon(channel.wait_send_all_might_not_block)
            await trio.testing.wait_all_tasks_blocked()
            assert nursery.child_tasks
            empty(theirs)


async def test_a_guest_that_goes_while_a_task_waits_for_room_breaks_the_sending() -> None:
    ours, theirs = pair()
    async with open_by_tasks(ours, max_bytes=1000) as channel:
        await fill(channel, BLOCK)

        async def expect_broken() -> None:
            with pytest.raises(trio.BrokenResourceError) as caught:
                await channel.send_all(b"x" * 1000)
            assert isinstance(caught.value.__cause__, OSError)

        async with trio.open_nursery() as nursery:
            nursery.start_soon(expect_broken)
            await trio.testing.wait_all_tasks_blocked()
            theirs.close()
        now = channel.statistics().rx
        assert (now.current_buffer_bytes, now.abandoned) == (0, True)
        assert now.bytes_dropped > 0
        check_conserved(channel)


async def test_the_guest_is_told_of_the_end_before_send_eof_returns_when_nothing_is_queued() -> None:
    for _ in range(20):  # for each order in which trio may run the tasks
        ours, theirs = pair()
        with theirs:
            async with open_by_tasks(ours) as channel:
                await channel.send_all(b"all")
                await channel.send_eof()
                assert theirs.recv(100) == b"all"
                assert theirs.recv(100) == b""


async def test_the_end_goes_behind_the_bytes_that_are_queued() -> None:
    ours, theirs = pair()
    with theirs:
        async with open_by_tasks(ours) as channel:
            await channel.send_gathered([bytes(1 << 22)])
            await channel.send_eof()
            received = 0
            while data := await receive(theirs):
                received += len(data)
            assert received == 1 << 22


async def test_what_is_sent_without_waiting_is_all_taken_or_all_left() -> None:
    ours, theirs = pair()
    with theirs:
        async with open_by_tasks(ours, grace=0) as channel:
            assert channel.send_gathered_nowait([b"at ", b"once"]) == []
            assert theirs.recv(100) == b"at once"
            assert channel.send_gathered_nowait([bytes(1 << 22)]) == []  # the most of it is queued
            assert channel.send_gathered_nowait([b"behind"]) == [b"behind"]
            assert channel.statistics().rx.bytes_in == 7 + (1 << 22)
            await channel.aclose()
            assert channel.send_gathered_nowait([b"closed"]) == [b"closed"]
    check_conserved(channel)


async def test_what_is_sent_without_waiting_to_a_guest_that_has_gone_is_left_and_not_counted() -> None:
    ours, theirs = pair()
    theirs.close()
    async with open_by_tasks(ours) as channel:
        assert channel.send_gathered_nowait([b"gone"]) == [b"gone"]
        assert channel.statistics().rx.bytes_in == 0
        with pytest.raises(trio.BrokenResourceError):
            await channel.send_gathered([b"gone"])


# Fairness


async def test_a_guest_that_floods_gives_every_task_its_turn_after_each_read(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    reads = 0

    def always_more(_device: object, size: int) -> bytes:
        nonlocal reads
        reads += 1
        assert reads < 1000, "no other task has had a turn"
        return bytes(min(size, 10))

    ours, theirs = pair()
    monkeypatch.setattr(_devices.FdDevice, "read_now", always_more)
    with theirs:
        async with open_by_tasks(ours) as channel, trio.open_nursery() as nursery:

            @nursery.start_soon
            async def _receives() -> None:
                while True:
                    await channel.receive_some()

            for turn in range(20):
                assert reads <= turn + 1
                await trio.lowlevel.checkpoint()
            assert reads
            nursery.cancel_scope.cancel()


async def test_a_device_that_takes_everything_at_once_gives_every_task_its_turn(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    written = 0

    def takes_all(_device: object, pieces: list[bytes]) -> int:
        nonlocal written
        written += sum(map(len, pieces))
        return sum(map(len, pieces))

    ours, theirs = pair()
    monkeypatch.setattr(_devices.FdDevice, "write_now", takes_all)
    with theirs:
        async with open_by_tasks(ours) as channel, trio.open_nursery() as nursery:
            nursery.start_soon(channel.send_all, bytes(20 << 20))
            for turn in range(20):
                assert written <= (turn + 1) << 18
                await trio.lowlevel.checkpoint()
            assert written
            nursery.cancel_scope.cancel()


# Receiving


async def test_what_is_not_received_stays_with_the_guest() -> None:
    ours, theirs = pair()
    with theirs:
        async with open_by_tasks(ours) as channel:
            with contextlib.suppress(BlockingIOError):
                while True:
                    theirs.send(BLOCK)
            await trio.testing.wait_all_tasks_blocked()
            now = channel.statistics().tx
            assert (now.bytes_in, now.current_buffer_bytes) == (0, 0)


async def test_no_more_is_received_at_once_than_was_asked_for_or_the_bound() -> None:
    ours, theirs = pair()
    with theirs:
        async with open_by_tasks(ours, max_bytes=100) as channel:
            theirs.send(bytes(1000))
            assert len(await channel.receive_some(7)) == 7
            assert len(await channel.receive_some()) == 100
            assert len(await channel.receive_some(1 << 60)) == 100
            with pytest.raises(ValueError, match="at least 1"):
                await channel.receive_some(0)
            with pytest.raises(TypeError):
                await channel.receive_some("7")  # type: ignore[arg-type]


async def test_a_cancelled_receive_has_taken_nothing() -> None:
    ours, theirs = pair()
    with theirs:
        async with open_by_tasks(ours) as channel:
            theirs.send(b"all of it")
            with trio.CancelScope() as scope:
                scope.cancel()
                await channel.receive_some()
            assert scope.cancelled_caught
            assert await channel.receive_some() == b"all of it"


async def test_two_tasks_in_one_direction_are_refused() -> None:
    ours, theirs = pair()
    with theirs:
        async with open_by_tasks(ours, max_bytes=1000, grace=0) as channel, trio.open_nursery() as nursery:
            await fill(channel, BLOCK)
            nursery.start_soon(channel.receive_some)
            nursery.start_soon(channel.send_all, BLOCK)
            await trio.testing.wait_all_tasks_blocked()
            assert channel.statistics().tasks_waiting_receive == 1
            with pytest.raises(trio.BusyResourceError):
                await channel.receive_some()
            for send in (channel.send_all(b"x"), channel.send_gathered([b"x"]), channel.send_eof()):
                with pytest.raises(trio.BusyResourceError):
                    await send
            nursery.cancel_scope.cancel()


# Endings


@pytest.mark.parametrize("kind", KINDS, ids=str)
async def test_a_guest_that_writes_before_it_reads_gets_what_was_sent_all_the_same(kind: Kind) -> None:
    device, guest = kind.make()
    got: list[bytes] = []

    async def write_and_read() -> None:
        await guest.send_all(bytes(3_000_000))
        got.append(await receive_all(guest))

    async with guest, trio.open_nursery() as nursery:
        async with kind.open(device, grace=HANG) as channel:
            nursery.start_soon(write_and_read)
            await channel.send_all(b"x" * 900_000)
    assert got == [b"x" * 900_000]
    check_conserved(channel)


async def test_what_comes_while_the_last_bytes_are_under_way_is_counted_as_dropped() -> None:
    ours, theirs = pair()
    with theirs:
        async with open_by_tasks(ours, grace=HANG) as channel:
            await channel.send_all(bytes(1 << 20))
            theirs.send(b"answer")
            await channel.aclose()
            await trio.testing.wait_all_tasks_blocked()
            assert channel.statistics().tx.bytes_dropped == len(b"answer")
            while channel.statistics().rx.current_buffer_bytes:
                empty(theirs)
                await trio.testing.wait_all_tasks_blocked()
    check_conserved(channel)


@pytest.mark.parametrize("sends", [False, True])
async def test_blocked_tasks_learn_of_a_close_while_the_last_bytes_are_under_way(sends: bool) -> None:
    ours, theirs = pair()
    told = False
    with theirs:
        async with open_by_tasks(ours, grace=0.01) as channel, trio.open_nursery() as nursery:
            await channel.send_all(bytes(1 << 20))

            @nursery.start_soon
            async def _waits() -> None:
                nonlocal told
                with pytest.raises(trio.ClosedResourceError):
                    await (channel.send_all(bytes(1 << 20)) if sends else channel.receive_some())
                told = True

            await trio.testing.wait_all_tasks_blocked()
            await channel.aclose()
            await trio.testing.wait_all_tasks_blocked()
            assert told
            assert channel.statistics().rx.current_buffer_bytes


@pytest.mark.parametrize("make", [by_socket, by_pipes])
async def test_the_descriptors_are_closed_once_the_last_bytes_were_taken_although_the_block_goes_on(
    make: Any,
) -> None:
    device, guest = make()
    async with open_by_tasks(device, grace=HANG) as channel, guest:
        await channel.send_all(bytes(1 << 20))
        await channel.aclose()
        assert channel._device.read_fd >= 0
        assert len(await receive_all(guest)) == 1 << 20
        await trio.testing.wait_all_tasks_blocked()
        assert (channel._device.read_fd, channel._device.write_fd) == (-1, -1)


async def test_a_cancelled_close_drops_what_is_queued_and_a_second_close_nothing() -> None:
    for first_by_force in (True, False):
        ours, theirs = pair()
        with theirs:
            async with open_by_tasks(ours, grace=HANG) as channel:
                await channel.send_all(bytes(1 << 20))
                if not first_by_force:
                    await channel.aclose()
                await trio.aclose_forcefully(channel)
                dropped = channel.statistics().rx.bytes_dropped
                assert bool(dropped) == first_by_force
                while channel.statistics().rx.current_buffer_bytes:
                    empty(theirs)
                    await trio.testing.wait_all_tasks_blocked()
            check_conserved(channel)


async def test_a_cancelled_end_of_file_was_not_told() -> None:
    ours, theirs = pair()
    with theirs:
        async with open_by_tasks(ours) as channel:
            with trio.CancelScope() as scope:
                scope.cancel()
                await channel.send_eof()
            await channel.send_all(b"more")
            assert theirs.recv(10) == b"more"
            await channel.send_eof()
            await channel.send_eof()
            with pytest.raises(trio.ClosedResourceError):
                await channel.send_all(b"too late")


# Descriptors


@pytest.mark.parametrize("opener", OPENERS)
async def test_files_which_cannot_be_polled_and_never_block_are_devices_all_the_same(
    opener: Any, tmp_path: Path
) -> None:
    (tmp_path / "in").write_bytes(b"from a file")
    ends = os.open(tmp_path / "in", os.O_RDONLY), os.open(tmp_path / "out", os.O_WRONLY | os.O_CREAT)
    async with opener(ends) as channel:
        assert await receive_all(channel) == b"from a file"
        await channel.send_all(b"to a file")
    assert (tmp_path / "out").read_bytes() == b"to a file"


async def test_a_descriptor_closed_by_other_code_while_it_is_full_is_an_error_with_its_cause() -> None:
    to_guest, to_host = os.pipe(), os.pipe()
    async with open_by_tasks((to_host[0], to_guest[1])) as channel:
        await channel.send_gathered([bytes(1 << 20)])  # the writer task has not run yet
        os.close(to_guest[1])
        await trio.testing.wait_all_tasks_blocked()
        with pytest.raises(trio.BrokenResourceError) as caught:
            await channel.send_all(b"x")
        assert isinstance(caught.value.__cause__, OSError)
        assert caught.value.__cause__.errno == errno.EBADF
    check_conserved(channel)
    for fd in (to_guest[0], to_host[1]):
        os.close(fd)


class Polls:
    """Stands for the looks whether the other end has hung up: these are the answers, one after the other."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, *answers: bool) -> None:
        self.left = list(answers)
        monkeypatch.setattr(_devices.FdDevice, "has_hung_up", lambda *_: bool(self.left) and self.left.pop(0))
        for name in ("wait_readable", "wait_writable"):
            monkeypatch.setattr(trio.lowlevel, name, self.at_once)

    async def at_once(self, _fd: int) -> None:
        await trio.lowlevel.checkpoint()


async def test_nobody_at_the_other_end_is_end_of_file_for_a_read_that_would_block(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    ours, theirs = pair()
    with theirs:
        async with open_by_tasks(ours) as channel:
            polls = Polls(monkeypatch, True, False, True, True)
            assert await channel.receive_some() == b""
            assert polls.left == []
            monkeypatch.undo()


async def test_a_terminal_that_was_opened_again_takes_what_is_queued(monkeypatch: pytest.MonkeyPatch) -> None:
    ours, theirs = pair()
    with theirs:
        async with open_by_tasks(ours, grace=HANG) as channel:
            await channel.send_gathered([bytes(1 << 20)])  # the writer task has not run yet
            polls = Polls(monkeypatch, True, False, True, False)
            while polls.left:
                await trio.lowlevel.checkpoint()
            monkeypatch.undo()
            while channel.statistics().rx.current_buffer_bytes:
                empty(theirs)
                await trio.testing.wait_all_tasks_blocked()
    assert channel.statistics().rx.bytes_dropped == 0


async def test_nobody_at_the_other_end_of_a_full_descriptor_is_a_broken_pipe(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    ours, theirs = pair()
    with theirs:
        async with open_by_tasks(ours) as channel:
            await channel.send_gathered([bytes(1 << 20)])  # the writer task has not run yet
            polls = Polls(monkeypatch, True, True)
            while polls.left:
                await trio.lowlevel.checkpoint()
            monkeypatch.undo()
            with pytest.raises(trio.BrokenResourceError) as caught:
                await channel.send_all(b"x")
            assert isinstance(caught.value.__cause__, BrokenPipeError)


def test_a_hang_up_is_seen_only_where_the_descriptor_is_not_ready() -> None:
    ours, theirs = socket.socketpair()
    device = _devices.as_device(ours)
    assert isinstance(device, _devices.FdDevice)
    assert not device.has_hung_up(device.read_fd, select.POLLIN)
    theirs.send(b"x")
    theirs.close()
    assert not device.has_hung_up(device.read_fd, select.POLLIN)
    device.close()

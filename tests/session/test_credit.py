"""Credit of a process's streams, with agents that count credit and agents that do not."""

from __future__ import annotations

import os
import subprocess
from typing import TYPE_CHECKING, Any

import pytest
import trio
import trio.testing

import trio_console
from tests.session._fake import WINDOW, Talk, begin, talking
from tests.session.process.test_process import PIPE, opened, run
from tests.tools.limits import HANG
from tests.tools.memory import held_by
from trio_console import _wire as wire
from trio_console._session.process.input import StdinStream
from trio_console._session.receiving import CreditAccount, Incoming, IncomingStream, MergedAccounts
from trio_console._session.sending import DataSender
from trio_console._wire.outbox import BULK_BUDGET, Outbox

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.session._fake import FakeAgent

HALF = WINDOW // 2
MIB = 1024 * 1024


async def receive_exactly(stream: trio.abc.ReceiveStream, size: int) -> bytes:
    got = b""
    while len(got) < size:
        chunk = await stream.receive_some(size - len(got))
        assert chunk
        got += chunk
    return got


async def send(agent: FakeAgent, cls: Any, id_: int, size: int) -> None:
    while size:
        await agent.send(cls(bytes(min(size, 32768))), id_)
        size -= min(size, 32768)
    await trio.testing.wait_all_tasks_blocked()


async def block(talk: Talk, **options: Any) -> tuple[Any, int]:
    process, id_, _ = await opened(talk, stdin=PIPE, **options)
    return process, id_


# Output


async def test_the_request_asks_for_credit_only_if_the_agent_knows_it() -> None:
    async with talking() as talk:
        run(talk)
        _, request = await talk.agent.expect(wire.ExecRequest)
        assert request.window == WINDOW
    async with talking(window=None) as talk:
        run(talk)
        _, request = await talk.agent.expect(wire.ExecRequest)
        assert request.window is wire.UNSET


async def test_credit_is_given_when_half_a_window_has_been_read_and_not_before() -> None:
    async with talking() as talk:
        process, id_ = await block(talk)
        await send(talk.agent, wire.ExecStdout, id_, WINDOW)
        await receive_exactly(process.stdout, HALF - 1)
        await talk.agent.nothing_more()
        await receive_exactly(process.stdout, 1)
        assert await talk.agent.expect(wire.Credit) == (id_, wire.Credit(stream="stdout", bytes=HALF))
        await receive_exactly(process.stdout, HALF)
        assert await talk.agent.expect(wire.Credit) == (id_, wire.Credit(stream="stdout", bytes=HALF))


async def test_each_stream_has_an_account_of_its_own() -> None:
    async with talking() as talk:
        process, id_ = await block(talk)
        await send(talk.agent, wire.ExecStdout, id_, HALF - 1)
        await send(talk.agent, wire.ExecStderr, id_, HALF)
        await receive_exactly(process.stdout, HALF - 1)
        await talk.agent.nothing_more()
        await receive_exactly(process.stderr, HALF)
        assert await talk.agent.expect(wire.Credit) == (id_, wire.Credit(stream="stderr", bytes=HALF))


async def test_no_credit_is_given_to_an_agent_that_does_not_know_it() -> None:
    async with talking(window=None) as talk:
        process, id_ = await block(talk)
        await send(talk.agent, wire.ExecStdout, id_, WINDOW)
        await receive_exactly(process.stdout, WINDOW)
        await talk.agent.nothing_more()


async def test_no_credit_is_given_to_a_process_that_has_ended() -> None:
    async with talking() as talk:
        process, id_ = await block(talk)
        await send(talk.agent, wire.ExecStdout, id_, WINDOW)
        await talk.agent.send(wire.ExecExited(0), id_)
        await process.wait()
        await receive_exactly(process.stdout, WINDOW)
        assert await process.stdout.receive_some() == b""
        await talk.agent.nothing_more()


async def granted(agent: FakeAgent, name: str) -> int:
    """The sum of all grants that have been sent."""
    total = 0
    for _, credit in await agent.pending():
        assert isinstance(credit, wire.Credit)
        assert credit.stream == name
        total += credit.bytes
    return total


async def test_closing_a_stream_gives_back_what_was_unread_and_what_still_comes() -> None:
    async with talking() as talk:
        process, id_ = await block(talk)
        await send(talk.agent, wire.ExecStdout, id_, WINDOW)
        await process.stdout.aclose()
        assert await granted(talk.agent, "stdout") == WINDOW
        await send(talk.agent, wire.ExecStdout, id_, WINDOW)
        assert await granted(talk.agent, "stdout") == WINDOW


async def test_what_was_unread_when_a_stream_was_let_go_is_credited_once() -> None:
    granted: list[int] = []
    incoming = Incoming(CreditAccount(granted.append), lambda _size: None)
    incoming.put(bytes(HALF))
    incoming.let_go()
    assert len(await receive_exactly(IncomingStream(incoming), HALF)) == HALF
    assert granted == [HALF]


async def test_what_was_unread_when_a_stream_was_let_go_is_not_credited_again_when_it_is_closed() -> None:
    granted: list[int] = []
    incoming = Incoming(CreditAccount(granted.append), lambda _size: None)
    incoming.put(bytes(HALF))
    incoming.let_go()
    incoming.close()
    assert granted == [HALF]


def test_merged_bytes_that_are_read_in_parts_are_credited_in_the_order_in_which_they_came() -> None:
    granted: list[str] = []
    accounts = {name: CreditAccount(lambda _size, name=name: granted.append(name)) for name in ("out", "err")}
    merged = MergedAccounts()
    for account in accounts.values():
        merged.note(account, HALF)
    merged.consume(1)
    merged.consume(HALF - 1)
    assert granted == ["out"]
    merged.consume(HALF)
    assert granted == ["out", "err"]


def test_merged_bytes_that_alternate_in_crumbs_hold_little_and_are_all_credited() -> None:
    granted = {"out": 0, "err": 0}

    def grant(name: str) -> Callable[[int], None]:
        def note(size: int) -> None:
            granted[name] += size

        return note

    merged = MergedAccounts()
    accounts = [CreditAccount(grant(name)) for name in granted]
    with held_by() as held:
        for _ in range(HALF // 2):
            for account in accounts:
                merged.note(account, 2)
    assert held.size < 1024 * 1024
    merged.consume(2 * HALF)
    assert granted == {"out": HALF, "err": HALF}


async def test_unread_crumbs_hold_little_more_than_their_bytes() -> None:
    size = 64 * 1024
    incoming = Incoming(None, lambda _size: None)
    crumbs = [bytes([number % 256, number // 256]) for number in range(size // 2)]
    with held_by() as held:
        for crumb in crumbs:
            incoming.put(crumb + b"")
    assert held.size < 1.5 * size
    stream = IncomingStream(incoming)
    assert await stream.receive_some(1) == crumbs[0][:1]
    incoming.put(b"end")
    assert await receive_exactly(stream, size + 2) == b"".join(crumbs)[1:] + b"end"


async def test_frames_that_are_read_as_they_come_are_not_joined() -> None:
    incoming = Incoming(None, lambda _size: None)
    incoming.put(bytes(8 * 1024))
    incoming.put(b"x")
    incoming.put(bytes(8 * 1024 - 1))
    incoming.put(b"y")
    assert [len(chunk) for chunk in incoming.chunks] == [8 * 1024, 8 * 1024, 1]


async def test_a_stream_that_leads_nowhere_is_credited_as_it_comes() -> None:
    async with talking() as talk:
        _, id_ = await block(talk, stdout=subprocess.DEVNULL)
        await send(talk.agent, wire.ExecStdout, id_, 2 * WINDOW)
        assert await granted(talk.agent, "stdout") == 2 * WINDOW


async def test_leaving_the_block_gives_credit_so_that_the_exit_can_be_reported() -> None:
    async with talking() as talk:
        process, id_, left = await opened(talk, stdin=PIPE)
        await send(talk.agent, wire.ExecStdout, id_, WINDOW)
        left.leave.set()
        got = [(await talk.agent.receive())[1] for _ in range(2)]
        assert wire.ExecSignal(9) in got
        assert wire.Credit(stream="stdout", bytes=WINDOW) in got
        await talk.agent.send(wire.ExecExited(-1, signal=9), id_)
        await left.result.wait()
        assert process.returncode == -9


async def test_a_cancelled_run_process_gives_credit_so_that_its_end_can_be_reported() -> None:
    async with talking() as talk:
        result = run(talk, stdin=None)
        id_ = await talk.agent.expect_start()
        await talk.agent.expect(wire.ExecStdin)
        await send(talk.agent, wire.ExecStdout, id_, HALF - 1)
        result.scope.cancel()
        await talk.agent.expect(wire.ExecSignal)
        await send(talk.agent, wire.ExecStdout, id_, WINDOW)
        assert await granted(talk.agent, "stdout") > HALF
        await talk.agent.send(wire.ExecExited(-1, signal=15), id_)
        await result.wait()


async def test_a_process_that_an_error_of_ours_has_ended_gets_credit_so_that_its_end_can_be_reported() -> None:
    async with talking() as talk:
        process, id_ = await block(talk)
        await send(
            talk.agent, wire.ExecStdout, id_, WINDOW
        )  # these are unread; a relay and the pipe hold the rest
        await talk.agent.send_raw(wire.encode_frame(id_, 0, b"\xff"))
        with pytest.raises(trio_console.ProtocolError):
            await process.wait()
        assert await talk.agent.expect(wire.ExecSignal) == (id_, wire.ExecSignal(9))
        for name in ("stdout", "stderr"):
            assert await talk.agent.expect(wire.Credit) == (id_, wire.Credit(name, 2 * WINDOW))
        await talk.agent.nothing_more()


async def test_an_agent_without_credit_is_not_told_so() -> None:
    async with talking(window=None) as talk:
        _, id_ = await block(talk)
        await talk.agent.send_raw(wire.encode_frame(id_, 0, b"\xff"))
        assert await talk.agent.expect(wire.ExecSignal) == (id_, wire.ExecSignal(9))
        await talk.agent.nothing_more()


async def test_merged_output_that_comes_together_with_the_start_is_not_lost() -> None:
    async with talking() as talk:

        async def answer() -> None:
            id_, _ = await talk.agent.expect(wire.ExecRequest)
            messages = (
                wire.ExecStarted(7),
                wire.ExecStdout(b"one "),
                wire.ExecStderr(b"two"),
                wire.ExecExited(code=0),
            )
            await talk.agent.send_raw(b"".join(wire.encode(message, id_) for message in messages))

        talk.nursery.start_soon(answer)
        with trio.fail_after(HANG):
            result = await talk.guest.run_process(["cmd"], capture_stdout=True, stderr=subprocess.STDOUT)
        assert result.stdout == b"one two"


async def test_merged_output_is_credited_to_the_accounts_it_came_from() -> None:
    async with talking() as talk:
        process, id_ = await block(talk, stderr=subprocess.STDOUT)
        assert process.stderr is None
        await send(talk.agent, wire.ExecStdout, id_, HALF)
        await send(talk.agent, wire.ExecStderr, id_, HALF)
        await send(talk.agent, wire.ExecStdout, id_, HALF)
        await receive_exactly(process.stdout, HALF)
        assert (await talk.agent.expect(wire.Credit))[1].stream == "stdout"
        await receive_exactly(process.stdout, HALF)
        assert (await talk.agent.expect(wire.Credit))[1].stream == "stderr"
        await receive_exactly(process.stdout, HALF)
        assert (await talk.agent.expect(wire.Credit))[1].stream == "stdout"
        await talk.agent.nothing_more()


async def test_merged_output_that_is_discarded_is_credited_to_the_accounts_it_came_from() -> None:
    async with talking() as talk:
        process, id_ = await block(talk, stderr=subprocess.STDOUT)
        await send(talk.agent, wire.ExecStdout, id_, HALF)
        await send(talk.agent, wire.ExecStderr, id_, HALF)
        await process.stdout.aclose()
        assert {(await talk.agent.expect(wire.Credit))[1].stream for _ in range(2)} == {"stdout", "stderr"}


async def test_output_that_came_before_it_was_merged_is_kept_and_credited() -> None:
    async with talking() as talk:
        result = begin(
            talk.nursery,
            lambda: talk.guest.run_process(["cmd"], capture_stdout=True, stderr=subprocess.STDOUT),
        )
        id_, _ = await talk.agent.expect(wire.ExecRequest)
        frames = [wire.ExecStarted(7), wire.ExecStdout(bytes(HALF)), wire.ExecStderr(bytes(HALF))]
        await talk.agent.send_raw(b"".join(wire.encode(frame, id_) for frame in frames))
        got = set()
        while len(got) < 2:
            _, message = await talk.agent.receive()
            if isinstance(message, wire.Credit):
                got.add((message.stream, message.bytes))
        assert got == {("stdout", HALF), ("stderr", HALF)}
        await talk.agent.send(wire.ExecExited(0), id_)
        assert len((await result.wait()).stdout) == WINDOW


async def test_an_agent_that_sends_more_than_it_was_granted_has_to_wait() -> None:
    async with talking() as talk:
        process, id_ = await block(talk)
        for _ in range(64):
            await talk.agent.send(wire.ExecStdout(bytes(65536)), id_)
        await trio.testing.wait_all_tasks_blocked()
        assert talk.connection.frames_received <= 33 + 2  # two windows, for streams that are two in one
        got = await receive_exactly(process.stdout, 64 * 65536)
        assert len(got) == 64 * 65536


# Agents without credit


async def test_unread_output_pauses_an_agent_without_credit_and_reading_resumes_it() -> None:
    async with talking(window=None) as talk:
        process, id_ = await block(talk)
        for _ in range(64):
            await talk.agent.send(wire.ExecStdout(bytes(65536)), id_)
        ping = begin(talk.nursery, talk.guest.ping)
        ping_id, _ = await talk.agent.expect(wire.Ping)
        await talk.agent.send(wire.Pong(), ping_id)
        await trio.testing.wait_all_tasks_blocked()
        assert not ping.done.is_set()
        assert talk.connection.frames_received <= 17 + 1
        await receive_exactly(process.stdout, 64 * 65536)
        await ping.wait()


@pytest.mark.parametrize("way", ["close the stream", "leave the block"])
async def test_letting_go_of_unread_output_resumes_an_agent_without_credit(way: str) -> None:
    async with talking(window=None) as talk:
        process, id_, left = await opened(talk, stdin=PIPE)
        for _ in range(64):
            await talk.agent.send(wire.ExecStdout(bytes(65536)), id_)
        await trio.testing.wait_all_tasks_blocked()
        if way == "close the stream":
            await process.stdout.aclose()
        else:
            left.leave.set()
            await talk.agent.expect(wire.ExecSignal)
        await talk.agent.send(wire.ExecExited(0), id_)
        with trio.fail_after(HANG):
            await process.wait()


async def test_a_lost_guest_is_told_also_while_the_reader_is_paused() -> None:
    async with talking(window=None) as talk:
        process, id_ = await block(talk)
        for _ in range(64):
            await talk.agent.send(wire.ExecStdout(bytes(65536)), id_)
        await trio.testing.wait_all_tasks_blocked()
        talk.connection.lose("it was ended by force")
        with pytest.raises(trio.BrokenResourceError, match="by force"):
            await process.wait()


# Input


async def test_input_waits_for_credit_and_resumes() -> None:
    async with talking(window=1000) as talk:
        process, id_ = await block(talk)
        data = os.urandom(2500)
        sending = begin(talk.nursery, lambda: process.stdin.send_all(data))
        got = b""
        for expected in (1000, 2000, 2500):
            while len(got) < expected:
                got += (await talk.agent.expect(wire.ExecStdin))[1].data
            await talk.agent.nothing_more()
            assert sending.done.is_set() == (expected == 2500)
            await talk.agent.send(wire.Credit(stream="stdin", bytes=1000), id_)
        await sending.wait()
        assert got == data


async def test_waiting_until_input_might_not_block_waits_for_credit() -> None:
    async with talking(window=10) as talk:
        process, id_ = await block(talk)
        await process.stdin.wait_send_all_might_not_block()
        await process.stdin.send_all(bytes(10))
        waiting = begin(talk.nursery, process.stdin.wait_send_all_might_not_block)
        await trio.testing.wait_all_tasks_blocked()
        assert not waiting.done.is_set()
        await talk.agent.send(wire.Credit(stream="stdin", bytes=1), id_)
        await waiting.wait()


async def test_end_of_file_needs_no_credit() -> None:
    async with talking(window=10) as talk:
        process, _ = await block(talk)
        await process.stdin.send_all(bytes(10))
        await process.stdin.aclose()
        assert (await talk.agent.expect(wire.ExecStdin))[1].data == bytes(10)
        assert (await talk.agent.expect(wire.ExecStdin))[1].data == b""


async def test_a_process_that_exits_as_its_input_has_got_room_leaves_the_room_to_others() -> None:
    sending_end, _ = trio.testing.memory_stream_one_way_pair()
    outbox = Outbox(sending_end)  # no task writes, so the queued frames stay
    sender = DataSender(outbox, wire.ExecStdin, 1, None)
    stdin = StdinStream(sender, tty=False)
    assert outbox.reserve_nowait(BULK_BUDGET)
    async with trio.open_nursery() as nursery:
        sending = begin(nursery, lambda: stdin.send_all(bytes(10)))
        await trio.testing.wait_all_tasks_blocked()
        outbox.release(BULK_BUDGET)  # the sender has its reservation now, and its next turn comes later
        sender.stop(BrokenPipeError("the process has exited"))
        with pytest.raises(trio.BrokenResourceError):
            await sending.wait()
    assert outbox.reserve_nowait(BULK_BUDGET)
    outbox.release(BULK_BUDGET)


async def test_a_cancelled_sender_has_paid_exactly_for_what_was_sent() -> None:
    async with talking(window=1000) as talk:
        process, id_ = await block(talk)
        sending = begin(talk.nursery, lambda: process.stdin.send_all(bytes(5000)))
        await trio.testing.wait_all_tasks_blocked()
        sending.scope.cancel()
        await sending.done.wait()
        assert len((await talk.agent.expect(wire.ExecStdin))[1].data) == 1000
        await talk.agent.send(wire.Credit(stream="stdin", bytes=500), id_)
        again = begin(talk.nursery, lambda: process.stdin.send_all(b"x" * 600))
        assert (await talk.agent.expect(wire.ExecStdin))[1].data == b"x" * 500
        await talk.agent.nothing_more()
        again.scope.cancel()


async def test_without_credit_input_is_bounded_by_the_console() -> None:
    async with talking(window=None, streams=trio.testing.lockstep_stream_pair) as talk:
        process, _ = await block(talk)
        sending = begin(talk.nursery, lambda: process.stdin.send_all(bytes(4 * MIB)))
        await trio.testing.wait_all_tasks_blocked()
        assert not sending.done.is_set()
        got = 0
        while got < 4 * MIB:
            _, message = await talk.agent.expect(wire.ExecStdin)
            assert len(message.data) <= 65536
            got += len(message.data)
        await sending.wait()


async def test_credit_for_another_stream_is_none() -> None:
    outbox = Outbox(trio.testing.MemorySendStream())
    sender = DataSender(outbox, wire.ExecStdin, 7, 10)
    await outbox.reserve(10)
    sender.put(memoryview(bytes(10)))
    may_send: list[int] = []
    async with trio.open_nursery() as nursery:

        @nursery.start_soon
        async def _waits() -> None:
            may_send.append(await sender.wait_credit(20))

        await trio.testing.wait_all_tasks_blocked()
        sender.grant(wire.Credit("data", 3))
        await trio.testing.wait_all_tasks_blocked()
        assert may_send == []
        sender.grant(wire.Credit("stdin", 4))
    assert may_send == [4]


async def test_data_that_waits_for_room_when_its_session_ends_is_not_sent() -> None:
    stream = trio.testing.MemorySendStream()
    outbox = Outbox(stream)
    sender = DataSender(outbox, wire.TcpData, 7, None)
    assert outbox.reserve_nowait(BULK_BUDGET)
    async with trio.open_nursery() as nursery:

        @nursery.start_soon
        async def _sends() -> None:
            assert not await sender.send(memoryview(b"late"))

        await trio.testing.wait_all_tasks_blocked()
        sender.stop()  # the id may be another session's from here on
        outbox.release(BULK_BUDGET)
    outbox.close()
    await outbox.run()
    assert outbox.written == 0


async def test_data_that_has_got_room_when_the_console_breaks_does_not_count_as_sent() -> None:
    outbox = Outbox(trio.testing.MemorySendStream())
    sender = DataSender(outbox, wire.TcpData, 7, None)
    assert outbox.reserve_nowait(BULK_BUDGET)
    async with trio.open_nursery() as nursery:
        sending = begin(nursery, lambda: sender.send(memoryview(b"late")))
        await trio.testing.wait_all_tasks_blocked()
        outbox.release(BULK_BUDGET)  # the sender has its reservation now, and its next turn comes later
        outbox.close()
        await trio.testing.wait_all_tasks_blocked()
        assert not sending.done.is_set()  # its session gets the reason later
        sender.stop(trio.BrokenResourceError("the guest is gone"))
        assert await sending.wait() is False
    assert sender.last_byte is None

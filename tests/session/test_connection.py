"""Ids, routing and endings of a connection, with a scripted agent."""

from __future__ import annotations

import pytest
import trio
import trio.testing

from tests.session._fake import begin, talking
from tests.tools.limits import HANG
from tests.tools.turns import TINY, large_ping, make_long_steps_endless, make_steps_turns, watch
from trio_console import GuestLostError, ProtocolError, UnsupportedByPeer
from trio_console import _wire as wire


async def _answer_ping(agent: object) -> int:
    id_, _ = await agent.expect(wire.Ping)  # type: ignore[attr-defined]
    await agent.send(wire.Pong(), id_)  # type: ignore[attr-defined]
    return int(id_)


# Ids


async def test_ids_count_up_from_the_start_of_the_range_and_wrap_without_ever_being_0() -> None:
    async with talking(ids=range(5, 8)) as talk:
        used = []
        for _ in range(5):
            ping = begin(talk.nursery, talk.guest.ping)
            used.append(await _answer_ping(talk.agent))
            await ping.wait()
    assert used == [5, 6, 7, 5, 6]


async def test_an_id_that_is_still_pending_is_skipped() -> None:
    async with talking(ids=range(5, 8)) as talk:
        pending = begin(talk.nursery, talk.guest.ping)
        first, _ = await talk.agent.expect(wire.Ping)
        used = []
        for _ in range(4):
            ping = begin(talk.nursery, talk.guest.ping)
            used.append(await _answer_ping(talk.agent))
            await ping.wait()
        assert first == 5
        assert used == [6, 7, 6, 7]
        assert not pending.done.is_set()


async def test_the_only_free_id_is_used_again_and_again() -> None:
    async with talking(ids=range(1, 3)) as talk:
        pending = begin(talk.nursery, talk.guest.ping)
        await talk.agent.expect(wire.Ping)
        for _ in range(3):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(_answer_ping, talk.agent)
                await talk.guest.ping()
        assert not pending.done.is_set()


async def test_an_id_stays_taken_when_its_call_was_cancelled_until_the_answer_comes() -> None:
    async with talking(ids=range(1, 3)) as talk:
        cancelled = begin(talk.nursery, talk.guest.ping)
        first, _ = await talk.agent.expect(wire.Ping)
        cancelled.scope.cancel()
        await cancelled.done.wait()
        ping = begin(talk.nursery, talk.guest.ping)
        assert await _answer_ping(talk.agent) != first
        await ping.wait()
        assert talk.guest.statistics().active_sessions == 1
        await talk.agent.send(wire.Pong(), first)
        await trio.testing.wait_all_tasks_blocked()
        assert talk.guest.statistics().active_sessions == 0


async def test_when_all_ids_are_taken_a_call_fails_and_sends_nothing() -> None:
    async with talking(ids=range(1, 2)) as talk:
        begin(talk.nursery, talk.guest.ping)
        await talk.agent.expect(wire.Ping)
        with pytest.raises(RuntimeError, match="in use"):
            await talk.guest.ping()
        await talk.agent.nothing_more()


# Routing


async def test_answers_find_their_callers_in_any_order() -> None:
    async with talking() as talk:
        calls = [begin(talk.nursery, talk.guest.touch) for _ in range(3)]
        ids = [(await talk.agent.expect(wire.Touch))[0] for _ in range(3)]
        for id_ in reversed(ids):
            await talk.agent.send(wire.Touched(id_ * 10), id_)
        assert sorted([await call.wait() for call in calls]) == sorted(id_ * 10 for id_ in ids)


async def test_frames_of_unknown_ids_are_dropped_and_counted_without_a_look_inside() -> None:
    async with talking() as talk:
        await talk.agent.send_raw(wire.encode_frame(77, 0, b"no envelope"))
        await talk.agent.send(wire.ExecStdout(b"x"), 78)
        ping = begin(talk.nursery, talk.guest.ping)
        await _answer_ping(talk.agent)
        await ping.wait()
        statistics = talk.guest.statistics()
        assert (statistics.frames_received, statistics.frames_dropped) == (3, 2)


async def test_a_bad_body_ends_its_own_session_only() -> None:
    async with talking() as talk:
        bad = begin(talk.nursery, talk.guest.ping)
        bad_id, _ = await talk.agent.expect(wire.Ping)
        good = begin(talk.nursery, talk.guest.ping)
        good_id, _ = await talk.agent.expect(wire.Ping)
        await talk.agent.send_raw(wire.encode_frame(bad_id, 1, b"\xff"))
        await talk.agent.send(wire.Pong(), good_id)
        await good.wait()
        with pytest.raises(ProtocolError) as caught:
            await bad.wait()
        assert caught.value.frame_id == bad_id


async def test_a_message_of_an_unknown_type_is_skipped() -> None:
    async with talking() as talk:
        ping = begin(talk.nursery, talk.guest.ping)
        id_, _ = await talk.agent.expect(wire.Ping)
        body = bytes.fromhex("a36176086174") + b"\x6bcore.novel!"[:12] + bytes.fromhex("617041a0")
        await talk.agent.send_raw(wire.encode_frame(id_, 0, body))
        await talk.agent.send(wire.Pong(), id_)
        await ping.wait()
        assert talk.guest.statistics().frames_dropped == 1


async def test_a_terminal_message_of_an_unknown_type_ends_the_session_with_an_error() -> None:
    async with talking() as talk:
        ping = begin(talk.nursery, talk.guest.ping)
        id_, _ = await talk.agent.expect(wire.Ping)
        body = bytes.fromhex("a36176086174") + b"\x6bcore.novel!"[:12] + bytes.fromhex("617041a0")
        await talk.agent.send_raw(wire.encode_frame(id_, wire.FLAG_TERMINAL, body))
        with pytest.raises(ProtocolError) as caught:
            await ping.wait()
        assert caught.value.kind == "unsupported_message_type"


async def test_a_refusal_comes_out_with_its_kind() -> None:
    async with talking() as talk:
        ping = begin(talk.nursery, talk.guest.ping)
        id_, _ = await talk.agent.expect(wire.Ping)
        await talk.agent.send(wire.Error(kind="invalid_flags", message="no such luck"), id_)
        with pytest.raises(ProtocolError, match="no such luck") as caught:
            await ping.wait()
        assert caught.value.kind == "invalid_flags"


async def test_an_answer_of_another_kind_is_a_protocol_error() -> None:
    async with talking() as talk:
        ping = begin(talk.nursery, talk.guest.ping)
        id_, _ = await talk.agent.expect(wire.Ping)
        await talk.agent.send(wire.Touched(3), id_)
        with pytest.raises(ProtocolError, match=r"core\.ping"):
            await ping.wait()


async def test_what_an_older_agent_does_not_know_is_refused_before_anything_is_sent() -> None:
    async with talking(generation=5) as talk:
        with pytest.raises(UnsupportedByPeer, match="generation 6"):
            await talk.guest.ping()
        with pytest.raises(UnsupportedByPeer):
            await talk.guest.touch()
        await talk.agent.nothing_more()
        assert talk.guest.statistics().active_sessions == 0


async def test_a_newer_agent_is_spoken_to_in_our_generation() -> None:
    async with talking(generation=11) as talk:
        assert talk.guest.ready.generation == 11
        ping = begin(talk.nursery, talk.guest.ping)
        await _answer_ping(talk.agent)
        await ping.wait()


# Endings


async def test_a_closed_console_ends_waiting_calls_with_the_reason() -> None:
    async with talking() as talk:
        ping = begin(talk.nursery, talk.guest.ping)
        await talk.agent.expect(wire.Ping)
        await talk.agent.close()
        with pytest.raises(GuestLostError, match="nobody knows why") as caught:
            await ping.wait()
        assert caught.value.reason == str(caught.value)


async def test_after_the_end_every_call_fails_with_the_same_reason() -> None:
    async with talking() as talk:
        await talk.agent.close()
        with trio.fail_after(HANG):
            await talk.connection.wait_ended()
        for call in (talk.guest.ping, talk.guest.touch, lambda: talk.guest.run_process(["true"])):
            with pytest.raises(GuestLostError, match="nobody knows why"):
                await call()
        assert "nobody knows why" in repr(talk.guest)


async def test_the_first_reason_of_an_end_stays() -> None:
    async with talking() as talk:
        talk.connection.lose("the first")
        talk.connection.lose("the second")
        with pytest.raises(GuestLostError, match="the first"):
            await talk.guest.ping()


async def test_each_caller_gets_an_error_of_its_own() -> None:
    async with talking() as talk:
        calls = [begin(talk.nursery, talk.guest.ping) for _ in range(2)]
        await talk.agent.close()
        errors = set()
        for call in calls:
            with pytest.raises(GuestLostError) as caught:
                await call.wait()
            errors.add(id(caught.value))
        assert len(errors) == 2


async def test_an_explanation_that_takes_long_is_not_waited_for(autojump_clock: trio.testing.MockClock) -> None:
    async def never() -> str:
        await trio.sleep_forever()
        raise AssertionError

    async with talking(explain=never) as talk:
        ping = begin(talk.nursery, talk.guest.ping)
        await talk.agent.expect(wire.Ping)
        began = trio.current_time()
        await talk.agent.close()
        with pytest.raises(GuestLostError, match="closed its console"):
            await ping.wait()
        assert trio.current_time() - began <= 0.25


async def test_a_call_while_the_end_is_being_explained_is_told_it_too(
    autojump_clock: trio.testing.MockClock,
) -> None:
    explaining = trio.Event()

    async def slowly() -> str:
        explaining.set()
        await trio.sleep(0.1)
        return "it was late"

    async with talking(explain=slowly) as talk:
        await talk.agent.close()
        await explaining.wait()
        with pytest.raises(GuestLostError, match="it was late"):
            await talk.guest.ping()
        assert talk.guest.statistics().active_sessions == 0


async def test_the_reason_that_a_relay_tells_is_the_reason() -> None:
    async def guess() -> str:
        await trio.lowlevel.checkpoint()
        return "perhaps it was cut"

    async with talking(explain=guess) as talk:
        ping = begin(talk.nursery, talk.guest.ping)
        await talk.agent.expect(wire.Ping)
        await talk.agent.send(wire.RelayLost("the agent was killed by SIGKILL"), 4000)
        await talk.agent.close()
        with pytest.raises(GuestLostError) as caught:
            await ping.wait()
        assert caught.value.reason == "the agent was killed by SIGKILL"
        assert talk.guest.statistics().frames_dropped == 0


@pytest.mark.parametrize("body", [b"", b"\xff", wire.encode(wire.RelayLost("x"))[9:-1], bytes(100_000)])
async def test_a_frame_of_no_session_that_tells_no_reason_is_dropped_and_counted(body: bytes) -> None:
    async with talking() as talk:
        await talk.agent.send_raw(wire.encode_frame(4000, 0, body))
        ping = begin(talk.nursery, talk.guest.ping)
        id_, _ = await talk.agent.expect(wire.Ping)
        await talk.agent.send(wire.Pong(), id_)
        await ping.wait()
        assert talk.guest.statistics().frames_dropped == 1


async def test_bytes_out_of_step_end_the_connection_with_the_protocol_error_as_the_cause() -> None:
    async with talking() as talk:
        ping = begin(talk.nursery, talk.guest.ping)
        await talk.agent.expect(wire.Ping)
        await talk.agent.send_raw(b"\xff" * 12)
        with pytest.raises(GuestLostError, match="out of step") as caught:
            await ping.wait()
        assert isinstance(caught.value.__cause__, ProtocolError)


async def test_a_console_that_ends_inside_a_frame_is_out_of_step() -> None:
    async with talking() as talk:
        ping = begin(talk.nursery, talk.guest.ping)
        await talk.agent.send_raw(wire.encode(wire.Pong(), 1)[:-1])
        await talk.agent.close()
        with pytest.raises(GuestLostError, match="out of step"):
            await ping.wait()


class DeafStream(trio.abc.Stream):
    """A stream whose other end takes no more bytes, but has not closed its output."""

    def __init__(self, stream: trio.abc.Stream) -> None:
        self._stream = stream

    async def send_all(self, data: bytes | bytearray | memoryview) -> None:
        await trio.lowlevel.checkpoint()
        raise trio.BrokenResourceError("nobody listens")

    async def wait_send_all_might_not_block(self) -> None:
        await trio.lowlevel.checkpoint()

    async def receive_some(self, max_bytes: int | None = None) -> bytes | bytearray:
        return await self._stream.receive_some(max_bytes)

    async def aclose(self) -> None:
        await self._stream.aclose()


def deaf_pair() -> tuple[trio.abc.Stream, trio.abc.Stream]:
    ours, theirs = trio.testing.memory_stream_pair()
    return DeafStream(ours), theirs


async def test_a_guest_that_takes_nothing_any_more_is_lost(autojump_clock: trio.testing.MockClock) -> None:
    async with talking(streams=deaf_pair) as talk:
        with pytest.raises(GuestLostError, match="takes no more bytes"), trio.fail_after(HANG):
            await talk.guest.ping()


async def test_a_call_made_after_the_writing_broke_is_told_of_a_lost_guest(
    autojump_clock: trio.testing.MockClock,
) -> None:
    async with talking(streams=deaf_pair) as talk:
        ping = begin(talk.nursery, talk.guest.ping)
        await trio.testing.wait_all_tasks_blocked()
        with pytest.raises(GuestLostError):
            await talk.guest.ping()
        with pytest.raises(GuestLostError):
            await ping.wait()


async def test_what_a_deaf_guest_still_says_is_delivered(autojump_clock: trio.testing.MockClock) -> None:
    async with talking(streams=deaf_pair) as talk:
        ping = begin(talk.nursery, talk.guest.ping)
        await trio.testing.wait_all_tasks_blocked()
        for _ in range(5):
            await trio.sleep(0.5)
            await talk.agent.send(wire.ExecStdout(b"of somebody else"), 99)
        await talk.agent.send(wire.Pong(), 1)
        await ping.wait()


# Shutdown


async def test_shutdown_tells_the_guest_and_waits_until_it_is_gone() -> None:
    async with talking() as talk:
        shutdown = begin(talk.nursery, talk.guest.shutdown)
        id_, _ = await talk.agent.expect(wire.Shutdown)
        assert id_ == 0
        await trio.testing.wait_all_tasks_blocked()
        assert not shutdown.done.is_set()
        await talk.agent.close()
        await shutdown.wait()
        with pytest.raises(GuestLostError, match="the guest was shut down"):
            await talk.guest.ping()
        assert talk.forced == 0


async def test_the_order_to_shut_down_stays_behind_all_data_that_was_sent() -> None:
    data = bytes(200_000)  # less than may be queued for the console
    async with talking(window=2**24, streams=trio.testing.lockstep_stream_pair) as talk:
        begin(talk.nursery, lambda: talk.guest.run_process(["cat"], stdin=data))
        await talk.agent.expect_start()  # all of its input is sent, and none of it read
        begin(talk.nursery, talk.guest.shutdown)
        await trio.testing.wait_all_tasks_blocked()
        seen = []
        while not seen or type(seen[-1]) is not wire.Shutdown:
            _, message = await talk.agent.receive()
            seen.append(message)
        await talk.agent.close()
    assert sum(len(message.data) for message in seen if isinstance(message, wire.ExecStdin)) == len(data)


async def test_a_second_shutdown_does_nothing() -> None:
    async with talking() as talk:
        talk.nursery.start_soon(talk.agent.serve)
        await talk.guest.shutdown()
        await talk.guest.shutdown()


async def test_a_guest_that_ignores_the_shutdown_is_ended_by_force_after_the_grace(
    autojump_clock: trio.testing.MockClock,
) -> None:
    async with talking(grace=3) as talk:
        began = trio.current_time()
        await talk.guest.shutdown()
        assert trio.current_time() - began == 3
        assert talk.forced == 1
        with pytest.raises(GuestLostError, match="by force"):
            await talk.guest.ping()


async def test_a_cancelled_call_before_it_began_sends_nothing() -> None:
    async with talking() as talk:
        with trio.CancelScope() as scope:
            scope.cancel()
            await talk.guest.ping()
        with trio.CancelScope() as scope:
            scope.cancel()
            await talk.guest.run_process(["true"])
        await talk.agent.nothing_more()


async def test_requests_that_are_given_up_do_not_pile_up_without_bound(
    autojump_clock: trio.testing.MockClock,
) -> None:
    async with talking(streams=trio.testing.lockstep_stream_pair, ids=range(1, 100_000)) as talk:
        talk.connection.outbox._control_budget = 1000
        for _ in range(200):
            with trio.move_on_after(0.01) as scope:
                await talk.guest.ping()
            assert scope.cancelled_caught
        assert talk.guest.statistics().active_sessions < 40


async def test_a_request_for_which_there_is_room_is_sent_before_another_task_runs() -> None:
    async with talking() as talk:
        with pytest.raises(StopIteration):  # it is over in one step: no other task has run
            talk.connection.wait_may_open().send(None)


async def test_a_call_waits_behind_those_that_wait_although_there_is_room_again() -> None:
    async with talking() as talk:
        async with talk.connection._door:  # as a call that was told of room, and has not run since
            call = begin(talk.nursery, talk.guest.ping)
            await talk.agent.nothing_more()
        id_, _ = await talk.agent.expect(wire.Ping)
        await talk.agent.send(wire.Pong(), id_)
        await call.wait()


async def test_a_call_that_needs_no_request_is_a_checkpoint() -> None:
    async with talking() as talk:
        with trio.testing.assert_checkpoints():
            assert await talk.guest.path("/a").absolute() == talk.guest.path("/a")


async def test_a_call_that_waits_for_its_turn_is_told_when_the_guest_is_lost(
    autojump_clock: trio.testing.MockClock,
) -> None:
    async with talking(streams=trio.testing.lockstep_stream_pair, grace=3) as talk:
        talk.connection.outbox._control_budget = 1
        calls = [begin(talk.nursery, talk.guest.ping) for _ in range(4)]
        await trio.testing.wait_all_tasks_blocked()
        await talk.guest.shutdown()
        for call in calls:
            with pytest.raises(GuestLostError, match="by force"):
                await call.wait()


# Floods


async def test_tiny_frames_of_a_guest_let_other_tasks_run(monkeypatch: pytest.MonkeyPatch) -> None:
    make_steps_turns(monkeypatch)
    async with talking() as talk:
        await talk.agent.send_raw(TINY * 500)
        with trio.fail_after(HANG):
            seen = await watch(lambda: talk.connection.frames_received, 500)
    assert len(seen) > 200


async def test_behind_a_long_frame_a_guest_is_not_read_for_a_while(monkeypatch: pytest.MonkeyPatch) -> None:
    make_long_steps_endless(monkeypatch)
    async with talking() as talk:
        for _ in range(3):
            await talk.agent.send_raw(large_ping(1))
        await trio.testing.wait_all_tasks_blocked()
        assert talk.connection.frames_dropped == 1

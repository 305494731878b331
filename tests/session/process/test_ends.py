"""A process whose agent tells its exit and the ends of its streams by themselves."""

from __future__ import annotations

import subprocess
from typing import TYPE_CHECKING, Any

import pytest
import trio

from tests.session._fake import Talk, begin, talking
from tests.session.process._processes import Opened, opened, run
from tests.tools.peer import settle
from trio_console import GuestLostError, ProtocolError
from trio_console import _wire as wire

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

PIPE = subprocess.PIPE


@pytest.fixture
async def talk() -> AsyncIterator[Talk]:
    async with talking(features=(wire.EXEC_ENDS,)) as talk:
        yield talk


async def left(talk: Talk, status: int = 3, **options: Any) -> tuple[Any, int, Any]:
    """A process that has exited while its streams are open, its id, and its block."""
    process, id_, block = await opened(talk, **options)
    await talk.agent.send(wire.ExecLeft(status), id_)
    assert await process.wait() == status
    return process, id_, block


async def test_the_ends_are_asked_for(talk: Talk) -> None:
    run(talk, "ls", drain=1.5)
    _, request = await talk.agent.expect(wire.ExecRequest)
    assert request.ends == wire.ExecEnds(1500)


async def test_an_agent_that_does_not_know_them_is_not_asked() -> None:
    async with talking() as talk:
        run(talk, "ls")
        _, request = await talk.agent.expect(wire.ExecRequest)
        assert request.ends is request.stdio is wire.UNSET


async def test_a_process_has_its_status_at_the_exit_and_its_streams_go_on(talk: Talk) -> None:
    process, id_, _ = await left(talk)
    assert process.returncode == 3
    await talk.agent.send(wire.ExecStdout(b"more"), id_)
    assert await process.stdout.receive_some() == b"more"
    await talk.agent.send(wire.ExecExited(3), id_)
    assert await process.stdout.receive_some() == b""


async def test_one_stream_ends_and_the_other_goes_on(talk: Talk) -> None:
    process, id_, _ = await opened(talk)
    await talk.agent.send(wire.ExecStreamEnded("stdout"), id_)
    assert await process.stdout.receive_some() == b""
    await talk.agent.send(wire.ExecStderr(b"more"), id_)
    assert await process.stderr.receive_some() == b"more"
    assert process.returncode is None


async def test_input_of_a_process_that_has_exited_is_refused(talk: Talk) -> None:
    process, _, _ = await left(talk, stdin=PIPE)
    with pytest.raises(trio.BrokenResourceError):
        await process.stdin.send_all(b"x")


async def test_signals_for_a_process_that_has_exited_are_not_sent(talk: Talk) -> None:
    process, id_, block = await left(talk)
    process.kill()
    block.leave.set()
    assert await talk.agent.expect(wire.ExecRelease) == (id_, wire.ExecRelease())


async def test_a_block_left_after_the_exit_lets_the_streams_go(talk: Talk) -> None:
    _, id_, block = await left(talk)
    block.leave.set()
    assert await talk.agent.expect(wire.ExecRelease) == (id_, wire.ExecRelease())
    await talk.agent.send(wire.ExecExited(3, held=["stdout"]), id_)
    await block.result.wait()


async def test_a_block_left_before_the_exit_kills_all_of_the_command(talk: Talk) -> None:
    _, id_, block = await opened(talk)
    block.leave.set()
    got, message = await talk.agent.expect(wire.ExecKill)
    assert got == id_
    assert 0 < message.grace <= 4000  # a part of the five seconds is for the answer's way
    await talk.agent.send(wire.ExecExited(-1, 9), id_)
    await block.result.wait()


async def test_what_a_cancelled_command_leaves_is_killed_however_it_exits(talk: Talk) -> None:
    result = run(talk, "ls", stdin=None)
    id_ = await talk.agent.expect_start()
    await settle()
    result.scope.cancel()
    got, message = await talk.agent.expect(wire.ExecKill)
    assert (got, message.after_exit) == (id_, True)
    assert await talk.agent.expect(wire.ExecSignal) == (id_, wire.ExecSignal(15))
    await talk.agent.send(wire.ExecExited(-1, 15), id_)


async def test_processes_that_the_guest_could_not_end_are_told_of(talk: Talk) -> None:
    _, id_, block = await opened(talk)
    with pytest.warns(RuntimeWarning, match="could not end 2 processes"):
        block.leave.set()
        await talk.agent.expect(wire.ExecKill)
        await talk.agent.send(wire.ExecExited(-1, 9, alive=2), id_)
        await block.result.wait()


async def test_a_lost_guest_takes_the_rest_of_the_output_and_not_the_status(talk: Talk) -> None:
    process, id_, block = await left(talk)
    await talk.agent.send(wire.ExecStdout(b"more"), id_)
    await talk.agent.close()
    assert await process.stdout.receive_some() == b"more"
    with pytest.raises(GuestLostError):
        await process.stdout.receive_some()
    assert await process.wait() == process.returncode == 3
    block.leave.set()
    await block.result.wait()


async def test_a_lost_guest_ends_run_process_while_output_is_open(talk: Talk) -> None:
    result = run(talk, "ls")
    id_ = await talk.agent.expect_start()
    await talk.agent.send(wire.ExecLeft(0), id_)
    await talk.agent.close()
    with pytest.raises(GuestLostError):
        await result.wait()


async def test_streams_that_the_guest_does_not_let_go_of_in_time_are_told_of() -> None:
    async with talking(features=(wire.EXEC_ENDS,), grace=0.01) as talk:
        process, _, block = await left(talk)
        with pytest.warns(RuntimeWarning, match="did not confirm"):
            block.leave.set()
            await block.result.wait()
        assert await process.wait() == 3


async def test_a_result_says_that_others_hold_the_output(talk: Talk) -> None:
    result = run(talk, "ls")
    id_ = await talk.agent.expect_start()
    await talk.agent.send(wire.ExecExited(0, held=["stderr"]), id_)
    assert (await result.wait()).output_open


@pytest.mark.parametrize("kind", ["exit_unknown", "not_confirmed"])
async def test_a_status_that_is_not_known_is_an_error(talk: Talk, kind: str) -> None:
    result = begin(talk.nursery, lambda: talk.guest.run_process(["ls"]))
    id_ = await talk.agent.expect_start()
    await talk.agent.send(wire.Error(kind, "why"), id_)
    with pytest.raises(ChildProcessError if kind == "exit_unknown" else GuestLostError):
        await result.wait()


async def test_a_command_that_is_cancelled_during_its_start_is_ended_by_deliver_cancel(talk: Talk) -> None:
    delivered = []

    async def deliver(process: Any) -> None:
        delivered.append(process.pid)
        process.terminate()
        await trio.sleep_forever()

    result = run(talk, "ls", stdin=None, deliver_cancel=deliver)
    id_, _ = await talk.agent.expect(wire.ExecRequest)
    result.scope.cancel()
    await settle()
    await talk.agent.send(wire.ExecStarted(77), id_)
    await talk.agent.expect(wire.ExecKill)
    await talk.agent.expect(wire.ExecSignal)
    assert delivered == [77]
    await talk.agent.send(wire.ExecExited(-1, 15), id_)


async def test_a_start_that_the_guest_does_not_answer_can_be_cancelled() -> None:
    async with talking(features=(wire.EXEC_ENDS,), grace=0.01) as talk:
        result = run(talk, "ls", stdin=None)
        await talk.agent.expect(wire.ExecRequest)
        with pytest.warns(RuntimeWarning, match="did not confirm"):
            result.scope.cancel()
            with trio.fail_after(60):
                await result.done.wait()


async def test_a_guest_that_goes_on_breaking_the_protocol_is_answered_once(talk: Talk) -> None:
    """Otherwise a guest that floods and does not read would fill the queue for its frames without a bound."""
    process, id_, _ = await opened(talk)
    for _ in range(5):
        await talk.agent.send(wire.TcpConnected(), id_)
    with pytest.raises(ProtocolError):
        await process.wait()
    answers = [type(message) for _, message in await talk.agent.pending()]
    assert answers == [wire.ExecSignal, wire.Credit, wire.Credit]


# What is left when the session is over


async def over(talk: Talk, **options: Any) -> tuple[Any, Opened]:
    """A process whose session is over by itself, and its block."""
    block = Opened(talk, **options)
    id_ = (await talk.agent.expect(wire.ExecRequest))[0]
    await talk.agent.send(wire.ExecStarted(77, 5), id_)
    process = await block.ready()
    await talk.agent.send(wire.ExecExited(3), id_)
    assert await process.wait() == 3
    return process, block


async def test_what_is_left_is_killed_when_the_block_is_cancelled_after_the_session(talk: Talk) -> None:
    _, block = await over(talk)
    block.result.scope.cancel()
    id_, message = await talk.agent.expect(wire.KillBackground)
    assert message.command == 5
    assert 0 < message.grace <= 4000
    await settle()
    assert not block.result.done.is_set()
    await talk.agent.send(wire.BackgroundKilled(0), id_)
    await block.result.done.wait()
    assert talk.guest.statistics().active_sessions == 0


async def test_what_is_left_lives_when_the_block_is_left_in_order(talk: Talk) -> None:
    _, block = await over(talk)
    block.leave.set()
    await block.result.wait()
    assert await talk.agent.pending() == []


async def test_a_cancelled_command_whose_session_ended_by_itself_has_its_rest_killed(talk: Talk) -> None:
    result = run(talk, "ls", stdin=None)
    id_ = (await talk.agent.expect(wire.ExecRequest))[0]
    await talk.agent.send(wire.ExecStarted(77, 5), id_)
    await settle()
    result.scope.cancel()
    await talk.agent.expect(wire.ExecKill)
    await talk.agent.expect(wire.ExecSignal)
    await talk.agent.send(wire.ExecExited(0), id_)
    id_, message = await talk.agent.expect(wire.KillBackground)
    assert message.command == 5
    await talk.agent.send(wire.BackgroundKilled(0), id_)
    await result.done.wait()
    assert await talk.agent.pending() == []


async def test_a_command_that_the_agent_has_killed_whole_is_not_killed_again(talk: Talk) -> None:
    result = run(talk, "ls", stdin=None)
    id_ = (await talk.agent.expect(wire.ExecRequest))[0]
    await talk.agent.send(wire.ExecStarted(77, 5), id_)
    await settle()
    result.scope.cancel()
    await talk.agent.expect(wire.ExecKill)
    await talk.agent.expect(wire.ExecSignal)
    await talk.agent.send(wire.ExecExited(-1, 15, alive=0), id_)
    await result.done.wait()
    assert await talk.agent.pending() == []


async def test_what_was_left_and_could_not_be_killed_is_told_of(talk: Talk) -> None:
    with pytest.warns(RuntimeWarning, match="could not end 2 processes"):
        _, block = await over(talk)
        block.result.scope.cancel()
        id_, _ = await talk.agent.expect(wire.KillBackground)
        await talk.agent.send(wire.BackgroundKilled(2), id_)
        await block.result.done.wait()


async def test_a_relay_that_does_not_know_the_request_may_refuse_it(talk: Talk) -> None:
    _, block = await over(talk)
    block.result.scope.cancel()
    id_, _ = await talk.agent.expect(wire.KillBackground)
    await talk.agent.send(wire.Error("unsupported_message_type", "m"), id_)
    await block.result.done.wait()


async def test_a_guest_that_does_not_confirm_the_rest_is_told_of() -> None:
    with pytest.warns(RuntimeWarning, match="left in the background is gone"):
        async with talking(features=(wire.EXEC_ENDS,), grace=0.01) as talk:
            _, block = await over(talk)
            block.result.scope.cancel()
            await block.result.done.wait()


async def test_a_guest_that_is_lost_is_not_asked_for_the_rest(talk: Talk) -> None:
    _, block = await over(talk)
    await talk.agent.close()
    await talk.guest.wait_lost()
    block.result.scope.cancel()
    await block.result.done.wait()


async def test_an_exit_that_is_told_by_itself_after_an_error_is_no_exit_status(talk: Talk) -> None:
    process, id_, block = await opened(talk)
    await talk.agent.send(wire.TcpConnected(), id_)  # which has no place there
    await talk.agent.send(wire.ExecLeft(3), id_)
    await settle()
    assert process.returncode is None
    with pytest.raises(ProtocolError, match="no place"):
        await process.wait()
    # The session goes on until the guest ends it.
    assert talk.guest.statistics().active_sessions == 1
    await talk.agent.send(wire.ExecExited(3), id_)
    await settle()
    assert talk.guest.statistics().active_sessions == 0
    assert talk.guest.statistics().frames_dropped == 0
    block.leave.set()
    await block.result.done.wait()


async def test_a_command_that_was_given_up_is_not_asked_for_again() -> None:
    with pytest.warns(RuntimeWarning, match="did not confirm"):
        async with talking(features=(wire.EXEC_ENDS,), grace=0.01) as talk:
            block = Opened(talk)
            id_ = (await talk.agent.expect(wire.ExecRequest))[0]
            await talk.agent.send(wire.ExecStarted(77, 5), id_)
            await block.ready()
            block.result.scope.cancel()
            await block.result.done.wait()
            told = [type(message) for _, message in await talk.agent.pending()]
            assert wire.KillBackground not in told
            assert wire.ExecKill in told

"""Cancelled calls, with a scripted agent and a virtual clock."""

from __future__ import annotations

import subprocess
import warnings
from typing import TYPE_CHECKING, Any

import pytest
import trio
import trio.testing

from tests.session._fake import begin, talking
from tests.session.process.test_process import run
from trio_console import GuestLostError
from trio_console import _wire as wire
from trio_console._session.receiving import WINDOW

if TYPE_CHECKING:
    from trio.testing import MockClock

    from tests.session._fake import Result, Talk
    from trio_console import Guest, GuestProcess


async def test_a_cancelled_run_process_terminates_and_returns_when_it_is_confirmed(
    autojump_clock: MockClock,
) -> None:
    async with talking() as talk:
        result = run(talk, stdin=None)
        id_ = await talk.agent.expect_start()
        await talk.agent.expect(wire.ExecStdin)
        result.scope.cancel()
        assert await talk.agent.expect(wire.ExecSignal) == (id_, wire.ExecSignal(15))
        await trio.sleep(4)
        assert not result.done.is_set()
        await talk.agent.send(wire.ExecExited(-1, signal=15), id_)
        await result.wait()
        assert talk.guest.statistics().active_sessions == 0
        await talk.agent.nothing_more()


async def test_a_process_that_ignores_sigterm_is_killed_after_5_seconds_with_a_warning(
    autojump_clock: MockClock,
) -> None:
    async with talking() as talk:
        with pytest.warns(RuntimeWarning, match="ignored SIGTERM for 5 seconds"):  # around the task that warns
            result = run(talk, stdin=None)
            id_ = await talk.agent.expect_start()
            await talk.agent.expect(wire.ExecStdin)
            began = trio.current_time()
            result.scope.cancel()
            await talk.agent.expect(wire.ExecSignal)
            assert await talk.agent.expect(wire.ExecSignal) == (id_, wire.ExecSignal(9))
            assert trio.current_time() - began == 5
            await talk.agent.send(wire.ExecExited(-1, signal=9), id_)
            await result.wait()


async def test_a_process_that_survives_everything_is_given_up_after_the_grace_with_a_warning(
    autojump_clock: MockClock,
) -> None:
    async with talking(grace=3) as talk:
        with pytest.warns(RuntimeWarning) as warned:  # around the start of the task that warns
            result = run(talk, stdin=None)
            await talk.agent.expect_start()
            await talk.agent.expect(wire.ExecStdin)
            began = trio.current_time()
            result.scope.cancel()
            await result.wait()
        assert [("SIGTERM" in str(w.message), "confirm" in str(w.message)) for w in warned] == [
            (True, False),
            (False, True),
        ]
        assert trio.current_time() - began == 8


async def test_a_custom_deliver_cancel_is_called_with_the_process_and_decides(autojump_clock: MockClock) -> None:
    async with talking(patience=200) as talk:

        async def ask_nicely(process: GuestProcess) -> None:
            process.send_signal(2)
            await trio.sleep(100)

        result = run(talk, stdin=None, deliver_cancel=ask_nicely)
        id_ = await talk.agent.expect_start()
        await talk.agent.expect(wire.ExecStdin)
        result.scope.cancel()
        assert await talk.agent.expect(wire.ExecSignal) == (id_, wire.ExecSignal(2))
        await trio.sleep(50)
        await talk.agent.send(wire.ExecExited(0), id_)
        await result.wait()
        await talk.agent.nothing_more()


async def test_after_a_deliver_cancel_that_returns_at_once_the_process_has_the_grace_to_end(
    autojump_clock: MockClock,
) -> None:
    async with talking(grace=3) as talk:

        async def ask_nicely(process: GuestProcess) -> None:
            process.send_signal(2)
            await trio.lowlevel.checkpoint()

        result = run(talk, stdin=None, deliver_cancel=ask_nicely)
        id_ = await talk.agent.expect_start()
        await talk.agent.expect(wire.ExecStdin)
        began = trio.current_time()
        result.scope.cancel()
        await talk.agent.expect(wire.ExecSignal)
        assert await talk.agent.expect(wire.ExecSignal) == (id_, wire.ExecSignal(9))
        assert trio.current_time() - began == 3
        await talk.agent.send(wire.ExecExited(-1, signal=9), id_)
        await result.wait()


def cancelled_unread(talk: Talk) -> Result:
    """A `run_process` whose output nobody reads, and whose `deliver_cancel` only waits for the exit."""

    async def deliver(process: GuestProcess) -> None:
        with trio.CancelScope(shield=True):
            await process.wait()

    async def body() -> int:
        async with trio.open_nursery() as nursery:
            process = await nursery.start(
                lambda task_status: talk.guest.run_process(
                    ["cmd"], stdout=subprocess.PIPE, deliver_cancel=deliver, task_status=task_status
                )
            )
        return int(process.returncode)

    return begin(talk.nursery, body)


async def test_unread_output_is_discarded_if_the_exit_can_only_come_behind_it(autojump_clock: MockClock) -> None:
    async with talking(patience=200) as talk:
        result = cancelled_unread(talk)
        id_ = await talk.agent.expect_start()
        await talk.agent.expect(wire.ExecStdin)
        await talk.agent.send(wire.ExecStdout(bytes(WINDOW)), id_)
        began = trio.current_time()
        result.scope.cancel()
        assert await talk.agent.expect(wire.Credit) == (id_, wire.Credit("stdout", WINDOW))
        assert trio.current_time() - began == 5
        await talk.agent.send(wire.ExecExited(0), id_)
        await result.wait()


async def test_unread_output_is_kept_if_the_exit_is_told_by_itself(autojump_clock: MockClock) -> None:
    async with talking(features=(wire.EXEC_ENDS,), patience=200) as talk:
        result = cancelled_unread(talk)
        id_ = await talk.agent.expect_start()
        await talk.agent.expect(wire.ExecStdin)
        await talk.agent.send(wire.ExecStdout(bytes(WINDOW)), id_)
        result.scope.cancel()
        assert (await talk.agent.expect(wire.ExecKill))[1].after_exit is True
        await trio.sleep(50)
        await talk.agent.nothing_more()
        await talk.agent.send(wire.ExecLeft(0), id_)
        assert (await talk.agent.expect(wire.ExecKill))[1].after_exit is wire.UNSET
        assert await talk.agent.expect(wire.Credit) == (id_, wire.Credit("stdout", WINDOW))
        await talk.agent.send(wire.ExecExited(0, alive=0), id_)
        await result.wait()


async def test_a_deliver_cancel_that_fails_leaves_no_process(autojump_clock: MockClock) -> None:
    async with talking() as talk:

        async def fail(process: GuestProcess) -> None:
            await trio.lowlevel.checkpoint()
            raise LookupError("mine")

        result = run(talk, stdin=None, deliver_cancel=fail)
        id_ = await talk.agent.expect_start()
        await talk.agent.expect(wire.ExecStdin)
        result.scope.cancel()
        assert await talk.agent.expect(wire.ExecSignal) == (id_, wire.ExecSignal(9))
        await talk.agent.send(wire.ExecExited(-1, signal=9), id_)
        with pytest.RaisesGroup(pytest.RaisesExc(LookupError, match="mine")):
            await result.wait()


async def test_warnings_made_errors_leave_no_process(autojump_clock: MockClock) -> None:
    async with talking() as talk:
        result = run(talk, stdin=None)
        id_ = await talk.agent.expect_start()
        await talk.agent.expect(wire.ExecStdin)
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            result.scope.cancel()
            await talk.agent.expect(wire.ExecSignal)
            assert await talk.agent.expect(wire.ExecSignal) == (id_, wire.ExecSignal(9))
            await talk.agent.send(wire.ExecExited(-1, signal=9), id_)
            with pytest.RaisesGroup(RuntimeWarning):
                await result.wait()


async def test_a_process_held_by_nursery_start_is_ended_too(autojump_clock: MockClock) -> None:
    async with talking() as talk:
        scope = trio.CancelScope()

        async def body() -> int:
            async with trio.open_nursery() as nursery:
                with scope:
                    process = await nursery.start(
                        lambda task_status: talk.guest.run_process(
                            ["cmd"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, task_status=task_status
                        )
                    )
                    await process.stdout.receive_some()
                nursery.cancel_scope.cancel()
            return int(process.returncode)

        result = begin(talk.nursery, body)
        id_ = await talk.agent.expect_start()
        await trio.testing.wait_all_tasks_blocked()
        scope.cancel()
        # More than half a window is unread and will not be read. It must not hold up the end.
        await talk.agent.expect(wire.ExecSignal)
        await talk.agent.send(wire.ExecStdout(bytes(600_000)), id_)
        assert (await talk.agent.expect(wire.Credit))[1].stream == "stdout"
        await talk.agent.send(wire.ExecExited(-1, signal=15), id_)
        assert await result.wait() == -15


async def test_a_start_that_is_cancelled_and_whose_guest_is_lost_then_is_a_cancellation() -> None:
    async with talking() as talk:
        result = run(talk, stdin=None)
        await talk.agent.expect(wire.ExecRequest)
        result.scope.cancel()
        await trio.testing.wait_all_tasks_blocked()
        assert not result.done.is_set()
        await talk.agent.close()
        assert await result.wait() is None
        assert result.scope.cancelled_caught


async def test_a_start_that_is_not_cancelled_and_whose_guest_is_lost_has_the_error() -> None:
    async with talking() as talk:
        result = run(talk, stdin=None)
        await talk.agent.expect(wire.ExecRequest)
        await talk.agent.close()
        with pytest.raises(GuestLostError, match="nobody knows why"):
            await result.wait()


async def test_a_cancelled_wait_leaves_the_process_alone(autojump_clock: MockClock) -> None:
    async with talking() as talk:
        result = begin(talk.nursery, lambda: opened_and_waited(talk))
        id_ = await talk.agent.expect_start()
        await talk.agent.expect(wire.ExecStdin)
        await trio.sleep(2)
        await talk.agent.nothing_more()
        await talk.agent.send(wire.ExecExited(4), id_)
        assert await result.wait() == 4


async def opened_and_waited(talk: Any) -> int:
    async with talk.guest.open_process(["cmd"], stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        with trio.move_on_after(1):
            await process.wait()
        return int(await process.wait())


# Cancellation at every checkpoint


class CancelAt(trio.abc.Instrument):
    """Cancels a scope just before one task's n-th step, and counts its steps."""

    def __init__(self, scope: trio.CancelScope, at: int | None) -> None:
        self.task: trio.lowlevel.Task | None = None
        self.steps = 0
        self._scope = scope
        self._at = at

    def before_task_step(self, task: trio.lowlevel.Task) -> None:
        if task is self.task:
            self.steps += 1
            if self.steps == self._at:
                self._scope.cancel()


async def _session(guest: Guest) -> None:
    await guest.ping()
    async with guest.open_process(
        ["one"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as process:
        await process.stdin.send_all(b"x" * 1000)
        await process.stdin.aclose()
        process.terminate()
        await process.wait()
        await process.stdout.receive_some()
    async with guest.open_process(["two"], stdout=subprocess.PIPE, stderr=subprocess.PIPE):
        await trio.sleep(0.5)
    with trio.move_on_after(1):
        await guest.run_process(["three"], stdin=b"abc", capture_stdout=True, capture_stderr=True)
    await guest.ping()


async def _sweep_once(at: int | None) -> int:
    """One session, cancelled just before its step number ``at``; returns how many steps it took."""
    seen: list[tuple[int, wire.Message]] = []
    scope = trio.CancelScope()
    cancel_at = CancelAt(scope, at)
    async with talking() as talk:
        talk.nursery.start_soon(lambda: talk.agent.serve(seen=seen))

        async def session() -> None:
            cancel_at.task = trio.lowlevel.current_task()
            with scope:
                await _session(talk.guest)

        trio.lowlevel.add_instrument(cancel_at)
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(session)
        finally:
            trio.lowlevel.remove_instrument(cancel_at)
        await trio.testing.wait_all_tasks_blocked()
        assert talk.guest.statistics().active_sessions == 0
        started = {id_ for id_, message in seen if isinstance(message, wire.ExecRequest)}
        ended = {id_ for id_, message in seen if isinstance(message, wire.ExecSignal)}
        assert started == ended
        assert await talk.guest.ping() >= 0
        assert len(talk.nursery.child_tasks) == 2  # the connection and the agent
    return cancel_at.steps


async def test_cancellation_at_every_checkpoint_leaves_no_process_and_no_session(
    autojump_clock: MockClock,
) -> None:
    steps = await _sweep_once(None)
    assert steps > 10
    for at in range(1, steps + 1):
        await _sweep_once(at)

"""Guests that are started by a `GuestSpec` of the user: its steps in order, and whose error comes out where."""

from __future__ import annotations

import subprocess
from contextlib import suppress
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest
import trio
import trio.testing

from tests.tools.limits import HANG
from tests.tools.peer import settle
from trio_console import GuestHost, GuestLostError, GuestSpec, open_guest, run_guest, serve_relay
from trio_console._guests import carrier
from trio_console._guests import host as _host
from trio_console.agent import AgentOptions, BootError, serve_agent

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable
    from pathlib import Path

    from trio.testing import MockClock


class Mine(GuestSpec):
    """A guest that is an agent in this program; each step is noted, and may be made to go wrong."""

    def __init__(
        self,
        *,
        before: Callable[[], Awaitable[object]] | None = None,
        after: Callable[[trio.abc.Stream], Awaitable[object]] | None = None,
        kill: Callable[[], object] | None = None,
        explain: Callable[[], Awaitable[str]] | None = None,
    ) -> None:
        self.before = before
        self.after = after
        self.kill = kill
        self.explain = explain
        self.steps: list[str] = []

    def __repr__(self) -> str:
        return "Mine()"

    async def run(self, *, task_status: trio.TaskStatus[GuestHost]) -> None:
        self.steps.append("started")
        try:
            if self.before is not None:
                await self.before()
            ours, theirs = trio.testing.memory_stream_pair()
            async with trio.open_nursery() as nursery:  # of its own
                nursery.start_soon(self._serve, theirs)
                task_status.started(GuestHost(ours, self._kill if self.kill else None, self.explain))
                if self.after is not None:
                    await self.after(theirs)
                nursery.cancel_scope.cancel()
        except* trio.Cancelled:
            self.steps.append("cancelled")
            raise
        finally:
            self.steps.append("ended")

    def _kill(self) -> None:
        assert self.kill is not None
        self.steps.append("killed")
        self.kill()

    async def _serve(self, stream: trio.abc.Stream) -> None:
        with suppress(BootError):
            await serve_agent(stream, options=AgentOptions(shutdown_grace=0.2))
        self.steps.append("console closed")


async def for_ever(_stream: object) -> None:
    await trio.sleep_forever()


async def at_once(_stream: object = None) -> None:
    await trio.lowlevel.checkpoint()


async def wrong(_stream: object = None) -> None:
    await trio.lowlevel.checkpoint()
    raise ZeroDivisionError("the user's own")


# In order


async def test_a_guest_of_a_users_spec_is_used_like_any() -> None:
    spec = Mine(after=for_ever)
    with trio.fail_after(HANG):
        async with open_guest(spec) as guest:
            assert (await guest.run_process(["echo", "hi"], capture_stdout=True)).stdout == b"hi\n"
    assert spec.steps == ["started", "console closed", "cancelled", "ended"]


async def test_a_spec_that_can_kill_has_the_grace_to_end_by_itself_when_its_console_is_closed() -> None:
    ended = trio.Event()
    spec = Mine(after=for_ever, kill=ended.set)

    async def end_with_the_agent(_stream: object) -> None:
        while "console closed" not in spec.steps:
            await trio.sleep(0.001)
        await settle()  # so that whoever does not wait for this goes on

    spec.after = end_with_the_agent
    with trio.fail_after(HANG):
        async with open_guest(spec):
            pass
    assert spec.steps == ["started", "console closed", "ended"]


async def test_a_spec_that_does_not_end_is_killed_and_then_cancelled(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(carrier, "_KILL_TIME", 0.01)
    spec = Mine(after=for_ever, kill=lambda: None)
    with trio.fail_after(HANG):
        async with open_guest(spec, grace=0.5):
            pass
    assert spec.steps == ["started", "console closed", "killed", "cancelled", "ended"]


async def test_a_spec_that_ends_when_it_is_killed_is_not_cancelled(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(carrier, "_KILL_TIME", HANG)
    ended = trio.Event()

    async def until_killed(_stream: object) -> None:
        await ended.wait()
        for _ in range(10):  # it takes a moment
            await trio.lowlevel.checkpoint()

    spec = Mine(after=until_killed, kill=ended.set)
    with trio.fail_after(HANG):
        async with open_guest(spec, grace=0.5):
            pass
    assert spec.steps == ["started", "console closed", "killed", "ended"]


# Errors


@pytest.mark.parametrize("use", ["open_guest", "run_guest", "serve_relay"])
async def test_what_is_raised_before_the_start_comes_out_as_it_is(use: str, tmp_path: Path) -> None:
    error = ZeroDivisionError("the user's own")

    async def fail() -> None:
        await trio.lowlevel.checkpoint()
        raise error

    spec = Mine(before=fail)
    with pytest.raises(ZeroDivisionError) as caught:
        if use == "open_guest":
            async with open_guest(spec):
                raise AssertionError("never here")
        elif use == "run_guest":
            await run_guest(spec)
        else:
            await serve_relay(spec, tmp_path / "agent.sock")
    assert caught.value is error


async def test_a_return_before_the_start_is_a_lost_guest() -> None:
    class Nothing(GuestSpec):
        async def run(self, *, task_status: trio.TaskStatus[GuestHost]) -> None:
            await trio.lowlevel.checkpoint()

    with pytest.raises(GuestLostError, match="returned without a console"):
        async with open_guest(Nothing()):
            raise AssertionError("never here")


async def test_a_spec_that_does_not_start_in_time_is_a_lost_guest_and_cancelled() -> None:
    spec = Mine(before=trio.sleep_forever)
    with pytest.raises(GuestLostError, match=r"not ready within 0\.05 seconds: Mine\(\) has no console yet"):
        async with open_guest(spec, launch_timeout=0.05):
            raise AssertionError("never here")
    assert spec.steps == ["started", "cancelled", "ended"]


@pytest.mark.parametrize("relayed", [False, True])
async def test_what_is_raised_after_the_start_is_the_cause_of_a_lost_guest(relayed: bool, tmp_path: Path) -> None:
    go = trio.Event()

    async def later(_stream: object) -> None:
        await go.wait()
        raise ZeroDivisionError("the user's own")

    options: dict[str, Any] = {"relay_path": tmp_path / "agent.sock"} if relayed else {}
    with trio.fail_after(HANG):
        async with open_guest(Mine(after=later), **options) as guest:
            go.set()
            with pytest.raises(GuestLostError, match="the user's own") as caught:
                await guest.run_process(["sleep", "1000"])
            cause = caught.value.__cause__
            if isinstance(cause, BaseExceptionGroup):  # of the spec's own nursery
                cause = cause.exceptions[0]
            assert isinstance(cause, ZeroDivisionError)


async def test_the_exception_of_a_block_passes_a_spec_with_a_nursery_unchanged() -> None:
    with trio.fail_after(HANG):
        with pytest.raises(subprocess.CalledProcessError):
            async with open_guest(Mine(after=for_ever)) as guest:
                await guest.run_process(["false"])


@pytest.mark.parametrize("kind", [KeyboardInterrupt, SystemExit])
async def test_an_interruption_in_a_spec_comes_out_alone(kind: type[BaseException]) -> None:
    go = trio.Event()

    async def interrupted(_stream: object) -> None:
        await go.wait()
        raise kind

    class Bare(GuestSpec):
        async def run(self, *, task_status: trio.TaskStatus[GuestHost]) -> None:
            ours, theirs = trio.testing.memory_stream_pair()
            async with trio.open_nursery() as nursery:
                nursery.start_soon(serve_agent, theirs)
                task_status.started(GuestHost(ours))
                try:
                    await interrupted(theirs)
                finally:
                    nursery.cancel_scope.cancel()

    with trio.fail_after(HANG), pytest.raises((kind, BaseExceptionGroup)) as caught:
        async with open_guest(Bare()) as guest:
            go.set()
            await guest.run_process(["sleep", "1000"])
    group = caught.value
    assert isinstance(group, kind) or (isinstance(group, BaseExceptionGroup) and group.subgroup(kind) is not None)


async def test_a_spec_that_returns_with_its_console_open_has_it_closed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_host, "_LAST_WORDS_TIME", 0.01)
    ours, theirs = trio.testing.memory_stream_pair()
    go = trio.Event()

    class Leaves(GuestSpec):
        async def run(self, *, task_status: trio.TaskStatus[GuestHost]) -> None:
            task_status.started(GuestHost(ours))
            await go.wait()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(serve_agent, theirs)
        with trio.fail_after(HANG):
            async with open_guest(Leaves()) as guest:
                go.set()
                with pytest.raises(GuestLostError):
                    await guest.run_process(["sleep", "1000"])


@pytest.mark.parametrize("reader", ["reads", "pauses"])
async def test_a_console_is_closed_behind_what_a_guest_has_said_last(
    reader: str, autojump_clock: MockClock
) -> None:
    # Its spec has ended. For five seconds bytes still come, or have come and are not read.
    ours, _ = trio.testing.memory_stream_pair()
    ended: Any = SimpleNamespace(
        wait_ended=trio.lowlevel.checkpoint, host=SimpleNamespace(machine=None, open_port=None, fork=None)
    )
    host = _host.Host(ended, ours)
    begin = trio.current_time()

    def progress() -> _host.Progress:
        passed = trio.current_time() - begin
        return _host.Progress(int(2 * min(passed, 5)) if reader == "reads" else 0, passed > 5 or reader == "reads")

    host.progress = progress
    async with trio.open_nursery() as nursery:
        nursery.start_soon(host.close_behind)
        await trio.sleep(4.9)
        await trio.testing.wait_all_tasks_blocked()
        await ours.send_all(b"still open")
        await trio.sleep(3)
        with pytest.raises(trio.ClosedResourceError):
            await ours.send_all(b"x")


@pytest.mark.parametrize("value", [None, 3, "console"])
async def test_a_start_without_a_host_is_an_error_of_the_spec(value: object) -> None:
    class Wrong(GuestSpec):
        async def run(self, *, task_status: trio.TaskStatus[Any]) -> None:
            task_status.started(value)

    with pytest.raises(TypeError, match="must be called with a GuestHost"):
        async with open_guest(Wrong()):
            raise AssertionError("never here")


async def test_a_second_start_is_an_error_of_the_spec() -> None:
    class Twice(GuestSpec):
        async def run(self, *, task_status: trio.TaskStatus[GuestHost]) -> None:
            ours, _ = trio.testing.memory_stream_pair()
            task_status.started(GuestHost(ours))
            task_status.started(GuestHost(ours))

    with pytest.raises(GuestLostError) as caught:
        async with open_guest(Twice()):
            raise AssertionError("never here")
    assert isinstance(caught.value.__cause__, RuntimeError)


# Its functions


async def test_what_kill_raises_costs_nobody_anything(caplog: pytest.LogCaptureFixture) -> None:
    def kill() -> None:
        raise ZeroDivisionError("the user's own")

    with trio.fail_after(HANG):
        async with open_guest(Mine(after=for_ever, kill=kill), grace=0.5) as guest:
            await guest.ping()
    assert "kill() raised" in caplog.text


async def test_what_explain_raises_costs_nobody_anything() -> None:
    async def explain() -> str:
        await trio.lowlevel.checkpoint()
        raise ZeroDivisionError("the user's own")

    async def end(stream: trio.abc.Stream) -> None:
        await go.wait()
        await trio.aclose_forcefully(stream)
        await trio.sleep_forever()

    go = trio.Event()
    with trio.fail_after(HANG):
        async with open_guest(Mine(after=end, explain=explain)) as guest:
            go.set()
            with pytest.raises(GuestLostError, match="finding out why failed"):
                await guest.run_process(["sleep", "1000"])


async def test_the_words_of_a_spec_are_in_the_reason() -> None:
    async def explain() -> str:
        await trio.lowlevel.checkpoint()
        return "the power is off"

    async def end(stream: trio.abc.Stream) -> None:
        await go.wait()
        await trio.aclose_forcefully(stream)
        await trio.sleep_forever()

    go = trio.Event()
    with trio.fail_after(HANG):
        async with open_guest(Mine(after=end, explain=explain)) as guest:
            go.set()
            with pytest.raises(GuestLostError, match="the power is off"):
                await guest.run_process(["sleep", "1000"])


async def test_a_spec_that_shields_itself_holds_up_the_leaving_and_a_warning_says_so(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(carrier, "_END_TIME", 0.01)
    free = trio.Event()

    class Shielded(GuestSpec):
        async def run(self, *, task_status: trio.TaskStatus[GuestHost]) -> None:
            ours, theirs = trio.testing.memory_stream_pair()
            async with trio.open_nursery() as nursery:
                nursery.start_soon(serve_agent, theirs)
                task_status.started(GuestHost(ours))
                with trio.CancelScope(shield=True):
                    await free.wait()
                nursery.cancel_scope.cancel()

    left = False

    async def use() -> None:
        nonlocal left
        async with open_guest(Shielded(), grace=0.5):
            pass
        left = True

    with trio.fail_after(HANG), pytest.warns(RuntimeWarning, match="must not shield itself without a deadline"):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(use)
            await trio.sleep(2)
            assert not left
            free.set()
    assert left


async def test_a_cancelled_start_cancels_the_spec(autojump_clock: MockClock) -> None:
    spec = Mine(before=trio.sleep_forever)
    with trio.move_on_after(1) as scope:
        async with open_guest(spec):
            raise AssertionError("never here")
    assert scope.cancelled_caught
    assert spec.steps == ["started", "cancelled", "ended"]


async def test_a_guest_that_is_started_after_the_cancellation_is_ended_too(autojump_clock: MockClock) -> None:
    ours, theirs = trio.testing.memory_stream_pair()

    class Late(GuestSpec):
        async def run(self, *, task_status: trio.TaskStatus[GuestHost]) -> None:
            with trio.CancelScope(shield=True):
                await trio.sleep(2)
            task_status.started(GuestHost(ours))
            await trio.sleep_forever()

    with trio.move_on_after(1):
        async with open_guest(Late()):
            raise AssertionError("never here")
    with trio.fail_after(HANG):
        assert await theirs.receive_some() == b""


# In a task


async def test_a_guest_in_a_task_is_used_until_it_is_shut_down() -> None:
    with trio.fail_after(HANG):
        async with trio.open_nursery() as nursery:
            guest = await nursery.start(run_guest, Mine(after=for_ever))
            await guest.ping()
            await guest.shutdown()


async def test_a_guest_in_a_task_that_is_lost_raises() -> None:
    async def end(stream: trio.abc.Stream) -> None:
        await go.wait()
        await trio.aclose_forcefully(stream)

    go = trio.Event()
    with trio.fail_after(HANG), pytest.raises(ExceptionGroup) as caught:
        async with trio.open_nursery() as nursery:
            await nursery.start(run_guest, Mine(after=end))
            go.set()
    assert isinstance(caught.value.exceptions[0], GuestLostError)


async def test_a_guest_in_a_task_that_is_cancelled_is_torn_down() -> None:
    spec = Mine(after=for_ever)
    with trio.fail_after(HANG):
        async with trio.open_nursery() as nursery:
            guest = await nursery.start(run_guest, spec)
            nursery.cancel_scope.cancel()
    assert spec.steps == ["started", "console closed", "cancelled", "ended"]
    with pytest.raises(GuestLostError):
        await guest.ping()

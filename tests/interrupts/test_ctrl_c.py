"""Ctrl-C at known moments: where it must not be raised, and which endings it must not cut short."""

from __future__ import annotations

import ast
import pathlib
import signal
import socket
from contextlib import asynccontextmanager, nullcontext
from typing import TYPE_CHECKING

import pytest
import trio
import trio.testing

import trio_console
from tests.tools.leftovers import threads
from trio_console import GuestProcess, ProcessGuest, open_console, open_guest, serve_relay
from trio_console._trio.ending import see_through
from trio_console._trio.interrupts import interrupt_safe
from trio_console.testing import Duplicate, Fault, FaultyGuest, ScriptedGuest, ScriptedProcess, nothing_left_behind

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable
    from pathlib import Path

    from trio_console._guests.spec import GuestSpec

PACKAGE = pathlib.Path(trio_console.__file__).parent


@trio.lowlevel.enable_ki_protection
def press_ctrl_c() -> None:
    """Deliver `KeyboardInterrupt` to the main task, where it waits."""
    signal.raise_signal(signal.SIGINT)


def pressing(when: Callable[[], Awaitable[object]], times: int = 1) -> None:
    """Press Ctrl-C when ``when`` has returned and all tasks sleep."""

    async def press() -> None:
        await when()
        for _ in range(times):
            await trio.testing.wait_all_tasks_blocked()
            press_ctrl_c()

    trio.lowlevel.spawn_system_task(press)


# Where it must not be raised


def test_a_context_managers_two_ends_are_protected_and_its_body_is_not() -> None:
    seen: list[bool] = []
    look = trio.lowlevel.currently_ki_protected

    @interrupt_safe
    @asynccontextmanager
    async def managed() -> AsyncIterator[int]:
        seen.append(look())
        try:
            yield 7
        finally:
            seen.append(look())

    async def main() -> None:
        async with managed() as value:
            seen.append(look())
        assert value == 7

    trio.run(main)
    assert seen == [True, False, True]


def test_every_context_manager_of_the_package_is_protected() -> None:
    bare = []
    for path in sorted(PACKAGE.rglob("*.py")):
        if {"agent", "_cli"} & set(path.parts):
            continue  # programs of their own, with their own signals
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.AsyncFunctionDef):
                names = [ast.unparse(one) for one in node.decorator_list]
                if "asynccontextmanager" in names and names[0] != "interrupt_safe":
                    bare.append(f"{path.name}:{node.name}")
    assert not bare


# Endings that it must not cut short


@pytest.mark.parametrize("times", [1, 2])
def test_an_ending_is_seen_through_and_ctrl_c_comes_out_once(times: int) -> None:
    done: list[str] = []

    async def main() -> None:
        begun = trio.Event()

        async def ending(patience: trio.CancelScope) -> None:
            begun.set()
            with patience:
                await trio.sleep_forever()
            for _ in range(3):
                await trio.lowlevel.checkpoint()
            done.append("all")

        pressing(begun.wait, times)
        # One alone would take for ever.
        await see_through(ending, grace=1000, hurried=0.01 if times == 1 else 1000)

    with pytest.raises(KeyboardInterrupt):
        trio.run(main)
    assert done == ["all"]


@pytest.mark.parametrize("error", [ValueError("the ending's"), SystemExit(3)])
def test_ctrl_c_comes_out_of_an_ending_that_fails(error: BaseException) -> None:
    left = RuntimeError("the block's")

    async def main() -> None:
        begun = trio.Event()

        async def ending(patience: trio.CancelScope) -> None:
            begun.set()
            with patience:
                await trio.sleep_forever()
            raise error

        pressing(begun.wait)
        try:
            raise left
        finally:
            await see_through(ending, grace=1000, hurried=0.01)  # noqa: ASYNC102  (shields itself)

    with pytest.raises(KeyboardInterrupt) as caught:
        trio.run(main)
    assert caught.value.__context__ is error
    assert error.__context__ is left


def test_an_ending_does_not_begin_with_the_ctrl_c_that_was_pressed_before() -> None:
    done: list[str] = []

    @trio.lowlevel.enable_ki_protection
    async def main() -> None:
        async def ending(_patience: trio.CancelScope) -> None:
            await trio.lowlevel.checkpoint()
            done.append("all")

        press_ctrl_c()
        await see_through(ending)

    with pytest.raises(KeyboardInterrupt):
        trio.run(main)
    assert done == ["all"]


@pytest.mark.parametrize("times", [1, 2])
@pytest.mark.parametrize("error", [None, ValueError("body")], ids=["nothing", "an error"])
def test_ctrl_c_while_a_console_is_left_ends_it(times: int, error: Exception | None) -> None:
    before = threads()
    ours, theirs = socket.socketpair()

    async def main() -> None:
        async with open_console(ours, max_bytes=4096, grace=1000) as channel:
            pressing(channel._wait_closed, times)
            with trio.move_on_after(0.05):
                while True:
                    await channel.send_all(bytes(4096))  # nobody reads
            if error is not None:
                raise error

    with theirs:
        with pytest.raises(KeyboardInterrupt) as caught:
            trio.run(main)
        assert threads() == before
    if error is not None:
        context: BaseException | None = caught.value
        while context is not None and context is not error:
            context = context.__context__
        assert context is error


@pytest.mark.parametrize("times", [1, 2])
@pytest.mark.parametrize("make", [ScriptedGuest, ProcessGuest])
def test_ctrl_c_while_a_guest_that_hangs_is_left_ends_it(make: Callable[[], GuestSpec], times: int) -> None:
    async def main() -> None:
        faulty = FaultyGuest(guest=make())
        async with open_guest(faulty, grace=1000) as guest:
            await guest.ping()
            faulty.stall()

            async def being_left() -> None:
                while guest._connection._expected is None:
                    await trio.lowlevel.checkpoint()

            pressing(being_left, times)

    with nothing_left_behind(), pytest.raises(KeyboardInterrupt):
        trio.run(main)


async def ignore_sigterm(process: ScriptedProcess) -> int:
    await process.start()
    async for _ in process.signals():
        pass
    return 0


@pytest.mark.parametrize("times", [1, 2, 3])
@pytest.mark.parametrize(
    "error", [None, ValueError("mine"), SystemExit(3)], ids=["in order", "failing", "exiting"]
)
def test_ctrl_c_while_a_cancelled_command_is_being_ended_comes_out_alone(
    times: int, error: BaseException | None
) -> None:
    async def deliver(process: GuestProcess) -> None:
        process.terminate()
        try:
            if times > 1:
                await trio.sleep_forever()
        finally:
            process.kill()
            if error is not None:
                raise error

    async def main() -> None:
        async with open_guest(ScriptedGuest(ignore_sigterm), grace=1000) as guest:
            started = trio.Event()

            class Status:
                def started(self, _process: object) -> None:
                    started.set()

            pressing(started.wait, times)
            await guest.run_process(["stubborn"], stdin=None, deliver_cancel=deliver, task_status=Status())

    if times == 1 and isinstance(error, ValueError):
        with nothing_left_behind(), pytest.RaisesGroup(ValueError):  # as from trio
            trio.run(main)
        return
    alone = SystemExit if times == 1 and error is not None else KeyboardInterrupt
    with nothing_left_behind(), pytest.raises(alone):
        trio.run(main)


# In order all the same


async def leave_a_guest(guest: GuestSpec, _path: Path, leave: Callable[[], Awaitable[None]]) -> None:
    async with open_guest(guest):
        await leave()


async def leave_a_guest_with_a_relay(guest: GuestSpec, path: Path, leave: Callable[[], Awaitable[None]]) -> None:
    async with open_guest(guest, relay_path=path):
        await leave()


async def leave_a_relay(guest: GuestSpec, path: Path, leave: Callable[[], Awaitable[None]]) -> None:
    """Press it from outside, because the relay has no block of the user."""
    failed: list[BaseException] = []
    async with trio.open_nursery() as nursery:
        await nursery.start(serve_relay, guest, path)
        try:
            await leave()
        except BaseException as exc:
            failed.append(exc)
        nursery.cancel_scope.cancel()
    if failed:
        raise failed[0]


async def in_order() -> None:
    await trio.lowlevel.checkpoint()


async def by_an_error() -> None:
    raise ValueError("mine")


async def by_ctrl_c() -> None:
    press_ctrl_c()
    await trio.sleep_forever()


async def by_cancellation() -> None:
    await trio.sleep_forever()


@pytest.mark.parametrize("leave", [in_order, by_an_error, by_ctrl_c, by_cancellation])
@pytest.mark.parametrize("session", [leave_a_guest, leave_a_guest_with_a_relay, leave_a_relay])
def test_a_guest_is_told_to_shut_down_however_it_is_left(
    session: Callable[..., Awaitable[None]], leave: Callable[[], Awaitable[None]], tmp_path: Path
) -> None:
    told = Fault(Duplicate(), "core.shutdown")
    faulty = FaultyGuest([told], guest=ScriptedGuest())

    async def main() -> None:
        with trio.CancelScope() as scope:
            if leave is by_cancellation:

                async def cancel() -> None:
                    await trio.testing.wait_all_tasks_blocked(0.05)
                    scope.cancel()

                trio.lowlevel.spawn_system_task(cancel)
            await session(faulty, tmp_path / "socket", leave)

    raised = {by_an_error: ValueError, by_ctrl_c: KeyboardInterrupt}.get(leave)
    with nothing_left_behind(), pytest.raises(raised) if raised else nullcontext():
        trio.run(main)
    assert [one.fault for one in faulty.fired] == [told]

"""A hidden nursery: the body's own exception is raised unchanged."""

from __future__ import annotations

import signal
from typing import Any

import pytest
import trio
import trio.testing

from trio_console._trio.nursery import hidden_nursery


class SpecialGroup(ExceptionGroup[Exception]):
    """A group that means something to its author."""


@pytest.mark.parametrize(
    "error",
    [
        ValueError(1),
        KeyboardInterrupt(),
        ExceptionGroup("mine", [ValueError(1)]),
        ExceptionGroup("two", [ValueError(1), KeyError(2)]),
        SpecialGroup("special", [ValueError(1)]),
    ],
    ids=["error", "interrupt", "group", "group_of_two", "own_class"],
)
@pytest.mark.filterwarnings("ignore::trio.TrioDeprecationWarning")
@pytest.mark.parametrize("strict", [True, False])
def test_what_the_body_raises_comes_out_as_it_is(error: BaseException, strict: bool) -> None:
    async def main() -> None:
        async with hidden_nursery() as nursery:
            nursery.start_soon(trio.sleep_forever)
            raise error

    error.__context__ = None
    with pytest.raises(type(error)) as caught:
        trio.run(main, strict_exception_groups=strict)
    assert caught.value is error
    assert error.__context__ is None


async def test_a_failing_background_task_cancels_the_body_and_comes_out_alone() -> None:
    async def fails() -> None:
        await trio.lowlevel.checkpoint()
        raise KeyError("background")

    with pytest.raises(KeyError, match="background"):
        async with hidden_nursery() as nursery:
            nursery.start_soon(fails)
            await trio.sleep_forever()


async def test_when_both_fail_neither_error_is_lost() -> None:
    async def fails() -> None:
        try:
            await trio.sleep_forever()
        finally:
            raise KeyError("background")

    with pytest.raises(ExceptionGroup) as caught:
        async with hidden_nursery() as nursery:
            nursery.start_soon(fails)
            await trio.lowlevel.checkpoint()
            raise ValueError("body")
    assert [type(exc) for exc in caught.value.exceptions] == [ValueError, KeyError]


async def test_a_cancellation_from_outside_passes() -> None:
    with trio.CancelScope() as scope:
        async with hidden_nursery() as nursery:
            nursery.start_soon(trio.sleep_forever)
            scope.cancel()
            await trio.sleep_forever()
    assert scope.cancelled_caught


async def test_an_error_beside_a_cancellation_passes_without_it() -> None:
    with pytest.raises(ExceptionGroup) as caught:
        with trio.CancelScope() as scope:
            async with hidden_nursery():
                async with trio.open_nursery() as inner:
                    inner.start_soon(trio.sleep_forever)
                    scope.cancel()
                    raise ValueError("mine")
    assert caught.group_contains(ValueError, match="mine")
    assert not caught.group_contains(trio.Cancelled)


async def test_the_callers_own_cancel_ends_it_quietly() -> None:
    async with hidden_nursery() as nursery:
        nursery.start_soon(trio.sleep_forever)
        nursery.cancel_scope.cancel()


async def test_an_error_beside_cancelled_background_tasks_comes_out_as_it_is() -> None:
    with pytest.raises(ValueError, match="mine"), trio.CancelScope() as scope:
        async with hidden_nursery() as nursery:
            nursery.start_soon(trio.sleep_forever)
            await trio.testing.wait_all_tasks_blocked()
            scope.cancel()
            with trio.CancelScope(shield=True):
                await trio.testing.wait_all_tasks_blocked()
            raise ValueError("mine")


# Ctrl-C


@trio.lowlevel.enable_ki_protection
async def press_ctrl_c() -> None:
    """Deliver `KeyboardInterrupt` to the main task, where it waits."""
    signal.raise_signal(signal.SIGINT)


async def fails_when_cancelled() -> None:
    try:
        await trio.sleep_forever()
    finally:
        raise KeyError("background")


@pytest.mark.parametrize("error", [None, ValueError("body")], ids=["nothing", "an error"])
@pytest.mark.parametrize("background", [trio.sleep_forever, fails_when_cancelled])
@pytest.mark.parametrize("presses", [1, 2])
def test_a_ctrl_c_while_the_tasks_are_waited_for_comes_out_alone(
    error: Exception | None, background: Any, presses: int
) -> None:
    async def main() -> None:
        async with hidden_nursery() as nursery:
            nursery.start_soon(background)

            @nursery.start_soon
            async def _press() -> None:
                with trio.CancelScope(shield=True):
                    await trio.testing.wait_all_tasks_blocked()
                    for _ in range(presses):
                        await press_ctrl_c()
                        await trio.testing.wait_all_tasks_blocked()

            if error is not None:
                raise error

    with pytest.raises(KeyboardInterrupt):
        trio.run(main)


async def test_a_background_tasks_exit_comes_out_alone() -> None:
    async def exits() -> None:
        await trio.lowlevel.checkpoint()
        raise SystemExit(3)

    with pytest.raises(SystemExit):
        async with hidden_nursery() as nursery:
            nursery.start_soon(fails_when_cancelled)
            nursery.start_soon(exits)
            await trio.sleep_forever()

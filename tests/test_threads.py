"""What a thread hands back: results, and errors without the frames that nobody needs."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from trio_console._errors import ProtocolError, without_frames
from trio_console._trio.threads import in_thread

if TYPE_CHECKING:
    from types import TracebackType


def raising(error: BaseException, cause: BaseException | None = None) -> Any:
    def deep_in_the_thread() -> None:
        if cause is None:
            raise error
        try:
            raise cause
        except type(cause):
            raise error from cause

    return deep_in_the_thread


def functions(trace: TracebackType | None) -> list[str]:
    names = []
    while trace is not None:
        names.append(trace.tb_frame.f_code.co_name)
        trace = trace.tb_next
    return names


async def test_a_fault_in_a_thread_keeps_its_traceback() -> None:
    with pytest.raises(ZeroDivisionError) as caught:
        await in_thread("for a test", raising(ZeroDivisionError()))
    assert "deep_in_the_thread" in functions(caught.tb)


@pytest.mark.parametrize("error", [FileNotFoundError(2, "no"), ProtocolError("no", kind="bad_frame")])
async def test_an_expected_error_comes_without_the_frames_of_the_thread(error: Exception) -> None:
    with pytest.raises(type(error)) as caught:
        await in_thread("for a test", raising(error, cause=OSError(1, "why")))
    assert "deep_in_the_thread" not in functions(caught.tb)
    assert caught.value is error
    assert isinstance(error.__cause__, OSError)
    assert error.__cause__.__traceback__ is None


def test_a_group_and_all_in_it_lose_their_frames() -> None:
    inner, context, group = ValueError(), KeyError(), ExceptionGroup("", [ValueError()])
    try:
        try:
            raise context
        except KeyError:
            raise inner  # noqa: B904
    except ValueError:
        pass
    group = ExceptionGroup("", [inner])
    try:
        raise group
    except ExceptionGroup:
        pass
    assert without_frames(group) is group
    assert [one.__traceback__ for one in (group, inner, context)] == [None] * 3


def test_causes_in_a_circle_come_to_an_end() -> None:
    one, other = ValueError(), ValueError()
    one.__cause__, other.__cause__ = other, one
    assert without_frames(one) is one

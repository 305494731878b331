"""Every asynchronous test here is bounded, so that a hang is a failure and not a stopped run."""

from __future__ import annotations

import functools
import inspect
import pathlib
from typing import Any

import pytest
import trio

#: Seconds; none should come near it.
BOUND = 40.0


def bounded(test: Any) -> Any:
    @functools.wraps(test)
    async def run(*args: Any, **kwargs: Any) -> None:
        with trio.fail_after(BOUND):
            await test(*args, **kwargs)

    return run


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    here = pathlib.Path(__file__).parent
    for item in items:
        if here in item.path.parents and isinstance(item, pytest.Function):
            if inspect.iscoroutinefunction(item.obj):
                item.obj = bounded(item.obj)

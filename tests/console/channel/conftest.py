"""A time limit for every asynchronous test in this folder, so that a hang is a failure and does not stop all."""

from __future__ import annotations

import functools
import inspect
import pathlib
import select
from typing import TYPE_CHECKING, Any

import pytest
import trio

from tests.console.channel.consoles import DEVICES
from tests.tools.limits import HANG
from trio_console._console import channel as _channel
from trio_console._console import devices as _devices

if TYPE_CHECKING:
    from trio_console._console.backend import ConsoleSharedState


def bounded(test: Any) -> Any:
    @functools.wraps(test)
    async def run(*args: Any, **kwargs: Any) -> None:
        with trio.fail_after(HANG):
            await test(*args, **kwargs)

    return run


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    here = pathlib.Path(__file__).parent
    for item in items:
        if here in item.path.parents and isinstance(item, pytest.Function):
            if inspect.iscoroutinefunction(item.obj):
                item.obj = bounded(item.obj)


@pytest.fixture(autouse=True)
def _watched_devices(monkeypatch: pytest.MonkeyPatch) -> None:
    real_init = _channel._Workers.__init__
    real_sleep = _devices.FdDevice._sleep

    def init(self: Any, device: Any, shared: ConsoleSharedState) -> None:
        DEVICES[shared] = device
        real_init(self, device, shared)

    def sleep(self: Any, fd: int, events: int) -> bool:
        if events == select.POLLOUT:
            self.blocked_writing = True
        try:
            return real_sleep(self, fd, events)
        finally:
            if events == select.POLLOUT:
                self.blocked_writing = False

    monkeypatch.setattr(_channel._Workers, "__init__", init)
    monkeypatch.setattr(_devices.FdDevice, "_sleep", sleep)

"""A console that cannot be opened: whether the device is closed or stays the caller's."""

from __future__ import annotations

import errno

import pytest

from trio_console import open_console
from trio_console._console import channel as _channel


class Device:
    """A device of a user's, of which only the end is looked at."""

    def __init__(self) -> None:
        self.closed = 0

    def read(self, max_bytes: int) -> bytes:
        raise AssertionError

    def write(self, data: memoryview, /) -> int:
        raise AssertionError

    def close_write(self) -> None:
        raise AssertionError

    def close(self) -> None:
        self.closed += 1


async def test_a_device_is_closed_when_no_descriptors_can_be_had(monkeypatch: pytest.MonkeyPatch) -> None:
    def no_descriptors(*_bounds: int) -> None:
        raise OSError(errno.EMFILE, "Too many open files")

    monkeypatch.setattr(_channel, "ConsoleSharedState", no_descriptors)
    device = Device()
    with pytest.raises(OSError, match="Too many open files"):
        async with open_console(device):
            raise AssertionError
    assert device.closed == 1

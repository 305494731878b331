"""What tests of a console's users need: consoles without a machine behind them.

* `console_stream_pair` gives both ends of one console to the same trio program.
* `FakeConsoleDevice` drives the guest's end with threads, as a virtual machine monitor does.

The device needs no event loop: trio is imported when `console_stream_pair` is first used, and not before.

This module only re-exports, and must not know how anything is done.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from ._device_threads import DESCRIPTORS, PAGE_SIZE, WRITE_SIZE, DeviceBackend
from ._fake_device import FakeConsoleDevice, FakeDeviceStatistics

if TYPE_CHECKING:
    from ._pair import console_stream_pair

__all__ = [
    "DESCRIPTORS",
    "PAGE_SIZE",
    "WRITE_SIZE",
    "DeviceBackend",
    "FakeConsoleDevice",
    "FakeDeviceStatistics",
    "console_stream_pair",
]


def __getattr__(name: str) -> object:
    if name == "console_stream_pair":
        from ._pair import console_stream_pair

        globals()[name] = console_stream_pair
        return console_stream_pair
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})

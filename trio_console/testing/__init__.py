"""Tools for testing code that uses guests and consoles: guests and consoles without a machine behind them.

* `FaultyGuest` is a guest that misbehaves on demand: its console stalls, loses or corrupts frames, or ends.
* `ScriptedGuest` is a guest whose commands are functions of the test.
* `console_stream_pair` gives both ends of one console to the same trio program.
* `FakeConsoleDevice` drives the guest's end with threads, as a virtual machine monitor does.
* `nothing_left_behind` fails if a block leaves a thread, a descriptor or a child process.
* `trio_console.testing.pytest_plugin` has pytest fixtures for all of them.

`FakeConsoleDevice` and `nothing_left_behind` need no event loop. Each name is imported when it is first used; only
the names that need trio import trio, and only the plugin imports pytest.

This module only re-exports names.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from trio_console.testing._device_threads import DESCRIPTORS as DESCRIPTORS
    from trio_console.testing._device_threads import PAGE_SIZE as PAGE_SIZE
    from trio_console.testing._device_threads import WRITE_SIZE as WRITE_SIZE
    from trio_console.testing._device_threads import DeviceBackend as DeviceBackend
    from trio_console.testing._fake_device import FakeConsoleDevice as FakeConsoleDevice
    from trio_console.testing._fake_device import FakeDeviceStatistics as FakeDeviceStatistics
    from trio_console.testing._faults import Corrupt as Corrupt
    from trio_console.testing._faults import Disconnect as Disconnect
    from trio_console.testing._faults import Drop as Drop
    from trio_console.testing._faults import Duplicate as Duplicate
    from trio_console.testing._faults import Fault as Fault
    from trio_console.testing._faults import FiredFault as FiredFault
    from trio_console.testing._faults import Flood as Flood
    from trio_console.testing._faults import LineStatistics as LineStatistics
    from trio_console.testing._faults import Reorder as Reorder
    from trio_console.testing._faults import Signal as Signal
    from trio_console.testing._faults import Stall as Stall
    from trio_console.testing._faults import Truncate as Truncate
    from trio_console.testing._faulty_guest import FaultyGuest as FaultyGuest
    from trio_console.testing._left_behind import nothing_left_behind as nothing_left_behind
    from trio_console.testing._pair import console_stream_pair as console_stream_pair
    from trio_console.testing._scripted_guest import Exits as Exits
    from trio_console.testing._scripted_guest import ScriptedGuest as ScriptedGuest
    from trio_console.testing._scripted_process import ScriptedProcess as ScriptedProcess

__all__ = [
    "DESCRIPTORS",
    "PAGE_SIZE",
    "WRITE_SIZE",
    "Corrupt",
    "DeviceBackend",
    "Disconnect",
    "Drop",
    "Duplicate",
    "Exits",
    "FakeConsoleDevice",
    "FakeDeviceStatistics",
    "Fault",
    "FaultyGuest",
    "FiredFault",
    "Flood",
    "LineStatistics",
    "Reorder",
    "ScriptedGuest",
    "ScriptedProcess",
    "Signal",
    "Stall",
    "Truncate",
    "console_stream_pair",
    "nothing_left_behind",
]

#: The module of each public name. The block above says the same for type checkers; a test compares the two.
_LAZY: Final = {
    "DESCRIPTORS": "_device_threads",
    "PAGE_SIZE": "_device_threads",
    "WRITE_SIZE": "_device_threads",
    "Corrupt": "_faults",
    "DeviceBackend": "_device_threads",
    "Disconnect": "_faults",
    "Drop": "_faults",
    "Duplicate": "_faults",
    "Exits": "_scripted_guest",
    "FakeConsoleDevice": "_fake_device",
    "FakeDeviceStatistics": "_fake_device",
    "Fault": "_faults",
    "FaultyGuest": "_faulty_guest",
    "FiredFault": "_faults",
    "Flood": "_faults",
    "LineStatistics": "_faults",
    "Reorder": "_faults",
    "ScriptedGuest": "_scripted_guest",
    "ScriptedProcess": "_scripted_process",
    "Signal": "_faults",
    "Stall": "_faults",
    "Truncate": "_faults",
    "console_stream_pair": "_pair",
    "nothing_left_behind": "_left_behind",
}


def __getattr__(name: str) -> object:
    module = _LAZY.get(name)
    if module is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value: object = getattr(import_module(f"{__name__}.{module}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})

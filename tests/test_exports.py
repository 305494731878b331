"""The public interface: its names, their modules, and the modules that are imported at their use."""

from __future__ import annotations

import ast
import importlib
import inspect
import pathlib
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

import trio_console
import trio_console.agent
import trio_console.testing
from tests.tools.limits import HANG

if TYPE_CHECKING:
    from types import ModuleType

#: The doors that open lazily.
LAZY = [trio_console, trio_console.testing]

#: Names that need no event loop.
THREAD_SIDE = ["AgentConsoleBackend", "ChunkRing", "ConsoleSharedState", "WakePipe"]

DOORS = [trio_console, trio_console.agent, trio_console.testing]

PUBLIC = [(door, name) for door in DOORS for name in door.__all__]


def names_for_type_checkers(door: ModuleType) -> dict[str, str]:
    """What the block for type checkers imports: name to module."""
    assert door.__file__
    found = {}
    for node in ast.parse(pathlib.Path(door.__file__).read_text(encoding="utf-8")).body:
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
            for statement in node.body:
                assert isinstance(statement, ast.ImportFrom)
                for alias in statement.names:
                    assert alias.asname == alias.name, "only `import X as X` makes a name public for type checkers"
                    found[alias.name] = (statement.module or "").removeprefix(door.__name__ + ".")
    return found


@pytest.mark.parametrize("door", LAZY, ids=lambda door: door.__name__)
def test_what_type_checkers_see_is_what_is_there(door: ModuleType) -> None:
    named = names_for_type_checkers(door)
    assert {name: module for name, module in named.items() if module != door.__name__} == door._LAZY


@pytest.mark.parametrize("door", LAZY, ids=lambda door: door.__name__)
def test_every_public_name_is_reachable_and_no_other_is_lazy(door: ModuleType) -> None:
    assert set(door._LAZY) <= set(door.__all__)
    for name in door.__all__:
        assert getattr(door, name) is not None
    assert set(door.__all__) <= set(dir(door))


@pytest.mark.parametrize("door", DOORS, ids=lambda door: door.__name__)
def test_all_is_sorted_and_without_repetition(door: object) -> None:
    names = door.__all__  # type: ignore[attr-defined]
    assert sorted(set(names)) == sorted(names)
    assert all(not name.startswith("_") for name in names)


def test_an_unknown_name_is_an_attribute_error_that_says_so() -> None:
    with pytest.raises(AttributeError, match="no attribute 'open_gust'"):
        trio_console.open_gust  # type: ignore[attr-defined]  # noqa: B018
    with pytest.raises(ImportError):
        from trio_console import open_gust  # type: ignore[attr-defined]  # noqa: F401


def test_a_lazy_name_is_looked_up_once() -> None:
    first = trio_console.open_guest
    assert vars(trio_console)["open_guest"] is first


@pytest.mark.parametrize(("door", "name"), PUBLIC, ids=lambda value: getattr(value, "__name__", value))
def test_every_public_name_has_a_docstring(door: object, name: str) -> None:
    value = getattr(door, name)
    if inspect.isclass(value) or inspect.isroutine(value):
        assert inspect.getdoc(value), name
        assert value.__doc__, f"{name} has only an inherited docstring"


@pytest.mark.parametrize(("door", "name"), PUBLIC, ids=lambda value: getattr(value, "__name__", value))
def test_every_public_method_has_a_docstring(door: object, name: str) -> None:
    value = getattr(door, name)
    # (`DeviceBackend` only repeats the methods of a backend, and refers to it.)
    if inspect.isclass(value) and name != "DeviceBackend":
        for attribute, member in inspect.getmembers(value):
            if not attribute.startswith("_") and (inspect.isroutine(member) or isinstance(member, property)):
                assert inspect.getdoc(member), f"{name}.{attribute}"


@pytest.mark.parametrize("name", [*THREAD_SIDE, "ProtocolError", "UnsupportedByPeer", "GuestDevice"])
def test_the_thread_side_is_public(name: str) -> None:
    assert name in trio_console.__all__


USE_THE_THREAD_SIDE = """
import sys
import trio_console
from trio_console import AgentConsoleBackend, ChunkRing, ConsoleSharedState, WakePipe

with WakePipe() as wake:
    wake.wake()
    assert wake.wait(1)
ring = ChunkRing()
ring.push(b"abc")
assert ring.pop() == b"abc"
shared = ConsoleSharedState()
backend = AgentConsoleBackend(shared)
assert backend.write(b"abc") == 3
try:
    backend.read(10)
except BlockingIOError:
    pass
"""


def run_python(code: str) -> None:
    subprocess.run([sys.executable, "-W", "error", "-c", code], check=True, timeout=HANG)


def test_using_the_thread_side_does_not_import_trio() -> None:
    run_python(USE_THE_THREAD_SIDE + "assert 'trio' not in sys.modules, 'trio was imported'\n")


USE_THE_THREAD_SIDE_OF_TESTING = """
import sys
import trio_console, trio_console.testing
from trio_console.testing import FakeConsoleDevice, Fault, Stall, nothing_left_behind

state = trio_console.ConsoleSharedState()
with nothing_left_behind(), FakeConsoleDevice(state) as device:
    device.guest_write(b"abc")
Fault(Stall(), "core.ready")
"""


def test_using_the_thread_side_of_testing_imports_neither_trio_nor_pytest() -> None:
    run_python(USE_THE_THREAD_SIDE_OF_TESTING + "assert not {'trio', 'pytest'} & set(sys.modules)\n")


def test_no_name_of_testing_imports_pytest() -> None:
    code = "import sys; from trio_console.testing import *; assert 'pytest' not in sys.modules"
    run_python(code)


def test_a_guest_without_a_relay_needs_neither_the_relay_nor_machines() -> None:
    loaded = "[name for name in sys.modules if 'trio_console._relay.s' in name or '_guests.machine' in name]"
    run_python(
        f"import sys, trio_console as t\nt.open_guest, t.ProcessGuest, t.connect_guest\nassert not {loaded}"
    )


def test_the_first_use_of_another_name_does() -> None:
    run_python("import sys, trio_console\ntrio_console.open_guest\nassert 'trio' in sys.modules\n")


@pytest.mark.parametrize(
    "name", ["_session.guest", "_guests.process", "_open.guest", "_open.relay", "_relay.serve", "agent", "testing"]
)
def test_each_module_can_be_the_first_that_is_imported(name: str) -> None:
    run_python(f"import trio_console.{name}")


@pytest.mark.parametrize("door", LAZY, ids=lambda door: door.__name__)
def test_every_lazy_name_is_where_it_is_said_to_be(door: ModuleType) -> None:
    for name, module in door._LAZY.items():
        assert hasattr(importlib.import_module(f"{door.__name__}.{module}"), name)

"""The imports that are allowed between modules, as data, compared with the source.

A module belongs to a room. Rooms are listed from the ground up, and imports only point down: a room may import
itself and the rooms named for it. A new module fails the first test until it has been given a room.
"""

from __future__ import annotations

import ast
import functools
import graphlib
import pathlib
import re
from typing import TYPE_CHECKING, NamedTuple

import pytest

import trio_console

if TYPE_CHECKING:
    from collections.abc import Iterator
    from collections.abc import Set as AbstractSet

PACKAGE = pathlib.Path(trio_console.__file__).parent
TESTS = pathlib.Path(__file__).parent


class Room(NamedTuple):
    """Modules (a package stands for all in it), what they import, and what they only name in annotations."""

    modules: AbstractSet[str]
    below: AbstractSet[str] = frozenset()
    trio: bool = True
    named: AbstractSet[str] = frozenset()


ROOMS = {
    "ground": Room(
        {
            "_addresses",
            "_errors",
            "_states",
            "_buffers",
            "_version",
            "_forked",
            "_machine",
            "_processes",
            "_rank",
            "_standard",
            "_warden",
        },
        trio=False,
    ),
    # The files of an agent that is to run elsewhere.
    "bundle": Room({"_bundle"}, {"ground"}, trio=False),
    "trio": Room({"_trio"}, {"ground"}),
    # The tower of bytes: it knows nothing of frames, and its lower half nothing of trio.
    "console": Room({"_console"}, {"ground"}, trio=False),
    "channel": Room(
        {"_console.stream", "_console.channel", "_console.polled", "_console.opened"},
        {"ground", "trio", "console"},
    ),
    # The tower of frames: it knows trio's abstract streams, and no console.
    "wire": Room({"_wire"}, {"ground"}, trio=False),
    "outbox": Room({"_wire.outbox"}, {"trio", "wire"}),
    "session": Room({"_session"}, {"ground", "trio", "wire", "outbox"}, named={"channel"}),
    "agent": Room({"agent"}, {"ground", "trio", "wire", "outbox"}),
    # The relay's mind does no I/O and knows no trio; of the session log it knows which methods to call.
    "session log": Room(
        {"_relay.log", "_relay.audit", "_relay.log_files", "_relay.log_writer", "_relay.trust"},
        {"ground", "trio", "wire"},
    ),
    "mind": Room({"_relay.router"}, {"ground", "wire"}, trio=False, named={"session log"}),
    "relay": Room(
        {"_relay"}, {"ground", "trio", "wire", "outbox", "session log", "mind"}, named={"channel", "session"}
    ),
    # Where the towers meet.
    "guests": Room({"_guests"}, {"ground", "bundle", "trio", "console", "channel"}, named={"wire", "session"}),
    # What strangers' images say is read without trio; the door of the room alone waits for threads.
    "images": Room({"_guests.images"}, trio=False),
    "disks": Room({"_guests.images.disk"}, {"trio", "images"}),
    "machines": Room({"_guests.machine"}, {"ground", "trio", "guests", "disks"}),
    "host": Room({"_guests.host"}, {"trio", "channel", "guests", "session"}, named={"console", "wire", "ground"}),
    "open": Room(
        {"_open"},
        {"ground", "trio", "wire", "session", "session log", "mind", "relay", "host", "machines"},
        named={"console", "guests"},
    ),
    # For the tests of users. The faults of a console are faults of bytes and frames only.
    "faults": Room(
        {"testing._faults", "testing._faulty_device"}, {"ground", "wire"}, trio=False, named={"console"}
    ),
    "odd guests": Room(
        {"testing._faulty_guest", "testing._scripted_guest", "testing._scripted_process"},
        {"ground", "trio", "console", "wire", "outbox", "guests", "faults"},
    ),
    "left behind": Room({"testing._left_behind"}, trio=False),
    "testing": Room({"testing"}, {"ground", "console", "channel"}, named={"faults", "odd guests", "left behind"}),
    "doors": Room(
        {"", "__main__"},
        {"ground", "trio", "console", "channel", "session", "session log", "relay", "guests", "machines"}
        | {"open", "testing"},
    ),
    # The command line does what its users could do, so it takes the public names. What is got for machines, and
    # looked at, has none.
    "command line": Room({"_cli"}, {"ground", "bundle", "trio", "doors", "machines", "disks"}),
    "plugin": Room({"testing.pytest_plugin"}, {"doors", "testing"}),
}

#: Files in a folder, and floors of imports among them (a folder within counts as one of its files).
MOST_FILES = 12
MOST_FLOORS = 7


class Import(NamedTuple):
    importer: str
    imported: str  # relative to the package, or "trio"
    named_only: bool

    def __str__(self) -> str:
        return f"{self.importer or 'the package'} imports {self.imported or 'the package'}"


def modules(root: pathlib.Path) -> Iterator[tuple[str, pathlib.Path]]:
    for path in sorted(root.rglob("*.py")):
        parts = path.relative_to(root).with_suffix("").parts
        yield ".".join(parts).removesuffix("__init__").removesuffix("."), path


def room_of(module: str) -> str | None:
    """The room that names the module, or else the one that names the folder it is in."""
    candidate = module
    while True:
        for name, room in ROOMS.items():
            if candidate in room.modules:
                return name
        if "." not in candidate:
            return None
        candidate = candidate.rpartition(".")[0]


def parse(path: pathlib.Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"), str(path))


@functools.cache
def imports(module: str, path: pathlib.Path, root: pathlib.Path = PACKAGE) -> tuple[Import, ...]:
    """Every import in a module of the package at ``root``, wherever it stands."""
    return tuple(_imports(module, path, root))


def _imports(module: str, path: pathlib.Path, root: pathlib.Path) -> Iterator[Import]:
    tree = parse(path)
    typing_only = {
        id(inner)
        for node in ast.walk(tree)
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"
        for statement in node.body
        for inner in ast.walk(statement)
    }
    parts = ["trio_console", *(module.split(".") if module else [])]
    package = parts if path.name == "__init__.py" else parts[:-1]
    for node in ast.walk(tree):
        names: list[str] = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = [*package[: len(package) + 1 - node.level], *(node.module or "").split(".")]
            start = ".".join(filter(None, base)) if node.level else node.module or ""
            names = [f"{start}.{alias.name}" for alias in node.names]
        for name in names:
            top, _, rest = name.partition(".")
            if top == "trio":
                yield Import(module, "trio", id(node) in typing_only)
            elif top == "trio_console":
                yield Import(module, _module_in(rest, root), id(node) in typing_only)


def _module_in(dotted: str, root: pathlib.Path) -> str:
    """The module part of a dotted name, whose end may be something inside a module."""
    parts = dotted.split(".")
    while parts and parts != [""]:
        path = root.joinpath(*parts)
        if path.with_suffix(".py").exists() or path.joinpath("__init__.py").exists():
            return ".".join(parts)
        parts.pop()
    return ""


ALL = list(modules(PACKAGE))


@pytest.mark.parametrize("module", [module for module, _ in ALL])
def test_every_module_has_a_room(module: str) -> None:
    assert room_of(module), f"{module}: say in ROOMS what it may import"


@pytest.mark.parametrize(("module", "path"), ALL, ids=[module or "package" for module, _ in ALL])
def test_imports_point_down_only(module: str, path: pathlib.Path) -> None:
    own = room_of(module)
    assert own
    room = ROOMS[own]
    for each in imports(module, path):
        if each.imported == "trio":
            assert room.trio or each.named_only, each
        else:
            allowed = {own} | room.below | (room.named if each.named_only else set())
            assert room_of(each.imported) in allowed or module == "__main__", each


def test_every_module_says_its_idea() -> None:
    # In its first line; and those at the top, a package for all in it, in ARCHITECTURE.md.
    text = (TESTS.parent / "ARCHITECTURE.md").read_text(encoding="utf-8")
    unnamed = (
        {module.partition(".")[0] for module, _ in ALL} - {"", "__main__"} - set(re.findall(r"`(\w+)`", text))
    )
    assert not unnamed
    silent = [module for module, path in ALL if path.read_bytes() and not ast.get_docstring(parse(path))]
    assert not silent


def test_the_rooms_have_an_order() -> None:
    done: set[str] = set()
    for name, room in ROOMS.items():
        assert room.below | room.named <= done, f"{name} is listed before what it stands on"
        done.add(name)


def test_session_and_agent_never_import_each_other() -> None:
    for module, path in ALL:
        for each in imports(module, path):
            assert {room_of(module), room_of(each.imported)} != {"session", "agent"}, each


def test_one_room_joins_the_towers() -> None:
    bytes_tower, frames_tower = {"console", "channel"}, {"wire", "outbox", "session", "agent", "mind", "relay"}
    joining = set()
    for module, path in ALL:
        used = {room_of(each.imported) for each in imports(module, path) if not each.named_only}
        if used & bytes_tower and used & frames_tower:
            joining.add(room_of(module))
    assert joining <= {"host"}


def test_the_agent_runs_without_the_hosts_half() -> None:
    for module, path in ALL:
        if room_of(module) == "agent":
            used = {room_of(each.imported) for each in imports(module, path)}
            assert used <= {None, "agent", "ground", "trio", "wire", "outbox"}, module


FOLDERS = sorted({path.parent for _, path in ALL})


def folder_name(folder: pathlib.Path) -> str:
    return "/".join(folder.relative_to(PACKAGE.parent).parts)


@pytest.mark.parametrize("folder", FOLDERS, ids=folder_name)
def test_a_folder_has_no_more_files_than_can_be_taken_in(folder: pathlib.Path) -> None:
    assert len(list(folder.glob("*.py"))) <= MOST_FILES


def floors(folder: pathlib.Path, root: pathlib.Path = PACKAGE) -> dict[str, int]:
    """The floor of each thing in a folder, counted from 1, by its imports in that folder."""
    prefix = ".".join(folder.relative_to(root).parts)
    start = prefix + "." if prefix else ""
    stands_on: dict[str, set[str]] = {}
    for module, path in modules(root):
        if module != prefix and module.startswith(start):
            own = module.removeprefix(start).partition(".")[0]
            below = {
                each.imported.removeprefix(start).partition(".")[0]
                for each in imports(module, path, root)
                if each.imported.startswith(start) and each.imported != prefix and not each.named_only
            }
            stands_on.setdefault(own, set()).update(below - {own, "trio", ""})
    order = graphlib.TopologicalSorter(stands_on)
    found: dict[str, int] = {}
    for own in order.static_order():
        found[own] = 1 + max((found[one] for one in stands_on.get(own, ())), default=0)
    return found


@pytest.mark.parametrize("folder", FOLDERS, ids=folder_name)
def test_a_folder_has_few_floors_and_no_circle(folder: pathlib.Path) -> None:
    found = floors(folder)
    assert max(found.values(), default=1) <= MOST_FLOORS, found


def private_names_of_trio(tree: ast.Module) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute):
            parts = ast.unparse(node).split(".")
            if parts[0] == "trio" and any(part.startswith("_") and not part.endswith("__") for part in parts):
                yield ".".join(parts)
        elif isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "trio":
            parts = [*(node.module or "").split("."), *(alias.name for alias in node.names)]
            if any(part.startswith("_") for part in parts):
                yield ".".join(parts)


#: A run under trio is the same every time only if trio's own random choices are.
PRIVATE_NAMES_FOR_A_REASON = {"fuzz/targets/agent_router.py"}


@pytest.mark.parametrize("root", [PACKAGE, TESTS], ids=["package", "tests"])
def test_private_names_of_trio_are_not_used(root: pathlib.Path) -> None:
    used = {str(path.relative_to(root)): list(private_names_of_trio(parse(path))) for _, path in modules(root)}
    assert {path for path, names in used.items() if names} <= PRIVATE_NAMES_FOR_A_REASON


def test_a_private_name_of_trio_would_be_found() -> None:
    for line in ("trio._core.run()", "from trio._util import x", "from trio import _core", "trio.testing._x"):
        assert list(private_names_of_trio(ast.parse(line))), line
    assert not list(private_names_of_trio(ast.parse("trio.__version__; trio.lowlevel.checkpoint")))

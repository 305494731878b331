"""States change along their tables only, and the tables of the package make sense."""

from __future__ import annotations

import enum
import importlib
import pathlib
from typing import TYPE_CHECKING, Any

import pytest

import trio_console
from trio_console._states import IllegalStepError, Steps

if TYPE_CHECKING:
    from collections.abc import Iterator

PACKAGE = pathlib.Path(trio_console.__file__).parent


class Door(enum.Enum):
    OPEN = enum.auto()
    CLOSED = enum.auto()
    WALLED_UP = enum.auto()


DOOR = Steps({Door.OPEN: {Door.CLOSED}, Door.CLOSED: {Door.OPEN, Door.WALLED_UP}, Door.WALLED_UP: set()})


def test_a_step_of_the_table_gives_the_new_state() -> None:
    assert DOOR.first is Door.OPEN
    assert DOOR.take(Door.OPEN, Door.CLOSED) is Door.CLOSED


@pytest.mark.parametrize(
    ("old", "new"),
    [(Door.OPEN, Door.WALLED_UP), (Door.WALLED_UP, Door.OPEN), (Door.OPEN, Door.OPEN)],
    ids=["jump", "back", "same"],
)
def test_a_step_that_is_not_in_the_table_is_an_error_that_names_both_states(old: Door, new: Door) -> None:
    with pytest.raises(IllegalStepError, match=f"^Door: {new.name} may not follow {old.name}$"):
        DOOR.take(old, new)


def test_a_table_has_a_row_for_every_state() -> None:
    with pytest.raises(ValueError, match=r"no row for Door\.CLOSED, Door\.WALLED_UP"):
        Steps({Door.OPEN: set()})


def tables() -> Iterator[Any]:
    """The tables of the package, each found by its name in the module that has made it."""
    for path in sorted(PACKAGE.rglob("*.py")):
        if "Steps(" in path.read_text(encoding="utf-8") and path.name != "_states.py":
            name = ".".join(path.relative_to(PACKAGE.parent).with_suffix("").parts)
            for attribute, value in vars(importlib.import_module(name)).items():
                if isinstance(value, Steps):
                    yield pytest.param(value, id=f"{name.removeprefix('trio_console.')}:{attribute}")


def reached(table: Steps[Any], start: enum.Enum) -> set[enum.Enum]:
    found, new = {start}, [start]
    while new:
        following = table.after[new.pop()] - found
        found |= following
        new += following
    return found


@pytest.mark.parametrize("table", list(tables()))
def test_every_state_can_be_reached_and_left_for_the_end(table: Steps[Any]) -> None:
    assert reached(table, table.first) == set(table.after)
    last = {state for state, following in table.after.items() if following <= {state}}
    assert last
    assert all(reached(table, state) & last for state in table.after)


@pytest.mark.parametrize("table", list(tables()))
def test_no_state_that_was_left_comes_back(table: Steps[Any]) -> None:
    # Each of these lives has a beginning and an end. (None is like a door that opens again.)
    for state, following in table.after.items():
        assert all(state not in reached(table, after) for after in following - {state})

"""States and their tables: a table says which state may follow which, and any other step is an error.

An object with states has one attribute for its state, a member of an enum, and changes it only with `Steps.take`:

    class Door(enum.Enum):
        OPEN = enum.auto()
        CLOSED = enum.auto()
        WALLED_UP = enum.auto()

    DOOR = Steps({Door.OPEN: {Door.CLOSED}, Door.CLOSED: {Door.OPEN, Door.WALLED_UP}, Door.WALLED_UP: set()})

    self._state = DOOR.take(self._state, Door.CLOSED)

A state may follow itself only if the table says so. If a step may be requested twice (such as an ending), the
table allows it, or the caller checks the state before.
"""

from __future__ import annotations

import enum
from typing import TYPE_CHECKING, Final, Generic, TypeVar, final

if TYPE_CHECKING:
    from collections.abc import Mapping
    from collections.abc import Set as AbstractSet

__all__ = ["IllegalStepError", "Steps"]

_S = TypeVar("_S", bound=enum.Enum)


class IllegalStepError(RuntimeError):
    """A step from one state to another that its table does not allow, which is a mistake of this package."""


@final
class Steps(Generic[_S]):
    """A table of states, and for each the states that may follow it. The first state in it is the initial one.

    Raises:
        ValueError: a state of the enum has no row.
    """

    __slots__ = ("after", "first")

    def __init__(self, after: Mapping[_S, AbstractSet[_S]]) -> None:
        self.first: Final = next(iter(after))
        self.after: Final = {state: frozenset(following) for state, following in after.items()}
        if missing := set(type(self.first)) - set(after):
            raise ValueError(f"no row for {', '.join(sorted(map(str, missing)))}")

    def take(self, old: _S, new: _S) -> _S:
        """The new state, which the caller assigns.

        Raises:
            IllegalStepError: the table does not allow this step.
        """
        if new not in self.after[old]:
            raise IllegalStepError(f"{type(old).__name__}: {new.name} may not follow {old.name}")
        return new

"""States as states: which may follow which is said in a table, and a step that is not in the table is an error.

A thing that lives through states has one attribute for the state it is in, an enum's member, and changes it by
`Steps.take` alone:

    class Door(enum.Enum):
        OPEN = enum.auto()
        CLOSED = enum.auto()
        WALLED_UP = enum.auto()

    DOOR = Steps({Door.OPEN: {Door.CLOSED}, Door.CLOSED: {Door.OPEN, Door.WALLED_UP}, Door.WALLED_UP: set()})

    self._state = DOOR.take(self._state, Door.CLOSED)

A state may follow itself only if the table says so. What may be asked for twice (an ending) says so there, or is
looked at by the caller before.
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
    """Something was to go from one state to another that may not follow it: a mistake of this package."""


@final
class Steps(Generic[_S]):
    """A table of states, each with those that may follow it. The first one in it is the one to begin with.

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
        """The new state; to be assigned where the old one was.

        Raises:
            IllegalStepError: the table does not let it follow the old one.
        """
        if new not in self.after[old]:
            raise IllegalStepError(f"{type(old).__name__}: {new.name} may not follow {old.name}")
        return new

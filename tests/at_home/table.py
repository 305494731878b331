"""The table: what a command, a file or a connection in a guest does, beside what it does on this machine.

A case is written once, against a `Here`, and returns its outcome: a value made of literals. It is played at home,
with trio itself, and in guests; the outcomes are equal, or the case names one of the `DIFFERENCES`.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, TypeAlias

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from tests.at_home.places import Here

__all__ = ["CASES", "COMMAND_LINE", "DIFFERENCES", "GUESTS", "TOPICS", "Case", "Play", "case"]

Play: TypeAlias = "Callable[[Here], Awaitable[object]]"

#: The ways to a guest: each case is played in all of them.
GUESTS: Final = ("process", "command", "relay")

#: The same for cases of the command line: ``trio-console exec``, through a relay.
COMMAND_LINE: Final = ("exec",)

#: What the cases are about.
TOPICS: Final = (
    "background",
    "cut off",
    "ends of streams",
    "terminal",
    "order",
    "closed descriptors",
    "unread output",
    "users and cwd",
    "text file busy",
    "whole commands killed",
    "tcp endings",
    "errors of lookups",
    "file buffers",
    "collected",
    "twin signatures",
    "signals to exec",
    "exec output",
    "ignored signals",
)

_PAGE: Final = Path(__file__).parents[2] / "docs" / "differences.md"


def _differences() -> dict[str, str]:
    rows = [line.strip("| ").split(" | ") for line in _PAGE.read_text().splitlines() if line.startswith("| ")]
    return {name: text for name, text in rows if name != "difference"}


#: The differences that are meant, each with its reason: the list of the page for users.
DIFFERENCES: Final = _differences()


@dataclass(frozen=True)
class Case:
    """A row of the table.

    Attributes:
        name: the claim.
        topic: one of `TOPICS`.
        play: plays it, and returns the outcome.
        differs: the difference that it shows, one of `DIFFERENCES`.
        in_guest: the outcome in a guest, if it shows a difference.
        places: the ways to a guest.
        alone: it is played in a program of its own, with these of the standard descriptors closed.
    """

    name: str
    topic: str
    play: Play
    differs: str | None = None
    in_guest: object = None
    places: tuple[str, ...] = GUESTS
    alone: tuple[int, ...] | None = None


CASES: Final[dict[str, Case]] = {}


def case(topic: str, **options: Any) -> Callable[[Play], Play]:
    """Put a coroutine function into the table; for the options see `Case`."""

    def add(play: Play) -> Play:
        name = getattr(play, "__name__", "")
        assert name not in CASES, f"two cases are named {name}"
        CASES[name] = Case(name, topic, play, **options)
        return play

    return add

"""What commands have left in the background when their sessions were over, and the session that kills it.

A client that cancels a command may find that the session has just ended by itself. It then names the command by
its number, and what is left is killed all the same. It is found by the mark in its environment. A process that has
cleared its environment is found by its POSIX session, for which the ids of leaders are kept here.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, ClassVar, Final, final

from trio_console import _wire as wire
from trio_console._processes import COMMAND_MARK, Wanted, ticks
from trio_console.agent._session import PromptSession

if TYPE_CHECKING:
    from trio_console.agent._process.hunt import Hunt
    from trio_console.agent._session import Sender

__all__ = ["Background", "KillSession"]

#: Leaders that are kept before the first look for those whose groups have ended.
_FEW: Final = 64


@final
class Background:
    """The leaders that were reaped while processes of their groups lived, by their ids.

    Groups that have ended are forgotten whenever twice as many leaders are kept as groups have lived at the last
    look.
    """

    def __init__(self) -> None:
        self._leaders: dict[int, tuple[str, int]] = {}  # the mark of the command, and when the leader was reaped
        self._many = _FEW

    def note(self, leader: int, mark: str, reaped: int | None = None) -> None:
        """Note that the leader of a command was reaped: at ``reaped`` at the earliest, by default now."""
        self._leaders.pop(leader, None)
        if not _lives(leader):
            return
        self._leaders[leader] = mark, ticks() if reaped is None else reaped
        if len(self._leaders) >= self._many:
            self._leaders = {each: told for each, told in self._leaders.items() if _lives(each)}
            self._many = max(_FEW, 2 * len(self._leaders))

    def wanted(self, mark: str) -> Wanted:
        """What a command has left, for `Hunt.kill`."""
        for leader, (its_mark, reaped) in self._leaders.items():
            if its_mark == mark:
                return Wanted(COMMAND_MARK, mark, leader, reaped)
        return Wanted(COMMAND_MARK, mark)


def _lives(group: int) -> bool:
    try:
        os.killpg(group, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass  # it is another user's
    return True


@final
class KillSession(PromptSession):
    """Kills what a command has left, and tells how much of it could not be killed.

    Args:
        sender: sends the answer.
        session_id: the session's id.
        wanted: what is to be killed.
        grace: seconds for that.
        hunt: kills it.
    """

    __slots__ = ("_grace", "_hunt", "_wanted")

    kind: ClassVar[str] = ""
    accepts = frozenset()

    def __init__(self, sender: Sender, session_id: int, wanted: Wanted, grace: float, hunt: Hunt) -> None:
        super().__init__(sender, session_id)
        self._wanted = wanted
        self._grace = grace
        self._hunt = hunt

    async def run(self) -> None:
        """See `Session.run`."""
        with self._scope:
            alive = await self._hunt.kill(self._wanted, self._grace)
            if not self.muted:
                self.let_go_of_id()
                self._sender.send(wire.BackgroundKilled(alive), self.id)

    async def receive(self, message: wire.Message) -> None:
        """See `Session.receive`: there is nothing to say to this session."""

    def _cut_short(self) -> wire.Message:
        return wire.Error("invalid_session", "ended before all was killed")

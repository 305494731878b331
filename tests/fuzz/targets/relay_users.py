"""The reference of rights and limits: what a relay refuses to a user's clients, and with which answer.

It counts anew what there is, each time it is asked: it has no sums of its own that could go wrong in the same way.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final, NamedTuple, final

from trio_console import _wire as wire
from trio_console._relay.router.rights import Rights

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from tests.fuzz.targets.relay_parts import Party, Session
    from trio_console._relay.router import RouterLimits

__all__ = ["RIGHTS", "Things", "Users", "numbers_of", "things_of"]

#: What the users of the relay may do. The clients of user 0 are those that a target checks against.
RIGHTS: Final[Mapping[int, Rights]] = {
    0: Rights(),
    1: Rights(files="read", shutdown=False),
    2: Rights(run=False, tcp=False),
    3: Rights(files=None),
}

_CHANGES: Final = ("SetStat", "Symlink", "Mkdir", "Remove", "RemoveDir", "Copy", "Rename", "Write", "FSetStat")


class Things(NamedTuple):
    """What a session has in the guest, beside itself."""

    session: int = 0
    process: int = 0
    handle: int = 0


def things_of(request: wire.Message) -> Things:
    """What a request needs."""
    match request:
        case wire.ExecRequest():
            return Things(1, 1)
        case wire.FsRequest(op):
            name = type(op).__name__
            if name == "OpCloseHandle":
                return Things()
            return Things(1, 0, 1 if name in ("OpOpenFile", "OpOpenDir") else 0)
        case wire.TcpConnect():
            return Things(1)
    return Things()


@final
@dataclass(eq=False, slots=True)
class Users:
    """See the module.

    Attributes:
        limits: the relay's.
        owners: the users of the slots that are not free.
        commands: of the slots whose clients have gone, how many commands the guest has not ended.
    """

    limits: RouterLimits
    owners: dict[int, int] = field(default_factory=dict)
    commands: dict[int, int] = field(default_factory=dict)

    def may_connect(self, uid: int, connected: Iterable[Party]) -> bool:
        mine = sum(owner == uid for owner in self.owners.values())
        return len(list(connected)) < self.limits.clients and mine < self.limits.clients_per_user

    def numbers_of(self, uid: int, parties: Iterable[Party]) -> tuple[int, int, int]:
        """What all clients of a user have, and the commands of those that have gone."""
        gone = sum(count for slot, count in self.commands.items() if self.owners[slot] == uid)
        return _sum([*(numbers_of(one) for one in parties if one.uid == uid), (0, gone, 0)])

    def refuse(self, party: Party, parties: Iterable[Party], request: wire.Message) -> wire.Message | None:
        """The answer to a request that is not forwarded; `None` if it is."""
        rights = RIGHTS[party.uid]
        needs = things_of(request)
        of_user = self.numbers_of(party.uid, parties)
        fits = all(
            not need or (own + need <= most and all_ + need <= most_of_user)
            for need, own, most, all_, most_of_user in zip(
                needs, numbers_of(party), self.limits.client, of_user, self.limits.user, strict=True
            )
        )
        answer: wire.Message
        match request:
            case wire.ExecRequest():
                allowed, answer = rights.run, wire.ExecFailed(kind="other", message="")
            case wire.FsRequest(op):
                allowed, answer = _may_do(rights, op), wire.FsResponse(ok=False)
            case wire.TcpConnect():
                allowed, answer = rights.tcp, wire.TcpFailed("")
            case wire.Shutdown():
                allowed, answer = rights.shutdown, wire.Error("not_permitted", "", "core.shutdown")
            case _:
                return None
        return None if allowed and fits else answer


def _may_do(rights: Rights, op: wire.FsOp) -> bool:
    name = type(op).__name__.removeprefix("Op")
    changes = name in (*_CHANGES, "Touch", "HardLink")
    if isinstance(op, wire.OpOpenFile):
        wanted = op.options
        changes = any((wanted.write, wanted.append, wanted.create, wanted.truncate, wanted.create_new))
    return rights.files == "write" if changes else rights.files is not None


def numbers_of(party: Party) -> tuple[int, int, int]:
    """What a client has."""
    of_sessions = [_left(session) for session in party.sessions.values()]
    return _sum([*of_sessions, (0, 0, len(party.handles))])


def _left(session: Session) -> Things:
    """What a session has: no process when the guest has told its end, and no handle when its client has it."""
    needs = session.needs
    return Things(needs[0], 0 if session.ended else needs[1], needs[2])


def _sum(things: Iterable[tuple[int, int, int]]) -> tuple[int, int, int]:
    kept = list(things)
    return (sum(t[0] for t in kept), sum(t[1] for t in kept), sum(t[2] for t in kept))

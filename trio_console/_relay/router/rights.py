"""The rights of users at a relay, and what requests demand: rights, and things that are bounded."""

from __future__ import annotations

import errno
import os
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Literal, NamedTuple, TypeAlias, final

from trio_console import _wire as wire
from trio_console._relay.router.limits import Numbers

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = ["FILE_DEMANDS", "NEEDS", "WRITING", "Demand", "RefusedError", "Right", "Rights"]

Right: TypeAlias = Literal["run", "read", "write", "tcp", "shutdown"]


class Demand(NamedTuple):
    """What a request demands.

    Attributes:
        right: the right that it needs, if it needs one.
        needs: what its session takes of the things that are bounded.
    """

    right: Right | None = None
    needs: Numbers = Numbers()


_READS: Final = Demand("read", Numbers(sessions=1))
_WRITES: Final = Demand("write", Numbers(sessions=1))
_OPENS: Final = Demand("read", Numbers(sessions=1, handles=1))

#: An `OpOpenFile` with options by which the file may change.
WRITING: Final = Demand("write", _OPENS.needs)

#: What sessions take, by their kinds; for files the operation says it. (The rights are in the catalogue.)
NEEDS: Final[Mapping[str | None, Numbers]] = {
    "exec": Numbers(sessions=1, processes=1),
    "tcp": Numbers(sessions=1),
    "call": Numbers(),
}

#: The demands of operations on files. (The close of a handle is never refused for being one too many.)
FILE_DEMANDS: Final[Mapping[type[wire.FsOp], Demand]] = {
    **dict.fromkeys((wire.OpRealPath, wire.OpStat, wire.OpList, wire.OpReadLink, wire.OpAccount), _READS),
    **dict.fromkeys((wire.OpReadDir, wire.OpRead, wire.OpFStat, wire.OpSeek), _READS),
    **dict.fromkeys((wire.OpOpenFile, wire.OpOpenDir), _OPENS),
    **dict.fromkeys((wire.OpSetStat, wire.OpSymlink, wire.OpMkdir, wire.OpRemove, wire.OpRemoveDir), _WRITES),
    **dict.fromkeys((wire.OpCopy, wire.OpRename, wire.OpWrite, wire.OpFSetStat), _WRITES),
    **dict.fromkeys((wire.OpTouch, wire.OpHardLink), _WRITES),
    wire.OpCloseHandle: Demand("read"),
}

_IN_WORDS: Final[Mapping[Right, str]] = {
    "run": "run commands",
    "read": "read files",
    "write": "change files",
    "tcp": "open connections",
    "shutdown": "shut the guest down",
}


@final
class RefusedError(Exception):
    """A request that is well formed, and not forwarded: the client gets an answer of the request's own kind.

    Attributes:
        number: the errno of the answer.
        why: the reason, in words.
    """

    def __init__(self, number: int, why: str) -> None:
        super().__init__(why)
        self.number = number
        self.why = why

    @classmethod
    def lacking(cls, right: Right) -> RefusedError:
        """For a client that lacks a right."""
        number = errno.EPERM if right == "shutdown" else errno.EACCES
        return cls(number, f"the relay does not let this user {_IN_WORDS[right]}")

    def answer(self, request: wire.Message) -> wire.Message:
        """The answer that an agent would give if its system refused the request."""
        text = f"{self.why}: {os.strerror(self.number)} (os error {self.number})"
        match request:
            case wire.ExecRequest():
                kind = "resource_limit" if self.number == errno.EAGAIN else "permission_denied"
                name = errno.errorcode[self.number]
                return wire.ExecFailed(kind=kind, errno=self.number, errno_name=name, message=self.why)
            case wire.FsRequest():
                return wire.FsResponse(ok=False, error=text)
            case wire.TcpConnect():
                return wire.TcpFailed(f"connect {request.host}:{request.port}: {text}")
            case _:
                return wire.Error("not_permitted", self.why, wire.type_of(request).name)


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Rights:
    """What a user's processes may do through a relay; by default everything.

    Args:
        run: whether they may run commands.
        files: whether they may change files (``"write"``), only read them (``"read"``), or do nothing with files
            (`None`). docs/relay.md has a table of the file operations. What a command does is not bound by this.
        tcp: whether they may open connections in the guest.
        shutdown: whether they may shut the guest down, for all clients.

    Raises:
        ValueError: ``files`` is another value.
    """

    run: bool = True
    files: Literal["write", "read"] | None = "write"
    tcp: bool = True
    shutdown: bool = True

    def __post_init__(self) -> None:
        if self.files not in ("write", "read", None):
            raise ValueError(f"files must be 'write', 'read' or None, not {self.files!r}")

    @property
    def granted(self) -> frozenset[Right]:
        """These rights as words."""
        words: dict[Right, bool] = {
            "run": self.run,
            "read": self.files is not None,
            "write": self.files == "write",
            "tcp": self.tcp,
            "shutdown": self.shutdown,
        }
        return frozenset(word for word, granted in words.items() if granted)

"""The parts of messages: the maps inside payloads.

Field names are the names on the wire, and fields are declared in the order in which they are written. A field's
type says how an absent value is written:

* no default: the peer has to send it;
* a default value: may be missing; always written, except empty lists of an `Omitting` struct;
* ``None``: written as null; may be missing or null;
* ``Omit[...]``, default ``UNSET``: left out when unset; may be missing or null, both give ``UNSET``.

This module must not know message types, frames or encoding.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence  # noqa: TC003 (msgspec reads annotations)
from functools import cache
from types import MappingProxyType
from typing import TYPE_CHECKING, Annotated, Any, Final, Literal, TypeAlias, TypeVar, final

from msgspec import UNSET, Meta, Struct, UnsetType
from msgspec.structs import fields, force_setattr

T = TypeVar("T")
if TYPE_CHECKING:
    Omit: TypeAlias = T | UnsetType
else:
    # A null is let in and then turned into UNSET, so that readers have one absence to ask for.
    Omit = T | None | UnsetType

U8 = Annotated[int, Meta(ge=0, le=2**8 - 1)]
U16 = Annotated[int, Meta(ge=0, le=2**16 - 1)]
U32 = Annotated[int, Meta(ge=0, le=2**32 - 1)]
# A constraint cannot say 2**64 - 1. It need not: a plain CBOR integer is never larger, and what is
# about to be sent is read back first.
U64 = Annotated[int, Meta(ge=0)]
I32 = Annotated[int, Meta(ge=-(2**31), le=2**31 - 1)]
I64 = Annotated[int, Meta(ge=-(2**63), le=2**63 - 1)]


@cache
def _omitted_fields(cls: type[Struct]) -> tuple[str, ...]:
    return tuple(f.name for f in fields(cls) if f.default is UNSET)


class Omitting(Struct, frozen=True, omit_defaults=True):
    """Base of structs with fields that are left out when unset."""

    def __post_init__(self) -> None:
        for name in _omitted_fields(type(self)):
            if getattr(self, name) is None:
                force_setattr(self, name, UNSET)


# --- core and exec ------------------------------------------------------------------------------


@final
class DefaultUser(Struct, frozen=True):
    """Numeric ids of the user that commands run as unless they say otherwise."""

    uid: U32
    gid: U32


@final
class Flow(Struct, frozen=True):
    """The agent counts credit: ``window`` bytes of input may be outstanding in one session.

    ``later`` of these may only be sent after they were granted.
    """

    window: U32
    later: Omit[U32] = UNSET

    @property
    def held_back(self) -> int:
        """The bytes of a window that may only be sent after a grant."""
        return 0 if isinstance(self.later, UnsetType) else min(self.later, self.window)


@final
class ExecStdio(Struct, frozen=True):
    """What a command gets for its three streams in the guest.

    ``null`` is ``/dev/null``. With ``stdout`` for its stderr, both are one pipe, so that their order is kept.
    """

    stdin: Literal["pipe", "null"] = "pipe"
    stdout: Literal["pipe", "null"] = "pipe"
    stderr: Literal["pipe", "null", "stdout"] = "pipe"


@final
class ExecEnds(Struct, frozen=True):
    """Asks that the exit of a command and the ends of its streams are told each by itself.

    ``drain`` is the milliseconds of silence after the exit, for which a stream that is still held open is read;
    with ``None`` it is read until its end.
    """

    drain: U32 | None = None


@final
class Rlimit(Struct, frozen=True):
    """One resource limit by its lower-case name, such as ``nofile``; ``2**64 - 1`` is "no limit"."""

    resource: str
    soft: U64
    hard: U64


# --- files --------------------------------------------------------------------------------------


@final
class EntryInfo(Struct, frozen=True, kw_only=True):
    """What is known of one file. Times are whole Unix seconds and may be negative.

    ``kind`` is ``file``, ``dir``, ``symlink`` or ``other``; ``mode`` is the whole ``st_mode``, bits of
    the file type included; ``modified`` equals ``mtime``.
    """

    path: str
    kind: str
    size: U64
    mode: U32
    modified: I64 | None = None
    uid: U32
    gid: U32
    atime: I64 | None = None
    mtime: I64 | None = None


@final
class SetAttrs(Struct, frozen=True, kw_only=True):
    """What to change of a file; ``None`` leaves it as it is. Times are whole Unix seconds."""

    mode: U32 | None = None
    uid: U32 | None = None
    gid: U32 | None = None
    size: U64 | None = None
    atime: I64 | None = None
    mtime: I64 | None = None


@final
class OpenOptions(Struct, frozen=True, kw_only=True):
    """How to open a file; the flags mean what their namesakes of ``open(2)`` mean."""

    read: bool
    write: bool
    append: bool
    create: bool
    truncate: bool
    create_new: bool
    mode: U32 | None = None


@final
class OpRealPath(Struct, frozen=True):
    path: str


@final
class OpStat(Struct, frozen=True):
    path: str
    follow_symlink: bool


@final
class OpSetStat(Struct, frozen=True):
    path: str
    follow_symlink: bool
    attrs: SetAttrs


@final
class OpList(Struct, frozen=True):
    path: str


@final
class OpReadLink(Struct, frozen=True):
    path: str


@final
class OpSymlink(Struct, frozen=True):
    target: str
    link_path: str


@final
class OpMkdir(Struct, frozen=True):
    path: str
    mode: U32 | None = None


@final
class OpRemove(Struct, frozen=True):
    path: str


@final
class OpRemoveDir(Struct, frozen=True):
    path: str
    recursive: bool


@final
class OpCopy(Struct, frozen=True):
    src: str
    dst: str


@final
class OpRename(Struct, frozen=True):
    src: str
    dst: str


@final
class OpOpenFile(Struct, frozen=True):
    path: str
    options: OpenOptions


@final
class OpOpenDir(Struct, frozen=True):
    path: str


@final
class OpTouch(Struct, frozen=True):
    """Set a file's times to now, by the guest's clock; or create it with ``mode``. Of this project."""

    path: str
    mode: U32
    exist_ok: bool


@final
class OpHardLink(Struct, frozen=True):
    """Make ``link_path`` a further name of a file; a link is not followed. Of this project."""

    target: str
    link_path: str


@final
class OpAccount(Struct, frozen=True):
    """Look up an account; the answer is a `ResultPath`. Of this project.

    The ``key`` is a user's number for its name, a group's number for its name, or a user's name for its home; the
    agent's own home for an empty name.
    """

    kind: Literal["user", "group", "home"]
    key: str


@final
class OpSeek(Struct, frozen=True):
    """Find the first data or hole of a file from ``offset`` on; the answer has its ``position``. Ours."""

    handle: U64
    offset: U64
    whence: Literal["data", "hole"]


@final
class OpCloseHandle(Struct, frozen=True):
    handle: U64


@final
class OpRead(Struct, frozen=True):
    """Read ``len`` bytes, or up to the end of the file if that is ``None``."""

    handle: U64
    offset: U64
    len: U64 | None = None


@final
class OpWrite(Struct, frozen=True):
    """Write what follows; if ``len`` is given, that many bytes have to follow."""

    handle: U64
    offset: U64
    len: U64 | None = None


@final
class OpReadDir(Struct, frozen=True):
    handle: U64
    limit: U32 | None = None


@final
class OpFStat(Struct, frozen=True):
    handle: U64


@final
class OpFSetStat(Struct, frozen=True):
    handle: U64
    attrs: SetAttrs


@final
class StatMore(Struct, frozen=True, kw_only=True):
    """What `EntryInfo` does not tell of a file, by the names of ``struct stat``; the times in nanoseconds."""

    dev: U64
    ino: U64
    nlink: U64
    rdev: U64
    blksize: U64
    blocks: U64
    atime_ns: I64
    mtime_ns: I64
    ctime_ns: I64


@final
class Opened(Struct, frozen=True, kw_only=True):
    """What was opened: its whole ``st_mode``, whether it has positions, and whether it is a terminal."""

    mode: U32
    seekable: bool
    terminal: bool


@final
class ResultStat(Struct, frozen=True):
    value: EntryInfo


@final
class ResultList(Struct, frozen=True):
    value: Sequence[EntryInfo]


@final
class ResultHandle(Struct, frozen=True):
    value: U64


@final
class ResultPath(Struct, frozen=True):
    value: str


FS_OPS: Final[Mapping[str, type[Struct]]] = MappingProxyType(
    {
        cls.__name__.removeprefix("Op"): cls
        for cls in (
            *(OpRealPath, OpStat, OpSetStat, OpList, OpReadLink, OpSymlink, OpMkdir, OpRemove),
            *(OpRemoveDir, OpCopy, OpRename, OpOpenFile, OpOpenDir, OpCloseHandle, OpRead),
            *(OpWrite, OpReadDir, OpFStat, OpFSetStat, OpTouch, OpHardLink, OpAccount, OpSeek),
        )
    }
)
"""File operations by their name on the wire; the value of the entry is the struct's map."""

FS_RESULTS: Final[Mapping[str, type[Struct]]] = MappingProxyType(
    {cls.__name__.removeprefix("Result"): cls for cls in (ResultStat, ResultList, ResultHandle, ResultPath)}
)
"""Results of file operations by their name on the wire; the value of the entry is ``.value``."""

if TYPE_CHECKING:
    _PathOp: TypeAlias = OpRealPath | OpStat | OpSetStat | OpList | OpReadLink | OpSymlink
    _TreeOp: TypeAlias = OpMkdir | OpRemove | OpRemoveDir | OpCopy | OpRename
    _HandleOp: TypeAlias = OpCloseHandle | OpRead | OpWrite | OpReadDir | OpFStat | OpFSetStat
    _OwnOp: TypeAlias = OpTouch | OpHardLink | OpAccount | OpSeek
    FsOp: TypeAlias = _PathOp | _TreeOp | OpOpenFile | OpOpenDir | _HandleOp | _OwnOp
    FsResult: TypeAlias = ResultStat | ResultList | ResultHandle | ResultPath
else:
    # Maps with one entry, which msgspec has no notion of: the codec takes them apart.
    FsOp = Any
    FsResult = Any

"""Messages for the relay's targets, all well formed: what clients may send, and what the guest may send."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from tests.fuzz.targets.relay_parts import STEP
from trio_console import _wire as wire

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from tests.fuzz.targets.script import Script

__all__ = [
    "ANSWERING",
    "CONTROL",
    "ENDING",
    "ENDS_OF",
    "ENDS_REQUESTS",
    "FILES",
    "FITTING",
    "FROM_AGENT",
    "HANDLES",
    "REQUESTS",
    "SIZES",
    "TO_AGENT",
]

SIZES: Final = (0, 1, 2, 50, 99, 100, 101, 299, 300, 301, 700, 3000, 40000)

_WINDOWS: Final[Sequence[int | wire.UnsetType]] = (wire.UNSET, 0, 1, 100, 5000, 2**32 - 1)

#: The window of those requests for a handle that ask for the contents of a small file in its place.
_ASKS_CONTENTS: Final = 5000

_STREAMS: Final[Sequence[wire.StreamName]] = ("stdin", "stdout", "stderr", "data")


def _data(script: Script) -> bytes:
    return bytes([script.byte()]) * script.pick(SIZES)


REQUESTS: Final[Sequence[Callable[[Script], wire.Message]]] = (
    lambda s: wire.ExecRequest("c", window=(window := s.pick(_WINDOWS)), drops=window in (wire.UNSET, 0, 100)),
    lambda s: wire.FsRequest(wire.OpRead(handle=1, offset=0), window=s.pick(_WINDOWS)),
    lambda s: wire.FsRequest(wire.OpWrite(handle=1, offset=0), window=s.pick(_WINDOWS)),
    lambda s: wire.TcpConnect("h", 1, window=s.pick(_WINDOWS)),
    lambda _: wire.Ping(),
    lambda _: wire.Touch(),
)
TO_AGENT: Final[Sequence[Callable[[Script], wire.Message]]] = (
    *REQUESTS,
    lambda s: wire.ExecStdin(_data(s)),
    lambda s: wire.FsData(_data(s)),
    lambda s: wire.TcpData(_data(s)),
    lambda s: wire.Credit(s.pick(_STREAMS), s.pick(SIZES)),
    lambda _: wire.Credit("stdout", 2**32 - 1),
    lambda _: wire.Cancel(),
    lambda _: wire.TcpEof(),
    lambda _: wire.TcpClose(),
    lambda s: wire.ExecSignal(s.byte()),
    lambda _: wire.ExecResize(1, 1),
)
FROM_AGENT: Final[Sequence[Callable[[Script], wire.Message]]] = (
    lambda s: wire.ExecStdout(_data(s)),
    lambda s: wire.ExecStderr(_data(s)),
    lambda s: wire.FsData(_data(s)),
    lambda s: wire.TcpData(_data(s)),
    lambda s: wire.Credit(s.pick(_STREAMS), s.pick(SIZES)),
    lambda _: wire.Credit("stdin", 2**32 - 1),
    lambda _: wire.ExecStarted(1),
    lambda _: wire.ExecStdinError(message="m"),
    lambda _: wire.ExecExited(0),
    lambda _: wire.FsResponse(ok=True),
    lambda _: wire.TcpConnected(),
    lambda _: wire.TcpEof(),
    lambda _: wire.TcpClosed(),
    lambda _: wire.TcpFailed("m"),
    lambda _: wire.Pong(),
    lambda _: wire.Error("invalid_payload", "m"),
)


#: Messages that only a relay or a guest may send, and no client.
CONTROL: Final[Sequence[wire.Message]] = (
    wire.ClientDisconnected(1, 2**32 - 1),
    wire.ClientDisconnected(1, STEP),
    wire.ClockSync(1),
    wire.InitAck(),
    wire.Shutdown(),
)

#: The messages of a session, by its kind, from its client and from the guest. The last one ends the session.
FITTING: Final[Mapping[str, Sequence[Callable[[Script], wire.Message]]]] = {
    "exec": (
        lambda s: wire.ExecStdin(_data(s)),
        lambda s: wire.ExecSignal(s.byte()),
        lambda s: wire.Credit(s.pick(("stdout", "stderr")), s.pick(SIZES)),
    ),
    "fs": (
        lambda s: wire.FsData(_data(s)),
        lambda s: wire.Credit("data", s.pick(SIZES)),
        lambda _: wire.Cancel(),
    ),
    "tcp": (
        lambda s: wire.TcpData(_data(s)),
        lambda s: wire.Credit("data", s.pick(SIZES)),
        lambda _: wire.TcpEof(),
        lambda _: wire.TcpClose(),
    ),
    "call": (lambda _: wire.Ping(),),
}
ANSWERING: Final[Mapping[str, Sequence[Callable[[Script], wire.Message]]]] = {
    "exec": (
        lambda s: wire.ExecStdout(_data(s)),
        lambda s: wire.ExecStderr(_data(s)),
        lambda s: wire.Credit("stdin", s.pick(SIZES)),
        lambda _: wire.ExecStarted(1),
        lambda _: wire.ExecStdinError(message="m"),
        lambda _: wire.ExecExited(0),
    ),
    "fs": (
        lambda s: wire.FsData(_data(s)),
        lambda s: wire.Credit("data", s.pick(SIZES)),
        lambda _: wire.FsResponse(ok=True),
    ),
    "tcp": (
        lambda s: wire.TcpData(_data(s)),
        lambda s: wire.Credit("data", s.pick(SIZES)),
        lambda _: wire.TcpConnected(),
        lambda _: wire.TcpBroken("m"),
        lambda _: wire.TcpEof(),
        lambda _: wire.TcpClosed(),
    ),
    "call": (lambda _: wire.Pong(), lambda _: wire.Touched(1)),
}


# Rights, and things that are bounded


def _options(script: Script) -> wire.OpenOptions:
    how = script.byte() % 7
    return wire.OpenOptions(
        read=True, write=how == 1, append=how == 2, create=how == 3, truncate=how == 4, create_new=how == 5
    )


_PATHS: Final[Sequence[wire.FsOp]] = (
    *(wire.OpStat("/", True), wire.OpRealPath("/"), wire.OpList("/"), wire.OpReadLink("/"), wire.OpFStat(1)),
    *(
        wire.OpReadDir(1),
        wire.OpAccount("home", ""),
        wire.OpSetStat("/", True, wire.SetAttrs()),
        wire.OpMkdir("/a"),
    ),
    *(wire.OpSymlink("/a", "/b"), wire.OpRemove("/a"), wire.OpRemoveDir("/a", False), wire.OpCopy("/a", "/b")),
    *(wire.OpRename("/a", "/b"), wire.OpFSetStat(1, wire.SetAttrs()), wire.OpTouch("/a", 1, True)),
    *(wire.OpHardLink("/a", "/b"), wire.OpSeek(1, 0, "data")),
)

#: Requests for files of all kinds; those that open and close come often.
FILES: Final[Sequence[Callable[[Script], wire.Message]]] = (
    lambda s: wire.FsRequest(
        wire.OpOpenFile("/a", _options(s)), window=(window := s.pick(_WINDOWS)), contents=window == _ASKS_CONTENTS
    ),
    lambda _: wire.FsRequest(wire.OpOpenDir("/a")),
    lambda s: wire.FsRequest(wire.OpCloseHandle(s.byte() % 4)),
    lambda s: wire.FsRequest(s.pick(_PATHS)),
)

#: Answers to them.
HANDLES: Final[Sequence[Callable[[Script], wire.Message]]] = (
    lambda s: wire.FsResponse(ok=True, data=wire.ResultHandle(s.byte() % 4)),
    lambda _: wire.FsResponse(ok=True),
    lambda s: wire.FsResponse(ok=False, error=s.pick(("invalid handle: 1", "close: x (os error 5)", "no"))),
    lambda _: wire.Error("invalid_payload", "m"),
)


# The ends of commands

_DRAINS: Final[Sequence[wire.ExecEnds | wire.UnsetType]] = (
    wire.ExecEnds(),
    wire.ExecEnds(0),
    wire.ExecEnds(2**32 - 1),
    wire.UNSET,
)
_STDIO: Final[Sequence[wire.ExecStdio | wire.UnsetType]] = (
    wire.UNSET,
    wire.ExecStdio("null", "pipe", "stdout"),
    wire.ExecStdio("pipe", "null", "null"),
)
_GRACES: Final = (0, 1, 2**32 - 1)
_AFTER_EXIT: Final[Sequence[bool | wire.UnsetType]] = (wire.UNSET, True, False)

#: Requests of clients that want to be told the ends.
ENDS_REQUESTS: Final[Sequence[Callable[[Script], wire.Message]]] = (
    lambda s: wire.ExecRequest("c", window=s.pick(_WINDOWS), stdio=s.pick(_STDIO), ends=s.pick(_DRAINS)),
    lambda s: wire.ExecRequest("\xff", window=s.pick(_WINDOWS), octets=True, ends=wire.ExecEnds()),
    lambda s: wire.TcpConnect("h", 1, window=s.pick(_WINDOWS), breaks=True),
    lambda s: wire.KillBackground(s.byte(), s.pick(_GRACES)),
)
#: What such a client may say of its command.
ENDING: Final[Sequence[Callable[[Script], wire.Message]]] = (
    lambda _: wire.ExecRelease(),
    lambda s: wire.ExecKill(s.pick(_GRACES), s.pick(_AFTER_EXIT)),
)
#: What the guest may say of it.
ENDS_OF: Final[Sequence[Callable[[Script], wire.Message]]] = (
    lambda _: wire.ExecStreamEnded("stdout"),
    lambda _: wire.ExecStreamEnded("stderr"),
    lambda s: wire.ExecStreamEnded(s.pick(_STREAMS)),
    lambda s: wire.ExecLeft(s.byte()),
    lambda s: wire.ExecLeft(-1, s.byte()),
    lambda s: wire.ExecExited(s.byte(), held=["stdout"], alive=s.byte()),
    lambda _: wire.Error("not_confirmed", "m"),
    lambda _: wire.Error("exit_unknown", "m"),
    lambda s: wire.ExecStarted(1, s.byte()),
    lambda s: wire.BackgroundKilled(s.byte()),
)

"""Messages: one frozen struct per type.

Their declarations follow the rules in ``payloads``; ``catalogue`` gives them names and flags.

Keys that the microsandbox protocol does not have (``Ready.flow`` and ``features``, ``ClientDisconnected.confirm``,
``window`` and ``octets`` in the requests, ``ExecRequest.stdio`` and ``ends``, ``ExecExited.signal``, ``held`` and
``alive``, ``ExecFailed.filename``, ``FsResponse.more``, ``opened`` and ``position``) are left out unless they are
set; every peer ignores unknown keys. The types whose names begin with ``trio.`` are this project's. They are sent
only to a peer that has announced or requested them, because an unknown *type* ends upstream's agent.

This module must not know bytes, nor which side sends which message when.
"""

from __future__ import annotations

from collections.abc import Sequence  # noqa: TC003 (msgspec reads annotations)
from typing import Annotated, Final, Literal, TypeAlias, final

from msgspec import UNSET, Meta, Struct, field

from trio_console._wire.bootstrap import (  # noqa: TC001
    DirMount,
    DiskImageRoot,
    DiskMount,
    EnvVar,
    FileMount,
    HandoffInit,
    Network,
    OciErofsRoot,
    SecurityProfile,
    TmpfsMount,
)
from trio_console._wire.payloads import (
    I32,
    U8,
    U16,
    U32,
    U64,
    DefaultUser,
    ExecEnds,
    ExecStdio,
    Flow,
    FsOp,
    FsResult,
    Omit,
    Omitting,
    Opened,
    Rlimit,
    StatMore,
)

# Words of an open set: peers may know more of them than this build. Upstream reads them case by case,
# so a word in another case is a mistake and not a word from the future.
Word = Annotated[str, Meta(pattern=r"^[a-z0-9_]+\Z")]

StreamName: TypeAlias = Literal["stdin", "stdout", "stderr", "data"]

USER_STAGE: Final = "user"
"""The ``stage`` of an `ExecFailed` whose user or group the guest does not know."""

TCP_BREAKS: Final = "tcp_breaks"
"""A word in ``Ready.features``: the agent knows ``breaks`` in a request, and sends `TcpBroken`."""

EXEC_ENDS: Final = "exec_ends"
"""A word in ``Ready.features``: the agent knows ``stdio`` and ``ends`` in a request, and the messages for them."""


OCTETS: Final = "octets"
"""A word in ``Ready.features``: the agent knows ``octets`` in a request; see `packed`."""

FILES: Final = "files"
"""A word in ``Ready.features``: the agent knows `OpTouch`, `OpHardLink`, `OpAccount`, and files without positions.

Its answers to a stat have ``more``, and those to an open ``opened``.
"""


SEEKS: Final = "seeks"
"""A word in ``Ready.features``: the agent knows `OpSeek`. Its answer has the ``position``."""


CONTENTS: Final = "contents"
"""A word in ``Ready.features``: the agent knows ``contents`` in a request."""

LARGEST_CONTENTS: Final = 64 * 1024
"""Bytes of the largest file that is sent with the answer to its open: those of one frame."""


SHUTDOWN: Final = "shutdown"
"""A word in ``Ready.features``, from a relay: it answers a `Shutdown` that it refuses, under its id."""


FORGETS: Final = "forgets"
"""A word in ``Ready.features``: the agent answers a `ClientDisconnected` with ``confirm``."""


RESETS: Final = "resets"
"""A word in ``Ready.features``: the agent goes back to where it was before its host came, if it gets a `Reset`."""


class Message(Struct, frozen=True):
    """Base of all messages."""


class OmittingMessage(Message, Omitting, frozen=True):
    """Base of messages with fields that are left out when unset."""


class DataMessage(Message, frozen=True, gc=False):
    """Base of the five types that carry nothing but bytes."""

    data: bytes


# --- core ---------------------------------------------------------------------------------------


@final
class Bootstrap(OmittingMessage, frozen=True, kw_only=True):
    """Host to agent, first bytes on the console: what the guest is to be."""

    block_root: Omit[DiskImageRoot | OciErofsRoot] = UNSET
    dir_mounts: Sequence[DirMount] = field(default_factory=list)
    file_mounts: Sequence[FileMount] = field(default_factory=list)
    disk_mounts: Sequence[DiskMount] = field(default_factory=list)
    tmpfs_mounts: Sequence[TmpfsMount] = field(default_factory=list)
    hostname: Omit[str] = UNSET
    host_alias: Omit[str] = UNSET
    network: Omit[Network] = UNSET
    rlimits: Sequence[Rlimit] = field(default_factory=list)
    user: Omit[str] = UNSET
    default_cwd: Omit[str] = UNSET
    default_env: Sequence[EnvVar] = field(default_factory=list)
    # A factory, because a plain default would be left out, and this field is always written.
    security_profile: SecurityProfile = field(default_factory=lambda: "default")
    handoff_init: Omit[HandoffInit] = UNSET


@final
class InitResolved(Message, frozen=True):
    """Agent to host: the root filesystem is there; waits for `InitAck`."""

    default_user: DefaultUser


@final
class InitAck(Message, frozen=True):
    """Host to agent: go on."""


@final
class Ready(OmittingMessage, frozen=True):
    """Agent to host, and replayed to each client. Times are nanoseconds.

    ``boot_time_ns`` and ``ready_time_ns`` are of the boot clock, ``init_time_ns`` is a duration. ``flow``
    announces that the agent counts credit; ``features`` are words for the other extensions that it knows.
    ``workload_transport_barrier_version`` is said by an agent of generation 9 or later that counts all that comes
    over its console; see `TransportCredit`. A relay's clients are not told.
    """

    boot_time_ns: U64
    init_time_ns: U64
    ready_time_ns: U64
    agent_version: str = ""
    flow: Omit[Flow] = UNSET
    features: Omit[Sequence[str]] = UNSET
    workload_transport_barrier_version: Omit[U8] = UNSET


@final
class TransportCredit(Message, frozen=True):
    """Agent to the owner of its console: how much may be sent over the console in all, since the agent was ready.

    The numbers only grow. Bytes are those of whole frames; ``bulk`` frames carry data or its end, and ``control``
    frames are all others. The frame has the id `TRANSPORT_ID`.
    """

    control_bytes: U64
    control_frames: U64
    bulk_bytes: U64
    bulk_frames: U64


@final
class Shutdown(OmittingMessage, frozen=True):
    """To the agent: end everything. It is not answered; the connection just ends.

    A relay that refuses it answers with an `Error` if it has an id of its sender; see `SHUTDOWN`. ``grace`` is the
    milliseconds in which the guest should be gone.
    """

    grace: Omit[U32] = UNSET


def guest_grace(seconds: float) -> int:
    """The ``grace`` of a message to a guest that is waited for for so many seconds.

    A part of them is for the way back of its answer.
    """
    return max(0, min(int(800 * seconds), 2**32 - 1))


@final
class ClientDisconnected(OmittingMessage, frozen=True):
    """Relay to agent: the client that owned these ids is gone. ``confirm`` is the id for the answer to it."""

    id_start: U32
    id_end_exclusive: U32
    confirm: Omit[U32] = UNSET


@final
class ClientForgotten(Message, frozen=True):
    """Agent to relay: nothing more comes with the ids of the client, but the last frames of its commands."""


@final
class RelayLost(Message, frozen=True):
    """Relay to client: the guest is gone. It is the last frame of a connection, with an id that is not in use."""

    reason: str


@final
class ClockSync(Message, frozen=True):
    """Relay to agent: nanoseconds since the Unix epoch."""

    unix_time_nanos: U64


@final
class Ping(Message, frozen=True):
    """Is the agent there? Does not count as activity."""


@final
class Pong(Message, frozen=True):
    """Answer to `Ping`."""


@final
class Touch(Message, frozen=True):
    """Count one activity."""


@final
class Touched(Message, frozen=True):
    """Answer to `Touch`: the counter after it."""

    activity_seq: U64


@final
class Error(OmittingMessage, frozen=True):
    """The agent could not take a frame; ends the frame's id.

    ``kind`` is one of ``malformed_message``, ``unsupported_message_type``,
    ``unsupported_protocol_generation``, ``invalid_flags``, ``invalid_payload``, ``invalid_session``, or
    a word of a newer peer.
    """

    kind: Word
    message: str
    offending_type: Omit[str] = UNSET


# --- exec ---------------------------------------------------------------------------------------


@final
class ExecRequest(Message, Omitting, frozen=True, omit_defaults=False):
    """Start a command. ``rows`` and ``cols`` matter with ``tty`` only.

    ``window`` asks for credit: at most so many bytes of stdout, and as many of stderr, may be on their
    way and not granted yet. ``stdio`` and ``ends`` may be asked of an agent with the feature `EXEC_ENDS`. With
    ``octets`` (feature `OCTETS`) ``cmd``, ``args``, ``env`` and ``cwd`` are `packed`, and so is the ``filename``
    of an `ExecFailed`.
    """

    cmd: str
    args: Sequence[str] = field(default_factory=list)
    env: Sequence[str] = field(default_factory=list)
    cwd: str | None = None
    user: str | None = None
    tty: bool = False
    rows: U16 = 24
    cols: U16 = 80
    rlimits: Sequence[Rlimit] = field(default_factory=list)
    window: Omit[U32] = UNSET
    stdio: Omit[ExecStdio] = UNSET
    ends: Omit[ExecEnds] = UNSET
    octets: Omit[bool] = UNSET
    drops: Omit[bool] = UNSET


@final
class ExecStarted(OmittingMessage, frozen=True):
    """The command runs. ``command`` is its number, for a `KillBackground`; told if the request has ``ends``."""

    pid: U32
    command: Omit[U64] = UNSET


@final
class ExecStdin(DataMessage, frozen=True):
    """Bytes for the command; no bytes mean end of file."""


@final
class ExecStdinError(Message, frozen=True, kw_only=True):
    """A write to the command failed; the session goes on."""

    errno: I32 | None = None
    errno_name: str | None = None
    message: str


@final
class ExecStdout(DataMessage, frozen=True):
    """Output of the command, or of its terminal."""


@final
class ExecStderr(DataMessage, frozen=True):
    """Error output of the command."""


@final
class ExecExited(OmittingMessage, frozen=True):
    """The command ended: ``code`` 0-255, or -1 if a signal ended it; ``signal`` tells which.

    ``held`` names the streams that other processes still held when the session ended. ``alive`` is there if the
    whole command was killed: the number of its processes that had not ended in time.
    """

    code: I32
    signal: Omit[I32] = UNSET
    held: Omit[Sequence[StreamName]] = UNSET
    alive: Omit[U32] = UNSET


@final
class ExecStreamEnded(Message, frozen=True):
    """A stream of output has ended, and the session goes on."""

    stream: StreamName


@final
class ExecDropped(Message, frozen=True):
    """From a relay: output of this stream was dropped here, and no more of it comes.

    It is sent if the request had ``drops``.
    """

    stream: StreamName


@final
class ExecLeft(OmittingMessage, frozen=True):
    """The command has exited, as `ExecExited` says it, but its streams have not ended: the session goes on."""

    code: I32
    signal: Omit[I32] = UNSET


@final
class ExecRelease(Message, frozen=True):
    """To the agent: the output is not read any more.

    The session ends at the exit of the command. Processes that hold its streams live on.
    """


@final
class ExecKill(OmittingMessage, frozen=True):
    """To the agent: kill the command and everything that it has started, and end the session when all are gone.

    ``grace`` is the milliseconds in which the guest should confirm that; then it says what is left. With
    ``after_exit`` the command may end by itself, and what it has started is killed then.
    """

    grace: U32
    after_exit: Omit[bool] = UNSET


@final
class KillBackground(Message, frozen=True):
    """To the agent: kill what a command of this client has left in the background; its session has ended.

    ``command`` is the number from its `ExecStarted`, ``grace`` as in `ExecKill`.
    """

    command: U64
    grace: U32


@final
class BackgroundKilled(Message, frozen=True):
    """Answer to `KillBackground`: how many processes had not ended when the grace was over."""

    alive: U32


@final
class Reset(Message, frozen=True):
    """To the agent, from its console's owner: end all sessions, forget all settings, and wait for another host.

    ``confirm`` is the id for the answer to it.
    """

    confirm: U32


@final
class ResetDone(Message, frozen=True):
    """Answer to `Reset`, when all sessions are over. Nothing more comes; the agent waits for its host to go."""


@final
class ExecFailed(Message, Omitting, frozen=True, kw_only=True, omit_defaults=False):
    """The command could not be started.

    ``kind`` is one of ``not_found``, ``permission_denied``, ``not_executable``, ``bad_cwd``,
    ``bad_args``, ``resource_limit``, ``user_setup_failed``, ``out_of_memory``, ``pty_setup_failed``,
    ``other``, or a word of a newer peer. ``filename`` is the file the errno is about.
    """

    kind: Word
    errno: I32 | None = None
    errno_name: str | None = None
    message: str
    stage: str | None = None
    filename: Omit[str] = UNSET


@final
class ExecResize(Message, frozen=True):
    rows: U16
    cols: U16


@final
class ExecSignal(Message, frozen=True):
    """Send a signal, by its Linux number, to the command's process group."""

    signal: I32


# --- files, tcp, credit -------------------------------------------------------------------------


@final
class FsRequest(Message, Omitting, frozen=True, omit_defaults=False):
    """Do something with files. ``window`` asks for credit for the bytes of a read or write.

    With ``octets`` (feature `OCTETS`) the paths in the operation and in its result are `packed`. With ``contents``
    (feature `CONTENTS`) a small file that is to be opened is read and closed at once: its bytes come before the
    answer, which then has no handle.
    """

    op: FsOp
    window: Omit[U32] = UNSET
    octets: Omit[bool] = UNSET
    contents: Omit[bool] = UNSET


@final
class FsResponse(Message, Omitting, frozen=True, omit_defaults=False):
    """Outcome of a file operation; ``data`` is ``None`` where there is nothing to tell.

    An agent with the feature `FILES` tells ``more`` of a file whose information was asked for, and what it has
    ``opened``; one with `SEEKS` the ``position`` that it has found.
    """

    ok: bool
    error: str | None = None
    data: FsResult | None = None
    more: Omit[StatMore] = UNSET
    opened: Omit[Opened] = UNSET
    position: Omit[U64] = UNSET


@final
class FsData(DataMessage, frozen=True):
    """Contents of a file; to the agent, no bytes mean end of file."""


@final
class TcpConnect(Message, Omitting, frozen=True, omit_defaults=False):
    """Connect to a name or address as the guest sees it. ``window`` asks for credit, both ways.

    With ``breaks`` the agent sends `TcpBroken`; it may be asked of an agent with the feature `TCP_BREAKS`.
    """

    host: str
    port: U16
    window: Omit[U32] = UNSET
    breaks: Omit[bool] = UNSET


@final
class TcpConnected(Message, frozen=True):
    pass


@final
class TcpData(DataMessage, frozen=True):
    """Bytes of the connection; no bytes mean nothing."""


@final
class TcpEof(Message, frozen=True):
    """The sender's side sends no more."""


@final
class TcpClose(Message, frozen=True):
    """The client is done; not answered."""


@final
class TcpClosed(Message, frozen=True):
    """The agent dropped the connection."""


@final
class TcpFailed(Message, frozen=True):
    error: str


@final
class TcpBroken(Message, frozen=True):
    """The connection takes no more bytes. `TcpFailed` says the same, behind the bytes that came before."""

    error: str


StreamRequest: TypeAlias = ExecRequest | FsRequest | TcpConnect
"""The requests with a ``window``: those that open a session with streams."""


@final
class Credit(Message, frozen=True):
    """The receiver of this message may send ``bytes`` more bytes of ``stream``.

    A terminal's output is ``stdout``; ``data`` is what a file or connection carries.
    """

    stream: StreamName
    bytes: U32


@final
class Cancel(Message, frozen=True):
    """To the agent: end this file operation or connection now; its terminal frame confirms that."""

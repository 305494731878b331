"""The boot: the host's settings for the guest, before any client can use it.

The host's first frame is ``core.bootstrap``. The agent applies its settings, reports the user of commands, waits
for the host's acknowledgement, and reports that it is ready. A setting that it cannot make is refused at once, by
name: a guest that starts without its mounts or its network, as if nothing were missing, would be worse than no
guest.

This module must not know sessions.
"""

from __future__ import annotations

import contextlib
import os
import socket
import time
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Final, final

import msgspec
import trio

from trio_console import _wire as wire
from trio_console._errors import ProtocolError
from trio_console._trio.threads import NoThreadError, in_thread
from trio_console._trio.turns import Turn
from trio_console.agent._process.limits import Limit, limit_number, raise_hard_limit
from trio_console.agent._process.plan import ExecDefaults
from trio_console.agent._process.users import UnknownUserError, find_account

if TYPE_CHECKING:
    from collections.abc import Callable

    from trio_console._wire.outbox import Outbox

__all__ = ["BootError", "BootTimes", "FrameSource", "boot"]

#: Seconds to wait for the host: once for its bootstrap, and once for its acknowledgement.
BOOT_TIMEOUT: Final = 60.0

EXIT_FAILED: Final = 1
EXIT_REFUSED: Final = 3

_READ_SIZE: Final = 128 * 1024

#: Seconds for which frames are worked off in a row, at most, if the sessions have taken as long before. Hundreds
#: may have something to do at once, and a client's frame waits for as many turns as the frames before it need.
#: (With a fifth of it, pings beside clients that call their starts off were two to four times as late.)
_LONGEST_TURN: Final = 0.02

#: The words for the additions to the protocol that this agent knows.
_FEATURES: Final = (
    *(wire.EXEC_ENDS, wire.FORGETS, wire.OCTETS, wire.FILES, wire.SEEKS, wire.CONTENTS, wire.TCP_BREAKS),
)

# Settings that this agent cannot make. They must be absent or empty.
_UNSUPPORTED: Final = (
    "block_root",
    "dir_mounts",
    "file_mounts",
    "disk_mounts",
    "tmpfs_mounts",
    "host_alias",
    "network",
    "handoff_init",
)


class BootError(Exception):
    """The guest could not be booted.

    Attributes:
        exit_code: 3 if the bootstrap has a setting that this agent refuses, otherwise 1.
    """

    def __init__(self, message: str, exit_code: int = EXIT_FAILED) -> None:
        super().__init__(message)
        self.exit_code = exit_code


@final
@dataclass(frozen=True)
class BootTimes:
    """Nanoseconds of the boot clock: when the agent was started, and when it was set up."""

    started: int
    initialised: int

    @staticmethod
    def now() -> int:
        """The boot clock."""
        return time.clock_gettime_ns(getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC))


@final
class FrameSource:
    """Frames from a stream. Bytes that come after a frame stay buffered for the next call.

    Args:
        stream: the stream.
        before_others: called before this lets other tasks run: what was said about frames need not wait for them.
    """

    def __init__(self, stream: trio.abc.ReceiveStream, before_others: Callable[[], object] = lambda: None) -> None:
        self._stream = stream
        self._before_others = before_others
        self._decoder = wire.FrameDecoder()
        self._turn = Turn(_LONGEST_TURN)
        #: Whether no more bytes come.
        self.is_over = False

    @property
    def has_more(self) -> bool:
        """Whether bytes of further frames have come."""
        return self._decoder.pending > 0

    def keeps_loop(self) -> bool:
        """Whether the caller has kept the loop for a while (again), so that what it has said is to be written."""
        return self._turn.is_long()

    async def next_frame(self) -> wire.Frame | None:
        """The next frame, or ``None`` at the end of the stream or when it is broken.

        A checkpoint only when bytes are needed, or the caller has worked on frames for a turn. Cancelling it loses
        nothing.

        Raises:
            ProtocolError: the stream is out of step, or ended inside a frame.
        """
        if self._turn.is_over:
            self._before_others()
            await self._turn.pause()
        while (frame := self._decoder.next_frame()) is None:
            self._before_others()
            try:
                data = await self._stream.receive_some(_READ_SIZE)
            except (trio.BrokenResourceError, trio.ClosedResourceError):
                self.is_over = True
                return None
            if not data:
                self.is_over = True
                self._decoder.feed_eof()
                return None
            self._decoder.feed(bytes(data))
            self._turn.begin()
        return frame

    async def wait_over(self) -> None:
        """Drop all that comes, until nothing does any more."""
        while not self.is_over:
            data: bytes | bytearray = b""
            with contextlib.suppress(trio.BrokenResourceError, trio.ClosedResourceError):
                data = await self._stream.receive_some(_READ_SIZE)
            self.is_over = not data


async def boot(
    source: FrameSource,
    outbox: Outbox,
    *,
    times: BootTimes,
    agent_version: str,
    flow: wire.Flow,
    is_init: bool,
    user: str | None = None,
    resets: bool = False,
) -> ExecDefaults:
    """Exchange all frames of the boot; returns the bootstrap's defaults for commands.

    ``user`` is that of commands if the bootstrap names none; ``resets`` whether the agent obeys a reset.

    Raises:
        BootError: the host sent another frame or none, or a setting that cannot be made.
    """
    frame = await _wait_for(source, "core.bootstrap")
    bootstrap = _decode_bootstrap(frame)
    if bootstrap.user is not msgspec.UNSET and bootstrap.user.strip():
        user = bootstrap.user
    apply = partial(_apply, bootstrap, is_init, user)
    if user is None:
        defaults, default_user = apply()
    else:
        try:
            # The user may be known only to a server, which may not answer.
            defaults, default_user = await in_thread("for the agent's settings", apply)
        except NoThreadError as exc:
            raise BootError(str(exc)) from exc
    outbox.send_control(wire.encode(wire.InitResolved(default_user)))
    _check_ack(await _wait_for(source, "core.init.ack"))
    now = BootTimes.now()
    ready = wire.Ready(
        boot_time_ns=times.started,
        init_time_ns=times.initialised - times.started,
        ready_time_ns=now,
        agent_version=agent_version,
        flow=flow,
        features=(*_FEATURES, wire.RESETS) if resets else _FEATURES,
    )
    outbox.send_control(wire.encode(ready))
    return defaults


async def _wait_for(source: FrameSource, name: str) -> wire.Frame:
    with trio.move_on_after(BOOT_TIMEOUT):
        try:
            frame = await source.next_frame()
        except ProtocolError as exc:
            raise BootError(f"the host sent bytes that are no {name}: {exc}") from exc
        if frame is None:
            raise BootError(f"the host closed the console before it sent {name}")
        return frame
    raise BootError(f"the host sent no {name} within {BOOT_TIMEOUT:g} seconds")


def _decode_bootstrap(frame: wire.Frame) -> wire.Bootstrap:
    try:
        message = wire.decode(frame)
        version = wire.decode_envelope(frame.body).version
    except ProtocolError as exc:
        raise BootError(f"the host's first message is malformed: {exc}") from exc
    if not isinstance(message, wire.Bootstrap) or frame.id != 0 or version < wire.GENERATION:
        name = wire.type_of(message).name
        raise BootError(f"the host's first message is {name} (id {frame.id}, v {version}), not core.bootstrap")
    return message


def _check_ack(frame: wire.Frame) -> None:
    # The flags of this message are not checked, unlike those of all others.
    try:
        message = wire.decode(frame._replace(flags=0))
    except ProtocolError as exc:
        raise BootError(f"the host's core.init.ack is malformed: {exc}") from exc
    if not isinstance(message, wire.InitAck):
        raise BootError(f"the host sent {wire.type_of(message).name}, not core.init.ack")


def _apply(bootstrap: wire.Bootstrap, is_init: bool, user: str | None) -> tuple[ExecDefaults, wire.DefaultUser]:
    for name in _UNSUPPORTED:
        if getattr(bootstrap, name) not in (msgspec.UNSET, None, [], ()):
            raise _refused(name, "not supported by this agent")
    if bootstrap.security_profile != "default":
        raise _refused("security_profile", "only 'default' is supported by this agent")
    if bootstrap.hostname is not msgspec.UNSET:
        _set_hostname(bootstrap.hostname, is_init=is_init)
    default_user = wire.DefaultUser(os.geteuid(), os.getegid())
    if user is not None:
        try:
            account = find_account(user)
        except UnknownUserError as exc:
            raise _refused("user", str(exc)) from exc
        default_user = wire.DefaultUser(account.uid, account.gid)
    defaults = ExecDefaults(
        user=user,
        cwd=None if bootstrap.default_cwd is msgspec.UNSET else bootstrap.default_cwd,
        env={
            **os.environb,
            **{item.key.encode(): item.value.encode() for item in bootstrap.default_env},
        },
        limits=_settle_limits(bootstrap),
    )
    return defaults, default_user


def _set_hostname(name: str, *, is_init: bool) -> None:
    if not is_init:
        raise _refused("hostname", "this agent shares its machine with others, so it does not rename it")
    try:
        socket.sethostname(name)
    except OSError as exc:
        raise _refused("hostname", str(exc)) from exc


def _settle_limits(bootstrap: wire.Bootstrap) -> tuple[Limit, ...]:
    limits = []
    for item in bootstrap.rlimits:
        number = limit_number(item.resource)
        if number is None:
            raise _refused("rlimits", f"unknown resource {item.resource!r}")
        limit = Limit(number, item.soft, item.hard)
        try:
            raise_hard_limit(limit)
        except OSError as exc:
            raise _refused("rlimits", f"{item.resource}: {exc.strerror}") from exc
        limits.append(limit)
    return tuple(limits)


def _refused(field: str, why: str) -> BootError:
    return BootError(
        f"cannot make the bootstrap's setting {field}: {why}; start the guest without it", EXIT_REFUSED
    )

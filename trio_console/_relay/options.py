"""The options of a relay, and its statistics."""

from __future__ import annotations

import enum
import os
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import TYPE_CHECKING, Literal, final, get_args

from trio_console._relay.router.limits import ClientLimits, RouterLimits
from trio_console._relay.router.rights import Rights
from trio_console._wire.ids import MAX_CLIENTS

if TYPE_CHECKING:
    from collections.abc import Mapping

    from trio_console._relay.audit import AuditLog
    from trio_console._relay.log import SessionLog
    from trio_console._relay.log_writer import LogStatistics

__all__ = ["ClientLimits", "Log", "RelayOptions", "RelayStatistics", "Rights", "ServerOptions", "SlowClient"]

_SlowClientName = Literal["cut", "pause", "drop"]


class SlowClient(enum.Enum):
    """What happens to a client that does not read, if the agent counts no credit.

    With an agent that counts credit this is not used: such a client pauses its own processes.
    """

    #: Cut it after a time. Until then, others wait only once the total budget is used up.
    CUT = "cut"
    #: Stop reading from the guest: everybody waits for the slowest, and nothing is lost.
    PAUSE = "pause"
    #: Drop the data queued for it, and count it.
    DROP = "drop"


def _own() -> Mapping[int, Rights]:
    return {os.geteuid(): Rights()}


@final
@dataclass(frozen=True, slots=True)
class Log:
    """A log file that is rotated by its size: ``path``, ``path.1``, ``path.2`` and so on.

    Args:
        path: path of the file. It is made with mode 0600 if it does not exist; an existing file is appended to.
        max_bytes: size in bytes at which it is rotated; by default 16 MiB. Only regular files are rotated.
        backups: rotated files that are kept; by default 4.

    Raises:
        ValueError: a bound is below 1.
    """

    path: str | os.PathLike[str]
    max_bytes: int = field(default=16 * 1024 * 1024, kw_only=True)
    backups: int = field(default=4, kw_only=True)

    def __post_init__(self) -> None:
        if self.max_bytes < 1 or self.backups < 1:
            raise ValueError(
                f"a log needs max_bytes and backups of at least 1, not {self.max_bytes} and {self.backups}"
            )


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class RelayOptions:
    """What a relay allows its clients, for `serve_relay` and `open_guest`.

    Args:
        rights: the user ids whose processes may connect, and what each may do; by default this process's own user,
            who may do everything. With other users in it the socket's mode is 0666 instead of 0600, and the
            relay asks the kernel for the user of each process that connects.
        limits: the most that one client may have at a time.
        uid_limits: the most that all clients of one user may have together at a time.
        clients: clients at a time, at most 128, which is also the default. In `open_guest` this program is one of
            them; rights, limits and ``idle_timeout`` do not bind it.
        clients_per_uid: clients of one user at a time; by default 128. A client that has gone counts until the
            guest has ended its work.
        idle_timeout: seconds after which a client is disconnected that has had no open session and sent no frame;
            `None`, the default, for never.
        slow_client: what happens to a client whose queue is full, if the guest's agent cannot pause the processes
            of that client alone (the agent of this package can): ``"cut"``, the default, disconnects it after
            ``slow_client_timeout`` seconds; ``"pause"`` pauses all clients until it reads; ``"drop"`` drops the
            output of its commands, whose streams then raise `trio.BrokenResourceError`, and counts it; if that is
            not enough, its file operations and connections end with an error. A client that is not of this
            package, so that it would not hear of it, is disconnected at once instead.
        slow_client_timeout: seconds, by default 10.
        session_log: a file in which every command and its whole output are recorded, as JSON Lines with
            ``session``, ``source`` (``stdout``, ``stderr``, ``output`` of a terminal, ``system``), ``time`` and
            ``text``, or ``base64`` for bytes that are not UTF-8. If the file cannot be written fast enough, the
            log says how many bytes are missing. `None`, the default, for no log.
        audit_log: a file in which it is recorded who connects (user and process id), and which commands, signals,
            file operations and connections are asked for and refused, as JSON Lines; the names of variables, and
            no values. docs/relay.md says more. `None`, the default, for no log. Both logs hold secrets.

    Raises:
        TypeError, ValueError: an option is not valid; the message says which.
    """

    rights: Mapping[int, Rights] = field(default_factory=_own)
    limits: ClientLimits = field(default_factory=ClientLimits)
    uid_limits: ClientLimits = field(default_factory=ClientLimits)
    clients: int = MAX_CLIENTS
    clients_per_uid: int = MAX_CLIENTS
    idle_timeout: float | None = None
    slow_client: _SlowClientName = "cut"
    slow_client_timeout: float = 10.0
    session_log: Log | str | os.PathLike[str] | None = None
    audit_log: Log | str | os.PathLike[str] | None = None

    def __post_init__(self) -> None:
        for uid, rights in self.rights.items():
            if not isinstance(uid, int) or not isinstance(rights, Rights):
                raise TypeError(f"rights must be a mapping of user ids to Rights, not of {uid!r} to {rights!r}")
        object.__setattr__(self, "rights", MappingProxyType(dict(self.rights)))
        if self.slow_client not in get_args(_SlowClientName):
            raise ValueError(f"slow_client must be 'cut', 'pause' or 'drop', not {self.slow_client!r}")
        if not self.slow_client_timeout > 0:
            raise ValueError(f"slow_client_timeout must be above 0 seconds, not {self.slow_client_timeout}")
        for name in ("clients", "clients_per_uid"):
            if not 1 <= getattr(self, name) <= MAX_CLIENTS:
                raise ValueError(f"{name} must be between 1 and {MAX_CLIENTS}, not {getattr(self, name)!r}")
        if self.idle_timeout is not None and not self.idle_timeout > 0:
            raise ValueError(f"idle_timeout must be above 0 seconds, or None, not {self.idle_timeout}")

    def _for_server(
        self,
        session_log: SessionLog | None = None,
        audit_log: AuditLog | None = None,
        *,
        attached: bool = False,
    ) -> ServerOptions:
        return ServerOptions(
            rights=self.rights,
            limits=self._router_limits(),
            client_frames_per_second=self.limits.frames_per_second,
            user_frames_per_second=self.uid_limits.frames_per_second,
            idle_timeout=self.idle_timeout,
            slow_client=SlowClient(self.slow_client),
            slow_client_timeout=self.slow_client_timeout,
            session_log=session_log,
            audit_log=audit_log,
            attached=attached,
        )

    def _router_limits(self) -> RouterLimits:
        usual = RouterLimits()
        client, user = self.limits.queued_bytes, self.uid_limits.queued_bytes
        client = usual.client_budget if client is None else client
        return RouterLimits(
            client_budget=client,
            user_budget=usual.user_budget if user is None else user,
            # One client alone must never use up the budget that all clients have together.
            total_budget=max(usual.total_budget, 2 * client),
            client=self.limits.numbers,
            user=self.uid_limits.numbers,
            clients=self.clients,
            clients_per_user=self.clients_per_uid,
        )


@dataclass(frozen=True, slots=True)
class ServerOptions:
    """The options, as the server needs them.

    Attributes:
        rights: the user ids of clients, and what each may do.
        limits: bounds.
        client_frames_per_second, user_frames_per_second: how fast a client, and all clients of a user, are read.
        idle_timeout: seconds after which a client that does nothing is cut.
        slow_client: the policy for agents without credit.
        slow_client_timeout: seconds before `SlowClient.CUT` cuts.
        session_log: where commands and what they say are recorded.
        audit_log: where it is recorded who does what.
        attached: whether `RelayServer.attach` will be used: keeps a slot for that client.
    """

    rights: Mapping[int, Rights] = field(default_factory=_own)
    limits: RouterLimits = field(default_factory=RouterLimits)
    client_frames_per_second: int | None = None
    user_frames_per_second: int | None = None
    idle_timeout: float | None = None
    slow_client: SlowClient = SlowClient.CUT
    slow_client_timeout: float = 10.0
    session_log: SessionLog | None = None
    audit_log: AuditLog | None = None
    attached: bool = False

    @property
    def socket_mode(self) -> int:
        """The mode of the socket: without other users the kernel already refuses them."""
        return 0o600 if self.rights.keys() <= {os.geteuid()} else 0o666


@dataclass(frozen=True, slots=True)
class RelayStatistics:
    """A relay at one moment; totals since it began unless it says "now".

    Attributes:
        clients: connected now.
        sessions: open now, of all clients.
        clients_served: that got a slot.
        clients_refused: that found no slot, or were not allowed.
        clients_cut: that were disconnected by the relay.
        slots_quarantined: waiting for the guest's last word, now.
        slots_retired: the same, when it did not come in time; they are free when it comes after all.
        frames_from_agent: all of them.
        frames_dropped: of those, frames for ids that no client has.
        frames_refused: from clients, answered here instead of being forwarded.
        bytes_queued: for clients, now.
        bytes_dropped: queued for, or sent by, clients that had gone or did not read.
        stalls: how often data of a client had to wait because the guest admitted no more over its console.
        stalled: the seconds for which it waited so, without a wait that goes on.
        session_log: of the session log, or `None` if there is none.
        audit_log: of the audit log, or `None` if there is none.
    """

    clients: int
    sessions: int
    clients_served: int
    clients_refused: int
    clients_cut: int
    slots_quarantined: int
    slots_retired: int
    frames_from_agent: int
    frames_dropped: int
    frames_refused: int
    bytes_queued: int
    bytes_dropped: int
    stalls: int
    stalled: float
    session_log: LogStatistics | None
    audit_log: LogStatistics | None

"""Turns a request into a plan: the command line, the environment, the identity and the limits of a command.

It looks up users, which may block. This module must not know processes.
"""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final, NamedTuple, final

from trio_console._processes import COMMAND_MARK
from trio_console._wire import name_bytes
from trio_console.agent._process.limits import Limit, limit_number
from trio_console.agent._process.users import Account, find_account, own_home

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from trio_console import _wire as wire

__all__ = ["ExecDefaults", "Plan", "make_plan"]

_MARK_NAME: Final = COMMAND_MARK.encode()
_DEFAULT_TERM: Final = b"xterm-256color"
_SCRIPTS_DIR: Final = b"/.msb/scripts"
_DEFAULT_PATH: Final = b"/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"


@final
@dataclass(frozen=True)
class ExecDefaults:
    """The bootstrap's defaults for all commands.

    Attributes:
        user: as in a request; with ``None`` the user is not switched.
        cwd: ``None`` means the agent's own.
        env: the base of every command's environment: the agent's own with the bootstrap's variables on top.
            (Read once, because reading the whole of ``os.environ`` is slow.)
        limits: set before those of the request, so that these cannot exceed them without privilege.
    """

    user: str | None = None
    cwd: str | None = None
    env: Mapping[bytes, bytes] = field(default_factory=lambda: dict(os.environb))
    limits: tuple[Limit, ...] = ()


@final
class Plan(NamedTuple):
    """A request with everything looked up."""

    argv: list[bytes]
    env: dict[bytes, bytes]
    cwd: bytes | None
    account: Account | None  # None: the agent's own
    limits: tuple[Limit, ...]


def make_plan(request: wire.ExecRequest, defaults: ExecDefaults, first: tuple[Limit, ...], mark: str = "") -> Plan:
    """Make the plan for a request. ``first`` are limits that are set first, ``mark`` is for its processes.

    The request's words are names as `_wire.octets` has them.

    Raises:
        UnknownUserError: there is no such user or group.
    """
    text = request.user if request.user and request.user.strip() else defaults.user
    account = None if text is None else find_account(text)
    home = own_home() if account is None else account.home
    wanted = (
        Limit(number, item.soft, item.hard)
        for item in request.rlimits
        if (number := limit_number(item.resource)) is not None
    )
    cwd = defaults.cwd if request.cwd is None else request.cwd
    return Plan(
        argv=[name_bytes(request.cmd), *map(name_bytes, request.args)],
        env=_environment(request, defaults.env, home, mark),
        cwd=None if cwd is None else name_bytes(cwd),
        account=None if account is None or account.is_current() else account,
        limits=(*first, *defaults.limits, *wanted),
    )


def _environment(
    request: wire.ExecRequest, base: Mapping[bytes, bytes], home: str | None, mark: str
) -> dict[bytes, bytes]:
    asked = dict(_split_entries(request.env))
    env = {**base, **asked}
    if mark:
        env[_MARK_NAME] = mark.encode()
    if request.tty:
        env.setdefault(b"TERM", _DEFAULT_TERM)
    if b"HOME" not in asked:
        # A default from the bootstrap is dropped as well, because HOME belongs to the command's user.
        env.pop(b"HOME", None)
        if home is not None:
            env[b"HOME"] = os.fsencode(home)
    path = env.get(b"PATH", _DEFAULT_PATH)
    if _SCRIPTS_DIR not in path.split(b":"):
        path = _SCRIPTS_DIR + b":" + path
    env[b"PATH"] = path
    return env


def _split_entries(entries: Sequence[str]) -> Iterator[tuple[bytes, bytes]]:
    for entry in entries:
        key, equals, value = name_bytes(entry).partition(b"=")
        if equals:
            yield key, value

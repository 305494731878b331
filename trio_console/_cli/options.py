"""The options of a relay on the command line: each is read from a text, and its mistakes are said by argparse."""

from __future__ import annotations

import argparse
import dataclasses
import pwd
from typing import Any, Final

from trio_console import ClientLimits, Log, RelayOptions, Rights

__all__ = ["add_relay_options", "relay_options"]

_RIGHTS: Final = ("run", "read", "write", "tcp", "shutdown")

_LOG: Final = Log("")  # for its defaults

_NUMBERS: Final = tuple(field.name for field in dataclasses.fields(ClientLimits))


def add_relay_options(parser: argparse.ArgumentParser) -> None:
    """Add what `RelayOptions` has."""
    usual = RelayOptions()
    parser.add_argument(
        "--rights",
        action="append",
        type=_rights,
        metavar="USER=RIGHT,...",
        help=f"let a user's processes connect, with these rights: {', '.join(_RIGHTS)}, 'all' or 'none'; may be "
        "repeated (default: you, with all rights)",
    )
    numbers = ", ".join(_NUMBERS)
    most = f"the most that one client may have: {numbers}"
    for name, text in (("limits", most), ("uid-limits", "the same for all clients of a user together")):
        parser.add_argument(
            f"--{name}", type=_limits, default=ClientLimits(), metavar="NAME=NUMBER,...", help=text
        )
    for name, whose in (("clients", "clients"), ("clients-per-uid", "clients of one user")):
        parser.add_argument(
            f"--{name}", type=int, default=usual.clients, metavar="NUMBER", help=f"the most {whose} (default 128)"
        )
    parser.add_argument(
        "--idle-timeout",
        type=float,
        default=3600.0,
        metavar="SECONDS",
        help="disconnect a client that has had no open session and sent no frame for so long; 0 for never "
        "(default 3600)",
    )
    parser.add_argument(
        "--slow-client",
        choices=["cut", "pause", "drop"],
        default=usual.slow_client,
        help="what to do with a client that does not read, if the guest's agent counts no credit (default cut)",
    )
    parser.add_argument(
        "--slow-client-timeout",
        type=float,
        default=usual.slow_client_timeout,
        metavar="SECONDS",
        help="before 'cut' cuts (default 10)",
    )
    logs = (
        ("session-log", "record every command and its output, as JSON Lines"),
        ("audit-log", "record who connects, and what is asked for and refused, as JSON Lines"),
    )
    for name, text in logs:
        parser.add_argument(f"--{name}", metavar="FILE", help=f"{text} (it holds secrets)")
        size, kept = _LOG.max_bytes, _LOG.backups
        parser.add_argument(
            f"--{name}-bytes", type=int, default=size, metavar="NUMBER", help=f"when to rotate it (default {size})"
        )
        parser.add_argument(
            f"--{name}-backups", type=int, default=kept, metavar="NUMBER", help=f"files to keep (default {kept})"
        )


def relay_options(args: argparse.Namespace) -> RelayOptions:
    """The options that were given.

    Raises:
        ValueError: one is not valid.
    """
    given: dict[str, Any] = {} if args.rights is None else {"rights": dict(args.rights)}
    return RelayOptions(
        **given,
        limits=args.limits,
        uid_limits=args.uid_limits,
        clients=args.clients,
        clients_per_uid=args.clients_per_uid,
        idle_timeout=args.idle_timeout or None,
        slow_client=args.slow_client,
        slow_client_timeout=args.slow_client_timeout,
        session_log=_log(args.session_log, args.session_log_bytes, args.session_log_backups),
        audit_log=_log(args.audit_log, args.audit_log_bytes, args.audit_log_backups),
    )


def _log(path: str | None, max_bytes: int, backups: int) -> Log | None:
    return None if path is None else Log(path, max_bytes=max_bytes, backups=backups)


def _rights(text: str) -> tuple[int, Rights]:
    user, equals, words = text.rpartition("=")
    if not equals:
        raise argparse.ArgumentTypeError(f"{text!r} has no rights: give some, as {text}=run,read")
    granted = {"all": set(_RIGHTS), "none": set[str]()}.get(words, set(words.split(",")))
    if unknown := granted - set(_RIGHTS):
        raise argparse.ArgumentTypeError(f"{min(unknown)!r} is no right: they are {', '.join(_RIGHTS)}")
    return _uid(user), Rights(
        run="run" in granted,
        files="write" if "write" in granted else "read" if "read" in granted else None,
        tcp="tcp" in granted,
        shutdown="shutdown" in granted,
    )


def _uid(user: str) -> int:
    if user.isascii() and user.isdigit():
        return int(user)
    try:
        return pwd.getpwnam(user).pw_uid
    except KeyError:
        raise argparse.ArgumentTypeError(f"there is no user {user!r}") from None


def _limits(text: str) -> ClientLimits:
    numbers: dict[str, int] = {}
    for part in text.split(","):
        name, _, number = part.partition("=")
        name = name.replace("-", "_")
        if name not in _NUMBERS:
            raise argparse.ArgumentTypeError(f"{name!r} is no limit: they are {', '.join(_NUMBERS)}")
        if not number.isascii() or not number.isdigit():
            raise argparse.ArgumentTypeError(f"{name} needs a number, as {name}=100")
        numbers[name] = int(number)
    try:
        return ClientLimits(**numbers)
    except ValueError as exc:
        raise argparse.ArgumentTypeError(str(exc)) from None

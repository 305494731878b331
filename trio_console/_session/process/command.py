"""What a user says of a command, checked and turned into the request that says it to the agent."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeAlias, final

from trio_console import _wire as wire

if TYPE_CHECKING:
    from collections.abc import Iterable

__all__ = ["Command", "CommandLine", "Rlimits", "StrOrPath"]

StrOrPath: TypeAlias = "str | bytes | os.PathLike[str] | os.PathLike[bytes]"
CommandLine: TypeAlias = "str | Sequence[StrOrPath]"

#: Resource name (``"nofile"``) to a (soft, hard) pair, or to one number for both. -1 is unlimited.
Rlimits: TypeAlias = Mapping[str, "int | tuple[int, int]"]

_RESOURCES = frozenset(
    {"as", "core", "cpu", "data", "fsize", "locks", "memlock", "msgqueue", "nice", "nofile", "nproc"}
    | {"rss", "rtprio", "rttime", "sigpending", "stack"}
)
_UNLIMITED = 2**64 - 1


@final
@dataclass(frozen=True)
class Command:
    """A checked command. ``given`` is what the user gave, ``argv`` what it means."""

    given: CommandLine
    argv: list[str]
    env: list[str]
    cwd: str | None
    user: str | None
    rlimits: list[wire.Rlimit]
    tty: bool
    rows: int
    cols: int

    def request(self, window: int | None) -> wire.ExecRequest:
        """The request; with a window, one that asks for credit."""
        return wire.ExecRequest(
            cmd=self.argv[0],
            args=self.argv[1:],
            env=self.env,
            cwd=self.cwd,
            user=self.user,
            tty=self.tty,
            rows=self.rows,
            cols=self.cols,
            rlimits=self.rlimits,
            window=wire.UNSET if window is None else window,
        )


def make_command(
    command: CommandLine,
    *,
    shell: bool,
    env: Mapping[str, str] | None,
    cwd: StrOrPath | None,
    user: str | int | None,
    rlimits: Rlimits | None,
    tty: bool,
    rows: int,
    cols: int,
) -> Command:
    """Check what the user gave; raises `TypeError` and `ValueError` before anything is sent."""
    return Command(
        given=command,
        argv=_arguments(command, shell),
        env=[f"{_env_key(key)}={_text(value, 'an environment value')}" for key, value in (env or {}).items()],
        cwd=None if cwd is None else _text(cwd, "cwd"),
        user=None if user is None else _user(user),
        rlimits=list(_limits(rlimits or {})),
        tty=tty,
        rows=rows,
        cols=cols,
    )


def _arguments(command: CommandLine, shell: bool) -> list[str]:
    if isinstance(command, (str, bytes, os.PathLike)):
        if shell:
            return ["/bin/sh", "-c", _text(command, "a command")]
        raise TypeError(
            f"command must be a sequence of strings, such as ['ls', '-l'], not {type(command).__name__}; "
            "a shell command line needs shell=True"
        )
    if shell:
        raise TypeError("with shell=True the command must be one string")
    args = [_text(arg, "an argument") for arg in command]
    if not args:
        raise ValueError("command must not be empty")
    if not args[0]:
        raise ValueError("the command's name must not be empty")
    return args


def _env_key(key: str) -> str:
    key = _text(key, "an environment name")
    if not key or "=" in key:
        raise ValueError(f"illegal environment variable name {key!r}")
    return key


def _user(user: object) -> str:
    if not isinstance(user, (str, int)) or isinstance(user, bool):
        raise TypeError(f"user must be a string or a number, not {type(user).__name__}")
    return _text(str(user), "user")


def _text(value: object, what: str) -> str:
    """The text to send; the wire carries UTF-8 only."""
    if not isinstance(value, (str, bytes, os.PathLike)):
        raise TypeError(f"{what} must be a string or a path, not {type(value).__name__}")
    text = os.fspath(value)
    if isinstance(text, bytes):
        text = os.fsdecode(text)
    if "\0" in text:
        raise ValueError(f"embedded null byte in {what}")
    try:
        text.encode()
    except UnicodeEncodeError:
        raise ValueError(f"{what} is not valid UTF-8, which is all the protocol carries: {text!r}") from None
    return text


def _limits(rlimits: Rlimits) -> Iterable[wire.Rlimit]:
    for name, value in rlimits.items():
        # The agent skips names it does not know, silently; here is where a typing error is still an error.
        if name.lower() not in _RESOURCES:
            raise ValueError(f"unknown resource {name!r} in rlimits; known: {', '.join(sorted(_RESOURCES))}")
        soft, hard = (value, value) if isinstance(value, int) else value
        yield wire.Rlimit(
            resource=name.lower(),
            soft=_UNLIMITED if soft == -1 else soft,
            hard=_UNLIMITED if hard == -1 else hard,
        )

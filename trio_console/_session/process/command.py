"""A user's description of a command: it is checked once, and turned into the request for the agent."""

from __future__ import annotations

import math
import os
import subprocess
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final, TypeAlias, final

import msgspec

from trio_console import _wire as wire
from trio_console._session.files.names import name_of, need_octets
from trio_console._session.files.pure_path import PureGuestPath

if TYPE_CHECKING:
    from collections.abc import Iterable

    from trio_console._session.connection import Connection
    from trio_console._session.files.names import Name

__all__ = ["NOT_GIVEN", "Command", "CommandLine", "Input", "Rlimits", "target_of"]

CommandLine: TypeAlias = "str | bytes | os.PathLike[str] | os.PathLike[bytes] | PureGuestPath | Sequence[Name]"
Input: TypeAlias = "bytes | bytearray | memoryview | int | None"

#: Resource name (``"nofile"``) to a (soft, hard) pair, or to one number for both. -1 is unlimited.
Rlimits: TypeAlias = Mapping[str, "int | tuple[int, int]"]

_RESOURCES = frozenset(
    {"as", "core", "cpu", "data", "fsize", "locks", "memlock", "msgqueue", "nice", "nofile", "nproc"}
    | {"rss", "rtprio", "rttime", "sigpending", "stack"}
)
_UNLIMITED = 2**64 - 1


@final
class _NotGiven:
    """Stands for `None` where it matters that it was not given."""

    def __repr__(self) -> str:
        return "None"


NOT_GIVEN: Final[Any] = _NotGiven()

# As trio says it.
_NO_PIPE = "subprocess.PIPE is only valid with nursery.start, since that's the only way to access the pipe"

# Seconds, whose milliseconds fit into the request.
_MAX_DRAIN = 4_000_000


@final
@dataclass(frozen=True, eq=False)
class Command:
    """A command with all its options. The constructor checks them; nothing is sent.

    Attributes:
        connection: leads to the guest in which it is to run.
        given: the command itself. For this and the other attributes see `Guest.run_process`.
        drain: as there; the default, `None`, is that of `Guest.open_process`.
        request: the request for the agent, without credit.
        octets: whether its words are sent as octets, because one is not UTF-8.

    Raises:
        TypeError, ValueError: an argument is not valid; the message names it, and says what is.
        UnsupportedByPeer: a word is not UTF-8, and the agent takes only UTF-8.
    """

    connection: Connection
    given: CommandLine
    stdin: Input
    stdout: int | None
    stderr: int | None
    shell: bool
    env: Mapping[str, Name] | None
    cwd: Name | None
    user: str | int | None
    rlimits: Rlimits | None
    tty: bool
    rows: int
    cols: int
    capture_stdout: bool = False
    capture_stderr: bool = False
    drain: float | None = None
    request: wire.ExecRequest = field(init=False)
    octets: bool = field(init=False)

    def __post_init__(self) -> None:
        _check_targets(self.stdin, self.stdout, self.stderr)
        _check_drain(self.drain)
        argv = self._arguments()
        request = wire.ExecRequest(
            cmd=argv[0],
            args=argv[1:],
            env=[
                f"{self._env_key(key)}={self._name(text, 'an environment value')}"
                for key, text in (self.env or {}).items()
            ],
            cwd=None if self.cwd is None else self._name(self.cwd, "cwd"),
            user=None if self.user is None else _user(self.user),
            tty=self.tty,
            rows=self.rows,
            cols=self.cols,
            rlimits=list(_limits(self.rlimits or {})),
        )
        words = [request.cmd, *request.args, *request.env, *([] if request.cwd is None else [request.cwd])]
        # (The class is frozen, so an assignment would raise.)
        object.__setattr__(self, "request", request)
        object.__setattr__(self, "octets", need_octets(words, self.connection))

    def _name(self, value: object, what: str) -> str:
        return name_of(value, what, self.connection)

    def _arguments(self) -> list[str]:
        command = self.given
        if isinstance(command, (str, bytes)):
            if self.shell:
                return ["/bin/sh", "-c", self._name(command, "a command")]
            raise TypeError(
                "command must be a sequence of strings, such as ['ls', '-l'], or a path, not "
                f"{type(command).__name__}; a shell command line needs shell=True"
            )
        if self.shell:
            raise TypeError("with shell=True the command must be one string, not a path or a sequence")
        if isinstance(command, (os.PathLike, PureGuestPath)):
            command = [command]  # as trio: a program without arguments
        args = [self._name(arg, "an argument") for arg in command]
        if not args:
            raise ValueError("command must not be empty")
        if not args[0]:
            raise ValueError("the command's name must not be empty")
        return args

    def _env_key(self, key: object) -> str:
        name = self._name(key, "an environment name")
        if not name or "=" in name:
            raise ValueError(f"illegal environment variable name {name!r}")
        return name

    def check_no_pipes(self) -> None:
        """Refuse pipes, for a call that does not return the process to its caller.

        Raises:
            ValueError: a stream is ``subprocess.PIPE``.
        """
        if isinstance(self.stdin, int) and self.stdin == subprocess.PIPE:
            raise ValueError(f"stdin={_NO_PIPE}; use nursery.start or pass the data you want to write directly")
        for name, target in (("stdout", self.stdout), ("stderr", self.stderr)):
            if target == subprocess.PIPE:
                raise ValueError(f"{name}={_NO_PIPE}")

    @property
    def name(self) -> str:
        """The name of the program."""
        return self.request.cmd

    def request_with(self, window: int | None, *, ends: bool) -> wire.ExecRequest:
        """The request for an agent.

        Args:
            window: bytes, if the agent counts credit.
            ends: whether the agent has the feature `wire.EXEC_ENDS`.

        """
        request = self.request
        if self.octets:
            request = msgspec.structs.replace(
                request,
                cmd=wire.packed(request.cmd),
                args=[wire.packed(arg) for arg in request.args],
                env=[wire.packed(entry) for entry in request.env],
                cwd=None if request.cwd is None else wire.packed(request.cwd),
                octets=True,
            )
        # (Only if the agent counts no credit, a relay may drop output.)
        if window is not None:
            request = msgspec.structs.replace(request, window=window)
        else:
            request = msgspec.structs.replace(request, drops=True)
        if ends:
            drain = None if self.drain is None else math.ceil(self.drain * 1000)
            request = msgspec.structs.replace(request, ends=wire.ExecEnds(drain), stdio=self._stdio())
        return request

    def read_name(self, text: str) -> str:
        """A name in an answer of the agent: of octets, if the request was of them."""
        if self.octets:
            with suppress(ValueError):
                return wire.unpacked(text)
        return text

    def _stdio(self) -> wire.ExecStdio | wire.UnsetType:
        if self.tty:
            return wire.UNSET
        no_input = self.stdin is None or _is_target(self.stdin, subprocess.DEVNULL)
        return wire.ExecStdio(
            "null" if no_input else "pipe",
            "null" if self.stdout == subprocess.DEVNULL else "pipe",
            "stdout"
            if self.stderr == subprocess.STDOUT
            else "null"
            if self.stderr == subprocess.DEVNULL
            else "pipe",
        )


def _is_target(stdin: Input, target: int) -> bool:
    return isinstance(stdin, int) and stdin == target


def _check_drain(drain: float | None) -> None:
    if drain is not None and not 0 <= drain <= _MAX_DRAIN:
        raise ValueError(f"drain must be between 0 and {_MAX_DRAIN} seconds, or None for ever, not {drain!r:.80}")


def _check_targets(stdin: object, stdout: object, stderr: object) -> None:
    """Raise TypeError for an argument that cannot be a process's stdin, stdout or stderr."""
    if isinstance(stdin, str):
        raise UnicodeError("process stdin must be bytes, not str")
    allowed = {None, subprocess.PIPE, subprocess.DEVNULL}
    if isinstance(stdin, str):
        raise UnicodeError("stdin must be bytes, not str: encode the text")
    if not isinstance(stdin, (bytes, bytearray, memoryview)) and not _is_one_of(stdin, allowed):
        raise _bad_target("stdin", stdin, "bytes, PIPE or DEVNULL")
    if not _is_one_of(stdout, allowed):
        raise _bad_target("stdout", stdout, "PIPE, DEVNULL or None")
    if not _is_one_of(stderr, {*allowed, subprocess.STDOUT}):
        raise _bad_target("stderr", stderr, "PIPE, DEVNULL, STDOUT or None")


def _is_one_of(value: object, allowed: set[int | None]) -> bool:
    return value is None or (isinstance(value, int) and value in allowed)


def _bad_target(name: str, value: object, allowed: str) -> Exception:
    return TypeError(
        f"{name} must be {allowed}, not {value!r:.80}: a guest shares no descriptors with this program"
    )


def target_of(name: str, target: int | None, capture: bool) -> int | None:
    """The target of a stream that may be captured, `None` if it was not given.

    Raises:
        ValueError: it was given, perhaps as `None`, and is to be captured.
    """
    if target is NOT_GIVEN:
        return None
    if capture:
        raise ValueError(f"can't specify both {name} and capture_{name}")
    return target


def _user(user: object) -> str:
    if not isinstance(user, (str, int)) or isinstance(user, bool):
        raise TypeError(f"user must be a string or a number, not {type(user).__name__}")
    text = str(user)
    if "\0" in text:
        raise ValueError("embedded null byte in user")
    try:
        text.encode()
    except UnicodeEncodeError:
        raise ValueError(f"user is not valid UTF-8: {text!r:.80}") from None
    return text


def _limits(rlimits: Rlimits) -> Iterable[wire.Rlimit]:
    for name, value in rlimits.items():
        # An unknown name is refused here, because the agent ignores names that it does not know.
        if name.lower() not in _RESOURCES:
            raise ValueError(f"unknown resource {name!r} in rlimits; known: {', '.join(sorted(_RESOURCES))}")
        soft, hard = (value, value) if isinstance(value, int) else value
        yield wire.Rlimit(
            resource=name.lower(),
            soft=_UNLIMITED if soft == -1 else soft,
            hard=_UNLIMITED if hard == -1 else hard,
        )

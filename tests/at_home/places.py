"""Where a case is played: at home, with trio itself, or in a guest. Both have the same methods."""

from __future__ import annotations

import errno
import fcntl
import grp
import os
import pwd
import signal
import struct
import subprocess
import termios
from contextlib import asynccontextmanager, suppress
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Self

import trio

from tests.at_home.beyond import ISOLATED
from tests.tools.leftovers import runs
from tests.tools.limits import ENDING, HANG

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable

    import trio_console

__all__ = ["Here", "Home", "InGuest", "failed"]


def failed(exc: BaseException) -> tuple[object, ...]:
    """An exception as a part of an outcome."""
    if isinstance(exc, BaseExceptionGroup):
        return (type(exc).__name__, *map(failed, exc.exceptions))
    if isinstance(exc, OSError):
        return (_name(exc), exc.errno, exc.strerror, exc.filename, exc.filename2)
    if isinstance(exc, subprocess.CalledProcessError):
        return (_name(exc), exc.returncode, exc.output, exc.stderr)
    return (_name(exc),)


def _name(exc: BaseException) -> str:
    """The name of the exception's class, or of trio's class that a class of this package stands for."""
    return next(cls.__name__ for cls in type(exc).__mro__ if not cls.__module__.startswith("trio_console"))


class Here:
    """A place, and the directory of one case in it.

    Attributes:
        name: ``home``, or the way to the guest.
        dir: an empty directory for this case, which every user may enter.
        patience: seconds for something that happens in a guest and never at home.
    """

    def __init__(self, name: str, directory: str) -> None:
        self.name: Final = name
        self.dir: Final = directory
        self.patience = HANG
        self._to_kill: list[int] = []

    def file(self, name: str, data: bytes | None = None, *, mode: int = 0o644) -> str:
        """The name of a file in the directory; it is written if there is ``data``."""
        path = os.path.join(self.dir, name)
        if data is not None:
            with open(path, "wb") as file:
                file.write(data)
            os.chmod(path, mode)
        return path

    def scrub(self, outcome: Any) -> Any:
        """The outcome without the name of the directory, which differs."""
        if isinstance(outcome, str):
            return outcome.replace(self.dir, "DIR")
        if isinstance(outcome, bytes):
            return outcome.replace(self.dir.encode(), b"DIR")
        if isinstance(outcome, dict):
            return {key: self.scrub(value) for key, value in outcome.items()}
        if isinstance(outcome, (list, tuple)):
            return type(outcome)(map(self.scrub, outcome))
        return outcome

    # Processes that outlive their commands

    def kill_later(self, pid: int) -> int:
        """Kill a process when the case is over; it may have ended before."""
        self._to_kill.append(pid)
        return pid

    def clean_up(self) -> None:
        for pid in self._to_kill:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)

    async def ended(self, pid: int) -> bool:
        """Whether a process ends within a while. (A process that is to live is looked at with `runs`.)"""
        with trio.move_on_after(ENDING):
            while runs(pid):
                await trio.sleep(0.002)
            return True
        return False

    async def appears(self, path: str) -> bytes:
        """The contents of a file, once it is there and not empty."""
        while True:
            with suppress(FileNotFoundError):
                if data := Path(path).read_bytes():
                    return data
            await trio.sleep(0.002)

    # What is compared

    async def run_process(self, command: Any, **options: Any) -> subprocess.CompletedProcess[bytes]:
        raise NotImplementedError

    def open_process(self, command: Any, **options: Any) -> Any:
        raise NotImplementedError

    async def open_file(self, file: Any, *args: Any, **options: Any) -> Any:
        raise NotImplementedError

    def path(self, path: Any) -> Any:
        raise NotImplementedError

    async def open_tcp_stream(self, host: Any, port: Any, **options: Any) -> Any:
        raise NotImplementedError

    async def result(self, call: Callable[..., Awaitable[object]], *args: Any, **options: Any) -> Any:
        """The result of a call, or its exception as a part of an outcome."""
        try:
            return await call(*args, **options)
        except Exception as exc:
            return failed(exc)

    async def ran(self, command: Any, **options: Any) -> Any:
        """Status, output and error output of a command that is run, or its exception."""
        options = {"capture_stdout": True, "capture_stderr": "stderr" not in options, "check": False} | options
        done = await self.result(partial(self.run_process, command, **options))
        if isinstance(done, subprocess.CompletedProcess):
            return done.returncode, done.stdout, done.stderr
        return done


class Home(Here):
    """trio itself, on this machine.

    Args:
        directory: as for `Here`.
        prefix: words that stand before every command: of a program that runs it.
    """

    def __init__(self, directory: str, prefix: tuple[str, ...] = ()) -> None:
        super().__init__("exec" if prefix else "home", directory)
        self.patience = 0.3
        self.prefix = prefix

    def program(self, *command: str | bytes, **options: Any) -> Any:
        """Open a command as a process, with pipes unless something else is said."""
        options = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE} | options
        return self.open_process([*self.prefix, *command], **options)

    async def run_process(self, command: Any, **options: Any) -> subprocess.CompletedProcess[bytes]:
        options.pop("drain", None)
        if options.pop("tty", False):
            return await self._run_on_terminal(command, options)
        return await trio.run_process(command, **_translated(options))

    @asynccontextmanager
    async def open_process(self, command: Any, **options: Any) -> AsyncIterator[Any]:
        if options.pop("tty", False):
            async with self._open_on_terminal(command, options) as process:
                yield process
            return
        process = await trio.lowlevel.open_process(command, **_translated(options))
        try:
            yield process
        finally:
            with trio.CancelScope(shield=True):
                process.kill()
                await process.wait()
            for stream in (process.stdin, process.stdout, process.stderr):
                if stream is not None:
                    await trio.aclose_forcefully(stream)

    async def open_file(self, file: Any, *args: Any, **options: Any) -> Any:
        return await trio.open_file(file, *args, **options)

    def path(self, path: Any) -> Any:
        return trio.Path(path)

    async def open_tcp_stream(self, host: Any, port: Any, **options: Any) -> Any:
        return await trio.open_tcp_stream(host, port, **options)

    # A terminal, as a terminal program gives it to a command

    async def _run_on_terminal(self, command: Any, options: dict[str, Any]) -> subprocess.CompletedProcess[bytes]:
        check = options.pop("check", True)
        for name in ("capture_stdout", "capture_stderr"):
            options.pop(name, None)
        stdin = options.pop("stdin", b"")
        async with self._open_on_terminal(command, options) as process:
            if stdin:
                await process.stdin.send_all(stdin)
            data = b"".join([chunk async for chunk in process.stdout])
            status = await process.wait()
        if check and status:
            raise subprocess.CalledProcessError(status, command, output=data)
        return subprocess.CompletedProcess(command, status, data, None)

    @asynccontextmanager
    async def _open_on_terminal(self, command: Any, options: dict[str, Any]) -> AsyncIterator[Any]:
        rows, cols = options.pop("rows", 24), options.pop("cols", 80)
        for name in ("stdin", "stdout"):
            options.pop(name, None)
        master, slave = os.openpty()
        fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", rows, cols, 0, 0))
        if "user" in options:
            os.chown(slave, pwd.getpwnam(options["user"]).pw_uid, -1)
        env = {"TERM": "xterm-256color", **os.environ, **(options.pop("env", None) or {})}
        process = await trio.lowlevel.open_process(
            command,
            stdin=slave,
            stdout=slave,
            stderr=slave,
            env=env,
            preexec_fn=partial(_take_terminal, slave),
            **_translated(options),
        )
        terminal = _Terminal(process, master, slave)
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(terminal.let_go)
                yield terminal
                process.kill()
        finally:
            with trio.CancelScope(shield=True):
                process.kill()
                await process.wait()
                await terminal.aclose()


def _take_terminal(slave: int) -> None:
    os.setsid()
    fcntl.ioctl(slave, termios.TIOCSCTTY, 0)


class _Terminal:
    """A process on a terminal. Its output ends when the last process lets the terminal go after the exit."""

    def __init__(self, process: trio.Process, master: int, slave: int) -> None:
        self._process = process
        self._slave = slave
        self._stream = trio.lowlevel.FdStream(master)
        self.stdin = self.stdout = self
        self.pid = process.pid
        self.wait = process.wait
        self.send_signal = process.send_signal

    def resize(self, rows: int, cols: int) -> None:
        fcntl.ioctl(self._stream.fileno(), termios.TIOCSWINSZ, struct.pack("HHHH", rows, cols, 0, 0))

    async def send_all(self, data: bytes) -> None:
        await self._stream.send_all(data)

    async def receive_some(self, max_bytes: int | None = None) -> bytes:
        try:
            return bytes(await self._stream.receive_some(max_bytes))
        except trio.BrokenResourceError as exc:
            cause = exc.__cause__
            if isinstance(cause, OSError) and cause.errno == errno.EIO:
                return b""
            raise

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> bytes:
        if chunk := await self.receive_some():
            return chunk
        raise StopAsyncIteration

    async def let_go(self) -> None:
        """Hold the terminal until the exit, so that it has no end before."""
        await self._process.wait()
        if self._slave >= 0:
            os.close(self._slave)
            self._slave = -1

    async def aclose(self) -> None:
        await self.let_go()
        await self._stream.aclose()


def _translated(options: dict[str, Any]) -> dict[str, Any]:
    """Options as `subprocess` has them."""
    options = dict(options)
    user = options.pop("user", None)
    if isinstance(user, str):
        name, colon, group = user.partition(":")
        entry = pwd.getpwnam(name) if not name.isdigit() else None
        options["user"] = int(name) if entry is None else entry.pw_uid
        gid = os.getgid() if entry is None else entry.pw_gid
        if colon:
            gid = int(group) if group.isdigit() else grp.getgrnam(group).gr_gid
        options["group"] = gid
        options["extra_groups"] = [] if entry is None else os.getgrouplist(name, gid)
    elif user is not None:
        options["user"] = user
    if options.get("env") is not None:
        options["env"] = {**os.environ, **options["env"]}
    return options


class InGuest(Here):
    """A guest, by one of the ways to it."""

    def __init__(self, name: str, guest: trio_console.Guest, directory: str) -> None:
        super().__init__(name, directory)
        self.guest: Final = guest

    def kill_later(self, pid: int) -> int:
        assert self.name not in ISOLATED, "this number is another process's here"
        return super().kill_later(pid)

    async def run_process(self, command: Any, **options: Any) -> subprocess.CompletedProcess[bytes]:
        return await self.guest.run_process(command, **options)

    def open_process(self, command: Any, **options: Any) -> Any:
        return self.guest.open_process(command, **options)

    async def open_file(self, file: Any, *args: Any, **options: Any) -> Any:
        return await self.guest.open_file(file, *args, **options)

    def path(self, path: Any) -> Any:
        return self.guest.path(path)

    async def open_tcp_stream(self, host: Any, port: Any, **options: Any) -> Any:
        return await self.guest.open_tcp_stream(host, port, **options)

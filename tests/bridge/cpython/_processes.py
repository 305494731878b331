"""Processes of a guest with the interface of `subprocess.Popen`."""

from __future__ import annotations

import math
import os
import stat
import subprocess
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import trio

from tests.bridge.cpython._home import HOME

if TYPE_CHECKING:
    from collections.abc import Iterator

    from trio_console import GuestProcess

__all__ = ["Popen"]

_REAL = subprocess.Popen

#: Seconds for which output that somebody still holds is waited for after the exit.
_DRAIN = 2.0

_CHUNK = 64 * 1024

#: Arguments that are passed on if they are not the default, in the order of `subprocess.Popen`'s private method.
_OPTIONS = {
    "executable": None,
    "preexec_fn": None,
    "close_fds": True,
    "pass_fds": (),
    "startupinfo": None,
    "creationflags": 0,
}
_MORE_OPTIONS = {
    "restore_signals": True,
    "gid": None,
    "gids": None,
    "uid": None,
    "umask": -1,
    "start_new_session": False,
    "process_group": -1,
}


class Popen(_REAL):  # type: ignore[type-arg]
    """Stands for `subprocess.Popen`, all of which is used but what starts, ends and waits for a process.

    Its pipes lead to tasks, which pass everything on between them and the streams of the process in the guest.
    (What the guests themselves start are processes of this machine.)
    """

    _process: GuestProcess | None = None

    def _execute_child(self, *given: Any) -> None:
        if HOME.within():
            super()._execute_child(*given)  # type: ignore[misc]
            return
        names = ("args", *list(_OPTIONS)[:4], "cwd", "env", *list(_OPTIONS)[4:], "shell")
        values = dict(zip(names, given, strict=False))
        handles = given[len(names) : len(names) + 6]
        defaults = _OPTIONS | _MORE_OPTIONS
        values |= dict(zip(_MORE_OPTIONS, given[len(names) + 6 :], strict=False))
        options = {name: value for name, value in values.items() if name in defaults and value != defaults[name]}
        options |= {name: values[name] for name in ("cwd", "env", "shell")}
        try:
            self._begin(values["args"], handles, options)
        finally:
            self._close_pipe_fds(*handles)  # type: ignore[attr-defined]
        self._child_created = True

    def _begin(self, args: Any, handles: tuple[int, ...], options: dict[str, Any]) -> None:
        stdin, _, _, stdout, _, stderr = handles
        options |= {"stdin": self._kind(stdin), "stdout": self._kind(stdout), "stderr": self._kind(stderr)}
        if stderr == stdout != -1:
            options["stderr"] = subprocess.STDOUT
        ends = [
            os.dup(fd) if kind == subprocess.PIPE else -1
            for fd, kind in zip(
                (stdin, stdout, stderr), (options["stdin"], options["stdout"], options["stderr"]), strict=True
            )
        ]
        command = args if isinstance(args, (str, bytes, os.PathLike)) else [*args]
        try:
            self._process = HOME.run(_Life(self).begin, HOME.guest(), command, options, ends)
        except BaseException:
            for fd in ends:
                if fd != -1:
                    os.close(fd)
            raise
        self.pid = self._process.pid

    def _kind(self, fd: int) -> int | None:
        if fd == -1:
            return None
        return subprocess.DEVNULL if fd == getattr(self, "_devnull", None) else subprocess.PIPE

    def _internal_poll(self, *given: Any, **options: Any) -> Any:
        if self._process is None:
            return super()._internal_poll(*given, **options)  # type: ignore[misc]
        if self.returncode is None:
            self.returncode = self._process.poll()
        return self.returncode

    def _wait(self, timeout: float | None) -> Any:
        if self._process is None:
            return super()._wait(timeout)  # type: ignore[misc]
        if self.returncode is None:
            self.returncode = HOME.run(self._life.wait, timeout)
        if self.returncode is None:
            raise subprocess.TimeoutExpired(self.args, timeout or 0)
        return self.returncode

    def send_signal(self, sig: int) -> None:
        if self._process is None:
            super().send_signal(sig)
        elif self.poll() is None:
            self._process.send_signal(sig)


class _Life:
    """The block of a process, and the tasks of its pipes."""

    def __init__(self, popen: Popen) -> None:
        popen._life = self
        self._written = trio.Event()

    async def begin(self, guest: Any, command: Any, options: dict[str, Any], ends: list[int]) -> GuestProcess:
        self.process: GuestProcess = await HOME.nursery.start(self._hold, guest, command, options, ends)
        return self.process

    async def _hold(
        self, guest: Any, command: Any, options: dict[str, Any], ends: list[int], task_status: Any
    ) -> None:
        async with guest.open_process(command, **options) as process:
            task_status.started(process)
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._write, process, ends[1:])
                if process.stdin is not None:
                    nursery.start_soon(_pass_in, ends[0], process)
                await process.wait()
                await self._written.wait()
                nursery.cancel_scope.cancel()

    async def _write(self, process: GuestProcess, ends: list[int]) -> None:
        async with trio.open_nursery() as nursery:
            for fd, stream in zip(ends, (process.stdout, process.stderr), strict=True):
                if stream is not None:
                    nursery.start_soon(_pass_out, fd, stream)
        self._written.set()

    async def wait(self, seconds: float | None) -> int | None:
        with trio.move_on_after(math.inf if seconds is None else seconds):
            await self.process.wait()
        if self.process.returncode is not None:
            with trio.move_on_after(_DRAIN):
                await self._written.wait()
        return self.process.returncode


@contextmanager
def _closing(fd: int) -> Iterator[None]:
    try:
        yield
    finally:
        os.close(fd)


def _is_pipe(fd: int) -> bool:
    return stat.S_ISFIFO(os.fstat(fd).st_mode)


async def _pass_in(fd: int, process: GuestProcess) -> None:
    assert process.stdin is not None
    try:
        async with process.stdin:
            if _is_pipe(fd):
                async with trio.lowlevel.FdStream(fd) as pipe:
                    async for chunk in pipe:
                        await process.stdin.send_all(chunk)
            else:
                with _closing(fd):
                    while chunk := await trio.to_thread.run_sync(os.read, fd, _CHUNK):
                        await process.stdin.send_all(chunk)
    except trio.BrokenResourceError:
        pass  # the process has closed its end, and with the pipe's end closed the writer notices


async def _pass_out(fd: int, stream: trio.abc.ReceiveStream) -> None:
    async with stream:
        if _is_pipe(fd):
            try:
                async with trio.lowlevel.FdStream(fd) as pipe:
                    async for chunk in stream:
                        await pipe.send_all(chunk)
            except trio.BrokenResourceError:
                pass  # nobody reads any more
        else:
            with _closing(fd):
                async for chunk in stream:
                    os.write(fd, chunk)

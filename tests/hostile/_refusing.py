"""An agent under a seccomp filter that refuses one system call, and everything that a client can ask of it."""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import sys
from typing import TYPE_CHECKING, Final, TypeAlias

import trio

from tests.tools.leftovers import runs
from trio_console import CommandGuest, GuestLostError, open_guest

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable
    from pathlib import Path

    from trio_console import Guest

    Step: TypeAlias = Callable[[Guest, Path], Awaitable[object]]

__all__ = ["AGENT", "STEPS", "calls_in", "outcome", "refusing"]

AGENT: Final = (sys.executable, "-P", "-m", "trio_console.agent", "--stdio")

#: Installs a filter by which the call with the number ``sys.argv[1]`` fails with the errno ``sys.argv[2]``, in its
#: process and all that this starts, and then becomes the command that follows.
REFUSER: Final = """
import ctypes, os, struct, sys
number, code = map(int, sys.argv[1:3])
LOAD, EQUAL, RETURN = 0x20, 0x15, 0x06
ALLOW, ERRNO = 0x7FFF0000, 0x00050000
program = [
    (LOAD, 0, 0, 4), (EQUAL, 1, 0, 0xC000003E), (RETURN, 0, 0, ALLOW),  # only this architecture's calls
    (LOAD, 0, 0, 0), (EQUAL, 0, 1, number), (RETURN, 0, 0, ERRNO | code), (RETURN, 0, 0, ALLOW),
]
text = ctypes.create_string_buffer(b"".join(struct.pack("HBBI", *each) for each in program))
class Program(ctypes.Structure):
    _fields_ = [("length", ctypes.c_ushort), ("filter", ctypes.c_void_p)]
libc = ctypes.CDLL(None, use_errno=True)
one = ctypes.c_ulong(1)
if libc.prctl(38, one, 0, 0, 0):  # PR_SET_NO_NEW_PRIVS
    sys.exit("no_new_privs")
if libc.prctl(22, ctypes.c_ulong(2), ctypes.byref(Program(len(program), ctypes.addressof(text))), 0, 0):
    sys.exit("seccomp")
os.execv(sys.argv[3], sys.argv[3:])
"""


def refusing(number: int, code: int, command: tuple[str, ...] = AGENT) -> list[str]:
    """A command under a filter that refuses a system call with an errno."""
    return [sys.executable, "-I", "-S", "-c", REFUSER, str(number), str(code), *command]


async def _commands(guest: Guest, directory: Path) -> None:
    done = await guest.run_process(["/bin/cat"], stdin=b"x" * 100_000, capture_stdout=True, capture_stderr=True)
    assert done.stdout == b"x" * 100_000
    done = await guest.run_process("exit 3", shell=True, check=False)
    assert done.returncode == 3


async def _working_directory(guest: Guest, directory: Path) -> None:
    done = await guest.run_process(["/bin/pwd"], cwd=str(directory), capture_stdout=True)
    assert done.stdout == os.fsencode(directory) + b"\n"


async def _background(guest: Guest, _directory: Path) -> None:
    # Its output is held by another process, which a sink reads.
    await guest.run_process("sleep 1000 & echo started", shell=True, capture_stdout=True, drain=0)


async def _terminal(guest: Guest, _directory: Path) -> None:
    done = await guest.run_process(["/bin/sh", "-c", "test -t 0 && echo yes"], tty=True, capture_stdout=True)
    assert done.stdout.strip() == b"yes"


async def _user(guest: Guest, _directory: Path) -> None:
    done = await guest.run_process(["/usr/bin/id", "-u"], user="nobody", capture_stdout=True)
    assert done.stdout == b"65534\n"


async def _limits(guest: Guest, _directory: Path) -> None:
    limits = {"nofile": 100}
    done = await guest.run_process("ulimit -n", shell=True, rlimits=limits, capture_stdout=True)
    assert done.stdout == b"100\n"


async def _cancel(guest: Guest, _directory: Path) -> None:
    async with guest.open_process(["/bin/sleep", "1000"]) as process:
        process.send_signal(signal.SIGKILL)
        assert await process.wait() == -signal.SIGKILL
    # (A shell starts what it waits for with vfork, which would be taken for the agent's if it came to that.)
    script = "trap '' TERM; setsid sh -c 'echo $$; exec sleep 1000' & exec sleep 1000"
    async with guest.open_process(script, shell=True, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        pid = int(await process.stdout.receive_some())
    assert not runs(pid)


async def _files(guest: Guest, directory: Path) -> None:
    path = guest.path(str(directory)) / "file"
    data = bytes(range(256)) * 1000
    await path.write_bytes(data)
    assert await path.read_bytes() == data
    async with await guest.open_file(path, "r+b") as file:
        await file.seek(5)
        assert await file.read(3) == data[5:8]
        await file.flush()
    for _ in range(2):  # the first one finds out what can be answered without a thread
        assert (await path.stat()).st_size == len(data)
    assert [entry.name for entry in await guest.path(str(directory)).iterdir()] == ["file"]


def _operation(name: str, *arguments: object) -> Step:
    async def step(guest: Guest, directory: Path) -> None:
        path = guest.path(str(directory)) / "one"
        await path.write_bytes(b"text")
        await getattr(path, name)(*arguments)

    return step


async def _directories(guest: Guest, directory: Path) -> None:
    path = guest.path(str(directory)) / "folder"
    await path.mkdir()
    await path.rmdir()


async def _truncate(guest: Guest, directory: Path) -> None:
    async with await guest.open_file(guest.path(str(directory)) / "long", "w+b") as file:
        await file.write(bytes(100))
        assert await file.truncate(10) == 10


async def _rename(guest: Guest, directory: Path) -> None:
    path = guest.path(str(directory)) / "old"
    await path.write_bytes(b"text")
    await path.rename(guest.path(str(directory)) / "new")


async def _links(guest: Guest, directory: Path) -> None:
    path = guest.path(str(directory)) / "link"
    await path.symlink_to("target")
    assert str(await path.readlink()) == "target"


async def _connection(guest: Guest, _directory: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        async with await guest.open_tcp_stream("127.0.0.1", listener.getsockname()[1]) as stream:
            peer, _ = await trio.to_thread.run_sync(listener.accept)
            with peer, trio.socket.from_stdlib_socket(peer) as end:
                await stream.send_all(b"hello")
                assert await end.recv(10) == b"hello"
                await stream.send_eof()
                assert await end.recv(10) == b""
                await end.send(b"answer")
                assert await stream.receive_some() == b"answer"


STEPS: Final[dict[str, Step]] = {
    "run": _commands,
    "working directory": _working_directory,
    "leave a process": _background,
    "terminal": _terminal,
    "user": _user,
    "rlimits": _limits,
    "kill": _cancel,
    "files": _files,
    "truncate": _truncate,
    "mkdir": _directories,
    "rename": _rename,
    "symlink": _links,
    "chmod": _operation("chmod", 0o600),
    "touch": _operation("touch"),
    "unlink": _operation("unlink"),
    "connect": _connection,
}


async def outcome(command: list[str], directory: Path, patience: float) -> tuple[str, dict[str, str]]:
    """Why a guest was not ready (an empty string if it was), and the steps that failed, with their errors."""
    failed: dict[str, str] = {}
    try:
        async with open_guest(CommandGuest(command), ready_timeout=patience) as guest:
            for name, step in STEPS.items():
                if name == "user" and os.getuid():
                    continue
                own = directory / name.replace(" ", "-")
                own.mkdir()
                own.chmod(0o777)
                try:
                    with trio.fail_after(patience):
                        await step(guest, own)
                    with trio.fail_after(patience):
                        await guest.ping()
                except Exception as exc:
                    failed[name] = f"{type(exc).__name__}: {exc}"
                    if isinstance(exc, GuestLostError):
                        break
    except GuestLostError as exc:
        return exc.reason, failed
    return "", failed


_LINE: Final = re.compile(rb"(\d+) +(?:<\.\.\. )?(\w+)(\(| resumed>)")


def calls_in(trace: bytes) -> set[str]:
    """The system calls in a trace by ``strace -f``, without those of programs that the traced one has started."""
    found: set[str] = set()
    first: bytes | None = None
    alien: set[bytes] = set()
    for line in trace.splitlines():
        match = _LINE.match(line)
        if match is None:
            continue
        pid, name = match.group(1), match.group(2).decode()
        first = first or pid
        if pid in alien:
            continue
        found.add(name)
        if name == "execve" and pid != first and line.rstrip().endswith(b"= 0"):
            alien.add(pid)
    return found

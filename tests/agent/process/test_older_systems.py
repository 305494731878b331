"""The agent with an interpreter or a kernel that lacks newer calls.

An interpreter that was built against an old C library has no `os.pidfd_open` and no `os.RWF_NOWAIT`; a sandbox may
refuse system calls that it does not know. The agent works without the optional calls, and names a missing required
one.
"""

from __future__ import annotations

import os
import sys
from contextlib import asynccontextmanager
from functools import partial
from subprocess import PIPE
from typing import TYPE_CHECKING

import pytest
import trio

from tests.agent._host import Host, pid_is_taken
from tests.tools.leftovers import children, runs
from tests.tools.limits import HANG
from trio_console import _wire as wire
from trio_console.agent._process import exits as _exits

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

#: The agent, with something taken away before it is imported.
PROGRAM = """
import os, signal, sys, time
{lack}
from trio_console.agent import main
sys.exit(main(["--stdio"]))
"""

OLD_NAMES = (
    "os.RWF_NOWAIT",
    "os.copy_file_range",
    "os.eventfd",
    "os.eventfd_read",
    "os.eventfd_write",
    "os.pidfd_open",
    "signal.pidfd_send_signal",
    "time.CLOCK_BOOTTIME",
)


def without(*names: str) -> str:
    return "\n".join(f"vars({module}).pop({name!r}, None)" for module, name in (n.split(".") for n in names))


def refused(name: str, code: str) -> str:
    return f"""
import errno
def refuse(*args):
    raise OSError(errno.{code}, os.strerror(errno.{code}))
{name} = refuse
"""


LACKS = {
    **{name: without(name) for name in OLD_NAMES},
    "all of them": without(*OLD_NAMES),
    "pidfd_open: ENOSYS": refused("os.pidfd_open", "ENOSYS"),
    "pidfd_open: EPERM": refused("os.pidfd_open", "EPERM"),
    "copy_file_range: ENOSYS": refused("os.copy_file_range", "ENOSYS"),
    "preadv2: not built in": """
real_preadv = os.preadv
def preadv(fd, buffers, offset, flags=0):
    if flags:
        raise NotImplementedError("preadv2: flags unavailable on this platform")
    return real_preadv(fd, buffers, offset)
os.preadv = preadv
""",
    "prctl: refused": """
import ctypes
class Refusing:
    def prctl(self, *args):
        ctypes.set_errno(1)
        return -1
ctypes.CDLL = lambda *args, **options: Refusing()
""",
    "/proc": """
real_listdir, real_scandir = os.listdir, os.scandir
def listdir(path=".", real=real_listdir):
    if str(path).startswith("/proc"):
        raise FileNotFoundError(2, "No such file or directory", path)
    return real(path)
os.listdir = listdir
os.scandir = lambda path=".": listdir(path, real_scandir)
""",
}


@asynccontextmanager
async def agent_without(lack: str) -> AsyncIterator[tuple[Host, trio.Process]]:
    async with trio.open_nursery() as nursery:
        start = partial(trio.run_process, stdin=PIPE, stdout=PIPE, stderr=PIPE, check=False)
        process = await nursery.start(start, [sys.executable, "-c", PROGRAM.format(lack=lack)])
        host = Host(trio.StapledStream(process.stdin, process.stdout))
        try:
            yield host, process
        finally:
            with trio.move_on_after(HANG, shield=True):
                await host.stream.aclose()
                await process.wait()
                await process.stderr.aclose()
            nursery.cancel_scope.cancel()


@pytest.mark.parametrize("lack", LACKS.values(), ids=LACKS)
async def test_a_whole_session(lack: str, tmp_path: Path) -> None:
    async with agent_without(lack) as (host, process):
        await host.boot()
        await _run_commands(host)
        await _use_files(host, tmp_path)
        left = await host.start("/bin/sh", "-c", "echo $$; exec sleep 1000")
        pid = int(await host.read_stdout(left, b"\n"))
        await host.stream.send_stream.aclose()  # type: ignore[attr-defined]
        with trio.fail_after(HANG):
            assert await process.wait() == 0
            said = b"".join([bytes(data) async for data in process.stderr])
        assert b"Traceback" not in said
        assert not runs(pid)


async def _run_commands(host: Host) -> None:
    outcome = await host.run("cat", stdin=b"x" * 10_000)
    assert (outcome.stdout, outcome.last) == (b"x" * 10_000, wire.ExecExited(0))
    assert (await host.sh("exit 7")).last == wire.ExecExited(7)
    assert (await host.run("no such program")).last.kind == "not_found"
    for _ in range(3):
        sid = await host.start("/bin/sh", "-c", "echo $$; exec sleep 1000")
        pid = int(await host.read_stdout(sid, b"\n"))
        await host.send(wire.ExecSignal(9), sid)
        assert (await host.collect(sid)).last == wire.ExecExited(code=-1, signal=9)
        assert not pid_is_taken(pid)
    terminal = await host.run("/bin/sh", "-c", "test -t 0 && echo yes", tty=True)
    assert terminal.stdout.strip() == b"yes"


async def _use_files(host: Host, tmp_path: Path) -> None:
    source, target = tmp_path / "source", tmp_path / "target"
    data = bytes(range(256)) * 1000
    handle = await host.open_file(source, "read write create")
    assert (await host.write_file(wire.OpWrite(handle, 0), data)).ok
    assert await host.read_file(wire.OpRead(handle, 0)) == (data, wire.FsResponse(ok=True))
    await host.ok(wire.OpCloseHandle(handle))
    await host.ok(wire.OpCopy(str(source), str(target)))
    assert target.read_bytes() == data


async def test_what_is_needed_and_missing_is_named() -> None:
    async with agent_without(without("os.waitid", "os.pwritev")) as (_, process):
        with trio.fail_after(HANG):
            said = b"".join([bytes(data) async for data in process.stderr])
            assert await process.wait() == 1
        assert said == (
            b"trio_console.agent: this Python cannot run the agent: it has no os.pwritev, os.waitid, "
            b"because it was built for another system or against a C library that is too old; run the agent with "
            b"another Python\n"
        )


def test_a_watcher_that_there_is_no_memory_for_leaves_no_descriptor(monkeypatch: pytest.MonkeyPatch) -> None:
    def no_memory(**_options: object) -> None:
        raise MemoryError

    monkeypatch.setattr(_exits.threading, "Thread", no_memory)
    before = os.listdir("/proc/self/fd")
    with pytest.raises(MemoryError):
        _exits._open_watched_pipe(os.getpid())
    assert os.listdir("/proc/self/fd") == before


async def test_a_thread_that_cannot_be_had_to_watch_a_child_fails_its_start_and_leaves_nothing() -> None:
    lack = (
        without("os.pidfd_open")
        + """
from trio_console.agent._process import exits
class Refusing:
    def __init__(self, *args, **options):
        pass
    def start(self):
        raise RuntimeError("can't start new thread")
exits.threading = type("Threading", (), {"Thread": Refusing})
"""
    )
    async with agent_without(lack) as (host, process):
        await host.boot()
        for _ in range(2):
            outcome = await host.run("sleep", "1000")
            assert (outcome.last.kind, outcome.last.errno_name) == ("resource_limit", "EAGAIN")
        assert children(process.pid) == set()

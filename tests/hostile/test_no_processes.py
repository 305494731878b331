"""A client that forks until its guest may have no more processes or threads: that goes on, and all comes back."""

from __future__ import annotations

import errno
import os
import shutil
import signal
import subprocess
import sys
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import trio

from tests.hostile._soak import all_slots
from tests.tools.leftovers import wait_until_none
from tests.tools.limits import BUSY, HANG
from tests.tools.users import as_root
from trio_console import CommandGuest, connect_guest, serve_relay

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from trio_console import Guest

#: A user that nothing else has, for which the kernel counts processes: those of root are not limited.
USER = 470_000 + os.getpid() % 10_000

#: Processes and threads that this user may have.
MOST = 80

#: What reads the interpreter's files, which another user may not read, and has no right beside it.
RIGHT = "+dac_read_search"

AGENT = [
    *("setpriv", f"--reuid={USER}", f"--regid={USER}", "--clear-groups", "--inh-caps", RIGHT, "--ambient-caps"),
    *(RIGHT, "prlimit", f"--nproc={MOST}", sys.executable, "-P", "-m", "trio_console.agent", "--stdio"),
]

SAY_FULL = "os.write(1, b'full\\n'); signal.pause()"
BOMBS = {
    "children": f"""
import os, signal
while True:
    try:
        os.fork() or signal.pause()
    except BlockingIOError:
        {SAY_FULL}
""",
    "daemons": f"""
import os, signal
while True:
    try:
        if not os.fork():
            os.setsid()
            os.fork() and os._exit(0)
            signal.pause()
    except BlockingIOError:
        {SAY_FULL}
""",
}

pytestmark = [
    as_root,
    pytest.mark.skipif(not (shutil.which("setpriv") and shutil.which("prlimit")), reason="of util-linux"),
]


def processes() -> set[int]:
    """All processes of the user, zombies too."""
    found = set()
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                ids = next(line for line in (entry / "status").read_text().splitlines() if line[:4] == "Uid:")
            except OSError:
                continue
            if ids.split()[1] == str(USER):
                found.add(int(entry.name))
    return found


@asynccontextmanager
async def a_limited_guest(tmp_path: Path) -> AsyncIterator[str]:
    """The relay of a guest whose user may have few processes; its path."""
    tmp_path.chmod(0o700)
    path = str(tmp_path / "s")
    assert not processes()
    try:
        async with trio.open_nursery() as nursery:
            await nursery.start(serve_relay, CommandGuest(AGENT), path)
            yield path
            nursery.cancel_scope.cancel()
        assert wait_until_none(processes) == set()
    finally:
        for pid in processes():
            os.kill(pid, signal.SIGKILL)


@asynccontextmanager
async def a_bomb(path: str, script: str) -> AsyncIterator[None]:
    """A client whose command has forked until it may no more; it has left at the end."""
    async with connect_guest(path) as guest:
        command = [sys.executable, "-S", "-c", script]
        async with guest.open_process(command, stdout=subprocess.PIPE) as process:
            assert process.stdout is not None
            assert (await process.stdout.receive_some()).startswith(b"full")
            yield


async def echo(guest: Guest) -> bytes:
    """A byte that a connection through the guest has brought back."""

    async def answer(stream: trio.SocketStream) -> None:
        await stream.send_all(await stream.receive_some(1))

    async with trio.open_nursery() as nursery:
        [listener] = await trio.open_tcp_listeners(0, host="127.0.0.1")
        nursery.start_soon(trio.serve_listeners, answer, [listener])
        async with await guest.open_tcp_stream("127.0.0.1", listener.socket.getsockname()[1]) as stream:
            await stream.send_all(b"x")
            got = bytes(await stream.receive_some(1))
        nursery.cancel_scope.cancel()
    return got


@pytest.mark.parametrize("bomb", BOMBS)
async def test_beside_a_fork_bomb_goes_on_what_needs_no_process(tmp_path: Path, bomb: str) -> None:
    (tmp_path / "file").write_text("hello")
    with trio.fail_after(BUSY):
        async with a_limited_guest(tmp_path) as path, connect_guest(path) as guest:
            file = guest.path(tmp_path / "file")
            await file.read_text()  # its thread waits for the next from now on
            async with a_bomb(path, BOMBS[bomb]):
                for _ in range(3):
                    await guest.ping()
                    assert await file.read_text() == "hello"
                    assert await echo(guest) == b"x"


@pytest.mark.parametrize("tty", [False, True])
async def test_beside_a_fork_bomb_a_command_fails_with_what_to_do(tmp_path: Path, tty: bool) -> None:
    with trio.fail_after(BUSY):
        async with a_limited_guest(tmp_path) as path, connect_guest(path) as guest:
            async with a_bomb(path, BOMBS["children"]):
                for _ in range(3):
                    with pytest.raises(BlockingIOError) as caught:
                        await guest.run_process(["true"], tty=tty)
                    assert (caught.value.errno, caught.value.filename) == (errno.EAGAIN, "true")
                    assert "raise the limit (`ulimit -u`, " in "".join(caught.value.__notes__)


@pytest.mark.parametrize("bomb", BOMBS)
async def test_a_fork_bomb_ends_with_its_client_and_all_comes_back(tmp_path: Path, bomb: str) -> None:
    with trio.fail_after(BUSY):
        async with a_limited_guest(tmp_path) as path, connect_guest(path) as guest:
            [agent] = processes()
            for _ in range(3):
                async with a_bomb(path, BOMBS[bomb]):
                    assert len(processes()) > MOST // 2
                assert wait_until_none(lambda: processes() - {agent}, HANG) == set()
                result = await guest.run_process(["echo", "hi"], capture_stdout=True)
                assert result.stdout == b"hi\n"
            async with trio.open_nursery() as nursery:
                for _ in range(8):
                    nursery.start_soon(guest.run_process, ["true"])
        async with a_limited_guest(tmp_path) as path:
            async with a_bomb(path, BOMBS[bomb]):
                pass
            await all_slots(path)

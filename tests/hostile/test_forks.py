"""A child that a program forks in the middle of its work keeps nothing alive that the program has had.

`multiprocessing` forks by default before Python 3.14. The children here do nothing but live on.
"""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest
import trio

from tests.tools.leftovers import runs
from tests.tools.limits import HANG
from tests.tools.pidfds import pidfd_open, pidfd_send_signal
from trio_console import ProcessGuest, connect_guest, open_guest, serve_relay

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

#: Plays one part, forks in one way, prints the number of the child and of a process that is to die with the
#: program, and waits for a line.
PROGRAM = """
import contextlib, multiprocessing, os, signal, subprocess, sys, time, warnings
from concurrent.futures import ProcessPoolExecutor
import trio
from trio_console import ProcessGuest, connect_guest, open_guest, serve_relay

warnings.simplefilter("ignore")
part, way, path, port = sys.argv[1:]
context = multiprocessing.get_context("fork")
kept = []

def sleep():
    time.sleep(1000)

def fork(how=os.fork):
    pid = how()
    if not pid:
        sleep()
    return pid

def with_terminal():
    former = signal.signal(signal.SIGHUP, signal.SIG_IGN)  # which the child gets with its terminal's end
    pid, master = os.forkpty()
    if not pid:
        os.write(1, b"x")
        sleep()
    os.read(master, 1)  # it has its terminal, and could not get it after the end of this program
    signal.signal(signal.SIGHUP, former)
    kept.append(master)
    return pid

def worker():
    kept.append(context.Process(target=sleep, daemon=True))
    kept[-1].start()
    return kept[-1].pid

def pool():
    kept.append(ProcessPoolExecutor(1, mp_context=context))
    kept[-1].submit(sleep)
    return next(iter(kept[-1]._processes))

def preexec():
    kept.append(subprocess.Popen(["sleep", "1000"], close_fds=False, preexec_fn=lambda: None))
    return kept[-1].pid

async def make_child():
    if way == "thread":
        return await trio.to_thread.run_sync(fork)
    ways = {"fork": fork, "forkpty": with_terminal, "multiprocessing": worker, "pool": pool, "preexec": preexec}
    return ways[way]()

async def wait_told(*pids):
    print(*pids, flush=True)
    await trio.to_thread.run_sync(sys.stdin.readline)

async def main():
    async with contextlib.AsyncExitStack() as stack:
        if part == "relay":
            nursery = await stack.enter_async_context(trio.open_nursery())
            await nursery.start(serve_relay, ProcessGuest(), path)
            await wait_told(await make_child(), 0)
        else:
            opened = connect_guest(path) if part == "client" else open_guest()
            guest = await stack.enter_async_context(opened)
            command = guest.open_process(["sh", "-c", "echo $$ $PPID; exec sleep 1000"], stdout=subprocess.PIPE)
            process = await stack.enter_async_context(command)
            own, parent = (await process.stdout.receive_some()).split()
            stream = await stack.enter_async_context(await guest.open_tcp_stream("127.0.0.1", int(port)))
            await stream.send_all(b"x")
            await wait_told(await make_child(), int(own if part == "client" else parent))
    print("left", flush=True)
    await trio.sleep_forever()

trio.run(main)
"""


class Forker:
    """The program, when it has forked."""

    def __init__(self, process: subprocess.Popen[bytes], child: int, other: int) -> None:
        self.process = process
        self.child = child
        self.other = other

    async def leave(self) -> None:
        """Let it leave its blocks, and live on."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write(b"\n")
        self.process.stdin.flush()
        assert await trio.to_thread.run_sync(self.process.stdout.readline) == b"left\n"


@contextlib.asynccontextmanager
async def forker(part: str, way: str, path: str, port: int = 0) -> AsyncIterator[Forker]:
    command = [sys.executable, "-c", PROGRAM, part, way, path, str(port)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:  # noqa: ASYNC220
        child = None
        try:
            assert process.stdout is not None
            words = (await trio.to_thread.run_sync(process.stdout.readline)).split()
            child = pidfd_open(int(words[0]))
            yield Forker(process, *map(int, words))
        finally:
            process.kill()
            if child is not None:
                with contextlib.suppress(ProcessLookupError):
                    pidfd_send_signal(child, signal.SIGKILL)
                os.close(child)


async def _wait_gone(pid: int) -> None:
    while runs(pid):
        await trio.sleep(0.01)


WAYS = ["fork", "forkpty", "multiprocessing", "pool", "preexec", "thread"]


def _mostly_nightly(*often: str) -> list[object]:
    """All ways; the gate takes those that differ most from each other."""
    return [way if way in often else pytest.param(way, marks=pytest.mark.nightly) for way in WAYS]


@pytest.mark.parametrize("way", WAYS)
async def test_a_client_that_forks_and_is_killed_is_gone(way: str, tmp_path: Path) -> None:
    await _play_client("is killed", way, tmp_path)


@pytest.mark.parametrize("way", _mostly_nightly("multiprocessing"))
async def test_a_client_that_forks_and_leaves_is_gone(way: str, tmp_path: Path) -> None:
    await _play_client("leaves", way, tmp_path)


async def _play_client(end: str, way: str, tmp_path: Path) -> None:
    path = os.fspath(tmp_path / "sock")
    with trio.fail_after(HANG), socket.create_server(("127.0.0.1", 0)) as listener:
        async with trio.open_nursery() as nursery:
            relay = await nursery.start(serve_relay, ProcessGuest(), path)
            async with forker("client", way, path, listener.getsockname()[1]) as client:
                peer, _ = listener.accept()
                with peer, trio.socket.from_stdlib_socket(peer) as connection:
                    assert await connection.recv(1) == b"x"
                    if end == "leaves":
                        await client.leave()
                    else:
                        client.process.kill()
                    with contextlib.suppress(ConnectionResetError):
                        assert await connection.recv(1) == b""
                await _wait_gone(client.other)
                while relay.statistics().clients:
                    await trio.sleep(0.01)
                assert runs(client.child)
            nursery.cancel_scope.cancel()


@pytest.mark.parametrize("way", _mostly_nightly("multiprocessing", "thread"))
async def test_the_guest_of_a_killed_program_that_forks_is_gone(way: str, tmp_path: Path) -> None:
    with trio.fail_after(HANG), socket.create_server(("127.0.0.1", 0)) as listener:
        async with forker("guest", way, os.fspath(tmp_path), listener.getsockname()[1]) as program:
            program.process.kill()
            await _wait_gone(program.other)
            assert runs(program.child)


@pytest.mark.parametrize("way", _mostly_nightly("multiprocessing", "thread"))
async def test_the_address_of_a_killed_relay_that_forks_is_free(way: str, tmp_path: Path) -> None:
    path = os.fspath(tmp_path / "sock")
    with trio.fail_after(HANG):
        async with forker("relay", way, path) as relay:
            relay.process.kill()
            relay.process.wait()
            while is_listened_at(path):  # until the child has run what follows its fork
                await trio.sleep(0.01)
            async with open_guest(relay_path=path), connect_guest(path) as guest:
                await guest.ping()
            assert runs(relay.child)


def is_listened_at(path: str) -> bool:
    with socket.socket(socket.AF_UNIX) as probe:
        return probe.connect_ex(path) == 0

"""Contenders of the session layer: each coroutine measures one, and returns numbers.

Nothing here prints or compares. A contender that moves bytes returns bytes per second; a contender that repeats
something returns the seconds of each turn. Each starts and ends its guests, relays and servers outside of the time
that is measured, so each can be called alone and in any order, inside one `trio.run`.

``direct`` and ``trio`` always name the same work done by trio on this machine, without a guest.
"""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import tempfile
import time
from functools import partial
from typing import TYPE_CHECKING, Literal, TypeAlias

import trio

import trio_console
from trio_console import _wire as wire

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
    from contextlib import AbstractAsyncContextManager

__all__ = [
    "KIB",
    "MIB",
    "busy_processors",
    "codec_frames",
    "file_read",
    "file_read_direct",
    "file_write",
    "file_write_direct",
    "full_stack_frames",
    "full_stack_pings",
    "helper",
    "ping_idle",
    "ping_idle_relay",
    "ping_under_stdin",
    "ping_under_stdout",
    "ping_under_stdout_relay",
    "run_process_guest",
    "run_process_relay",
    "run_process_trio",
    "small_read_guest",
    "small_read_trio",
    "stat_guest",
    "stat_trio",
    "stdin_direct",
    "stdin_guest",
    "stdin_relay",
    "stdout_direct",
    "stdout_guest",
    "stdout_plain_relay",
    "stdout_relay",
    "stdout_relay_inside",
    "tcp_echo_direct",
    "tcp_echo_guest",
]

Workers: TypeAlias = Literal["threads", "tasks"]

KIB = 1024
MIB = 1024 * 1024

#: Seconds between two pings: often enough to meet every state of the console, and no load by itself.
PING_INTERVAL = 0.002

#: Bytes in one call of a user who writes or reads a file or a connection.
PIECE = 64 * KIB

#: The folder for files: in memory, if that is possible.
MEMORY = "/dev/shm" if os.path.isdir("/dev/shm") else None


def writer(nbytes: int) -> list[str]:
    """A process that writes so many bytes (a multiple of 64 KiB), as fast as a pipe takes them."""
    return ["dd", "if=/dev/zero", "bs=64k", f"count={nbytes // (64 * KIB)}", "status=none"]


# --- what they run in -----------------------------------------------------------------------------


@contextlib.asynccontextmanager
async def relayed_guest() -> AsyncIterator[trio_console.Guest]:
    """A guest behind a relay in a process of its own."""
    with tempfile.TemporaryDirectory() as directory:
        path = os.path.join(directory, "relay.sock")
        argv = [sys.executable, "-m", "trio_console", "relay", "--listen", path]
        async with helper(argv), trio_console.connect_guest(path) as guest:
            yield guest


@contextlib.asynccontextmanager
async def relaying_guest() -> AsyncIterator[trio_console.Guest]:
    """A guest behind a relay in this process."""
    with tempfile.TemporaryDirectory() as directory:
        async with trio_console.open_guest(relay_path=os.path.join(directory, "relay.sock")) as guest:
            yield guest


@contextlib.asynccontextmanager
async def helper(argv: list[str]) -> AsyncIterator[None]:
    """A process that prints a line when it is ready, and ends at SIGTERM."""
    process = await trio.lowlevel.open_process(argv, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE)
    assert process.stdout is not None
    try:
        with trio.fail_after(30):
            if not await process.stdout.receive_some(KIB):
                raise RuntimeError(f"{argv} ended before it was ready")
        yield
    finally:
        process.terminate()
        with trio.move_on_after(10, shield=True):
            await process.wait()
        process.kill()
        await trio.aclose_forcefully(process.stdout)


async def _consume(stream: trio.abc.ReceiveStream, nbytes: int) -> float:
    """Read to the end as a user would; returns bytes per second, from the first read on."""
    start = time.perf_counter()
    total = 0
    async for chunk in stream:
        total += len(chunk)
    seconds = time.perf_counter() - start
    if total != nbytes:
        raise RuntimeError(f"{total} bytes came instead of {nbytes}")
    return total / seconds


def _opened(workers: Workers) -> AbstractAsyncContextManager[trio_console.Guest]:
    """The default guest, with threads or tasks that move its bytes."""
    return trio_console.open_guest(trio_console.ProcessGuest(workers=workers))


# --- run_process ----------------------------------------------------------------------------------


async def run_process_trio(n: int) -> list[float]:
    """``trio.run_process(["true"])``, one after the other."""
    return await _repeat(n, partial(trio.run_process, ["true"]))


async def run_process_guest(n: int, workers: Workers = "threads") -> list[float]:
    """``guest.run_process(["true"])`` in the default guest, one after the other."""
    async with _opened(workers) as guest:
        return await _repeat(n, partial(guest.run_process, ["true"]))


@contextlib.contextmanager
def busy_processors() -> Iterator[None]:
    """Every processor is busy with a loop of another process."""
    loops = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(os.cpu_count() or 1)]
    try:
        yield
    finally:
        for loop in loops:
            loop.kill()
            loop.wait()


async def run_process_relay(n: int) -> list[float]:
    """The same through a relay in another process."""
    async with relayed_guest() as guest:
        return await _repeat(n, partial(guest.run_process, ["true"]))


async def _repeat(n: int, call: Callable[[], Awaitable[object]]) -> list[float]:
    await call()  # imports, caches and threads are made at the first use
    seconds = []
    for _ in range(n):
        start = time.perf_counter()
        await call()
        seconds.append(time.perf_counter() - start)
    return seconds


# --- stdout and stdin -----------------------------------------------------------------------------


async def stdout_direct(nbytes: int) -> float:
    """Read a process's pipe with trio."""
    process = await trio.lowlevel.open_process(writer(nbytes), stdin=subprocess.DEVNULL, stdout=subprocess.PIPE)
    assert process.stdout is not None
    async with process.stdout:
        speed = await _consume(process.stdout, nbytes)
    await process.wait()
    return speed


async def stdout_guest(nbytes: int, workers: Workers = "threads") -> float:
    """The same process in the default guest: through agent, channel and client."""
    async with _opened(workers) as guest:
        return await _guest_stdout(guest, nbytes)


async def stdout_relay(nbytes: int) -> float:
    """The same through a relay in another process."""
    async with relayed_guest() as guest:
        return await _guest_stdout(guest, nbytes)


async def stdout_relay_inside(nbytes: int) -> float:
    """The same through a relay in this process, which is also its client."""
    async with relaying_guest() as guest:
        return await _guest_stdout(guest, nbytes)


async def _guest_stdout(guest: trio_console.Guest, nbytes: int) -> float:
    async with guest.open_process(writer(nbytes), stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        speed = await _consume(process.stdout, nbytes)
        await process.wait()
    return speed


#: A relay that only forwards bytes: with asyncio's streams on uvloop, from one process's stdout to one client of a
#: Unix socket.
_PLAIN_RELAY = """
import asyncio, sys, uvloop

async def serve(reader, writer):
    process = await asyncio.create_subprocess_exec(*sys.argv[2:], stdout=asyncio.subprocess.PIPE)
    while data := await process.stdout.read(65536):
        writer.write(data)
        await writer.drain()
    await process.wait()
    writer.close()

async def main():
    server = await asyncio.start_unix_server(serve, sys.argv[1])
    print("ready", flush=True)
    async with server:
        await server.serve_forever()

uvloop.run(main())
"""


async def stdout_plain_relay(nbytes: int) -> float:
    """The same process's pipe forwarded byte by byte by another process (needs uvloop), without any protocol."""
    with tempfile.TemporaryDirectory() as directory:
        path = os.path.join(directory, "plain.sock")
        async with helper([sys.executable, "-c", _PLAIN_RELAY, path, *writer(nbytes)]):
            async with await trio.open_unix_socket(path) as stream:
                return await _consume(stream, nbytes)


async def stdin_direct(nbytes: int) -> float:
    """Feed a process that throws its input away, with trio."""
    process = await trio.lowlevel.open_process(["cat"], stdin=subprocess.PIPE, stdout=subprocess.DEVNULL)
    assert process.stdin is not None
    start = time.perf_counter()
    async with process.stdin:
        await _produce(process.stdin, nbytes, PIECE)
    await process.wait()
    return nbytes / (time.perf_counter() - start)


async def stdin_guest(nbytes: int, workers: Workers = "threads") -> float:
    """The same process in the default guest."""
    async with _opened(workers) as guest:
        return await _guest_stdin(guest, nbytes, PIECE)


async def stdin_relay(nbytes: int) -> float:
    """The same through a relay in another process."""
    async with relayed_guest() as guest:
        return await _guest_stdin(guest, nbytes, PIECE)


async def _guest_stdin(guest: trio_console.Guest, nbytes: int, piece: int) -> float:
    # The output goes to the guest's own /dev/null. Output that is discarded on this side would still have to come
    # here.
    command = ["sh", "-c", "exec cat > /dev/null"]
    async with guest.open_process(command, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL) as process:
        assert process.stdin is not None
        start = time.perf_counter()
        await _produce(process.stdin, nbytes, piece)
        await process.stdin.aclose()
        await process.wait()
        return nbytes / (time.perf_counter() - start)


async def _produce(stream: trio.abc.SendStream, nbytes: int, piece: int) -> None:
    data = bytes(piece)
    for _ in range(nbytes // piece):
        await stream.send_all(data)


# --- ping -----------------------------------------------------------------------------------------


async def ping_idle(n: int, workers: Workers = "threads") -> list[float]:
    """Round trips to the default guest with nothing else going on."""
    async with _opened(workers) as guest:
        return await _ping(guest, n)


async def ping_idle_relay(n: int) -> list[float]:
    """The same through a relay in another process."""
    async with relayed_guest() as guest:
        return await _ping(guest, n)


async def ping_under_stdout(nbytes: int, workers: Workers = "threads") -> list[float]:
    """Round trips while a process's output comes as fast as it is read, until all of it has come."""
    async with _opened(workers) as guest:
        return await _ping_beside_stdout(guest, nbytes)


async def ping_under_stdout_relay(nbytes: int) -> list[float]:
    """The same through a relay in another process."""
    async with relayed_guest() as guest:
        return await _ping_beside_stdout(guest, nbytes)


async def _ping(guest: trio_console.Guest, n: int) -> list[float]:
    await guest.ping()
    seconds = []
    for _ in range(n):
        start = time.perf_counter()
        await guest.ping()
        seconds.append(time.perf_counter() - start)
        await trio.sleep(PING_INTERVAL)
    return seconds


async def ping_under_stdin(nbytes: int, workers: Workers = "threads") -> list[float]:
    """Round trips while a process is fed as fast as it reads, until it has read all."""
    async with _opened(workers) as guest:
        return await _ping_beside(guest, partial(_guest_stdin, guest, nbytes, PIECE))


async def _ping_beside_stdout(guest: trio_console.Guest, nbytes: int) -> list[float]:
    return await _ping_beside(guest, partial(_guest_stdout, guest, nbytes))


async def _ping_beside(guest: trio_console.Guest, work: Callable[[], Awaitable[object]]) -> list[float]:
    seconds: list[float] = []

    async def ping_for_ever() -> None:
        while True:
            start = time.perf_counter()
            await guest.ping()
            seconds.append(time.perf_counter() - start)
            await trio.sleep(PING_INTERVAL)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(ping_for_ever)
        await work()
        nursery.cancel_scope.cancel()
    return seconds


# --- frames ---------------------------------------------------------------------------------------


async def codec_frames(size: int, seconds: float = 0.5) -> float:
    """Frames per second, of ``size`` bytes of data each, through the codec alone: there and back.

    Encoded one by one, decoded from chunks of 64 KiB, as the channel delivers them.
    """
    await trio.lowlevel.checkpoint()
    data = bytes(size)
    decoder = wire.FrameDecoder()
    in_chunk = max(1, 64 * KIB // (size + 50))
    frames = 0
    start = time.perf_counter()
    while (elapsed := time.perf_counter() - start) < seconds:
        for _ in range(10):
            decoder.feed(b"".join([wire.encode_data(wire.ExecStdout, 1, data) for _ in range(in_chunk)]))
            for frame in decoder:
                wire.decode(frame)
                frames += 1
    return frames / elapsed


async def full_stack_frames(size: int, nframes: int = 10_000) -> float:
    """Frames per second, of ``size`` bytes of stdin each, through client, codec, outbox, channel and agent."""
    async with trio_console.open_guest() as guest:
        return await _guest_stdin(guest, nframes * size, size) / size


async def full_stack_pings(at_once: int, workers: Workers = "threads", npings: int = 10_000) -> float:
    """Requests per second, each a frame there and a frame back, by so many tasks."""
    async with _opened(workers) as guest:

        async def ping_in_a_row() -> None:
            for _ in range(npings // at_once):
                await guest.ping()

        start = time.perf_counter()
        async with trio.open_nursery() as nursery:
            for _ in range(at_once):
                nursery.start_soon(ping_in_a_row)
        return npings // at_once * at_once / (time.perf_counter() - start)


# --- files ----------------------------------------------------------------------------------------


@contextlib.asynccontextmanager
async def _file(nbytes: int) -> AsyncIterator[str]:
    """A file of so many bytes. It is not on a disk, because the speed of the disk is not to be measured."""
    with tempfile.NamedTemporaryFile(dir=MEMORY) as file:
        await trio.to_thread.run_sync(_fill, file.name, nbytes)
        yield file.name


def _fill(path: str, nbytes: int) -> None:
    with open(path, "wb") as file:
        file.writelines(bytes(MIB) for _ in range(nbytes // MIB))


async def file_read_direct(nbytes: int) -> float:
    """Read a file with ``trio.open_file``, a MiB at a time."""
    async with _file(nbytes) as path, await trio.open_file(path, "rb") as file:
        start = time.perf_counter()
        total = 0
        while data := await file.read(MIB):
            total += len(data)
        return total / (time.perf_counter() - start)


async def file_read(nbytes: int) -> float:
    """The same with ``guest.open_file``."""
    async with _file(nbytes) as path, trio_console.open_guest() as guest:
        async with await guest.open_file(path, "rb") as file:
            start = time.perf_counter()
            total = 0
            while data := await file.read(MIB):
                total += len(data)
            return total / (time.perf_counter() - start)


async def small_read_trio(n: int) -> list[float]:
    """``trio.Path.read_bytes`` of 1 KiB, again and again."""
    with _small_file() as path:
        return await _repeat(n, trio.Path(path).read_bytes)


async def small_read_guest(n: int, workers: Workers = "threads") -> list[float]:
    """The same with a `GuestPath` of the default guest."""
    with _small_file() as path:
        async with _opened(workers) as guest:
            return await _repeat(n, guest.path(path).read_bytes)


async def stat_trio(n: int) -> list[float]:
    """``trio.Path.stat`` of a file, again and again."""
    with _small_file() as path:
        return await _repeat(n, trio.Path(path).stat)


async def stat_guest(n: int, workers: Workers = "threads") -> list[float]:
    """The same with a `GuestPath` of the default guest."""
    with _small_file() as path:
        async with _opened(workers) as guest:
            return await _repeat(n, guest.path(path).stat)


@contextlib.contextmanager
def _small_file() -> Iterator[str]:
    with tempfile.NamedTemporaryFile(dir=MEMORY) as file:
        file.write(bytes(KIB))
        file.flush()
        yield file.name


async def file_write_direct(nbytes: int) -> float:
    """Write a file with ``trio.open_file``, a MiB at a time."""
    async with _file(0) as path, await trio.open_file(path, "wb") as file:
        data = bytes(MIB)
        start = time.perf_counter()
        for _ in range(nbytes // MIB):
            await file.write(data)
        await file.flush()
        return nbytes / (time.perf_counter() - start)


async def file_write(nbytes: int) -> float:
    """The same with ``guest.open_file``."""
    async with _file(0) as path, trio_console.open_guest() as guest:
        async with await guest.open_file(path, "wb") as file:
            data = bytes(MIB)
            start = time.perf_counter()
            for _ in range(nbytes // MIB):
                await file.write(data)
            await file.flush()
            return nbytes / (time.perf_counter() - start)


# --- TCP ------------------------------------------------------------------------------------------

#: Sends back what it gets, in a process of its own.
_ECHO = """
import socket
server = socket.create_server(("127.0.0.1", 0))
print(server.getsockname()[1], flush=True)
while True:
    peer = server.accept()[0]
    with peer:
        while data := peer.recv(262144):
            peer.sendall(data)
"""


@contextlib.asynccontextmanager
async def _echo_server() -> AsyncIterator[int]:
    process = await trio.lowlevel.open_process(
        [sys.executable, "-c", _ECHO], stdin=subprocess.DEVNULL, stdout=subprocess.PIPE
    )
    assert process.stdout is not None
    try:
        with trio.fail_after(30):
            line = bytes(await process.stdout.receive_some(KIB))
        yield int(line)
    finally:
        process.kill()
        with trio.CancelScope(shield=True):
            await process.wait()
        await trio.aclose_forcefully(process.stdout)


async def tcp_echo_direct(nbytes: int) -> float:
    """Send to an echo server and read it all back, both at once, with trio."""
    async with _echo_server() as port, await trio.open_tcp_stream("127.0.0.1", port) as stream:
        return await _echo(stream, nbytes)


async def tcp_echo_guest(nbytes: int) -> float:
    """The same over a connection of the default guest."""
    async with _echo_server() as port, trio_console.open_guest() as guest:
        async with await guest.open_tcp_stream("127.0.0.1", port) as stream:
            return await _echo(stream, nbytes)


async def _echo(stream: trio.abc.HalfCloseableStream, nbytes: int) -> float:
    async def send() -> None:
        await _produce(stream, nbytes, PIECE)
        await stream.send_eof()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(send)
        speed = await _consume(stream, nbytes)
    return speed  # noqa: RET504  (not inside of the nursery)

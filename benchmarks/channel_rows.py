"""Contenders of the channel: each moves chunks between a thread and a trio task in another way.

Every function measures one contender once, in an event loop of its own. ``to_trio_*`` and ``to_thread_*`` move
``count`` chunks of ``size`` bytes and return chunks per second; ``echo_*`` return the seconds of each round trip.

*Copies are equal.* Each contender copies a chunk twice: out of the sender's memory, and into the receiver's. With
pipes and sockets the kernel makes both copies. Our backend and queues of objects copy once into a `bytes` object.
The second copy is made by our stream when it joins chunks, or by a thread that reads into its buffer; if a chunk
was passed by reference, the receiver here copies it into a buffer of its own.
"""

from __future__ import annotations

import asyncio
import os
import select
import socket
import time
from functools import partial
from typing import TYPE_CHECKING

import aiologic
import culsans
import janus
import trio

import trio_console

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

#: Bytes of the buffer of a thread's read: as many as a pipe or a socket holds.
BUFFER = 64 * 1024

#: Chunks in a queue of objects: as many as in our ring.
QUEUE = 2048

ECHO_SIZE = 64


def small_traffic() -> None:
    """Bring the allocator into the state of a long-lived program: make, move and free many small chunks."""
    to_trio_console(16, 200_000)


async def _beside(thread: Callable[[], object], task: Callable[[], Awaitable[object]]) -> float:
    """Run both at once; the seconds until both have ended."""
    start = time.perf_counter()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(trio.to_thread.run_sync, thread)
        await task()
    return time.perf_counter() - start


# --- a device's thread sends, a task receives -------------------------------------------------------


async def _receive(receive: Callable[[], Awaitable[bytes]], nbytes: int, copied: int = 0) -> None:
    """Receive so many bytes; a piece of exactly ``copied`` bytes is a chunk that came by reference."""
    buffer = memoryview(bytearray(2 * 1024 * 1024))
    left = nbytes
    while left:
        data = await receive()
        if len(data) == copied:
            buffer[:copied] = data
        left -= len(data)


def _write_backend(backend: trio_console.AgentConsoleBackend, memory: memoryview, count: int) -> None:
    write = backend.write
    for _ in range(count):
        while True:
            try:
                write(memory)
                break
            except BlockingIOError:
                backend.wait_until_writable()


def _write_fd(fd: int, memory: memoryview, count: int) -> None:
    for _ in range(count):
        written = os.write(fd, memory)
        while written < len(memory):
            written += os.write(fd, memory[written:])


def to_trio_console(size: int, count: int, *, copy: bool = True) -> float:
    """`AgentConsoleBackend.write` of the sender's memory, `ConsoleStream.receive_some`."""

    async def main() -> float:
        shared = trio_console.ConsoleSharedState()
        backend = trio_console.AgentConsoleBackend(shared)
        channel = trio_console.ConsoleStream(shared)
        return await _beside(
            partial(_write_backend, backend, memoryview(bytearray(size)), count),
            partial(_receive, channel.receive_some, size * count, size if copy else 0),
        )

    return count / trio.run(main)


def wakes_to_trio_console(size: int, count: int) -> float:
    """Wake-ups for each chunk, in both directions together: writes to an eventfd."""

    async def main() -> int:
        shared = trio_console.ConsoleSharedState()
        backend = trio_console.AgentConsoleBackend(shared)
        channel = trio_console.ConsoleStream(shared)
        await _beside(
            partial(_write_backend, backend, memoryview(bytearray(size)), count),
            partial(_receive, channel.receive_some, size * count),
        )
        return channel.statistics().tx.wakes

    return trio.run(main) / count


def to_trio_pipe(size: int, count: int) -> float:
    """`os.write` to a pipe, `trio.lowlevel.FdStream`."""

    async def main() -> float:
        read_fd, write_fd = os.pipe()
        async with trio.lowlevel.FdStream(read_fd) as stream:
            seconds = await _beside(
                partial(_write_fd, write_fd, memoryview(bytearray(size)), count),
                partial(_receive, stream.receive_some, size * count),
            )
        os.close(write_fd)
        return seconds

    return count / trio.run(main)


def to_trio_socketpair(size: int, count: int) -> float:
    """`socket.sendall`, `trio.SocketStream`."""

    async def main() -> float:
        ours, theirs = socket.socketpair()
        memory = memoryview(bytearray(size))

        def send() -> None:
            for _ in range(count):
                theirs.sendall(memory)

        async with trio.SocketStream(trio.socket.from_stdlib_socket(ours)) as stream:
            seconds = await _beside(send, partial(_receive, stream.receive_some, size * count))
        theirs.close()
        return seconds

    return count / trio.run(main)


def to_trio_from_thread(size: int, count: int) -> float:
    """`trio.from_thread` into a memory channel."""

    async def main() -> float:
        send_channel, receive_channel = trio.open_memory_channel[bytes](QUEUE)
        memory = memoryview(bytearray(size))

        def send() -> None:
            for _ in range(count):
                trio.from_thread.run(send_channel.send, bytes(memory))

        async with send_channel, receive_channel:
            return await _beside(send, partial(_receive, receive_channel.receive, size * count, size))

    return count / trio.run(main)


def to_trio_culsans(size: int, count: int) -> float:
    """A culsans queue: ``sync_put``, ``async_get``."""

    async def main() -> float:
        queue = culsans.Queue[bytes](QUEUE)
        memory = memoryview(bytearray(size))

        def send() -> None:
            for _ in range(count):
                queue.sync_put(bytes(memory))

        return await _beside(send, partial(_receive, queue.async_get, size * count, size))

    return count / trio.run(main)


def to_trio_aiologic(size: int, count: int) -> float:
    """An aiologic queue: ``green_put``, ``async_get``."""

    async def main() -> float:
        queue = aiologic.Queue[bytes](QUEUE)
        memory = memoryview(bytearray(size))

        def send() -> None:
            for _ in range(count):
                queue.green_put(bytes(memory))

        return await _beside(send, partial(_receive, queue.async_get, size * count, size))

    return count / trio.run(main)


def to_asyncio_janus(size: int, count: int) -> float:
    """A janus queue, which is for asyncio only and not for trio; it is here for comparison."""

    async def main() -> float:
        queue = janus.Queue[bytes](QUEUE)
        memory = memoryview(bytearray(size))

        def send() -> None:
            for _ in range(count):
                queue.sync_q.put(bytes(memory))

        start = time.perf_counter()
        thread = asyncio.get_running_loop().run_in_executor(None, send)
        await _receive(queue.async_q.get, size * count, size)
        await thread
        seconds = time.perf_counter() - start
        await queue.aclose()
        return seconds

    return count / asyncio.run(main())


# --- a task sends, a device's thread receives -------------------------------------------------------


async def _send(
    send_all: Callable[[bytes], Awaitable[None]], size: int, count: int, *, copy: bool = False
) -> None:
    memory = bytearray(size)
    chunk = bytes(memory)
    for _ in range(count):
        await send_all(bytes(memory) if copy else chunk)


def _read_backend(backend: trio_console.AgentConsoleBackend, nbytes: int) -> None:
    buffer = bytearray(BUFFER)
    poller = select.poll()
    poller.register(backend.read_wake_fd(), select.POLLIN)
    left = nbytes
    while left:
        try:
            left -= backend.readinto(buffer)
        except BlockingIOError:
            poller.poll()


def _read_fd(fd: int, nbytes: int) -> None:
    buffer = bytearray(BUFFER)
    left = nbytes
    while left:
        left -= os.readv(fd, [buffer])


def to_thread_console(size: int, count: int) -> float:
    """`ConsoleStream.send_all` of a copy, `AgentConsoleBackend.readinto`."""

    async def main() -> float:
        shared = trio_console.ConsoleSharedState()
        backend = trio_console.AgentConsoleBackend(shared)
        channel = trio_console.ConsoleStream(shared)
        return await _beside(
            partial(_read_backend, backend, size * count),
            partial(_send, channel.send_all, size, count, copy=True),
        )

    return count / trio.run(main)


#: Chunks that a task has at a time, to be sent in one call.
AT_A_TIME = 1000


def pieces_console(size: int, count: int) -> float:
    """`ConsoleStream.send_pieces` of a list of chunks, `AgentConsoleBackend.readinto`."""
    return _pieces(lambda channel: channel.send_pieces, size, count)


def pieces_joined_by_hand(size: int, count: int) -> float:
    """`ConsoleStream.send_all` of the list's joined bytes, `AgentConsoleBackend.readinto`."""

    def joining(channel: trio_console.ConsoleStream) -> Callable[[list[bytes]], Awaitable[None]]:
        return lambda pieces: channel.send_all(b"".join(pieces))

    return _pieces(joining, size, count)


def _pieces(
    choose: Callable[[trio_console.ConsoleStream], Callable[[list[bytes]], Awaitable[None]]], size: int, count: int
) -> float:
    async def main() -> float:
        shared = trio_console.ConsoleSharedState()
        backend = trio_console.AgentConsoleBackend(shared)
        channel = trio_console.ConsoleStream(shared)
        send = choose(channel)
        pieces = [bytes(bytearray(size)) for _ in range(AT_A_TIME)]

        async def send_all() -> None:
            for _ in range(count // AT_A_TIME):
                await send(pieces)

        return await _beside(partial(_read_backend, backend, size * count), send_all)

    return count / trio.run(main)


def to_thread_pipe(size: int, count: int) -> float:
    """`trio.lowlevel.FdStream`, `os.readv` from a pipe."""

    async def main() -> float:
        read_fd, write_fd = os.pipe()
        async with trio.lowlevel.FdStream(write_fd) as stream:
            seconds = await _beside(
                partial(_read_fd, read_fd, size * count), partial(_send, stream.send_all, size, count)
            )
        os.close(read_fd)
        return seconds

    return count / trio.run(main)


def to_thread_socketpair(size: int, count: int) -> float:
    """`trio.SocketStream`, `os.readv`."""

    async def main() -> float:
        ours, theirs = socket.socketpair()
        with theirs:
            async with trio.SocketStream(trio.socket.from_stdlib_socket(ours)) as stream:
                return await _beside(
                    partial(_read_fd, theirs.fileno(), size * count), partial(_send, stream.send_all, size, count)
                )

    return count / trio.run(main)


def to_thread_culsans(size: int, count: int) -> float:
    """A culsans queue: ``async_put``, ``sync_get``."""

    async def main() -> float:
        queue = culsans.Queue[bytes](QUEUE)

        def receive() -> None:
            buffer = memoryview(bytearray(size))
            for _ in range(count):
                buffer[:] = queue.sync_get()

        return await _beside(receive, partial(_send, queue.async_put, size, count, copy=True))

    return count / trio.run(main)


def checkpoints(_size: int, count: int) -> float:
    """No chunks, but a checkpoint for each. Every `send_all` is a checkpoint, so no stream can be faster."""

    async def main() -> float:
        start = time.perf_counter()
        for _ in range(count):
            await trio.lowlevel.checkpoint()
        return time.perf_counter() - start

    return count / trio.run(main)


# --- there and back ---------------------------------------------------------------------------------


async def _echo(stream: trio.abc.Stream, count: int) -> list[float]:
    message = bytes(ECHO_SIZE)
    seconds = []
    for _ in range(count):
        start = time.perf_counter()
        await stream.send_all(message)
        left = ECHO_SIZE
        while left:
            left -= len(await stream.receive_some())
        seconds.append(time.perf_counter() - start)
    return seconds


def echo_console(count: int) -> list[float]:
    """Through our channel: a thread that polls, reads until it would block, and writes back."""

    async def main() -> list[float]:
        shared = trio_console.ConsoleSharedState()
        backend = trio_console.AgentConsoleBackend(shared)
        channel = trio_console.ConsoleStream(shared)

        def answer() -> None:
            poller = select.poll()
            poller.register(backend.read_wake_fd(), select.POLLIN)
            while True:
                try:
                    data = backend.read(BUFFER)
                except BlockingIOError:
                    poller.poll()
                    continue
                if not data:
                    return
                backend.write(data)

        async with trio.open_nursery() as nursery:
            nursery.start_soon(trio.to_thread.run_sync, answer)
            seconds = await _echo(channel, count)
            await channel.send_eof()
        return seconds

    return trio.run(main)


def echo_socketpair(count: int) -> list[float]:
    """Through a socket pair: a thread in blocking reads, which writes back."""

    async def main() -> list[float]:
        ours, theirs = socket.socketpair()

        def answer() -> None:
            while data := theirs.recv(BUFFER):
                theirs.sendall(data)

        with theirs:
            async with trio.SocketStream(trio.socket.from_stdlib_socket(ours)) as stream:
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(trio.to_thread.run_sync, answer)
                    seconds = await _echo(stream, count)
                    await stream.send_eof()
        return seconds

    return trio.run(main)

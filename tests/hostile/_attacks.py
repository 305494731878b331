"""What a hostile client of a relay does: each attack is made of raw frames, for as long as it is let.

None cares what it is told. An attack ends by leaving, in order or with a reset, or is cancelled.
"""

from __future__ import annotations

import fcntl
import os
import signal
import socket
import struct
from collections.abc import Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, TypeAlias

import trio

from tests.relay.router._world import RawClient
from trio_console import _wire as wire

if TYPE_CHECKING:
    import random
    from collections.abc import AsyncIterator
    from pathlib import Path

__all__ = ["ATTACKS", "Target"]

#: Items in the largest body: one byte each.
LARGE: Final = 4 * 1024 * 1024 - 100

#: Values that are CBOR, and that some decoders refuse: a simple value, two integers of 136 bits, a NaN, undefined,
#: and an array that says it is longer than any memory.
ODD: Final = (
    b"\xf8\xff",
    b"\xc2\x51" + b"\x01" * 17,
    b"\xc3\x51" + b"\xff" * 17,
    b"\xf9\x7e\x00",
    b"\xf7",
    b"\x9b" + b"\xff" * 8,
)

TYPES: Final = (b"core.ping", b"core.exec.request", b"core.fs.request", b"core.tcp.connect", b"core.touch")


@dataclass
class Target:
    """What is attacked.

    Attributes:
        path: the socket of the relay.
        folder: a directory that the guest sees.
        choice: a source of random numbers.
        seconds: how long an attack holds on to what it has got.
    """

    path: str
    folder: Path
    choice: random.Random
    seconds: float

    @asynccontextmanager
    async def client(self) -> AsyncIterator[RawClient]:
        """A client that leaves at the end: with a reset, or in order."""
        stream = await trio.open_unix_socket(self.path)
        try:
            client = RawClient(stream)
            await client.greet()
            yield client
        finally:
            if self.choice.random() < 0.5:
                with suppress(OSError):
                    stream.socket.shutdown(socket.SHUT_RDWR)
            await trio.aclose_forcefully(stream)

    async def hold(self) -> None:
        await trio.sleep(self.choice.uniform(0.1, 1.0) * self.seconds)


Attack: TypeAlias = Callable[[Target], Awaitable[None]]


#: What a command does in the guest has to make room for everything else: the kernel shares the processors, and not
#: the relay or the agent. (Beside the niceness a session has one of its own, where the kernel groups by sessions.)
MEEK: Final = 'echo 19 2>/dev/null >/proc/self/autogroup; exec nice -n 19 /bin/sh -c "$0"'


def command(script: str, *, window: int | None = 256 * 1024) -> wire.ExecRequest:
    extra = {} if window is None else {"window": window}
    return wire.ExecRequest(cmd="/bin/sh", args=["-c", MEEK, script], **extra)  # type: ignore[arg-type]


async def read_for_ever(client: RawClient) -> None:
    with suppress(trio.BrokenResourceError):
        while await client.stream.receive_some(65536):
            pass


async def flood(client: RawClient, data: bytes, pause: float = 0.0) -> None:
    while True:
        await client.stream.send_all(data)
        await trio.sleep(pause)


# Shared things


async def park_file_slots(target: Target) -> None:
    """Operations that wait for the disk, more than the agent has threads for files."""
    with suppress(OSError):
        signal.signal(signal.SIGIO, signal.SIG_IGN)
    async with target.client() as client:
        held = []
        try:
            for number, id_ in zip(range(16), client.ids, strict=False):
                path = target.folder / f"leased{os.getpid()}-{target.choice.randrange(10**9)}-{number}"
                path.write_bytes(b"x")
                held.append((os.open(path, os.O_RDONLY), path))
                fcntl.fcntl(held[-1][0], fcntl.F_SETLEASE, fcntl.F_RDLCK)
                change = wire.OpSetStat(path=str(path), attrs=wire.SetAttrs(size=0), follow_symlink=True)
                await client.send(wire.FsRequest(change), id_)
            await target.hold()
        finally:
            for descriptor, path in held:
                os.close(descriptor)
                path.unlink(missing_ok=True)


async def use_up_descriptors(target: Target) -> None:
    """Commands with three pipes each, and connections, until there are no more."""
    listener = socket.create_server(("127.0.0.1", 0), backlog=200)
    with listener:
        async with target.client() as client:
            for number, id_ in zip(range(60), client.ids, strict=False):
                if number % 3:
                    await client.send(command("exec sleep 1000"), id_)
                else:
                    port = listener.getsockname()[1]
                    await client.send(wire.TcpConnect("127.0.0.1", port, window=1000), id_)
            with trio.move_on_after(target.seconds):
                await read_for_ever(client)


async def start_a_crowd(target: Target) -> None:
    """A command that starts many processes, which leave its session and its group."""
    async with target.client() as client:
        await client.send(command("for i in 1 2 3 4 5 6; do (setsid sleep 1000 &); done; wait"), client.ids[0])
        await target.hold()


async def open_and_give_up(target: Target) -> None:
    """Requests that are called off, or whose client leaves, before they are answered."""
    async with target.client() as client:
        ids = iter(client.ids)
        for _ in range(20):
            id_ = next(ids)
            await client.send(command("echo; exec sleep 1000"), id_)
            await client.send(wire.ExecSignal(target.choice.choice([9, 15, 64, -1, 99])), id_)


# Floods


async def send_tiny_items(target: Target) -> None:
    """A body of the greatest size, of nothing but the smallest values."""
    async with target.client() as client:
        await client.send_raw(tiny_items(client.ids[0]))
        with trio.move_on_after(target.seconds):
            await read_for_ever(client)


def tiny_items(id_: int) -> bytes:
    """A frame for a ping whose body has an unknown key with millions of items."""
    inner = b"\xa1\x61x\x9a" + struct.pack(">I", LARGE) + bytes(LARGE)
    return raw_frame(id_, 0, b"core.ping", inner)


def raw_frame(id_: int, flags: int, name: bytes, inner: bytes) -> bytes:
    """A frame with any body, as the wire has it."""
    envelope = b"\xa3\x61v\x07\x61t" + text(name) + b"\x61p" + octets(inner)
    rest = struct.pack(">IB", id_, flags) + envelope
    return struct.pack(">I", len(rest)) + rest


def text(data: bytes) -> bytes:
    return bytes([0x60 + len(data)]) + data if len(data) < 24 else bytes([0x78, len(data)]) + data


def octets(data: bytes) -> bytes:
    return b"\x5a" + struct.pack(">I", len(data)) + data


async def send_bodies_that_decoders_differ_on(target: Target) -> None:
    """Bodies that are CBOR, and that some decoders refuse."""
    async with target.client() as client:
        for number, id_ in zip(range(40), client.ids, strict=False):
            inner = b"\xa1\x61x" + ODD[number % len(ODD)]
            await client.send_raw(raw_frame(id_, 2, TYPES[number % len(TYPES)], inner))
        with trio.move_on_after(target.seconds):
            await read_for_ever(client)


async def connect_badly(target: Target) -> None:
    """Connections that say what is no frame, or half of one, and go."""
    for _ in range(40):
        async with target.client() as client:
            kind = target.choice.randrange(4)
            if kind == 0:
                await client.send_raw(target.choice.randbytes(100))
            elif kind == 1:
                await client.send_raw(b"\xff\xff\xff\xff" + bytes(30))
            elif kind == 2:
                await client.send_raw(wire.encode(wire.Ping(), client.ids[0])[:7])


async def ping_without_end(target: Target) -> None:
    async with target.client() as client:
        with trio.move_on_after(target.seconds):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(read_for_ever, client)
                await flood(client, wire.encode(wire.Ping(), client.ids[0]) * 100)


async def send_foreign_ids(target: Target) -> None:
    """Frames for sessions of others, and at the ends of all ranges."""
    for _ in range(10):
        async with target.client() as client:
            low, high = client.ids[0], client.ids[-1]
            around = [0, 1, low - 1, high + 1, 2**32 - 1, target.choice.randrange(2**32)]
            id_ = target.choice.choice(around) % 2**32
            message = target.choice.choice(
                [wire.ExecSignal(9), wire.ExecStdin(b"x"), wire.TcpClose(), wire.Ping()]
            )
            await client.send(message, id_)
            await trio.sleep(0.01)


# Readers and writers


async def send_input_in_crumbs(target: Target) -> None:
    """Input of two bytes a frame, for commands that do not read."""
    async with target.client() as client:
        for number in range(4):
            await client.send(command("exec sleep 1000"), client.ids[number])
        crumbs = b"".join(wire.encode(wire.ExecStdin(b"xy"), client.ids[number]) for number in range(4))
        with trio.move_on_after(target.seconds):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(read_for_ever, client)
                await flood(client, crumbs * 200)


async def never_read(target: Target) -> None:
    """Output without end and without windows, which nobody reads."""
    async with target.client() as client:
        for number in range(4):
            await client.send(command("exec yes", window=None), client.ids[number])
        await target.hold()


async def read_slowly(target: Target) -> None:
    async with target.client() as client:
        await client.send(command("exec yes"), client.ids[0])
        with trio.move_on_after(target.seconds):
            while await client.stream.receive_some(4096):
                await trio.sleep(0.1)


async def make_small_output(target: Target) -> None:
    """Output of a line a write: a flood of small frames from the guest."""
    async with target.client() as client:
        await client.send(command("while :; do echo; done", window=2**31), client.ids[0])
        with trio.move_on_after(target.seconds):
            await read_for_ever(client)


async def be_silent(target: Target) -> None:
    """Clients that hold a slot and do nothing with it."""
    async with trio.open_nursery() as nursery:

        async def sit() -> None:
            async with target.client():
                await target.hold()

        for _ in range(8):
            nursery.start_soon(sit)


ATTACKS: Final[tuple[Attack, ...]] = (
    park_file_slots,
    use_up_descriptors,
    start_a_crowd,
    open_and_give_up,
    send_tiny_items,
    send_bodies_that_decoders_differ_on,
    connect_badly,
    ping_without_end,
    send_foreign_ids,
    send_input_in_crumbs,
    never_read,
    read_slowly,
    make_small_output,
    be_silent,
)

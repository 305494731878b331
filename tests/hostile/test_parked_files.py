"""A client whose file operations all hang keeps nothing from the others, nor from those that leave meanwhile."""

from __future__ import annotations

import fcntl
import os
import signal
from contextlib import AsyncExitStack, contextmanager
from typing import TYPE_CHECKING

import trio

from tests.hostile._attacks import RawClient
from tests.hostile._soak import SLOTS, a_relay
from tests.tools.limits import HANG
from trio_console import _wire as wire
from trio_console import connect_guest

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

#: More than the agent has threads for calls of one client.
PARKED = 16


@contextmanager
def leased(folder: Path) -> Iterator[list[Path]]:
    """Files with leases: to change one of them hangs until the lease is given up, at the end of the block."""
    before = signal.signal(signal.SIGIO, signal.SIG_IGN)
    held: list[int] = []
    paths = [folder / f"leased{number}" for number in range(PARKED)]
    try:
        for path in paths:
            path.write_bytes(b"x")
            held.append(os.open(path, os.O_RDONLY))
            fcntl.fcntl(held[-1], fcntl.F_SETLEASE, fcntl.F_RDLCK)
        yield paths
    finally:
        for descriptor in held:
            os.close(descriptor)
        signal.signal(signal.SIGIO, before)


async def connect(path: str) -> RawClient:
    client = RawClient(await trio.open_unix_socket(path))
    await client.greet()
    return client


async def park(client: RawClient, paths: list[Path]) -> None:
    for path, id_ in zip(paths, client.ids, strict=False):
        change = wire.OpSetStat(path=str(path), attrs=wire.SetAttrs(size=0), follow_symlink=True)
        await client.send(wire.FsRequest(change), id_)
    await client.send(wire.Ping(), client.ids[PARKED])
    await client.expect(wire.Pong)


async def test_files_of_others_go_on_and_slots_come_back(tmp_path: Path) -> None:
    async with a_relay(tmp_path) as (path, _):
        with leased(tmp_path) as paths:
            hostile = await connect(path)
            await park(hostile, paths)
            with trio.fail_after(HANG):
                for number in range(2 * SLOTS):  # each leaves a slot behind
                    async with connect_guest(path) as guest:
                        file = guest.path(tmp_path / "file")
                        await file.write_bytes(b"%d" % number)
                        assert await file.read_bytes() == b"%d" % number
            # It leaves, and what it has parked is still parked.
            await hostile.leave()
            with trio.fail_after(HANG):
                async with AsyncExitStack() as stack:
                    guests = [await stack.enter_async_context(connect_guest(path)) for _ in range(SLOTS)]
                    for guest in guests[::16]:
                        assert (await guest.path(tmp_path / "file").read_bytes()) == b"%d" % (2 * SLOTS - 1)

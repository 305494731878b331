"""Clients that use up the descriptors of the guest: it lives, it is there for others, and all comes back."""

from __future__ import annotations

import signal
from contextlib import AsyncExitStack
from typing import TYPE_CHECKING

import trio

from tests.hostile._attacks import RawClient, command
from tests.hostile._soak import a_relay, all_slots
from tests.tools.leftovers import marked, marking
from tests.tools.limits import BUSY, HANG
from trio_console import _wire as wire
from trio_console import connect_guest

if TYPE_CHECKING:
    from pathlib import Path

CLIENTS = 7


async def use_up(path: str) -> RawClient:
    """A client that starts commands, and what they leave behind, until it may have no more."""
    client = RawClient(await trio.open_unix_socket(path))
    await client.greet()
    for id_ in client.ids:
        await client.send(command("setsid sleep 1000 & exec sleep 1000"), id_)
        while True:
            got = await client.receive()
            assert got is not None, "the guest is gone"
            if isinstance(got[1], wire.ExecFailed):
                assert got[1].errno_name == "EMFILE"
                return client
            if isinstance(got[1], wire.ExecStarted):
                break
    raise AssertionError("there is no end of descriptors")


async def test_the_guest_outlives_clients_that_use_up_its_descriptors(tmp_path: Path) -> None:
    with marking() as mark:
        async with a_relay(tmp_path, limits="ulimit -n 512") as (path, _):
            ours = marked(mark)
            async with AsyncExitStack() as stack:
                with trio.fail_after(BUSY):
                    for _ in range(CLIENTS):
                        client = await use_up(path)
                        stack.push_async_callback(client.leave)
                async with connect_guest(path) as guest:
                    with trio.fail_after(HANG):
                        await guest.ping()
                        result = await guest.run_process(["echo", "hi"], capture_stdout=True)
                        assert result.stdout == b"hi\n"
                        assert await guest.path("/").is_dir()
                        async with guest.open_process(["sleep", "1000"]) as process:
                            process.send_signal(signal.SIGKILL)
            # They have left: all that they have started ends, and there is room again.
            with trio.fail_after(BUSY):
                while marked(mark) - ours:
                    await trio.sleep(0.05)
            await all_slots(path)
            async with connect_guest(path) as guest:
                for _ in range(40):
                    await guest.run_process(["true"])

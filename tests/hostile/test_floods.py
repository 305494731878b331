"""Frames that cost much, or that not every agent can decode, are refused, and others are served."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
import trio

import trio_console
from tests.hostile._attacks import ODD, raw_frame, tiny_items
from tests.relay.router._world import RawClient
from tests.tools.limits import HANG
from trio_console import _wire as wire

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

#: The odd values that are whole items.
WHOLE = [value for value in ODD if value[0] != 0x9B]


async def refusal(path: str, make_frame: Callable[[int], bytes]) -> wire.Error:
    """The answer to a frame, whose id is given to a function that makes it."""
    stream = await trio.open_unix_socket(path)
    with stream.socket:
        client = RawClient(stream)
        await client.greet()
        id_ = client.ids[0]
        await client.send_raw(make_frame(id_))
        answered, message = await client.expect(wire.Error)
        assert answered == id_
        return message


async def test_clients_that_send_millions_of_items_are_refused_and_others_are_served(tmp_path: Path) -> None:
    path = str(tmp_path / "relay.sock")
    refused: list[wire.Error] = []

    async def attack() -> None:
        refused.append(await refusal(path, tiny_items))

    async with trio_console.open_guest(relay_path=path), trio_console.connect_guest(path) as honest:
        with trio.fail_after(2 * HANG):
            async with trio.open_nursery() as nursery:
                for _ in range(4):
                    nursery.start_soon(attack)
                for _ in range(20):
                    await honest.ping()
            await honest.run_process(["true"])
    assert {error.kind for error in refused} == {"invalid_payload"}
    assert all("items" in error.message for error in refused)


@pytest.mark.parametrize("value", WHOLE, ids=bytes.hex)
async def test_a_body_that_not_every_agent_can_decode_is_refused(tmp_path: Path, value: bytes) -> None:
    path = str(tmp_path / "relay.sock")
    async with trio_console.open_guest(relay_path=path) as guest:
        inner = b"\xa2\x63cmd\x64true\x61x" + value
        error = await refusal(path, lambda id_: raw_frame(id_, 2, b"core.exec.request", inner))
        assert error.kind == "invalid_payload"
        assert "not every agent can decode" in error.message
        await guest.ping()

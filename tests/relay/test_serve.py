"""A relay's life: each part that was started is ended, also if it is cancelled at once."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import trio
from trio.testing import memory_stream_pair

from tests.tools.limits import HANG
from tests.tools.peer import frame, ready_message, settle
from trio_console import _wire as wire
from trio_console import open_guest, serve_relay
from trio_console._open import relay as _relay
from trio_console._relay.serve import relaying
from trio_console._relay.server import ServerOptions
from trio_console._relay.socket import RelaySocket
from trio_console._session.boot import Booted
from trio_console.testing import Duplicate, Fault, FaultyGuest, ScriptedGuest

if TYPE_CHECKING:
    from pathlib import Path

    import pytest


async def test_a_relay_that_is_cancelled_before_it_has_started_ends(tmp_path: Path) -> None:
    ready = ready_message(None)
    booted = Booted(ready, frame(ready), 7, wire.FrameDecoder())
    ours, theirs = memory_stream_pair()
    made = RelaySocket(tmp_path / "relay.sock")
    ended = False

    async def begin_and_end() -> None:
        nonlocal ended
        with trio.CancelScope() as scope:
            scope.cancel()
            async with relaying(ours, booted, made, ServerOptions()):
                await trio.lowlevel.checkpoint()
        ended = True

    async with trio.open_nursery() as nursery:
        nursery.start_soon(begin_and_end)
        await settle()
        try:
            assert ended
        finally:
            await theirs.aclose()  # which ends it whatever happens
    made.close()
    made.sock.close()


async def test_leaving_does_not_wait_for_the_time_that_a_disobedient_guest_has(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_relay, "_SHUTDOWN_TIME", math.inf)
    with trio.fail_after(HANG):
        async with open_guest(ScriptedGuest({}), relay_path=tmp_path / "relay.sock") as guest:
            await guest.ping()


async def test_a_relay_that_is_cancelled_ends_its_guest_in_order(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    in_order = _relay.end
    ended: list[bool] = []

    async def end(*args: Any) -> None:
        await in_order(*args)
        ended.append(True)

    monkeypatch.setattr(_relay, "end", end)
    faulty = FaultyGuest([Fault(Duplicate(), "core.shutdown")])
    with trio.fail_after(HANG):
        async with trio.open_nursery() as nursery:
            await nursery.start(serve_relay, faulty, tmp_path / "relay.sock")
            nursery.cancel_scope.cancel()
    assert ended == [True]
    assert [fault.message for fault in faulty.fired] == ["core.shutdown"]

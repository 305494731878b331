"""A program that uses all of trio's default threads: guests and relays need none, once they are started."""

from __future__ import annotations

import subprocess
import sys
from contextlib import contextmanager
from typing import TYPE_CHECKING

import pytest
import trio

from tests.tools.limits import BUSY
from trio_console import CommandGuest, ProcessGuest, connect_guest, open_guest, serve_relay

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

AGENT = [sys.executable, "-P", "-m", "trio_console.agent", "--stdio"]


@contextmanager
def no_default_threads() -> Iterator[None]:
    """All tokens of trio's default limiter are taken, for the time of a block."""
    limiter = trio.to_thread.current_default_thread_limiter()
    takers = [object() for _ in range(int(limiter.available_tokens))]
    for taker in takers:
        limiter.acquire_on_behalf_of_nowait(taker)
    try:
        yield
    finally:
        for taker in takers:
            limiter.release_on_behalf_of(taker)


@pytest.mark.parametrize("spec", [ProcessGuest(), CommandGuest(AGENT)], ids=["process", "command"])
async def test_a_guest_is_used_and_left(spec: ProcessGuest | CommandGuest, tmp_path: Path) -> None:
    with trio.fail_after(BUSY):
        async with open_guest(spec) as guest:
            with no_default_threads():
                result = await guest.run_process(["echo", "hi"], capture_stdout=True)
                assert result.stdout == b"hi\n"
                await guest.run_process(["true"], stdin=subprocess.DEVNULL)
                await guest.path(tmp_path / "file").write_bytes(b"x")
                assert await guest.path(tmp_path / "file").read_text() == "x"
                await guest.shutdown()


async def test_a_relay_that_ends_leaves_no_socket(tmp_path: Path) -> None:
    tmp_path.chmod(0o700)
    path = tmp_path / "relay.sock"
    with trio.fail_after(BUSY):
        async with trio.open_nursery() as nursery:
            await nursery.start(serve_relay, ProcessGuest(), str(path))
            with no_default_threads():
                async with connect_guest(str(path)) as guest:
                    result = await guest.run_process(["echo", "hi"], capture_stdout=True)
                    assert result.stdout == b"hi\n"
                nursery.cancel_scope.cancel()
                with trio.CancelScope(shield=True):
                    while path.exists():
                        await trio.sleep(0.01)
    assert list(tmp_path.iterdir()) == []

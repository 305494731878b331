"""Output that is copied to this program's own descriptors."""

from __future__ import annotations

import os
import select
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import pytest
import trio
import trio.testing

from tests.tools.limits import HANG
from trio_console._session.process import plumbing
from trio_console._session.process.plumbing import _pass_on
from trio_console._session.receiving import Incoming, IncomingStream
from trio_console._trio.threads import NoThreadError

if TYPE_CHECKING:
    from collections.abc import Iterator

DATA = bytes(range(256)) * 4096

#: Bytes that are written by one call.
CHUNK = 128 * 1024


@contextmanager
def pipe(*, blocking: bool) -> Iterator[tuple[int, int]]:
    """A pipe whose writing end blocks or not, and is one that a child inherits, as a standard descriptor is."""
    reading, writing = os.pipe()
    os.set_inheritable(writing, True)
    os.set_blocking(writing, blocking)
    try:
        yield reading, writing
    finally:
        os.close(reading)
        os.close(writing)


def full_stream() -> IncomingStream:
    incoming = Incoming(None, lambda _: None)
    incoming.put(DATA)
    incoming.end()
    return IncomingStream(incoming)


async def read_exactly(fd: int, size: int) -> bytes:
    got = b""
    while len(got) < size:
        await trio.lowlevel.wait_readable(fd)
        got += os.read(fd, 65536)
    return got


async def test_a_non_blocking_descriptor_gets_everything_too() -> None:
    # The flag belongs to the open file and not to the process: any program on our terminal may have set it.
    with pipe(blocking=False) as (reading, writing), trio.fail_after(HANG):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(_pass_on, full_stream(), writing)
            assert await read_exactly(reading, len(DATA)) == DATA


async def test_a_blocked_descriptor_does_not_take_the_programs_threads() -> None:
    with pipe(blocking=True) as (reading, writing), trio.fail_after(HANG):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(_pass_on, full_stream(), writing)
            await trio.lowlevel.wait_readable(reading)
            await trio.testing.wait_all_tasks_blocked()
            assert trio.to_thread.current_default_thread_limiter().borrowed_tokens == 0
            assert await read_exactly(reading, len(DATA)) == DATA


async def test_without_a_thread_to_be_had_the_error_says_what_for(monkeypatch: pytest.MonkeyPatch) -> None:
    async def no_thread(*_args: Any, **_options: Any) -> None:
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(trio.to_thread, "run_sync", no_thread)
    with pytest.raises(NoThreadError, match="to copy a guest's output to descriptor 1"):
        await _pass_on(full_stream(), 1)


async def test_output_that_nobody_reads_any_more_is_counted_and_holds_up_nobody() -> None:
    discarded: list[int] = []
    incoming = Incoming(None, discarded.append)
    incoming.put(DATA)
    with trio.fail_after(HANG):
        await _pass_on(IncomingStream(incoming), -1)
    incoming.put(DATA)
    assert incoming.bytes_received == 2 * len(DATA)
    assert sum(discarded) >= len(DATA)
    assert not incoming.congested


async def test_what_was_discarded_and_what_was_read_add_up() -> None:
    discarded: list[int] = []
    incoming = Incoming(None, discarded.append)
    incoming.put(b"abc")
    incoming.let_go()
    incoming.put(b"defg")
    assert incoming.take(2) == b"ab"
    incoming.close()
    incoming.put(b"h")
    assert (incoming.bytes_received, sum(discarded)) == (8, 6)


async def test_a_thread_that_is_stuck_in_a_full_output_is_told() -> None:
    with pipe(blocking=True) as (reading, writing), trio.fail_after(HANG):
        with pytest.warns(RuntimeWarning, match=f"descriptor {writing} takes no bytes"):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(_pass_on, full_stream(), writing)
                await trio.lowlevel.wait_readable(reading)
                await wait_for_a_full_pipe(writing)
                nursery.cancel_scope.cancel()
        assert await read_exactly(reading, CHUNK) == DATA[:CHUNK]  # the thread ends


async def wait_for_a_full_pipe(writing: int) -> None:
    """Wait until the thread that writes cannot go on."""
    poll = select.poll()
    poll.register(writing, select.POLLOUT)
    while poll.poll(0):
        await trio.sleep(0.001)


async def test_a_write_that_ends_at_once_is_left_in_silence(monkeypatch: pytest.MonkeyPatch) -> None:
    waits, written = trio.Event(), trio.Event()
    token = trio.lowlevel.current_trio_token()
    write = plumbing._Writer.write

    def write_and_tell(writer: plumbing._Writer, data: bytes) -> None:
        try:
            write(writer, data)
        finally:
            token.run_sync_soon(written.set)  # behind what the end of the write has brought about

    async def ends_soon(done: trio.Event) -> bool:
        waits.set()
        await written.wait()
        return done.is_set()

    monkeypatch.setattr(plumbing._Writer, "write", write_and_tell)
    monkeypatch.setattr(plumbing, "_ends_soon", ends_soon)
    with pipe(blocking=True) as (reading, writing), trio.fail_after(HANG):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(_pass_on, full_stream(), writing)
            await wait_for_a_full_pipe(writing)
            nursery.cancel_scope.cancel()
            with trio.CancelScope(shield=True):
                await waits.wait()
                assert await read_exactly(reading, CHUNK) == DATA[:CHUNK]

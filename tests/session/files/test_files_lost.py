"""Files of a guest that is gone: the error says the reason, and unwritten bytes are an error."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
import trio
from trio.testing import MockClock, wait_all_tasks_blocked

import trio_console
from tests.session._fake import begin, talking
from tests.session.files._fake_files import serving_files
from trio_console import _wire as wire

if TYPE_CHECKING:
    from pathlib import Path

MIB = 1024 * 1024


async def test_a_read_ends_with_the_reason_when_the_guest_is_lost(file: Path) -> None:
    async with serving_files() as (talk, files):
        guest_file = await talk.guest.open_file(file, "rb")
        files.held[wire.OpRead] = trio.Event()
        reading = begin(talk.nursery, guest_file.read)
        await wait_all_tasks_blocked()
        talk.connection.lose("power cut")
        with pytest.raises(trio_console.GuestLostError, match="power cut"):
            await reading.wait()
        await guest_file.aclose()  # nothing was left to write


@pytest.mark.parametrize("size", [4, 4 * MIB])
async def test_data_that_was_not_written_is_missed_when_the_guest_is_lost(file: Path, size: int) -> None:
    async with serving_files() as (talk, files):
        guest_file = await talk.guest.open_file(file, "wb")
        files.grant_writes = False
        writing = begin(talk.nursery, lambda: guest_file.write(b"x" * size))
        await wait_all_tasks_blocked()
        talk.connection.lose("power cut")
        if size > MIB:
            with pytest.raises(trio_console.GuestLostError, match="power cut"):
                await writing.wait()
            await guest_file.aclose()
        else:
            with pytest.raises(trio_console.GuestLostError, match="power cut"):
                await guest_file.aclose()
        with pytest.raises(trio_console.GuestLostError):
            await talk.guest.open_file(file)


@pytest.mark.parametrize("size", [4, 4 * MIB])
async def test_a_console_that_takes_nothing_more_is_a_lost_guest(
    file: Path, size: int, autojump_clock: MockClock
) -> None:
    async with talking() as talk:
        opening = begin(talk.nursery, lambda: talk.guest.open_file(file, "wb"))
        id_, _ = await talk.agent.expect(wire.FsRequest)
        await talk.agent.send(wire.FsResponse(ok=True, data=wire.ResultHandle(1)), id_)
        guest_file = await opening.wait()
        talk.agent.stream.receive_stream.close()  # type: ignore[attr-defined]
        with pytest.raises(trio_console.GuestLostError):
            await guest_file.write(b"x" * size)
            await guest_file.flush()
        if size > MIB:
            await guest_file.aclose()
        else:
            with pytest.raises(trio_console.GuestLostError):
                await guest_file.aclose()


async def test_a_write_begun_when_the_console_is_gone_waits_for_the_reason(
    file: Path, autojump_clock: MockClock
) -> None:
    async with talking() as talk:
        opening = begin(talk.nursery, lambda: talk.guest.open_file(file, "wb", 0))
        id_, _ = await talk.agent.expect(wire.FsRequest)
        await talk.agent.send(wire.FsResponse(ok=True, data=wire.ResultHandle(1)), id_)
        guest_file = await opening.wait()
        talk.agent.stream.receive_stream.close()  # type: ignore[attr-defined]
        begin(talk.nursery, talk.guest.ping)  # the writer finds out, the reader does not yet
        await wait_all_tasks_blocked()
        assert talk.connection.outbox.closed
        assert talk.connection.lost is None
        for size in (1, MIB):
            with pytest.raises(trio_console.GuestLostError):
                await guest_file.write(b"x" * size)
        await guest_file.aclose()

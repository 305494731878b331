"""``whence`` of a seek: data and holes, and what is none of its values; beside io on this machine."""

from __future__ import annotations

import io
import os
import socket
from typing import TYPE_CHECKING, Any

import pytest
import trio

import trio_console
from tests.session.files._fake_files import serving_files
from trio_console import SocketGuest, open_guest
from trio_console import _wire as wire
from trio_console.agent import serve_agent

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

    from trio_console import Guest

#: A hole, data, a hole to the end.
DATA, END = 1 << 20, 1 << 21


@pytest.fixture
async def guest(tmp_path: Path) -> AsyncIterator[Guest]:
    """A guest whose agent is the real one, but in this process, where it starts at once."""
    sock = trio.socket.socket(socket.AF_UNIX)
    await sock.bind(str(tmp_path / "console"))
    sock.listen()
    async with trio.open_nursery() as nursery:
        await nursery.start(trio.serve_listeners, serve_agent, [trio.SocketListener(sock)])
        async with open_guest(SocketGuest(tmp_path / "console")) as guest:
            yield guest
        nursery.cancel_scope.cancel()


@pytest.fixture
def sparse(tmp_path: Path) -> Path:
    path = tmp_path / "sparse"
    with path.open("wb") as file:
        file.seek(DATA)
        file.write(b"contents")
        file.truncate(END)
    return path


async def outcome(file: Any, target: Any, whence: Any) -> object:
    try:
        found: object = await file.seek(target, whence)
    except Exception as exc:
        found = type(exc), getattr(exc, "errno", None)
    return found, await file.read(9), await file.tell()


@pytest.mark.parametrize("buffering", [0, -1])
@pytest.mark.parametrize("whence", [os.SEEK_DATA, os.SEEK_HOLE])
@pytest.mark.parametrize("target", [0, 7, DATA, DATA + 3, END - 1, END, END + 1, -1, 2**63 - 1, 2**63, 1.5])
async def test_data_and_holes_are_found_as_on_this_machine(
    guest: Guest, sparse: Path, buffering: int, whence: int, target: Any
) -> None:
    outcomes = []
    for open_file in (trio.open_file, guest.open_file):
        async with await open_file(sparse, "rb", buffering=buffering) as file:
            await file.read(2)
            outcomes.append(await outcome(file, target, whence))
    assert outcomes[1] == outcomes[0]


async def test_what_was_written_is_data_before_it_is_looked_for(guest: Guest, sparse: Path) -> None:
    for open_file in (trio.open_file, guest.open_file):
        async with await open_file(sparse, "rb+") as file:
            await file.write(b"now")
            assert await file.seek(0, os.SEEK_DATA) == 0
            assert await file.read(5) == b"now\0\0"


@pytest.mark.parametrize("buffering", [0, -1])
@pytest.mark.parametrize("whence", [5, 9, -1, 2**31 - 1, 2**31, 2**70])
async def test_a_whence_that_is_none_is_refused_as_by_io(
    guest: Guest, sparse: Path, buffering: int, whence: int
) -> None:
    outcomes = []
    for open_file in (trio.open_file, guest.open_file):
        async with await open_file(sparse, "rb", buffering=buffering) as file:
            await file.read(2)
            with pytest.raises((OSError, ValueError, OverflowError)) as caught:
                await file.seek(0, whence)
            outcomes.append((caught.type, getattr(caught.value, "errno", None)))
    assert outcomes[1] == outcomes[0]


@pytest.mark.parametrize("whence", [os.SEEK_DATA, os.SEEK_HOLE])
async def test_text_has_no_holes(guest: Guest, sparse: Path, whence: int) -> None:
    for open_file in (trio.open_file, guest.open_file):
        async with await open_file(sparse) as file:
            with pytest.raises(ValueError, match="invalid whence"):
                await file.seek(0, whence)


async def test_a_pipe_has_no_holes(guest: Guest, tmp_path: Path) -> None:
    path = tmp_path / "fifo"
    os.mkfifo(path)
    async with await guest.open_file(path, "rb+", buffering=0) as file:
        with pytest.raises(OSError, match="Illegal seek"):
            await file.seek(0, os.SEEK_DATA)


async def test_an_answer_without_a_position_is_a_fault_of_the_agent(tmp_path: Path) -> None:
    (tmp_path / "f").write_bytes(b"data")
    async with serving_files(features=[wire.SEEKS]) as (talk, _):
        async with await talk.guest.open_file(tmp_path / "f", "rb") as file:
            with pytest.raises(trio_console.ProtocolError, match="without a position"):
                await file.seek(0, os.SEEK_HOLE)


@pytest.mark.parametrize("buffering", [0, -1])
async def test_an_agent_that_finds_no_holes_is_not_asked(tmp_path: Path, buffering: int) -> None:
    (tmp_path / "f").write_bytes(b"data")
    async with serving_files() as (talk, files):
        async with await talk.guest.open_file(tmp_path / "f", "rb", buffering=buffering) as file:
            asked = len(files.ops)
            with pytest.raises(io.UnsupportedOperation, match="the guest's agent"):
                await file.seek(0, os.SEEK_HOLE)
            assert len(files.ops) == asked
            assert await file.tell() == 0

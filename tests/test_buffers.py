"""Every place that takes bytes takes all objects that `memoryview` accepts."""

from __future__ import annotations

import array
import pathlib
import subprocess
from typing import Any

import pytest
import trio

import trio_console
from trio_console import AgentConsoleBackend, ChunkRing, ConsoleSharedState, open_guest
from trio_console._buffers import flat_view
from trio_console.testing import Exits, FakeConsoleDevice, ScriptedGuest, console_stream_pair

KINDS: list[tuple[Any, bytes]] = [
    (b"abcd", b"abcd"),
    (bytearray(b"abcd"), b"abcd"),
    (memoryview(b"a-b-c-d-")[::2], b"abcd"),
    (memoryview(b"dcba")[::-1], b"abcd"),
    (memoryview(b"abcdefgh").cast("I"), b"abcdefgh"),
    (memoryview(b"abcdefgh").cast("I")[::-1], b"efghabcd"),
    (memoryview(b"abcd").cast("B", (2, 2)), b"abcd"),
    (array.array("B", b"abcd"), b"abcd"),
    (memoryview(b"")[::2], b""),
    (memoryview(b"abcd")[1:1:2], b""),
    (memoryview(b""), b""),
]
kinds = pytest.mark.parametrize(("data", "expected"), KINDS)


@kinds
def test_a_flat_view_has_the_bytes(data: Any, expected: bytes) -> None:
    view = flat_view(data)
    assert (view.format, view.ndim, bytes(view)) == ("B", 1, expected)


def test_a_flat_view_is_no_copy_where_there_are_no_gaps() -> None:
    data = bytearray(b"abcd")
    view = flat_view(data)
    data[0] = ord("A")
    assert view[0] == ord("A")


@pytest.mark.parametrize("wrong", ["text", 3, None])
def test_anything_else_is_a_type_error(wrong: Any) -> None:
    with pytest.raises(TypeError):
        flat_view(wrong)


@kinds
def test_a_ring_and_a_device_take_it(data: Any, expected: bytes) -> None:
    ring = ChunkRing()
    ring.push(data)
    assert (ring.pop() or b"") == expected
    shared = ConsoleSharedState()
    assert AgentConsoleBackend(shared).write(data) == len(expected)
    assert (shared.tx_ring.pop() or b"") == expected
    shared.host_gone()
    assert AgentConsoleBackend(shared).write(data) == len(expected)
    assert shared._tx.swallowed == len(expected)


@kinds
async def test_a_console_stream_takes_it(data: Any, expected: bytes) -> None:
    host, guest = console_stream_pair()
    async with host, guest:
        await host.send_all(data)
        await host.send_eof()
        assert b"".join([chunk async for chunk in guest]) == expected


@kinds
def test_a_fake_device_takes_it(data: Any, expected: bytes) -> None:
    shared = ConsoleSharedState()
    device = FakeConsoleDevice(shared)
    device.guest_write(data)
    device.guest_flush()
    assert (shared.tx_ring.pop() or b"") == expected
    shared.host_gone()
    device.shutdown()


async def test_a_process_and_its_script_take_them_all() -> None:
    async def cat(process: Any) -> int:
        async for piece in process.stdin:
            for byte in piece:
                await process.stdout.send_all(memoryview(bytes([byte, 0]))[::2])
        return 0

    async with open_guest(ScriptedGuest({"cat": cat, "true": Exits(0)})) as guest:
        async with guest.open_process(["cat"], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
            assert process.stdin is not None
            assert process.stdout is not None
            for data, _ in KINDS:
                await process.stdin.send_all(data)
            await process.stdin.aclose()
            output = b"".join([piece async for piece in process.stdout])
    assert output == b"".join(expected for _, expected in KINDS)


async def test_files_and_connections_take_them_all(tmp_path: pathlib.Path) -> None:
    everything = b"".join(expected for _, expected in KINDS)
    listeners = await trio.open_tcp_listeners(0, host="127.0.0.1")
    port = listeners[0].socket.getsockname()[1]
    async with open_guest() as guest:
        for data, expected in KINDS:
            assert await guest.path(tmp_path / "one").write_bytes(data) == len(expected)
            assert (tmp_path / "one").read_bytes() == expected
        async with await guest.open_file(str(tmp_path / "all"), "wb") as file:
            for data, expected in KINDS:
                assert await file.write(data) == len(expected)
        assert (tmp_path / "all").read_bytes() == everything
        for data, expected in [(data, expected) for data, expected in KINDS if isinstance(data, memoryview)]:
            result = await guest.run_process(["cat"], stdin=data, capture_stdout=True)
            assert result.stdout == expected
        async with await guest.open_tcp_stream("127.0.0.1", port) as stream:
            async with await listeners[0].accept() as accepted:
                for data, _ in KINDS:
                    await stream.send_all(data)
                await stream.send_eof()
                assert b"".join([piece async for piece in accepted]) == everything
    await listeners[0].aclose()


def test_no_module_casts_what_it_is_given_by_itself() -> None:
    package = pathlib.Path(trio_console.__file__).parent
    found = {
        (path.name, line.strip())
        for path in package.rglob("*.py")
        for line in path.read_text().splitlines()
        if 'cast("B")' in line
    }
    # What is written into has to lie in one piece.
    into = {
        'with memoryview(buffer).cast("B") as view:',
        'views = [memoryview(buffer).cast("B") for buffer in buffers]',
        'view = memoryview(buffer).cast("B")',
    }
    assert {(name, line) for name, line in found if line not in into} == {
        ("_buffers.py", 'return view.cast("B") if view.c_contiguous else memoryview(view.tobytes())')
    }

"""Endings at the worst moment: when a session has just got its reservation of the outbox.

No frame of the session may be sent after that, because the next session may already use its id.
"""

from __future__ import annotations

import socket
from typing import TYPE_CHECKING, Any

import pytest
import trio
import trio.testing

from tests.agent._host import closed
from tests.tools.limits import HANG
from trio_console import _wire as wire
from trio_console._wire.outbox import Outbox

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable
    from pathlib import Path

    from tests.agent._host import Host

STEP = (2**32 - 1) // 128
CANCELLED = wire.FsResponse(ok=False, error="cancelled")

#: How a session is ended, and the answer to that.
ENDINGS: dict[str, tuple[wire.Message, int, Any]] = {
    "cancelled": (wire.Cancel(), 5, CANCELLED),
    "left": (wire.ClientDisconnected(1, STEP), 0, None),
}
endings = pytest.mark.parametrize("ending", ENDINGS)


def when_reserving(
    monkeypatch: pytest.MonkeyPatch, nbytes: Callable[[int], bool], action: Callable[[], Awaitable[None]]
) -> trio.Event:
    """Before the first reservation of such a size returns, carry out ``action``.

    Returns an event that is set when that has happened.
    """
    plain = Outbox.reserve
    armed, done = True, trio.Event()

    async def reserve(self: Outbox, size: int) -> None:
        nonlocal armed
        await plain(self, size)
        if armed and nbytes(size):
            armed = False
            with trio.CancelScope(shield=True):
                await action()
                await trio.testing.wait_all_tasks_blocked()
            done.set()

    monkeypatch.setattr(Outbox, "reserve", reserve)
    # Free room is reserved at once, with nothing in between. So every reservation is made to wait.
    monkeypatch.setattr(Outbox, "reserve_nowait", lambda *_: False)
    return done


async def check(host: Host, ending: str, sid: int = 5) -> None:
    """Check that no frame but the ending was sent."""
    _, _, answer = ENDINGS[ending]
    if answer is not None:
        assert await host.receive(sid) == answer
    await host.ok(wire.OpRealPath("/"), sid=STEP - 1)
    assert await host.nothing_for(sid)


def end(host: Host, ending: str) -> Callable[[], Awaitable[None]]:
    message, sid, _ = ENDINGS[ending]
    return lambda: host.send(message, sid)


@endings
@pytest.mark.parametrize("cached", [True, False])
async def test_a_read_sends_no_data_after_its_end(
    host: Host, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, ending: str, cached: bool
) -> None:
    (tmp_path / "f").write_bytes(bytes(3000))
    handle = await host.open_file(tmp_path / "f", "read", sid=7)
    if not cached:
        monkeypatch.setattr("trio_console.agent._files.handles.FileHandle.read_cached", lambda *_, **__: None)
    # (With nothing cached, the first reservation is given back, and the second is for the bytes that were read.)
    counts = iter([cached, True])
    reached = when_reserving(monkeypatch, lambda size: size == 3000 and next(counts), end(host, ending))
    await host.send(wire.FsRequest(wire.OpRead(handle, 0, 3000)), 5)
    with trio.fail_after(HANG):
        await reached.wait()
    await check(host, ending)


@endings
@pytest.mark.parametrize("what", ["stat", "read", "write", "close"])
async def test_no_answer_comes_after_the_end(
    host: Host, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, ending: str, what: str
) -> None:
    handle = await host.open_file(tmp_path / "f", "read write create", sid=7)
    ops = {
        "stat": wire.OpRealPath("/"),
        "read": wire.OpRead(handle, 0, 0),
        "write": wire.OpWrite(handle, 0),
        "close": wire.OpCloseHandle(handle),
    }
    reached = when_reserving(monkeypatch, lambda _: True, end(host, ending))
    await host.send(wire.FsRequest(ops[what]), 5)
    if what == "write":
        await host.send(wire.FsData(b""), 5)
    with trio.fail_after(HANG):
        await reached.wait()
    await check(host, ending)


@endings
async def test_a_handle_that_is_not_told_is_closed(
    host: Host, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, ending: str
) -> None:
    reached = when_reserving(monkeypatch, lambda _: True, end(host, ending))
    await host.send(wire.FsRequest(wire.OpOpenDir(str(tmp_path))), 5)
    with trio.fail_after(HANG):
        await reached.wait()
    await closed(tmp_path)
    await check(host, ending)
    assert await host.error(wire.OpReadDir(1)) == "invalid handle: 1"


@pytest.mark.parametrize("what", ["data", "eof"])
@pytest.mark.parametrize("ending", ["closed", "cancelled", "left"])
async def test_a_connection_says_nothing_after_its_end(
    host: Host, monkeypatch: pytest.MonkeyPatch, ending: str, what: str
) -> None:
    messages = {
        "closed": (wire.TcpClose(), 5),
        "cancelled": (wire.Cancel(), 5),
        "left": (wire.ClientDisconnected(1, STEP), 0),
    }
    with socket.create_server(("127.0.0.1", 0)) as listener:
        await host.send(wire.TcpConnect("127.0.0.1", listener.getsockname()[1]), 5)
        assert await host.receive(5) == wire.TcpConnected()
        peer, _ = listener.accept()
    reached = when_reserving(
        monkeypatch,
        lambda size: (size == 65536) == (what == "data"),
        lambda: host.send(*messages[ending]),
    )
    with peer:
        if what == "data":
            peer.sendall(b"too late")
        else:
            peer.shutdown(socket.SHUT_WR)
        with trio.fail_after(HANG):
            await reached.wait()
        if ending == "cancelled":
            assert await host.receive(5) == wire.TcpClosed()
        await host.ok(wire.OpRealPath("/"), sid=STEP - 1)
        assert await host.nothing_for(5)

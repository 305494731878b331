"""Look-ups of hosts: slow ones of one client stop no other's, and addresses are tried one beside the other."""

from __future__ import annotations

import socket
import threading
from typing import TYPE_CHECKING, Any

import pytest
import trio
import trio.testing

from tests.tools.limits import HANG, HELD
from trio_console import _wire as wire
from trio_console._trio.threads import NoThreadError
from trio_console._wire.ids import slot_ids
from trio_console.agent._net import lookups
from trio_console.agent._net.lookups import dial

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator

    from tests.agent._host import Host


@pytest.fixture
def slow(monkeypatch: pytest.MonkeyPatch) -> Iterator[threading.Event]:
    """The look-up of ``slow`` lasts until the event is set."""
    release, plain = threading.Event(), socket.getaddrinfo

    def find(host: Any, *args: Any, **kwargs: Any) -> Any:
        if host == "slow":
            assert release.wait(HELD)
            host = "localhost"
        return plain(host, *args, **kwargs)

    monkeypatch.setattr(lookups.socket, "getaddrinfo", find)
    yield release
    release.set()


async def refused(host: Host, sid: int, name: str) -> str:
    """Connect to a port that nobody listens at; returns the error."""
    await host.send(wire.TcpConnect(name, 1, window=1000), sid)
    last = await host.receive(sid)
    assert isinstance(last, wire.TcpFailed)
    return last.error


async def begun(host: Host) -> None:
    """Wait until each look-up has a thread, or waits for one: the agent's tasks run in any order."""
    await host.ping()
    await trio.testing.wait_all_tasks_blocked()


async def test_slow_names_of_one_client_stop_no_other_client(host: Host, slow: threading.Event) -> None:
    for sid in slot_ids(0)[:60]:
        await host.send(wire.TcpConnect("slow", 1), sid)
    await begun(host)
    for slot in (1, 127):
        assert "Connection refused" in await refused(host, slot_ids(slot)[0], "localhost")
    await host.ok(wire.OpRealPath("/"), sid=slot_ids(0)[100])
    for sid in slot_ids(0)[:60]:
        await host.send(wire.Cancel(), sid)
        assert await host.receive(sid) == wire.TcpClosed()


async def test_an_address_needs_no_look_up(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lookups, "_find", lambda *_: 1 // 0)
    for sid, address in enumerate(("127.0.0.1", "::1"), 1):
        assert "Connection refused" in await refused(host, sid, address)


async def test_without_a_thread_a_name_is_not_found(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    async def no_thread(*_: object, **__: object) -> Any:
        raise NoThreadError("for a test")

    with monkeypatch.context() as patch:
        patch.setattr(lookups, "in_thread", no_thread)
        error = await refused(host, 1, "localhost")
    assert error == "connect localhost:1: Resource temporarily unavailable (os error 11)"
    assert "Connection refused" in await refused(host, 1, "localhost")


async def test_a_client_that_has_gone_leaves_its_slow_names_behind(host: Host, slow: threading.Event) -> None:
    ids = slot_ids(0)
    for sid in ids[:60]:
        await host.send(wire.TcpConnect("slow", 1), sid)
    await begun(host)
    await host.send(wire.ClientDisconnected(ids.start, ids.stop, ids[-1]))
    assert await host.receive(ids[-1]) == wire.ClientForgotten()
    assert "Connection refused" in await refused(host, ids[0], "localhost")


@pytest.fixture
async def port() -> AsyncIterator[int]:
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield server.getsockname()[1]


async def test_the_first_address_that_answers_is_taken(port: int) -> None:
    async with await dial(["127.0.0.9", "127.0.0.1"], port) as stream:
        assert stream.socket.getpeername()[0] == "127.0.0.1"


async def test_an_address_that_does_not_answer_delays_the_next_one_for_a_moment_only(
    port: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = trio.open_tcp_stream

    async def open_(host: str, port: int) -> trio.SocketStream:
        if host == "127.0.0.2":
            await trio.sleep_forever()
        return await plain(host, port)

    monkeypatch.setattr(trio, "open_tcp_stream", open_)
    with trio.fail_after(HANG):
        async with await dial(["127.0.0.2", "127.0.0.1"], port) as stream:
            assert stream.socket.getpeername()[0] == "127.0.0.1"


async def test_if_no_address_answers_the_last_error_is_told() -> None:
    with pytest.raises(OSError, match=r"127\.0\.0\.3"):
        await dial(["127.0.0.2", "127.0.0.3"], 1)

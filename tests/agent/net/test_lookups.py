"""Look-ups of hosts: slow ones of one client stop no other's, and addresses are tried one beside the other."""

from __future__ import annotations

import errno
import os
import socket
import threading
from collections import Counter
from contextlib import nullcontext, suppress
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
    from contextlib import AbstractAsyncContextManager

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


def at_once() -> AbstractAsyncContextManager[None]:
    return nullcontext()


async def test_the_first_address_that_answers_is_taken(port: int) -> None:
    async with await dial(["127.0.0.9", "127.0.0.1"], port, at_once) as stream:
        assert stream.socket.getpeername()[0] == "127.0.0.1"


async def test_an_address_that_does_not_answer_delays_the_next_one_for_a_moment_only(
    port: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = lookups._begin
    silent, other = socket.socketpair()
    full(silent)

    def begin(address: str, port: int) -> tuple[socket.socket, int]:
        return (silent, errno.EINPROGRESS) if address == "127.0.0.2" else plain(address, port)

    monkeypatch.setattr(lookups, "_begin", begin)
    with other, trio.fail_after(HANG):
        async with await dial(["127.0.0.2", "127.0.0.1"], port, at_once) as stream:
            assert stream.socket.getpeername()[0] == "127.0.0.1"
    assert silent.fileno() == -1  # it was closed


def full(stream: socket.socket) -> None:
    """Write until the socket takes no more."""
    stream.setblocking(False)
    with suppress(BlockingIOError):
        while True:
            stream.send(bytes(65536))


async def test_if_no_address_answers_the_last_error_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    errors = iter((errno.ECONNREFUSED, errno.EHOSTUNREACH))
    monkeypatch.setattr(lookups, "_begin", lambda *_: (socket.socket(), next(errors)))
    with pytest.raises(OSError, match=os.strerror(errno.EHOSTUNREACH)):
        await dial(["127.0.0.2", "127.0.0.3"], 1, at_once)


async def test_an_address_of_one_interface_keeps_its_name(monkeypatch: pytest.MonkeyPatch) -> None:
    tried: list[Any] = []
    monkeypatch.setattr(socket.socket, "connect_ex", lambda _self, target: tried.append(target))
    lookups._begin("fe80::1%lo", 80)[0].close()
    [(_address, port, _flow, interface)] = tried
    assert (port, interface) == (80, socket.if_nametoindex("lo"))


async def test_connections_that_are_asked_for_at_once_are_begun_a_few_in_each_turn(
    host: Host, monkeypatch: pytest.MonkeyPatch
) -> None:
    turn, begun, plain = 0, Counter[int](), lookups._begin
    order: list[str] = []

    def begin(address: str, port: int) -> tuple[socket.socket, int]:
        begun[turn] += 1
        order.append(address)
        return plain(address, port)

    monkeypatch.setattr(lookups, "_begin", begin)
    asked = [wire.encode(wire.TcpConnect("127.0.0.1", 1), sid) for sid in slot_ids(0)[:40]]
    asked.append(wire.encode(wire.TcpConnect("127.0.0.2", 1), slot_ids(1)[0]))
    await host.send_raw(b"".join(asked))
    while len(order) < 41:
        turn += 1
        await trio.lowlevel.checkpoint()
    # (This task counts before or after the others run, so two turns that follow each other may have one number.)
    assert max(begun.values()) <= 8
    assert order.index("127.0.0.2") < 20, "a client waited for the connections of another"

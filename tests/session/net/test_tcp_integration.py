"""Connections that a real guest makes: the agent in a child process, on this machine's network."""

from __future__ import annotations

import socket
import subprocess
import sys
from functools import partial
from typing import TYPE_CHECKING, Any

import h11
import pytest
import trio
from trio.testing import check_half_closeable_stream

import trio_console
from tests.tools.limits import HANG

if TYPE_CHECKING:
    from pathlib import Path

    from trio_console import Guest

MIB = 1024 * 1024


async def test_it_is_a_half_closeable_stream(guest: Guest) -> None:
    (listener,) = await trio.open_tcp_listeners(0, host="127.0.0.1")
    port = listener.socket.getsockname()[1]

    async def make() -> Any:
        async with trio.open_nursery() as nursery:
            accepted: list[trio.SocketStream] = []

            async def accept() -> None:
                accepted.append(await listener.accept())

            nursery.start_soon(accept)
            stream = await guest.open_tcp_stream("127.0.0.1", port)
        return stream, accepted[0]

    async with listener:
        await check_half_closeable_stream(make, None)


async def test_bytes_pass_both_ways_at_once(guest: Guest) -> None:
    async def echo(stream: trio.SocketStream) -> None:
        async for data in stream:
            await stream.send_all(data)
        await stream.send_eof()

    async with trio.open_nursery() as nursery:
        (listener,) = await nursery.start(partial(trio.serve_tcp, echo, 0, host="127.0.0.1"))
        stream = await guest.open_tcp_stream("127.0.0.1", listener.socket.getsockname()[1])
        async with stream, trio.open_nursery() as exchange:
            data = bytes(range(256)) * (16 * MIB // 256)

            async def send() -> None:
                await stream.send_all(data)
                await stream.send_eof()

            exchange.start_soon(send)
            got = b"".join([bytes(chunk) async for chunk in stream])
        assert got == data
        nursery.cancel_scope.cancel()


async def test_a_refused_connection_is_refused(guest: Guest) -> None:
    with trio.socket.socket() as taken:
        await taken.bind(("127.0.0.1", 0))
        with pytest.raises(ConnectionRefusedError):
            await guest.open_tcp_stream("127.0.0.1", taken.getsockname()[1])


async def test_a_name_that_nobody_has_is_the_resolvers_error(guest: Guest) -> None:
    with pytest.raises(socket.gaierror) as caught:
        await guest.open_tcp_stream("no-such-host.invalid", 80)
    assert "no-such-host.invalid" in caught.value.__notes__[0]


async def test_a_killed_guest_ends_its_connections() -> None:
    with trio.fail_after(HANG):
        (listener,) = await trio.open_tcp_listeners(0, host="127.0.0.1")
        async with listener, trio_console.open_guest() as guest:
            stream = await guest.open_tcp_stream("127.0.0.1", listener.socket.getsockname()[1])
            with pytest.raises(trio_console.GuestLostError):
                await guest.run_process(["/bin/sh", "-c", "kill -9 $PPID; sleep 9"])
            with pytest.raises(trio_console.GuestLostError):
                await stream.receive_some()
            await stream.aclose()
            await (await listener.accept()).aclose()


async def test_a_server_in_the_guest_answers_http(guest: Guest, tmp_path: Path) -> None:
    body = b"served by the guest\n" * 10_000
    await guest.path(tmp_path / "page.txt").write_bytes(body)
    command = [sys.executable, "-u", "-m", "http.server", "--bind", "127.0.0.1", "--directory", str(tmp_path), "0"]
    async with guest.open_process(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as server:
        assert server.stdout is not None
        said = b""
        while b") ..." not in said:
            said += await server.stdout.receive_some()
        port = int(said.split(b" port ")[1].split()[0])
        response, got = await get(guest, port, "/page.txt")
        assert response.status_code == 200
        assert got == body
        response, _ = await get(guest, port, "/missing")
        assert response.status_code == 404


async def get(guest: Guest, port: int, target: str) -> tuple[h11.Response, bytes]:
    connection = h11.Connection(h11.CLIENT)
    async with await guest.open_tcp_stream("127.0.0.1", port) as stream:
        headers = [("Host", "guest"), ("Connection", "close")]
        await stream.send_all(connection.send(h11.Request(method="GET", target=target, headers=headers)) or b"")
        await stream.send_all(connection.send(h11.EndOfMessage()) or b"")
        response: h11.Response | None = None
        body = b""
        while True:
            event = connection.next_event()
            if event is h11.NEED_DATA:
                connection.receive_data(bytes(await stream.receive_some()))
            elif isinstance(event, h11.Response):
                response = event
            elif isinstance(event, h11.Data):
                body += event.data
            elif isinstance(event, h11.EndOfMessage):
                assert response is not None
                return response, body

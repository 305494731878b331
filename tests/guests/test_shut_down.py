"""Leaving ends a connection for every copy of its descriptor, and the bytes already sent still arrive."""

from __future__ import annotations

import errno
import os
import socket
from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING, Any

import pytest
import trio

from tests.tools.limits import HANG
from trio_console import ProcessGuest, RelayOptions, Rights, connect_guest, open_guest, serve_relay
from trio_console._console import devices as _devices
from trio_console._console.devices import as_device
from trio_console._forked import let_go_in_child
from trio_console._relay import server as _server
from trio_console._trio import sockets as _sockets

if TYPE_CHECKING:
    from collections.abc import Iterator


# These tests fork, and the process that runs them may have other threads. The children end at once.
pytestmark = pytest.mark.filterwarnings("ignore:.*is multi-threaded, use of fork:DeprecationWarning")


@contextmanager
def _copies(monkeypatch: pytest.MonkeyPatch, module: Any) -> Iterator[list[socket.socket]]:
    """Copy each socket of a module, as a child gets them that a library in C has forked."""
    copies: list[socket.socket] = []

    def let_go(owner: Any) -> Any:
        copies.append(socket.socket(fileno=os.dup(owner.fileno())))
        return let_go_in_child(owner)

    monkeypatch.setattr(module, "let_go_in_child", let_go)
    try:
        yield copies
    finally:
        for copy in copies:
            copy.close()


async def test_a_client_that_leaves_is_gone_although_somebody_has_a_copy(
    tmp_path: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = os.fspath(tmp_path / "sock")
    with trio.fail_after(HANG), _copies(monkeypatch, _sockets) as copies:
        async with trio.open_nursery() as nursery:
            relay = await nursery.start(serve_relay, ProcessGuest(), path)
            async with connect_guest(path) as guest:
                await guest.ping()
            assert len(copies) == 2  # of the client's end, and of the relay's
            while relay.statistics().clients:
                await trio.sleep(0.01)
            nursery.cancel_scope.cancel()


async def test_a_relay_that_ends_is_gone_for_its_clients_although_somebody_has_copies(
    tmp_path: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = os.fspath(tmp_path / "sock")
    with trio.fail_after(HANG), _copies(monkeypatch, _sockets) as copies:
        async with trio.open_nursery() as nursery:
            await nursery.start(serve_relay, ProcessGuest(), path)
            client = await trio.open_unix_socket(path)
            assert await client.receive_some()  # it is greeted
            nursery.cancel_scope.cancel()
        assert len(copies) == 1
        while await client.receive_some():
            pass  # until the end of file
        await client.aclose()


async def test_a_client_that_is_refused_is_disconnected_although_somebody_has_a_copy(
    tmp_path: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = os.fspath(tmp_path / "sock")
    with trio.fail_after(HANG), _copies(monkeypatch, _sockets) as copies:
        async with trio.open_nursery() as nursery:
            options = RelayOptions(rights={os.geteuid() + 1: Rights()})
            await nursery.start(partial(serve_relay, ProcessGuest(), path, options=options))
            async with await trio.open_unix_socket(path) as client:
                assert await client.receive_some() == b""
            assert len(copies) == 1
            nursery.cancel_scope.cancel()


@pytest.mark.parametrize("end", ["ours", "theirs"])
async def test_each_end_of_a_relays_own_client_ends_the_connection(
    end: str, tmp_path: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    with trio.fail_after(HANG), _copies(monkeypatch, _server) as copies:
        async with open_guest(relay_path=tmp_path / "sock") as guest:
            await guest.ping()
        copy = copies[["ours", "theirs"].index(end)]
        copy.setblocking(False)
        while copy.recv(65536):
            pass


def test_closing_a_device_ends_its_socket_and_takes_back_nothing_that_was_written() -> None:
    ours, theirs = socket.socketpair()
    copy = ours.dup()
    with copy, theirs:
        device = as_device(ours)
        data = memoryview(b"x" * 100_000)
        written = device.write(data)
        device.close()
        theirs.setblocking(False)
        received = b""
        while piece := theirs.recv(65536):
            received += piece
        assert len(received) == written > 0
        device.close()


@pytest.mark.parametrize("number", [0, 1])
def test_closing_a_device_ends_each_socket_of_a_pair(number: int) -> None:
    reading, writing = socket.socketpair(), socket.socketpair()
    copies = reading[0].dup(), writing[0].dup()
    with copies[0], copies[1], reading[1], writing[1]:
        device = as_device((reading[0].detach(), writing[0].detach()))
        device.close()
        other = (reading, writing)[number][1]
        other.setblocking(False)
        assert other.recv(1) == b""


def test_a_forked_child_that_closes_a_device_ends_nothing_of_its_parents() -> None:
    ours, theirs = socket.socketpair()
    with theirs:
        device = as_device(ours)
        child = os.fork()
        if not child:
            try:
                device.close()
            finally:
                os._exit(0)
        os.waitpid(child, 0)
        assert device.write(memoryview(b"still there")) == 11
        assert theirs.recv(100) == b"still there"
        device.close()


@pytest.mark.parametrize("direction", ["read", "write"])
def test_a_call_that_finds_its_socket_shut_down_by_the_closing_is_no_error(
    direction: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    ours, theirs = socket.socketpair()
    with theirs:
        device = as_device(ours)

        def close_first(*_args: object) -> int:
            device.close()
            raise BrokenPipeError(errno.EPIPE, "as of a socket that was shut down")

        with monkeypatch.context() as patch:
            patch.setattr(_devices.os, direction, close_first)
            assert not (device.read(10) if direction == "read" else device.write(memoryview(b"data")))

"""What only helps a host is not missed where a sandbox or a file system refuses it."""

from __future__ import annotations

import errno
import fcntl
import os
import socket
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest
import trio

from tests.tools.limits import HANG
from trio_console import open_guest
from trio_console._guests import process as _process
from trio_console._relay import socket as _socket
from trio_console._relay.socket import RelaySocket

if TYPE_CHECKING:
    from pathlib import Path


async def test_a_guest_is_opened_where_the_size_of_socket_buffers_is_refused(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    asked = []

    class Refusing(socket.socket):
        def setsockopt(self, *args: Any) -> None:
            asked.append(args[1])
            raise OSError(errno.EPERM, os.strerror(errno.EPERM))

    def pair() -> tuple[socket.socket, ...]:
        return tuple(Refusing(fileno=end.detach()) for end in socket.socketpair())

    names = SimpleNamespace(socketpair=pair, SOL_SOCKET=socket.SOL_SOCKET, SO_SNDBUF=socket.SO_SNDBUF)
    monkeypatch.setattr(_process, "socket", names)
    with trio.fail_after(HANG):
        async with open_guest() as guest:
            await guest.ping()
    assert asked == [socket.SO_SNDBUF] * 2


@pytest.mark.parametrize("code", [errno.EPERM, errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP])
def test_a_relays_socket_is_made_in_a_directory_that_cannot_be_locked(
    code: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def refuse(*_args: object) -> None:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(_socket.fcntl, "flock", refuse)
    made = RelaySocket(tmp_path / "sock")
    try:
        with socket.socket(socket.AF_UNIX) as client:
            client.connect(os.fspath(tmp_path / "sock"))
        with pytest.raises(OSError, match="a relay is listening there already"):
            RelaySocket(tmp_path / "sock")
    finally:
        made.close()
        made.sock.close()
    assert os.listdir(tmp_path) == []
    assert [record.message.split(":")[0] for record in caplog.records] == [f"{tmp_path} cannot be locked"] * 2


@pytest.mark.parametrize("length", [1, 85])
def test_a_relays_socket_is_made_where_there_is_no_proc(
    length: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_socket, "_DESCRIPTORS", os.fspath(tmp_path / "nowhere"))
    monkeypatch.chdir(tmp_path)
    path = tmp_path / ("x" * length)
    if len(os.fspath(path)) > 107:
        with pytest.raises(OSError, match="name too long") as caught:
            RelaySocket(path)
        assert caught.value.filename == os.fspath(path)
        return
    made = RelaySocket(path)
    try:
        with socket.socket(socket.AF_UNIX) as client:
            client.connect(path.name)
        with pytest.raises(OSError, match="a relay is listening there already"):
            RelaySocket(path)
    finally:
        made.close()
        made.sock.close()
    assert os.listdir(tmp_path) == []


def test_a_lock_that_is_held_names_the_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_socket, "_LOCK_TIME", 0.0)
    holder = os.open(tmp_path, os.O_RDONLY)
    try:
        fcntl.flock(holder, fcntl.LOCK_EX)
        with pytest.raises(BlockingIOError) as caught:
            RelaySocket(tmp_path / "sock")
    finally:
        os.close(holder)
    assert caught.value.filename == os.fspath(tmp_path)

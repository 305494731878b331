"""The relay's socket: who may connect, which files it replaces, and what it leaves."""

from __future__ import annotations

import errno
import fcntl
import os
import socket
import stat
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest
import trio

from tests.relay.router._world import serving
from tests.tools.limits import HANG
from trio_console._addresses import peer_of
from trio_console._open.client import connect_guest
from trio_console._relay import socket as _socket
from trio_console._relay.options import Rights, ServerOptions
from trio_console._relay.socket import RelaySocket

if TYPE_CHECKING:
    from collections.abc import Iterator
    from contextlib import AbstractContextManager
    from pathlib import Path


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "relay.sock"


def opened(path: Path) -> AbstractContextManager[RelaySocket]:
    from contextlib import contextmanager

    @contextmanager
    def manage() -> Iterator[RelaySocket]:
        made = RelaySocket(path)
        try:
            yield made
        finally:
            made.close()
            made.sock.close()

    return manage()


def reach(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as client:
        client.connect(os.fspath(path))


@pytest.mark.parametrize("umask", [0, 0o022, 0o077])
def test_the_socket_is_for_its_owner_from_the_moment_it_exists(
    path: Path, umask: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    modes = []
    listen = socket.socket.listen

    def look_first(sock: socket.socket, backlog: int) -> None:
        [made] = path.parent.iterdir()
        modes.append(stat.S_IMODE(made.stat().st_mode))
        listen(sock, backlog)

    monkeypatch.setattr(socket.socket, "listen", look_first)
    before = os.umask(umask)
    try:
        with opened(path):
            modes.append(stat.S_IMODE(path.stat().st_mode))
    finally:
        os.umask(before)
    assert modes == [0o600, 0o600]


@pytest.mark.parametrize("links", [True, False])
def test_a_client_that_finds_the_file_can_connect(
    path: Path, monkeypatch: pytest.MonkeyPatch, *, links: bool
) -> None:
    there = []
    listen = socket.socket.listen

    def look_first(sock: socket.socket, backlog: int) -> None:
        there.append(path.exists())
        listen(sock, backlog)

    def refuse(*_args: object, **_options: object) -> None:
        raise PermissionError(errno.EPERM, "no hard links here")

    monkeypatch.setattr(socket.socket, "listen", look_first)
    if not links:
        monkeypatch.setattr(os, "link", refuse)
    with opened(path):
        assert there == [False]
        reach(path)
        assert list(path.parent.iterdir()) == [path]


def test_a_file_that_comes_while_the_socket_is_made_is_not_replaced(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    listen = socket.socket.listen

    def write_first(sock: socket.socket, backlog: int) -> None:
        path.write_text("mine")
        listen(sock, backlog)

    monkeypatch.setattr(socket.socket, "listen", write_first)
    with pytest.raises(FileExistsError, match="just"):
        RelaySocket(path)
    assert list(path.parent.iterdir()) == [path]
    assert path.read_text() == "mine"


@pytest.mark.parametrize("umask", [0, 0o077])
def test_a_socket_for_other_users_has_that_mode_whatever_the_umask(path: Path, umask: int) -> None:
    before = os.umask(umask)
    try:
        made = RelaySocket(path, 0o666)
    finally:
        os.umask(before)
    assert stat.S_IMODE(path.stat().st_mode) == 0o666
    made.close()
    made.sock.close()


@pytest.mark.parametrize("mode", [0o777, 0o1777, 0o702])
def test_a_directory_that_others_may_write_is_refused(tmp_path: Path, mode: int) -> None:
    place = tmp_path / "open"
    place.mkdir()
    place.chmod(mode)
    with pytest.raises(PermissionError, match="other users can write to the directory") as caught:
        RelaySocket(place / "s")
    assert caught.value.filename == str(place)
    assert list(place.iterdir()) == []


def test_a_directory_that_is_not_there_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        RelaySocket(tmp_path / "no" / "s")


def test_a_socket_that_a_dead_relay_left_is_replaced(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(os.fspath(path))
    with opened(path):
        reach(path)


def test_a_live_relay_is_never_replaced(path: Path) -> None:
    with opened(path):
        with pytest.raises(OSError, match="listening there already") as caught:
            RelaySocket(path)
        assert caught.value.errno == errno.EADDRINUSE
        reach(path)


def test_a_live_relay_with_a_full_queue_is_never_replaced(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as live, socket.socket(socket.AF_UNIX) as first:
        live.bind(os.fspath(path))
        live.listen(0)
        first.connect(os.fspath(path))
        with pytest.raises(OSError, match="listening there already"):
            RelaySocket(path)


@pytest.mark.parametrize("kind", ["file", "directory", "symlink", "dangling"])
def test_what_is_no_socket_is_never_touched(path: Path, kind: str) -> None:
    match kind:
        case "file":
            path.write_text("precious")
        case "directory":
            path.mkdir()
        case "symlink":
            path.symlink_to(path.parent)
        case _:
            path.symlink_to("nowhere")
    before = path.lstat()
    with pytest.raises(FileExistsError):
        RelaySocket(path)
    assert path.lstat() == before


def test_the_file_is_removed_at_the_end(path: Path) -> None:
    with opened(path):
        assert path.is_socket()
    assert not path.exists()


def test_closing_twice_is_fine(path: Path) -> None:
    with opened(path) as made:
        made.close()


def test_a_file_that_somebody_has_put_in_its_place_stays(path: Path) -> None:
    with opened(path):
        path.unlink()
        path.write_text("another's")
    assert path.read_text() == "another's"


def test_another_relays_socket_in_its_place_stays(path: Path) -> None:
    with opened(path):
        path.unlink()
        other = RelaySocket(path)
    try:
        reach(path)
    finally:
        other.close()
        other.sock.close()


def test_a_file_that_is_gone_already_is_no_error(path: Path) -> None:
    with opened(path):
        path.unlink()


async def test_a_path_longer_than_an_address_can_be_used(tmp_path: Path) -> None:
    deep = tmp_path / ("d" * 100) / ("e" * 100)
    deep.mkdir(parents=True)
    with opened(deep / "relay.sock") as made, trio.fail_after(HANG):
        assert (deep / "relay.sock").is_socket()
        with trio.move_on_after(0.05):
            # The connection succeeds. The relay sends no greeting, and nothing else happens.
            async with connect_guest(made.path):
                raise AssertionError
        made.sock.settimeout(60)
        made.sock.accept()[0].close()


def test_a_name_longer_than_an_address_is_a_clear_error(tmp_path: Path) -> None:
    with pytest.raises(OSError, match="too long") as caught:
        RelaySocket(tmp_path / ("n" * 150))
    assert caught.value.errno == errno.ENAMETOOLONG
    assert list(tmp_path.iterdir()) == []


def test_a_lock_that_somebody_keeps_is_an_error_and_not_a_hang(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_socket, "_LOCK_TIME", 0.05)
    holder = os.open(path.parent, os.O_RDONLY)
    try:
        fcntl.flock(holder, fcntl.LOCK_EX)
        with pytest.raises(BlockingIOError, match="lock"):
            RelaySocket(path)
        fcntl.flock(holder, fcntl.LOCK_UN)
        with opened(path) as made:
            fcntl.flock(holder, fcntl.LOCK_EX)
            made.close()
            fcntl.flock(holder, fcntl.LOCK_UN)
    finally:
        os.close(holder)


# Users


async def test_the_peers_process_and_user_are_known() -> None:
    ours, theirs = socket.socketpair()
    with theirs, trio.socket.from_stdlib_socket(ours) as sock:
        assert peer_of(sock) == (os.getpid(), os.geteuid())


async def test_users_that_are_not_allowed_are_refused_without_a_byte(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    options = ServerOptions(rights={os.geteuid() + 1: Rights()})
    async with serving(tmp_path, options=options) as world:
        client = await world.dial()
        with trio.fail_after(HANG):
            assert await client.stream.receive_some() == b""
        assert world.server.statistics().clients_refused == 1
        assert f"refused a client of user {os.geteuid()}" in caplog.text
        await client.leave()


_DIAL = """
import os, socket, sys
os.setuid(int(sys.argv[2]))
sock = socket.socket(socket.AF_UNIX)
sock.connect(sys.argv[1])
print(len(sock.recv(8)))
"""

NOBODY = 65534


@pytest.mark.parametrize(("allowed", "said"), [(frozenset({0}), b"0\n"), (frozenset({0, NOBODY}), b"8\n")])
async def test_another_user_is_served_only_if_allowed(
    tmp_path: Path, allowed: frozenset[int], said: bytes
) -> None:
    if os.geteuid() != 0:
        return  # only root can become another user
    async with serving(tmp_path, options=ServerOptions(rights=dict.fromkeys(allowed, Rights()))) as world:
        # Otherwise the modes of the file, and of pytest's folders around it, would refuse the other user first.
        os.chmod(world.path, 0o666)
        for place in (tmp_path, *tmp_path.parents[:3]):
            if not place.stat().st_mode & stat.S_IXOTH:
                place.chmod(place.stat().st_mode | 0o011)
        with trio.fail_after(HANG):
            done = await trio.run_process(
                [sys.executable, "-S", "-c", _DIAL, world.path, str(NOBODY)],
                stdin=subprocess.DEVNULL,
                capture_stdout=True,
            )
        assert done.stdout == said

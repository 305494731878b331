"""A relay and a real guest, with processes of other users as its clients."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
from functools import partial
from typing import TYPE_CHECKING, Any

import pytest
import trio

from tests.tools.limits import HANG
from tests.tools.users import NOBODY, as_root, shared_directory
from trio_console import (
    ClientLimits,
    Guest,
    ProcessGuest,
    Relay,
    RelayOptions,
    Rights,
    connect_guest,
    open_guest,
    serve_relay,
)

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable
    from pathlib import Path

OWN = os.geteuid()


async def use(
    path: Path, options: RelayOptions, body: Callable[[Guest], Awaitable[Any]], *, beside: bool = False
) -> Relay:
    """Serve a guest, and use it as a client; ``beside``: another client is there all the time."""
    with trio.fail_after(HANG):
        async with trio.open_nursery() as nursery:
            relay: Relay = await nursery.start(partial(serve_relay, ProcessGuest(), path, options=options))
            async with connect_guest(path) as guest:
                await body(guest)
            nursery.cancel_scope.cancel()
    return relay


def for_own(**rights: Any) -> RelayOptions:
    return RelayOptions(rights={OWN: Rights(**rights)})


# What a refusal is for the user


async def test_who_may_not_run_commands_gets_the_error_of_a_command_that_could_not_be_started(
    tmp_path: Path,
) -> None:
    async def body(guest: Guest) -> None:
        with pytest.raises(PermissionError) as caught:
            await guest.run_process(["true"])
        assert caught.value.filename == "true"
        assert any("does not let this user run commands" in note for note in caught.value.__notes__)
        with pytest.raises(PermissionError):
            async with guest.open_process(["cat"], stdin=subprocess.PIPE):
                raise AssertionError
        assert await guest.path("/").is_dir()

    await use(tmp_path / "s", for_own(run=False), body)


async def test_who_may_only_read_files_gets_errors_for_the_rest_and_changes_nothing(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_text("text")
    before = file.stat()

    async def body(guest: Guest) -> None:
        path = guest.path(file)
        assert await path.read_text() == "text"
        assert "file" in [one.name for one in await guest.path(tmp_path).iterdir()]
        for change in (
            partial(path.write_text, "other"),
            partial(path.chmod, 0o777),
            partial(path.unlink),
            partial(path.rename, tmp_path / "other"),
            partial(path.touch),
            partial(guest.path(tmp_path / "new").mkdir),
            partial(guest.path(tmp_path / "new").symlink_to, file),
            partial(guest.open_file, file, "a"),
            partial(guest.open_file, file, "r+"),
            partial(guest.open_file, tmp_path / "new", "x"),
        ):
            with pytest.raises(PermissionError) as caught:
                await change()
            assert caught.value.errno == errno.EACCES
            assert caught.value.filename is not None
        async with await guest.open_file(file) as opened:
            with pytest.raises((PermissionError, OSError)):
                await opened.truncate(0)

    await use(tmp_path / "s", for_own(files="read"), body)
    assert file.read_text() == "text"
    assert file.stat().st_mtime_ns == before.st_mtime_ns
    assert file.stat().st_mode == before.st_mode
    assert not (tmp_path / "new").exists()


async def test_who_may_do_nothing_with_files_can_still_run_commands(tmp_path: Path) -> None:
    async def body(guest: Guest) -> None:
        for ask in (partial(guest.open_file, "/etc/hosts"), partial(guest.path("/").stat)):
            with pytest.raises(PermissionError):
                await ask()
        assert (await guest.run_process(["true"])).returncode == 0

    await use(tmp_path / "s", for_own(files=None), body)


async def test_who_may_not_open_connections_gets_a_permission_error(tmp_path: Path) -> None:
    async def body(guest: Guest) -> None:
        with pytest.raises(PermissionError) as caught:
            await guest.open_tcp_stream("127.0.0.1", 1)
        assert caught.value.errno == errno.EACCES
        await guest.ping()

    await use(tmp_path / "s", for_own(tcp=False), body)


async def test_who_may_not_shut_the_guest_down_is_told_so_and_all_goes_on(tmp_path: Path) -> None:
    async def body(guest: Guest) -> None:
        async with guest.open_process(["cat"], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
            for _ in range(2):
                with pytest.raises(PermissionError) as caught:
                    await guest.shutdown()
                assert caught.value.errno == errno.EPERM
            await process.stdin.send_all(b"still there")
            assert await process.stdout.receive_some() == b"still there"
            await process.stdin.aclose()
            await process.wait()

    relay = await use(tmp_path / "s", for_own(shutdown=False), body)
    assert relay.statistics().frames_refused == 2


async def test_the_program_that_has_opened_the_guest_may_do_everything(tmp_path: Path) -> None:
    nothing = Rights(run=False, files=None, tcp=False, shutdown=False)
    limits = ClientLimits(sessions=1, processes=1, handles=1, frames_per_second=1)
    options = RelayOptions(rights={OWN: nothing}, limits=limits, uid_limits=limits)
    with trio.fail_after(HANG):
        async with open_guest(relay_path=tmp_path / "s", relay_options=options) as guest:
            async with guest.open_process(["cat"], stdin=subprocess.PIPE) as process:
                for _ in range(5):
                    await guest.run_process(["true"])
                async with await guest.open_file("/etc/hosts"), await guest.open_file("/etc/hosts"):
                    pass
                async with connect_guest(tmp_path / "s") as client:
                    with pytest.raises(PermissionError):
                        await client.run_process(["true"])
                await process.stdin.aclose()
                await process.wait()
            await guest.shutdown()


# Limits, as a user sees them


async def test_one_command_too_many_is_the_error_of_a_fork_that_failed(tmp_path: Path) -> None:
    async def body(guest: Guest) -> None:
        command = ["cat"]
        async with (
            guest.open_process(command, stdin=subprocess.PIPE) as first,
            guest.open_process(command, stdin=subprocess.PIPE),
        ):
            with pytest.raises(BlockingIOError) as caught:
                await guest.run_process(["true"])
            assert any("allows a client 2 processes" in note for note in caught.value.__notes__)
            await first.stdin.aclose()
            await first.wait()
            assert (await guest.run_process(["true"])).returncode == 0

    await use(tmp_path / "s", RelayOptions(limits=ClientLimits(processes=2)), body)


async def test_one_open_file_too_many_is_emfile_and_a_closed_one_makes_room(tmp_path: Path) -> None:
    async def body(guest: Guest) -> None:
        for _ in range(3):
            async with await guest.open_file("/etc/hosts"), await guest.open_file("/etc/hosts"):
                with pytest.raises(OSError, match="Too many open files") as caught:
                    await guest.open_file("/etc/hosts")
                assert caught.value.errno == errno.EMFILE
                assert caught.value.filename == "/etc/hosts"
            assert await guest.path("/etc/hosts").read_text()

    await use(tmp_path / "s", RelayOptions(uid_limits=ClientLimits(handles=2)), body)


async def test_with_one_session_at_a_time_files_are_read_and_written_and_closed(tmp_path: Path) -> None:
    async def body(guest: Guest) -> None:
        for number in range(3):
            await guest.path(tmp_path / "file").write_text(f"{number}" * 100_000)
            assert await guest.path(tmp_path / "file").read_text() == f"{number}" * 100_000
        async with guest.open_process(["cat"], stdin=subprocess.PIPE) as process:
            with pytest.raises(BlockingIOError):
                await guest.path("/").stat()
            await guest.ping()
            await process.stdin.aclose()
            await process.wait()
        assert await guest.path("/").is_dir()

    relay = await use(tmp_path / "s", RelayOptions(limits=ClientLimits(sessions=1, handles=1)), body)
    assert relay.statistics().sessions == 0


# Other users

_CLIENT = """
import os, sys, trio, trio_console

open_relay = trio_console.connect_guest  # imported now, because another user may not read the modules

async def main():
    os.setgroups([])
    os.setgid(int(sys.argv[2]))
    os.setuid(int(sys.argv[2]))
    try:
        async with open_relay(sys.argv[1]) as guest:
            for name, ask in (
                ("run", lambda: guest.run_process(["true"])),
                ("read", lambda: guest.path("/etc/hosts").read_bytes()),
                ("write", lambda: guest.path(sys.argv[3]).write_bytes(b"x")),
                ("shutdown", guest.shutdown),
            ):
                try:
                    await ask()
                except PermissionError:
                    pass
                else:
                    print(name)
    except (PermissionError, trio_console.GuestLostError) as exc:
        print(type(exc).__name__)

trio.run(main)
"""


@as_root
@pytest.mark.parametrize(
    ("uid", "may"),
    [
        (NOBODY, ["run", "read"]),
        (NOBODY - 1, ["read", "write"]),
        (NOBODY - 2, ["GuestLostError"]),
    ],
)
async def test_each_user_of_a_relay_has_the_rights_of_that_user(uid: int, may: list[str]) -> None:
    rights = {
        NOBODY: Rights(files="read", shutdown=False),
        NOBODY - 1: Rights(run=False, shutdown=False),
    }
    with shared_directory() as place:
        command = [sys.executable, "-c", _CLIENT, str(place / "s"), str(uid), str(place / "written")]
        with trio.fail_after(HANG):
            async with trio.open_nursery() as nursery:
                options = RelayOptions(rights=rights)
                await nursery.start(partial(serve_relay, ProcessGuest(), place / "s", options=options))
                done = await trio.run_process(command, capture_stdout=True, cwd="/")
                nursery.cancel_scope.cancel()
        assert done.stdout.decode().split() == may
        assert (place / "written").exists() is ("write" in may)

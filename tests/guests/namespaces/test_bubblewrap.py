"""`BubblewrapGuest`: its options, what it says where it cannot be had, and a relay in front of it."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

import pytest
import trio

from tests.guests.namespaces._unprivileged import run_beside
from tests.tools.leftovers import children
from tests.tools.limits import HANG
from tests.tools.users import NOBODY, as_root
from trio_console import BubblewrapGuest, GuestLostError, Limits, Root, Share, connect_guest, open_guest
from trio_console._guests.namespaces import layout
from trio_console._guests.namespaces.runtime import find_runtime
from trio_console._guests.supervisor import Workers

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from trio_console import Guest


@asynccontextmanager
async def opened(*, relay_path: str | None = None, **options: Any) -> AsyncIterator[Guest]:
    """A guest with these options, for a bounded time."""
    with trio.fail_after(HANG):
        async with open_guest(BubblewrapGuest(**options), relay_path=relay_path) as guest:
            yield guest


async def said(guest: Guest, script: str) -> str:
    done = await guest.run_process(script, shell=True, capture_stdout=True)
    return done.stdout.decode().strip()


@pytest.mark.parametrize("workers", get_args(Workers))
async def test_its_bytes_are_moved_by_threads_or_tasks(workers: Workers) -> None:
    async with opened(workers=workers) as guest:
        assert await said(guest, "echo hello") == "hello"


async def test_commands_find_this_machines_programs() -> None:
    async with opened() as guest:
        assert await said(guest, "command -v sh ls sort awk") != ""
        assert (await said(guest, "sort --version")).startswith("sort (")


async def test_the_home_and_tmp_are_writable_and_gone_with_the_guest() -> None:
    for _ in range(2):
        async with opened() as guest:
            for place in (layout.HOME, "/tmp"):
                path = guest.path(place) / "made"
                assert not await path.exists()
                await path.write_text("made")


async def test_commands_start_in_the_home() -> None:
    async with opened() as guest:
        assert await said(guest, "pwd; echo $HOME") == f"{layout.HOME}\n{layout.HOME}"


async def test_its_user_has_a_name_in_it() -> None:
    async with opened() as guest:
        assert await said(guest, "id -un") == layout.find_account(None).name


async def test_the_environment_that_was_given_is_that_of_commands() -> None:
    async with opened(env={"MINE": "a b\n'", "PATH": "/bin"}) as guest:
        assert await said(guest, 'printf %s "$MINE" | tail -n 1; echo :$PATH') == "':/.msb/scripts:/bin"


async def test_the_environment_is_not_that_of_bubblewrap() -> None:
    # It runs on this machine, where such a variable would change what it loads.
    async with opened(env={"LD_PRELOAD": "/no/such/library"}) as guest:
        done = await guest.run_process(["true"], capture_stderr=True)
        assert b"/no/such/library" in done.stderr
        [bwrap] = [pid for pid in children() if b"bwrap" in Path(f"/proc/{pid}/cmdline").read_bytes()]
        assert b"LD_PRELOAD" not in Path(f"/proc/{bwrap}/environ").read_bytes()


# Shares


async def test_a_share_is_read_only(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("shared")
    async with opened(shares={"/data": tmp_path}) as guest:
        assert await guest.path("/data/file").read_text() == "shared"
        with pytest.raises(OSError, match="Read-only"):
            await guest.path("/data/new").write_text("")


async def test_a_writable_share_is_this_machines_directory(tmp_path: Path) -> None:
    async with opened(shares={"/data": Share(tmp_path, writable=True)}) as guest:
        await guest.path("/data/new").write_text("written")
    assert (tmp_path / "new").read_text() == "written"


async def test_a_link_in_a_share_leads_nowhere_else(tmp_path: Path) -> None:
    shared = tmp_path / "shared"
    shared.mkdir()
    (tmp_path / "secret").write_text("secret")
    (shared / "absolute").symlink_to(tmp_path / "secret")
    (shared / "relative").symlink_to("../secret")
    async with opened(shares={"/data": shared}) as guest:
        for name in ("absolute", "relative", "../secret"):
            with pytest.raises(FileNotFoundError):
                await guest.path(f"/data/{name}").read_bytes()


async def test_a_share_may_lie_in_another(tmp_path: Path) -> None:
    for name in ("outer/inner", "other"):
        (tmp_path / name).mkdir(parents=True)
    (tmp_path / "other" / "file").write_text("inner")
    shares = {"/data/inner": Share(tmp_path / "other"), "/data": Share(tmp_path / "outer")}
    async with opened(shares=shares) as guest:
        assert await guest.path("/data/inner/file").read_text() == "inner"


async def test_a_file_may_be_shared(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("one")
    async with opened(shares={"/etc/one": tmp_path / "file"}) as guest:
        assert await guest.path("/etc/one").read_text() == "one"


async def test_a_share_that_is_missing_is_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError) as caught:
        async with opened(shares={"/data": tmp_path / "missing"}):
            pass
    assert caught.value.filename == str(tmp_path / "missing")


async def test_a_share_in_the_root_that_has_no_place_is_explained(tmp_path: Path) -> None:
    with pytest.raises(GuestLostError, match="must be there already, or lie outside"):
        async with opened(shares={"/usr/no/such/place": tmp_path}):
            pass


# Roots


def make_tree(top: Path) -> Path:
    """A root with a shell and a program, and without Python; and with what is not to be taken from it."""
    programs = [os.path.realpath(str(shutil.which(name))) for name in ("sh", "cat")]
    for path in programs:
        said = subprocess.run(["ldd", path], capture_output=True, text=True, check=True).stdout
        for part in [path, *(word for word in said.split() if word.startswith("/"))]:
            copy = top / part.lstrip("/")
            copy.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(part, copy)
    (top / "programs").mkdir()
    for name, path in zip(("sh", "cat"), programs, strict=True):
        (top / "programs" / name).symlink_to(path)
    if not (top / "bin").exists():
        (top / "bin").symlink_to("programs")
    elif not (top / "bin/sh").exists():
        (top / "bin/sh").symlink_to("/programs/sh")
    (top / "etc").mkdir()
    (top / "etc/os-release").write_text("NAME=tree\n")
    (top / "etc/passwd").write_text("inmate:x:4711:4711::/:/bin/sh\n")
    (top / "escape").symlink_to("/etc/shadow")
    (top / "up").symlink_to("../../../../etc/shadow")
    for name in ("home", "tmp", "run", "proc"):
        (top / name).mkdir()
        (top / name / "theirs").write_text("")
    return top


async def test_a_directory_without_python_can_be_the_root(tmp_path: Path) -> None:
    tree = make_tree(tmp_path)
    async with opened(root=tree, env={"PATH": "/programs"}) as guest:
        assert await said(guest, "cat /etc/os-release") == "NAME=tree"
        names = {path.name for path in await guest.path("/").iterdir()}
        assert names >= {"programs", "etc", "proc", "dev", "tmp", "home", "run"}
        assert not await guest.path("/etc/hosts").exists()
        for name in ("home", "tmp", "run"):
            assert not await guest.path(f"/{name}/theirs").exists()
        for name in ("escape", "up"):
            with pytest.raises(FileNotFoundError):
                await guest.path(f"/{name}").read_bytes()
        with pytest.raises(OSError, match="Read-only"):
            await guest.path("/etc/new").write_text("")
        await guest.path("/tmp/new").write_text("")
    assert not (tree / "etc/new").exists()


async def test_a_root_that_is_missing_is_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError) as caught:
        async with opened(root=tmp_path / "missing"):
            pass
    assert caught.value.filename == str(tmp_path / "missing")


def test_the_minimal_root_is_a_machines() -> None:
    with pytest.raises(ValueError, match="MicroVMGuest"):
        BubblewrapGuest(root=Root.MINIMAL)


# A relay


async def test_clients_of_a_relay_use_it(tmp_path: Path) -> None:
    path = str(tmp_path / "relay")
    async with opened(relay_path=path), connect_guest(path) as client:
        assert await said(client, "cat /proc/sys/kernel/hostname") == "guest"
        async with client.open_process(["cat"], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
            await process.stdin.send_all(b"through")
            assert await process.stdout.receive_some() == b"through"


async def test_a_command_does_not_reach_another_guests_relay(tmp_path: Path) -> None:
    path = str(tmp_path / "relay")
    program = "import socket, sys; socket.socket(socket.AF_UNIX).connect(sys.argv[1])"
    async with opened(relay_path=path), opened() as other:
        with socket.socket(socket.AF_UNIX) as here:
            here.connect(path)
        command = [*find_runtime().command, "-c", program, path]
        done = await other.run_process(command, capture_stderr=True, check=False)
        assert b"FileNotFoundError" in done.stderr


async def test_a_connection_within_the_guest_is_made() -> None:
    listen = "s = socket.create_server(('127.0.0.1', 4711))"
    program = f"import socket; {listen}; print(flush=True); s.accept()[0].send(b'x')"
    command = [*find_runtime().command, "-c", program]
    async with opened() as guest:
        async with guest.open_process(command, stdout=subprocess.PIPE) as server:
            await server.stdout.receive_some()
            async with await guest.open_tcp_stream("localhost", 4711) as stream:
                assert await stream.receive_some() == b"x"


# Where it cannot be had


async def test_without_bubblewrap_the_error_says_what_to_install(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(FileNotFoundError, match="install the package bubblewrap") as caught:
        async with opened():
            pass
    assert caught.value.filename == "bwrap"


#: Opens a guest, and prints what that raises.
PROGRAM = """
import sys, trio
from trio_console import BubblewrapGuest, Limits, open_guest
async def main():
    try:
        async with open_guest(BubblewrapGuest({options})):
            print("opened")
    except Exception as exc:
        print(type(exc).__name__, exc)
trio.run(main)
"""


def test_without_user_namespaces_the_error_says_what_would_help() -> None:
    setting = "echo 0 > /proc/sys/user/max_user_namespaces"  # of the namespace in which it is written
    unshare = ["unshare", "--user", "--map-root-user", "sh", "-c", f'{setting} && exec "$@"', "sh"]
    command = [*unshare, sys.executable, "-c", PROGRAM.format(options="")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=HANG, check=True)
    assert done.stdout.startswith("GuestLostError"), done
    assert "as root, `sysctl user.max_user_namespaces=10000` allows them" in done.stdout


def test_where_parts_of_proc_are_covered_the_error_says_what_would_help() -> None:
    cover = "mount -t tmpfs none /proc/scsi 2>/dev/null || mount -t tmpfs none /proc/driver"
    unshare = ["unshare", "--user", "--map-root-user", "--mount", "sh", "-c", f'{cover}; exec "$@"', "sh"]
    command = [*unshare, sys.executable, "-c", PROGRAM.format(options="")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=HANG, check=True)
    assert done.stdout.startswith("GuestLostError"), done
    assert "systempaths=unconfined" in done.stdout


async def test_an_unknown_user_is_a_lookup_error() -> None:
    with pytest.raises(LookupError, match="no user 'no-such-user'"):
        async with opened(user="no-such-user"):
            pass


@as_root
def test_only_root_may_name_another_user() -> None:
    done = run_beside("-c", PROGRAM.format(options="user=1"), uid=NOBODY)
    assert "only root may run a guest as another user" in done.stdout, done.stderr


@as_root
def test_limits_without_a_cgroup_say_what_would_help() -> None:
    done = run_beside("-c", PROGRAM.format(options="limits=Limits(processes=10)"), uid=NOBODY)
    assert done.stdout.startswith("PermissionError"), done.stderr
    assert "systemd-run --user --scope" in done.stdout


@as_root
async def test_a_python_that_the_user_cannot_reach_is_explained(tmp_path: Path) -> None:
    (tmp_path / "closed").mkdir(mode=0o700)
    (tmp_path / "closed" / "file").write_text("")
    done = run_beside(
        "-c",
        PROGRAM.format(options=f"user={NOBODY}, shares={{'/x': {str(tmp_path / 'closed' / 'file')!r}}}"),
        uid=0,
    )
    assert "user must be able to reach all that the guest sees" in done.stdout, done


# Arguments


@pytest.mark.parametrize("path", ["relative", "/a/../b", "/", "//", "/nul\0"])
def test_a_share_has_an_absolute_path_in_the_guest(path: str) -> None:
    with pytest.raises(ValueError, match="must be absolute"):
        BubblewrapGuest(shares={path: "/tmp"})


@pytest.mark.parametrize("name", ["memory_mib", "processes"])
def test_a_limit_is_at_least_one(name: str) -> None:
    with pytest.raises(ValueError, match=f"{name} must be at least 1"):
        Limits(**{name: 0})


def test_it_shows_its_root() -> None:
    assert repr(BubblewrapGuest()) == "BubblewrapGuest()"
    assert repr(BubblewrapGuest(root="/srv/root")) == "BubblewrapGuest(root='/srv/root')"

"""Other users of this machine: which directories a relay accepts, and which relays a client accepts."""

from __future__ import annotations

import errno
import grp
import os
import pwd
import subprocess
import sys
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import pytest
import trio

from tests.relay.router._world import serving
from tests.tools.limits import HANG
from tests.tools.namespaces import called_in_namespace
from tests.tools.peer import settle
from tests.tools.users import NOBODY, as_root, shared_directory
from trio_console import GuestLostError, connect_guest
from trio_console._relay import trust as _trust
from trio_console._relay.options import Rights, ServerOptions
from trio_console._relay.socket import RelaySocket
from trio_console._relay.trust import check_directory

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

OTHER = 4711  # neither a user of this machine nor a group


def why_not(directory: Path) -> str:
    """The reason for which a directory is refused, or an empty text."""
    number = os.open(directory, os.O_RDONLY)
    error: PermissionError | None = None
    try:
        check_directory(number, str(directory))
    except PermissionError as exc:
        error = exc
    finally:
        os.close(number)
    if error is None:
        return ""
    assert error.filename == str(directory)
    assert "use a directory of your own" in str(error)
    return str(error)


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    made = tmp_path / "place"
    made.mkdir()
    made.chmod(0o700)
    return made


# The directory of a relay


@pytest.mark.parametrize("mode", [0o700, 0o711, 0o755, 0o750, 0o500])
def test_a_directory_that_only_its_owner_can_write_is_accepted(directory: Path, mode: int) -> None:
    directory.chmod(mode)
    assert why_not(directory) == ""


@as_root
@pytest.mark.parametrize("mode", [0o700, 0o755, 0o500])
def test_a_directory_of_another_user_is_refused(directory: Path, mode: int) -> None:
    directory.chmod(mode)
    os.chown(directory, OTHER, 0)
    assert f"belongs to user {OTHER}" in why_not(directory)
    with pytest.raises(PermissionError, match=f"belongs to user {OTHER}"):
        RelaySocket(directory / "s")
    assert list(directory.iterdir()) == []


@as_root
@pytest.mark.parametrize(("mode", "refused"), [(0o770, True), (0o720, True), (0o750, False), (0o755, False)])
def test_a_directory_that_another_group_can_write_is_refused(directory: Path, mode: int, *, refused: bool) -> None:
    os.chown(directory, os.geteuid(), OTHER)
    directory.chmod(mode)
    assert (f"group {OTHER} can write" in why_not(directory)) is refused


@as_root
def test_a_directory_of_root_is_accepted_by_other_users(monkeypatch: pytest.MonkeyPatch, directory: Path) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: OTHER)
    assert why_not(directory) == ""


def private_group(monkeypatch: pytest.MonkeyPatch, members: list[str], users: list[tuple[str, int, int]]) -> None:
    """Let this process's group have these members, and these users (name, uid, gid) exist."""
    gid = os.getegid()
    monkeypatch.setattr(grp, "getgrgid", lambda wanted: grp.struct_group(("own", "x", wanted, members)))
    rest = ("", "/", "/bin/sh")
    made = [pwd.struct_passwd((name, "x", uid, gid + group, *rest)) for name, uid, group in users]
    monkeypatch.setattr(pwd, "getpwall", lambda: made)


@pytest.mark.parametrize(
    ("members", "users", "accepted"),
    [
        ([], [("me", 0, 0), ("other", 1, 1)], True),
        (["me"], [("me", 0, 0)], True),
        (["me", "other"], [("me", 0, 0), ("other", 1, 1)], False),
        ([], [("me", 0, 0), ("other", 1, 0)], False),
    ],
    ids=["of no other", "of me", "with another member", "the group of another"],
)
def test_a_directory_that_ones_own_group_can_write_is_accepted_if_nobody_else_is_in_it(
    directory: Path,
    monkeypatch: pytest.MonkeyPatch,
    members: list[str],
    users: list[tuple[str, int, int]],
    *,
    accepted: bool,
) -> None:
    private_group(monkeypatch, members, [(name, os.geteuid() + uid, gid) for name, uid, gid in users])
    directory.chmod(0o770)
    os.chown(directory, -1, os.getegid())
    assert (why_not(directory) == "") is accepted


def test_a_group_without_a_name_is_ones_own_if_it_is_this_processs(
    directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    private_group(monkeypatch, [], [])

    def unknown(_gid: int) -> Any:
        raise KeyError

    monkeypatch.setattr(grp, "getgrgid", unknown)
    os.chown(directory, -1, os.getegid())
    directory.chmod(0o770)
    assert why_not(directory) == ""


def test_an_access_control_list_that_lets_others_write_is_seen(
    directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # (Its mask is what the mode shows as the group's bits.)
    private_group(monkeypatch, [], [])
    asked = []

    def has(number: int, name: str) -> bytes:
        asked.append(name)
        return b"an access control list"

    monkeypatch.setattr(os, "getxattr", has)
    directory.chmod(0o770)
    os.chown(directory, -1, os.getegid())
    assert "access control list" in why_not(directory)
    assert asked == ["system.posix_acl_access"]
    directory.chmod(0o750)
    assert why_not(directory) == ""


# The directories above it


@contextmanager
def above() -> Iterator[tuple[Path, Path]]:
    """A directory of root for all to reach, and one two floors below it that only its owner can write."""
    with shared_directory() as outer:
        inner = outer / "middle" / "place"
        inner.mkdir(parents=True)
        yield outer, inner


@as_root
def test_a_directory_below_one_of_another_user_is_refused() -> None:
    with above() as (outer, inner):
        assert why_not(inner) == ""
        os.chown(outer, OTHER, 0)
        reason = why_not(inner)
        assert f"at '{outer}', the directory belongs to user {OTHER}" in reason
        with pytest.raises(PermissionError, match=f"belongs to user {OTHER}"):
            RelaySocket(inner / "s")
        assert list(inner.iterdir()) == []


@as_root
@pytest.mark.parametrize(
    ("mode", "refused"),
    [(0o777, True), (0o757, True), (0o775, True), (0o755, False), (0o1777, False), (0o1775, False)],
)
def test_others_may_write_above_a_directory_only_with_the_sticky_bit(mode: int, *, refused: bool) -> None:
    with above() as (outer, inner):
        os.chown(outer, -1, OTHER)
        outer.chmod(mode)
        reason = why_not(inner)
        assert f"at '{outer}'" in reason if refused else reason == ""


@as_root
def test_a_link_of_another_user_on_the_way_is_refused() -> None:
    with above() as (outer, inner):
        outer.chmod(0o1777)
        link = outer / "link"
        link.symlink_to("middle")
        assert why_not(link / inner.name) == ""
        os.lchown(link, OTHER, 0)
        assert f"at '{link}', the link belongs to user {OTHER}" in why_not(link / inner.name)


@as_root
@pytest.mark.parametrize("way", ["beside/link", "beside/link/../place"])
def test_the_directories_on_both_sides_of_a_link_are_looked_at(way: str) -> None:
    with above() as (outer, inner):
        beside = outer / "beside"
        beside.mkdir()
        (beside / "link").symlink_to("../middle/place" if way.endswith("link") else inner)
        (inner.parent / "place").chmod(0o755)
        assert why_not(outer / way) == ""
        beside.chmod(0o777)
        assert f"at '{beside}'" in why_not(outer / way)
        beside.chmod(0o755)
        inner.parent.chmod(0o777)
        assert f"at '{inner.parent}'" in why_not(outer / way)


# User namespaces, in which one number stands for all users outside

INSIDE = 70000  # another user that a namespace has
ALONE = ""  # without any user: this one has the number of all others, too
ROOTLESS = f"0 {OTHER} 1"
AS_NOBODY = f"{NOBODY} {OTHER} 1"
MANY_USERS = f"0 {OTHER} 1\n1 100000 65536"  # a nobody of the namespace is user 165533 outside

NAMESPACES = pytest.mark.parametrize(
    "users", [ALONE, ROOTLESS, AS_NOBODY, MANY_USERS], ids=["no user", "root", "nobody", "many users"]
)


def why_not_inside(users: str, what: str, path: Path) -> str:
    """The reason for which something is refused by a user in a namespace of these users, or an empty text."""
    answer = called_in_namespace("tests.relay._in_namespace", OTHER, users, what, str(path))
    assert isinstance(answer, str)
    return answer


def of(directory: Path, uid: int, mode: int = 0o755) -> Path:
    """A directory that belongs to a user and a group of the same number."""
    made = directory / f"of-{uid}-{mode:o}"
    made.mkdir()
    os.chown(made, uid, uid)
    made.chmod(mode)
    return made


@as_root
@NAMESPACES
def test_ones_own_directory_is_accepted_in_a_namespace_of_users(users: str) -> None:
    with shared_directory() as directory:
        assert why_not_inside(users, "directory", of(directory, OTHER)) == ""


@as_root
@NAMESPACES
@pytest.mark.parametrize("owner", [OTHER + 1, NOBODY, 0])
def test_a_directory_of_a_user_outside_is_not_ones_own_in_a_namespace_of_users(users: str, owner: int) -> None:
    with shared_directory() as directory:
        assert "belongs to user 65534" in why_not_inside(users, "directory", of(directory, owner))


@as_root
def test_a_group_outside_is_not_ones_own_in_a_namespace_of_users() -> None:
    with shared_directory() as directory:
        made = of(directory, OTHER, 0o770)
        os.chown(made, -1, OTHER + 1)
        assert "group 65534 can write" in why_not_inside(ALONE, "directory", made)


@as_root
@pytest.mark.parametrize(("owner", "refused"), [(165533, True), (OTHER + 1, False), (0, False)])
def test_a_nobody_inside_is_told_from_the_users_outside(owner: int, *, refused: bool) -> None:
    with shared_directory() as directory:
        above = of(directory, owner)
        reason = why_not_inside(MANY_USERS, "directory", of(above, OTHER))
        assert ("belongs to user 65534" in reason) is refused


@as_root
@pytest.mark.parametrize(("mode", "refused"), [(0o755, False), (0o1777, True)])
def test_a_link_of_a_user_outside_is_followed_if_only_the_directorys_owner_can_make_it(
    mode: int, *, refused: bool
) -> None:
    with shared_directory() as directory:
        place = of(directory, 0, mode)
        of(directory, OTHER)
        (place / "link").symlink_to(directory)
        reason = why_not_inside(MANY_USERS, "directory", place / "link" / f"of-{OTHER}-755")
        assert ("the link belongs to user 65534" in reason) is refused


@as_root
@NAMESPACES
def test_users_outside_are_trusted_above_and_users_inside_are_not(users: str) -> None:
    # (Root and all others have one number there, so that "/" is not root's.)
    with shared_directory() as directory:
        assert why_not_inside(users, "directory", of(of(directory, OTHER + 1), OTHER)) == ""
        inside = f"{users}\n{INSIDE} {OTHER + 2} 1".strip()
        reason = why_not_inside(inside, "directory", of(of(directory, OTHER + 2), OTHER))
        assert f"belongs to user {INSIDE}" in reason


@as_root
@NAMESPACES
@pytest.mark.parametrize(("owner", "refused"), [(OTHER, False), (OTHER + 1, True)])
def test_a_log_of_a_user_outside_is_refused_in_a_namespace_of_users(
    users: str, owner: int, *, refused: bool
) -> None:
    with shared_directory() as directory:
        log = of(directory, OTHER) / "log"
        os.mkfifo(log)
        os.chown(log, owner, owner)
        log.chmod(0o622)
        reader = os.open(log, os.O_RDONLY | os.O_NONBLOCK)
        try:
            reason = why_not_inside(users, "log", log)
        finally:
            os.close(reader)
        assert ("belongs to user 65534" in reason) is refused


@as_root
@NAMESPACES
@pytest.mark.parametrize(
    ("owner", "mode", "refused"), [(OTHER, 0o755, False), (OTHER + 1, 0o1777, True), (0, 0o1777, True)]
)
def test_a_relay_of_a_user_outside_is_not_ones_own_in_a_namespace_of_users(
    users: str, owner: int, mode: int, *, refused: bool
) -> None:
    with shared_directory() as directory:
        made = of(directory, owner, mode)
        with another_user_listens(made / "s", OTHER + 1 if refused else OTHER):
            reason = why_not_inside(users, "server", made / "s")
    assert ("a program of user 65534 listens there" in reason) is refused


@as_root
def test_ones_own_relay_is_taken_in_any_directory_in_a_namespace_that_has_ones_user() -> None:
    with shared_directory() as directory:
        made = of(directory, 0, 0o1777)
        with another_user_listens(made / "s", OTHER):
            assert why_not_inside(f"{INSIDE} {OTHER} 1", "server", made / "s") == ""


# The relay of a client

_LISTEN = """
import os, socket, sys
os.setuid(int(sys.argv[2]))
server = socket.socket(socket.AF_UNIX)
server.bind(sys.argv[1])
os.chmod(sys.argv[1], 0o777)
server.listen()
print("listening", flush=True)
client, _ = server.accept()
print(client.recv(100), flush=True)
"""


@contextmanager
def another_user_listens(path: Path, uid: int = NOBODY) -> Iterator[subprocess.Popen[bytes]]:
    """A program of another user at a socket, which says what it gets from its first client."""
    command = [sys.executable, "-S", "-c", _LISTEN, str(path), str(uid)]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        try:
            assert process.stdout.readline() == b"listening\n"
            yield process
        finally:
            process.kill()


async def accepts(path: Path, **options: Any) -> bool:
    """Whether a client that connects there takes the program for its relay."""
    error: PermissionError | None = None

    async def connect() -> None:
        nonlocal error
        try:
            async with connect_guest(path, **options):
                raise AssertionError
        except PermissionError as exc:
            error = exc
        except GuestLostError:
            pass  # it has waited for the greeting

    with another_user_listens(path) as process, trio.fail_after(HANG):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(connect)
            await settle()
            if error is not None:
                assert (error.filename, error.errno) == (str(path), errno.EPERM)
                assert f"a program of user {NOBODY} listens there" in str(error)
                # The program has not got a byte.
                assert process.stdout is not None
                assert process.stdout.readline() == b"b''\n"
            process.kill()
    return error is None


@as_root
@pytest.mark.parametrize(
    ("owner", "mode", "accepted"),
    [(NOBODY, 0o755, True), (NOBODY, 0o775, False), (NOBODY, 0o757, False), (0, 0o777, False)],
)
async def test_another_users_relay_is_taken_only_in_a_directory_of_that_user_alone(
    owner: int, mode: int, *, accepted: bool
) -> None:
    with shared_directory() as directory:
        directory.chmod(mode)
        os.chown(directory, owner, -1)
        assert await accepts(directory / "s") is accepted


@as_root
async def test_a_socket_of_another_user_does_not_make_that_user_trusted() -> None:
    with shared_directory() as directory:
        directory.chmod(0o777)
        with another_user_listens(directory / "theirs"):
            # A hard link, so that the socket's owner is not the one who has put it there.
            directory.chmod(0o755)
            os.chown(directory, OTHER, -1)
            with pytest.raises(PermissionError):
                async with connect_guest(directory / "theirs"):
                    raise AssertionError


@as_root
@pytest.mark.parametrize(
    ("trusted", "accepted"),
    [({NOBODY}, True), ([0, NOBODY], True), ({NOBODY - 1}, False), ({NOBODY + 1, 0}, False), (set(), False)],
)
async def test_with_server_uids_only_these_users_are_trusted(trusted: Any, *, accepted: bool) -> None:
    with shared_directory() as directory:
        os.chown(directory, NOBODY, -1)
        assert await accepts(directory / "s", server_uids=trusted) is accepted


async def test_ones_own_relay_is_refused_if_other_users_were_named(tmp_path: Path) -> None:
    async with serving(tmp_path) as world:
        with pytest.raises(PermissionError, match="one of the server_uids"):
            async with connect_guest(world.path, server_uids={os.geteuid() + 1}):
                raise AssertionError


@as_root
async def test_roots_relay_is_trusted_by_other_users(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async with serving(tmp_path) as world:
        os.chmod(tmp_path, 0o777)  # so that it is not trusted as the directory's owner
        monkeypatch.setattr(_trust.os, "geteuid", lambda: OTHER)
        stream = await trio.open_unix_socket(world.path)
        _trust.check_server(stream.socket, world.path, None)
        await stream.aclose()


@pytest.mark.parametrize(("users", "mode"), [([], 0o600), ([0], 0o600), ([1], 0o666), ([0, 1], 0o666)], ids=str)
def test_the_socket_is_for_all_users_if_others_have_rights(users: list[int], mode: int) -> None:
    rights = {os.geteuid() + user: Rights() for user in users}
    assert ServerOptions(rights=rights).socket_mode == mode

"""The users of this machine that a relay and its clients trust.

A user who can write to a directory can replace the files in it. So a relay puts its socket and its logs only into
a directory to which no other user can write; root is trusted, because root can do anything. A user who can
write to a directory above can replace the directory as a whole, so all on the way there are looked at, too. And a
client asks the kernel which user has made the socket that it has reached, before it takes or sends a byte.

In a user namespace, such as a container without root has, one number (the overflow id, 65534) stands for all users
outside of it: root, and any other. So that number is never taken for this process's own, even if this has it as
well, unless the kernel says that the file is this process's. Above a directory it is trusted, because "/" is
root's of the outside; there it cannot be told from other users of the outside, who are not to be asked.
"""

from __future__ import annotations

import errno
import fcntl
import grp
import os
import pwd
import stat
from pathlib import Path
from typing import TYPE_CHECKING, Final, Literal

from trio_console._addresses import peer_of

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator

    import trio

__all__ = ["check_directory", "check_server", "is_own"]

_ROOT: Final = 0

#: What the kernel says of a user namespace that has all users.
_ALL_USERS: Final = ["0", "0", "4294967295"]

#: Symbolic links that the kernel follows on the way to a file.
_MOST_LINKS: Final = 40

#: The attribute of a file with an access control list.
_ACCESS_LIST: Final = "system.posix_acl_access"


def check_directory(directory: int, path: str) -> None:
    """Check that no other user can replace an open directory, nor files in it; ``path`` is its absolute path.

    Raises:
        PermissionError: another user can; the message says why.
    """
    why = _who_can_write(directory)
    if why is not None:
        why = f"{why}, and so replace the files in it: use a directory of your own"
        raise PermissionError(errno.EPERM, why, path)
    for passed in _passed_on_the_way(path):
        if (why := _who_can_replace(passed)) is not None:
            why = f"on the way there, at {passed!r}, {why}, and so replace it as a whole"
            why += ": use a directory of your own, with only directories of yours or of root above it"
            raise PermissionError(errno.EPERM, why, path)


def _passed_on_the_way(path: str) -> Iterator[str]:
    """The directories in which the kernel looks for parts of an absolute path, and the links that it follows."""
    at, parts = "/", path.split("/")[::-1]
    yield at
    links = 0
    while parts:
        part = parts.pop()
        if part in ("", "."):
            continue
        if part == "..":
            at = os.path.dirname(at)  # no part of it is a link
            continue
        found = os.path.join(at, part)
        if os.path.islink(found) and links < _MOST_LINKS:
            links += 1
            yield found
            target = os.readlink(found)
            parts += target.split("/")[::-1]
            at = "/" if target.startswith("/") else at
            continue
        at = found
        if any(rest not in ("", ".") for rest in parts):
            yield at


def _who_can_replace(passed: str) -> str | None:
    """Say which other users can replace what a directory has, or where a link leads; `None` if no other user can.

    In a directory with the sticky bit, such as `/tmp`, a user can replace only what is the user's own.
    """
    found = os.lstat(passed)
    if found.st_uid not in (os.geteuid(), _ROOT) and not _is_outside(found, passed):
        kind = "link" if stat.S_ISLNK(found.st_mode) else "directory"
        return f"the {kind} belongs to user {found.st_uid}, who can change it"
    if stat.S_ISLNK(found.st_mode) or found.st_mode & stat.S_ISVTX:
        return None
    return _others_who_can_write(found, passed)


def _is_outside(found: os.stat_result, passed: str) -> bool:
    """Whether the owner of a directory or a link is outside of this process's user namespace, as root is there.

    If a user of the namespace has the number of those outside, the kernel tells the two apart for the namespace's
    root alone. For others it is a user of the namespace. A link is made by who can write to its directory.
    """
    if not _is_ambiguous(found.st_uid):
        return False
    if not _has_user(found.st_uid):
        return True
    if stat.S_ISLNK(found.st_mode):
        return not os.lstat(os.path.dirname(passed)).st_mode & stat.S_ISVTX
    return os.geteuid() == _ROOT and not _may_act_as_owner(passed)


def _is_ambiguous(number: int, kind: Literal["uid", "gid"] = "uid") -> bool:
    """Whether a number stands for all users, or groups, outside of this process's user namespace.

    Root is among them.
    """
    try:
        inside = Path(f"/proc/self/{kind}_map").read_text().split()
        outside = int(Path(f"/proc/sys/kernel/overflow{kind}").read_text())
    except OSError:
        return False
    return inside != _ALL_USERS and number == outside


def _has_user(uid: int) -> bool:
    """Whether this process's user namespace has a user of its own with a number."""
    lines = (map(int, line.split()) for line in Path("/proc/self/uid_map").read_text().splitlines())
    return any(first <= uid < first + count for first, _, count in lines)


def _may_act_as_owner(directory: str) -> bool:
    """Whether this process is a directory's owner, or has the rights of one over its user's files."""
    try:
        os.close(os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC | os.O_NOATIME))
    except OSError:
        return False
    return True


def is_own(found: os.stat_result, opened: int) -> bool:
    """Whether an open file belongs to this process's user."""
    if found.st_uid != os.geteuid():
        return False
    if not _is_ambiguous(found.st_uid):
        return True
    # Only a file's owner may set this flag. (It is not inherited, and changes nothing for who holds the file.)
    flags = fcntl.fcntl(opened, fcntl.F_GETFL)
    try:
        fcntl.fcntl(opened, fcntl.F_SETFL, flags | os.O_NOATIME)
    except OSError:
        return False
    fcntl.fcntl(opened, fcntl.F_SETFL, flags)
    return True


def _who_can_write(directory: int) -> str | None:
    """Say which other users can write to an open directory; `None` if no other user can."""
    found = os.fstat(directory)
    if found.st_uid != _ROOT and not is_own(found, directory):
        return f"the directory belongs to user {found.st_uid}, who can write to it"
    return _others_who_can_write(found, directory)


def _others_who_can_write(found: os.stat_result, directory: int | str) -> str | None:
    """Say which users can write to a directory beside its owner; `None` if no other user can."""
    mode = f"(mode {stat.S_IMODE(found.st_mode):04o})"
    if found.st_mode & stat.S_IWOTH:
        return f"other users can write to the directory {mode}"
    if found.st_mode & stat.S_IWGRP:
        if _has_access_list(directory):
            return f"the directory has an access control list, by which other users may write to it {mode}"
        if not _is_own_group(found.st_gid):
            return f"the users of group {found.st_gid} can write to the directory {mode}"
    return None


def _has_access_list(directory: int | str) -> bool:
    try:
        os.getxattr(directory, _ACCESS_LIST)
    except OSError:
        return False
    return True


def _is_own_group(gid: int) -> bool:
    """Whether a group is this process's own and has no other users. (Many systems make one for each user.)"""
    if gid != os.getegid() or _is_ambiguous(gid, "gid"):
        return False
    own = os.geteuid()
    try:
        members = set(grp.getgrgid(gid).gr_mem)
    except KeyError:
        members = set()
    users = pwd.getpwall()
    names = {user.pw_name for user in users if user.pw_uid == own}
    return members <= names and not any(user.pw_gid == gid and user.pw_uid != own for user in users)


def check_server(sock: trio.socket.SocketType, path: str, server_uids: Collection[int] | None) -> None:
    """Check that a relay at the other end of a connection is one of a user that this client trusts.

    Args:
        sock: the connection.
        path: the path that was connected to.
        server_uids: the users whose relays are trusted; `None` for this process's own user, root, and the owner of
            both the socket and its directory.

    Raises:
        PermissionError: it is not.
    """
    uid = peer_of(sock).uid
    if server_uids is None:
        own = os.geteuid()
        trusted = uid == _ROOT or (uid == own and not _is_ambiguous(uid)) or _owns(uid, path)
        who = f"this program's user {os.geteuid()}, root, or the only user who can write to its directory"
    else:
        trusted = uid in server_uids
        who = f"one of the server_uids {sorted(server_uids)}"
    if not trusted:
        raise PermissionError(errno.EPERM, f"a program of user {uid} listens there, who is not {who}", path)


def _owns(uid: int, path: str) -> bool:
    """Whether a socket and its directory belong to a user, and no other user can write to the directory.

    (The socket at the path need not be the one that was connected to: its owner may have replaced it meanwhile,
    but no other user.)
    """
    try:
        made, directory = os.stat(path), os.stat(os.path.dirname(path) or ".")
    except OSError:
        return False
    closed = not directory.st_mode & (stat.S_IWGRP | stat.S_IWOTH)
    return made.st_uid == uid == directory.st_uid and closed

"""What a guest in namespaces sees, as bubblewrap's arguments, and what is written there before its agent begins.

The guest's root is a directory in memory. The entries of what the user has named are put into it one by one, so
that what has to be writable, or of the guest's own, can lie beside them.

This module must not know how bubblewrap is started.
"""

from __future__ import annotations

import errno
import os
import pwd
import stat
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, final

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from trio_console._guests.namespaces.runtime import Runtime
    from trio_console._guests.roots import Share

__all__ = ["HOME", "NAMESPACES", "Account", "arguments", "find_account", "program"]

HOME: Final = "/home/guest"

#: This machine's programs, and what they need in order to find each other and their libraries. (Not the rest of
#: ``/etc``: it has settings and secrets.)
_PROGRAMS: Final = ("bin", "lib", "lib32", "lib64", "libx32", "sbin", "usr")
_SETTINGS: Final = ("/etc/alternatives", "/etc/ld.so.cache", "/etc/ld.so.conf", "/etc/ld.so.conf.d")

#: What a root of the user's does not bring along: the guest has its own.
_OWN: Final = frozenset({"dev", "home", "proc", "run", "sys", "tmp"})

#: What is a guest's own.
NAMESPACES: Final = (
    *("--unshare-user", "--unshare-ipc", "--unshare-pid", "--unshare-net", "--unshare-uts"),
    "--unshare-cgroup-try",
    # Root in a user namespace has all capabilities there, by which it could make read-only mounts writable.
    *("--cap-drop", "ALL"),
    # The agent: what it has started ends with it.
    "--as-pid-1",
    *("--hostname", "guest"),
)

#: Before the agent's own. The files are those that a program looks into to name users and this machine.
_PREPARE: Final = """\
import os, sys
sys.path.insert(0, {modules!a})
os.environ.pop("PWD", None)
os.environ.update({env!a})
for name, text in {files!a}.items():
    with open(name, "w") as file:
        file.write(text)
"""


@final
@dataclass(frozen=True)
class Account:
    """The user as whom a guest runs.

    Attributes:
        identity: what `subprocess.Popen` is told of it; nothing for this program's own user.
    """

    name: str
    uid: int
    gid: int
    identity: dict[str, Any]


def find_account(user: int | str | None) -> Account:
    """The user that was asked for, by number or name; `None` for this program's.

    Raises:
        LookupError: there is none with this name.
        PermissionError: it is another user, and this program is not root's.
    """
    own = os.geteuid()
    if user is None or user == own:
        return Account(_name_of(own), own, os.getegid(), {})
    if isinstance(user, str) and user.isdecimal():
        return find_account(int(user))
    if isinstance(user, int):
        name, uid, gid = _name_of(user), user, _group_of(user)
    else:
        try:
            entry = pwd.getpwnam(user)
        except KeyError:
            raise LookupError(f"there is no user {user!r:.80} on this machine") from None
        name, uid, gid = user, entry.pw_uid, entry.pw_gid
    if uid == own:
        return Account(name, own, os.getegid(), {})
    if own != 0:
        raise PermissionError(
            errno.EPERM,
            f"only root may run a guest as another user: this program runs as user {own}, and the guest was to "
            f"run as {user!r:.80}. Leave `user` out",
        )
    return Account(name, uid, gid, {"user": uid, "group": gid, "extra_groups": []})


def _name_of(uid: int) -> str:
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return "guest"


def _group_of(uid: int) -> int:
    try:
        return pwd.getpwuid(uid).pw_gid
    except KeyError:
        return uid


def arguments(root: str | None, shares: Mapping[str, Share], runtime: Runtime) -> list[str]:
    """The arguments of bubblewrap for a root (`None` for this machine's programs), up to the command.

    Raises:
        FileNotFoundError: a path is not there.
        NotADirectoryError: the root is none.
    """
    made = [*NAMESPACES, *_root(root)]
    # Root may change settings of the kernel in /proc without any capability, and so all of this machine.
    made += ["--proc", "/proc", "--remount-ro", "/proc", "--dev", "/dev"]
    made += ["--perms", "1777", "--tmpfs", "/tmp", "--dir", HOME]
    for in_guest, path in runtime.files.items():
        made += ["--ro-bind", path, in_guest]
    for name in runtime.hidden:
        made += ["--tmpfs", name, "--remount-ro", name]
    for in_guest, share in shares.items():
        path = os.fspath(share.host_path)
        os.stat(path)  # bubblewrap's message would not say that it is a share
        made += ["--bind" if share.writable else "--ro-bind", path, in_guest]
    return [*made, "--chdir", HOME, "--"]


def _root(root: str | None) -> Iterator[str]:
    if root is None:
        for name in _PROGRAMS:
            if os.path.lexists(f"/{name}"):
                yield from _entry(f"/{name}", f"/{name}")
        yield from ("--dir", "/etc")
        for path in filter(os.path.exists, _SETTINGS):
            yield from ("--ro-bind", path, path)
        return
    for name in sorted(os.listdir(root)):
        if name not in _OWN:
            yield from _entry(os.path.join(root, name), f"/{name}")


def _entry(path: str, in_guest: str) -> Iterator[str]:
    """An entry of a root. (bubblewrap would follow a link on this machine, where it leads elsewhere.)"""
    mode = os.lstat(path).st_mode
    if stat.S_ISLNK(mode):
        yield from ("--symlink", os.readlink(path), in_guest)
    elif stat.S_ISDIR(mode) or stat.S_ISREG(mode):
        yield from ("--ro-bind", path, in_guest)


def program(runtime: Runtime, account: Account, env: Mapping[str, str], *, etc: bool) -> str:
    """The beginning of the program that the agent's Python runs.

    The environment is set here, and not where bubblewrap is started: it would be bubblewrap's, too, which runs on
    this machine.

    Args:
        runtime: the agent's Python.
        account: the user of the guest.
        env: the environment of the agent's commands.
        etc: whether ``/etc`` is the guest's own, and is to get the files that every system has.
    """
    files = {}
    if etc:
        accounts = dict.fromkeys([(account.name, account.uid, account.gid), ("nobody", 65534, 65534)])
        users = [f"{name}:x:{uid}:{gid}::{HOME}:/bin/sh\n" for name, uid, gid in accounts]
        groups = [f"{'nogroup' if gid == 65534 else name}:x:{gid}:\n" for name, _, gid in accounts]
        files = {
            "/etc/passwd": "".join(users),
            "/etc/group": "".join(groups),
            "/etc/hosts": "127.0.0.1 localhost\n::1 localhost\n127.0.1.1 guest\n",
            "/etc/nsswitch.conf": "passwd: files\ngroup: files\nhosts: files\n",
        }
    return _PREPARE.format(modules=runtime.modules, env=dict(env), files=files)

"""Words for a user whose system does not let bubblewrap make a guest: what is missing, and what would help."""

from __future__ import annotations

import errno
import re
import shutil
from contextlib import suppress
from typing import Final

__all__ = ["advised", "find_bwrap"]

_NAMES: Final = "/proc/sys"

_APPARMOR: Final = (
    "AppArmor lets only programs with a profile make user namespaces: as root, install the profile "
    "bwrap-userns-restrict (of the package apparmor-profiles) and load it with apparmor_parser"
)

#: What a kernel's setting must not be, and what to do.
_SETTINGS: Final = (
    (
        "user/max_user_namespaces",
        "0",
        "this system allows no user namespaces: as root, `sysctl user.max_user_namespaces=10000` allows them",
    ),
    (
        "kernel/unprivileged_userns_clone",
        "0",
        "only root may make user namespaces: as root, `sysctl kernel.unprivileged_userns_clone=1` changes that",
    ),
    (
        "kernel/apparmor_restrict_unprivileged_userns",
        "1",
        _APPARMOR,
    ),
)

#: Where no setting forbids them.
_NO_NAMESPACES: Final = (
    "this system lets this program make no user namespaces: in a container, its runtime must allow them (docker: "
    "--security-opt seccomp=unconfined, or a profile that allows clone and unshare with namespaces)"
)

_NO_PROC: Final = (
    "a new /proc is refused where parts of /proc are covered, as in most containers: docker needs "
    "--security-opt systempaths=unconfined"
)

#: Parts of what bubblewrap says, and what would help.
_SAID: Final = (
    (r"bwrap: Can't mount proc", _NO_PROC),
    (
        r"bwrap: Can't find source path .*: Permission denied",
        "the guest's user must be able to reach all that the guest sees, also this program's Python and modules",
    ),
    (
        r"bwrap: (Can't mkdir|Can't create file|Can't mount|Can't make symlink).*Read-only file system",
        "the guest's root is read-only: the path of a share in it must be there already, or lie outside of it",
    ),
    (r"bwrap: Unknown option", "this bubblewrap is too old: version 0.5 or later is needed"),
    (r"bwrap: (.*[Nn]amespace|setting up uid map|Failed RTM_NEWADDR|loopback: )", None),
)

_STATUS: Final = re.compile(r"bwrap exited with status (\d+)")

#: What a program's exit status is when bubblewrap's command was killed by SIGKILL.
_KILLED: Final = "137"


def find_bwrap() -> str:
    """The path of bubblewrap.

    Raises:
        FileNotFoundError: it is not installed.
    """
    path = shutil.which("bwrap")
    if path is None:
        raise FileNotFoundError(
            errno.ENOENT,
            "bubblewrap is not installed (its program is looked for in PATH): install the package bubblewrap, as "
            "with `apt-get install bubblewrap` or `dnf install bubblewrap`",
            "bwrap",
        )
    return path


def advised(reason: str, *, out_of_memory: bool) -> str:
    """The reason of a guest's end, with what would help, as far as that is known."""
    if out_of_memory and (match := _STATUS.match(reason)) and match[1] == _KILLED:
        return f"{reason} (the agent was killed: the guest's limit of memory was reached)"
    for pattern, advice in _SAID:
        if re.search(pattern, reason):
            return f"{reason} ({advice or _why_no_namespaces()})"
    return reason


def _why_no_namespaces() -> str:
    for name, forbidding, advice in _SETTINGS:
        with suppress(OSError), open(f"{_NAMES}/{name}", encoding="ascii") as file:
            if file.read().strip() == forbidding:
                return advice
    return _NO_NAMESPACES

"""The user and groups of a command: ``USER``, ``UID``, ``USER:GROUP`` and so on, looked up in the guest.

The C library makes the look-ups, and may read files or ask a name service, so they are made in another thread.
This module must not know sessions or messages.
"""

from __future__ import annotations

import errno
import grp
import os
import pwd
from dataclasses import dataclass
from typing import Final, Literal, final

__all__ = ["Account", "UnknownUserError", "find_account", "look_up", "own_home"]

# The last value means "do not change" to setuid(2) and similar calls: a command with it would keep the agent's
# user, which is root.
_LAST_ID: Final = 2**32 - 2
_ID_DIGITS: Final = 10


class UnknownUserError(LookupError):
    """A user or group is not known here, or its name is not valid."""


@final
@dataclass(frozen=True, slots=True)
class Account:
    """The identity of a command: its ids, all its groups, and its home directory, if it is known."""

    uid: int
    gid: int
    groups: tuple[int, ...]
    home: str | None

    def is_current(self) -> bool:
        """Whether this process has this identity already, so that nothing has to be changed."""
        if (self.uid, self.gid) != (os.geteuid(), os.getegid()):
            return False
        # Only root may set groups. For another user the groups of this process are taken as they are.
        return self.uid != 0 or {*self.groups, self.gid} == {*os.getgroups(), self.gid}


def find_account(text: str) -> Account:
    """The account that ``text`` names.

    A part that is a 32-bit number is an id, which need not be known; any other part is a name. The group is the
    part after the colon; without one, the user's own; and if that is not known, the group of this process. Further
    groups are those that the group file lists for a known user.

    Raises:
        UnknownUserError: a name is not known, or a part is empty.
    """
    user_part, colon, group_part = (part.strip() for part in text.strip().partition(":"))
    if not user_part or (colon and not group_part):
        raise UnknownUserError(f"invalid user {text!r}")
    uid, entry = _find_user(user_part)
    gid = _find_group(group_part) if colon else (entry.pw_gid if entry else os.getegid())
    if entry is None:
        return Account(uid, gid, (), None)
    groups = tuple(os.getgrouplist(entry.pw_name, gid))
    return Account(uid, gid, groups, entry.pw_dir)


def own_home() -> str | None:
    """The home directory of the user of this process, from the same files."""
    entry = _passwd_by_id(os.geteuid())
    return None if entry is None else entry.pw_dir


def look_up(kind: Literal["user", "group", "home"], key: str) -> str:
    """The name of the user or group with a number, or the home directory of a user.

    Without a name it is the home of this process: what its environment says, or else that of its user.

    Raises:
        ProcessLookupError: it is not known.
    """
    try:
        if kind == "user":
            return pwd.getpwuid(int(key)).pw_name
        if kind == "group":
            return grp.getgrgid(int(key)).gr_name
        home = pwd.getpwnam(key).pw_dir if key else os.path.expanduser("~")
    except (KeyError, ValueError, OverflowError):
        raise ProcessLookupError(errno.ESRCH, f"no such {kind}") from None
    if home == "~":
        raise ProcessLookupError(errno.ESRCH, f"no such {kind}")
    return home


def _as_id(part: str) -> int | None:
    if not (part.isascii() and part.isdigit() and len(part) <= _ID_DIGITS):
        return None
    number = int(part)
    if number > _LAST_ID + 1:
        return None
    if number > _LAST_ID:
        raise UnknownUserError(f"{part} is not an id")
    return number


def _find_user(part: str) -> tuple[int, pwd.struct_passwd | None]:
    number = _as_id(part)
    if number is not None:
        return number, _passwd_by_id(number)
    try:
        entry = pwd.getpwnam(part)
    except (KeyError, ValueError):  # ValueError: a NUL in the name
        raise UnknownUserError(f"unknown user {part!r}") from None
    return entry.pw_uid, entry


def _find_group(part: str) -> int:
    number = _as_id(part)
    if number is not None:
        return number
    try:
        return grp.getgrnam(part).gr_gid
    except (KeyError, ValueError):
        raise UnknownUserError(f"unknown group {part!r}") from None


def _passwd_by_id(uid: int) -> pwd.struct_passwd | None:
    try:
        return pwd.getpwuid(uid)
    except KeyError:
        return None

"""Resource limits: names to numbers, and the agent's own need of file descriptors.

Limits travel as unsigned 64-bit numbers with ``2**64 - 1`` for "no limit"; the ``resource`` module says
-1 for that. Everything here speaks the wire's numbers and converts at the system call.

This module knows nothing of sessions or messages.
"""

from __future__ import annotations

import errno
import os
import resource
from typing import Final, NamedTuple, final

__all__ = ["FdHeadroom", "Limit", "apply_limit", "limit_number", "raise_hard_limit"]

_UNLIMITED: Final = 2**64 - 1
_LARGEST_PLAIN: Final = 2**63 - 1

_NUMBERS: Final[dict[str, int]] = {
    # Linux still has a number for it, the resource module has no name for it.
    "locks": 10,
    **{
        name[len("RLIMIT_") :].lower(): getattr(resource, name)
        for name in dir(resource)
        if name.startswith("RLIMIT_") and name != "RLIMIT_OFILE"
    },
}


class Limit(NamedTuple):
    """One limit to set: the kernel's number of the resource, and two values as on the wire."""

    resource: int
    soft: int
    hard: int


def limit_number(name: str) -> int | None:
    """The kernel's number for a resource name in any case, or ``None`` for one it does not have."""
    return _NUMBERS.get(name.lower())


def _to_python(value: int) -> int:
    return resource.RLIM_INFINITY if value > _LARGEST_PLAIN else value


def _get(number: int) -> tuple[int, int]:
    soft, hard = resource.getrlimit(number)
    return soft & _UNLIMITED, hard & _UNLIMITED


def apply_limit(limit: Limit) -> None:
    """Set a limit of this process.

    Raises:
        OSError: with the errno of setrlimit(2). (The resource module turns two of them into
            ``ValueError``, one text each.)
    """
    try:
        resource.setrlimit(limit.resource, (_to_python(limit.soft), _to_python(limit.hard)))
    except ValueError:
        code = errno.EINVAL if limit.soft > limit.hard else errno.EPERM
        raise OSError(code, os.strerror(code)) from None


def raise_hard_limit(limit: Limit) -> None:
    """Make sure a child of any user may have ``limit``, without changing what binds this process.

    Raises:
        OSError: the limit is impossible, or this process may not raise its own.
    """
    if limit.soft > limit.hard:
        raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))
    soft, hard = _get(limit.resource)
    if limit.hard > hard:
        apply_limit(Limit(limit.resource, soft, limit.hard))


@final
class FdHeadroom:
    """Room for file descriptors as sessions grow.

    A thousand idle commands take some four thousand descriptors, and 1024 is a common soft limit. It is
    raised only once it is nearly used up, because children then have to be given the old one back, which
    makes starting them slower.
    """

    __slots__ = ("_original", "_soft")

    _PER_SESSION = 8  # three pipes and what tells the exit at rest, twice that while the child is being started
    _PER_HANDLE = 2  # a directory; a file takes one
    _RESERVE = 64

    def __init__(self) -> None:
        self._soft, hard = _get(resource.RLIMIT_NOFILE)
        self._original = Limit(resource.RLIMIT_NOFILE, self._soft, hard)

    def ensure(self, sessions: int, handles: int = 0) -> None:
        """Raise the soft limit, as far as the hard one allows, if so many of these need it."""
        # Open files may take half of all there are, so that commands can always be started.
        need = sessions * self._PER_SESSION + 2 * handles * self._PER_HANDLE + self._RESERVE
        if need <= self._soft or self._soft >= self._original.hard:
            return
        soft = min(max(2 * self._soft, need), self._original.hard)
        apply_limit(Limit(resource.RLIMIT_NOFILE, soft, self._original.hard))
        self._soft = soft

    def takes_handles(self, handles: int) -> bool:
        """Whether so many may be open at once."""
        return 2 * handles * self._PER_HANDLE <= self._soft

    def for_child(self) -> tuple[Limit, ...]:
        """What a child has to set so as not to notice."""
        return () if self._soft == self._original.soft else (self._original,)

    def restore(self) -> None:
        """Put the old limit back."""
        if self._soft != self._original.soft:
            apply_limit(self._original)
            self._soft = self._original.soft

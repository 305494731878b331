"""Resource limits: names to numbers, and the agent's own need of file descriptors.

On the wire a limit is an unsigned 64-bit number, with ``2**64 - 1`` for "no limit", which is -1 in the
``resource`` module. All functions here take the wire's numbers, and convert them at the system call.

This module must not know sessions or messages.
"""

from __future__ import annotations

import errno
import os
import resource
from collections import Counter
from typing import Final, NamedTuple, final

__all__ = ["FdHeadroom", "Limit", "apply_limit", "limit_number", "raise_hard_limit"]

_UNLIMITED: Final = 2**64 - 1
_LARGEST_PLAIN: Final = 2**63 - 1

_NUMBERS: Final[dict[str, int]] = {
    # Linux still has a number for this resource, but the resource module has no name for it.
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
    """The kernel's number for the name of a resource, in any case; ``None`` for an unknown name."""
    return _NUMBERS.get(name.lower())


def _to_python(value: int) -> int:
    return resource.RLIM_INFINITY if value > _LARGEST_PLAIN else value


def _get(number: int) -> tuple[int, int]:
    soft, hard = resource.getrlimit(number)
    return soft & _UNLIMITED, hard & _UNLIMITED


def apply_limit(limit: Limit) -> None:
    """Set a limit of this process.

    Raises:
        OSError: with the errno of setrlimit(2). (The resource module raises a ``ValueError`` for two of them.)
    """
    try:
        resource.setrlimit(limit.resource, (_to_python(limit.soft), _to_python(limit.hard)))
    except ValueError:
        code = errno.EINVAL if limit.soft > limit.hard else errno.EPERM
        raise OSError(code, os.strerror(code)) from None


def raise_hard_limit(limit: Limit) -> None:
    """Let a child of any user set ``limit``: raise this process's hard limit if it is lower. The soft limit stays.

    Raises:
        OSError: the limit is impossible, or this process may not raise its hard limit.
    """
    if limit.soft > limit.hard:
        raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))
    soft, hard = _get(limit.resource)
    if limit.hard > hard:
        apply_limit(Limit(limit.resource, soft, limit.hard))


def _open_descriptors() -> int:
    """How many descriptors this process has open; a guess where that cannot be seen."""
    try:
        return len(os.listdir("/proc/self/fd"))
    except OSError:
        return 16


@final
class FdHeadroom:
    """The file descriptors: raises their limit when the number of sessions grows, and shares them among clients.

    A thousand idle commands take some four thousand descriptors, and 1024 is a common soft limit. It is raised
    only when it is nearly used up: after that each child has to set the old limit, and so takes longer to start.

    Whoever opens descriptors for a client claims them first. The agent keeps some for itself, for what must work:
    to find and kill processes, and to reap them. A quarter is kept for clients that have few, so that no client
    can have them all.
    """

    __slots__ = ("_base", "_limit", "_original", "_soft", "_total", "_used")

    _PER_SESSION = 8  # three pipes and the exit descriptor; twice as many while the child is being started
    _PER_HANDLE = 2  # a directory; a file takes one
    _RESERVE = 64
    _FEW = 16  # a start, and a connection or a file besides

    def __init__(self) -> None:
        self._soft, hard = _get(resource.RLIMIT_NOFILE)
        self._original = Limit(resource.RLIMIT_NOFILE, self._soft, hard)
        self._base = _open_descriptors()
        self._limit = hard
        self._total = 0
        self._used: Counter[int] = Counter()  # by client

    def claim(self, client: int, count: int) -> bool:
        """Claim descriptors for a client, by its number; returns whether they may be opened."""
        left = self._limit - min(self._RESERVE, self._limit // 8) - self._base - self._total - count
        if left < 0 or (left < self._limit // 4 and self._used[client] + count > self._FEW):
            return False
        self.claim_anyway(client, count)
        return True

    def claim_anyway(self, client: int, count: int) -> None:
        """Count descriptors that are open already."""
        self._total += count
        self._used[client] += count

    def release(self, client: int, count: int) -> None:
        """Count descriptors no more: they are closed, or were not opened."""
        self._total -= count
        self._used[client] -= count
        assert self._used[client] >= 0, "a descriptor is released once"

    def ensure(self, sessions: int, handles: int = 0) -> None:
        """Raise the soft limit, up to the hard one, if so many sessions and handles need it."""
        # Open files may take half of all descriptors, so that commands can always be started.
        need = sessions * self._PER_SESSION + 2 * handles * self._PER_HANDLE + self._RESERVE
        if need <= self._soft or self._soft >= self._original.hard:
            return
        soft = min(max(2 * self._soft, need), self._original.hard)
        assert self._soft < soft <= self._original.hard, "a limit is only raised, and not above the hard one"
        try:
            apply_limit(Limit(resource.RLIMIT_NOFILE, soft, self._original.hard))
        except OSError:  # a sandbox may forbid it
            self._limit = self._soft
        else:
            self._soft = soft

    def takes_handles(self, handles: int) -> bool:
        """Whether so many handles may be open at once."""
        return 2 * handles * self._PER_HANDLE <= self._soft

    def for_child(self) -> tuple[Limit, ...]:
        """The limits that a child has to set to get those from before the raise."""
        return () if self._soft == self._original.soft else (self._original,)

    def restore(self) -> None:
        """Set the limit back to the value from before the raise."""
        if self._soft != self._original.soft:
            apply_limit(self._original)
            self._soft = self._original.soft

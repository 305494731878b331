"""Refuses what the agent takes from its system, one call after the other."""

from __future__ import annotations

import errno
import os
import socket
import subprocess
import sys
import threading
from collections import Counter
from typing import TYPE_CHECKING, Any, Final

import trio

from trio_console.agent._process import limits
from trio_console.agent._system import machine

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import FrameType

    import pytest

__all__ = ["Refusals"]


#: Calls that are made of one line are counted so many times. (A look at all processes has thousands.)
_REPEATED: Final = 3


def _error(code: int) -> Callable[[], Exception]:
    return lambda: OSError(code, os.strerror(code))


def _no_thread() -> Exception:
    return RuntimeError("can't start new thread")


#: The calls, by owner and name, and the error with which each is refused.
CALLS: Final[tuple[tuple[Any, str, Callable[[], Exception]], ...]] = (
    *((os, name, _error(errno.EMFILE)) for name in ("open", "pipe", "openpty", "dup", "listdir", "scandir")),
    *((os, name, _error(errno.EMFILE)) for name in ("pidfd_open",) if hasattr(os, "pidfd_open")),
    (machine, "open", _error(errno.ENFILE)),
    (socket.socket, "__init__", _error(errno.EMFILE)),
    (limits, "apply_limit", _error(errno.EPERM)),
    (subprocess.Popen, "_execute_child", _error(errno.EAGAIN)),
    (trio.to_thread, "run_sync", _no_thread),
    (trio.lowlevel, "start_thread_soon", _no_thread),
    *((os, name, _error(errno.EAGAIN)) for name in ("mkdir", "rmdir")),
    (trio.lowlevel, "wait_readable", _error(errno.ENOMEM)),
    (trio.lowlevel, "wait_writable", _error(errno.ENOSPC)),
)


def _place_in_agent() -> str | None:
    """The line of the agent that makes a call, if one does. (The tests run in the same process.)"""
    frame: FrameType | None = sys._getframe(2)
    for _ in range(12):
        if frame is None:
            return None
        name = frame.f_code.co_filename
        if "/trio_console/agent/" in name or name.endswith("_processes.py"):
            return f"{name}:{frame.f_lineno}"
        frame = frame.f_back
    return None


class Refusals:
    """While it is armed, the calls of the agent are counted, and some are refused.

    Attributes:
        refused: the calls that were refused: their names and places.
    """

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self._lock = threading.Lock()
        self._first = self._last = -1
        self._count = 0
        self._seen: Counter[str] = Counter()
        self._armed = False
        self.refused: list[str] = []
        for owner, name, error in CALLS:
            plain = getattr(owner, name, None) or __builtins__["open"]  # type: ignore[index]
            monkeypatch.setattr(owner, name, self._watched(name, plain, error), raising=False)

    def _watched(self, name: str, plain: Callable[..., Any], error: Callable[[], Exception]) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            if self._armed and (place := _place_in_agent()) and self._refuses(name, place):
                raise error()
            return plain(*args, **kwargs)

        return call

    def _refuses(self, name: str, place: str) -> bool:
        with self._lock:
            self._seen[place] += 1
            if self._seen[place] > _REPEATED:
                return False
            self._count += 1
            if not self._first <= self._count <= self._last:
                return False
            self.refused.append(f"{name} at {place}")
            return True

    def arm(self, number: int, *, times: int = 1) -> None:
        """Refuse the call with this number, counted from now, and perhaps those after it."""
        self._first, self._last = number, number + times - 1
        self._count = 0
        self._seen.clear()
        self.refused.clear()
        self._armed = True

    def disarm(self) -> bool:
        """Refuse no more; returns whether a call was refused."""
        self._armed = False
        return bool(self.refused)

"""What bubblewrap runs, as this machine sees it: found by what bubblewrap says, and ended from outside.

This module must not know what it is.
"""

from __future__ import annotations

import json
import os
import signal
from contextlib import suppress
from typing import TYPE_CHECKING, Final, final

from trio_console._guests.leftovers import kill_left_behind
from trio_console._processes import GUEST_MARK, Wanted, start_time

if TYPE_CHECKING:
    import trio

__all__ = ["Inside", "child_of"]

#: bubblewrap says some 300 bytes of what it has made.
_MOST_SAID: Final = 65536


async def child_of(news: trio.abc.ReceiveStream) -> int | None:
    """Wait for what bubblewrap says of its namespaces (``--info-fd``); the id of the first process in them.

    `None` if there is none: then bubblewrap has ended, and says why on its error output.
    """
    said = bytearray()
    async for data in news:
        said += data
        if len(said) > _MOST_SAID:
            break
    try:
        return int(json.loads(said)["child-pid"])
    except (ValueError, KeyError, TypeError):
        return None


@final
class Inside:
    """The first process in a process namespace that bubblewrap has made: all in there end with it.

    Args:
        mark: what it has in its environment, with all that it starts.
    """

    def __init__(self, mark: str) -> None:
        self._mark = mark
        self._pid: int | None = None
        self._started: str | None = None

    @property
    def pid(self) -> int | None:
        """Its process id on this machine; `None` if it is not known."""
        return self._pid

    def learn(self, pid: int) -> bool:
        """Note its process id; returns whether it still runs."""
        self._started = start_time(pid)
        self._pid = None if self._started is None else pid
        return self._pid is not None

    def _living(self) -> frozenset[int]:
        """Its process id, as long as it is no other process's."""
        if self._pid is None or start_time(self._pid) != self._started:
            return frozenset()
        return frozenset({self._pid})

    def kill(self) -> None:
        """Kill it, and with it all of its namespace. Does not wait."""
        for pid in self._living():
            with suppress(ProcessLookupError, PermissionError):
                os.kill(pid, signal.SIGKILL)

    async def end(self, patience: trio.CancelScope) -> None:
        """Kill what is left, and wait until it is gone, for two seconds at most.

        That is what has the mark, and the process itself, whatever that has by now.
        """
        await kill_left_behind(Wanted(GUEST_MARK, self._mark, members=self._living()), patience)

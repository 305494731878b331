"""The end of whole commands: of everything that they have started, also what has left their process group.

Each scan of ``/proc`` serves all commands that are to end at that moment, so a thousand cancelled commands cost
little more than one.

Commands have no cgroups of their own, by which they would be found whole. A process must be in its cgroup before
it starts another one. Python cannot start it there (clone3 can), and to move it there the kernel first waits for
all processors (an RCU grace period): 6 to 18 ms where that was measured, and a whole command takes 1.2.

This module must not know sessions or frames.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Final, TypeVar, final

import trio

from trio_console._processes import (
    CLEAN_SCANS,
    COMMAND_MARK,
    Wanted,
    is_any_left,
    kill_found,
    kill_processes,
)
from trio_console._trio.threads import NoThreadError, in_thread
from trio_console._trio.turns import Ration

if TYPE_CHECKING:
    from collections.abc import Callable

    from trio_console._processes import Look

__all__ = ["Hunt"]

#: Seconds between two scans. A killed process takes about as long to end.
_PAUSE: Final = 0.001

#: The part of the time that scans may take when clients have commands ended all the time, and the seconds of scans
#: that may follow each other at once. A scan needs the interpreter, and so do all sessions.
_PART: Final = 1 / 3
_BURST: Final = 0.05

#: The same after a scan for which this process had no descriptors or memory.
_LACK_PAUSE: Final = 0.02

_T = TypeVar("_T")


@final
class _Quarry:
    """What is wanted, and what was seen of it."""

    def __init__(self, wanted: Wanted) -> None:
        self.wanted: Final = wanted
        self.killed: set[int] = set()
        self.left: set[int] = set()
        self.clean = 0  # scans in a row that have found no process
        self.over = trio.Event()

    def note(self, look: Look) -> None:
        self.killed |= look.found
        self.left = look.left(self.killed)
        self.clean = self.clean + 1 if look.is_clean(self.killed) else 0
        if self.clean >= CLEAN_SCANS:
            self.over.set()


@final
class Hunt:
    """Kills commands, any number at a time. `run` is its task.

    Args:
        mark: the mark of this agent, which ends with a dot; see `Wanted`.
    """

    def __init__(self, mark: str) -> None:
        self._mark: Final = mark
        self._quarries: list[_Quarry] = []
        self._begun = trio.Event()
        self._closed = False
        self._thread: Final = trio.CapacityLimiter(1)

    def mark_of(self, client: str, serial: int) -> str:
        """The mark of a command of a client, whose text has no dots."""
        return f"{self._mark}{client}.{serial}."

    async def run(self) -> None:
        """Scan as long as processes are wanted, for ever. If cancelled, all that are wanted are given up."""
        ration = Ration(_PART, _BURST)
        try:
            while True:
                while not self._quarries:
                    self._begun = trio.Event()
                    await self._begun.wait()
                began = trio.current_time()
                await self._scan(list(self._quarries))
                await trio.sleep(_PAUSE + ration.rest_after(trio.current_time() - began))
        finally:
            self._closed = True
            for quarry in self._quarries:
                quarry.over.set()

    async def _scan(self, quarries: list[_Quarry]) -> None:
        # A process whose memory hangs in the kernel may hang the thread that looks at it; no other waits for that.
        scan: Callable[[], list[Look]] = partial(kill_found, [quarry.wanted for quarry in quarries])
        try:
            looks = await self._look(scan)
        except OSError:  # this process has nothing left to look with; what is killed frees something
            await trio.sleep(_LACK_PAUSE)
            return
        for quarry, look in zip(quarries, looks, strict=True):
            quarry.note(look)

    async def _look(self, look: Callable[[], _T]) -> _T:
        try:
            return await in_thread("to look for processes", look, limiter=self._thread, abandon=True)
        except NoThreadError:
            # Perhaps what is to be killed has all threads. So this task looks, which takes some milliseconds.
            await trio.lowlevel.checkpoint()
            return look()

    async def kill(self, wanted: Wanted, grace: float) -> int:
        """Kill what is wanted and wait until it has ended; returns how many processes have not, within ``grace``.

        If cancelled, an unknown part was killed.
        """
        if self._closed:
            return 0
        quarry = _Quarry(wanted)
        self._quarries.append(quarry)
        self._begun.set()
        try:
            with trio.move_on_after(grace):
                await quarry.over.wait()
        finally:
            self._quarries.remove(quarry)
        return len(quarry.left)

    async def any_left(self, wanted: Wanted) -> bool:
        """Whether a wanted process lives, or that cannot be known now. If cancelled, nothing changes."""

        def look() -> bool:
            return any(is_any_left(wanted) for _ in range(CLEAN_SCANS))

        try:
            return await self._look(look)
        except OSError:
            return True

    async def kill_rest(self) -> None:
        """Kill all commands of the agent, also those whose sessions have ended, in its last moments.

        (The task has ended by then.) The caller sets a deadline.
        """
        kill = partial(kill_processes, Wanted(COMMAND_MARK, self._mark))
        try:
            await in_thread("to kill what is left", kill, abandon=True)
        except NoThreadError:
            kill()

    async def kill_client(self, client: str, grace: float) -> int:
        """`kill` all commands of a client, also those whose sessions have ended."""
        return await self.kill(Wanted(COMMAND_MARK, f"{self._mark}{client}."), grace)

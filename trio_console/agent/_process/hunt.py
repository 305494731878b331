"""The end of whole commands: of everything that they have started, also what has left their process group.

Where commands have cgroups (`Births`), what is in a command's cgroup is frozen, and then killed. So nothing that
it started is missed, and nothing starts anything new. Elsewhere, and beside that, processes are found by their
marks, their POSIX sessions and their parents: root may have moved a process out of its cgroup.

Each scan of ``/proc`` serves all commands that are to end at that moment, so a thousand cancelled commands cost
little more than one. A process on whose memory a scan hangs keeps no other command's end (`Looks`).

This module must not know sessions or frames.
"""

from __future__ import annotations

import contextlib
import threading
from functools import partial
from typing import TYPE_CHECKING, Final, final

import trio

from trio_console._processes import (
    CLEAN_SCANS,
    COMMAND_MARK,
    Elders,
    Wanted,
    is_any_left,
    kill_found,
    kill_processes,
    ticks,
)
from trio_console._trio.threads import NoThreadError, in_thread
from trio_console._trio.turns import Ration
from trio_console.agent._cgroups import Stay
from trio_console.agent._looks import HangError, Looks

if TYPE_CHECKING:
    from collections.abc import Callable

    from trio_console._processes import Look, Watch
    from trio_console.agent._cgroups import Cgroup
    from trio_console.agent._process.births import Births

__all__ = ["Hunt"]

#: Seconds between two scans. A killed process takes about as long to end.
_PAUSE: Final = 0.001

#: The part of the time that scans may take when clients have commands ended all the time, and the seconds of scans
#: that may follow each other at once. A scan needs the interpreter, and so do all sessions.
_PART: Final = 1 / 3
_BURST: Final = 0.05

#: Later than any process was started, in ticks.
_NEVER: Final = 2**63

#: The same after a scan for which this process had no descriptors or memory.
_LACK_PAUSE: Final = 0.02


@final
class _Quarry:
    """What is wanted, and what was seen of it."""

    def __init__(self, wanted: Wanted, cgroups: list[Cgroup]) -> None:
        self.wanted: Final = wanted
        self.cgroups: Final = cgroups
        self.killed: dict[int, bytes] = {}  # since when each ran
        self.left: set[int] = set()
        self.is_populated = False  # whether something is left in the cgroups
        self.clean = 0  # scans in a row that have found no process
        self.over = trio.Event()
        self._lock: Final = threading.Lock()
        self._let_go = False  # only with the lock: a scan may be under way in a thread when nobody waits any more

    def freeze(self) -> Wanted:
        """Freeze what is in the cgroups; returns all that is wanted. Blocks for a moment."""
        members = self.wanted.members
        for cgroup in self.cgroups:
            if cgroup.stay is Stay.THREAD_OUT:
                with self._lock:
                    if not self._let_go:
                        cgroup.freeze()
                members |= cgroup.members()
        if self.cgroups and all(cgroup.stay is Stay.THREAD_OUT for cgroup in self.cgroups):
            # All that the command has started is there. So what cannot be looked at elsewhere is another's.
            return self.wanted._replace(members=members, since=_NEVER)
        return self.wanted._replace(members=members)

    def thaw(self) -> None:
        """Let what could not be killed run again, and no scan freeze it any more. Blocks for a moment."""
        with self._lock:
            self._let_go = True
            for cgroup in self.cgroups:
                if cgroup.stay is Stay.THREAD_OUT:
                    with contextlib.suppress(OSError):
                        cgroup.thaw()

    def look(self) -> bool:
        """Whether something is left in the cgroups, or that cannot be known yet. Blocks for a moment."""
        return any(each.is_populated() for each in self.cgroups if each.stay is not Stay.THREAD_STUCK)

    def note(self, look: Look, *, is_populated: bool) -> None:
        look.note_killed(self.killed)
        self.left = look.left(self.killed)
        self.is_populated = is_populated
        self.clean = 0 if is_populated or not look.is_clean(self.killed) else self.clean + 1
        if self.clean >= CLEAN_SCANS:
            self.over.set()


@final
class Hunt:
    """Kills commands, any number at a time. `run` is its task.

    Args:
        mark: the mark of this agent, which ends with a dot; see `Wanted`.
        births: knows the cgroups of commands by their marks.
        report: told in words when a process cannot be looked at.
    """

    def __init__(self, mark: str, births: Births, report: Callable[[str], object]) -> None:
        self._mark: Final = mark
        self._births: Final = births
        self._quarries: list[_Quarry] = []
        self._begun = trio.Event()
        self._closed = False
        # (The mark was made just now, so what has it, or was started by what has it, is younger.)
        self._looks: Final = Looks(report, Elders(ticks()))

    def mark_of(self, client: str, serial: int) -> str:
        """The mark of a command of a client, whose text has no dots."""
        return f"{self._mark}{client}.{serial}."

    async def run(self) -> None:
        """Scan as long as processes are wanted, for ever. If cancelled, all that are wanted are given up."""
        ration = Ration(_PART, _BURST)
        self._looks.prepare()
        try:
            while True:
                while not self._quarries:
                    self._begun = trio.Event()
                    await self._begun.wait()
                began = trio.current_time()
                try:
                    could = await self._scan(list(self._quarries))
                except HangError:
                    continue  # (the next one does not hang on the same process)
                if could:
                    await trio.sleep(_PAUSE + ration.rest_after(trio.current_time() - began))
                else:  # this process has nothing left to look with; what is killed frees something
                    await trio.sleep(_LACK_PAUSE)
        finally:
            self._closed = True
            self._looks.end()
            for quarry in self._quarries:
                quarry.over.set()

    async def _scan(self, quarries: list[_Quarry]) -> bool:
        """Look once for all that is wanted; returns whether that was possible."""

        def scan(watch: Watch) -> list[tuple[Look, bool]]:
            # (All is frozen before the first memory is read: a scan that was given up freezes nothing any more.)
            looks = kill_found([quarry.freeze() for quarry in quarries], watch)
            return [(look, quarry.look()) for look, quarry in zip(looks, quarries, strict=True)]

        try:
            seen = await self._looks.look(scan)
        except OSError:
            return False
        for quarry, (look, is_populated) in zip(quarries, seen, strict=True):
            quarry.note(look, is_populated=is_populated)
        return True

    async def kill(self, wanted: Wanted, grace: float) -> int:
        """Kill what is wanted and wait until it has ended; returns how many processes have not, within ``grace``.

        It is at least 1 if that all have ended could not be confirmed. If cancelled, an unknown part was killed.
        """
        if self._closed:
            return 0
        quarry = _Quarry(wanted, self._births.of(wanted.mark))
        self._quarries.append(quarry)
        self._begun.set()
        try:
            with trio.move_on_after(grace):
                await quarry.over.wait()
        finally:
            self._quarries.remove(quarry)
            if quarry.clean < CLEAN_SCANS:
                quarry.thaw()
        return max(len(quarry.left), 0 if quarry.over.is_set() else 1)

    async def any_left(self, wanted: Wanted) -> bool:
        """Whether a wanted process lives, or that cannot be known now. If cancelled, nothing changes."""

        quarry = _Quarry(wanted, self._births.of(wanted.mark))

        def look(watch: Watch) -> bool:
            return quarry.look() or any(is_any_left(wanted, watch) for _ in range(CLEAN_SCANS))

        while True:
            try:
                return await self._looks.look(look)
            except HangError:
                continue  # (the next one does not hang on the same process)
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

"""The state that all file operations share: threads, handles, limits, and the closing of handles.

A descriptor must not be closed while a thread is in a call that uses it. So a handle that is to be closed is
*doomed*, and the last operation that has a turn with it closes it.

This module must not know messages or sessions.
"""

from __future__ import annotations

from collections import Counter
from contextlib import asynccontextmanager, suppress
from functools import partial
from typing import TYPE_CHECKING, Final, final

import trio

from trio_console._wire.ids import slots_in
from trio_console.agent._files.disk import Disk
from trio_console.agent._files.handles import SLICE, Handle, HandleTable
from trio_console.agent._files.paths import FsError

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterable

__all__ = ["FILE_PATIENCE", "Files"]

#: Seconds a file may take no data before a client without credit is refused. Longer than for a command: disks
#: do pause, and who writes a file cannot go on without the part that was refused.
FILE_PATIENCE: Final = 5.0


@final
class Files:
    """See the module's docstring, and `HandleTable` for the arguments."""

    def __init__(self, *, handles_per_client: int, has_room: Callable[[int], bool]) -> None:
        self.disk = Disk()
        self.handles = HandleTable(handles_per_client, has_room)
        #: Where cached bytes are read to. One will do: they are sent on before any other session runs. (But not
        #: one for several agents, which may live in threads of one process.)
        self.scratch = memoryview(bytearray(SLICE))
        #: Operations under way, by client.
        self.sessions: Counter[int] = Counter()
        self._doomed: list[Handle] = []
        self._work = trio.Event()

    @asynccontextmanager
    async def using(self, handle: Handle, ticket: trio.Event) -> AsyncIterator[None]:
        """Wait for the turn that ``ticket`` stands for. The handle stays open meanwhile.

        Raises:
            FsError: it was closed before.
        """
        try:
            await ticket.wait()
            if handle.doomed:
                raise FsError(f"invalid handle: {handle.number}")
            yield
        finally:
            if handle.turns.leave(ticket):
                self._bury_doomed(handle)  # the client left; those behind will find it doomed

    def discard(self, handle: Handle) -> None:
        """Nobody is to use a handle of the table any more."""
        if not handle.doomed:
            self.handles.doom(handle)
            if handle.turns.idle:
                self._bury_doomed(handle)
            # Otherwise a call may be under way; who made it is in `using`.

    def _bury_doomed(self, handle: Handle) -> None:
        """Have it closed, if that is due. No call may be under way."""
        if handle.doomed and not handle.closed:
            self._doomed.append(handle)
            self._work.set()

    def forget(self, id_start: int, id_end_exclusive: int) -> None:
        """The clients with these ids are gone: close their handles. To be called when their sessions ended."""
        slots = slots_in(id_start, id_end_exclusive)
        for handle in [handle for handle in self.handles if handle.slot in slots]:
            self.discard(handle)

    async def run(self) -> None:
        """Close what is to be closed, for as long as the agent lives; cancel it at the agent's end.

        It takes no permit for that, because calls that hang may have all permits.
        """
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self.disk.watch_for_end)
            while True:
                await self._work.wait()
                self._work = trio.Event()
                doomed, self._doomed = self._doomed, []
                await self.disk.run(partial(_close_all, doomed))

    def close(self) -> None:
        """Close all handles. To be called when no session runs any more."""
        for handle in list(self.handles):
            self.handles.doom(handle)
            self._doomed.append(handle)
        _close_all(self._doomed)


def _close_all(handles: Iterable[Handle]) -> None:
    for handle in handles:
        with suppress(OSError):  # its client is gone, so the error cannot be reported
            handle.close()

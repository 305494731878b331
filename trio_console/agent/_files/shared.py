"""The state that all file operations share: threads, handles, limits, and the closing of handles.

A descriptor must not be closed while a thread is in a call that uses it. So a handle that has to be closed is
*doomed* first. It is closed when the operation that has the turn has ended.

This module must not know messages or sessions.
"""

from __future__ import annotations

import errno
import os
from collections import Counter
from contextlib import asynccontextmanager, contextmanager, suppress
from functools import partial
from typing import TYPE_CHECKING, Final, final

import trio

from trio_console._wire.ids import slot_ids, slots_in
from trio_console.agent._files.cached import Cached
from trio_console.agent._files.disk import Disk
from trio_console.agent._files.handles import SLICE, Handle, HandleTable
from trio_console.agent._files.paths import FsError

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterable, Iterator

    from trio_console.agent._process.limits import FdHeadroom

__all__ = ["FILE_PATIENCE", "Files"]

#: Seconds in which a file may take no data before more data of a client without credit is refused. It is longer
#: than for a command, because disks pause, and because a file with a part missing is of no use.
FILE_PATIENCE: Final = 5.0

#: Descriptors that a call opens: two files that are copied, and a directory of many.
_FDS_OF_CALL: Final = 3

#: Seconds until handles that could not be closed, for lack of a thread, are closed again.
_CLOSE_PAUSE: Final = 0.1


@final
class Files:
    """See the module's docstring, and `HandleTable` for the arguments."""

    def __init__(self, *, handles_per_client: int, has_room: Callable[[int], bool], headroom: FdHeadroom) -> None:
        self.disk = Disk()
        #: What can be answered without a thread.
        self.cached = Cached()
        self.handles = HandleTable(handles_per_client, has_room, headroom)
        self._headroom = headroom
        #: The buffer for reads of cached bytes. One is enough for all sessions, because the bytes are queued
        #: before another session runs. (Several agents may run in threads of one process, so each has its own.)
        self.scratch = memoryview(bytearray(SLICE))
        #: Operations under way, by the slot of their client.
        self.sessions: Counter[int] = Counter()
        self._doomed: dict[int, list[Handle]] = {}  # by the slot of their client
        self._closing: set[int] = set()  # slots whose handles are being closed
        self._work = trio.Event()

    @contextmanager
    def descriptors(self, slot: int) -> Iterator[None]:
        """The descriptors of a call for a client, for the time of the block.

        Raises:
            OSError: EMFILE; the client may have no more.
        """
        if not self._headroom.claim(slot, _FDS_OF_CALL):
            raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))
        try:
            yield
        finally:
            self._headroom.release(slot, _FDS_OF_CALL)

    @asynccontextmanager
    async def using(self, handle: Handle, ticket: trio.Event) -> AsyncIterator[None]:
        """Wait for the turn that ``ticket`` stands for, and keep the handle open in the block.

        Raises:
            FsError: the handle was closed before the turn came.
        """
        try:
            await ticket.wait()
            if handle.doomed:
                raise FsError(f"invalid handle: {handle.number}")
            yield
        finally:
            if handle.turns.leave(ticket):
                self._bury_doomed(handle)  # the operations behind find it doomed, and fail

    def discard(self, handle: Handle) -> None:
        """Take a handle out of the table, and have it closed when no operation uses it."""
        if not handle.doomed:
            self.handles.doom(handle)
            if handle.turns.idle:
                self._bury_doomed(handle)
            # (Otherwise a call may be under way. Its operation is in `using`, which closes the handle.)

    def _bury_doomed(self, handle: Handle) -> None:
        """Have a handle closed if it is doomed. No call with it may be under way."""
        if handle.doomed and not handle.closed:
            self._doomed.setdefault(handle.slot, []).append(handle)
            self._work.set()

    def forget(self, id_start: int, id_end_exclusive: int) -> None:
        """Close the handles of clients that have gone, by their ids. Called when their sessions have ended."""
        slots = slots_in(id_start, id_end_exclusive)
        for handle in [handle for handle in self.handles if handle.slot in slots]:
            self.discard(handle)
        for slot in slots:
            if id_start <= slot_ids(slot).start and slot_ids(slot).stop <= id_end_exclusive:
                self.disk.shares.forget(slot)

    async def run(self) -> None:
        """Close doomed handles, until cancelled at the agent's end.

        It takes no permits for that, because calls that hang may have all. The handles of each slot are closed one
        after another, beside those of the others: a close may hang, too.
        """
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self.disk.watch_for_end)
            while True:
                await self._work.wait()
                self._work = trio.Event()
                for slot in self._doomed.keys() - self._closing:
                    self._closing.add(slot)
                    nursery.start_soon(self._close_doomed, slot)

    async def _close_doomed(self, slot: int) -> None:
        while doomed := self._doomed.pop(slot, None):
            try:
                await self.disk.run(partial(_close_all, doomed))
            except OSError:  # there is no thread for it
                self._doomed.setdefault(slot, []).extend(doomed)
                await trio.sleep(_CLOSE_PAUSE)
        self._closing.discard(slot)

    def close(self) -> None:
        """Close all handles, and all else. Called when no session runs any more."""
        for handle in list(self.handles):
            self.handles.doom(handle)
            self._bury_doomed(handle)
        for doomed in self._doomed.values():
            _close_all(doomed)
        self.cached.close()


def _close_all(handles: Iterable[Handle]) -> None:
    for handle in handles:
        with suppress(OSError):  # its client is gone, so the error cannot be reported
            handle.close()

"""File operations with one answer, each a call in a thread; and the base class of all file operations.

All operations run as the agent's own user, whatever the user of commands is. If an operation is cancelled, its id
is free at once, but its call in a thread goes on. The session keeps its handle until the call has returned, so the
next operation on that handle waits for the call. A file that such a call has opened is closed again.

This module must not know other kinds of sessions.
"""

from __future__ import annotations

import errno
from functools import partial
from typing import TYPE_CHECKING, final

import trio

from trio_console import _wire as wire
from trio_console._errors import ProtocolError
from trio_console._wire.ids import slot_of
from trio_console.agent._files.handles import FIFO_POLL, Contents, Handle
from trio_console.agent._files.paths import FsError, NoReaderError, failing, perform, too_large
from trio_console.agent._files.trees import Stop
from trio_console.agent._process.spawn import os_error_text
from trio_console.agent._session import PromptSession, Sender

if TYPE_CHECKING:
    from collections.abc import Callable

    from trio_console.agent._files.paths import PathOp, Shown
    from trio_console.agent._files.shared import Files

__all__ = ["FsCall", "FsClose", "FsHandleCall", "FsHandleSession", "FsOpen", "FsSession", "failure"]


def failure(exc: FsError) -> wire.FsResponse:
    return wire.FsResponse(ok=False, error=str(exc))


def _answer_with(call: Callable[[], wire.FsResponse], session_id: int) -> bytes:
    """Make a call and encode its answer. Both are done in the thread, because a listing may be long."""
    data: wire.FsResult | None = None
    try:
        answer = call()
        data = answer.data
        return wire.encode(answer, session_id)
    except FsError as exc:
        return wire.encode(failure(exc), session_id)
    except ProtocolError:
        assert isinstance(data, wire.ResultList), "only a list is longer than a frame may be"
        error = FsError(f"readdir: {too_large(len(data.value))}")
        return wire.encode(failure(error), session_id)


class FsSession(PromptSession):
    """The base class of all operations. ``_stop`` asks a long call to end early."""

    __slots__ = ("_counted", "_files", "_share", "_slot", "_stop")

    kind = ""
    accepts = wire.accepted_in("fs", data=False)

    def __init__(self, sender: Sender, session_id: int, files: Files) -> None:
        super().__init__(sender, session_id)
        self._files = files
        self._stop = Stop()
        self._counted = True
        slot = slot_of(session_id)
        assert slot is not None, "a session has the id of a client"
        self._slot = slot
        self._share = files.disk.shares.of(slot)
        files.sessions[slot] += 1

    async def run(self) -> None:
        """See `Session.run`."""
        try:
            with self._scope:
                try:
                    await self._work()
                except FsError as exc:
                    await self._answer(wire.encode(failure(exc), self.id))
                except OSError as exc:  # not of the operation, but of what it needs: a thread, or its turn
                    error = FsError(f"file operation: {os_error_text(exc.errno or errno.EIO)}")
                    await self._answer(wire.encode(failure(error), self.id))
        finally:
            self._stop.asked = True
            self._discount()

    def _discount(self) -> None:
        """Count this session no more among those of its client that wait.

        (A session inside a call need not be counted: the permits allow only a few such calls.)
        """
        if self._counted:
            self._counted = False
            self._files.sessions[self._slot] -= 1
            assert self._files.sessions[self._slot] >= 0, "an operation is counted once"

    async def _work(self) -> None:
        """Carry out the operation and send its answer; an `FsError` becomes the answer."""
        raise NotImplementedError

    async def receive(self, message: wire.Message) -> None:
        """See `Session.receive`."""
        if isinstance(message, wire.Cancel):
            self.end()

    def end(self, ending: wire.Message | None = None) -> None:
        """See `Session.end`."""
        self._stop.asked = True
        self._discount()
        super().end(ending)

    def _cut_short(self) -> wire.Message:
        return wire.FsResponse(ok=False, error="cancelled")


@final
class FsCall(FsSession):
    """An operation on paths."""

    __slots__ = ("_op", "_shown")

    def __init__(self, sender: Sender, session_id: int, files: Files, op: PathOp, shown: Shown) -> None:
        super().__init__(sender, session_id, files)
        self._op = op
        self._shown = shown

    async def _work(self) -> None:
        disk = self._files.disk
        async with disk.permit(self._share):
            with self._files.descriptors(self._slot):
                answer = await disk.run(partial(_answer_with, self._call, self.id))
            await self._answer(answer)

    def _call(self) -> wire.FsResponse:
        if isinstance(self._op, wire.OpStat):
            self._files.cached.refresh()  # so that the next one may need no thread
        return perform(self._op, self._stop, self._shown)


class FsHandleSession(FsSession):
    """The base class of operations on a handle: each takes its place in the handle's queue when it is made."""

    __slots__ = ("_handle", "_ticket")

    def __init__(self, sender: Sender, session_id: int, files: Files, handle: Handle) -> None:
        super().__init__(sender, session_id, files)
        self._handle = handle
        self._ticket = handle.turns.join()

    async def _work(self) -> None:
        async with self._files.using(self._handle, self._ticket):
            await self._use()

    async def _use(self) -> None:
        """Like `_work`, when the handle is this operation's."""
        raise NotImplementedError


@final
class FsHandleCall(FsHandleSession):
    """An operation on a handle that needs one call."""

    __slots__ = ("_call",)

    def __init__(
        self,
        sender: Sender,
        session_id: int,
        files: Files,
        handle: Handle,
        call: Callable[[], wire.FsResponse],
    ) -> None:
        super().__init__(sender, session_id, files, handle)
        self._call = call

    async def _use(self) -> None:
        disk = self._files.disk
        async with disk.permit(self._share):
            call = partial(_answer_with, self._call, self.id)
            await self._answer(await disk.run(call, self._handle.disown))


@final
class FsOpen(FsSession):
    """Opening a handle; or a file that is read and closed at once, if it is small (`open_contents`).

    The open of a FIFO waits, as open(2) does, until another process has opened the other end. It waits without a
    thread and without a permit: others do not wait for it, and it can be cancelled.
    """

    __slots__ = ("_open", "_verb")

    def __init__(
        self,
        sender: Sender,
        session_id: int,
        files: Files,
        open_: Callable[[], Handle | Contents],
        what: str,
    ) -> None:
        super().__init__(sender, session_id, files)
        self._open = open_
        self._verb = what

    async def _work(self) -> None:
        files, slot = self._files, self._slot
        files.handles.claim(slot, self._verb)
        handle: Handle | None = None
        told = False
        try:
            while handle is None:
                async with files.disk.permit(self._share):
                    opened = await files.disk.run(self._open_unless_stopped)
                    if isinstance(opened, Contents):
                        await self._tell_contents(opened)
                        return
                    handle = opened
                    if handle is not None:
                        # The handle is put into the table first, and then the client gets its number. So the
                        # handle is closed if the client leaves in between.
                        files.handles.add(slot, handle)
                        if not handle.lonely:
                            told = await self._tell(handle)
                            return
                if handle is None:
                    await trio.sleep(FIFO_POLL)
            # (The turn keeps the descriptor open while this task waits for it, see `Files.discard`.)
            async with files.using(handle, handle.turns.join()):
                await handle.wait_partner()
            told = await self._tell(handle)
        finally:
            if handle is None:
                files.handles.unclaim(slot)
            elif not told:
                files.discard(handle)

    async def _tell(self, handle: Handle) -> bool:
        data = wire.ResultHandle(handle.number)
        return await self._answer(wire.encode(wire.FsResponse(ok=True, data=data, opened=handle.opened), self.id))

    async def _tell_contents(self, contents: Contents) -> None:
        """Send the bytes of a file, and the answer behind them, both or neither."""
        data, opened = contents
        answer = wire.encode(wire.FsResponse(ok=True, opened=opened), self.id)
        await self._answer(answer, data)
        self._sender.activity.fs_bytes += len(data)

    def _open_unless_stopped(self) -> Handle | Contents | None:
        """What was opened; ``None`` if it has to be tried again."""
        try:
            opened = self._open()
        except NoReaderError:
            return None
        if self._stop.asked:
            if isinstance(opened, Handle):
                opened.close()
            raise FsError("cancelled")
        return opened


@final
class FsClose(FsHandleSession):
    """Closing a handle, after the operations before it have released it."""

    __slots__ = ()

    async def _use(self) -> None:
        files, handle = self._files, self._handle
        async with files.disk.permit(self._share):
            if not handle.doomed:
                files.handles.doom(handle)
            call = partial(_answer_with, partial(_close, handle), self.id)
            await self._answer(await files.disk.run(call, handle.disown))


def _close(handle: Handle) -> wire.FsResponse:
    with failing("close"):
        handle.close()
    return wire.FsResponse(ok=True)

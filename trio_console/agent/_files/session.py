"""Makes the session of a file request, or refuses the request.

The checks that need no file system are made here: the owner of a handle, the kind of the handle, and the number of
a client's waiting operations. The attributes of a file that the kernel has in memory are sent at once, without a
session. This module does no I/O.
"""

from __future__ import annotations

import errno
import math
from functools import partial
from typing import TYPE_CHECKING, Final, final

import msgspec

from trio_console import _wire as wire
from trio_console._wire import name_bytes
from trio_console._wire.ids import slot_of
from trio_console.agent._files.calls import FsCall, FsClose, FsHandleCall, FsOpen, FsSession, failure
from trio_console.agent._files.handles import LARGEST_OFFSET, DirHandle, FileHandle, Handle, open_contents
from trio_console.agent._files.paths import FsError, Shown, check_paths, stat_answer, unpacked_op, verb
from trio_console.agent._files.streams import FsRead, FsWrite
from trio_console.agent._inflow import Inflow
from trio_console.agent._process.spawn import os_error_text

if TYPE_CHECKING:
    from collections.abc import Callable

    from trio_console.agent._files.shared import Files
    from trio_console.agent._held import Holding
    from trio_console.agent._session import Sender

__all__ = ["FsOpener"]

#: The most operations of one client that wait. Each costs the memory of a task and of a path or two.
_SESSIONS_PER_CLIENT: Final = 4096


@final
class FsOpener:
    """Makes sessions of ``core.fs.request``.

    Args:
        files: the state that all file operations share.
        window: makes the window of a write of a client (by its number) that counts credit.
        budget: bytes of a write that are queued for a client without credit.
        patience: seconds in which a file may take no data before more data of such a client is refused.
    """

    __slots__ = ("_budget", "_files", "_patience", "_window")

    def __init__(self, files: Files, *, window: Callable[[int], Holding], budget: int, patience: float) -> None:
        self._files = files
        self._window = window
        self._budget = budget
        self._patience = patience

    def __call__(self, sender: Sender, session_id: int, message: wire.Message) -> FsSession | wire.Message | None:
        """Make a session of a request, or refuse it, or answer it at once: then the result is `None`."""
        assert isinstance(message, wire.FsRequest), "an opener gets the message that it is registered for"
        slot = slot_of(session_id)
        assert slot is not None, "a session has the id of a client"
        try:
            if self._files.sessions[slot] >= _SESSIONS_PER_CLIENT:
                raise FsError(f"{verb(message.op)}: {os_error_text(errno.EAGAIN)}")
            octets = message.octets is True
            op = unpacked_op(message.op) if octets else message.op
            check_paths(op)
            shown = Shown.OCTETS if octets else Shown.TEXT
            if isinstance(op, wire.OpStat) and self._answer_at_once(sender, session_id, slot, op, shown):
                return None
            return self._make(sender, session_id, slot, message, op, shown)
        except FsError as exc:
            return failure(exc)

    def _answer_at_once(self, sender: Sender, session_id: int, slot: int, op: wire.OpStat, shown: Shown) -> bool:
        """Answer with what the kernel has in memory; returns whether it was possible.

        It takes less time than to make a session. (And the router lets others run after a turn.) If the outbox has
        no room, the answer waits for it as all others do: in the task of a session.
        """
        path = name_bytes(op.path)
        try:
            with self._files.descriptors(slot):
                found = self._files.cached.look(path, follow=op.follow_symlink)
        except OSError:  # the client may have no more descriptors: the session has the error
            return False
        if found is None:
            return False
        frame = wire.encode(stat_answer(path, found, shown), session_id)
        if not sender.outbox.reserve_nowait(len(frame)):
            return False
        sender.commit_frame(frame, len(frame))
        return True

    def _make(
        self, sender: Sender, session_id: int, slot: int, message: wire.FsRequest, op: wire.FsOp, shown: Shown
    ) -> FsSession:
        files = self._files
        window = None if message.window is msgspec.UNSET else message.window
        match op:
            case wire.OpRead():
                return FsRead(sender, session_id, files, self._find_stream(op, slot), op, window)
            case wire.OpWrite():
                queue = partial(
                    Inflow,
                    window=None if window is None else self._window(slot),
                    budget=self._budget,
                    patience=self._patience,
                    since=-math.inf,
                )
                return FsWrite(sender, session_id, files, self._find_stream(op, slot), op, queue)
            case wire.OpOpenFile():
                most = _contents_wanted(message, op)
                open_ = partial(FileHandle, op) if most is None else partial(open_contents, op, most)
                return FsOpen(sender, session_id, files, open_, verb(op))
            case wire.OpOpenDir():
                return FsOpen(sender, session_id, files, partial(DirHandle, op), verb(op))
            case wire.OpCloseHandle():
                return FsClose(sender, session_id, files, files.handles.find(op.handle, slot, Handle))
            case wire.OpReadDir():
                directory = files.handles.find(op.handle, slot, DirHandle)
                return FsHandleCall(
                    sender, session_id, files, directory, partial(directory.read_page, op.limit, shown)
                )
            case wire.OpFStat():
                file = files.handles.find(op.handle, slot, FileHandle)
                return FsHandleCall(sender, session_id, files, file, partial(file.stat, shown))
            case wire.OpSeek():
                file = files.handles.find(op.handle, slot, FileHandle)
                return FsHandleCall(sender, session_id, files, file, partial(file.seek, op))
            case wire.OpFSetStat():
                file = files.handles.find(op.handle, slot, FileHandle)
                return FsHandleCall(sender, session_id, files, file, partial(file.set_attributes, op.attrs))
            case _:
                return FsCall(sender, session_id, files, op, shown)

    def _find_stream(self, op: wire.OpRead | wire.OpWrite, slot: int) -> FileHandle:
        handle = self._files.handles.find(op.handle, slot, FileHandle)
        reads = isinstance(op, wire.OpRead)
        if not (handle.readable if reads else handle.writable):
            raise FsError(f"handle {op.handle} is not open for {'reading' if reads else 'writing'}")
        if op.offset > LARGEST_OFFSET:
            raise FsError(f"seek: {os_error_text(errno.EINVAL)}")
        return handle


def _contents_wanted(message: wire.FsRequest, op: wire.OpOpenFile) -> int | None:
    """Bytes of the largest file whose contents may come with the answer to its open; `None` if none may."""
    options = op.options
    changes = options.write or options.append or options.create or options.truncate or options.create_new
    if message.contents is not True or changes:
        return None
    window = message.window
    return wire.LARGEST_CONTENTS if window is msgspec.UNSET else min(window, wire.LARGEST_CONTENTS)

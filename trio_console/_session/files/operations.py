"""File operations as requests, each a session of its own, and their errors.

A cancelled request leaves nothing behind in the guest. If the agent knows `core.cancel`, it is told. The session
stays open until the answer comes, which is then dropped. If the answer has a handle, the session closes the
handle.

This module knows operations and handles; it must not know of buffers, positions, or files as users see them.
"""

from __future__ import annotations

import errno
import os
import re
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Self, TypeVar, final, get_type_hints

import msgspec
import trio

from trio_console import _wire as wire
from trio_console._errors import ProtocolError, UnsupportedByPeer, again, system_error
from trio_console._session.connection import Connection, Session
from trio_console._session.files.names import need_octets
from trio_console._session.receiving import WINDOW, CreditAccount, Incoming, IncomingStream
from trio_console._session.sending import DataSender, Sending

if TYPE_CHECKING:
    from trio_console._session.confirmations import Confirmations

__all__ = ["FileSystem", "FsCall", "FsRead", "FsWrite", "guest_error"]

_R = TypeVar("_R", wire.ResultStat, wire.ResultList, wire.ResultHandle, wire.ResultPath)

#: Directory entries in one request. Even with the longest possible paths, the answer stays well below the 4 MiB of
#: a frame: an agent may send no answer at all if it does not fit.
_PAGE: Final = 256

#: `os.strerror` takes a C int, and nine digits always fit one. A longer number is not an errno.
_OS_ERROR: Final = re.compile(r"\s*\(os error (\d{1,9})\)")


def guest_error(text: str | None, *filenames: str) -> OSError:
    """The error that Python would have raised in the guest, made from the agent's text.

    Args:
        text: such as ``open: No such file or directory (os error 2)``. Only the number is relied on.
        filenames: the paths of the operation: none, one or two.
    """
    text = text or "the guest's agent gave no reason"
    found = _OS_ERROR.search(text)
    if found is None:
        return system_error(None, text, *filenames)
    number = int(found[1])
    usual = _OS_ERROR.sub("", text).rpartition(": ")[2] == os.strerror(number)
    return system_error(number, os.strerror(number) if usual else f"(in the guest: {text})", *filenames)


#: The string fields of operations: these are names, which need not be UTF-8.
_NAMES: Final = {
    cls: tuple(name for name, type_ in get_type_hints(cls).items() if type_ is str) for cls in wire.FS_OPS.values()
}

#: The operations whose results have names that were not asked for.
_NAMES_BACK: Final = (wire.OpList, wire.OpReadDir, wire.OpReadLink, wire.OpRealPath, wire.OpAccount)

#: The operations that only an agent with a feature knows.
_OWN_OPS: Final = {
    **dict.fromkeys((wire.OpTouch, wire.OpHardLink, wire.OpAccount), wire.FILES),
    wire.OpSeek: wire.SEEKS,
}


class FsCall(Session):
    """One operation: `begin` sends the request, and it is done when the answer has come.

    ``filenames`` are the paths that its error will have. A caller that may cause many operations must call
    `Connection.wait_may_open` before each.
    """

    def __init__(
        self,
        connection: Connection,
        op: wire.FsOp,
        *filenames: str,
        window: int | None = None,
        contents: bool = False,
    ) -> None:
        # (Before an id is taken.)
        _check_known(connection, op)
        self._octets: Final = _wants_octets(connection, op)
        self.id = connection.new_id()
        self._connection = connection
        self._request: Final = wire.FsRequest(
            _packed(op) if self._octets else op,
            window=wire.UNSET if window is None else window,
            octets=True if self._octets else wire.UNSET,
            contents=True if contents else wire.UNSET,
        )
        self._name = type(op).__name__.removeprefix("Op")
        self._filenames = filenames
        self._response: wire.FsResponse | None = None
        self._error: Exception | None = None
        self._abandoned = False
        agent_knows_cancel = connection.ready.flow is not wire.UNSET
        # A cancelled close would leave the handle open.
        self._can_be_called_off = agent_knows_cancel and not isinstance(op, wire.OpCloseHandle)
        self.done: Final = trio.Event()

    def begin(self) -> Self:
        """Send the request; returns self. Not in the constructor: the object is complete when the answer comes.

        Raises:
            OSError: the request is longer than a frame may be (``ENAMETOOLONG``). Nothing was sent.
            trio_console.GuestLostError: the guest is gone.
            trio_console.UnsupportedByPeer: the agent is too old for file operations.
        """
        try:
            self._connection.open(self, self._request)
        except ProtocolError as exc:
            raise system_error(errno.ENAMETOOLONG, str(exc), *self._filenames) from None
        return self

    # The connection's side

    def on_message(self, message: wire.Message) -> None:
        match message:
            case wire.FsResponse():
                self._response = message
                if self._abandoned:
                    self._drop_result()
                self._finish()
            case wire.Error():
                self._fail(
                    ProtocolError(
                        f"the guest's agent refused a {self._name} request: {message.message}",
                        kind=message.kind,
                        frame_id=self.id,
                        message_type=message.offending_type or None,
                    )
                )
            case wire.Credit():
                self._on_credit(message)
            case wire.FsData(data):
                self._on_data(data)
            case _:
                self._misplaced(wire.type_of(message).name)

    def on_error(self, error: Exception) -> None:
        self._fail(error)

    def _fail(self, error: Exception) -> None:
        if self._error is None:
            self._error = error
        self._finish()

    def _on_credit(self, credit: wire.Credit) -> None:
        """Take credit; nothing to do for an operation that sends no data."""

    def _on_data(self, _data: bytes) -> None:
        self._misplaced("core.fs.data")

    def _misplaced(self, name: str) -> None:
        # The session stays open for its answer: frames until then are dropped, and a handle is closed.
        self._abandoned = True
        self.on_error(
            ProtocolError(
                f"{name} (id {self.id}) has no place in a {self._name} request",
                kind="invalid_session",
                frame_id=self.id,
                message_type=name,
            )
        )

    def _finish(self) -> None:
        self.done.set()

    # The client's side

    def abandon(self) -> None:
        """Give the operation up. A handle that it has opened, or will open, is closed at once."""
        # The agent is told, because otherwise it would still do every operation that was given up, and count it
        # until then: a client that gives up opens faster than a busy agent answers would run out of handles.
        if self._can_be_called_off and not self._abandoned and not self.done.is_set():
            self._connection.send(wire.Cancel(), self.id)
        self._abandoned = True
        self._drop_result()

    def _drop_result(self) -> None:
        if self._response is not None and isinstance(self._response.data, wire.ResultHandle):
            drop_handle(self._connection, self._response.data.value)

    async def wait(self) -> wire.FsResponse:
        """Wait for the answer, and raise it if it is an error. If cancelled, the call is abandoned."""
        try:
            await self.done.wait()
        except BaseException:
            # The answer may have come after this task was woken to be cancelled: abandon() checks that.
            self.abandon()
            raise
        return self.result()

    def result(self) -> wire.FsResponse:
        """The answer to an operation that is done; raises its error."""
        error = self.failure()
        if error is not None:
            try:
                raise error
            finally:
                del error  # its traceback refers to this frame
        answer = self._answer()
        return _unpacked(answer) if self._octets else answer

    def failure(self) -> Exception | None:
        """The error of an operation that is done, as a new instance; `None` if it succeeded."""
        if self._error is not None:
            return again(self._error)
        answer = self._answer()
        return None if answer.ok else guest_error(answer.error, *self._filenames)

    def _answer(self) -> wire.FsResponse:
        assert self._response is not None, "an operation that is done has an answer or an error"
        return self._response


def _check_known(connection: Connection, op: wire.FsOp) -> None:
    feature = _OWN_OPS.get(type(op))
    if feature is not None and feature not in (connection.ready.features or ()):
        raise UnsupportedByPeer(
            f"the guest's agent ({connection.ready.agent_version or 'no version given'}) does not know "
            f"{type(op).__name__.removeprefix('Op')} requests, which this needs"
        )


def _wants_octets(connection: Connection, op: wire.FsOp) -> bool:
    """Whether the names of an operation are sent, and come back, as octets."""
    names = (getattr(op, name) for name in _NAMES[type(op)])
    return need_octets(names, connection) or (
        isinstance(op, _NAMES_BACK) and wire.OCTETS in (connection.ready.features or ())
    )


def _packed(op: wire.FsOp) -> wire.FsOp:
    return msgspec.structs.replace(op, **{name: wire.packed(getattr(op, name)) for name in _NAMES[type(op)]})


def _unpacked(response: wire.FsResponse) -> wire.FsResponse:
    """An answer whose names are octets, with the names."""
    data = response.data
    try:
        if isinstance(data, wire.ResultPath):
            data = wire.ResultPath(wire.unpacked(data.value))
        elif isinstance(data, wire.ResultList):
            data = wire.ResultList(
                [
                    info if info.path.isascii() else msgspec.structs.replace(info, path=wire.unpacked(info.path))
                    for info in data.value
                ]
            )
        else:
            return response
    except ValueError as exc:
        raise ProtocolError(
            f"the guest's agent sent a name that cannot be one: {exc}",
            kind="invalid_payload",
            message_type="core.fs.response",
            field="data",
        ) from None
    return msgspec.structs.replace(response, data=data)


@final
class FsRead(FsCall):
    """A read: its bytes come as a stream, which ends with the operation's error if it has one."""

    def __init__(self, connection: Connection, op: wire.OpRead, *filenames: str) -> None:
        self._credited = connection.ready.flow is not wire.UNSET
        self._incoming: Final = Incoming(
            CreditAccount(self._grant) if self._credited else None, connection.note_discarded
        )
        self.stream: Final = IncomingStream(self._incoming)
        super().__init__(connection, op, *filenames, window=WINDOW if self._credited else None)

    def _grant(self, size: int) -> None:
        self._connection.send(wire.Credit(stream="data", bytes=size), self.id)

    def _on_data(self, data: bytes) -> None:
        self._incoming.put(data)

    def on_error(self, error: Exception) -> None:
        # The guest does not know of the error: it would wait for credit, and later operations for the handle.
        self._call_off()
        super().on_error(error)

    def _call_off(self) -> None:
        if self._credited and not self.done.is_set():
            self._connection.send(wire.Cancel(), self.id)

    def call_off(self) -> None:
        """Ask the agent to read no more. The bytes that it has read still come, and then the end."""
        self._call_off()

    def _finish(self) -> None:
        super()._finish()
        self._incoming.end(self.failure())

    @property
    def congested(self) -> bool:
        return self._incoming.congested

    async def wait_relieved(self) -> None:
        await self._incoming.wait_relieved()

    def abort(self) -> None:
        """Drop all bytes that still come; an agent that knows `core.cancel` is told to stop."""
        if not self.done.is_set():
            self._incoming.end()  # before close(), so that no credit is granted for the dropped bytes
        self._call_off()
        self._incoming.close()


@final
class FsContents(FsCall):
    """Opening a file to read all of it: ``data`` is that, if the file is small, and otherwise it has a handle.

    (Without credit for more, and so without any grants: the agent sends at most `wire.LARGEST_CONTENTS` bytes.)
    """

    def __init__(self, connection: Connection, op: wire.OpOpenFile, *filenames: str) -> None:
        self.data = b""
        credited = connection.ready.flow is not wire.UNSET
        window = wire.LARGEST_CONTENTS if credited else None
        super().__init__(connection, op, *filenames, window=window, contents=True)

    def _on_data(self, data: bytes) -> None:
        if len(self.data) + len(data) > wire.LARGEST_CONTENTS:
            self._misplaced("core.fs.data")
        else:
            self.data += data


@final
class FsWrite(FsCall):
    """A write of ``op.len`` bytes, which are sent through ``sender``; after them call `end`."""

    def __init__(self, connection: Connection, op: wire.OpWrite, *filenames: str) -> None:
        flow = connection.ready.flow
        self._credited = flow is not wire.UNSET
        super().__init__(connection, op, *filenames, window=WINDOW if self._credited else None)
        window, held_back = (flow.window, flow.held_back) if flow is not wire.UNSET else (None, 0)
        self.sender: Final = DataSender(connection.outbox, wire.FsData, self.id, window, held_back)

    def _on_credit(self, credit: wire.Credit) -> None:
        self.sender.grant(credit)

    def on_error(self, error: Exception) -> None:
        self.abort()  # the guest does not know of the error, and would wait for the rest of the data
        super().on_error(error)

    def _finish(self) -> None:
        super()._finish()
        self.sender.stop()

    def end(self) -> None:
        """Send end of file, after all bytes were sent."""
        self.sender.finish(wire.FsData(b""))

    def call_off(self) -> None:
        """Ask the agent to write no more of the bytes that were sent. The answer still comes."""
        if self._credited and not self.done.is_set():
            self._connection.send(wire.Cancel(), self.id)

    def abort(self) -> None:
        """Send no more bytes. The answer still comes, and is ignored."""
        if self._credited and self.sender.state is Sending.OPEN:
            self.sender.stop()
            self._connection.send(wire.Cancel(), self.id)
        else:
            self.end()


def drop_handle(connection: Connection, handle: int) -> None:
    """Close a handle, without waiting for the answer. Does nothing if the guest is lost: it has no handles."""
    with suppress(trio.BrokenResourceError):
        FsCall(connection, wire.OpCloseHandle(handle)).begin()


@final
@dataclass(frozen=True, eq=False)
class FileSystem:
    """The guest's files: operations by path. Every method may raise the errors of `ask`.

    Attributes:
        connection: the connection to the agent.
        confirmations: how long a cancelled close waits for the guest.
    """

    connection: Connection
    confirmations: Confirmations

    async def ask(self, op: wire.FsOp, expected: type[_R], *filenames: str) -> _R:
        """Do an operation, and return the guest's answer.

        If cancelled, it may have been done or not; nothing stays open.

        Raises:
            OSError: the guest could not do it; with ``filenames``.
            trio_console.GuestLostError: the guest is gone.
            trio_console.ProtocolError: one side violated the protocol.
            trio_console.UnsupportedByPeer: the agent is too old for file operations.
        """
        return _expected(op, await self._call(op, *filenames), expected)

    async def do(self, op: wire.FsOp, *filenames: str) -> None:
        """Do an operation that has no result. Cancellation and errors are as in `ask`."""
        await self._call(op, *filenames)

    async def _call(self, op: wire.FsOp, *filenames: str) -> wire.FsResponse:
        await self.connection.wait_may_open()
        return await FsCall(self.connection, op, *filenames).begin().wait()

    def knows_files(self) -> bool:
        """Whether the agent has the feature `wire.FILES`."""
        return wire.FILES in (self.connection.ready.features or ())

    async def stat(self, path: str, *, follow: bool = True) -> os.stat_result:
        return await self.stat_of(wire.OpStat(path, follow), path)

    async def stat_of(self, op: wire.OpStat | wire.OpFStat, path: str) -> os.stat_result:
        """The answer to one of the two requests for a file's information."""
        response = await self._call(op, path)
        return _stat_result(_expected(op, response, wire.ResultStat).value, response.more)

    async def seek(self, op: wire.OpSeek, path: str) -> int:
        """The offset of the data or hole that was asked for."""
        position = (await self._call(op, path)).position
        if position is wire.UNSET:
            raise ProtocolError(
                "the guest's agent answered Seek without a position",
                kind="invalid_payload",
                message_type="core.fs.response",
                field="position",
            )
        return position

    async def open(self, path: str, options: wire.OpenOptions) -> tuple[int, wire.Opened | wire.UnsetType]:
        """Open a file; returns its handle, which the caller must close in any case, and what it is, if told."""
        op = wire.OpOpenFile(path, options)
        response = await self._call(op, path)
        return _expected(op, response, wire.ResultHandle).value, response.opened

    async def open_whole(self, path: str) -> bytes | tuple[int, wire.Opened | wire.UnsetType]:
        """Open a file to read all of it: returns its bytes, if it is small; or else what `open` returns."""
        op = wire.OpOpenFile(path, _TO_READ)
        if wire.CONTENTS not in (self.connection.ready.features or ()):
            return await self.open(path, op.options)
        await self.connection.wait_may_open()
        call = FsContents(self.connection, op, path).begin()
        response = await call.wait()
        if response.data is None:
            return call.data
        return _expected(op, response, wire.ResultHandle).value, response.opened

    async def list_entries(self, path: str) -> list[tuple[str, str]]:
        """The names in a directory with their kinds, such as ``file`` or ``symlink``, in no order."""
        handle = (await self.ask(wire.OpOpenDir(path), wire.ResultHandle, path)).value
        entries: list[tuple[str, str]] = []
        try:
            while True:
                page = await self.ask(wire.OpReadDir(handle, _PAGE), wire.ResultList, path)
                if not page.value:
                    return entries
                entries += [(entry.path.rpartition("/")[2], entry.kind) for entry in page.value]
        finally:
            drop_handle(self.connection, handle)


def _expected(op: wire.FsOp, response: wire.FsResponse, expected: type[_R]) -> _R:
    if not isinstance(response.data, expected):
        raise ProtocolError(
            f"the guest's agent answered {type(op).__name__.removeprefix('Op')} with {response.data!r}",
            kind="invalid_payload",
            message_type="core.fs.response",
            field="data",
        )
    return response.data


_BILLION: Final = 1_000_000_000

_TO_READ: Final = wire.OpenOptions(
    read=True, write=False, append=False, create=False, truncate=False, create_new=False
)


def _stat_result(info: wire.EntryInfo, more: wire.StatMore | wire.UnsetType) -> os.stat_result:
    """The guest's information on a file as Python has it. Fields that the guest does not send are 0."""
    if more is wire.UNSET:
        more = wire.StatMore(
            dev=0,
            ino=0,
            nlink=0,
            rdev=0,
            blksize=0,
            blocks=0,
            atime_ns=(info.atime or 0) * _BILLION,
            mtime_ns=(info.mtime or 0) * _BILLION,
            ctime_ns=0,
        )
    times = more.atime_ns, more.mtime_ns, more.ctime_ns
    return os.stat_result(
        (
            *(info.mode, more.ino, more.dev, more.nlink, info.uid, info.gid, info.size),
            *(ns // _BILLION for ns in times),
        ),
        {
            **{f"st_{name}time": ns / _BILLION for name, ns in zip("amc", times, strict=True)},
            **{f"st_{name}time_ns": ns for name, ns in zip("amc", times, strict=True)},
            "st_blksize": more.blksize,
            "st_blocks": more.blocks,
            "st_rdev": more.rdev,
        },
    )

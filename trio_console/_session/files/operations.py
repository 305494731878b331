"""File operations as requests: one session each, and the errors they end with.

A cancelled request leaves nothing behind in the guest. An agent that can be told is told. The session stays
until the answer comes, which then finds nobody; an answer that carries a handle is answered itself, by whoever
gets it, with the handle's close.

This module knows operations and handles; it must not know of buffers, positions, or files as users see them.
"""

from __future__ import annotations

import errno
import os
import re
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Self, TypeVar, final

import trio

from trio_console import _wire as wire
from trio_console._errors import ProtocolError, again
from trio_console._session.connection import Connection, Session
from trio_console._session.receiving import WINDOW, CreditAccount, Incoming, IncomingStream
from trio_console._session.sending import DataSender, Sending

if TYPE_CHECKING:
    from trio_console._session.confirmations import Confirmations

__all__ = ["FileSystem", "FsCall", "FsRead", "FsWrite", "guest_error"]

_R = TypeVar("_R", wire.ResultStat, wire.ResultList, wire.ResultHandle, wire.ResultPath)

#: Directory entries asked for at a time. With the longest paths there are, an answer stays well below the 4 MiB
#: of a frame: an agent may leave one unanswered that does not fit.
_PAGE: Final = 256

#: Nine digits are always an int of C's, which is all that `os.strerror` takes; a longer number is no errno.
_OS_ERROR: Final = re.compile(r"\s*\(os error (\d{1,9})\)")


def guest_error(text: str | None, *filenames: str) -> OSError:
    """The error Python would have raised in the guest, from what the agent says of it.

    Args:
        text: such as ``open: No such file or directory (os error 2)``. The number is all that is relied on.
        filenames: the paths concerned: none, one or two.
    """
    text = text or "the guest's agent gave no reason"
    found = _OS_ERROR.search(text)
    if found is None:
        return _os_error(None, text, filenames)
    number = int(found[1])
    reason = os.strerror(number)
    if _OS_ERROR.sub("", text).rpartition(": ")[2] != reason:
        reason = f"{reason} (guest: {text})"
    return _os_error(number, reason, filenames)


def _os_error(number: int | None, reason: str, filenames: tuple[str, ...]) -> OSError:
    if len(filenames) == 2:
        return OSError(number, reason, filenames[0], None, filenames[1])
    return OSError(number, reason, *filenames)


class FsCall(Session):
    """One operation: sent by `begin`, done when answered. ``filenames`` are those its error will have.

    Who may cause many of them waits with `Connection.wait_may_open` before.
    """

    def __init__(self, connection: Connection, op: wire.FsOp, *filenames: str, window: int | None = None) -> None:
        self.id = connection.new_id()
        self._connection = connection
        self._request: Final = wire.FsRequest(op, window=wire.UNSET if window is None else window)
        self._name = type(op).__name__.removeprefix("Op")
        self._filenames = filenames
        self._response: wire.FsResponse | None = None
        self._error: Exception | None = None
        self._abandoned = False
        agent_knows_cancel = connection.ready.flow is not wire.UNSET
        # A close that is called off would leave the handle open.
        self._can_be_called_off = agent_knows_cancel and not isinstance(op, wire.OpCloseHandle)
        self.done: Final = trio.Event()

    def begin(self) -> Self:
        """Send it, and return it. Apart from the constructor: the guest hears of whole sessions only.

        Raises:
            OSError: the request is longer than a frame may be (``ENAMETOOLONG``); nothing was sent.
            trio_console.GuestLostError: the guest is gone.
            trio_console.UnsupportedByPeer: the agent is older than file operations.
        """
        try:
            self._connection.open(self, self._request)
        except ProtocolError as exc:
            reason = f"{os.strerror(errno.ENAMETOOLONG)} ({exc})"
            raise _os_error(errno.ENAMETOOLONG, reason, self._filenames) from None
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
        """Nothing to do for who sends no data."""

    def _on_data(self, _data: bytes) -> None:
        self._misplaced("core.fs.data")

    def _misplaced(self, name: str) -> None:
        # The session still waits for its end: what comes until then is dropped, and a handle closed.
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
        """Nobody waits any more. A handle that was, or will be, opened is closed at once."""
        # An agent that was not told would do all that was given up, and meanwhile count it: a client that gives
        # up opens faster than a busy agent answers them would run out of handles, with none open.
        if self._can_be_called_off and not self._abandoned and not self.done.is_set():
            self._connection.send(wire.Cancel(), self.id)
        self._abandoned = True
        self._drop_result()

    def _drop_result(self) -> None:
        if self._response is not None and isinstance(self._response.data, wire.ResultHandle):
            drop_handle(self._connection, self._response.data.value)

    async def wait(self) -> wire.FsResult | None:
        """Wait for the answer, and raise it if it is an error. If cancelled, the call is abandoned."""
        try:
            await self.done.wait()
        except BaseException:
            # The answer may have come since this task was woken to be cancelled: abandon() looks.
            self.abandon()
            raise
        return self.result()

    def result(self) -> wire.FsResult | None:
        """The outcome of a call that is done."""
        error = self.failure()
        if error is not None:
            raise error
        assert self._response is not None
        return self._response.data

    def failure(self) -> Exception | None:
        """A new instance of the error of a call that is done."""
        if self._error is not None:
            return again(self._error)
        assert self._response is not None
        return None if self._response.ok else guest_error(self._response.error, *self._filenames)


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
        # Ours is the only side that knows: the guest would wait for credit, and others for the handle.
        self._call_off()
        super().on_error(error)

    def _call_off(self) -> None:
        if self._credited and not self.done.is_set():
            self._connection.send(wire.Cancel(), self.id)

    def _finish(self) -> None:
        super()._finish()
        self._incoming.end(self.failure())

    @property
    def congested(self) -> bool:
        return self._incoming.congested

    async def wait_relieved(self) -> None:
        await self._incoming.wait_relieved()

    def abort(self) -> None:
        """Nobody reads on: what still comes is dropped. Told to an agent that can be told."""
        if not self.done.is_set():
            self._incoming.end()  # first, so that no credit is given for what close() drops
        self._call_off()
        self._incoming.close()


@final
class FsWrite(FsCall):
    """A write of ``op.len`` bytes, which go through ``sender``; `end` follows them."""

    def __init__(self, connection: Connection, op: wire.OpWrite, *filenames: str) -> None:
        flow = connection.ready.flow
        self._credited = flow is not wire.UNSET
        super().__init__(connection, op, *filenames, window=WINDOW if self._credited else None)
        window = flow.window if flow is not wire.UNSET else None
        self.sender: Final = DataSender(connection.outbox, wire.FsData, self.id, window)

    def _on_credit(self, credit: wire.Credit) -> None:
        self.sender.grant(credit.bytes)

    def on_error(self, error: Exception) -> None:
        self.abort()  # ours is the only side that knows: the guest would wait for the rest of the data
        super().on_error(error)

    def _finish(self) -> None:
        super()._finish()
        self.sender.stop()

    def end(self) -> None:
        """Everything was sent."""
        self.sender.finish(wire.FsData(b""))

    def abort(self) -> None:
        """Send no more. The answer still comes, and what it says does not matter."""
        if self._credited and self.sender.state is Sending.OPEN:
            self.sender.stop()
            self._connection.send(wire.Cancel(), self.id)
        else:
            self.end()


def drop_handle(connection: Connection, handle: int) -> None:
    """Close a handle without waiting for that. A lost guest has no handles."""
    with suppress(trio.BrokenResourceError):
        FsCall(connection, wire.OpCloseHandle(handle)).begin()


@final
@dataclass(frozen=True, eq=False)
class FileSystem:
    """The guest's files: operations by path. Every method may raise what `ask` raises.

    Attributes:
        connection: to the agent.
        confirmations: how long to wait for the guest where a cancelled caller has to be let go.
    """

    connection: Connection
    confirmations: Confirmations

    async def ask(self, op: wire.FsOp, expected: type[_R], *filenames: str) -> _R:
        """Do something, and return what the guest answers.

        If cancelled, it may have been done or not; nothing stays open.

        Raises:
            OSError: the guest could not do it; with ``filenames``.
            trio_console.GuestLostError: the guest is gone.
            trio_console.ProtocolError: a side broke the protocol.
            trio_console.UnsupportedByPeer: the agent is older than file operations.
        """
        result = await self._call(op, *filenames)
        if not isinstance(result, expected):
            raise ProtocolError(
                f"the guest's agent answered {type(op).__name__.removeprefix('Op')} with {result!r}",
                kind="invalid_payload",
                message_type="core.fs.response",
                field="data",
            )
        return result

    async def do(self, op: wire.FsOp, *filenames: str) -> None:
        """Do something that has no result. Otherwise as `ask`."""
        await self._call(op, *filenames)

    async def _call(self, op: wire.FsOp, *filenames: str) -> wire.FsResult | None:
        await self.connection.wait_may_open()
        return await FsCall(self.connection, op, *filenames).begin().wait()

    async def stat(self, path: str, *, follow: bool = True) -> os.stat_result:
        answer = await self.ask(wire.OpStat(path, follow), wire.ResultStat, path)
        return stat_result(answer.value)

    async def open(self, path: str, options: wire.OpenOptions) -> int:
        """Open a file; returns its handle. The caller closes it, come what may."""
        return (await self.ask(wire.OpOpenFile(path, options), wire.ResultHandle, path)).value

    async def list_names(self, path: str) -> list[str]:
        """The names in a directory, in no order."""
        handle = (await self.ask(wire.OpOpenDir(path), wire.ResultHandle, path)).value
        names: list[str] = []
        try:
            while True:
                page = await self.ask(wire.OpReadDir(handle, _PAGE), wire.ResultList, path)
                if not page.value:
                    return names
                names += [entry.path.rpartition("/")[2] for entry in page.value]
        finally:
            drop_handle(self.connection, handle)


def stat_result(info: wire.EntryInfo) -> os.stat_result:
    """What the guest tells of a file, where Python keeps such things. What it does not tell is 0."""
    atime, mtime = info.atime or 0, info.mtime or 0
    billion = 1_000_000_000
    return os.stat_result(
        (info.mode, 0, 0, 0, info.uid, info.gid, info.size, atime, mtime, 0),
        {
            "st_atime": float(atime),
            "st_mtime": float(mtime),
            "st_ctime": 0.0,
            "st_atime_ns": atime * billion,
            "st_mtime_ns": mtime * billion,
            "st_ctime_ns": 0,
            "st_blksize": 0,
            "st_blocks": 0,
            "st_rdev": 0,
        },
    )

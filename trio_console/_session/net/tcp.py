"""Connections that the guest makes, as streams.

The guest answers the request to connect, and answers nothing after this side's close. So the session is forgotten
at the close, and later frames of the guest for it are dropped.
"""

from __future__ import annotations

import enum
import errno
import re
import socket
import warnings
from typing import Final, final

import trio

from trio_console import _wire as wire
from trio_console._buffers import flat_view
from trio_console._errors import ProtocolError, again, system_error
from trio_console._session.connection import Connection, Session
from trio_console._session.owner import Owner, checks_owner, owned
from trio_console._session.receiving import WINDOW, CreditAccount, Incoming, IncomingStream, Receiving, broken
from trio_console._session.sending import DataSender, Sending
from trio_console._session.statistics import SessionStatistics
from trio_console._states import Steps
from trio_console._trio.conflict import Conflict
from trio_console._trio.lost import GuestLostError

__all__ = ["GuestTcpStream", "open_guest_tcp_stream"]

#: What resolvers say, with the numbers that Python gives these errors. (Python has no call for that.)
_RESOLVER_ERRORS: Final = {
    "Name or service not known": socket.EAI_NONAME,
    "No address associated with hostname": socket.EAI_NODATA,
    "Temporary failure in name resolution": socket.EAI_AGAIN,
    "Non-recoverable failure in name resolution": socket.EAI_FAIL,
}

_LOOKUP: Final = re.compile(r"failed to lookup address information: (.*)\Z", re.DOTALL)

#: `os.strerror` takes a C int, and nine digits always fit one. A longer number is not an errno.
_OS_ERROR: Final = re.compile(r"\s*\(os error (\d{1,9})\)")


def _tcp_error(text: str) -> OSError:
    """The `OSError` for the agent's text, such as ``connect H:P: ... (os error 111)``."""
    found = _OS_ERROR.search(text)
    if found is not None:
        return system_error(int(found[1]), f"(in the guest: {text})")
    lookup = _LOOKUP.search(text)
    if lookup is not None:
        error = socket.gaierror(_RESOLVER_ERRORS.get(lookup[1], socket.EAI_FAIL), lookup[1])
        error.add_note(f"(in the guest: {text})")
        return error
    if text.endswith("timed out"):
        return system_error(errno.ETIMEDOUT, f"(in the guest: {text})")
    return OSError(text)


class TcpState(enum.Enum):
    """The state of a connection, as this side knows it."""

    CONNECTING = enum.auto()
    CONNECTED = enum.auto()
    CALLED_OFF = enum.auto()  # its task has given it up; the guest was told, and will still answer
    FAILED = enum.auto()  # there is an error, and no more frames come
    CLOSED = enum.auto()  # closed by this side; no more frames come or are sent


TCP: Final = Steps(
    {
        TcpState.CONNECTING: {TcpState.CONNECTED, TcpState.CALLED_OFF, TcpState.FAILED, TcpState.CLOSED},
        # (The answer may come after the task was cancelled, and before it runs.)
        TcpState.CONNECTED: {TcpState.CALLED_OFF, TcpState.FAILED, TcpState.CLOSED},
        TcpState.CALLED_OFF: {TcpState.FAILED},
        TcpState.FAILED: {TcpState.CLOSED},
        TcpState.CLOSED: set(),
    }
)


@final
class _TcpSession(Session):
    """The frames of one TCP connection."""

    def __init__(self, connection: Connection, host: str, port: int) -> None:
        self.connection: Final = connection
        self.id = connection.new_id()
        self.address: Final = (host, port)
        flow = connection.ready.flow
        self.credited: Final = flow is not wire.UNSET
        self.state = TCP.first
        self.connected: Final = trio.Event()  # or failed
        self.error: Exception | None = None
        self.broken: Exception | None = (
            None  # why no more bytes are taken; the session goes on until they were read
        )
        self.incoming: Final = Incoming(
            CreditAccount(self._grant) if self.credited else None, connection.note_discarded
        )
        window, held_back = (flow.window, flow.held_back) if flow is not wire.UNSET else (None, 0)
        self.sender: Final = DataSender(connection.outbox, wire.TcpData, self.id, window, held_back)

    def open(self) -> None:
        """Request the connection. Not in the constructor: the object is complete when the first frame comes."""
        breaks = wire.TCP_BREAKS in (self.connection.ready.features or ())
        request = wire.TcpConnect(
            *self.address, WINDOW if self.credited else wire.UNSET, breaks=breaks or wire.UNSET
        )
        self.connection.open(self, request)

    def statistics(self) -> SessionStatistics:
        host, port = self.address
        return SessionStatistics(
            kind="connection",
            name=f"{host}:{port}",
            streams=(self.sender.statistics("sent"), self.incoming.statistics("received")),
        )

    def _grant(self, size: int) -> None:
        self.connection.send(wire.Credit(stream="data", bytes=size), self.id)

    def on_message(self, message: wire.Message) -> None:
        match message:
            case wire.TcpData(data) if self.incoming.state is not Receiving.ENDED:
                self.incoming.put(data)
            case wire.Credit():
                self.sender.grant(message)
            case wire.TcpConnected():
                if self.state is TcpState.CONNECTING:
                    self.state = TCP.take(self.state, TcpState.CONNECTED)
                self.connected.set()
            case wire.TcpEof():
                self.incoming.end()
            case wire.TcpBroken(text):
                self.broken = _tcp_error(text)
                self.sender.stop()
            case wire.TcpFailed(text):
                self._end(_tcp_error(text))
            case wire.TcpClosed():
                self._end(OSError("the guest's agent has dropped the connection"))
            case wire.Error():
                self.connection.send(wire.TcpClose(), self.id)  # some agents refuse the frame and keep the session
                self._end(
                    ProtocolError(
                        f"the guest's agent refused a frame of a connection: {message.message}",
                        kind=message.kind,
                        frame_id=self.id,
                        message_type=message.offending_type or None,
                    )
                )
            case _:
                name = wire.type_of(message).name
                self.connection.send(wire.TcpClose(), self.id)
                self._end(
                    ProtocolError(
                        f"{name} (id {self.id}) has no place in a connection",
                        kind="invalid_session",
                        frame_id=self.id,
                        message_type=name,
                    )
                )

    def on_error(self, error: Exception) -> None:
        if not isinstance(error, GuestLostError):
            # The guest does not know of the error, and would keep the connection for ever.
            self.connection.send(wire.TcpClose(), self.id)
        self._end(error)

    def _end(self, error: Exception) -> None:
        if not self.ended:  # the first reason stays
            self.state = TCP.take(self.state, TcpState.FAILED)
            self.error = error
        self.sender.stop()
        # The reader gets the error after the bytes that came; if their end came before, it gets no error.
        self.incoming.end(broken(error))
        self.connected.set()

    @property
    def ended(self) -> bool:
        """Whether the connection has failed or was closed."""
        return self.state in (TcpState.FAILED, TcpState.CLOSED)

    @property
    def congested(self) -> bool:
        return self.incoming.congested

    async def wait_relieved(self) -> None:
        await self.incoming.wait_relieved()

    def leave(self) -> None:
        """Close the connection behind the bytes that were sent, as the end of a program does.

        (This side goes on until the guest is gone, and then gets that error.)
        """
        if not self.ended:
            self.connection.say_behind(wire.TcpClose(), self.id)

    def cancel(self) -> None:
        """Give up the connection: the task that has requested it was cancelled."""
        if self.ended:
            return
        self.incoming.end()
        self.incoming.close()
        if self.credited:
            self.state = TCP.take(self.state, TcpState.CALLED_OFF)
            self.connection.send(wire.Cancel(), self.id)
        else:
            self.close()

    def close(self) -> None:
        """Close the connection behind the bytes that were sent. A second call does nothing."""
        if self.state is not TcpState.CLOSED:
            heard = not self.ended
            self.state = TCP.take(self.state, TcpState.CLOSED)
            self.incoming.close()
            self.incoming.end()
            self.sender.stop()
            if heard:
                self.connection.send_behind(wire.TcpClose(), self.id)


@final
@owned()
class GuestTcpStream(trio.abc.HalfCloseableStream):
    """A TCP connection that the guest made. `Guest.open_tcp_stream` makes them.

    It is used like a `trio.SocketStream`, but has no socket. Both directions are bounded: with an agent that
    counts credit, a connection that is not read pauses its own peer, and no other session. One that is
    garbage-collected without having been closed warns (`ResourceWarning`), and is closed soon.
    """

    def __init__(self, session: _TcpSession) -> None:
        self._owner: Final = Owner()
        self._session = session
        self._receiving = IncomingStream(session.incoming)
        self._conflict = Conflict("another task is currently sending data on this connection")

    def __repr__(self) -> str:
        host, port = self._session.address
        return f"<trio_console.GuestTcpStream to {host}:{port}>"

    def __del__(self) -> None:
        # (This may run in any thread. The session outlives this object, and is closed by the run.)
        session: _TcpSession | None = getattr(self, "_session", None)
        if session is not None and not session.ended:
            self._owner.call(session.close)
            warnings.warn(f"unclosed {self!r}", ResourceWarning, stacklevel=2, source=self)

    def _check(self) -> None:
        """Raise why nothing can be sent, if so."""
        if self._session.state is TcpState.CLOSED:
            raise trio.ClosedResourceError("this connection was closed")
        error = self._session.error or self._session.broken
        if error is not None:
            if isinstance(error, trio.BrokenResourceError):
                raise again(error)
            raise trio.BrokenResourceError(str(error)) from error

    @checks_owner
    async def send_all(self, data: bytes | bytearray | memoryview) -> None:
        """Send all of ``data``, and wait while the other end takes no more.

        If cancelled, an unknown part may have been sent.

        Raises:
            trio.BrokenResourceError: the connection broke, or the other end was closed.
            trio_console.GuestLostError: the guest is gone.
            trio.ClosedResourceError: this stream was closed, or `send_eof` was called.
            trio.BusyResourceError: another task is sending.
        """
        self._owner.check()
        with self._conflict:
            if self._session.sender.state is Sending.FINISHED:
                raise trio.ClosedResourceError("can't send data after sending EOF")
            self._check()
            await trio.lowlevel.checkpoint()
            with flat_view(data) as view:
                sent = await self._session.sender.send(view)
            self._check()
            assert sent, "a sender is stopped by closing, or by an error"

    async def wait_send_all_might_not_block(self) -> None:
        """Wait until some bytes may be sent, or until sending would fail at once. If cancelled, nothing changes.

        Raises:
            trio.ClosedResourceError, trio.BrokenResourceError, trio.BusyResourceError: as in `send_all`.
        """
        with self._conflict:
            self._check()
            await trio.lowlevel.checkpoint()
            await self._session.sender.wait_credit(1)
            self._check()

    async def send_eof(self) -> None:
        """Tell the other end that no more bytes come, behind those that were sent. Never blocks.

        A second call does nothing. If cancelled, the other end was not told.

        Raises:
            trio.ClosedResourceError, trio.BrokenResourceError, trio.BusyResourceError: as in `send_all`.
        """
        with self._conflict:
            self._check()
            await trio.lowlevel.checkpoint()
            self._check()
            self._session.sender.finish(wire.TcpEof())

    @checks_owner
    async def receive_some(self, max_bytes: int | None = None) -> bytes:
        """Receive at least one byte, and wait for it; ``b""`` once the other end has sent end of file.

        If cancelled, nothing was taken. Bytes that have arrived are returned before an error is raised.

        Args:
            max_bytes: the most bytes to return; `None`, the default, for 128 KiB.

        Raises:
            trio.BrokenResourceError: the connection broke, such as by a reset.
            trio_console.GuestLostError: the guest is gone.
            trio.ClosedResourceError: this stream was closed.
            trio.BusyResourceError: another task is receiving.
            ValueError: ``max_bytes`` is below 1.
        """
        self._owner.check()
        return await self._receiving.receive_some(max_bytes)

    async def aclose(self) -> None:
        """Close both directions. The bytes sent before still go out. Never blocks. A second call does nothing.

        If cancelled, it is closed all the same.
        """
        self._session.close()
        await trio.lowlevel.checkpoint()


async def open_guest_tcp_stream(connection: Connection, host: str | bytes, port: int) -> GuestTcpStream:
    """See `Guest.open_tcp_stream`."""
    if isinstance(host, bytes):
        host = host.decode()
    if not isinstance(host, str):
        raise ValueError(f"host must be str or bytes, not {host!r:.80}")  # noqa: TRY004  (as trio's)
    if not host or "\0" in host:
        raise ValueError(f"host must be a name or an address, not {host!r:.80}")
    if isinstance(port, bool) or not isinstance(port, int):
        raise TypeError(f"port must be int, not {type(port).__name__}")
    if not 0 <= port <= 65535:
        raise ValueError(f"port must be between 0 and 65535, not {port}")
    await connection.wait_may_open()
    session = _TcpSession(connection, host, port)
    session.open()
    try:
        await session.connected.wait()
    except BaseException:
        session.cancel()
        raise
    if session.error is not None:
        raise again(session.error)
    return GuestTcpStream(session)

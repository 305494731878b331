"""Connections the guest makes, as streams.

The guest answers the opening message, and nothing after the client's close; so the session is forgotten with
it, and whatever the guest still says of it finds nobody.
"""

from __future__ import annotations

import enum
import errno
import os
import re
from typing import Final, final

import trio

from trio_console import _wire as wire
from trio_console._buffers import flat_view
from trio_console._errors import ProtocolError, again
from trio_console._session.connection import Connection, Session
from trio_console._session.owner import Owner, checks_owner, owned
from trio_console._session.receiving import WINDOW, CreditAccount, Incoming, IncomingStream, Receiving, broken
from trio_console._session.sending import DataSender, Sending
from trio_console._states import Steps
from trio_console._trio.conflict import Conflict
from trio_console._trio.lost import GuestLostError

__all__ = ["GuestTcpStream", "open_guest_tcp_stream"]

#: Nine digits are always an int of C's, which is all that `os.strerror` takes; a longer number is no errno.
_OS_ERROR: Final = re.compile(r"\s*\(os error (\d{1,9})\)")


def _tcp_error(text: str) -> OSError:
    """The `OSError` for what the agent says of a connection, such as ``connect H:P: ... (os error 111)``."""
    found = _OS_ERROR.search(text)
    if found is not None:
        return OSError(int(found[1]), _OS_ERROR.sub("", text) or os.strerror(int(found[1])))
    if text.endswith("timed out"):
        return OSError(errno.ETIMEDOUT, text)
    return OSError(text)


class TcpState(enum.Enum):
    """How far a connection is, as this side knows."""

    CONNECTING = enum.auto()
    CONNECTED = enum.auto()
    CALLED_OFF = enum.auto()  # nobody waits for it any more; the guest was told, and will still answer
    FAILED = enum.auto()  # by what the error says; nothing more will be heard of it
    CLOSED = enum.auto()  # by this side; nothing more will be heard of it, or said


TCP: Final = Steps(
    {
        TcpState.CONNECTING: {TcpState.CONNECTED, TcpState.CALLED_OFF, TcpState.FAILED, TcpState.CLOSED},
        TcpState.CONNECTED: {TcpState.FAILED, TcpState.CLOSED},
        TcpState.CALLED_OFF: {TcpState.FAILED},
        TcpState.FAILED: {TcpState.CLOSED},
        TcpState.CLOSED: set(),
    }
)


@final
class _TcpSession(Session):
    """What the connection's reader and the stream share."""

    def __init__(self, connection: Connection, host: str, port: int) -> None:
        self.connection: Final = connection
        self.id = connection.new_id()
        self._address: Final = (host, port)
        flow = connection.ready.flow
        self.credited: Final = flow is not wire.UNSET
        self.state = TCP.first
        self.connected: Final = trio.Event()  # or failed
        self.error: Exception | None = None
        self.incoming: Final = Incoming(
            CreditAccount(self._grant) if self.credited else None, connection.note_discarded
        )
        window = flow.window if flow is not wire.UNSET else None
        self.sender: Final = DataSender(connection.outbox, wire.TcpData, self.id, window)

    def open(self) -> None:
        """Ask the guest to connect. Apart from the constructor: the guest hears of whole sessions only."""
        request = wire.TcpConnect(*self._address, window=WINDOW if self.credited else wire.UNSET)
        self.connection.open(self, request)

    def _grant(self, size: int) -> None:
        self.connection.send(wire.Credit(stream="data", bytes=size), self.id)

    def on_message(self, message: wire.Message) -> None:
        match message:
            case wire.TcpData(data) if self.incoming.state is not Receiving.ENDED:
                self.incoming.put(data)
            case wire.Credit():
                self.sender.grant(message.bytes)
            case wire.TcpConnected():
                if self.state is TcpState.CONNECTING:
                    self.state = TCP.take(self.state, TcpState.CONNECTED)
                self.connected.set()
            case wire.TcpEof():
                self.incoming.end()
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
                self.connection.forget(self.id)

    def on_error(self, error: Exception) -> None:
        if not isinstance(error, GuestLostError):
            # Ours is the only side that knows: the guest would keep the connection for ever.
            self.connection.send(wire.TcpClose(), self.id)
        self._end(error)

    def _end(self, error: Exception) -> None:
        if not self.ended:  # the first reason stays
            self.state = TCP.take(self.state, TcpState.FAILED)
            self.error = error
        self.sender.stop()
        # After the bytes that came, and not at all if their end came already.
        self.incoming.end(broken(error))
        self.connected.set()

    @property
    def ended(self) -> bool:
        """Whether nothing more will be heard of it."""
        return self.state in (TcpState.FAILED, TcpState.CLOSED)

    @property
    def congested(self) -> bool:
        return self.incoming.congested

    async def wait_relieved(self) -> None:
        await self.incoming.wait_relieved()

    def cancel(self) -> None:
        """Give up before the connection was made."""
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
        """Say that we are done, behind everything that was sent. Idempotent."""
        if self.state is not TcpState.CLOSED:
            heard = not self.ended
            self.state = TCP.take(self.state, TcpState.CLOSED)
            self.incoming.close()
            self.sender.stop()
            if heard:
                self.sender.follow(wire.TcpClose())
                self.connection.forget(self.id)


@final
@owned()
class GuestTcpStream(trio.abc.HalfCloseableStream):
    """A TCP connection that the guest made. `Guest.open_tcp_stream` makes them.

    As a `trio.SocketStream`, without the socket. Both directions are bounded: with an agent that counts credit
    a connection nobody reads holds up its own peer, and nobody else.
    """

    def __init__(self, session: _TcpSession) -> None:
        self._owner: Final = Owner()
        self._session = session
        self._receiving = IncomingStream(session.incoming)
        self._conflict = Conflict("another task is currently sending data on this connection")

    def _check(self) -> None:
        """Raise why nothing can be sent, if so."""
        if self._session.state is TcpState.CLOSED:
            raise trio.ClosedResourceError("this connection was closed")
        error = self._session.error
        if error is not None:
            if isinstance(error, trio.BrokenResourceError):
                raise again(error)
            raise trio.BrokenResourceError(str(error)) from error

    @checks_owner
    async def send_all(self, data: bytes | bytearray | memoryview) -> None:
        """Send all of ``data``, waiting while the other end takes no more.

        If cancelled, an unknown part may have been sent.

        Raises:
            trio.BrokenResourceError: the connection broke, or the other end is closed.
            trio_console.GuestLostError: the guest is gone.
            trio.ClosedResourceError: this stream was closed, or `send_eof` called.
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
        """Wait until some bytes may be sent, or sending would fail at once. Errors as in `send_all`."""
        with self._conflict:
            self._check()
            await trio.lowlevel.checkpoint()
            await self._session.sender.wait_credit(1)
            self._check()

    async def send_eof(self) -> None:
        """Tell the other end that nothing more comes, behind what was sent. Never blocks. Idempotent.

        Raises: as `send_all`.
        """
        with self._conflict:
            self._check()
            await trio.lowlevel.checkpoint()
            self._check()
            self._session.sender.finish(wire.TcpEof())

    @checks_owner
    async def receive_some(self, max_bytes: int | None = None) -> bytes:
        """Receive at least one byte, waiting for it; ``b""`` once the other end has sent its last.

        If cancelled, nothing was taken. What had arrived is delivered before an error.

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
        """Close both directions. What was sent before still goes out. Never blocks. Idempotent."""
        self._session.close()
        await trio.lowlevel.checkpoint()


async def open_guest_tcp_stream(connection: Connection, host: str, port: int) -> GuestTcpStream:
    """See `Guest.open_tcp_stream`."""
    if not isinstance(host, str):
        raise TypeError(f"host must be str, not {type(host).__name__}")
    if not host or "\0" in host:
        raise ValueError(f"not a host name or address: {host!r}")
    if isinstance(port, bool) or not isinstance(port, int):
        raise TypeError(f"port must be int, not {port!r}")
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

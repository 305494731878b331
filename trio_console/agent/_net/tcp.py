"""One TCP connection: the session from its request to its end.

Two tasks move bytes, each with its own credit. Bytes of the guest's peer are read only when there is credit for
them and room in the outbox. Bytes of the client are queued, from the request on, and written in order.

The session ends with ``tcp.failed`` if either side breaks. It ends with ``tcp.closed`` if the client cancels it,
or if both directions have ended and the client counts credit. Clients without credit expect no frame in the second
case, and the session stays open until ``tcp.close``. A ``tcp.close`` is never answered: the bytes queued before it
are still written, for some seconds, and by then the id may have another owner.

The peer sees a clean end only if the client has said that there are no more bytes, and all were written. Every
other end is a reset, also if the agent is killed: the socket is set to that from the beginning.

This module must not know other sessions.
"""

from __future__ import annotations

import contextlib
import errno
import math
import os
import socket
import struct
from functools import partial
from typing import TYPE_CHECKING, Final, final

import msgspec
import trio

from trio_console import _wire as wire
from trio_console._trio.turns import Trickle
from trio_console.agent._inflow import Inflow, Put
from trio_console.agent._process.spawn import os_error_text
from trio_console.agent._session import PromptSession, SendCredit, Sender

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from trio_console.agent._held import Holding

__all__ = ["TcpSession"]

_CONNECT_TIMEOUT: Final = 30.0

#: Seconds to write the bytes that were queued when the client closed.
_LINGER: Final = 5.0

#: The same when the guest shuts down, and the host has not told its grace. It is a little less than that is by
#: default; then the host ends the guest by force.
_LAST_LINGER: Final = 4.0

#: Bytes read at once.
_CHUNK: Final = 64 * 1024

#: Bytes that are discarded at a time after the client has closed; about what a socket can hold.
_DISCARDED: Final = 4 * 1024 * 1024

#: No name is longer, and the error repeats it.
_LONGEST_HOST: Final = 255


class _ConnectError(Exception):
    """The connection could not be made; the text is the answer."""


@final
class TcpSession(PromptSession):
    """The session of one connection; see the module.

    Args:
        window: bytes that a client with credit may send before a grant.
        budget: bytes queued for a client without credit.
        patience: seconds without a written byte after which such a client's data is refused.
        connect: connects to a port of a host, or raises `OSError`, or `ValueError` for a name that is none.
        over: called when the connection is closed.
    """

    __slots__ = (
        "_closed",
        "_connect_to",
        "_credit",
        "_discarding",
        "_failure",
        "_over",
        "_queue",
        "_reading",
        "_request",
        "_transfer",
        "_trickle",
    )

    kind = "tcp"
    accepts = wire.accepted_in("tcp")

    def __init__(
        self,
        sender: Sender,
        session_id: int,
        request: wire.TcpConnect,
        *,
        window: Holding,
        budget: int,
        patience: float,
        connect: Callable[[str, int], Awaitable[trio.SocketStream]],
        over: Callable[[], object],
    ) -> None:
        super().__init__(sender, session_id)
        self._connect_to = connect
        self._over = over
        own_window = None if request.window is msgspec.UNSET else request.window
        self._request = request
        self._closed = trio.Event()  # by the client
        self._failure: str | None = None
        self._reading = trio.CancelScope()
        self._discarding = trio.CancelScope()
        self._transfer = trio.CancelScope()
        self._credit = SendCredit(own_window)
        self._trickle = Trickle(sender.alone)
        self._queue = Inflow(
            lambda nbytes: self._send_now(wire.Credit("data", nbytes)),
            window=None if own_window is None else window,
            budget=budget,
            patience=patience,
            since=-math.inf,
        )

    # The session's own task

    async def run(self) -> None:
        """See `Session.run`."""
        try:
            with self._scope:
                try:
                    stream = await self._connect()
                except _ConnectError as exc:
                    await self._answer(wire.encode(wire.TcpFailed(str(exc)), self.id))
                else:
                    await self._live(stream)
        finally:
            self._queue.close()
            self._over()

    async def _connect(self) -> trio.SocketStream:
        host, port = self._request.host, self._request.port
        if len(host.encode()) > _LONGEST_HOST:
            raise _ConnectError("connect: the host name is too long")
        target = f"{host}:{port}"
        with trio.move_on_after(_CONNECT_TIMEOUT):
            try:
                return await self._connect_to(host, port)
            except OSError as exc:
                raise _ConnectError(f"connect {target}: {_why(exc)}") from exc
            except ValueError as exc:  # not a valid name
                raise _ConnectError(f"connect {target}: {os_error_text(errno.EINVAL)}") from exc
        raise _ConnectError(f"connect {target} timed out")

    async def _live(self, stream: trio.SocketStream) -> None:
        try:
            _set_reset_at_close(stream.socket, on=True)
            self._send_now(wire.TcpConnected())
            self._queue.start()
            with self._transfer:
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(self._pump_in, stream)
                    nursery.start_soon(self._pump_out, stream)
        finally:
            if self._closed.is_set():
                _discard(stream.socket.fileno())
            # (The stream's `aclose` is a checkpoint, at which a session that was closed could be cancelled.)
            stream.socket.close()
        if self._closed.is_set():
            return
        if self._failure is not None:
            await self._answer(wire.encode(wire.TcpFailed(self._failure), self.id))
        elif self._request.window is not msgspec.UNSET:
            await self._answer(wire.encode(wire.TcpClosed(), self.id))
        else:
            await self._closed.wait()

    def _fail(self, what: str, exc: OSError) -> None:
        if self._failure is None:
            self._failure = f"{what}: {os_error_text(exc.errno or errno.EIO)}"
            if self._request.breaks is True:
                # The answer waits until the client has read what came before; a task that sends must not.
                self._send_now(wire.TcpBroken(self._failure))
        self._transfer.cancel()

    async def _pump_in(self, stream: trio.SocketStream) -> None:
        fd = stream.socket.fileno()
        with self._reading:
            try:
                await self._receive(fd)
            except OSError as exc:
                self._fail("read", exc)
                return
            await self._sender.reserve_small()
            if self.ended:
                self._sender.release_small()
            else:
                self._sender.commit_small(wire.TcpEof(), self.id)
            return
        # The client has closed. Bytes that still come are discarded, see `_discard`.
        with self._discarding:
            while _discard(fd):
                await trio.lowlevel.wait_readable(fd)

    async def _receive(self, fd: int) -> None:
        """Move the peer's bytes to the client until end of file."""
        full = False
        while True:
            if full:
                await trio.lowlevel.checkpoint()
            else:
                await trio.lowlevel.wait_readable(fd)
            allowed = await self._credit.wait(_CHUNK)
            data = await self._pass_on(wire.TcpData, allowed, partial(_read_some, fd))
            if data == b"":
                return
            size = 0 if data is None else len(data)
            self._credit.note_sent(size)
            self._sender.activity.tcp_bytes += size
            full = size == allowed
            if size and not full:
                await self._trickle.rest(size)

    async def _pump_out(self, stream: trio.SocketStream) -> None:
        fd = stream.socket.fileno()
        try:
            while data := await self._queue.first():
                await trio.lowlevel.checkpoint()  # a fast peer must not keep other tasks from running
                await self._queue.write_first(fd)
                self._queue.pop()
                self._sender.activity.tcp_bytes += len(data)
        except OSError as exc:
            self._fail("write", exc)
            return
        try:
            stream.socket.shutdown(socket.SHUT_WR)
        except OSError as exc:
            if exc.errno != errno.ENOTCONN:  # it may be gone already: the other pump knows
                self._fail("shutdown", exc)
                return
        _set_reset_at_close(stream.socket, on=False)  # the end was said, and the kernel delivers what is left
        self._discarding.cancel()

    # The router's side

    async def receive(self, message: wire.Message) -> None:
        """See `Session.receive`."""
        match message:
            case wire.TcpData() if message.data:
                self._trickle.note_asked()
                await self._take(message.data)
            case wire.TcpEof():
                self._queue.put_end()
            case wire.TcpClose():
                self._close()
            case wire.Credit() if message.stream == "data":
                self._credit.grant(message.bytes)
            case wire.Cancel():
                self.end()

    async def _take(self, data: bytes) -> None:
        match await self._queue.put(data):
            case Put.OVER_WINDOW:
                self.end(wire.Error("invalid_session", "more data than the window allows", "core.tcp.data"))
            case Put.FULL:
                self.end(wire.TcpFailed("write: the queue is full, and the connection takes no data"))

    def _close(self) -> None:
        """End the session at the client's close. The bytes that it sent before are still written."""
        assert self.departed, "an id is free behind the client's last word, and nothing more is said under it"
        self._closed.set()
        self._queue.put_end()
        self._reading.cancel()
        self._scope.deadline = trio.current_time() + _LINGER

    @property
    def delivering(self) -> bool:
        """See `Session.delivering`."""
        return self._closed.is_set()

    def shut_down(self, grace: float | None) -> None:
        """See `Session.shut_down`. If the client had closed the connection before, its bytes are still written."""
        if not self._closed.is_set():
            super().shut_down(grace)
        elif grace is None:
            self._scope.deadline = min(self._scope.deadline, trio.current_time() + _LAST_LINGER)
        else:
            self._scope.deadline = trio.current_time() + grace

    def depart(self) -> None:
        """See `Session.depart`. If the client had closed the connection before, its bytes are still written."""
        if not self._closed.is_set():
            super().depart()

    def end(self, ending: wire.Message | None = None) -> None:
        """See `Session.end`."""
        self._queue.close()
        super().end(ending)

    def _cut_short(self) -> wire.Message:
        return wire.TcpClosed()


def _set_reset_at_close(connection: trio.socket.SocketType, *, on: bool) -> None:
    """Choose what the peer sees when the socket is closed: a reset, or the end behind all that was written."""
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", on, 0))


def _discard(fd: int) -> bool:
    """Read and drop up to `_DISCARDED` bytes; returns whether more may come.

    If a socket is closed with unread bytes, its connection is reset, and the bytes that were written to it and
    that the peer has not got yet are lost.
    """
    with contextlib.suppress(OSError):
        for _ in range(_DISCARDED // _CHUNK):
            data = _read_some(fd, _CHUNK)
            if not data:
                return data is None
        return True
    return False


def _read_some(fd: int, nbytes: int) -> bytes | None:
    try:
        return os.read(fd, nbytes)
    except BlockingIOError:
        return None


def _why(exc: OSError) -> str:
    """The system's text for a failed connect."""
    if isinstance(exc, socket.gaierror):
        return f"failed to lookup address information: {exc.strerror}"
    return os_error_text(exc.errno or errno.EIO)

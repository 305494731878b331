"""Guests for rounds: one without a process, and one that records the frames sent to the host."""

from __future__ import annotations

import socket
from contextlib import asynccontextmanager, suppress
from typing import TYPE_CHECKING

import trio

from tests.tools.limits import HANG
from trio_console import GuestSpec
from trio_console import _wire as wire
from trio_console._console.devices import as_device
from trio_console._errors import ProtocolError
from trio_console._guests.spec import Host
from trio_console._trio.nursery import hidden_nursery
from trio_console.agent import AgentOptions, BootError, serve_agent

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from trio_console import GuestDevice


class InProcessGuest(GuestSpec):
    """The real agent as a task of this program: it starts at once, and its leaks are leaks of this program."""

    @asynccontextmanager
    async def _launch(self) -> AsyncIterator[Host]:
        ours, theirs = socket.socketpair()
        device = as_device(ours)
        try:
            stream = trio.SocketStream(trio.socket.from_stdlib_socket(theirs))
            async with hidden_nursery() as nursery:
                living = trio.CancelScope(shield=True)
                nursery.start_soon(self._serve, stream, living)
                try:
                    yield Host(device)
                finally:
                    device.close()
                    # By itself, now that its console is closed.
                    living.deadline = trio.current_time() + HANG
        finally:
            device.close()

    async def _serve(self, stream: trio.SocketStream, living: trio.CancelScope) -> None:
        with living:
            with suppress(BootError):  # the host sent no valid message; it learns that by the end of the console
                await serve_agent(stream, options=AgentOptions(shutdown_grace=0.2))
        assert not living.cancelled_caught, "the agent did not end when its console was closed"


class TappedGuest(GuestSpec):
    """Any guest, with a record of the exits that were sent to the host, and of the bytes that passed."""

    def __init__(self, guest: GuestSpec) -> None:
        self._guest = guest
        self.tap: _Tap | None = None

    @asynccontextmanager
    async def _launch(self) -> AsyncIterator[Host]:
        async with self._guest._launch() as host:
            self.tap = host.device = _Tap(host.device)
            yield host

    @property
    def exits(self) -> set[int]:
        """The return codes in all whole frames that the host got."""
        assert self.tap is not None
        return self.tap.exits


class _Tap:
    def __init__(self, inner: GuestDevice) -> None:
        self._inner = inner
        self._decoder = wire.FrameDecoder()
        self._out_of_step = False
        self.exits: set[int] = set()
        self.bytes_read = 0
        self.bytes_written = 0

    def read(self, max_bytes: int) -> bytes:
        data = self._inner.read(max_bytes)
        self.bytes_read += len(data)
        self._look(data)
        return data

    def _look(self, data: bytes) -> None:
        try:
            if not self._out_of_step:
                self._decoder.feed(data)
                for frame in self._decoder:
                    self._note(frame)
        except ProtocolError:
            self._out_of_step = True

    def _note(self, frame: wire.Frame) -> None:
        try:
            message = wire.decode(frame)
        except ProtocolError:
            return
        if isinstance(message, wire.ExecExited):
            signal = 0 if message.signal is wire.UNSET else message.signal
            self.exits.add(-signal if signal > 0 else message.code)

    def write(self, data: memoryview, /) -> int:
        count = self._inner.write(data)
        self.bytes_written += count
        return count

    def close_write(self) -> None:
        self._inner.close_write()

    def close(self) -> None:
        self._inner.close()

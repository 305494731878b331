"""Guests for rounds: one without a process, and one that records the frames sent to the host."""

from __future__ import annotations

import math
import socket
from contextlib import suppress
from typing import TYPE_CHECKING

import trio

from tests.tools.limits import HANG
from trio_console import GuestSpec
from trio_console import _wire as wire
from trio_console._console.devices import as_device
from trio_console._errors import ProtocolError
from trio_console._guests.carrier import carried
from trio_console._guests.spec import GuestHost
from trio_console._trio.nursery import hidden_nursery
from trio_console.agent import AgentOptions, BootError, serve_agent

if TYPE_CHECKING:
    from trio_console import GuestDevice


class InProcessGuest(GuestSpec):
    """The real agent as a task of this program: it starts at once, and its leaks are leaks of this program."""

    async def run(self, *, task_status: trio.TaskStatus[GuestHost]) -> None:
        ours, theirs = socket.socketpair()
        stream = trio.SocketStream(trio.socket.from_stdlib_socket(theirs))
        task_status.started(GuestHost(ours))
        async with hidden_nursery() as nursery:
            living = trio.CancelScope(shield=True)
            served = trio.Event()
            nursery.start_soon(self._serve, stream, living, served)
            try:
                await served.wait()
            finally:
                # By itself, now that its console is closed.
                living.deadline = trio.current_time() + HANG

    async def _serve(self, stream: trio.SocketStream, living: trio.CancelScope, served: trio.Event) -> None:
        with living:
            with suppress(BootError):  # the host sent no valid message; it learns that by the end of the console
                await serve_agent(stream, options=AgentOptions(shutdown_grace=0.2))
        served.set()
        assert not living.cancelled_caught, "the agent did not end when its console was closed"


class TappedGuest(GuestSpec):
    """Any guest, with a record of the exits that were sent to the host, and of the bytes that passed."""

    def __init__(self, guest: GuestSpec) -> None:
        self._guest = guest
        self.tap: _Tap | None = None

    async def run(self, *, task_status: trio.TaskStatus[GuestHost]) -> None:
        async with carried(self._guest, math.inf) as carrier:
            device = as_device(carrier.take_console())  # type: ignore[arg-type]  # none of these has a stream
            self.tap = _Tap(device)
            task_status.started(GuestHost(self.tap, carrier.kill, carrier.explain))
            await carrier.wait_ended()
            carrier.check()

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

"""A relay for one client and one command, of which the test says each frame."""

from __future__ import annotations

import socket
import struct
from contextlib import contextmanager
from typing import TYPE_CHECKING, TypeVar

from tests.tools.limits import HANG
from tests.tools.peer import ready_message
from trio_console import _wire as wire
from trio_console._wire.ids import slot_ids

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

__all__ = ["FakeRelay", "accepted", "fake_relay"]

M = TypeVar("M", bound=wire.Message)


class FakeRelay:
    """Talks to the client that has connected."""

    def __init__(self, connection: socket.socket, window: int | None) -> None:
        self._connection = connection
        self._decoder = wire.FrameDecoder()
        self.id = 0
        ids = slot_ids(1)
        self.send_raw(struct.pack(">II", ids.start, ids.stop) + wire.encode(ready_message(window)))

    def send_raw(self, data: bytes) -> None:
        self._connection.sendall(data)

    def send(self, *messages: wire.Message) -> None:
        """Send messages of the command's session."""
        self.send_raw(b"".join(wire.encode(message, self.id) for message in messages))

    def expect(self, cls: type[M]) -> M:
        """The next message of this type; others are overlooked."""
        while True:
            for frame in self._decoder:
                message = wire.decode(frame)
                if isinstance(message, cls):
                    self.id = frame.id
                    return message
            data = self._connection.recv(65536)
            assert data, f"the client has gone, and no {cls.__name__} had come"
            self._decoder.feed(data)

    def start(self) -> wire.ExecRequest:
        """Take the request for a command, and start it."""
        request = self.expect(wire.ExecRequest)
        self.send(wire.ExecStarted(7))
        return request


@contextmanager
def fake_relay(path: Path) -> Iterator[socket.socket]:
    """The listening socket of a relay at a path, for `accepted`."""
    with socket.socket(socket.AF_UNIX) as server:
        server.settimeout(HANG)
        server.bind(str(path))
        server.listen(1)
        yield server


@contextmanager
def accepted(server: socket.socket, *, window: int | None = 1024 * 1024) -> Iterator[FakeRelay]:
    """A client that has connected; its connection is closed behind the block."""
    connection, _ = server.accept()
    with connection:
        connection.settimeout(HANG)
        yield FakeRelay(connection, window)

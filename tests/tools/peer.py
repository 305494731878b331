"""A scripted far end of a frame stream: it sends the frames that a test says, and tells the test what came.

It stands for an agent, a host or a relay's client, over a memory stream, a socket or a pipe. What one of these
does besides is in `tests.session._fake`, `tests.agent._host` and `tests.relay.router._world`.
"""

from __future__ import annotations

from contextlib import suppress
from typing import TYPE_CHECKING, Self, TypeVar

import trio
import trio.testing

from tests.tools.limits import HANG
from trio_console import _wire as wire

if TYPE_CHECKING:
    import os
    from collections.abc import Iterable

__all__ = ["Peer", "connect_to_listener", "frame", "parse", "ready_message", "said", "settle"]

M = TypeVar("M", bound=wire.Message)


# Frames


def frame(message: wire.Message, id_: int = 0, *, version: int = 7) -> wire.Frame:
    """A message as the frame that a decoder gives."""
    return parse(wire.encode(message, id_, version=version))[0]


def parse(raw: bytes | Iterable[bytes]) -> list[wire.Frame]:
    """Whole frames; an error if the bytes end inside of one."""
    decoder = wire.FrameDecoder()
    decoder.feed(raw if isinstance(raw, bytes) else b"".join(raw))
    frames = list(decoder)
    decoder.feed_eof()
    return frames


def said(raw: bytes | Iterable[bytes]) -> list[tuple[int, wire.Message]]:
    """Ids and messages of whole frames."""
    return [(one.id, wire.decode(one)) for one in parse(raw)]


def ready_message(window: int | None, *features: str) -> wire.Ready:
    """The ready message of an agent with these features. ``None`` is an agent that counts no credit."""
    return wire.Ready(
        boot_time_ns=1,
        init_time_ns=2,
        ready_time_ns=3,
        agent_version="fake",
        flow=wire.UNSET if window is None else wire.Flow(window),
        features=features or wire.UNSET,
    )


async def settle() -> None:
    """Wait until nothing moves any more. Kernel buffers are looked at on the way."""
    for _ in range(3):
        await trio.testing.wait_all_tasks_blocked()


async def connect_to_listener(path: str | os.PathLike[str]) -> trio.SocketStream:
    """Connect to a Unix socket as soon as a program listens there."""
    with trio.fail_after(HANG):
        while True:
            with suppress(FileNotFoundError):
                return await trio.open_unix_socket(path)
            await trio.sleep(0.002)


# The far end


class Peer:
    """Speaks frames over a stream.

    Args:
        stream: its end, which it owns.
        overlooked: messages that may come before one that is expected.

    Attributes:
        patience: seconds that a single wait may take.
        decoder: what has arrived and was not taken.
    """

    def __init__(self, stream: trio.abc.Stream, *, overlooked: tuple[type[wire.Message], ...] = ()) -> None:
        self.stream = stream
        self.patience = HANG
        self.decoder = wire.FrameDecoder()
        self._overlooked = overlooked
        self._telling = trio.Lock()

    # Sending

    async def send(self, message: wire.Message, id_: int = 0, *, version: int = 7) -> None:
        await self.send_raw(wire.encode(message, id_, version=version))

    async def send_raw(self, data: bytes) -> None:
        with trio.fail_after(self.patience):
            await self.stream.send_all(data)

    async def tell(self, message: wire.Message, id_: int) -> None:
        """Send from one of several tasks: behind the others' frames. Does nothing if the other end is closed."""
        async with self._telling:
            with suppress(trio.BrokenResourceError, trio.ClosedResourceError):
                await self.send(message, id_)

    async def close(self) -> None:
        await self.stream.aclose()

    # Receiving

    async def receive_frame(self) -> wire.Frame | None:
        """The next frame; `None` once the other end has closed, which it does between frames."""
        with trio.fail_after(self.patience):
            while (one := self.decoder.next_frame()) is None:
                data = await self.stream.receive_some(65536)
                if not data:
                    self.decoder.feed_eof()
                    return None
                self.decoder.feed(bytes(data))
        return one

    async def receive(self) -> tuple[int, wire.Message] | None:
        """The next message and its id; `None` once the other end has closed."""
        one = await self.receive_frame()
        return None if one is None else (one.id, wire.decode(one))

    async def expect(self, cls: type[M]) -> tuple[int, M]:
        """The next message, which must be of this type."""
        got = await self.receive()
        while got is not None and isinstance(got[1], self._overlooked) and not isinstance(got[1], cls):
            got = await self.receive()
        assert got is not None, f"the stream was closed, and no {cls.__name__} had come"
        assert isinstance(got[1], cls), got
        return got[0], got[1]

    async def expect_eof(self) -> None:
        assert await self.receive() is None

    async def pending(self) -> list[tuple[int, wire.Message]]:
        """All messages that come until nothing moves any more."""
        got: list[tuple[int, wire.Message]] = []

        async def collect() -> None:
            while (one := await self.receive()) is not None:
                got.append(one)

        async with trio.open_nursery() as nursery:
            nursery.start_soon(collect)
            await settle()
            nursery.cancel_scope.cancel()
        return got

    async def nothing_more(self) -> None:
        """Check that no message comes before all tasks wait."""
        assert await self.pending() == []

    def __aiter__(self) -> Self:
        """Ids and messages until the other end is gone, however it goes and however long that takes."""
        return self

    async def __anext__(self) -> tuple[int, wire.Message]:
        while (one := self.decoder.next_frame()) is None:
            data = b""
            with suppress(trio.BrokenResourceError):
                data = bytes(await self.stream.receive_some(65536))
            if not data:
                raise StopAsyncIteration
            self.decoder.feed(data)
        return one.id, wire.decode(one)

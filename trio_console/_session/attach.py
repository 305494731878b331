"""A client's handshake with a relay, which sends the client's ids and the guest's ready message."""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING, Final, NamedTuple

from trio_console import _wire as wire
from trio_console._errors import ProtocolError
from trio_console._trio.lost import GuestLostError

if TYPE_CHECKING:
    import trio

__all__ = ["Attached", "attach"]

_PREFIX: Final = struct.Struct(">II")


class Attached(NamedTuple):
    """The contents of a relay's greeting, and the decoder, which may hold bytes that came after it."""

    ids: range
    ready: wire.Ready
    generation: int
    decoder: wire.FrameDecoder


async def attach(stream: trio.abc.ReceiveStream) -> Attached:
    """Receive a relay's greeting. The client sends nothing.

    Raises:
        trio_console.GuestLostError: the relay closed the connection before the end of the greeting.
        trio_console.ProtocolError: the other program is not a relay, or a relay older than version 0.5.
        trio.BrokenResourceError: the connection broke.
    """
    greeting = b""
    while len(greeting) < _PREFIX.size:
        data = await stream.receive_some()
        if not data:
            if greeting:
                raise ProtocolError("the relay closed the connection in the middle of its greeting")
            raise GuestLostError("the relay refused this client: all its slots are taken, or it is not allowed")
        greeting += data
    start, stop = _PREFIX.unpack_from(greeting)
    if start == 0 or start >= stop:
        raise ProtocolError(
            f"the relay sent the ids {start} to {stop}, which are not a range: it is not a relay, or it is older "
            f"than version 0.5{wire.quoted(greeting)}"
        )
    decoder = wire.FrameDecoder()
    decoder.feed(greeting[_PREFIX.size :])
    while (frame := _next_frame(decoder, greeting)) is None:
        data = await stream.receive_some()
        if not data:
            decoder.feed_eof()
            raise GuestLostError("the relay closed the connection before it sent the guest's ready message")
        decoder.feed(bytes(data))
    # Its id and flags are not checked: relays differ.
    message = wire.decode(wire.Frame(frame.id, wire.type_of(wire.Ready).flags, frame.body))
    if not isinstance(message, wire.Ready):
        raise ProtocolError(
            f"the relay's first frame is {wire.type_of(message).name}, not core.ready",
            message_type=wire.type_of(message).name,
        )
    return Attached(range(start, stop), message, wire.decode_envelope(frame.body).version, decoder)


def _next_frame(decoder: wire.FrameDecoder, greeting: bytes) -> wire.Frame | None:
    try:
        return decoder.next_frame()
    except ProtocolError as exc:
        note = wire.quoted(greeting)
        if not note:
            raise
        # (The text began with what was taken for ids.)
        raise ProtocolError(f"the program that listens there is not a relay{note}", kind=exc.kind) from exc

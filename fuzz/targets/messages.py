"""The message decoder: a message or a `ProtocolError`, by every way in the same."""

from __future__ import annotations

import cbor2

from fuzz.targets.script import Script, outcome
from trio_console import _protocol as wire
from trio_console._errors import ProtocolError
from trio_console._protocol import _cbor, _codec

__all__ = ["fuzz_messages"]

_KINDS = {"malformed_message", "unsupported_message_type", "invalid_flags", "invalid_payload"}
_ROWS = list(wire.MESSAGE_TYPES.values())

#: An error quotes the peer, and must fit a frame however much there is to quote.
_LONGEST_ERROR = 1500


def fuzz_messages(data: bytes) -> None:
    """A whole body with its flags; or the payload of a type, in a canonical envelope."""
    script = Script(data)
    how = script.byte()
    if how % 4 == 0:
        flags, body = script.byte(), script.rest()
    else:
        row, version = _ROWS[how // 4 % len(_ROWS)], script.byte() if how % 4 == 3 else wire.GENERATION
        flags = row.flags
        body = cbor2.dumps({"v": version, "t": row.name, "p": script.rest()})
    _check_envelope(body)
    _check_message(wire.Frame(7, flags, body))
    _check_readers_agree(body)


def _check_envelope(body: bytes) -> None:
    envelope = outcome(lambda: wire.decode_envelope(body))
    type_ = outcome(lambda: wire.peek_type(body))
    if isinstance(envelope, ProtocolError):
        assert envelope.kind == "malformed_message"
        assert repr(type_) == repr(envelope)
        assert len(str(envelope)) < _LONGEST_ERROR
        return
    assert type_ == envelope.type
    assert 0 <= envelope.version <= 255
    _check_readers_agree(envelope.payload)


def _check_message(frame: wire.Frame) -> None:
    data = wire.measure_data(frame)
    message = outcome(lambda: wire.decode(frame))
    if isinstance(message, ProtocolError):
        assert data is None
        _check_refusal(frame, message)
        return
    if data is not None:
        assert isinstance(message, wire.DataMessage)
        assert data == (type(message), len(message.data))
    # The short cut for bulk data and the long way say the same.
    assert _codec._decode_any(frame) == message
    version = wire.decode_envelope(frame.body).version
    raw = wire.encode(message, frame.id, version=version)
    again = _frame(raw)
    assert wire.decode(again) == message
    assert wire.encode(wire.decode(again), frame.id, version=version) == raw
    assert wire.decode_envelope(again.body)[:2] == (version, wire.type_of(message).name)


def _check_refusal(frame: wire.Frame, exc: ProtocolError) -> None:
    assert exc.kind in _KINDS
    assert exc.frame_id == frame.id
    assert len(str(exc)) < _LONGEST_ERROR
    # What the peer is told of it, which quotes what it sent.
    told = wire.Error(exc.kind, str(exc), wire.UNSET if exc.message_type is None else exc.message_type)
    assert wire.decode(_frame(wire.encode(told, frame.id))) == told


def _check_readers_agree(data: bytes) -> None:
    """What the fast reader takes, the exact one takes as well, and for the same."""
    try:
        fast = _cbor.load(data)
    except _cbor.CBORError:
        return
    exact = _cbor._Reader(data).item(_cbor.MAX_DEPTH)
    assert repr(fast) == repr(exact)  # tells 1 from True and 1.0, and takes a NaN for equal


def _frame(raw: bytes) -> wire.Frame:
    decoder = wire.FrameDecoder()
    decoder.feed(raw)
    frame = decoder.next_frame()
    assert frame is not None
    assert decoder.pending == 0
    return frame

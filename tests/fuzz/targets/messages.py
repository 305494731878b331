"""The message decoder: a message or a `ProtocolError`, the same by every way, and the same as a plain reader's."""

from __future__ import annotations

import contextlib
import zlib
from typing import Any, Final
from unittest import mock

import cbor2

from tests.fuzz.targets import cbor_reference as reference
from tests.fuzz.targets.script import Script, outcome
from trio_console import _wire as wire
from trio_console._errors import ProtocolError
from trio_console._wire import cbor as _cbor
from trio_console._wire import codec as _codec

__all__ = ["fuzz_messages"]

_KINDS: Final = {"malformed_message", "unsupported_message_type", "invalid_flags", "invalid_payload"}
_ROWS: Final = list(wire.MESSAGE_TYPES.values())

#: The flags of each type, written a second time: the last frame of an id, the first one, the end of the guest.
_FLAGS: Final = {
    **dict.fromkeys(("core.pong", "core.touched", "core.error", "core.exec.exited", "core.exec.failed"), 1),
    **dict.fromkeys(("core.fs.response", "core.tcp.closed", "core.tcp.failed"), 1),
    **dict.fromkeys(("trio.relay.forgotten", "trio.background.killed", "trio.reset.done"), 1),
    **dict.fromkeys(("core.exec.request", "core.fs.request", "core.tcp.connect"), 2),
    "core.shutdown": 4,
}

#: An error quotes the peer, and must fit into a frame, however long the quoted text is.
_LONGEST_ERROR: Final = 1500

#: Bounds of items so low that an input of some hundred bytes reaches each of them.
_FEW: Final = reference.Bounds(150, 60, 100)

_KEYS: Final = ("v", "t", "p", "data", "window", "code", "", "\N{SNOWMAN}")
_SIZES: Final = (0, 1, 22, 23, 24, 25, 247, 248, 255, 256, 257, 258, 300)


def fuzz_messages(data: bytes) -> int:
    """A whole body with its flags; or the payload of a type, in a canonical envelope.

    By the first byte: made of items that are mostly well formed, with a bound of items that they reach.
    """
    if data in _MOST:
        make, most = _MOST[data]
        for items in (most - 1, most, most + 1):
            _check_reader(make(items), reference.BOUNDS)
        return 0
    script = Script(data)
    how = script.byte()
    if how == 0xFC:
        with (
            mock.patch.object(_cbor, "MAX_ITEMS", _FEW.items),
            mock.patch.object(_cbor, "MAX_COSTLY_ITEMS", _FEW.costly),
            mock.patch.object(_cbor, "MAX_SLOW_ITEMS", _FEW.slow),
        ):
            return _check(wire.Frame(7, script.pick((0, 1, 2, 4)), _made_body(script)), _FEW)
    if how == 0xFA:
        return _check_data(script)
    if how % 4 == 0:
        return _check(wire.Frame(7, script.byte(), script.rest()), reference.BOUNDS)
    row, version = _ROWS[how // 4 % len(_ROWS)], script.byte() if how % 4 == 3 else wire.GENERATION
    body = cbor2.dumps({"v": version, "t": row.name, "p": script.rest()})
    return _check(wire.Frame(7, row.flags, body), reference.BOUNDS)


def _check(frame: wire.Frame, bounds: reference.Bounds) -> int:
    body = bytes(frame.body)
    _check_envelope(body, bounds)
    said = _check_message(frame, bounds)
    _check_reader(body, bounds)
    return zlib.crc32(said.encode())


def _check_data(script: Script) -> int:
    """Bulk data of sizes at which a head becomes longer."""
    trace = 0
    for _ in range(20):
        cls = script.pick([row.cls for row in _ROWS if issubclass(row.cls, wire.DataMessage)])
        size = max(0, script.pick((0, 12, 24, 248, 256, 65526, 65536)) + script.byte() % 32 - 16)
        frame = _frame(wire.encode(cls(b"x" * size), 7))
        assert wire.measure_data(frame) == (cls, size), "data is not seen to be data"
        assert wire.encode_data(cls, 7, b"x" * size) == wire.encode_frame(*frame)
        trace = zlib.crc32(frame.body, trace)
        _check_message(frame, reference.BOUNDS)
    return trace


# Items that are mostly well formed


def _made_body(script: Script) -> bytes:
    """An envelope with faults; or any item; or more items than the decoder accepts."""
    match script.byte() % 8:
        case 0:
            return _item(script, 4)
        case 1:
            return _many(script)
        case _:
            row = script.pick(_ROWS)
            payload = _item(script, 3)
            if script.byte() % 4 == 0:
                data = bytes(script.pick(_SIZES))
                payload = b"\xa1\x64data" + _head(script, 2, len(data)) + data
            parts = [
                _text(script, "v") + _head(script, 0, script.pick((7, 7, 7, 4, 5, 23, 24, 255, 256))),
                _text(script, "t") + _text(script, row.name if script.byte() % 8 else "core.nothing"),
                _text(script, "p") + _head(script, 2, len(payload)) + payload,
            ]
            if script.byte() % 8 == 0:
                parts[2] = b"\x61p" + _octet_array(script)
            twice = script.pick((None, None, None, 0, 1, 2))
            if twice is not None:
                parts.append(parts[twice] if script.byte() % 2 else _text(script, "vtp"[twice]) + b"\0")
            return _map(script, parts)


def _many(script: Script) -> bytes:
    """The most items of one of the bounds, or one more or less; or of two of them, of which one is reached."""
    more = script.pick((-1, 0, 1))
    match script.byte() % 4:
        case 0:
            return _one_by_one(_FEW.slow + more)
        case 1:
            return _plain(_FEW.items + more)
        case 2:
            return _costly(_FEW.costly + more)
        case _:  # as many maps as may be, with two items in each; then numbers; and the array around
            rest = _FEW.items - 3 * (_FEW.costly // 2) - 1 + more
            array = reference.head(4, _FEW.costly // 2 + rest)
            return array + b"\xa1\x61k\0" * (_FEW.costly // 2) + bytes(rest)


def _one_by_one(items: int) -> bytes:
    return b"\x9f" + bytes(items - 2) + b"\xff"


def _plain(items: int) -> bytes:
    return b"\x9a" + (items - 1).to_bytes(4, "big") + bytes(items - 1)


def _costly(items: int) -> bytes:
    return b"\x9a" + (items - 1).to_bytes(4, "big") + b"\x80" * (items - 1)


#: Inputs that stand for a body with the most items, which is tried only for these because it takes long.
_MOST: Final = {
    b"most items": (_one_by_one, reference.BOUNDS.slow),
    b"most items, plain": (_plain, reference.BOUNDS.items),
    b"most items, costly": (_costly, reference.BOUNDS.costly),
}


def _item(script: Script, depth: int) -> bytes:
    lead = bytes([0xC0 + script.byte() % 24]) if script.byte() % 16 == 0 else b""
    match script.byte() % (8 if depth else 5):
        case 0:
            return lead + _head(script, script.byte() % 2, script.byte())
        case 1:
            return lead + _text(script, script.pick(_KEYS))
        case 2:
            return lead + _string(script, 2, script.take(script.byte() % 8))
        case 3:
            return lead + script.pick(
                (b"\xf4", b"\xf5", b"\xf6", b"\xf7", b"\xf9\x7e\x00", b"\xf8\x20", b"\xf8\x1f", b"\xe1")
            )
        case 4:
            return lead + script.take(script.byte() % 4)
        case 5:
            return lead + _nested(script)
        case 6:
            items = [_item(script, depth - 1) for _ in range(script.byte() % 4)]
            if script.byte() % 4 == 0:
                return lead + b"\x9f" + b"".join(items) + _stop(script)
            return lead + _head(script, 4, len(items)) + b"".join(items)
        case _:
            pairs = [_key(script, depth) + _item(script, depth - 1) for _ in range(script.byte() % 5)]
            return lead + _map(script, pairs)


def _nested(script: Script) -> bytes:
    """Items nested as deep as the decoder accepts, or one level more."""
    return b"\x81" * (reference.MOST_DEEP + script.pick((-3, -2, -1, 0, 1))) + b"\0"


def _key(script: Script, depth: int) -> bytes:
    return _item(script, depth - 1) if script.byte() % 8 == 0 else _text(script, script.pick(_KEYS))


def _map(script: Script, pairs: list[bytes]) -> bytes:
    if script.byte() % 4 == 0:
        return b"\xbf" + b"".join(pairs) + _stop(script)
    return _head(script, 5, len(pairs)) + b"".join(pairs)


def _stop(script: Script) -> bytes:
    """The end of an item without a length; with a tag in front, which is refused."""
    return b"\xc1\xff" if script.byte() % 8 == 0 else b"\xff"


def _octet_array(script: Script) -> bytes:
    """An array of octets, which is accepted as a byte string; or an array that is nearly one."""
    octets = [script.pick((b"\0", b"\x18\xff", b"\x01", b"\x01", b"\xf5", b"\x19\1\0", b"\x20")) for _ in range(2)]
    return b"\x82" + b"".join(octets)


def _text(script: Script, text: str) -> bytes:
    """A text, or bytes that are accepted as the same text."""
    return _string(script, 2 if script.byte() % 8 == 0 else 3, text.encode())


def _string(script: Script, major: int, data: bytes) -> bytes:
    if script.byte() % 8:
        return _head(script, major, len(data)) + data
    pieces = (data[:1], data[1:])
    return bytes([32 * major + 31]) + b"".join(_head(script, major, len(p)) + p for p in pieces) + b"\xff"


def _head(script: Script, major: int, number: int) -> bytes:
    """The shortest form, or a longer one."""
    size = script.byte()
    if size % 8:
        return reference.head(major, number)
    power = size // 8 % 4
    return bytes([32 * major + 24 + power]) + (number % (1 << (8 << power))).to_bytes(1 << power, "big")


# What must hold


def _check_envelope(body: bytes, bounds: reference.Bounds) -> None:
    envelope = outcome(lambda: wire.decode_envelope(body))
    type_ = outcome(lambda: wire.peek_type(body))
    expected = _envelope(body, bounds)
    if isinstance(envelope, ProtocolError):
        assert expected is None, "an envelope is refused"
        assert envelope.kind == "malformed_message"
        assert repr(type_) == repr(envelope)
        assert len(str(envelope)) < _LONGEST_ERROR
        return
    assert tuple(envelope) == expected, "something else is taken for an envelope"
    assert type_ == envelope.type
    _check_reader(bytes(envelope.payload), bounds)


def _envelope(body: bytes, bounds: reference.Bounds) -> tuple[int, str, bytes] | None:
    try:
        value = reference.read(body, bounds)
    except reference.Refused:
        return None
    if not isinstance(value, dict) or None in value:
        return None
    version, type_, payload = value.get("v"), value.get("t"), _octets(value.get("p"))
    if type(version) is not int or not 0 <= version <= 255 or not isinstance(type_, str) or payload is None:
        return None
    return version, type_, payload


def _octets(value: Any) -> bytes | None:
    if isinstance(value, list) and all(type(octet) is int and 0 <= octet < 256 for octet in value):
        return bytes(value)
    return value if isinstance(value, bytes) else None


def _check_message(frame: wire.Frame, bounds: reference.Bounds) -> str:
    data = wire.measure_data(frame)
    message = outcome(lambda: wire.decode(frame))
    if isinstance(message, ProtocolError):
        assert data is None
        _check_refusal(frame, message, bounds)
        return f"{message.kind} {message}"
    name = wire.type_of(message).name
    assert frame.flags == _FLAGS.get(name, 0), "flags of another type"
    if data is not None:
        assert isinstance(message, wire.DataMessage)
        assert data == (type(message), len(message.data))
    # The short way for bulk data and the general way have the same result.
    assert _codec._receive_any(frame)[0] == message
    version = wire.decode_envelope(frame.body).version
    _check_payload(frame, message)
    _check_passing_on(frame, message)
    raw = wire.encode(message, frame.id, version=version)
    again = _frame(raw)
    assert again.flags == frame.flags
    assert wire.decode(again) == message
    assert wire.encode(wire.decode(again), frame.id, version=version) == raw
    _check_canonical(bytes(again.body), version, name)
    return repr(message)


def _check_payload(frame: wire.Frame, message: wire.Message) -> None:
    """No key is twice in the map of an accepted payload."""
    if isinstance(message, wire.Shutdown):
        return  # whatever came with it
    value = reference.read(bytes(wire.decode_envelope(frame.body).payload))  # raises if it must be refused
    assert isinstance(value, dict)
    if isinstance(message, wire.DataMessage):
        assert message.data == _octets(value["data"])


def _check_passing_on(frame: wire.Frame, message: wire.Message) -> None:
    """A relay decodes the same, but refuses what an agent of another make cannot decode."""
    body = bytes(frame.body)
    envelope = wire.decode_envelope(body)
    received = outcome(lambda: wire.receive(frame))
    if not reference.is_portable(body) or (
        not isinstance(message, wire.Shutdown) and not reference.is_portable(bytes(envelope.payload))
    ):
        assert isinstance(received, ProtocolError), "a form is passed on that not every agent can decode"
        assert received.kind == "invalid_payload"
        assert received.frame_id == frame.id
    else:
        assert received == (message, wire.type_of(message), envelope.version), "something else is passed on"


def _check_canonical(body: bytes, version: int, name: str) -> None:
    envelope = reference.read(body)
    assert list(envelope) == ["v", "t", "p"]
    assert (envelope["v"], envelope["t"]) == (version, name)
    assert reference.write(envelope) == body, "not the one canonical form"
    payload = reference.read(envelope["p"])
    assert reference.write(payload) == envelope["p"], "not the one canonical form"


def _check_refusal(frame: wire.Frame, exc: ProtocolError, bounds: reference.Bounds) -> None:
    assert exc.kind in _KINDS
    assert exc.frame_id == frame.id
    assert len(str(exc)) < _LONGEST_ERROR
    envelope = _envelope(bytes(frame.body), bounds)
    if envelope is None:
        assert exc.kind == "malformed_message"
    elif envelope[1] not in wire.MESSAGE_TYPES:
        assert exc.kind == "unsupported_message_type"
    elif frame.flags != _FLAGS.get(envelope[1], 0):
        assert exc.kind == "invalid_flags"
    else:
        assert exc.kind == "invalid_payload"
        assert exc.version == envelope[0]
    # The error frame for the peer, which quotes what the peer has sent.
    told = wire.Error(exc.kind, str(exc), wire.UNSET if exc.message_type is None else exc.message_type)
    assert wire.decode(_frame(wire.encode(told, frame.id))) == told


def _check_reader(data: bytes, bounds: reference.Bounds) -> None:
    """The result is that of a plain reader: a value, or a refusal. The exact reader alone has the same result."""
    value: Any = reference.Refused
    with contextlib.suppress(reference.Refused):
        value = reference.read(data, bounds)
    try:
        loaded = _cbor.load(data)
    except _cbor.CBORError:
        assert value is reference.Refused, "an item is refused"
        return
    assert value is not reference.Refused, "an item is taken that is not to be"
    assert _told(loaded) == _told(value)
    if len(data) <= bounds.slow:  # or what has another bound there has this one here
        assert repr(loaded) == repr(_cbor._Reader(data).item(_cbor.MAX_DEPTH))


def _told(value: Any) -> str:
    """The text of a value. 1, True and 1.0 differ in it; all NaNs are alike, as are all keys that are no text."""
    if isinstance(value, list):
        return f"[{', '.join(map(_told, value))}]"
    if isinstance(value, dict):
        pairs = {key if isinstance(key, str) else None: _told(item) for key, item in value.items()}
        return repr(pairs)
    return repr(value)


def _frame(raw: bytes) -> wire.Frame:
    decoder = wire.FrameDecoder()
    decoder.feed(raw)
    frame = decoder.next_frame()
    assert frame is not None
    assert decoder.pending == 0
    return frame

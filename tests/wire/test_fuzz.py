"""For any bytes that come in, the result is a message or a `ProtocolError`."""

from __future__ import annotations

import random
import struct
from functools import partial
from typing import TYPE_CHECKING, Any

import cbor2
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.wire.wire_data import VECTORS, frame_bytes, frame_of, payload_of
from trio_console import _wire as wire
from trio_console._errors import ProtocolError
from trio_console._wire import Frame, FrameDecoder

if TYPE_CHECKING:
    from collections.abc import Callable

fuzz = settings(deadline=None, database=None, max_examples=250)
KINDS = {"malformed_message", "unsupported_message_type", "invalid_flags", "invalid_payload"}


def outcome(call: Callable[[], object]) -> object:
    """The result of a call, or the error that it may raise."""
    try:
        return call()
    except ProtocolError as exc:
        return exc


def decode_or_refuse(frame: Frame) -> None:
    for read in (wire.decode_envelope, wire.peek_type):
        result = outcome(partial(read, frame.body))
        assert not isinstance(result, ProtocolError) or result.kind == "malformed_message"
    message = outcome(partial(wire.decode, frame))
    if isinstance(message, ProtocolError):
        assert message.kind in KINDS
        assert message.frame_id == frame.id
    else:
        assert isinstance(message, wire.Message)
        assert wire.decode(frame_of(wire.encode(message, frame.id))) == message


@given(st.binary(max_size=200), st.integers(0, 255))
@fuzz
def test_any_bytes_as_a_body(body: bytes, flags: int) -> None:
    decode_or_refuse(Frame(1, flags, body))


@given(st.sampled_from(sorted(wire.MESSAGE_TYPES)), st.binary(max_size=100))
@fuzz
def test_any_bytes_as_a_payload(name: str, payload: bytes) -> None:
    body = cbor2.dumps({"v": 7, "t": name, "p": payload})
    decode_or_refuse(Frame(1, wire.MESSAGE_TYPES[name].flags, body))


@st.composite
def mutated(draw: st.DrawFn) -> bytes:
    raw = bytearray(frame_bytes(draw(st.sampled_from(VECTORS))))
    for _ in range(draw(st.integers(1, 4))):
        at = draw(st.integers(9, len(raw)))
        match draw(st.sampled_from(["change", "insert", "delete", "truncate"])):
            case "change":
                raw[at : at + 1] = bytes([draw(st.integers(0, 255))])
            case "insert":
                raw[at:at] = draw(st.binary(max_size=4))
            case "delete":
                del raw[at : at + draw(st.integers(1, 4))]
            case _:
                del raw[at:]
    return bytes(raw)


@given(mutated())
@fuzz
def test_a_recorded_frame_with_mistakes_in_it(raw: bytes) -> None:
    decode_or_refuse(Frame(1, raw[8], raw[9:]))


KEYS = sorted(
    {"v", "t", "p", "kind", "value", "data", "op", *wire.FS_OPS, *wire.FS_RESULTS}
    | {name for row in wire.MESSAGE_TYPES.values() for name in row.cls.__struct_fields__}
    | {name for op in wire.FS_OPS.values() for name in op.__struct_fields__}
)
values = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**65), 2**65) | st.floats() | st.text() | st.binary(),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(st.sampled_from(KEYS) | st.text() | st.binary() | st.integers(), inner, max_size=6)
        | st.builds(cbor2.CBORTag, st.integers(0, 2**64 - 1), inner)
    ),
    max_leaves=12,
)


@given(st.sampled_from(sorted(wire.MESSAGE_TYPES)), st.data())
@fuzz
def test_any_value_as_a_payload(name: str, data: st.DataObject) -> None:
    row = wire.MESSAGE_TYPES[name]
    fields = data.draw(st.dictionaries(st.sampled_from(row.cls.__struct_fields__ or ("x",)), values) | values)
    body = cbor2.dumps({"v": 7, "t": name, "p": cbor2.dumps(fields)})
    decode_or_refuse(Frame(1, row.flags, body))


@given(st.lists(st.binary(max_size=40) | mutated(), max_size=6))
@fuzz
def test_any_bytes_as_a_stream(pieces: list[bytes]) -> None:
    decoder = FrameDecoder()
    fed = taken = 0
    error: object = None
    for piece in pieces:
        error = outcome(partial(decoder.feed, piece))
        fed += len(piece)
        while error is None and (frame := outcome(decoder.next_frame)) is not None:
            if isinstance(frame, Frame):
                taken += 9 + len(frame.body)
            else:
                error = frame
        assert decoder.pending == (fed - taken if error is None else 0)
    if error is None:
        error = outcome(decoder.feed_eof)
        assert (error is None) == (fed == taken)
    assert error is None or (isinstance(error, ProtocolError) and error.kind == "bad_frame")


# --- the same thing in other words --------------------------------------------------------------


class Speller:
    """Writes a value in any accepted way; from a seed, because drawing each choice takes minutes."""

    def __init__(self, seed: int) -> None:
        self._random = random.Random(seed)

    def head(self, major: int, argument: int) -> bytes:
        """A head of any size into which the argument fits."""
        limits = (24, 2**8, 2**16, 2**32, 2**64)
        size = self._random.choice([size for size, limit in enumerate(limits) if argument < limit])
        if size == 0:
            return bytes([major << 5 | argument])
        return bytes([major << 5 | 23 + size]) + struct.pack(">" + "_BHIQ"[size], argument)

    def value(self, value: Any, *, choice: bool = False) -> bytes:
        """The value with tags in front. A ``choice`` is a map that must have a known length."""
        tags = self._random.choices([0, 2, 28, 29, 64, 55799], k=self._random.choice([0, 0, 1, 2]))
        return b"".join(self.head(6, tag) for tag in tags) + self._untagged(value, choice)

    def _flip(self) -> bool:
        return self._random.random() < 0.5

    def _untagged(self, value: Any, choice: bool) -> bytes:
        match value:
            case bool() | None:
                return cbor2.dumps(value)
            case int():
                return self.head(0, value) if value >= 0 else self.head(1, -1 - value)
            case str():
                return self.head(3, len(value.encode())) + value.encode()
            case bytes():
                return self._bytes(value)
            case list():
                return self._collection(4, [self.value(item) for item in value])
        return self._map(value, choice)

    def _bytes(self, value: bytes) -> bytes:
        match self._random.randrange(3):
            case 0:
                return self._untagged(list(value), False)
            case 1:
                cut = self._random.randint(0, len(value))
                parts = (value[:cut], value[cut:])
                return b"\x5f" + b"".join(self.head(2, len(part)) + part for part in parts) + b"\xff"
        return self.head(2, len(value)) + value

    def _map(self, value: dict[str, Any], choice: bool) -> bytes:
        entries = []
        for key, item in self._random.sample(list(value.items()), len(value)):
            written = self.value(key) if self._flip() else self.head(2, len(key)) + key.encode()
            is_choice = key in ("op", "data") and isinstance(item, dict)
            entries.append(written + self.value(item, choice=is_choice))
        if choice:
            return self.head(5, len(entries)) + b"".join(entries)
        if self._flip():
            entries.append(self.value("a key nobody knows") + self.value([1, [b"y"], None]))
        return self._collection(5, entries)

    def _collection(self, major: int, items: list[bytes]) -> bytes:
        if self._flip():
            return bytes([major << 5 | 31]) + b"".join(items) + b"\xff"
        return self.head(major, len(items)) + b"".join(items)


@pytest.mark.parametrize("vector", VECTORS, ids=lambda v: v["name"])
def test_every_accepted_spelling_says_the_same(vector: dict[str, Any]) -> None:
    recorded = frame_of(frame_bytes(vector))
    message = wire.decode(recorded)
    for seed in range(60):
        speller = Speller(seed)
        payload = speller.value(payload_of(vector)) + b"\xff"
        envelope = {"v": vector["v"], "t": vector["message_type"], "p": payload}
        body = speller.value(envelope) + b"\x00"
        assert wire.decode(Frame(recorded.id, recorded.flags, body)) == message, seed
        assert wire.peek_type(body) == vector["message_type"]

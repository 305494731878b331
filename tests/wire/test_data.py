"""Frames of data, which are written and read without a look at each byte."""

from __future__ import annotations

from typing import Any

import cbor2
import pytest

from tests.wire.wire_data import frame_of
from trio_console import _wire as wire
from trio_console._errors import ProtocolError
from trio_console._wire import Frame

DATA_CLASSES = [wire.ExecStdin, wire.ExecStdout, wire.ExecStderr, wire.FsData, wire.TcpData]
LARGEST = {
    wire.FsData: 4_194_262,
    wire.TcpData: 4_194_261,
    wire.ExecStdin: 4_194_259,
    wire.ExecStdout: 4_194_258,
    wire.ExecStderr: 4_194_258,
}
SIZES = [*range(30), *range(240, 262), 4096, *range(65520, 65545), 100_000]


@pytest.mark.parametrize("cls", DATA_CLASSES)
def test_data_is_written_as_a_plain_encoder_writes_it(cls: type[wire.DataMessage]) -> None:
    for size in SIZES:
        data = b"d" * size
        body = cbor2.dumps({"v": 7, "t": wire.type_of(cls).name, "p": cbor2.dumps({"data": data})})
        raw = wire.encode_data(cls, 9, data)
        assert raw == wire.encode_frame(9, 0, body) == wire.encode(cls(data), 9)
        assert wire.decode(frame_of(raw)) == cls(data)


@pytest.mark.parametrize("cls", DATA_CLASSES)
def test_the_largest_data_fits_and_one_byte_more_does_not(cls: type[wire.DataMessage]) -> None:
    raw = wire.encode_data(cls, 1, bytes(LARGEST[cls]))
    assert int.from_bytes(raw[:4], "big") == wire.MAX_FRAME_LENGTH
    assert wire.decode(frame_of(raw)) == cls(bytes(LARGEST[cls]))
    with pytest.raises(ProtocolError) as caught:
        wire.encode_data(cls, 1, bytes(LARGEST[cls] + 1))
    assert caught.value.kind == "bad_frame"


@pytest.mark.parametrize("size", [0, 5, 16, 17, 23, 24, 247, 248, 255, 256, 65526, 65527, 65535, 65536])
def test_data_in_any_canonical_frame_is_read_like_plain_cbor(size: int, monkeypatch: pytest.MonkeyPatch) -> None:
    frame = frame_of(wire.encode_data(wire.FsData, 1, bytes(size)))
    quick = wire.decode(frame)
    monkeypatch.setattr(wire.codec, "_DATA_BY_PREFIX", {})
    assert wire.decode(frame) == quick == wire.FsData(bytes(size))


def test_canonical_data_does_not_pass_through_cbor(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(data: bytes) -> None:
        raise AssertionError("decoded as CBOR")

    monkeypatch.setattr(wire.codec.cbor, "load", refuse)
    for size in (0, 16, 24, 247, 256, 4096, 65526, 65536, 1_000_000):
        for version in (5, 7, 10):
            sent = wire.ExecStdout(bytes(size))
            assert wire.decode(frame_of(wire.encode(sent, 1, version=version))) == sent


@pytest.mark.parametrize("view", [bytearray(b"abcd"), memoryview(b"abcd"), memoryview(b"abcd").cast("H")])
def test_any_buffer_can_be_sent(view: Any) -> None:
    assert wire.encode_data(wire.ExecStdin, 1, view) == wire.encode_data(wire.ExecStdin, 1, b"abcd")


@pytest.mark.parametrize("index", range(8, 45))
def test_a_data_frame_with_one_byte_changed_is_read_like_plain_cbor(
    index: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    raw = wire.encode_data(wire.ExecStdin, 1, b"abc")

    def outcome(changed: bytes) -> object:
        try:
            return wire.decode(Frame(1, 0, changed))
        except ProtocolError as exc:
            return (exc.kind, exc.field, exc.version)

    bodies = [(raw[:index] + bytes([value]) + raw[index + 1 :])[9:] for value in range(256)]
    quick = [outcome(body) for body in bodies]
    monkeypatch.setattr(wire.codec, "_DATA_BY_PREFIX", {})
    monkeypatch.setattr(wire.codec, "_BY_LEAD", {})
    assert [outcome(body) for body in bodies] == quick


@pytest.mark.parametrize("size", [*range(300), *range(65500, 65560), 70_000])
def test_canonical_data_of_every_size_is_seen_to_be_data(size: int) -> None:
    # At these sizes the two heads become longer one after the other, and not at the same size.
    raw = wire.encode(wire.ExecStdout(b"x" * size), 7)
    frame = wire.Frame(7, raw[8], raw[9:])
    assert wire.measure_data(frame) == (wire.ExecStdout, size)
    assert wire.decode(frame) == wire.ExecStdout(b"x" * size)

"""The frame decoder: however a stream is cut, it returns the frames that a plain reader finds, when complete."""

from __future__ import annotations

import zlib
from typing import TYPE_CHECKING, Final, NamedTuple

from tests.fuzz.targets.script import Script, outcome
from trio_console import _wire as wire
from trio_console._errors import ProtocolError

if TYPE_CHECKING:
    from collections.abc import Iterable

__all__ = ["fuzz_frames"]

#: The bounds of the length field, written a second time.
_LEAST: Final = 5
_MOST: Final = 4 * 1024 * 1024

#: The size of the largest whole frame: no more can be waiting for its end.
_LARGEST_FRAME: Final = 4 + _MOST

#: A stream up to this size is fed byte by byte as well.
_BYTEWISE: Final = 600

#: Values of a length field that a script can pick.
_LENGTHS: Final = (0, 4, 5, 6, 24, 4100, 4101, 4105, 65541, _MOST - 1, _MOST, _MOST, _MOST + 1, 2**31, 2**32 - 1)


class _Plain(NamedTuple):
    """The frames of a stream, the end of each, and the place where the stream is known to be broken, if any."""

    frames: list[wire.Frame]
    ends: list[int]
    broken_at: int | None
    left: int  # bytes of a frame that is not whole


def fuzz_frames(data: bytes) -> int:
    """A number of cuts, the sizes of the pieces, and the stream; or (by the first byte) what to make it of."""
    script = Script(data)
    how = script.byte()
    sizes = [script.byte() for _ in range(how % 32)]
    stream = _made(script) if how >> 5 == 1 else script.rest()
    plain = _plainly(stream)
    _check_read(stream, [stream], plain)
    _check_read(stream, _cut(stream, sizes), plain)
    if len(stream) <= _BYTEWISE:
        _check_read(stream, _cut(stream, [1] * len(stream)), plain)
    elif len(stream) > _MOST:
        _check_read(stream, _cut(stream, [4, 5, 4096, 1 << 20, 1 << 21]), plain)
    for frame in plain.frames:
        _check_encoded(frame)
    _check_bounds(zlib.crc32(data))
    return zlib.crc32(repr((len(stream), plain.ends, plain.broken_at, plain.left)).encode())


def _made(script: Script) -> bytes:
    """Frames with lengths at the bounds. At most one is large, because large ones take long."""
    parts: list[bytes] = []
    large = False
    while script and len(parts) < 40:
        length = script.pick(_LENGTHS)
        body = length - _LEAST
        if body > 70_000:
            # The length alone, or with all that it says where that is allowed.
            if large or length > _MOST or script.byte():
                body = script.byte()
            large |= body > 70_000
        head = length.to_bytes(4, "big") + script.take(5).ljust(5, b"\0")
        parts.append(head + bytes([script.byte()]) * max(0, body))
    return b"".join(parts)


def _plainly(stream: bytes) -> _Plain:
    frames: list[wire.Frame] = []
    ends: list[int] = []
    at = 0
    while len(stream) - at >= 4:
        length = int.from_bytes(stream[at : at + 4], "big")
        if not _LEAST <= length <= _MOST:
            return _Plain(frames, ends, at + 4, 0)
        end = at + 4 + length
        if end > len(stream):
            break
        id_ = int.from_bytes(stream[at + 4 : at + 8], "big")
        frames.append(wire.Frame(id_, stream[at + 8], stream[at + 9 : end]))
        ends.append(end)
        at = end
    return _Plain(frames, ends, None, len(stream) - at)


def _cut(stream: bytes, sizes: Iterable[int]) -> list[bytes]:
    """The stream in pieces of these sizes (some empty), and a last one with the rest."""
    pieces = []
    at = 0
    for size in sizes:
        pieces.append(stream[at : at + size])
        at += size
    return [*pieces, stream[at:]]


def _check_read(stream: bytes, pieces: list[bytes], plain: _Plain) -> None:
    decoder = wire.FrameDecoder()
    got = fed = 0
    try:
        for piece in pieces:
            decoder.feed(piece)
            fed += len(piece)
            for frame in decoder:
                assert frame == plain.frames[got], "a frame that was not sent"
                got += 1
                assert decoder.pending == fed - plain.ends[got - 1]
            assert got == sum(end <= fed for end in plain.ends), "a frame is there and not taken"
            assert plain.broken_at is None or fed < plain.broken_at, "goes on behind a length out of bounds"
            assert decoder.pending < _LARGEST_FRAME
        assert decoder.pending == plain.left
        decoder.feed_eof()
        assert not plain.left, "ended inside a frame"
    except ProtocolError as exc:
        assert got == len(plain.frames), "an error before its time"
        assert plain.left or (plain.broken_at is not None and fed >= plain.broken_at), "an error for nothing"
        _check_broken(decoder, exc)
        return
    assert got == len(plain.frames)
    assert plain.broken_at is None


def _check_broken(decoder: wire.FrameDecoder, error: ProtocolError) -> None:
    """After an error every call raises it again, and no bytes are kept."""
    assert error.kind == "bad_frame"
    assert decoder.pending == 0
    ping = wire.encode(wire.Ping())
    for call in (decoder.next_frame, lambda: decoder.feed(ping), decoder.feed_eof, decoder.next_frame):
        assert repr(outcome(call)) == repr(error), "a broken decoder went on"


def _check_encoded(frame: wire.Frame) -> None:
    head = (_LEAST + len(frame.body)).to_bytes(4, "big") + frame.id.to_bytes(4, "big") + bytes([frame.flags])
    assert wire.encode_frame(*frame) == head + bytes(frame.body)


def _check_bounds(number: int) -> None:
    """The encoder and the decoder have the same bounds."""
    id_ = (0, 1, 2**32 - 1, 2**32, -1)[number % 5]
    flags = (0, 1, 255, 256, -1)[number // 5 % 5]
    fits = 0 <= id_ < 2**32 and 0 <= flags < 256
    try:
        raw = wire.encode_frame(id_, flags, b"b")
    except ValueError:
        assert not fits
    else:
        assert fits
        _check_read(raw, [raw], _plainly(raw))
    if number % 256 == 1:  # which takes its time
        body = bytes(_MOST - _LEAST)
        assert len(wire.encode_frame(1, 0, body)) == _LARGEST_FRAME
        refused = outcome(lambda: wire.encode_frame(1, 0, body + b"\0"))
        assert isinstance(refused, ProtocolError)
        assert refused.kind == "bad_frame"

"""The frame decoder: however a stream is cut, it is the same frames and the same end."""

from __future__ import annotations

from typing import TYPE_CHECKING

from fuzz.targets.script import Script, outcome
from trio_console import _protocol as wire
from trio_console._errors import ProtocolError

if TYPE_CHECKING:
    from collections.abc import Iterable

__all__ = ["fuzz_frames"]

#: The size of the largest whole frame: no more can be waiting for its end.
_LARGEST_FRAME = 4 + wire.MAX_FRAME_LENGTH

#: A stream up to this size is fed byte by byte as well.
_BYTEWISE = 600


def fuzz_frames(data: bytes) -> None:
    """A number of cuts, the sizes of the pieces, and the stream."""
    script = Script(data)
    sizes = [script.byte() for _ in range(script.byte() % 32)]
    stream = script.rest()
    whole = _read(stream, [stream])
    assert _read(stream, _cut(stream, sizes)) == whole
    if len(stream) <= _BYTEWISE:
        assert _read(stream, _cut(stream, [1] * len(stream))) == whole


def _cut(stream: bytes, sizes: Iterable[int]) -> list[bytes]:
    """The stream in pieces of these sizes (some empty), and a last one with the rest."""
    pieces = []
    at = 0
    for size in sizes:
        pieces.append(stream[at : at + size])
        at += size
    return [*pieces, stream[at:]]


def _read(stream: bytes, pieces: list[bytes]) -> tuple[list[wire.Frame], str | None]:
    """All frames, and the error that ends them, if one does."""
    decoder = wire.FrameDecoder()
    frames: list[wire.Frame] = []
    taken = fed = 0
    try:
        for piece in pieces:
            decoder.feed(piece)
            fed += len(piece)
            for frame in decoder:
                frames.append(frame)
                raw = wire.encode_frame(*frame)
                assert stream.startswith(raw, taken), "a frame that was not sent"
                taken += len(raw)
                assert decoder.pending == fed - taken
            assert decoder.pending == fed - taken < _LARGEST_FRAME
        decoder.feed_eof()
    except ProtocolError as exc:
        _check_broken(decoder, exc)
        return frames, str(exc)
    assert taken == len(stream), "bytes that are in no frame"
    return frames, None


def _check_broken(decoder: wire.FrameDecoder, error: ProtocolError) -> None:
    """An error is for good, and nothing is held after it."""
    assert error.kind == "bad_frame"
    assert decoder.pending == 0
    ping = wire.encode(wire.Ping())
    for call in (decoder.next_frame, lambda: decoder.feed(ping), decoder.feed_eof, decoder.next_frame):
        assert repr(outcome(call)) == repr(error), "a broken decoder went on"

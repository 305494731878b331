"""Frames: they may be cut anywhere, are bounded and parsed in linear time; a stream out of step stays an error."""

from __future__ import annotations

import sys
import tracemalloc
from typing import Any, Self

import pytest

from trio_console._errors import ProtocolError
from trio_console._wire import (
    HEADER_SIZE,
    MAX_FRAME_LENGTH,
    MIN_FRAME_LENGTH,
    Frame,
    FrameDecoder,
    encode_again,
    encode_frame,
    quoted,
)
from trio_console._wire import frames as _frames

MAX_BODY = MAX_FRAME_LENGTH - MIN_FRAME_LENGTH

CASES = {
    "empty_body": [Frame(1, 0, b"")],
    "one_byte": [Frame(2**32 - 1, 255, b"x")],
    "small": [Frame(7, 2, b"hello world")],
    "two": [Frame(7, 2, b"hello"), Frame(8, 1, b"")],
    "many": [Frame(i, i % 8, bytes(i)) for i in range(20)],
}


def encoded(frames: list[Frame]) -> bytes:
    return b"".join(encode_frame(*frame) for frame in frames)


@pytest.mark.parametrize("frames", CASES.values(), ids=CASES)
def test_frames_fed_whole_come_out(frames: list[Frame]) -> None:
    decoder = FrameDecoder()
    decoder.feed(encoded(frames))
    assert list(decoder) == frames
    assert decoder.pending == 0


@pytest.mark.parametrize("frames", CASES.values(), ids=CASES)
def test_frames_fed_byte_by_byte_come_out_with_their_last_byte(frames: list[Frame]) -> None:
    decoder = FrameDecoder()
    taken: list[Frame] = []
    for frame in frames:
        raw = encode_frame(*frame)
        for byte in raw[:-1]:
            decoder.feed(bytes([byte]))
            assert decoder.next_frame() is None
        decoder.feed(raw[-1:])
        taken += decoder
    assert taken == frames


@pytest.mark.parametrize("frames", CASES.values(), ids=CASES)
def test_trailing_bytes_stay_for_later(frames: list[Frame]) -> None:
    decoder = FrameDecoder()
    decoder.feed(encoded(frames) + b"\0\0\0")
    assert list(decoder) == frames
    assert decoder.pending == 3
    decoder.feed(encode_frame(5, 0, b"abc")[3:])
    assert list(decoder) == [Frame(5, 0, b"abc")]


@pytest.mark.parametrize("frames", CASES.values(), ids=CASES)
def test_any_cut_in_two_gives_the_same_frames(frames: list[Frame]) -> None:
    raw = encoded(frames)
    for cut in range(len(raw) + 1):
        decoder = FrameDecoder()
        decoder.feed(raw[:cut])
        taken = list(decoder)
        decoder.feed(raw[cut:])
        assert taken + list(decoder) == frames


def test_chunks_may_pile_up_before_frames_are_taken() -> None:
    decoder = FrameDecoder()
    raw = encoded(CASES["many"])
    for start in range(0, len(raw), 7):
        decoder.feed(raw[start : start + 7])
    assert decoder.pending == len(raw)
    assert list(decoder) == CASES["many"]
    assert decoder.pending == 0


def test_next_frame_takes_one_at_a_time() -> None:
    decoder = FrameDecoder()
    decoder.feed(encoded(CASES["two"]))
    assert [decoder.next_frame() for _ in range(3)] == [*CASES["two"], None]


def test_no_bytes_are_no_end_of_file() -> None:
    decoder = FrameDecoder()
    decoder.feed(b"")
    assert decoder.next_frame() is None
    decoder.feed(encode_frame(1, 0, b"a"))
    assert decoder.next_frame() == Frame(1, 0, b"a")


def test_a_fed_buffer_may_be_changed_afterwards() -> None:
    buffer = bytearray(encode_frame(1, 0, b"abc"))
    decoder = FrameDecoder()
    decoder.feed(buffer)  # type: ignore[arg-type]
    buffer[:] = bytes(len(buffer))
    assert decoder.next_frame() == Frame(1, 0, b"abc")


@pytest.mark.parametrize("body_size", [MAX_BODY - 1, MAX_BODY])
def test_a_frame_up_to_the_maximum_goes_both_ways(body_size: int) -> None:
    body = bytes(body_size)
    decoder = FrameDecoder()
    decoder.feed(encode_frame(1, 0, body))
    assert decoder.next_frame() == Frame(1, 0, body)


def test_a_body_over_the_maximum_is_refused_before_anything_is_built() -> None:
    with pytest.raises(ProtocolError, match="too large") as caught:
        encode_frame(9, 0, bytes(MAX_BODY + 1))
    assert (caught.value.kind, caught.value.frame_id) == ("bad_frame", 9)


@pytest.mark.parametrize(("frame_id", "flags"), [(-1, 0), (2**32, 0), (0, -1), (0, 256)])
def test_an_id_or_flags_out_of_range_are_a_value_error(frame_id: int, flags: int) -> None:
    with pytest.raises(ValueError, match="out of range") as caught:
        encode_frame(frame_id, flags, b"")
    assert not isinstance(caught.value, ProtocolError)


@pytest.mark.parametrize("cut", [0, 1, 3, 4])
@pytest.mark.parametrize("length", [MIN_FRAME_LENGTH - 1, 0, MAX_FRAME_LENGTH + 1, 2**32 - 1])
def test_a_length_out_of_bounds_is_fatal_as_soon_as_it_is_known(length: int, cut: int) -> None:
    raw = length.to_bytes(4, "big")
    decoder = FrameDecoder()
    decoder.feed(raw[:cut])
    if cut < 4:
        assert decoder.next_frame() is None
    decoder.feed(raw[cut:])
    with pytest.raises(ProtocolError, match=r"too (large|short)") as caught:
        decoder.next_frame()
    assert caught.value.kind == "bad_frame"


@pytest.mark.parametrize("length", [MIN_FRAME_LENGTH, MIN_FRAME_LENGTH + 1, MAX_FRAME_LENGTH])
def test_a_length_within_bounds_waits_for_the_rest(length: int) -> None:
    decoder = FrameDecoder()
    decoder.feed(length.to_bytes(4, "big"))
    assert decoder.next_frame() is None
    assert decoder.pending == 4


def test_frames_before_a_bad_length_are_delivered_first() -> None:
    decoder = FrameDecoder()
    decoder.feed(encoded(CASES["two"]) + b"\xff\xff\xff\xff" + encoded(CASES["small"]))
    assert [decoder.next_frame(), decoder.next_frame()] == CASES["two"]
    with pytest.raises(ProtocolError):
        decoder.next_frame()


def test_after_an_error_every_call_raises_it_again() -> None:
    decoder = FrameDecoder()
    decoder.feed(bytes(4))
    with pytest.raises(ProtocolError) as first:
        decoder.next_frame()
    again: list[Any] = [
        decoder.next_frame,
        lambda: list(decoder),
        lambda: decoder.feed(encoded(CASES["small"])),
        lambda: decoder.feed(b""),
        decoder.feed_eof,
    ]
    for call in again:
        with pytest.raises(ProtocolError) as caught:
            call()
        assert (str(caught.value), caught.value.kind) == (str(first.value), "bad_frame")
    assert decoder.pending == 0


def test_an_end_between_frames_is_clean() -> None:
    decoder = FrameDecoder()
    decoder.feed(encoded(CASES["two"]))
    assert list(decoder) == CASES["two"]
    decoder.feed_eof()
    assert decoder.next_frame() is None


def test_an_end_before_any_byte_is_clean() -> None:
    decoder = FrameDecoder()
    decoder.feed_eof()
    assert list(decoder) == []


@pytest.mark.parametrize("cut", range(1, HEADER_SIZE + 3))
def test_an_end_inside_a_frame_is_an_error_for_good(cut: int) -> None:
    decoder = FrameDecoder()
    decoder.feed(encode_frame(1, 0, b"abc")[:cut])
    assert decoder.next_frame() is None
    for _ in range(2):
        with pytest.raises(ProtocolError, match="inside a frame"):
            decoder.feed_eof()


def test_an_end_announced_early_lets_the_frames_before_it_through() -> None:
    decoder = FrameDecoder()
    decoder.feed(encoded(CASES["two"]) + b"\0\0")
    decoder.feed_eof()
    assert [decoder.next_frame(), decoder.next_frame()] == CASES["two"]
    with pytest.raises(ProtocolError, match="inside a frame"):
        decoder.next_frame()


def test_a_maximal_frame_and_the_next_are_split_right_wherever_they_are_cut() -> None:
    frames = [Frame(1, 0, b"m" * MAX_BODY), Frame(2, 1, b"next"), Frame(3, 0, b"")]
    raw = encoded(frames)
    border = HEADER_SIZE + MAX_BODY
    near = {c + d for c in (0, HEADER_SIZE, border, border + HEADER_SIZE + 4) for d in range(-10, 11)}
    cuts = sorted(cut for cut in near | {border // 2, len(raw)} if 0 <= cut <= len(raw))
    for cut in cuts:
        decoder = FrameDecoder()
        decoder.feed(raw[:cut])
        taken = list(decoder)
        decoder.feed(raw[cut:])
        assert taken + list(decoder) == frames, cut
        assert decoder.pending == 0


class CountingBuffer(bytearray):
    """Counts every byte that is copied into such a buffer."""

    copied = 0

    def __iadd__(self, other: Any) -> Self:
        CountingBuffer.copied += len(other)
        super().__iadd__(other)
        return self


@pytest.mark.parametrize("piece", [1000, 4096, 65536])
def test_each_byte_is_copied_at_most_twice(piece: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_frames, "bytearray", CountingBuffer, raising=False)
    CountingBuffer.copied = 0
    raw = encoded([Frame(1, 0, bytes(MAX_BODY)), Frame(2, 0, bytes(100_000)), Frame(3, 0, b"")])
    decoder = FrameDecoder()
    out = 0
    for start in range(0, len(raw), piece):
        decoder.feed(raw[start : start + piece])
        out += sum(len(frame.body) for frame in decoder)
    assert out == MAX_BODY + 100_000
    assert CountingBuffer.copied <= len(raw)


def test_a_large_frame_within_one_chunk_is_a_view_of_it() -> None:
    decoder = FrameDecoder()
    raw = encoded([Frame(1, 0, bytes(100_000)), Frame(2, 0, b"next")])
    decoder.feed(raw)
    large, small = decoder
    assert isinstance(large.body, memoryview)
    assert large.body.obj is raw
    assert large.body.readonly
    assert isinstance(small.body, bytes)


@pytest.mark.parametrize("cut", [1, 4, 50_000])
def test_a_frame_that_was_joined_is_passed_on_as_it_came(cut: int) -> None:
    decoder = FrameDecoder()
    raw = encode_frame(7, 1, bytes(100_000))
    decoder.feed(raw[:cut])
    assert decoder.next_frame() is None
    decoder.feed(raw[cut:])
    frame = decoder.next_frame()
    assert frame is not None
    assert isinstance(frame.body, memoryview)
    assert encode_again(frame) == raw
    assert encode_again(frame) is encode_again(frame)


@pytest.mark.parametrize(("before", "after"), [(b"", b"x"), (b"x", b"")])
def test_a_frame_that_shares_its_chunk_is_passed_on_without_the_rest(before: bytes, after: bytes) -> None:
    decoder = FrameDecoder()
    others = [encode_frame(1, 0, part) for part in (before, after)]
    raw = encode_frame(7, 1, bytes(100_000))
    decoder.feed(others[0] + raw + others[1])
    assert [encode_again(frame) for frame in decoder] == [others[0], raw, others[1]]


def test_a_body_that_is_part_of_a_frame_is_a_body_like_any_other() -> None:
    body = memoryview(encode_frame(7, 1, bytes(range(256)) * 40))[:-9]
    assert encode_frame(7, 1, body) == encode_frame(7, 1, bytes(body))


def test_a_frame_that_dribbles_in_costs_little_more_than_its_bytes() -> None:
    raw = encode_frame(1, 0, bytes(200_000))
    decoder = FrameDecoder()
    tracemalloc.start()
    try:
        for start in range(len(raw) - 1):
            decoder.feed(raw[start : start + 1])
            assert decoder.next_frame() is None
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 2 * len(raw)
    decoder.feed(raw[-1:])
    assert decoder.next_frame() == Frame(1, 0, bytes(200_000))


def test_a_frame_within_one_chunk_is_not_gathered(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_frames, "bytearray", CountingBuffer, raising=False)
    CountingBuffer.copied = 0
    decoder = FrameDecoder()
    decoder.feed(encoded(CASES["many"]))
    assert list(decoder) == CASES["many"]
    assert CountingBuffer.copied == 0


def _calls_to_decode(size: int) -> int:
    raw = encode_frame(1, 0, bytes(size))
    decoder = FrameDecoder()
    calls = 0

    def count(*_: Any) -> None:
        nonlocal calls
        calls += 1

    before = sys.getprofile()
    sys.setprofile(count)
    try:
        for start in range(0, len(raw), 4096):
            decoder.feed(raw[start : start + 4096])
            frame = decoder.next_frame()
    finally:
        sys.setprofile(before)
    assert frame is not None
    return calls


def test_work_grows_no_faster_than_the_frame() -> None:
    assert _calls_to_decode(4 * 1000 * 1000) < 4.2 * _calls_to_decode(1000 * 1000)


def test_what_is_pending_is_what_was_fed_and_not_taken() -> None:
    decoder = FrameDecoder()
    raw = encoded(CASES["many"])
    fed = taken = 0
    for start in range(0, len(raw), 11):
        decoder.feed(raw[start : start + 11])
        fed += len(raw[start : start + 11])
        assert decoder.pending == fed - taken
        for frame in decoder:
            taken += HEADER_SIZE + len(frame.body)
            assert decoder.pending == fed - taken


# Frames that are there as a whole


@pytest.mark.parametrize("size", range(4))
def test_the_size_of_a_frame_is_not_known_before_its_length_is_there(size: int) -> None:
    assert _frames.parse_size(encode_frame(7, 1, b"body")[:size]) is None


@pytest.mark.parametrize("body", [b"", b"body", bytes(MAX_FRAME_LENGTH - MIN_FRAME_LENGTH)])
def test_a_whole_frame_is_taken_apart(body: bytes) -> None:
    raw = encode_frame(7, 1, body)
    assert _frames.parse_size(bytearray(raw[:4])) == len(raw)
    assert _frames.parse_frame(raw) == Frame(7, 1, body)


@pytest.mark.parametrize("length", [0, MIN_FRAME_LENGTH - 1, MAX_FRAME_LENGTH + 1, 2**32 - 1])
def test_a_size_out_of_bounds_is_an_error(length: int) -> None:
    with pytest.raises(ProtocolError, match=f"length {length}") as caught:
        _frames.parse_size(length.to_bytes(4, "big"))
    assert caught.value.kind == "bad_frame"


BANNER = b"Welcome to machine-7\r\nlast login: today\n"


@pytest.mark.parametrize("cut", range(6))
def test_text_in_place_of_a_frame_is_shown(cut: int) -> None:
    decoder = FrameDecoder()
    decoder.feed(BANNER[:cut])
    if cut < 4:
        assert decoder.next_frame() is None
        decoder.feed(BANNER[cut:])
    with pytest.raises(ProtocolError, match=r"length 1466264675 .*text: 'Welc") as caught:
        decoder.next_frame()
    assert cut in (4, 5) or r"machine-7\r\nlast login" in str(caught.value)


def test_text_behind_frames_is_shown() -> None:
    decoder = FrameDecoder()
    decoder.feed(encode_frame(1, 0, b"abc") + BANNER)
    assert decoder.next_frame() == Frame(1, 0, b"abc")
    with pytest.raises(ProtocolError, match="text: 'Welcome"):
        decoder.next_frame()


def test_a_long_text_is_cut() -> None:
    decoder = FrameDecoder()
    decoder.feed(b"x" * 100_000)
    with pytest.raises(ProtocolError) as caught:
        decoder.next_frame()
    assert len(str(caught.value)) < 300


@pytest.mark.parametrize("text", ["über alles", "\x1b[1mbold", "\n\nhello", "日本"])
def test_text_is_recognised(text: str) -> None:
    assert quoted(text.encode()) == f"; the bytes are text: {text!r}"


@pytest.mark.parametrize("raw", [b"", b"\xff\xff\xff\xff", b"ab\0\0", b"\x07abc"])
def test_bytes_that_are_no_text_are_not_shown(raw: bytes) -> None:
    assert quoted(raw) == ""


def test_a_text_too_short_for_a_frame_is_shown_at_its_end() -> None:
    decoder = FrameDecoder()
    decoder.feed(b"no\n")
    assert decoder.next_frame() is None
    with pytest.raises(ProtocolError, match=r"inside a frame.*text: 'no"):
        decoder.feed_eof()


def test_the_echo_of_a_terminal_is_recognised() -> None:
    decoder = FrameDecoder()
    decoder.feed(b"^@^@^A^Q^@^@^@^@^@abc")
    with pytest.raises(ProtocolError, match="a terminal that is not in raw mode"):
        decoder.next_frame()

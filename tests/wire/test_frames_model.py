"""The frame decoder against a model: a buffer that is parsed from its beginning each time."""

from __future__ import annotations

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from trio_console._errors import ProtocolError
from trio_console._wire import HEADER_SIZE, MAX_FRAME_LENGTH, MIN_FRAME_LENGTH, Frame, FrameDecoder, encode_frame

FRAMES = st.builds(Frame, st.integers(0, 2**32 - 1), st.integers(0, 255), st.binary(max_size=12))
BAD_LENGTHS = st.integers(0, MIN_FRAME_LENGTH - 1) | st.integers(MAX_FRAME_LENGTH + 1, 2**32 - 1)


class BadLength(Exception):
    pass


class DecoderModel(RuleBasedStateMachine):
    """A peer writes frames, a transport cuts them anywhere, a reader takes them when it likes."""

    def __init__(self) -> None:
        super().__init__()
        self.decoder = FrameDecoder()
        self.wire = b""  # written, and not delivered
        self.buffer = b""  # delivered, and not taken
        self.ended = False
        self.broken = ""  # what the error said

    def front(self) -> Frame | None:
        """The frame at the front of the buffer, if it is complete."""
        if len(self.buffer) < 4:
            return None
        length = int.from_bytes(self.buffer[:4], "big")
        if not MIN_FRAME_LENGTH <= length <= MAX_FRAME_LENGTH:
            raise BadLength
        if len(self.buffer) < 4 + length:
            return None
        return Frame(int.from_bytes(self.buffer[4:8], "big"), self.buffer[8], self.buffer[9 : 4 + length])

    def has_broken(self, error: ProtocolError) -> None:
        assert error.kind == "bad_frame"
        self.broken = str(error)
        self.buffer = b""

    @rule(frame=FRAMES)
    def write(self, frame: Frame) -> None:
        self.wire += encode_frame(*frame)

    @rule(length=BAD_LENGTHS, rest=st.binary(max_size=6))
    def write_garbage(self, length: int, rest: bytes) -> None:
        self.wire += length.to_bytes(4, "big") + rest

    def deliver(self, size: int) -> None:
        data, self.wire = self.wire[:size], self.wire[size:]
        self.decoder.feed(data)
        self.buffer += data

    @precondition(lambda self: not (self.broken or self.ended))
    @rule(size=st.integers(0, 30))
    def deliver_some(self, size: int) -> None:
        self.deliver(size)

    @precondition(lambda self: not (self.broken or self.ended))
    @rule(taking=st.booleans())
    def deliver_byte_by_byte(self, taking: bool) -> None:
        while self.wire and not self.broken:
            self.deliver(1)
            if taking:
                self.take()

    @precondition(lambda self: not self.broken)
    @rule()
    def take(self) -> None:
        try:
            expected = self.front()
        except BadLength:
            with pytest.raises(ProtocolError, match="frame too") as caught:
                self.decoder.next_frame()
            self.has_broken(caught.value)
            return
        if expected is None and self.ended and self.buffer:
            with pytest.raises(ProtocolError, match="ended inside a frame") as caught:
                self.decoder.next_frame()
            self.has_broken(caught.value)
            return
        assert self.decoder.next_frame() == expected
        if expected is not None:
            self.buffer = self.buffer[HEADER_SIZE + len(expected.body) :]

    @precondition(lambda self: not self.broken)
    @rule()
    def take_all(self) -> None:
        frames = iter(self.decoder)
        while True:
            try:
                expected = self.front()
            except BadLength:
                expected = None
            if expected is None:
                break
            assert next(frames) == expected
            self.buffer = self.buffer[HEADER_SIZE + len(expected.body) :]
        self.take()

    @precondition(lambda self: not (self.broken or self.ended))
    @rule()
    def end(self) -> None:
        self.ended = True
        try:
            complete = self.front() is not None
        except BadLength:
            complete = True  # the error of this frame comes when it is taken
        try:
            self.decoder.feed_eof()
        except ProtocolError as exc:
            assert self.buffer
            assert not complete  # complete frames come first
            self.has_broken(exc)

    @precondition(lambda self: self.broken)
    @rule()
    def everything_says_that_it_is_broken(self) -> None:
        for call in (lambda: self.decoder.feed(b"x"), self.decoder.next_frame, self.decoder.feed_eof):
            with pytest.raises(ProtocolError) as caught:
                call()
            assert str(caught.value) == self.broken

    @invariant()
    def what_is_pending_was_delivered_and_not_taken(self) -> None:
        assert self.decoder.pending == len(self.buffer)


DecoderModel.TestCase.settings = settings(max_examples=150, stateful_step_count=40, deadline=None)
TestDecoderAgainstItsModel = DecoderModel.TestCase

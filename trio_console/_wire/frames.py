"""Frames: the cut of a byte stream into ``(id, flags, body)``.

A frame is a big-endian u32 length, a u32 id, one byte of flags and a body; the length counts all bytes after
itself. This module must not know the contents of a body, and does no I/O: bytes go in, frames come out.

Rules:

* A length outside ``MIN_FRAME_LENGTH ..= MAX_FRAME_LENGTH`` is fatal. The next frame cannot be found after it, so
  the decoder stays broken, and each later call raises the error.
* The work is linear in the bytes fed, however they are cut. A small frame that lies wholly inside one fed chunk is
  sliced out of it (one copy); a large one is a view of the chunk (no copy); a frame that is cut over chunks is
  joined (one copy).
* The decoder keeps the bytes that were fed and not yet taken. An incomplete frame is never larger than one maximal
  frame.
"""

from __future__ import annotations

from collections import deque
from struct import Struct
from typing import TYPE_CHECKING, Final, NamedTuple, NoReturn, final

from trio_console._errors import ProtocolError, again

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = [
    "FLAG_SESSION_START",
    "FLAG_SHUTDOWN",
    "FLAG_TERMINAL",
    "HEADER_SIZE",
    "MAX_FRAME_LENGTH",
    "MIN_FRAME_LENGTH",
    "Frame",
    "FrameDecoder",
    "encode_again",
    "encode_frame",
    "id_of",
    "parse_frame",
    "parse_size",
    "quoted",
]

MAX_FRAME_LENGTH: Final = 4 * 1024 * 1024
"""Largest value of the length field, inclusive; the largest whole frame is four bytes more."""

MIN_FRAME_LENGTH: Final = 5
"""Smallest value of the length field: the id, the flags and an empty body."""

HEADER_SIZE: Final = 9
"""Bytes before the body, the length field included."""

FLAG_TERMINAL: Final = 1
"""Last frame of its id."""

FLAG_SESSION_START: Final = 2
"""First frame of a session."""

FLAG_SHUTDOWN: Final = 4
"""Tells relays on the way that the guest is about to go."""

_LENGTH_SIZE: Final = 4
_MAX_ID: Final = 2**32 - 1
_HEADER: Final = Struct(">IIB")


_LARGE: Final = 4096
"""Bytes from which on a view costs less than a copy. Most of a large body is data, and will be copied out of there
once more anyway."""


_QUOTED: Final = 200
"""The most bytes that an error quotes."""

_LAYOUT: Final = frozenset("\t\n\r\x1b")
"""Control characters that a text may begin with."""

_ECHO: Final = "^@^@"
"""How a terminal that is not in raw mode echoes the first two bytes of a frame, which are zero in a small one."""


def quoted(data: bytes) -> str:
    """The end of an error's message about bytes that are not frames: it shows them if they are text, else nothing.

    Text comes from a program beside the peer, such as a greeting at a login, and tells which program that is.
    """
    text = bytes(data[:_QUOTED]).decode(errors="replace")
    if not text or not all(char in _LAYOUT or (char.isprintable() and char != "\ufffd") for char in text[:4]):
        return ""
    if text.startswith(_ECHO):
        return f"; the bytes are what a terminal that is not in raw mode echoes ({text[:20]!r}): use no terminal"
    return f"; the bytes are text: {text!r}"


class Frame(NamedTuple):
    """One frame of the stream: a 32-bit ``id``, one byte of ``flags``, and the ``body``.

    A large body is a read-only view, which keeps the whole chunk that it came in: copy the needed parts, and
    release the frame.
    """

    id: int
    flags: int
    body: bytes | memoryview


def encode_frame(frame_id: int, flags: int, body: bytes | memoryview) -> bytes:
    """Return the bytes of one whole frame.

    Args:
        frame_id: correlation id, ``0 ..= 2**32 - 1``.
        flags: the flags byte, ``0 ..= 255``.
        body: at most ``MAX_FRAME_LENGTH - 5`` bytes.

    Raises:
        ProtocolError: the frame would be longer than a peer accepts. Nothing has been built.
        ValueError: ``id`` or ``flags`` do not fit their fields.
    """
    return b"".join((encode_header(frame_id, flags, len(body)), body))


def encode_again(frame: Frame) -> bytes:
    """Return the bytes of a frame that a decoder has returned; a large one that is all of its chunk is not copied.

    Only for frames of a decoder: of a view only the size and the underlying object are checked.
    """
    body = frame.body
    if isinstance(body, memoryview):
        whole = body.obj
        if isinstance(whole, bytes) and len(whole) == HEADER_SIZE + len(body):
            return whole
    return encode_frame(*frame)


def parse_size(start: bytes | bytearray) -> int | None:
    """Return the size of the whole frame that begins with these bytes; ``None`` if they are too few to tell.

    Raises:
        ProtocolError: (kind ``bad_frame``) a length out of bounds.
    """
    if len(start) < _LENGTH_SIZE:
        return None
    length = int.from_bytes(start[:_LENGTH_SIZE], "big")
    if not MIN_FRAME_LENGTH <= length <= MAX_FRAME_LENGTH:
        raise ProtocolError(
            f"frame too {'large' if length > MAX_FRAME_LENGTH else 'short'}: length {length}", kind="bad_frame"
        )
    return _LENGTH_SIZE + length


def id_of(raw: bytes) -> int:
    """Return the id in these bytes, which must be one whole frame."""
    return int.from_bytes(raw[_LENGTH_SIZE : _LENGTH_SIZE + 4], "big")


def parse_frame(raw: bytes) -> Frame:
    """Return the frame in these bytes, which must be one whole frame."""
    _, frame_id, flags = _HEADER.unpack_from(raw)
    return Frame(frame_id, flags, raw[HEADER_SIZE:])


def encode_header(frame_id: int, flags: int, body_size: int) -> bytes:
    """Return the header of a frame with a body of ``body_size`` bytes; raises as `encode_frame`."""
    length = MIN_FRAME_LENGTH + body_size
    if length > MAX_FRAME_LENGTH:
        raise ProtocolError(
            f"frame too large: length {length} of id {frame_id} exceeds {MAX_FRAME_LENGTH}",
            kind="bad_frame",
            frame_id=frame_id,
        )
    if not 0 <= frame_id <= _MAX_ID or not 0 <= flags <= 0xFF:
        raise ValueError(
            f"id {frame_id} or flags {flags} out of range: an id is 0 to 2**32 - 1, flags are 0 to 255"
        )
    return _HEADER.pack(length, frame_id, flags)


def _cut(raw: bytes, start: int, end: int) -> bytes | memoryview:
    return raw[start:end] if end - start < _LARGE else memoryview(raw)[start:end]


@final
class FrameDecoder:
    """Turns bytes, cut anywhere, into frames.

    Call ``feed`` with bytes; then take frames with `next_frame`, or by iterating, until there are none. An error
    is raised once the frames before it have been taken, and by every call from then on.
    """

    __slots__ = ("_at_eof", "_chunks", "_error", "_have", "_partial", "_pending", "_position", "_size")

    def __init__(self) -> None:
        # Fed and not looked at yet. Only the first can have been used up in part.
        self._chunks: deque[bytes] = deque()
        self._position = 0
        # A frame that was begun in a chunk since dropped, never longer than that frame: its pieces, the bytes they
        # are, and the size of the whole frame (0 while its length field is not there).
        self._partial: list[memoryview | bytearray] = []
        self._have = 0
        self._size = 0
        self._pending = 0
        self._at_eof = False
        self._error: ProtocolError | None = None

    @property
    def pending(self) -> int:
        """The number of bytes that were fed and not returned in a frame yet."""
        return self._pending

    def feed(self, data: bytes) -> None:
        """Add bytes. A ``bytes`` object is kept by reference until its frames were taken.

        Raises:
            ProtocolError: the stream broke earlier.
        """
        self._raise_if_broken()
        chunk = bytes(data)
        if chunk:
            self._chunks.append(chunk)
            self._pending += len(chunk)

    def feed_eof(self) -> None:
        """Note that no more bytes come.

        Raises:
            ProtocolError: the stream broke earlier or ends inside a frame. If there are frames left
                to take, they come first and the call after the last of them raises.
        """
        self._raise_if_broken()
        self._at_eof = True
        if not self._chunks:
            self._check_end()

    def __iter__(self) -> Iterator[Frame]:
        """Take the frames that are complete; stops when more bytes are needed."""
        while (frame := self.next_frame()) is not None:
            yield frame

    def next_frame(self) -> Frame | None:
        """Take one frame, or ``None`` if more bytes are needed.

        Raises:
            ProtocolError: (kind ``bad_frame``) a length out of bounds, or the end of the stream inside
                a frame.
        """
        self._raise_if_broken()
        while self._chunks:
            frame = self._finish_partial() if self._partial else self._cut_whole()
            if frame is not None:
                return frame
        if self._at_eof:
            self._check_end()
        return None

    def _cut_whole(self) -> Frame | None:
        """Cut a frame out of the first chunk, or set aside what is left of that chunk."""
        chunk, start = self._chunks[0], self._position
        left = len(chunk) - start
        if left >= _LENGTH_SIZE:
            # The length is checked before the rest has come, because a wrong length is fatal.
            self._size = size = self._frame_size(chunk[start : start + _LENGTH_SIZE])
            if size <= left:
                self._size = 0
                _, frame_id, flags = _HEADER.unpack_from(chunk, start)
                body = _cut(chunk, start + HEADER_SIZE, start + size)
                self._advance_to(start + size)
                self._pending -= size
                return Frame(frame_id, flags, body)
        self._set_aside(left)
        return None

    def _finish_partial(self) -> Frame | None:
        """Move bytes from the first chunk into the begun frame, no more than that frame lacks."""
        if not self._size:
            self._set_aside(_LENGTH_SIZE - self._have)
            if self._have < _LENGTH_SIZE:
                return None
            self._size = self._frame_size(b"".join(self._partial))
        if self._chunks:  # the length may have used up the only one
            self._set_aside(self._size - self._have)
        if self._have < self._size:
            return None
        assert self._have == self._size, "a frame takes no byte of the next one"
        raw = b"".join(self._partial)
        self._forget_partial()
        self._pending -= len(raw)
        _, frame_id, flags = _HEADER.unpack_from(raw)
        return Frame(frame_id, flags, _cut(raw, HEADER_SIZE, len(raw)))

    def _set_aside(self, size: int) -> None:
        """Move up to ``size`` bytes from the first chunk into the begun frame."""
        chunk, start = self._chunks[0], self._position
        piece = memoryview(chunk)[start : start + size]
        self._have += len(piece)
        self._advance_to(start + len(piece))
        # Small pieces are joined, so that a peer that sends single bytes does not cost an object for each byte.
        last = self._partial[-1] if self._partial else None
        if len(piece) >= _LARGE:
            self._partial.append(piece)
        elif isinstance(last, bytearray):
            last += piece
        else:
            self._partial.append(bytearray(piece))

    def _forget_partial(self) -> None:
        self._partial = []
        self._have = self._size = 0

    def _advance_to(self, position: int) -> None:
        if position == len(self._chunks[0]):
            self._chunks.popleft()
            position = 0
        self._position = position

    def _frame_size(self, prefix: bytes) -> int:
        """Return the size of the whole frame that starts with this length field."""
        length = int.from_bytes(prefix, "big")
        if length > MAX_FRAME_LENGTH:
            self._fail(f"frame too large: length {length} exceeds {MAX_FRAME_LENGTH}{quoted(self._rest())}")
        if length < MIN_FRAME_LENGTH:
            self._fail(f"frame too short: length {length} is below {MIN_FRAME_LENGTH}")
        return _LENGTH_SIZE + length

    def _check_end(self) -> None:
        if self._partial:
            note = quoted(self._rest()) if self._have < _LENGTH_SIZE else ""
            self._fail(f"stream ended inside a frame, {self._have} bytes into it{note}")

    def _rest(self) -> bytes:
        """The beginning of the bytes that are not taken yet."""
        first = bytes(self._chunks[0][self._position : self._position + _QUOTED]) if self._chunks else b""
        return b"".join(self._partial) + first

    def _fail(self, message: str) -> NoReturn:
        self._error = ProtocolError(message, kind="bad_frame")
        # The bytes after this point cannot be parsed, so they are dropped.
        self._chunks.clear()
        self._forget_partial()
        self._pending = self._position = 0
        raise again(self._error)

    def _raise_if_broken(self) -> None:
        if self._error is not None:
            raise again(self._error)

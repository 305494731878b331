"""Files of the guest as text: decoding and encoding on top of a binary file, as `io.TextIOWrapper` does.

The text at hand, ``_text``, is what the decoder made of ``_source``, having been in the state ``_flags`` when
``_source`` began; ``_used`` characters of it were read. The binary file stands behind ``_source``. That is
what `tell` needs: it decodes ``_source`` again up to the position, to find a byte where the decoder is in a
state a number can tell.
"""

from __future__ import annotations

import codecs
import io
import operator
from typing import TYPE_CHECKING, Final, NamedTuple, Protocol, final

import trio

from trio_console._session.files.file import GuestFile, raise_closed, size_of
from trio_console._session.owner import Owner, checks_owner, owned
from trio_console._trio.conflict import Conflict

if TYPE_CHECKING:
    from trio_console._session.files.binary import BinaryFile

__all__ = ["TextFile", "check_encoding", "check_newline", "make_decoder"]

_READ_SIZE: Final = 64 * 1024
_NEWLINES: Final = (None, "", "\n", "\r", "\r\n")


class _Decoder(Protocol):
    """The methods that `codecs.IncrementalDecoder` and `io.IncrementalNewlineDecoder` both have."""

    def decode(self, input: bytes, /, final: bool = False) -> str: ...  # noqa: A002
    def getstate(self) -> tuple[bytes, int]: ...
    def setstate(self, state: tuple[bytes, int], /) -> None: ...
    def reset(self) -> None: ...


class _Cookie(NamedTuple):
    """A text position: go to a byte, set the decoder, feed it some bytes, skip some characters."""

    position: int
    flags: int = 0
    feed: int = 0
    skip: int = 0
    final: int = 0

    def pack(self) -> int:
        """The position as one number, which is the byte offset if the decoder has no state there."""
        return sum(value << (64 * i) for i, value in enumerate(self))

    @classmethod
    def unpack(cls, cookie: int) -> _Cookie:
        return cls(*(cookie >> (64 * i) & (1 << 64) - 1 for i in range(len(cls._fields))))


def check_encoding(encoding: str) -> None:
    """Raise `LookupError` unless it is the name of a text encoding."""
    if not getattr(codecs.lookup(encoding), "_is_text_encoding", True):
        raise LookupError(f"{encoding!r} is not a text encoding")


def check_newline(newline: str | None) -> None:
    """Raise the error of `open` for a ``newline`` that is not valid."""
    if newline not in _NEWLINES:
        raise ValueError(f"illegal newline value: {newline!r}")


def make_decoder(encoding: str, errors: str, newline: str | None) -> _Decoder:
    """A decoder of text, which makes newlines of the line ends that ``newline`` says, as `open` has it."""
    decoder = codecs.getincrementaldecoder(encoding)(errors)
    if newline:
        return decoder
    return io.IncrementalNewlineDecoder(decoder, translate=newline is None)


@final
@owned()
class TextFile(GuestFile[str]):
    """See `GuestFile`. The caller has checked the arguments."""

    def __init__(
        self,
        binary: BinaryFile,
        *,
        encoding: str,
        errors: str,
        newline: str | None,
        line_buffering: bool,
        mode: str,
    ) -> None:
        self._owner: Final = Owner()
        self._layer: BinaryFile | None = binary
        self._mode = mode
        self._encoding = encoding
        self._errors = errors
        self._newline = newline
        self._line_buffering = line_buffering
        self._decoder = make_decoder(encoding, errors, newline)
        self._encoder: codecs.IncrementalEncoder | None = None
        self._text = ""
        self._used = 0
        self._source: bytearray | None = None  # None: the decoder is at the binary file's position
        self._flags = 0
        self._conflict = Conflict("another task is using this file")

    def __repr__(self) -> str:
        if self._layer is None:
            return f"<trio_console.GuestFile detached encoding={self._encoding!r}>"
        return f"<trio_console.GuestFile name={self.name!r} mode={self.mode!r} encoding={self._encoding!r}>"

    # State

    @property
    def _binary(self) -> BinaryFile:
        if self._layer is None:
            raise ValueError("underlying buffer has been detached")
        return self._layer

    @property
    def name(self) -> str:
        return self._binary.name

    @property
    def mode(self) -> str:
        return self._mode

    @property
    def closed(self) -> bool:
        return self._binary.closed

    @property
    def encoding(self) -> str:
        return self._encoding

    @property
    def errors(self) -> str:
        return self._errors

    @property
    def newlines(self) -> str | tuple[str, ...] | None:
        return getattr(self._decoder, "newlines", None)

    @property
    def line_buffering(self) -> bool:
        return self._line_buffering

    def readable(self) -> bool:
        return self._binary.readable()

    def writable(self) -> bool:
        return self._binary.writable()

    def seekable(self) -> bool:
        return self._binary.seekable()

    def isatty(self) -> bool:
        return self._binary.isatty()

    # Reading

    def _take(self, end: int) -> str:
        """The text up to an index."""
        text = self._text[self._used : end]
        self._used += len(text)
        return text

    def _forget_text(self) -> None:
        self._text = ""
        self._used = 0
        self._source = None

    async def _decode_more(self) -> bool:
        """Decode one more chunk; returns `False` at end of file. If cancelled, nothing was read."""
        # Text that is longer than the buffer is read in pieces of doubling size, so that joining them stays cheap.
        chunk = await self._binary.read1(max(_READ_SIZE, len(self._text) - self._used))
        if self._source is None or self._used == len(self._text):
            pending, flags = self._decoder.getstate()
            source = bytearray(pending)
            text = self._decoder.decode(chunk, not chunk)
            self._source, self._flags, self._text, self._used = source, flags, text, 0
        else:
            self._text = self._text + self._decoder.decode(chunk, not chunk)
        self._source += chunk
        return bool(chunk)

    @checks_owner
    async def read(self, size: int | None = -1, /) -> str:
        self._owner.check()
        self._binary.check_readable()
        size = -1 if size is None else size_of(size)
        with self._conflict:
            if size < 0:
                data = await self._binary.read()
                text = self._text[self._used :] + self._decoder.decode(data, final=True)
                self._forget_text()
                return text
            if len(self._text) - self._used >= size:
                await trio.lowlevel.checkpoint()
            while len(self._text) - self._used < size and await self._decode_more():
                pass
            return self._take(self._used + size)

    @checks_owner
    async def readline(self, size: int | None = -1, /) -> str:
        self._owner.check()
        self._binary.check_readable()
        limit = size_of(size)  # None is a TypeError, as in io
        with self._conflict:
            searched = 0
            more = True
            waited = False
            while True:
                end = self._find_line_end(self._used + searched)
                if end < 0 and not more:
                    end = len(self._text)
                have = (len(self._text) if end < 0 else end) - self._used
                if end >= 0 or 0 <= limit <= have:
                    if not waited:
                        await trio.lowlevel.checkpoint()
                    return self._take(self._used + (have if limit < 0 else min(have, limit)))
                more = await self._decode_more()
                waited = True
                # One character less, in case a two-character line end was cut.
                searched = max(0, have - 1)

    def _find_line_end(self, start: int) -> int:
        """Index behind the first line end from ``start`` on, or -1."""
        if self._newline is None or self._newline:
            ending = self._newline or "\n"
            found = self._text.find(ending, start)
            return found + len(ending) if found >= 0 else -1
        # All three kinds, untranslated. The decoder never leaves a lone "\r" last: "\n" may follow.
        lf = self._text.find("\n", start)
        cr = self._text.find("\r", start, lf if lf >= 0 else len(self._text))
        if cr < 0:
            return lf + 1 if lf >= 0 else -1
        return cr + 2 if self._text.startswith("\n", cr + 1) else cr + 1

    # Writing

    @checks_owner
    async def write(self, data: str, /) -> int:
        self._owner.check()
        if not isinstance(data, str):
            raise TypeError(f"write() argument must be str, not {type(data).__name__}")
        self._binary.check_writable()
        with self._conflict:
            text = data
            if self._newline in ("\r", "\r\n"):
                text = text.replace("\n", self._newline)
            encoder = await self._get_encoder()
            before = encoder.getstate()
            encoded = encoder.encode(text)
            try:
                await self._binary.write(encoded)
            except BaseException:
                encoder.setstate(before)
                raise
            self._forget_text()
            self._decoder.reset()
            if self._line_buffering and ("\n" in data or "\r" in data):
                await self._binary.flush()
            return len(data)

    async def _get_encoder(self) -> codecs.IncrementalEncoder:
        if self._encoder is None:
            encoder = codecs.getincrementalencoder(self._encoding)(self._errors)
            # Encodings that begin a file with a mark have a state to say that they have not yet.
            if encoder.getstate() != 0 and self.seekable() and await self._binary.tell() != 0:
                encoder.setstate(0)
            self._encoder = encoder
        return self._encoder

    async def flush(self) -> None:
        if self.closed:
            raise_closed()
        with self._conflict:
            await self._binary.flush()

    async def truncate(self, size: int | None = None, /) -> int:
        if size is None:
            self._binary.check_writable()
            size = _Cookie.unpack(await self.tell()).position
        self._binary.check_writable()
        with self._conflict:
            return await self._binary.truncate(size)

    # Positions

    def _check_seekable(self) -> None:
        if not self.seekable():
            raise io.UnsupportedOperation("underlying stream is not seekable")

    async def tell(self) -> int:
        self._check_seekable()
        with self._conflict:
            await self._binary.flush()
            return self._cookie(await self._binary.tell()).pack()

    def _cookie(self, position: int) -> _Cookie:
        """The text position, the binary file being at ``position``."""
        if self._source is None:
            return _Cookie(position)
        source = bytes(self._source)
        safe = _Cookie(position - len(source), self._flags)  # the last place where the decoder holds nothing
        skip = self._used
        if skip == 0:
            return safe
        saved = self._decoder.getstate()
        try:
            self._decoder.setstate((b"", self._flags))
            chars = 0
            for i in range(len(source)):
                chars += len(self._decoder.decode(source[i : i + 1]))
                held, flags = self._decoder.getstate()
                if not held and chars <= skip:
                    safe = _Cookie(position - len(source) + i + 1, flags)
                    skip -= chars
                    chars = 0
                if chars >= skip:
                    feed = position - len(source) + i + 1 - safe.position
                    return safe._replace(feed=feed, skip=skip) if skip else safe
            feed = position - safe.position
            return safe._replace(feed=feed, skip=skip, final=1)
        finally:
            self._decoder.setstate(saved)

    async def seek(self, target: int, whence: int = 0, /) -> int:
        self._check_seekable()
        if operator.index(whence) not in (0, 1, 2):
            raise ValueError(f"invalid whence ({whence}, should be 0, 1 or 2)")
        target = operator.index(target)
        if whence and target:
            where = "cur" if whence == 1 else "end"
            raise io.UnsupportedOperation(f"can't do nonzero {where}-relative seeks")
        if target < 0:
            raise ValueError(f"negative seek position {target}")
        if whence == 1:
            target = await self.tell()
        with self._conflict:
            if whence == 2:
                target = await self._binary.seek(0, 2)
                await self._restore(_Cookie(target))
            else:
                await self._restore(_Cookie.unpack(target))
            return target

    async def _restore(self, cookie: _Cookie) -> None:
        await self._binary.seek(cookie.position)
        self._forget_text()
        if cookie.position == 0 and not cookie.flags:
            self._decoder.reset()
        else:
            self._decoder.setstate((b"", cookie.flags))
        if self._encoder is not None:
            if cookie.position:
                self._encoder.setstate(0)
            else:
                self._encoder.reset()
        if cookie.skip:
            source = await self._binary.read(cookie.feed)
            text = self._decoder.decode(source, bool(cookie.final))
            if len(text) < cookie.skip:
                raise OSError("can't restore logical file position")
            self._text, self._used = text, cookie.skip
            self._source, self._flags = bytearray(source), cookie.flags

    # The end

    async def detach(self) -> GuestFile[bytes]:
        binary = self._binary
        await self.flush()
        self._layer = None
        return binary

    async def aclose(self) -> None:
        if self.closed:
            await trio.lowlevel.checkpoint()
            return
        try:
            self._conflict.__enter__()
        except trio.BusyResourceError:
            self._binary.abandon()
            raise
        await self._binary.aclose()

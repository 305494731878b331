"""The interface of a file of the guest: that of the files that `trio.open_file` returns."""

from __future__ import annotations

import io
import operator
from abc import abstractmethod
from typing import TYPE_CHECKING, AnyStr, Final, Generic, NoReturn

import trio

if TYPE_CHECKING:
    from collections.abc import Iterable
    from typing import Self

__all__ = ["GuestFile", "raise_closed", "size_of"]

#: One more than the largest size and offset.
_LARGE: Final = 2**63


class GuestFile(trio.abc.AsyncResource, Generic[AnyStr]):
    """An open file in the guest, used like the files of `trio.open_file`. `Guest.open_file` makes them.

    It is an async context manager, and an async iterator over its lines. It has `bytes` in binary mode and `str`
    in text mode. One buffer of 64 KiB (or ``buffering``) bounds the bytes that are read ahead, and another one
    those that are written later. Only the result of `read` without a size, and a single line, may be larger.
    Offsets are in bytes; the positions of a text file come from `tell` and can only be used for `seek`.

    A file that is garbage-collected without having been closed warns (`ResourceWarning`); it is written out and
    closed soon, as in `io`.

    A FIFO or a terminal is read as its bytes come, and has no positions. (An agent without this feature cannot
    read or write it.) A read that waits for another process can be cancelled, and no byte is lost.

    Only one task at a time may use it: a second one gets `trio.BusyResourceError`. A closed file raises
    `ValueError`. An operation for which the file was not opened raises `io.UnsupportedOperation`, as in `io`.
    Further, every operation may raise:

    * `OSError`, the subclass for the guest's errno, with ``.filename``. An error of a buffered write is raised by
      the call that writes the buffer out, at the latest by `aclose`;
    * `GuestLostError` if the guest is gone, `ProtocolError` if one side violated the protocol.

    **Cancellation.** A cancelled read has read nothing: the position is unchanged. A cancelled write of more bytes
    than the buffer holds may have written any part of them; a smaller write has been taken as a whole or not at
    all. A cancelled seek or truncate may have happened or not.
    """

    # State. None of these waits.

    @property
    @abstractmethod
    def name(self) -> str:
        """The path it was opened with."""

    @property
    @abstractmethod
    def mode(self) -> str:
        """The mode it was opened with, in binary mode as `io` writes it (``"rb+"`` for ``"w+b"``)."""

    @property
    @abstractmethod
    def closed(self) -> bool:
        """Whether `aclose` was called."""

    @property
    def encoding(self) -> str | None:
        """The name of the text encoding, `None` in binary mode."""
        return None

    @property
    def errors(self) -> str | None:
        """How encoding errors are handled, `None` in binary mode."""
        return None

    @property
    def newlines(self) -> str | tuple[str, ...] | None:
        """The kinds of line ends found so far, in text mode with universal newlines."""
        return None

    @property
    def line_buffering(self) -> bool:
        """Whether every line is written out at once."""
        return False

    @abstractmethod
    def readable(self) -> bool:
        """Whether it was opened for reading."""

    @abstractmethod
    def writable(self) -> bool:
        """Whether it was opened for writing."""

    @abstractmethod
    def seekable(self) -> bool:
        """Whether it has positions; a FIFO and a terminal have none."""

    @abstractmethod
    def isatty(self) -> bool:
        """Whether it is a terminal."""

    def fileno(self) -> NoReturn:
        """Raise `io.UnsupportedOperation`: the file has no descriptor on this machine."""
        raise io.UnsupportedOperation("fileno")

    # Reading

    @abstractmethod
    async def read(self, size: int | None = -1, /) -> AnyStr:
        """Read ``size`` bytes or characters, fewer only at the end; the whole rest if it is -1 or `None`."""

    @abstractmethod
    async def readline(self, size: int | None = -1, /) -> AnyStr:
        """Read a line with its line end, or ``size`` of it unless that is negative (or, of bytes, `None`)."""

    async def readlines(self, hint: int | None = -1, /) -> list[AnyStr]:
        """Read lines up to the end, or until their sizes sum up to ``hint`` if that is positive."""
        hint = 0 if hint is None else size_of(hint)
        lines: list[AnyStr] = []
        size = 0
        while line := await self.readline():
            lines.append(line)
            size += len(line)
            if 0 < hint <= size:
                break
        return lines

    async def read1(self, size: int = -1, /) -> AnyStr:
        """Read up to ``size`` bytes with at most one request to the guest. Binary mode only."""
        raise io.UnsupportedOperation("read1")

    async def readinto(self, buffer: bytearray | memoryview, /) -> int:
        """Fill ``buffer`` as far as the file has bytes; returns how many were read. Binary mode only."""
        raise io.UnsupportedOperation("readinto")

    async def readall(self) -> AnyStr:
        """Read the whole rest. Binary mode only."""
        raise io.UnsupportedOperation("readall")

    async def readinto1(self, buffer: bytearray | memoryview, /) -> int:
        """`readinto` with at most one request to the guest. Binary mode only."""
        raise io.UnsupportedOperation("readinto1")

    async def peek(self, size: int = 0, /) -> AnyStr:
        """The next bytes, at least one unless at the end; the position stays. Binary mode only."""
        raise io.UnsupportedOperation("peek")

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> AnyStr:
        line = await self.readline()
        if not line:
            raise StopAsyncIteration
        return line

    # Writing

    @abstractmethod
    async def write(self, data: AnyStr, /) -> int:
        """Write all of ``data``, perhaps into the buffer; returns the number of bytes or characters."""

    async def writelines(self, lines: Iterable[AnyStr], /) -> None:
        """Write each of ``lines``; no line ends are added."""
        if self.closed:
            raise_closed()
        await trio.lowlevel.checkpoint()
        for line in lines:
            await self.write(line)

    @abstractmethod
    async def flush(self) -> None:
        """Write the buffer out; the guest has the bytes when this returns."""

    @abstractmethod
    async def truncate(self, size: int | None = None, /) -> int:
        """Set the size in bytes, by default to the position, which does not change; returns the size."""

    # Positions

    @abstractmethod
    async def seek(self, target: int, whence: int = 0, /) -> int:
        """Go to an offset from the beginning (0), the position (1) or the end (2); returns the new position.

        In binary mode also to the first data (3) or hole (4) from an offset on, as `os.SEEK_DATA` and
        `os.SEEK_HOLE`; an agent that finds none is `io.UnsupportedOperation`.
        In text mode: go to a position that `tell` has returned, or 0 from the position or the end.
        """

    @abstractmethod
    async def tell(self) -> int:
        """The position."""

    @abstractmethod
    async def detach(self) -> GuestFile[bytes]:
        """Take the layer below: the binary file of a text file, or the same file without a buffer.

        This object is void then.

        Raises:
            io.UnsupportedOperation: it has no buffer.
        """

    @abstractmethod
    async def aclose(self) -> None:
        """Write the buffer out and close the file. A second call does nothing.

        The handle in the guest is closed in any case, also if the buffer cannot be written out. If cancelled, this
        still writes and closes, for no longer than the grace of `open_guest`. While another task uses the file,
        the buffer is dropped and `trio.BusyResourceError` is raised.
        """


def size_of(number: object) -> int:
    """A number of bytes or characters, as `io` takes it.

    Raises:
        TypeError, OverflowError: it is no integer, or too large for the C of `io`.
    """
    size = operator.index(number)  # type: ignore[arg-type]  # which it checks
    if not -_LARGE <= size < _LARGE:
        raise OverflowError("cannot fit 'int' into an index-sized integer")
    return size


def raise_closed() -> NoReturn:
    raise ValueError("I/O operation on closed file.")

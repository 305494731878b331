"""What a file of the guest looks like to its user: the interface of `trio.open_file`'s result."""

from __future__ import annotations

import io
from abc import abstractmethod
from typing import TYPE_CHECKING, AnyStr, Generic, NoReturn

import trio

if TYPE_CHECKING:
    from collections.abc import Iterable
    from typing import Self

__all__ = ["GuestFile"]


class GuestFile(trio.abc.AsyncResource, Generic[AnyStr]):
    """An open file in the guest, used as what `trio.open_file` returns. `Guest.open_file` makes them.

    It is an async context manager, and an async iterator over its lines. It carries `bytes` in binary mode and
    `str` in text mode. Reading ahead and writing behind are bounded by one buffer of 64 KiB each (or
    ``buffering``); only `read` without a size, and a single line, are held whole. Offsets are in bytes; those of
    a text file come from `tell` and mean something to `seek` only.

    One task at a time: a second one gets `trio.BusyResourceError`. A closed file raises `ValueError`, and a
    file that was not opened for an operation `io.UnsupportedOperation`, as in `io`. Further, every operation may
    raise:

    * `OSError`, the subclass for the errno the guest had, with ``.filename``. Errors of buffered writes come
      with the call that writes the buffer out, at the latest with `aclose`;
    * `GuestLostError` when the guest is gone, `ProtocolError` when a side broke the protocol.

    **Cancellation.** A cancelled read has read nothing: the position is where it was. A cancelled write of
    more than the buffer holds may have written any part of it; one that fits the buffer was taken as a whole
    or not at all. A cancelled seek or truncate may have happened or not.
    """

    # State. Nothing here waits.

    @property
    @abstractmethod
    def name(self) -> str:
        """The path it was opened with."""

    @property
    @abstractmethod
    def mode(self) -> str:
        """The mode it was opened with."""

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
        """How encoding errors are dealt with, `None` in binary mode."""
        return None

    @property
    def newlines(self) -> str | tuple[str, ...] | None:
        """The line endings met so far, in text mode with universal newlines."""
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

    def seekable(self) -> bool:
        """Always true: the guest's agent reads and writes at offsets."""
        if self.closed:
            raise_closed()
        return True

    def isatty(self) -> bool:
        """Always false."""
        if self.closed:
            raise_closed()
        return False

    def fileno(self) -> NoReturn:
        """Raise `io.UnsupportedOperation`: it is no descriptor of this machine."""
        raise io.UnsupportedOperation("fileno")

    # Reading

    @abstractmethod
    async def read(self, size: int | None = -1, /) -> AnyStr:
        """Read up to ``size`` bytes or characters, fewer only at the end; all the rest if negative or `None`."""

    @abstractmethod
    async def readline(self, size: int = -1, /) -> AnyStr:
        """Read a line with its end, or up to ``size`` of it if that is not negative; empty at the end."""

    async def readlines(self, hint: int | None = -1, /) -> list[AnyStr]:
        """Read lines up to the end, or until they make up ``hint`` if that is positive."""
        lines: list[AnyStr] = []
        size = 0
        while line := await self.readline():
            lines.append(line)
            size += len(line)
            if hint is not None and 0 < hint <= size:
                break
        return lines

    async def read1(self, size: int = -1, /) -> AnyStr:
        """Read up to ``size`` bytes with at most one request to the guest. Binary mode only."""
        raise io.UnsupportedOperation("read1")

    async def readinto(self, buffer: bytearray | memoryview, /) -> int:
        """Read into ``buffer`` until it is full or the file at its end; how many bytes. Binary mode only."""
        raise io.UnsupportedOperation("readinto")

    async def peek(self, size: int = 0, /) -> AnyStr:
        """What comes next, at least one byte unless at the end, without advancing. Binary mode only."""
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
        """Write all of ``data``, perhaps into the buffer; how many bytes or characters that were."""

    async def writelines(self, lines: Iterable[AnyStr], /) -> None:
        """Write each of ``lines``, adding nothing."""
        if self.closed:
            raise_closed()
        await trio.lowlevel.checkpoint()
        for line in lines:
            await self.write(line)

    @abstractmethod
    async def flush(self) -> None:
        """Write the buffer out; the guest has it when this returns."""

    @abstractmethod
    async def truncate(self, size: int | None = None, /) -> int:
        """Make the file ``size`` bytes long (by default up to the position, which stays); returns the size."""

    # Positions

    @abstractmethod
    async def seek(self, target: int, whence: int = 0, /) -> int:
        """Go to an offset from the beginning (0), the position (1) or the end (2); the new position.

        In text mode: to what `tell` returned, or by 0 from the position or the end.
        """

    @abstractmethod
    async def tell(self) -> int:
        """The position."""

    @abstractmethod
    async def aclose(self) -> None:
        """Write the buffer out and close. Idempotent.

        The handle in the guest is released in any case, also if the buffer cannot be written out or this is
        cancelled; then it takes no longer than the grace of `open_guest`. While another task uses the
        file, the buffer is dropped and `trio.BusyResourceError` raised.
        """


def raise_closed() -> NoReturn:
    raise ValueError("I/O operation on closed file.")

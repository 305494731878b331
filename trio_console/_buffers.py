"""The package's meaning of bytes-like, wherever it takes bytes: every object that `memoryview` accepts.

This module must not know what the bytes are for.
"""

from __future__ import annotations

from contextlib import suppress
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence
    from typing import TypeAlias

    Buffer: TypeAlias = bytes | bytearray | memoryview

__all__ = ["flat_view", "joined"]

#: The most chunks that are looked at together: enough that the work for each call disappears.
_AT_ONCE: Final = 1024


def flat_view(data: Buffer) -> memoryview:
    """A view of the bytes of ``data``, one item for each byte. They are copied only if they are not contiguous.

    Raises:
        TypeError: ``data`` is not bytes-like.
    """
    view = memoryview(data)
    # (A view that is not contiguous cannot be cast, even if it is empty.)
    return view.cast("B") if view.c_contiguous else memoryview(view.tobytes())


def joined(pieces: Iterable[Buffer], limit: int) -> Iterator[bytes]:
    """The same bytes in fewer chunks: neighbours are joined as long as they have ``limit`` bytes together.

    (In a list or tuple, whose chunks are there in any case, some hundred that look alike may be joined to more.)

    A `bytes` object that has no such neighbour is passed on by reference. Empty chunks are left out. An iterator
    is asked for no more chunks than are joined, and one.

    Raises:
        TypeError: a chunk is not bytes-like.
    """
    if not isinstance(pieces, (list, tuple)):
        yield from _joined_singly(pieces, limit)
        return
    start = 0
    while start < len(pieces):
        size = memoryview(pieces[start]).nbytes or 1
        batch: Sequence[Buffer] = pieces[start : start + max(1, min(_AT_ONCE, limit // size))]
        start += len(batch)
        if len(batch) > 1 and _are_small(batch, limit):
            with suppress(TypeError, BufferError):  # another kind of bytes, or no bytes: then one by one
                if data := b"".join(batch):
                    yield data
                continue
        yield from _joined_singly(batch, limit)


def _are_small(batch: Sequence[Buffer], limit: int) -> bool:
    """Whether these are bytes objects that have ``limit`` bytes together, or about that.

    A look at each costs more than to join them all, so it looks at four, and at all only if those differ.
    """
    some = (batch[0], batch[1], batch[len(batch) // 2], batch[-1])
    if set(map(type, some)) != {bytes}:
        return False
    return len(set(map(len, some))) == 1 or sum(map(len, batch)) <= limit


def _joined_singly(pieces: Iterable[Buffer], limit: int) -> Iterator[bytes]:
    batch: list[bytes] = []
    total = 0
    for piece in pieces:
        data = piece if type(piece) is bytes else bytes(flat_view(piece))
        if batch and total + len(data) > limit:
            yield batch[0] if len(batch) == 1 else b"".join(batch)
            batch.clear()
            total = 0
        if data:
            batch.append(data)
            total += len(data)
    if batch:
        yield batch[0] if len(batch) == 1 else b"".join(batch)

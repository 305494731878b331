"""The package's meaning of bytes-like, wherever it takes bytes: every object that `memoryview` accepts.

This module must not know what the bytes are for.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from typing import TypeAlias

    Buffer: TypeAlias = bytes | bytearray | memoryview

__all__ = ["flat_view"]


def flat_view(data: Buffer) -> memoryview:
    """A view of the bytes of ``data``, one item for each byte. They are copied only if they are not contiguous.

    Raises:
        TypeError: ``data`` is not bytes-like.
    """
    view = memoryview(data)
    # (A view that is not contiguous cannot be cast, even if it is empty.)
    return view.cast("B") if view.c_contiguous else memoryview(view.tobytes())

"""What bytes-like is, wherever the package takes bytes: all that `memoryview` takes.

This module must not know what the bytes are for.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from typing import TypeAlias

    Buffer: TypeAlias = bytes | bytearray | memoryview

__all__ = ["flat_view"]


def flat_view(data: Buffer) -> memoryview:
    """A view of the bytes of ``data``, one item each; a copy of them only where they do not lie in one piece.

    Raises:
        TypeError: ``data`` is not bytes-like.
    """
    view = memoryview(data)
    # (A view with gaps cannot be cast, and neither can an empty one that would have them.)
    return view.cast("B") if view.c_contiguous else memoryview(view.tobytes())

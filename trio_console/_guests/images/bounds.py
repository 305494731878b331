"""How large an image may be, and the error for one that is too large, damaged or malicious.

An image is a stranger's: whatever it says of its sizes is compared with these numbers before anything is made of
it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, final

__all__ = ["BOUNDS", "BadImageError", "Bounds"]


@final
class BadImageError(ValueError):
    """What was given is no image, or one that is damaged, too large, or not for this machine."""


@final
@dataclass(frozen=True)
class Bounds:
    """What an image may have.

    Attributes:
        total_bytes: of all layers together, unpacked; and of all files together (a sparse file counts in full).
        entries: of all layers together, and in the whole tree.
        layers: of one image. (Overlay file systems, for which images are made, have at most some hundred.)
        document_bytes: of an index, a manifest or a configuration. (Registries take manifests of 4 MiB.)
        header_bytes: of the headers of one entry in a layer, with its name, its link and its attributes.
        depth: directories in one another. A descriptor is open for each while they are written.
    """

    total_bytes: int = 16 * 1024**3
    entries: int = 1_000_000
    layers: int = 256
    document_bytes: int = 4 * 1024**2
    header_bytes: int = 1024**2
    depth: int = 128


BOUNDS: Final = Bounds()

"""The version that the package, both command lines and the agent report, and under which it is packaged.

It is written here, and not read from a distribution's metadata, because the package also runs from a folder or an
archive, without metadata.
"""

from __future__ import annotations

__all__ = ["__version__"]

__version__ = "0.1.0"

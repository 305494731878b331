"""The version: what the package, both command lines and the agent say, and what it is packaged under.

It stands here and not in the metadata of a distribution, because there may be none: the package also runs from a
folder or an archive.
"""

from __future__ import annotations

__all__ = ["__version__"]

__version__ = "0.1.0"

"""Another user than the one that runs the tests."""

from __future__ import annotations

import os
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["NOBODY", "as_root", "shared_directory"]

NOBODY = 65534

as_root = pytest.mark.skipif(os.getuid() != 0, reason="only root may start commands of another user")


@contextmanager
def shared_directory() -> Iterator[Path]:
    """A directory that every user can reach; pytest's are closed to all others."""
    with TemporaryDirectory(dir="/tmp") as name:
        path = Path(name)
        path.chmod(0o755)
        yield path

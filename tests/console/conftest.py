"""Shortages of descriptors and threads, and time limits, for all tests of the console."""

from __future__ import annotations

import os
import resource
import sys
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator


@pytest.fixture
def no_more_descriptors() -> Iterator[Callable[..., None]]:
    """Call it, and only so many more descriptors can be made (by default none) until the end of the test."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)

    def leave(count: int = 0) -> None:
        held = [os.dup(0) for _ in range(count + 1)]
        resource.setrlimit(resource.RLIMIT_NOFILE, (held[-1], hard))
        for fd in held:
            os.close(fd)

    yield leave
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


@pytest.fixture
def hasty_interpreter() -> Iterator[None]:
    """Threads take turns every few instructions, not every 5 ms."""
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    yield
    sys.setswitchinterval(interval)

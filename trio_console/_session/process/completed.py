"""The result of `run_process`: as `subprocess` has it, and whether its output is still held open."""

from __future__ import annotations

import subprocess
from typing import final

__all__ = ["CalledProcessError", "CompletedProcess"]


@final
class CompletedProcess(subprocess.CompletedProcess[bytes]):
    """A command that has ended.

    Attributes:
        output_open: whether another process still held its output when `run_process` had waited for long enough.
            What that process writes later is not in the result. The process keeps a working pipe.
    """

    output_open: bool = False


@final
class CalledProcessError(subprocess.CalledProcessError):
    """A command that has ended with another status than 0.

    Attributes:
        output_open: as in `CompletedProcess`.
    """

    output_open: bool = False

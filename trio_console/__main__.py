"""The command line: ``trio-console relay ...`` and ``trio-console exec ...``, or ``python -m trio_console``."""

from __future__ import annotations

import os
import sys
from typing import TYPE_CHECKING


def _open_standard_descriptors() -> None:
    """Open the null device for each standard descriptor that was closed when this program was started.

    Otherwise the next file opened would get that number, and this program's output would go into the file.
    """
    for fd in range(3):
        try:
            os.fstat(fd)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # gets the lowest free number, which is ``fd``


_open_standard_descriptors()  # before trio, whose import of ctypes opens a descriptor with some builds of libffi

from trio_console._cli.arguments import parser  # noqa: E402
from trio_console._cli.exec import execute  # noqa: E402
from trio_console._cli.relay import relay  # noqa: E402

if TYPE_CHECKING:
    from collections.abc import Sequence


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit status."""
    args = parser().parse_args(argv)
    if args.what == "relay":
        return relay(args)
    return execute(args)


if __name__ == "__main__":
    sys.exit(main())

"""The command line: ``trio-console relay ...`` and ``trio-console exec ...``, or ``python -m trio_console``."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

from trio_console._standard import fill_standard_descriptors

fill_standard_descriptors()  # before trio

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

"""The command line: ``trio-console relay``, ``exec``, ``agent-bundle``, ``vm``; ``python -P -m trio_console``."""

from __future__ import annotations

import sys

if __name__ == "__main__" and not sys.flags.safe_path:
    # Without -P this is the working directory, and a module in it would be taken for one of the standard library.
    del sys.path[0]

from typing import TYPE_CHECKING

from trio_console._standard import fill_standard_descriptors

fill_standard_descriptors()  # before trio

from trio_console._cli.arguments import parser  # noqa: E402
from trio_console._cli.bundle import bundle  # noqa: E402
from trio_console._cli.exec import execute  # noqa: E402
from trio_console._cli.relay import relay  # noqa: E402
from trio_console._cli.vm import vm  # noqa: E402

if TYPE_CHECKING:
    from collections.abc import Sequence


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit status."""
    args = parser().parse_args(argv)
    if args.what == "relay":
        return relay(args)
    if args.what == "agent-bundle":
        return bundle(args)
    if args.what == "vm":
        return vm(args)
    return execute(args)


if __name__ == "__main__":
    sys.exit(main())

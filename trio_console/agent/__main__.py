"""The agent as a program: ``trio-console-agent``, or ``python -P -m trio_console.agent``."""

from __future__ import annotations

import sys

if __name__ == "__main__" and not sys.flags.safe_path:
    # Without -P this is the working directory, and a module in it would be taken for one of the standard library.
    del sys.path[0]


from typing import TYPE_CHECKING

from trio_console._standard import fill_standard_descriptors
from trio_console.agent._system.needs import refused_calls, say_refused

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["main"]

fill_standard_descriptors()  # before trio


def main(argv: Sequence[str] | None = None) -> int:
    """Run the agent until it ends, if this system lets it; returns the exit status."""
    if refused := refused_calls():
        say_refused(refused)
        return 1
    from trio_console.agent._main import main as run  # here, because trio needs some of these calls itself

    return run(argv)


if __name__ == "__main__":
    sys.exit(main())

"""The agent as a program: ``trio-console-agent``, or ``python -P -m trio_console.agent``."""

from __future__ import annotations

import sys

if __name__ == "__main__" and not sys.flags.safe_path:
    # Without -P this is the working directory, and a module in it would be taken for one of the standard library.
    del sys.path[0]


from trio_console._standard import fill_standard_descriptors

fill_standard_descriptors()  # before trio

from trio_console.agent._main import main  # noqa: E402

__all__ = ["main"]

if __name__ == "__main__":
    sys.exit(main())

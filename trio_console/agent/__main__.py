"""``python -m trio_console.agent``."""

from __future__ import annotations

import sys

from trio_console.agent._main import main

if __name__ == "__main__":
    sys.exit(main())

"""What a caller has not said."""

from __future__ import annotations

from typing import Final

__all__ = ["DEFAULT_GRACE", "DEFAULT_LAUNCH_TIMEOUT", "DEFAULT_READY_TIMEOUT"]

#: Seconds for the whole orderly ending.
DEFAULT_GRACE: Final = 5.0

#: Seconds until a guest has a console.
DEFAULT_LAUNCH_TIMEOUT: Final = 60.0

#: Seconds for a guest to become ready. Upstream's host waits 180 s, because it boots a machine.
DEFAULT_READY_TIMEOUT: Final = 60.0

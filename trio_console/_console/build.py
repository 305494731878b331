"""What the interpreter that runs us was built to do.

This module must not import anything of the package, nor trio.
"""

from __future__ import annotations

import sysconfig
from typing import Final

__all__ = ["FREE_THREADED"]

#: Whether threads run beside each other, and so may see each other's stores later than what follows them. The
#: build tells, and not `sys._is_gil_enabled`: that is true for a moment, and then false again, while any thread
#: imports an extension.
FREE_THREADED: Final = bool(sysconfig.get_config_var("Py_GIL_DISABLED"))

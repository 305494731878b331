"""How the running interpreter was built: with the interpreter lock or without it.

This module must not import anything of the package, nor trio.
"""

from __future__ import annotations

import sysconfig
from typing import Final

__all__ = ["FREE_THREADED"]

#: Whether threads run in parallel. If they do, a thread may see another thread's two stores in the wrong order.
#: The build is asked, and not `sys._is_gil_enabled`, because that one is true for a moment, and then false again,
#: while any thread imports an extension.
FREE_THREADED: Final = bool(sysconfig.get_config_var("Py_GIL_DISABLED"))

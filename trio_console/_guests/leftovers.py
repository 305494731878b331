"""The end of the processes that a dead guest has left on this machine.

This module must not know the guests.
"""

from __future__ import annotations

import warnings
from functools import partial
from typing import TYPE_CHECKING, Final

from trio_console._processes import kill_processes
from trio_console._trio.clocks import within
from trio_console._trio.threads import NoThreadError, in_thread

if TYPE_CHECKING:
    import trio

    from trio_console._processes import Leftovers, Wanted

__all__ = ["kill_left_behind"]

#: Seconds to find and kill the processes that a guest has left. (The search itself takes at most half of it.)
_SCAN_TIME: Final = 2.0


async def kill_left_behind(wanted: Wanted, _patience: trio.CancelScope) -> None:
    """Kill the processes that a dead agent has left. This is not cut short: it takes two seconds at most."""
    search = partial(kill_processes, wanted)
    result: Leftovers | None = None

    async def look() -> None:
        nonlocal result
        try:
            # The thread is abandoned when the time is over: reading a process's environment may block for as long
            # as that process is in a system call.
            result = await in_thread("to look for processes that a guest has left", search, abandon=True)
        except NoThreadError:
            result = search()  # in this thread, although that blocks all tasks for a moment

    await within(_SCAN_TIME, look)
    if result is None or result.left:
        which = "processes of a guest" if result is None else f"the processes {sorted(result.left)} of a guest"
        warnings.warn(f"{which} were killed, but may still run: look for them", RuntimeWarning, stacklevel=1)

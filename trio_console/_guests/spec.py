"""The interface to the ways to start a guest: a `GuestSpec` starts one, and a `GuestHost` is what it has started.

This module must not know the bytes on the console, nor how a spec is run: see ``carrier``.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable
    from contextlib import AbstractAsyncContextManager

    import trio

    from trio_console._console.devices import ConsoleDevice
    from trio_console._machine.described import Machine

__all__ = ["GuestHost", "GuestSpec"]


@dataclass(frozen=True, eq=False)
class GuestHost:
    """A guest that a `GuestSpec` has started, on the side of this machine.

    Attributes:
        console: the host's way to the guest's agent: a device as for `open_console`, or any `trio.abc.Stream`. The
            library owns it from then on, and closes it.
        kill: ends the guest by force, and does not wait. It may be called more than once, and also when the guest
            has ended; only from trio's thread. `None`, the default, if there is no way but to close the console.
        explain: an async function that finds out in words why the guest is gone, within 0.25 seconds. `None`, the
            default, if nobody knows.
        machine: the virtual machine that the guest is, if it is one and that is to be seen as `Guest.machine`;
            `None`, the default, if not.
        open_port: what `Guest.open_port` does, if the guest has further ports: a function that takes the name of
            one, and returns an async context manager of a stream. `None`, the default, if it has none.
        fork: what `Guest.fork` needs, if the guest can be copied: a function that takes a number, and returns an
            async context manager of so many specs, which are opened within its block. `None`, the default, if not.

    What ``kill`` and ``explain`` raise is logged, and changes nothing else.
    """

    console: ConsoleDevice | trio.abc.Stream
    kill: Callable[[], object] | None = None
    explain: Callable[[], Awaitable[str]] | None = None
    machine: Machine | None = None
    open_port: Callable[[str], AbstractAsyncContextManager[trio.abc.Stream]] | None = None
    fork: Callable[[int], AbstractAsyncContextManager[list[GuestSpec]]] | None = None


class GuestSpec(ABC):
    """A way to start a guest or to attach to one; `ProcessGuest`, `CommandGuest` and `SocketGuest` are some.

    Subclasses are given to `open_guest`, `run_guest` and `serve_relay` like these. One object may be opened more
    than once, also at the same time, unless its class forbids it.
    """

    #: Whether an error of `run` is one of the test that uses the guest: it ends the block, and is raised there.
    _fails_its_test: bool = False

    @abstractmethod
    async def run(self, *, task_status: trio.TaskStatus[GuestHost]) -> None:
        """Start the guest, tell what was started, and return when what carries the guest is gone.

        The library runs this in a task of its own, so that nothing in here can change what the user's block
        raises. It calls ``task_status.started`` once, with a `GuestHost`. When the guest is to end, the library
        first tells the guest's agent, then closes the console, then calls `GuestHost.kill`, and then cancels this
        task. Each step is taken only if this has not returned by then.

        What this raises before `started` is raised by `open_guest` as it is. If it returns without having called
        that, `open_guest` raises `GuestLostError`. After that an exception is the cause of the `GuestLostError`
        that everybody gets who uses the guest. When this has ended, the console is closed as soon as the bytes
        that were under way have been read.

        A cancellation must end it: it may take time to release what it has, inside a shield with a deadline. As
        long as it does so, the user's block is not left, and after some seconds a warning says so.

        Args:
            task_status: as `trio.Nursery.start` gives one.
        """

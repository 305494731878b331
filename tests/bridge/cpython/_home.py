"""Guests on a thread of their own, which carry out the calls of a synchronous program."""

from __future__ import annotations

import os
import threading
from contextvars import ContextVar
from functools import partial
from typing import TYPE_CHECKING, Any

import trio

from trio_console import Guest, ProcessGuest, run_guest
from trio_console._trio.nursery import hidden_nursery

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

__all__ = ["HOME", "Home"]

#: Whether a guest, and not the program, is at work. (Worker threads have this from their tasks.)
_WITHIN: ContextVar[bool] = ContextVar("within", default=False)

#: Seconds after which a call has hung.
_HANG = 60


class Home:
    """The thread with the guests.

    A guest has the working directory, the umask and the environment that the program had when the guest was
    started. A test changes them, so there is a guest for each state in which a call was made.

    Attributes:
        uses: how often something of a guest was used.
    """

    def __init__(self) -> None:
        self._guests: dict[object, Guest] = {}
        self.uses = 0

    def open(self) -> None:
        ready = threading.Event()
        self._thread = threading.Thread(target=trio.run, args=(self._main, ready))
        self._thread.start()
        ready.wait()

    async def _main(self, ready: threading.Event) -> None:
        self._token = trio.lowlevel.current_trio_token()
        self._over = trio.Event()
        self._turn = trio.Lock()
        async with hidden_nursery() as self.nursery:
            ready.set()
            await self._over.wait()
            for guest in self._guests.values():
                await guest.shutdown()

    def close(self) -> None:
        trio.from_thread.run_sync(self._over.set, trio_token=self._token)
        self._thread.join()

    def run(self, method: Callable[..., Awaitable[Any]], *args: Any, **options: Any) -> Any:
        """Run a coroutine function in the run of the guests."""
        self.uses += 1

        async def call() -> Any:
            _WITHIN.set(True)
            with trio.fail_after(_HANG):
                return await method(*args, **options)

        return trio.from_thread.run(call, trio_token=self._token)

    def sync(self, function: Callable[..., Any], *args: Any) -> Any:
        """Call a function in the run of the guests."""
        return trio.from_thread.run_sync(partial(function, *args), trio_token=self._token)

    def guest(self) -> Guest:
        """The guest for the state in which this program is now."""
        os.umask(mask := os.umask(0))
        directory = os.getcwd()
        found = os.stat(directory)
        state = directory, found.st_dev, found.st_ino, mask, tuple(sorted(os.environb.items()))
        if state not in self._guests:
            self._guests[state] = self.run(self._start, directory)
        return self._guests[state]

    async def _start(self, directory: str) -> Guest:
        guest: Guest = await self.nursery.start(run_guest, ProcessGuest(cwd=directory))
        return guest

    def within(self) -> bool:
        """Whether a task or a worker thread of the guests calls this, or a finalizer in their thread."""
        return _WITHIN.get() or threading.current_thread() is self._thread


#: The one of this program.
HOME = Home()

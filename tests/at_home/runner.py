"""Plays the cases: in one trio run, on a thread of its own, whose guests are opened once for all of them.

``python -m tests.at_home.runner CASE RESULT PLACE=DIRECTORY...`` plays one case in a program of its own, which has
imported all that it needs and then forks for each place.
"""

from __future__ import annotations

import ast
import atexit
import contextlib
import os
import shutil
import subprocess
import sys
import tempfile
import threading
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import trio

import tests.at_home.cases as _cases
from tests.at_home.places import Here, Home, InGuest
from tests.at_home.table import CASES, GUESTS, Case
from tests.tools.limits import ENDING, HANG
from trio_console import (
    BubblewrapGuest,
    CommandGuest,
    Guest,
    MicroVMGuest,
    ProcessGuest,
    Share,
    connect_guest,
    open_guest,
)

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Sequence

__all__ = ["Runner"]

_EXEC = (sys.executable, "-P", "-m", "trio_console", "exec", "--relay")
#: The variable that names it to programs that are started for a case.
_CASES_DIR = "TRIO_CONSOLE_TEST_CASES"

#: Seconds for a machine to start on a busy machine.
_BOOT = 100.0

_AGENT = [sys.executable, "-P", "-m", "trio_console.agent", "--stdio"]
_cases.load()


def _cases_dir() -> str:
    """The directory in which the cases have theirs, which guests that see nothing else can be shown."""
    if given := os.environ.get(_CASES_DIR):
        return given
    os.environ[_CASES_DIR] = made = tempfile.mkdtemp()
    os.chmod(made, 0o755)
    owner = os.getpid()
    atexit.register(lambda: os.getpid() == owner and shutil.rmtree(made))
    return made


@asynccontextmanager
async def opened(place: str, socket: str) -> AsyncIterator[Guest]:
    """A guest, by one of the ways to it. ``socket`` is where its relay listens."""
    if place == "process":
        async with open_guest(ProcessGuest()) as guest:
            yield guest
    elif place == "namespaces":
        shares = {_cases_dir(): Share(_cases_dir(), writable=True)}
        async with open_guest(BubblewrapGuest(shares=shares)) as guest:
            yield guest
    elif place == "machine":
        shares = {_cases_dir(): Share(_cases_dir(), writable=True)}
        async with open_guest(MicroVMGuest(shares=shares), launch_timeout=_BOOT) as guest:
            yield guest
    elif place == "command":
        async with open_guest(CommandGuest(_AGENT)) as guest:
            yield guest
    else:
        async with open_guest(ProcessGuest(), relay_path=socket), connect_guest(socket) as guest:
            yield guest


class Runner:
    """The thread in which the cases are played. A context manager; `play` is for one thread at a time."""

    def __init__(self, places: Sequence[str] = GUESTS) -> None:
        self._places = places  # whose guests are opened at once
        self._ready = threading.Event()
        self._thread = threading.Thread(target=trio.run, args=(self._main,), name="Trio thread of the table")
        self._guests: dict[str, Guest] = {}
        self.sockets = tempfile.mkdtemp()
        self.socket = ""  # of the last relay

    def __enter__(self) -> Self:
        self._thread.start()
        self._ready.wait()
        for place in self._places:
            trio.from_thread.run(self._guest, place, trio_token=self._token)
        return self

    def __exit__(self, *_: object) -> None:
        trio.from_thread.run_sync(self._over.set, trio_token=self._token)
        self._thread.join()
        shutil.rmtree(self.sockets)

    def play(self, case: Case, places: Sequence[str]) -> dict[str, object]:
        """Play a case in each of the places, and return the outcomes."""
        with contextlib.ExitStack() as stack:
            dirs = {place: stack.enter_context(directory()) for place in places}
            if case.alone is not None:
                return _play_alone(case, dirs)
            play = partial(trio.from_thread.run, self._play_in_time, trio_token=self._token)
            return {place: play(case, place, dirs[place]) for place in places}

    async def _main(self) -> None:
        self._token = trio.lowlevel.current_trio_token()
        self._over = trio.Event()
        async with trio.open_nursery() as self._nursery:
            self._ready.set()
            await self._over.wait()

    async def _play_in_time(self, case: Case, place: str, place_dir: str) -> object:
        with trio.fail_after(HANG):
            return await self._play(case, place, place_dir)

    async def _play(self, case: Case, place: str, place_dir: str) -> object:
        if place == "home":
            return await _outcome(case, Home(place_dir))
        if place == "exec":
            await self._guest("relay")
            return await _outcome(case, Home(place_dir, (*_EXEC, self.socket, "--")))
        guest = await self._guest(place)
        outcome = await _outcome(case, InGuest(place, guest, place_dir))
        with trio.move_on_after(ENDING):
            while guest.statistics().active_sessions:  # an ending one may need a moment
                await trio.sleep(0.002)
        if left := guest.statistics().active_sessions:
            del self._guests[place]  # the next case shall not pay for this one
            raise AssertionError(f"{left} sessions are left")
        return outcome

    async def _guest(self, place: str) -> Guest:
        """The guest of a place; a new one if it is lost."""
        guest = self._guests.get(place)
        if guest is None or guest._connection.lost is not None:
            guest = self._guests[place] = await self._nursery.start(self._hold, place)
        return guest

    async def _hold(self, place: str, task_status: trio.TaskStatus[Guest]) -> None:
        if place == "relay":
            self.socket = os.path.join(self.sockets, f"relay{len(os.listdir(self.sockets))}")
        async with opened(place, self.socket) as guest, trio.open_nursery() as nursery:
            task_status.started(guest)
            nursery.start_soon(guest.wait_lost)
            await self._over.wait()
            nursery.cancel_scope.cancel()


async def _outcome(case: Case, here: Here) -> object:
    try:
        with trio.fail_after(HANG):
            return here.scrub(await case.play(here))
    finally:
        here.clean_up()


@contextlib.contextmanager
def directory() -> Any:
    """A directory for a case. Every user may enter it and write to it."""
    name = tempfile.mkdtemp(dir=_cases_dir())
    os.chmod(name, 0o777)
    try:
        yield name
    finally:
        shutil.rmtree(name)


# In a program of its own


def _play_alone(case: Case, dirs: dict[str, str]) -> dict[str, object]:
    assert case.alone is not None
    with tempfile.TemporaryDirectory() as scratch:
        result = os.path.join(scratch, "result")
        where = [f"{place}={directory}" for place, directory in dirs.items()]
        program = [sys.executable, "-m", "tests.at_home.runner", case.name, result, *where]
        done = subprocess.run(
            program,
            cwd=Path(__file__).parents[2],
            capture_output=True,
            stdin=subprocess.DEVNULL,
            timeout=HANG,
            check=False,
            preexec_fn=partial(_close, case.alone),
        )
        missing = [place for place in dirs if not os.path.exists(f"{result}-{place}")]
        assert not missing, f"{missing}, exit status {done.returncode}, {done.stderr.decode()}"
        return {place: ast.literal_eval(Path(f"{result}-{place}").read_text()) for place in dirs}


def _close(descriptors: tuple[int, ...]) -> None:
    for fd in descriptors:
        os.close(fd)


async def _main_alone(name: str, result: str, place: str, place_dir: str) -> None:
    case = CASES[name]
    if place == "home":
        outcome = await _outcome(case, Home(place_dir))
    else:
        async with opened(place, f"{result}.{place}.s") as guest:
            outcome = await _outcome(case, InGuest(place, guest, place_dir))
    Path(f"{result}-{place}").write_text(repr(outcome))


def _main_in_each(name: str, result: str, *where: str) -> None:
    for text in where:
        place, _, place_dir = text.partition("=")
        if pid := os.fork():
            os.waitpid(pid, 0)
        else:
            trio.run(_main_alone, name, result, place, place_dir)
            return


if __name__ == "__main__":
    _main_in_each(*sys.argv[1:])

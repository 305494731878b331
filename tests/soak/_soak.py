"""The soak: clients of one relay, each with one piece of work after another; then the look for what is left."""

from __future__ import annotations

import random
from collections import Counter
from contextlib import asynccontextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

import trio

from tests.soak._work import WORK, Place
from tests.tools.leftovers import descriptors, marked, marking, threads
from tests.tools.limits import BUSY, HANG
from trio_console import ProcessGuest, connect_guest, open_guest

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Collection

    from trio_console import Guest

__all__ = ["soak"]


async def soak(seconds: float, *, clients: int = 8, seed: int = 0) -> Counter[str]:
    """Let clients work for so long; returns how often they did which work.

    Raises:
        AssertionError: something was cut off or left behind; the notes name the client and its work.
    """
    done: Counter[str] = Counter()
    threads_before, descriptors_before = threads(), descriptors()
    with TemporaryDirectory() as name, marking() as mark:
        folder = Path(name)
        folder.chmod(0o700)
        path = folder / "agent.sock"
        async with open_guest(ProcessGuest(), relay_path=path) as owner:
            before = await agent_descriptors(owner)
            agent = marked(mark)
            end = trio.current_time() + seconds
            async with trio.open_nursery() as nursery:
                for number in range(clients):
                    nursery.start_soon(work, path, folder, number, random.Random(f"{seed}/{number}"), end, done)
            await until_none(lambda: marked(mark) - agent, "processes of the clients are left in the guest")
            with trio.fail_after(BUSY):
                while (after := await agent_descriptors(owner)) > before:
                    await trio.sleep(0.05)
            assert after <= before, f"the agent has {after} descriptors, and had {before}"
        await until_none(lambda: marked(mark), "processes of the guest are left")
        assert [one.name for one in folder.iterdir() if one.is_socket()] == []
    await until_none(lambda: threads() - threads_before, "threads are left")
    await until_none(lambda: descriptors() - descriptors_before, "descriptors are left")
    return done


async def work(
    path: Path, folder: Path, number: int, choice: random.Random, end: float, done: Counter[str]
) -> None:
    """The life of a client: it works, and now and then leaves and comes again."""
    while trio.current_time() < end:
        async with connect_guest(path) as guest:
            own = folder / str(number)
            own.mkdir(exist_ok=True)
            place = Place(guest, own, choice, str(number))
            for _ in range(choice.randrange(1, 12)):
                if trio.current_time() >= end:
                    break
                piece = choice.choice(WORK)
                async with explained(f"client {number}: {piece.__name__}"):
                    with trio.fail_after(HANG):
                        await piece(place)
                done[piece.__name__] += 1


@asynccontextmanager
async def explained(note: str) -> AsyncIterator[None]:
    try:
        yield
    except BaseException as exc:
        exc.add_note(note)
        raise


async def agent_descriptors(guest: Guest) -> int:
    done = await guest.run_process(["sh", "-c", "ls /proc/$PPID/fd | wc -l"], capture_stdout=True)
    return int(done.stdout)


async def until_none(look: Callable[[], Collection[object]], what: str) -> None:
    deadline = trio.current_time() + BUSY
    while found := look():
        if trio.current_time() > deadline:
            raise AssertionError(f"{what}: {found}")
        await trio.sleep(0.01)

"""The hostile soak: honest clients of a relay work beside hostile ones, and lose nothing.

The relay with its guest, the hostile clients and the honest ones are three processes. Each has a POSIX session of
its own, as services have: where the kernel shares the processors among sessions, the relay would have to share its
part with what its clients do for themselves.
"""

from __future__ import annotations

import math
import random
import signal
import subprocess
import sys
from collections import Counter
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

import trio

from tests.hostile._pings import ping_for, quantile
from tests.soak._soak import agent_descriptors, explained, until_none
from tests.soak._work import WORK, Place
from tests.tools.leftovers import marked, marking
from tests.tools.limits import BUSY, HANG
from trio_console import GuestLostError, connect_guest

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Collection

__all__ = ["MOST_MEMORY", "Figures", "a_relay", "attacked", "hostile_soak", "pings_beside"]

#: MiB that the relay and the agent may each take more than before, whatever is done to them: the budget for what
#: is queued for all clients (64), a frame of 4 MiB that has not come wholly for each of 32 clients, and half as
#: much again for what is made of a frame while it is looked at.
MOST_MEMORY = 256

#: Clients that only ping, beside the honest ones that work.
PINGING = 8

#: How many clients a relay takes.
SLOTS = 128

#: Seconds of attacks between two times without them. The machine may be faster in one hour than in the next.
ROUND = 300.0


@dataclass
class Figures:
    """What a soak has seen. Seconds, and MiB.

    Attributes:
        done: how often the honest clients did which work.
        attacks: how often the hostile ones began which attack.
        quiet: how long pings of honest clients took while others worked, without the hostile ones; ordered.
        beside: and beside them. (Both are only measured if there is a time without them.)
        memory: by how much the relay and the agent have grown at most.
    """

    done: Counter[str] = field(default_factory=Counter)
    attacks: Counter[str] = field(default_factory=Counter)
    quiet: list[float] = field(default_factory=list)
    beside: list[float] = field(default_factory=list)
    memory: dict[str, float] = field(default_factory=dict)

    @property
    def ratio(self) -> float:
        """The p99 of pings beside the hostile clients, as a multiple of that without them."""
        return quantile(self.beside, 0.99) / quantile(self.quiet, 0.99)


async def hostile_soak(
    seconds: float,
    *,
    honest: int = 8,
    hostile: int = 8,
    quiet: float = 0.0,
    seed: int = 0,
    note_round: Callable[[list[float], list[float]], object] = lambda _alone, _beside: None,
) -> Figures:
    """Let hostile clients attack for so long, in rounds of `ROUND` seconds at most.

    Args:
        seconds: of all attacks together.
        honest: clients that work all the time.
        hostile: clients that attack.
        quiet: seconds before each round for which the honest ones are alone.
        seed: of all choices.
        note_round: is called after each round, with its pings alone and beside the attacks, the shortest first.

    Raises:
        AssertionError: an honest client lost or was refused something, or something was left behind; the notes
            name the client and its work.
    """
    figures = Figures()
    with TemporaryDirectory() as name, marking() as mark:
        folder = Path(name)
        folder.chmod(0o700)
        async with a_relay(folder) as (path, relay):
            async with connect_guest(path) as guest:
                pid = await guest.run_process(["sh", "-c", "echo $PPID"], capture_stdout=True)
                before = await agent_descriptors(guest)
            agent = int(pid.stdout)
            peers = {"relay": relay, "agent": agent}
            begin = {who: memory(of, "VmRSS") for who, of in peers.items()}
            ours = marked(mark)
            rounds = math.ceil(seconds / ROUND)
            for number in range(rounds):
                honest_ones = partial(_honest_ones, figures, path, folder, honest)
                alone = await honest_ones(quiet, f"{seed}/{number}/quiet", pings=True) if quiet else []
                async with attacked(path, folder, hostile, f"{seed}/{number}", figures.attacks):
                    beside = await honest_ones(seconds / rounds, f"{seed}/{number}", pings=bool(quiet))
                figures.quiet, figures.beside = sorted(figures.quiet + alone), sorted(figures.beside + beside)
                for who, of in peers.items():
                    grown = figures.memory[who] = memory(of, "VmHWM") - begin[who]
                    assert grown <= MOST_MEMORY, f"the {who} has grown by {grown:.0f} MiB"
                await until_none(lambda: marked(mark) - ours, "processes of clients are left in the guest")
                await all_slots(path)
                async with connect_guest(path) as guest:
                    with trio.fail_after(BUSY):
                        while await agent_descriptors(guest) > before:
                            await trio.sleep(0.05)
                note_round(sorted(alone), sorted(beside))
        await until_none(lambda: marked(mark), "processes of the guest are left")
    return figures


async def _honest_ones(
    figures: Figures, path: str, folder: Path, count: int, seconds: float, seed: str, *, pings: bool
) -> list[float]:
    """Let so many honest clients work for so long; returns the seconds of pings beside them, if wanted."""
    found: list[float] = []
    async with trio.open_nursery() as nursery:
        nursery.start_soon(work_for, seconds, path, folder, count, seed, figures.done)
        if pings:
            found = await ping_for(seconds, path, PINGING)
    return found


async def pings_beside(hostile: int, seconds: float, *, honest: int = 8, seed: int = 0) -> list[float]:
    """The pings of honest clients while others work, beside so many hostile ones: their seconds, in order."""
    with TemporaryDirectory() as name, marking():
        folder = Path(name)
        folder.chmod(0o700)
        attacks: Counter[str] = Counter()
        async with a_relay(folder) as (path, _relay), AsyncExitStack() as stack:
            if hostile:
                await stack.enter_async_context(attacked(path, folder, hostile, seed, attacks))
            async with trio.open_nursery() as nursery:
                nursery.start_soon(work_for, seconds, path, folder, honest, str(seed), Counter())
                pings = await ping_for(seconds, path, PINGING)
    return pings


@asynccontextmanager
async def a_relay(folder: Path, *, limits: str = "") -> AsyncIterator[tuple[str, int]]:
    """A relay of a process of its own, with a guest; its socket, and its pid. ``limits``: a shell's, for both."""
    path = str(folder / "agent.sock")
    command = [sys.executable, "-P", "-m", "trio_console", "relay", "--listen", path]
    if limits:
        command = ["sh", "-c", f'{limits}; exec "$0" "$@"', *command]
    with (folder / "relay.log").open("wb") as log:
        relay = await trio.lowlevel.open_process(
            command, stdout=subprocess.PIPE, stderr=log, start_new_session=True
        )
    try:
        with trio.fail_after(HANG):
            assert relay.stdout is not None
            assert (await relay.stdout.receive_some()).startswith(b"ready "), (folder / "relay.log").read_text()
        yield path, relay.pid
        relay.send_signal(signal.SIGTERM)
        with trio.fail_after(HANG):
            assert await relay.wait() == 0, (folder / "relay.log").read_text()[-2000:]
    finally:
        relay.kill()
        with trio.CancelScope(shield=True):
            await relay.wait()


@asynccontextmanager
async def attacked(
    path: str, folder: Path, count: int, seed: int | str, attacks: Counter[str], names: Collection[str] = ()
) -> AsyncIterator[int]:
    """Hostile clients, in a process of their own that is killed at the end, and has to live until then.

    They choose among the attacks of these names, without names among all. Yields the process's id, once the first
    attack has begun.
    """
    command = [sys.executable, "-m", "tests.hostile._attackers", path, str(folder), str(count), str(seed), *names]
    with (folder / "attackers.log").open("wb") as log:
        process = await trio.lowlevel.open_process(command, stdin=subprocess.PIPE, stdout=log, stderr=log)
    try:
        with trio.fail_after(BUSY):
            while process.poll() is None and not (folder / "attackers.log").stat().st_size:
                await trio.sleep(0.05)
        yield process.pid
    finally:
        ended = process.poll()
        process.kill()
        with trio.CancelScope(shield=True):
            await process.wait()
    lines = (folder / "attackers.log").read_text().splitlines()
    assert ended is None, "\n".join(lines[-20:])
    attacks.update(lines)


async def work_for(seconds: float, path: str, folder: Path, honest: int, seed: str, done: Counter[str]) -> None:
    end = trio.current_time() + seconds
    async with trio.open_nursery() as nursery:
        for number in range(honest):
            nursery.start_soon(work, path, folder, number, random.Random(f"{seed}/{number}"), end, done)


async def work(
    path: str, folder: Path, number: int, choice: random.Random, end: float, done: Counter[str]
) -> None:
    """The life of an honest client: it works, and now and then leaves and comes again."""
    own = folder / str(number)
    own.mkdir(exist_ok=True)
    while trio.current_time() < end:
        async with explained(f"honest client {number} connects"), connect_guest(path) as guest:
            place = Place(guest, own, choice, str(number))
            for _ in range(choice.randrange(1, 12)):
                piece = choice.choice(WORK)
                async with explained(f"honest client {number}: {piece.__name__}"):
                    with trio.fail_after(HANG):
                        await piece(place)
                done[piece.__name__] += 1
                if trio.current_time() >= end:
                    return


async def all_slots(path: str) -> None:
    """Check that the relay takes as many clients as it can, all at once, before long."""
    with trio.fail_after(BUSY):
        while True:
            try:
                async with AsyncExitStack() as stack:
                    for _ in range(SLOTS):
                        await stack.enter_async_context(connect_guest(path))
            except (GuestLostError, OSError):  # refused: some are not yet free
                await trio.sleep(0.1)
            else:
                return


def memory(pid: int, what: str) -> float:
    """MiB that a process has in memory, or had at most."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith(f"{what}:"):
            return int(line.split()[1]) / 1024
    raise AssertionError(f"process {pid} has no {what}")

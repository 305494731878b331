"""Resources of idle guests and sessions, system calls for each chunk, and the time to leave a busy guest."""

from __future__ import annotations

import contextlib
import functools
import os
import re
import resource
import select
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from functools import partial
from typing import TYPE_CHECKING, Final, NamedTuple

import trio

import trio_console
from benchmarks._measure import Row, Statistic

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterator, Sequence

    from benchmarks.session_rows import Workers

__all__ = ["pings_beside_hostile_clients", "rows", "system_calls_per_chunk"]

GUESTS = (1, 50, 200)
SESSIONS = (1, 100, 1000)
TEARDOWNS = 200

#: Seconds after which trio has ended its idle threads, so that they are not counted.
THREAD_CACHE_TIME = 11.0


class Holding(NamedTuple):
    """The resources that a process holds."""

    kib: float
    threads: float
    descriptors: float


def holding(pid: int) -> Holding:
    with open(f"/proc/{pid}/statm") as file:
        pages = int(file.read().split()[1])
    return Holding(
        kib=pages * resource.getpagesize() / 1024,
        threads=len(os.listdir(f"/proc/{pid}/task")),
        descriptors=len(os.listdir(f"/proc/{pid}/fd")),
    )


def children() -> list[int]:
    found = []
    for task in os.listdir("/proc/self/task"):
        with open(f"/proc/self/task/{task}/children") as file:
            found += [int(pid) for pid in file.read().split()]
    return found


def _difference(after: Holding, before: Holding, n: int) -> Holding:
    return Holding(*((new - old) / n for new, old in zip(after, before, strict=True)))


# --- idle guests and sessions -----------------------------------------------------------------------


@contextlib.asynccontextmanager
async def _guests(n: int, workers: Workers) -> AsyncIterator[list[trio_console.Guest]]:
    spec = trio_console.ProcessGuest(workers=workers)
    async with contextlib.AsyncExitStack() as stack:
        yield [await stack.enter_async_context(trio_console.open_guest(spec)) for _ in range(n)]


@functools.cache
def idle_guests(workers: Workers, n: int) -> tuple[Holding, Holding]:
    """The resources of each of ``n`` idle guests: in this process, and in its agent."""

    async def main() -> tuple[Holding, Holding]:
        async with _guests(1, workers):
            pass  # so that the costs of the first guest alone are not counted
        await trio.sleep(THREAD_CACHE_TIME)
        before = holding(os.getpid())
        async with _guests(n, workers):
            here = _difference(holding(os.getpid()), before, n)
            agents = [holding(pid) for pid in children()]
            return here, Holding(*(sum(values) / len(agents) for values in zip(*agents, strict=True)))

    return trio.run(main)


@functools.cache
def idle_sessions(n: int) -> tuple[Holding, Holding]:
    """The resources of each of ``n`` idle processes in one guest: in this process, and in the agent."""

    async def main() -> tuple[Holding, Holding]:
        async with trio_console.open_guest() as guest:
            await guest.run_process(["true"])
            [agent] = children()
            before, agent_before = holding(os.getpid()), holding(agent)
            async with trio.open_nursery() as nursery:
                for _ in range(n):
                    await nursery.start(partial(guest.run_process, ["sleep", "600"]))
                here = _difference(holding(os.getpid()), before, n)
                there = _difference(holding(agent), agent_before, n)
                nursery.cancel_scope.cancel()
            return here, there

    return trio.run(main)


#: What is not to be exceeded.
_LIMITS: Final = {("guests-tasks", "kib", 0): 25.0}


def _holding_rows() -> Iterator[Row]:
    kinds: tuple[tuple[str, str, Callable[[int], tuple[Holding, Holding]], Sequence[int]], ...] = (
        ("guest", "guests", partial(idle_guests, "threads"), GUESTS),
        ("guest moved by tasks", "guests-tasks", partial(idle_guests, "tasks"), GUESTS),
        ("session", "sessions", idle_sessions, SESSIONS),
    )
    for one, many, function, numbers in kinds:
        for field in Holding._fields:
            for side, where in enumerate(("here", "in its agent")):
                unit = "KiB" if field == "kib" else field
                yield Row(
                    f"idle-{many}-{field}-{'host' if side == 0 else 'agent'}",
                    f"{'memory' if field == 'kib' else field} per idle {one}, {where}",
                    unit,
                    {
                        f"{n} {many.partition('-')[0]}": partial(_held, function, n, side, field)
                        for n in reversed(numbers)
                    },
                    higher_is_better=False,
                    statistics=(Statistic(limit=_LIMITS.get((many, field, side))),),
                    turns=1,
                    warm_up=partial(_hold_all, function, numbers),
                    process=f"idle-{many}",
                    facts={"group": f"idle-{many}"},
                )


def _hold_all(function: Callable[[int], tuple[Holding, Holding]], numbers: Sequence[int]) -> None:
    """Measure the few first: after the many, they would use the memory that the many have freed."""
    for n in numbers:
        function(n)


def _held(function: Callable[[int], tuple[Holding, Holding]], n: int, side: int, field: str) -> list[float]:
    return [getattr(function(n)[side], field)]


# --- hostile clients ----------------------------------------------------------------------------------


def pings_beside_hostile_clients(count: int, seconds: float) -> list[float]:
    """The seconds of pings through a relay that eight clients work with, beside so many hostile ones."""
    command = [
        sys.executable,
        "-m",
        "tests.hostile",
        str(seconds),
        "--hostile",
        str(count),
        "--seed",
        "1",
        "--pings",
    ]
    done = subprocess.run(command, stdout=subprocess.PIPE, check=True, timeout=60 + 10 * seconds)
    return [float(line) for line in done.stdout.split()]


# --- system calls -----------------------------------------------------------------------------------


def system_calls_per_chunk(size: int, count: int) -> float:
    """All system calls of a program that moves ``count`` chunks more than another, counted by strace."""
    if shutil.which("strace") is None:
        raise RuntimeError("strace is not installed: install your distribution's package 'strace'")
    few = count // 10
    return (_system_calls(size, count) - _system_calls(size, few)) / (count - few)


def _system_calls(size: int, count: int) -> int:
    program = f"from benchmarks import channel_rows; channel_rows.to_trio_console({size}, {count})"
    with tempfile.NamedTemporaryFile("r") as file:
        subprocess.run(["strace", "-f", "-c", "-o", file.name, sys.executable, "-c", program], check=True)
        total = re.search(r"^100\.00\s+\S+\s+(?:\d+\s+)?(\d+)\s.*total$", file.read(), re.MULTILINE)
    assert total is not None
    return int(total[1])


# --- leaving a busy guest ---------------------------------------------------------------------------


class Leaving(NamedTuple):
    """Seconds that leaving a guest took: in total, and after its agent had exited."""

    total: float
    after_exit: float


@functools.cache
def teardowns(n: int, *, busy: bool) -> list[Leaving]:
    """Leave ``n`` guests, one after the other. A busy one floods its unread output and does not read its input."""

    async def main() -> list[Leaving]:
        return [await _teardown(busy=busy) for _ in range(n)]

    return trio.run(main)


async def _teardown(*, busy: bool) -> Leaving:
    async with trio.open_nursery() as nursery:
        async with trio_console.open_guest() as guest:
            exited = _ExitWatch(children()[0])
            if busy:
                await _fill_rings(guest, nursery)
            start = time.perf_counter()
        left = time.perf_counter()
        nursery.cancel_scope.cancel()
    return Leaving(left - start, left - exited.when())


async def _fill_rings(guest: trio_console.Guest, nursery: trio.Nursery) -> None:
    """Fill all queues until no frame moves: with output and with input that are not read."""

    async def lose(command: list[str], stdin: int | None, stdout: int | None, started: trio.Event) -> None:
        with contextlib.suppress(trio_console.GuestLostError, trio.BrokenResourceError):
            async with guest.open_process(command, stdin=stdin, stdout=stdout) as process:
                started.set()
                if process.stdin is not None:
                    await process.stdin.send_all(bytes(64 * 1024 * 1024))
                await trio.sleep_forever()

    for command, stdin, stdout in (
        (["cat", "/dev/zero"], None, subprocess.PIPE),
        (["sleep", "600"], subprocess.PIPE, None),
    ):
        started = trio.Event()
        nursery.start_soon(lose, command, stdin, stdout, started)
        await started.wait()
    moved = -1
    while moved != (moved := guest.statistics().frames_received):  # noqa: ASYNC110  (there is no event for a standstill)
        await trio.sleep(0.02)


class _ExitWatch:
    """Notes when a process exits, in a thread, because this event loop may be busy then."""

    def __init__(self, pid: int) -> None:
        self._pidfd = os.pidfd_open(pid)
        self._when = 0.0
        self._thread = threading.Thread(target=self._wait)
        self._thread.start()

    def _wait(self) -> None:
        select.select([self._pidfd], [], [])
        self._when = time.perf_counter()

    def when(self) -> float:
        self._thread.join()
        os.close(self._pidfd)
        return self._when


def rows() -> Iterator[Row]:
    yield from _holding_rows()
    yield Row(
        "teardown",
        "leaving a busy guest with full rings: what comes after its agent's own exit",
        "s",
        {"busy": lambda: [each.after_exit for each in teardowns(TEARDOWNS, busy=True)]},
        higher_is_better=False,
        turns=1,
        statistics=(Statistic("p50"), Statistic("p99", 0.99, limit=0.05)),
        process="teardown",
        facts={"group": "teardown"},
    )
    yield Row(
        "leaving",
        "the same, in all",
        "s",
        {
            "busy": lambda: [each.total for each in teardowns(TEARDOWNS, busy=True)],
            "idle": lambda: [each.total for each in teardowns(TEARDOWNS // 4, busy=False)],
        },
        higher_is_better=False,
        turns=1,
        statistics=(Statistic("p50"), Statistic("p99", 0.99)),
        process="teardown",
        facts={"group": "teardown"},
    )

"""How rates and waits grow with the number of guests, of clients of a relay, and of sessions in one guest."""

from __future__ import annotations

import os
import resource
import subprocess
import sys
import tempfile
import time
from contextlib import AsyncExitStack, asynccontextmanager
from functools import cache, partial
from typing import TYPE_CHECKING, Final, Literal

import trio

import trio_console
from benchmarks._measure import Row, Statistic
from benchmarks.session_rows import helper

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence

__all__ = ["rows"]

#: Seconds that each number is measured.
SECONDS: Final = 2.0

CLIENTS: Final = (128, 50, 10, 1)
SESSIONS: Final = (1000, 100, 10, 1)
GUESTS: Final = (400, 200, 50, 1)


async def _in_a_row(calls: Sequence[Callable[[], Awaitable[object]]]) -> list[float]:
    """Make each call again and again, all of them side by side; the seconds of every single one."""
    for call in calls:
        await call()  # threads and caches are made at the first use
    waits: list[float] = []
    end = time.perf_counter() + SECONDS

    async def repeat(call: Callable[[], Awaitable[object]]) -> None:
        before = time.perf_counter()
        while before < end:
            await call()
            now = time.perf_counter()
            waits.append(now - before)
            before = now

    async with trio.open_nursery() as nursery:
        for call in calls:
            nursery.start_soon(repeat, call)
    return waits


# --- clients of a relay ---------------------------------------------------------------------------


@asynccontextmanager
async def _clients(n: int) -> AsyncIterator[list[trio_console.Guest]]:
    with tempfile.TemporaryDirectory() as directory:
        path = os.path.join(directory, "relay.sock")
        argv = [sys.executable, "-m", "trio_console", "relay", "--listen", path]
        async with helper(argv), AsyncExitStack() as stack:
            yield [await stack.enter_async_context(trio_console.connect_guest(path)) for _ in range(n)]


def _client_waits(n: int) -> list[float]:
    """Waits for the pings of ``n`` clients, all in this process; the relay and the agent have their own."""

    async def main() -> list[float]:
        async with _clients(n) as guests:
            return await _in_a_row([guest.ping for guest in guests])

    return trio.run(main)


# --- guests ---------------------------------------------------------------------------------------


def _guest_waits(workers: Literal["tasks", "threads"], n: int) -> list[float]:
    """Waits for the pings of ``n`` guests at once, each with an agent of its own."""

    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))  # a guest has some eight descriptors

    async def main() -> list[float]:
        async with AsyncExitStack() as stack:
            spec = trio_console.ProcessGuest(workers=workers)
            guests = [await stack.enter_async_context(trio_console.open_guest(spec)) for _ in range(n)]
            return await _in_a_row([guest.ping for guest in guests])

    return trio.run(main)


# --- sessions -------------------------------------------------------------------------------------


def _session_waits(n: int) -> list[float]:
    """Waits for 64 bytes through a ``cat`` each, of which ``n`` run in one guest."""

    async def main() -> list[float]:
        async with trio_console.open_guest() as guest, AsyncExitStack() as stack:
            calls = []
            for _ in range(n):
                opened = guest.open_process(["cat"], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
                calls.append(partial(_echo, await stack.enter_async_context(opened)))
            waits = await _in_a_row(calls)
            for call in calls:
                await call.args[0].stdin.aclose()
            return waits

    return trio.run(main)


async def _echo(process: trio_console.GuestProcess) -> None:
    assert process.stdin is not None
    assert process.stdout is not None
    await process.stdin.send_all(bytes(64))
    got = 0
    while got < 64:
        got += len(await process.stdout.receive_some())


# --- rows -----------------------------------------------------------------------------------------


def _rate(waits: Callable[[int], list[float]], n: int) -> Sequence[float]:
    return [len(waits(n)) / SECONDS]


def rows() -> Iterator[Row]:
    for name, many, numbers, function, bar in (
        ("relay-clients", "clients of a relay, a ping each", CLIENTS, _client_waits, None),
        ("sessions", "sessions of a guest, 64 bytes through `cat` each", SESSIONS, _session_waits, None),
        ("guests-tasks", "guests moved by tasks, a ping each", GUESTS, partial(_guest_waits, "tasks"), 2.0),
        ("guests-threads", "guests moved by threads, a ping each", GUESTS, partial(_guest_waits, "threads"), None),
    ):
        measured = cache(function)  # once, for both rows
        title = many.partition(" ")
        yield Row(
            f"{name}-rate",
            f"{numbers[0]} {many}: how many in a second",
            "calls/s",
            {f"{n} {title[0]}": partial(_rate, measured, n) for n in numbers},
            peers=(f"1 {title[0]}",),
            statistics=(Statistic(bar=bar),),
            turns=1,
            process=name,
            facts={"group": "scaling"},
        )
        yield Row(
            f"{name}-wait",
            f"{numbers[0]} {many}: how long each takes",
            "s",
            {f"{n} {title[0]}": partial(measured, n) for n in numbers},
            peers=(f"1 {title[0]}",),
            higher_is_better=False,
            statistics=(Statistic("p50"), Statistic("p99", 0.99)),
            turns=1,
            process=name,
            facts={"group": "scaling"},
        )

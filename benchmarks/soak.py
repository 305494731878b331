"""Long runs that show whether something grows: ``python benchmarks/soak.py [sessions|guests|stdin|kill] ...``.

Without arguments all of them run. Each prints its measurements, and fails if a promise is broken:

sessions  20 000 short commands in one guest, half one after the other and half 200 at a time: descriptors, threads
          and memory of both sides after the first thousand and at the end.
guests    50 guests at once in one process, each running commands.
stdin     64 MiB through ``cat`` and back, compared by hash, with the peak memory of both sides.
kill      ``kill -9`` of the agent in the middle of output, 20 times: the time until the error, and the leftovers.
"""

from __future__ import annotations

import gc
import hashlib
import os
import resource
import signal
import statistics
import subprocess
import sys
import threading
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

import trio

import trio_console

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

SESSIONS = 20_000
AT_ONCE = 200
MIB = 1024 * 1024


@dataclass(frozen=True)
class Usage:
    """The resources of one process."""

    fds: int
    threads: int
    rss_mib: float
    peak_mib: float

    def __str__(self) -> str:
        return f"{self.fds} fds, {self.threads} threads, {self.rss_mib:.1f} MiB (peak {self.peak_mib:.1f})"


def usage(pid: int) -> Usage:
    with open(f"/proc/{pid}/status") as file:
        status = dict(line.split(":", 1) for line in file)
    return Usage(
        fds=len(os.listdir(f"/proc/{pid}/fd")),
        threads=int(status["Threads"]),
        rss_mib=int(status["VmRSS"].split()[0]) / 1024,
        peak_mib=int(status["VmHWM"].split()[0]) / 1024,
    )


def is_running(pid: int) -> bool:
    """Whether the process runs; a zombie does not count."""
    try:
        with open(f"/proc/{pid}/stat") as file:
            return file.read().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


async def agent_pid(guest: trio_console.Guest) -> int:
    result = await guest.run_process("echo $PPID", shell=True, capture_stdout=True)
    return int(result.stdout)


async def soak_sessions() -> None:
    async with trio_console.open_guest() as guest:
        pid = await agent_pid(guest)

        async def one_after_the_other(count: int) -> None:
            for _ in range(count):
                await guest.run_process(["true"])

        async def many_at_once(count: int) -> None:
            async with trio.open_nursery() as nursery:
                for _ in range(AT_ONCE):
                    nursery.start_soon(one_after_the_other, count // AT_ONCE)

        async def measure(count: int, run: Callable[[int], Awaitable[None]], name: str) -> tuple[Usage, Usage]:
            start = time.perf_counter()
            await run(count)
            took = (time.perf_counter() - start) / count * 1e3
            gc.collect()
            now = usage(os.getpid()), usage(pid)
            print(f"  {count} sessions {name}, {took:.2f} ms each; then host: {now[0]}; agent: {now[1]}")
            objects.append(len(gc.get_objects()))
            return now

        objects: list[int] = []
        first = await measure(1000, many_at_once, f"{AT_ONCE} at a time")
        await measure(SESSIONS // 4, many_at_once, f"{AT_ONCE} at a time")
        await measure(SESSIONS // 4, one_after_the_other, "one after the other")
        middle = await measure(SESSIONS // 4, many_at_once, f"{AT_ONCE} at a time")
        last = await measure(SESSIONS // 4, one_after_the_other, "one after the other")
        print(f"  objects the host's collector knows: {objects}")
        assert objects[-1] <= objects[0] + 100, "objects grow"
        for one, two, three in zip(first, middle, last, strict=True):
            assert three.fds <= one.fds + 2, "descriptors grow"
            assert three.threads <= one.threads + 2, "threads grow"
            # During the first thousand the heap still grows to its final size; after that it must not grow.
            assert three.rss_mib < two.rss_mib + 2, "memory grows"


async def soak_guests() -> None:
    start = time.perf_counter()
    done = 0

    async def use_guest() -> None:
        nonlocal done
        async with trio_console.open_guest(ready_timeout=120) as guest:
            ready.append(guest)
            if len(ready) == 50:
                all_ready.set()
            await all_ready.wait()
            for number in range(5):
                result = await guest.run_process(["echo", str(number)], capture_stdout=True)
                assert result.stdout == b"%d\n" % number
            done += 1

    ready: list[trio_console.Guest] = []
    all_ready = trio.Event()
    fds = usage(os.getpid()).fds
    async with trio.open_nursery() as nursery:
        for _ in range(50):
            nursery.start_soon(use_guest)
        await all_ready.wait()
        busy = usage(os.getpid())
    print(f"  50 guests at once ran 5 commands each in {time.perf_counter() - start:.1f} s; with all open: {busy}")
    assert done == 50
    assert usage(os.getpid()).fds <= fds + 2


async def soak_stdin() -> None:
    size = 64 * MIB
    block = os.urandom(MIB)
    sent, received = hashlib.sha256(), hashlib.sha256()
    async with trio_console.open_guest() as guest:
        pid = await agent_pid(guest)
        before = usage(os.getpid()), usage(pid)
        start = time.perf_counter()
        async with guest.open_process(["cat"], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as cat:
            assert cat.stdin is not None
            assert cat.stdout is not None

            async def send(stdin: trio.abc.SendStream) -> None:
                async with stdin:
                    for _ in range(size // MIB):
                        sent.update(block)
                        await stdin.send_all(block)

            async with trio.open_nursery() as nursery:
                nursery.start_soon(send, cat.stdin)
                async for chunk in cat.stdout:
                    received.update(chunk)
            assert await cat.wait() == 0
        took = time.perf_counter() - start
        after = usage(os.getpid()), usage(pid)
    assert sent.digest() == received.digest()
    print(f"  64 MiB through cat and back, intact, in {took:.2f} s ({size / MIB / took:.0f} MiB/s each way)")
    for who, first, last in zip(("host", "agent"), before, after, strict=True):
        print(f"  {who}: before: {first}; after: {last}")
        assert last.peak_mib < first.rss_mib + 40, "memory is not flat"


async def soak_kill() -> None:
    delays: list[float] = []
    pids: list[int] = []
    for _ in range(20):
        received = 0
        async with trio_console.open_guest() as guest:
            pid = await agent_pid(guest)
            async with guest.open_process(["yes"], stdout=subprocess.PIPE) as process:
                pids.append(process.pid)
                assert process.stdout is not None
                try:
                    while True:
                        received += len(await process.stdout.receive_some())
                        if received > MIB and pid:
                            os.kill(pid, signal.SIGKILL)
                            killed = time.perf_counter()
                            pid = 0
                except trio_console.GuestLostError as exc:
                    delays.append(time.perf_counter() - killed)
                    reason = exc.reason
        assert "SIGKILL" in reason, reason
    median, worst = statistics.median(delays) * 1e3, max(delays) * 1e3
    print(f"  error after kill -9: median {median:.0f} ms, worst {worst:.0f} ms")
    print(f"  it says: {reason}")
    assert max(delays) < 1
    assert not any(is_running(pid) for pid in pids), "a command was left behind"


SOAKS = {"sessions": soak_sessions, "guests": soak_guests, "stdin": soak_stdin, "kill": soak_kill}


def main() -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(max(soft, 8192), hard), hard))
    for name in sys.argv[1:] or SOAKS:
        print(f"{name}:")
        start = time.perf_counter()
        trio.run(SOAKS[name])
        print(f"  ({time.perf_counter() - start:.0f} s, {threading.active_count()} threads)")


if __name__ == "__main__":
    main()

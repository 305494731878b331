"""Many machines, at once and one after the other, and one for a long time."""

from __future__ import annotations

import os
import subprocess
import time
from typing import TYPE_CHECKING

import pytest
import trio

from tests.guests.machine.moments import SPEC, qemus
from tests.guests.machine.test_endings import BOOT
from tests.tools.leftovers import children, descriptors
from tests.tools.limits import HANG
from trio_console import open_guest
from trio_console._guests.machine.stock.cache import directory

if TYPE_CHECKING:
    from pathlib import Path

    from trio_console import Guest, GuestProcess

pytestmark = [
    pytest.mark.usefixtures("machines", "no_process_is_left"),
    pytest.mark.nightly,  # because they take minutes
]

AT_ONCE = 16
IN_A_ROW = 100

#: Seconds for which a clock is watched, and the most that it may be wrong in one of them.
WATCHED = 30.0
WRONG = 1e-3

MIB = 1024 * 1024

CLOCK = "import sys, time\nfor line in sys.stdin: print(time.time(), flush=True)"


async def test_sixteen_clones_at_once_wait_for_their_turns() -> None:
    ready = 0
    all_ready = trio.Event()

    async def use() -> None:
        nonlocal ready
        async with open_guest(SPEC) as guest:
            ready += 1
            if ready == AT_ONCE:
                all_ready.set()
            await all_ready.wait()
            await guest.run_process(["true"])

    with trio.fail_after(2 * HANG):
        async with open_guest(SPEC, launch_timeout=BOOT):
            pass  # so that there is a template
        began = time.monotonic()
        async with trio.open_nursery() as nursery:
            for _ in range(AT_ONCE):
                nursery.start_soon(use)
            await all_ready.wait()
            took = time.monotonic() - began
            memory = sorted(_memory_of(pid) for pid in qemus())
    print(f"{AT_ONCE} clones were ready after {took:.1f} s; MiB of each: {memory}")  # noqa: T201  (shown with -rP)


def _memory_of(pid: int) -> int:
    """MiB of a process; of what it shares with others, its part."""
    with open(f"/proc/{pid}/smaps_rollup") as file:
        (kib,) = (int(line.split()[1]) for line in file if line.startswith("Pss:"))
    return kib // 1024


async def test_a_hundred_machines_in_a_row_leave_nothing() -> None:
    async with open_guest(SPEC, launch_timeout=BOOT):
        pass
    before = _everything()
    began = time.monotonic()
    for _ in range(IN_A_ROW):
        with trio.fail_after(HANG):
            async with open_guest(SPEC) as guest:
                await guest.run_process(["true"])
    print(f"{IN_A_ROW} clones took {(time.monotonic() - began) / IN_A_ROW:.2f} s each")  # noqa: T201
    assert _everything() == before


def _everything() -> tuple[set[int], int, set[str], set[Path]]:
    """Children, the number of descriptors, and the files for which machines have a reason."""
    files = {path for path in directory().rglob("*") if path.suffix != ".lock"}
    return children(), len(descriptors()), set(os.listdir("/dev/shm")), files


async def test_the_clock_of_a_machine_goes_right() -> None:
    async with (
        open_guest(SPEC, launch_timeout=BOOT) as guest,
        guest.open_process(["python3", "-c", CLOCK], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process,
    ):
        first_here, first_there = await _both_clocks(guest, process)
        await trio.sleep(WATCHED)
        here, there = await _both_clocks(guest, process)
    wrong = (there - first_there) / (here - first_here) - 1
    print(f"in {here - first_here:.0f} s its clock was wrong by {wrong:.1e}")  # noqa: T201
    assert abs(wrong) <= WRONG


async def _both_clocks(guest: Guest, process: GuestProcess) -> tuple[float, float]:
    """What time it is here and there, as it was asked the soonest of twenty times."""
    asked = []
    assert process.stdin is not None
    assert process.stdout is not None
    for _ in range(20):
        before = time.monotonic()
        await process.stdin.send_all(b"\n")
        there = float(await process.stdout.receive_some())
        after = time.monotonic()
        asked.append((after - before, (before + after) / 2, there))
    return min(asked)[1:]


#: How many times as long a question may take while much is sent to the machine; on a quiet machine it is two to
#: three times, and thirty times if as much is on its way as with other guests.
SLOWER = 10.0

#: Seconds in which pings are sent, one after the other.
PINGED = 3.0


async def test_a_ping_does_not_wait_behind_an_upload() -> None:
    async with open_guest(SPEC, launch_timeout=BOOT) as guest:
        await _pings(guest)
        idle = await _pings(guest)
        beside = {}
        for name, load in (("upload", _upload), ("file", _write_a_file), ("download", _download)):
            async with trio.open_nursery() as nursery:
                await nursery.start(load, guest)
                beside[name] = await _pings(guest)
                nursery.cancel_scope.cancel()
    told = ", ".join(f"{name} {1000 * seconds:.1f}" for name, seconds in beside.items())
    print(f"ms of a ping at p95: idle {1000 * idle:.1f}, beside {told}")  # noqa: T201
    assert max(beside["upload"], beside["file"]) <= SLOWER * idle


async def _pings(guest: Guest) -> float:
    """Seconds of the slowest but one in twenty."""
    took = []
    over = trio.current_time() + PINGED
    while trio.current_time() < over:
        took.append(await guest.ping())
        await trio.sleep(0.005)
    return sorted(took)[int(0.95 * len(took))]


async def _upload(guest: Guest, *, task_status: trio.TaskStatus[None]) -> None:
    async with guest.open_process(["sh", "-c", "cat >/dev/null"], stdin=subprocess.PIPE) as process:
        assert process.stdin is not None
        await process.stdin.send_all(bytes(MIB))
        task_status.started()
        while True:
            await process.stdin.send_all(bytes(MIB))


async def _write_a_file(guest: Guest, *, task_status: trio.TaskStatus[None]) -> None:
    async with await guest.open_file("/dev/null", "wb") as file:
        await file.write(bytes(MIB))
        task_status.started()
        while True:
            await file.write(bytes(MIB))


async def _download(guest: Guest, *, task_status: trio.TaskStatus[None]) -> None:
    async with guest.open_process(["cat", "/dev/zero"], stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        await process.stdout.receive_some()
        task_status.started()
        async for _ in process.stdout:
            pass

"""A session with a guest, from beginning to end.

Run it with ``python examples/agent_session.py``. It starts the default guest, the agent in a child process of
this machine (which isolates nothing), and does there what an application would do in a virtual machine:
only the argument of ``open_guest`` would differ. It checks what it claims and takes seconds.
"""

from __future__ import annotations

import subprocess
import sys

import trio

import trio_console

# A job that reports as it goes: five lines, a tenth of a second apart.
SLOW_JOB = "for i in 1 2 3 4 5; do echo step $i; sleep 0.1; done"

try:
    from rich.console import Console

    _rich: Console | None = Console(highlight=False)
except ImportError:  # it only makes the output prettier
    _rich = None


def title(text: str) -> None:
    if _rich is not None:
        _rich.print(f"\n[bold cyan]{text}[/]")
    else:
        print(f"\n{text}")
    sys.stdout.flush()


def say(text: str) -> None:
    print(f"    {text}", flush=True)


async def run_commands(guest: trio_console.Guest) -> None:
    title("Run a command, as trio.run_process does")
    result = await guest.run_process(["uname", "-s"], capture_stdout=True)
    say(f"uname says {result.stdout.decode().strip()!r}, exit status {result.returncode}")
    assert result.returncode == 0

    try:
        await guest.run_process(["sh", "-c", "exit 3"])
    except subprocess.CalledProcessError as exc:
        say(f"a failing one raises: {exc}")
        assert exc.returncode == 3
    else:
        raise AssertionError("a failing command must raise")

    try:
        await guest.run_process(["no-such-program"])
    except FileNotFoundError as exc:
        say(f"a missing one raises: FileNotFoundError for {exc.filename!r}")
        assert exc.filename == "no-such-program"
    else:
        raise AssertionError("a missing program must raise")


async def stream_output(guest: trio_console.Guest) -> None:
    title("Stream the output of a long-running command")
    start = trio.current_time()
    arrivals = []
    async with guest.open_process(["sh", "-c", SLOW_JOB], stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        async for chunk in process.stdout:
            arrivals.append(trio.current_time() - start)
            say(f"after {arrivals[-1]:.1f} s: {bytes(chunk).decode().strip()}")
        assert await process.wait() == 0
    # The first line arrived while the job was still running, and not together with the last.
    assert arrivals[-1] - arrivals[0] > 0.2


async def feed_stdin(guest: trio_console.Guest) -> None:
    title("Feed a command's stdin")
    words = b"pear\napple\nfig\n"
    result = await guest.run_process(["sort"], stdin=words, capture_stdout=True)
    say(f"sort gives {result.stdout.decode().split()}")
    assert result.stdout == b"apple\nfig\npear\n"


async def use_terminal(guest: trio_console.Guest) -> None:
    title("Give a command a terminal")
    result = await guest.run_process(
        ["sh", "-c", "test -t 0 && stty size"], tty=True, rows=50, cols=132, capture_stdout=True
    )
    say(f"stty says its size is {result.stdout.decode().strip()}")
    assert result.stdout.split() == [b"50", b"132"]


async def run_several(guest: trio_console.Guest) -> None:
    title("Run several at once, in a nursery")
    results: dict[int, bytes] = {}

    async def square(number: int) -> None:
        command = ["sh", "-c", f"sleep 0.2; echo $(({number} * {number}))"]
        results[number] = (await guest.run_process(command, capture_stdout=True)).stdout.strip()

    start = trio.current_time()
    async with trio.open_nursery() as nursery:
        for number in range(8):
            nursery.start_soon(square, number)
    took = trio.current_time() - start
    say(f"8 commands of 0.2 s each took {took:.1f} s together: {[int(results[n]) for n in range(8)]}")
    assert [int(results[n]) for n in range(8)] == [n * n for n in range(8)]
    assert took < 8 * 0.2


async def cancel_one(guest: trio_console.Guest) -> None:
    title("Cancel one with a deadline, and see that it is gone")
    pids: list[int] = []

    async def endless(task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        async with trio.open_nursery() as nursery:
            process = await nursery.start(guest.run_process, ["sleep", "1000"])
            pids.append(process.pid)
            task_status.started()

    with trio.move_on_after(0.3) as scope:
        await endless()
    assert scope.cancelled_caught
    say(f"'sleep 1000' (guest pid {pids[0]}) was cancelled after 0.3 s")
    # run_process has returned, so the guest has confirmed the end of the process. This asks the guest once more.
    check = await guest.run_process(["kill", "-0", str(pids[0])], check=False, capture_stderr=True)
    say(f"the guest says: {check.stderr.decode().strip()}")
    assert check.returncode != 0


def show_statistics(guest: trio_console.Guest) -> None:
    title("What went through the channel")
    statistics = guest.statistics()
    console = statistics.console
    assert console is not None
    for name, lane in (("guest to host", console.tx), ("host to guest", console.rx)):
        say(f"{name}: {lane.bytes_out} bytes, {lane.bytes_dropped} dropped, {lane.wakes} wake-ups")
        assert lane.bytes_in == lane.bytes_out + lane.current_buffer_bytes + lane.bytes_dropped
        assert lane.bytes_dropped == 0
    say(f"{statistics.frames_received} frames came, {statistics.active_sessions} sessions are active")
    assert statistics.active_sessions == 0


async def main() -> None:
    with trio.fail_after(60):
        title("Open a guest")
        async with trio_console.open_guest() as guest:
            say(f"its agent is {guest.ready.agent_version!r}, and answers in {await guest.ping() * 1000:.1f} ms")
            await run_commands(guest)
            await stream_output(guest)
            await feed_stdin(guest)
            await use_terminal(guest)
            await run_several(guest)
            await cancel_one(guest)
            show_statistics(guest)
    title("The guest is gone")
    try:
        await guest.ping()
    except trio_console.GuestLostError as exc:
        say(f"asking it again raises: {exc}")
    else:
        raise AssertionError("a guest that is gone cannot answer")


if __name__ == "__main__":
    trio.run(main)

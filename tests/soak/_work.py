"""What a client does in a soak: each piece of work checks its own result, and leaves nothing.

Work is given a guest, and a directory of its own that the guest shares with this program.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from subprocess import DEVNULL, PIPE
from typing import TYPE_CHECKING, Final, TypeAlias

import trio

from tests.tools.cgroups import PLACE
from tests.tools.leftovers import runs
from tests.tools.limits import HANG

if TYPE_CHECKING:
    import random

    from trio_console import Guest

__all__ = ["WORK", "Place", "sleepers"]

#: Answers each connection, and writes a line for it first: that fails if its output is a broken pipe.
SERVER: Final = """
import os, socket, sys
listener = socket.create_server(("127.0.0.1", 0))
with open(sys.argv[1] + ".new", "w") as file:
    file.write(f"{os.getpid()} {listener.getsockname()[1]}")
os.rename(sys.argv[1] + ".new", sys.argv[1])
while True:
    connection, _ = listener.accept()
    with connection:
        print("a connection", "x" * 1000, flush=True)
        connection.sendall(b"served")
"""

#: Commands that start something which is not in their process group, or does not end with it.
ESCAPES: tuple[str, ...] = (
    "timeout 1000 sleep {0} & echo ready; wait",
    "set -m; sleep {0} & echo ready; wait",
    "setsid sleep {0} & echo ready; wait",
    "(setsid sleep {0} &); echo ready; exec sleep {0}",
    "trap '' TERM; sleep {0} & echo ready; wait; wait; sleep {0}",
)

#: The same, if commands have cgroups: it has got rid of its mark, its POSIX session and its parent.
if PLACE is not None:
    ESCAPES = (*ESCAPES, "env -i setsid sh -c 'sleep {0} >/dev/null 2>&1 & exit 0'; echo ready; exec sleep {0}")

#: Seconds that a filter waits before it passes on, and a reader before it reads: more than a process takes to end.
LATE: Final = 0.4


@dataclass
class Place:
    """Where a client works.

    Attributes:
        guest: the client's.
        folder: a directory of its own.
        choice: its source of random numbers.
        name: of the client, in messages and in the arguments of what it starts.
    """

    guest: Guest
    folder: Path
    choice: random.Random
    name: str

    def new_name(self) -> str:
        """A name that no other piece of work has, which is also a number of seconds for sleep(1)."""
        return f"1000.{self.name}{self.choice.randrange(10**9):09}"


Work: TypeAlias = Callable[[Place], Awaitable[None]]


def sleepers(name: str) -> list[int]:
    """The processes that sleep for so long and carry the name."""
    found = []
    for pid in filter(str.isdigit, os.listdir("/proc")):
        try:
            arguments = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
        except OSError:
            continue
        if arguments[0].endswith(b"sleep") and any(name.encode() in one for one in arguments) and runs(int(pid)):
            found.append(int(pid))
    return found


async def read_all(stream: trio.abc.ReceiveStream | None, pause: float = 0.0) -> bytes:
    assert stream is not None
    await trio.sleep(pause)
    return b"".join([bytes(chunk) async for chunk in stream])


async def serve_in_the_background(place: Place) -> None:
    """A server outlives its command, and can write when nobody reads that any more."""
    told = place.folder / place.new_name()
    script = f'"$0" -c "$1" {told} & while ! test -e {told}; do sleep 0.01; done; cat {told}'
    command = ["sh", "-c", script, sys.executable, SERVER]
    if place.choice.random() < 0.7:
        done = await place.guest.run_process(command, capture_stdout=True, stderr=DEVNULL, drain=0)
        assert done.output_open, "the server holds the output"
        answer = done.stdout
    else:
        await place.guest.run_process(command, stdout=DEVNULL, stderr=DEVNULL)
        answer = told.read_bytes()
    pid, port = map(int, answer.split())
    for _ in range(3):
        await trio.sleep(place.choice.uniform(0, LATE))
        stream = await place.guest.open_tcp_stream("127.0.0.1", port)
        async with stream:
            assert await read_all(stream) == b"served", "the server has answered in part"
    await place.guest.run_process(["kill", str(pid)])


async def filter_output(place: Place) -> None:
    """A filter writes on when its command has exited, at once or late; the reader may pause, too."""
    count = place.choice.randrange(1, 60_000)
    late = f"sleep {LATE}; " if place.choice.random() < 0.5 else ""
    command = ["bash", "-c", f"exec > >({late}sort -n); shuf -i 1-{count}"]
    if place.choice.random() < 0.5:
        output = (await place.guest.run_process(command, capture_stdout=True)).stdout
    else:
        async with place.guest.open_process(command, stdout=PIPE) as process:
            output = await read_all(process.stdout, place.choice.uniform(0, LATE))
            assert await process.wait() == 0
    assert output == b"".join(b"%d\n" % number for number in range(1, count + 1)), (
        f"{output.count(bytes([10]))} of {count} lines have come"
    )


async def cancel(place: Place) -> None:
    """A command that is cancelled is dead, with all that it has started, when the call returns."""
    name = place.new_name()
    script = place.choice.choice(ESCAPES).format(name)
    with trio.CancelScope() as scope:
        async with place.guest.open_process(["bash", "-c", script], stdout=PIPE) as process:
            assert process.stdout is not None
            assert await process.stdout.receive_some() == b"ready\n"
            await trio.sleep(place.choice.uniform(0, 0.02))
            scope.cancel()
            await trio.lowlevel.checkpoint()
    left = sleepers(name)
    assert not left, f"{script!r} was cancelled, and {left} live"


async def use_a_terminal(place: Place) -> None:
    """A shell on a terminal gives all its output, and its status."""
    async with place.guest.open_process(["sh"], stdin=PIPE, stdout=PIPE, tty=True, rows=30, cols=90) as process:
        assert process.stdin is not None
        await process.stdin.send_all(b"stty size; echo $((6 * 7)); seq 1 2000; exit 3\n")
        output = await read_all(process.stdout)
        assert await process.wait() == 3
    assert b"30 90\r\n42\r\n" in output
    assert output.endswith(b"\r\n2000\r\n"), f"the terminal has ended with {output[-20:]!r}"


async def upload_and_run(place: Place) -> None:
    """A program can be run as soon as it was uploaded, whatever others start at that moment."""
    path = place.guest.path(place.folder / place.new_name())
    size = place.choice.randrange(300_000)
    await path.write_bytes(b"#!/bin/sh\nwc -c\nexit 0\n" + b"#" * size)
    await path.chmod(0o755)
    done = await place.guest.run_process([str(path)], stdin=bytes(size), capture_stdout=True)
    assert int(done.stdout) == size
    await path.unlink()


async def send_and_close(place: Place) -> None:
    """What was sent on a connection before it was closed arrives."""
    data = place.choice.randbytes(place.choice.randrange(1, 800_000))
    got: list[bytes] = []

    async def take(stream: trio.SocketStream) -> None:
        got.append(await read_all(stream, place.choice.uniform(0, LATE)))
        nursery.cancel_scope.cancel()

    async with trio.open_nursery() as nursery:
        [listener] = await nursery.start(partial(trio.serve_tcp, take, 0, host="127.0.0.1"))
        stream = await place.guest.open_tcp_stream("127.0.0.1", listener.socket.getsockname()[1])
        await stream.send_all(data)
        await stream.aclose()
        await trio.sleep(HANG)
    assert got == [data], f"{len(got[0]) if got else 0} of {len(data)} bytes have arrived"


WORK: Final[tuple[Work, ...]] = (
    serve_in_the_background,
    filter_output,
    cancel,
    use_a_terminal,
    upload_and_run,
    send_and_close,
)

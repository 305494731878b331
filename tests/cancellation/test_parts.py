"""The parts of a session, each cancelled at every moment of its own, so that a failure names the part.

The agent is the real one, but in this process; its commands are real processes. If the guest outlives the
cancelled part, it has a moment to end the part's sessions.
"""

from __future__ import annotations

import os
import signal
import socket
import subprocess
from contextlib import asynccontextmanager, contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

import pytest
import trio

from tests.cancellation._places import echoing
from tests.tools.limits import HANG
from tests.tools.nights import tonight
from trio_console import (
    GuestLostError,
    RelayOptions,
    SocketGuest,
    connect_guest,
    open_console,
    open_guest,
    serve_relay,
)
from trio_console._console.devices import FdDevice, as_device
from trio_console._console.polled import open_polled
from trio_console.agent import BootError, serve_agent

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterator
    from pathlib import Path

    from tests.cancellation._sweep import Sweep
    from trio_console import Guest, GuestProcess

PIPE = subprocess.PIPE


@dataclass(frozen=True)
class Place:
    """Where a part is played."""

    directory: str
    console: str  # a guest's, for `SocketGuest`
    agents: list[trio.CancelScope]  # of the guests that were opened
    guest: Guest  # another one, which is open
    relay: str  # which serves that one
    neighbour: GuestProcess  # a `cat` in that guest
    echo_port: int

    @property
    def path(self) -> str:
        return os.path.join(self.directory, "own-relay")


@asynccontextmanager
async def place(directory: str) -> AsyncIterator[Place]:
    agents: list[trio.CancelScope] = []

    async def be_guest(stream: trio.SocketStream) -> None:
        with trio.CancelScope() as scope:
            agents.append(scope)
            with suppress(BootError):  # the opener was cancelled before it had sent the bootstrap
                await serve_agent(stream)

    console, relay = os.path.join(directory, "console"), os.path.join(directory, "relay")
    sock = trio.socket.socket(socket.AF_UNIX)
    await sock.bind(console)
    sock.listen()
    async with trio.open_nursery() as nursery:
        await nursery.start(partial(trio.serve_listeners, be_guest, [trio.SocketListener(sock)]))
        async with (
            echoing() as port,
            open_guest(SocketGuest(console), relay_path=relay) as guest,
            guest.open_process(["cat"], stdin=PIPE, stdout=PIPE) as neighbour,
        ):
            await greet(neighbour)  # all tasks of this guest have been started by now
            yield Place(directory, console, agents, guest, relay, neighbour, port)
        nursery.cancel_scope.cancel()
    os.unlink(console)


async def greet(neighbour: GuestProcess) -> None:
    assert neighbour.stdio is not None
    await neighbour.stdio.send_all(b"hello")
    assert await neighbour.stdio.receive_some() == b"hello"


async def check_guest(place: Place) -> None:
    """The guest that is open was not affected, and carries out requests."""
    await greet(place.neighbour)
    assert (await place.guest.run_process(["echo", "next"], capture_stdout=True)).stdout == b"next\n"
    with trio.fail_after(HANG):
        while place.guest.statistics().active_sessions > 1:  # files are closed without waiting for the answer
            await place.guest.ping()


@contextmanager
def until_stuck(place: Place, *, heard: int = 1, sent: int = 0) -> Iterator[None]:
    """Leave the block once it waits for what never comes, however long the machine takes to get there.

    So many frames have come from the guest, so many bytes have gone to it, and then its console has been still for
    20 looks. They are those of a system task, since the tasks of the session are followed.
    """
    left = False
    scope = trio.CancelScope()

    def moved() -> tuple[int, int]:
        now = place.guest.statistics()
        assert now.console is not None
        return now.frames_received, now.console.rx.bytes_out

    frames, bytes_ = moved()

    async def look() -> None:
        last, still = moved(), 0
        while not left and still < 20:
            await trio.sleep(0.001)
            now = moved()
            still = still + 1 if now == last and now[0] >= frames + heard and now[1] >= bytes_ + sent else 0
            last = now
        scope.cancel()

    trio.lowlevel.spawn_system_task(look)
    try:
        with scope:
            yield
    finally:
        left = True


# Without a guest


async def use_console(_place: Place) -> None:
    device, guest = socket.socketpair()
    async with (
        trio.SocketStream(trio.socket.from_stdlib_socket(guest)) as stream,
        open_console(device, max_bytes=1000) as channel,
        trio.open_nursery() as nursery,
    ):
        nursery.start_soon(_echo, stream)
        nursery.start_soon(_send, channel, b"x" * 20_000)
        received = 0
        async for data in channel:
            received += len(data)
        assert received == 20_000


async def _echo(stream: trio.SocketStream) -> None:
    async for data in stream:
        await stream.send_all(data)
    await stream.send_eof()


async def _send(channel: trio.abc.HalfCloseableStream, data: bytes) -> None:
    await channel.send_all(data)
    await channel.send_eof()


class Pipes:
    """A device that is an object: blocking calls, which end when it is closed."""

    def __init__(self, sock: socket.socket) -> None:
        self._socket = sock

    def read(self, max_bytes: int) -> bytes:
        return self._socket.recv(max_bytes)

    def write(self, data: memoryview, /) -> int:
        return self._socket.send(data)

    def close_write(self) -> None:
        self._socket.shutdown(socket.SHUT_WR)

    def close(self) -> None:
        with suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)
        self._socket.close()


async def use_console_by_tasks(_place: Place) -> None:
    device, guest = socket.socketpair()
    port = as_device(device)
    assert isinstance(port, FdDevice)
    async with (
        trio.SocketStream(trio.socket.from_stdlib_socket(guest)) as stream,
        open_polled(port, max_bytes=1000) as channel,
        trio.open_nursery() as nursery,
    ):
        nursery.start_soon(_echo, stream)
        nursery.start_soon(_send, channel, b"x" * 500_000)
        received = 0
        async for data in channel:
            received += len(data)
        assert received == 500_000


async def use_a_device(_place: Place) -> None:
    device, guest = socket.socketpair()
    with guest:
        async with open_console(Pipes(device), max_bytes=1000) as channel:
            guest.send(b"x" * 10)
            assert await channel.receive_some(5) == b"x" * 5
            await channel.send_all(b"y" * 900)
            await channel.aclose()
            await trio.lowlevel.checkpoint()


# With a guest of its own


async def use_a_guest(place: Place) -> None:
    async with open_guest(SocketGuest(place.console)) as guest:
        await guest.ping()


async def use_a_guest_by_threads(place: Place) -> None:
    async with open_guest(SocketGuest(place.console, workers="threads")) as guest:
        await guest.ping()


async def use_a_guest_with_a_relay(place: Place) -> None:
    async with open_guest(SocketGuest(place.console), relay_path=place.path) as guest:
        async with connect_guest(place.path) as client:
            await client.ping()
        await guest.ping()


async def use_two_guests_at_once(place: Place) -> None:
    async with trio.open_nursery() as nursery:
        for _ in range(2):
            nursery.start_soon(use_a_guest, place)


async def serve_a_relay(place: Place) -> None:
    async with trio.open_nursery() as nursery:
        await nursery.start(serve_relay, SocketGuest(place.console), place.path)
        async with connect_guest(place.path) as client:
            await client.run_process(["true"])
        nursery.cancel_scope.cancel()


async def shut_down_through_a_relay(place: Place) -> None:
    async with trio.open_nursery() as nursery:
        await nursery.start(serve_relay, SocketGuest(place.console), place.path)
        async with connect_guest(place.path) as client:
            await client.shutdown()


async def serve_a_relay_with_a_log(place: Place) -> None:
    options = RelayOptions(session_log=os.path.join(place.directory, "log"))
    async with trio.open_nursery() as nursery:
        await nursery.start(partial(serve_relay, SocketGuest(place.console), place.path, options=options))
        async with connect_guest(place.path) as client:
            await client.run_process(["echo", "logged"], capture_stdout=True)
        nursery.cancel_scope.cancel()


async def lose_a_guest(place: Place) -> None:
    with suppress(GuestLostError):
        async with open_guest(SocketGuest(place.console)) as guest:
            async with guest.open_process(["sleep", "1000"]) as process:
                place.agents[-1].cancel()
                await process.wait()


async def lose_a_guest_with_a_relay(place: Place) -> None:
    with suppress(GuestLostError):
        async with (
            open_guest(SocketGuest(place.console), relay_path=place.path),
            connect_guest(place.path) as client,
        ):
            async with await client.open_file(os.path.join(place.directory, "lost"), "w") as file:
                place.agents[-1].cancel()
                await file.write("x" * 100_000)


async def clean_up_in_a_guest(place: Place) -> None:
    async with (
        open_guest(SocketGuest(place.console), relay_path=place.path) as guest,
        connect_guest(place.path) as client,
    ):
        try:
            await guest.run_process(["true"])
        finally:
            # Everything around it is cancelled, and the guest can still be used.
            with trio.CancelScope(shield=True):
                for one in (guest, client):
                    done = await one.run_process(["echo", "clean"], capture_stdout=True)
                    assert done.stdout == b"clean\n"


# With a guest that lives on


async def run_a_process(place: Place) -> None:
    done = await place.guest.run_process(["cat"], stdin=b"y" * 300_000, capture_stdout=True, capture_stderr=True)
    assert done.stdout == b"y" * 300_000


async def run_a_process_that_does_not_end(place: Place) -> None:
    with until_stuck(place):
        await place.guest.run_process(["sh", "-c", "sleep 1000 & sleep 1000"], capture_stdout=True)


async def run_a_process_under_start(place: Place) -> None:
    async with trio.open_nursery() as nursery:
        process = await nursery.start(partial(place.guest.run_process, ["cat"], stdin=PIPE, stdout=PIPE))
        await process.stdin.send_all(b"z")
        assert await process.stdout.receive_some() == b"z"
        await process.stdin.aclose()


async def run_processes_at_once(place: Place) -> None:
    async with trio.open_nursery() as nursery:
        for _ in range(3):
            nursery.start_soon(partial(place.guest.run_process, ["cat"], stdin=b"x", capture_stdout=True))


async def hold_a_process(place: Place) -> None:
    async with place.guest.open_process(["sh", "-c", "sleep 1000 & cat"], stdin=PIPE, stdout=PIPE) as process:
        await process.stdin.send_all(b"z" * 1000)
        assert await process.stdout.receive_some()
        process.terminate()
        await process.wait()


async def leave_a_process_that_talks(place: Place) -> None:
    async with place.guest.open_process(["yes"], stdout=PIPE) as process:
        assert await process.stdout.receive_some()


# A command whose background holds its output. The background lives on if it is left in order, and only then.

BACKGROUND = ["sh", "-c", "sleep 1000 & echo $!"]


#: Its background holds no stream, so the session of the command is over with the command.
SILENT = ["sh", "-c", "setsid sleep 1000 </dev/null >/dev/null 2>&1 & echo up"]

#: Its background ends by itself: nothing is left, whether the command was cancelled or was over before that.
BRIEF = ["sh", "-c", "(for i in 1 2 3; do sleep 0.01; echo $i; done) & echo 0"]


async def drain_a_command(place: Place) -> None:
    done = await place.guest.run_process(BRIEF, capture_stdout=True, drain=HANG)
    assert done.stdout == b"0\n1\n2\n3\n"


async def wait_for_a_background(place: Place) -> None:
    with until_stuck(place):
        await place.guest.run_process(BACKGROUND, capture_stdout=True, drain=None)


async def let_go_of_a_background(place: Place) -> None:
    to_end: list[int] = []
    try:
        async with place.guest.open_process(BACKGROUND, stdout=PIPE) as process:
            pid = int(await process.stdout.receive_some())
            assert await process.wait() == 0
            # The block is left in order, even if the cancellation comes now, and ends the copying of stderr.
            to_end.append(pid)
    finally:
        for pid in to_end:
            os.kill(pid, signal.SIGKILL)


async def fail_after_a_command(place: Place) -> None:
    """A block that fails kills what its command has left, even if its session is over."""
    with suppress(LookupError):
        async with place.guest.open_process(SILENT, stdout=PIPE) as process:
            assert await process.stdout.receive_some()
            await process.wait()
            raise LookupError


async def fail_after_a_command_through_a_relay(place: Place) -> None:
    async with connect_guest(place.relay) as client:
        with suppress(LookupError):
            async with client.open_process(SILENT, stdout=PIPE) as process:
                assert await process.stdout.receive_some()
                await process.wait()
                raise LookupError


#: With processes in sessions and groups of their own.
WHOLE = ["sh", "-c", "setsid sleep 1000 & setsid sleep 1000 >/dev/null 2>&1 & echo up; sleep 1000"]


async def kill_a_whole_command(place: Place) -> None:
    async with place.guest.open_process(WHOLE, stdout=PIPE) as process:
        assert await process.stdout.receive_some() == b"up\n"


async def cancel_a_whole_command(place: Place) -> None:
    with until_stuck(place, heard=2):
        await place.guest.run_process(WHOLE, capture_stdout=True)


async def kill_a_whole_command_through_a_relay(place: Place) -> None:
    async with (
        connect_guest(place.relay) as client,
        client.open_process(WHOLE, stdout=PIPE) as process,
    ):
        assert await process.stdout.receive_some() == b"up\n"


async def drain_through_a_relay(place: Place) -> None:
    async with connect_guest(place.relay) as client:
        done = await client.run_process(BRIEF, capture_stdout=True, drain=HANG)
        assert done.stdout == b"0\n1\n2\n3\n"


async def feed_a_process_that_does_not_read(place: Place) -> None:
    with until_stuck(place, sent=1_000_000):
        await place.guest.run_process(["sleep", "1000"], stdin=b"x" * 1_000_000)


async def hold_a_terminal(place: Place) -> None:
    async with place.guest.open_process(["cat"], stdin=PIPE, stdout=PIPE, tty=True) as process:
        process.resize(11, 22)
        await process.stdin.send_all(b"line\n")
        assert await process.stdout.receive_some()


async def use_binary_files(place: Place) -> None:
    path = place.guest.path(place.directory) / "binary"
    async with await path.open("wb") as file:
        await file.write(b"x" * 200_000)
        await file.write(b"y")
    async with await path.open("rb") as file:
        assert await file.read(150_000) == b"x" * 150_000
        await file.seek(200_000)
        assert await file.read() == b"y"


async def use_text_files(place: Place) -> None:
    path = os.path.join(place.directory, "text")
    async with await place.guest.open_file(path, "w+") as file:
        await file.write("line\n" * 100)
        await file.seek(0)
        assert [line async for line in file] == ["line\n"] * 100


async def use_paths(place: Place) -> None:
    root = place.guest.path(place.directory) / "tree"
    await root.mkdir(exist_ok=True)
    await (root / "file").write_bytes(b"x" * 200_000)
    assert len(await (root / "file").read_bytes()) == 200_000
    assert [path.name for path in await root.iterdir()] == ["file"]
    await (root / "file").unlink()


async def use_fifos(place: Place) -> None:
    path = os.path.join(place.directory, "fifo")
    with suppress(FileExistsError):
        os.mkfifo(path)
    writer = ["sh", "-c", f"echo one; sleep 0.01; echo two; exec > {path}; echo three; echo four"]
    async with place.guest.open_process(writer, stdout=subprocess.DEVNULL):
        async with await place.guest.open_file(path) as file:
            assert await file.readline() == "three\n"
            assert await file.read() == "four\n"
    reader = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    try:
        async with await place.guest.open_file(path, "w") as out:
            await out.write("text")
        assert os.read(reader, 100) == b"text"
    finally:
        os.close(reader)


async def use_names_of_any_bytes(place: Place) -> None:
    root = place.guest.path(os.fsencode(place.directory) + b"/odd\xff")
    await root.mkdir(exist_ok=True)
    await (root / os.fsdecode(b"f\xfe")).touch()
    assert [bytes(path)[-2:] for path in await root.glob("*")] == [b"f\xfe"]
    await place.guest.run_process(["test", "-d", root], cwd=root)
    await (root / os.fsdecode(b"f\xfe")).unlink()
    await root.rmdir()


async def fill_a_disk(place: Place) -> None:
    with suppress(OSError):
        async with await place.guest.open_file("/dev/full", "wb") as file:
            await file.write(b"x" * 300_000)


async def use_a_connection(place: Place) -> None:
    async with await place.guest.open_tcp_stream("127.0.0.1", place.echo_port) as stream:
        await stream.send_all(b"x" * 50_000)
        await stream.send_eof()
        assert sum([len(data) async for data in stream]) == 50_000


async def send_to_a_connection_that_is_not_read(place: Place) -> None:
    async with trio.open_nursery() as nursery:
        listeners = await nursery.start(partial(trio.serve_tcp, _never_read, 0, host="127.0.0.1"))
        async with await place.guest.open_tcp_stream(*listeners[0].socket.getsockname()) as stream:
            with until_stuck(place, heard=0, sent=100_000):
                await stream.send_all(b"x" * 20_000_000)
        nursery.cancel_scope.cancel()


async def _never_read(_stream: trio.SocketStream) -> None:
    await trio.sleep_forever()


async def connect_to_nobody(place: Place) -> None:
    with suppress(ConnectionRefusedError):
        await place.guest.open_tcp_stream("127.0.0.1", 1)


async def be_a_client(place: Place) -> None:
    async with connect_guest(place.relay) as client:
        await client.run_process(["cat"], stdin=b"x" * 100_000, capture_stdout=True)
        async with client.open_process(["sleep", "1000"]):
            await client.ping()


PARTS = [
    use_console,
    use_console_by_tasks,
    use_a_device,
    use_a_guest,
    use_a_guest_by_threads,
    use_a_guest_with_a_relay,
    use_two_guests_at_once,
    serve_a_relay,
    serve_a_relay_with_a_log,
    lose_a_guest,
    lose_a_guest_with_a_relay,
    clean_up_in_a_guest,
    shut_down_through_a_relay,
    run_a_process,
    run_a_process_that_does_not_end,
    run_a_process_under_start,
    run_processes_at_once,
    hold_a_process,
    hold_a_terminal,
    leave_a_process_that_talks,
    drain_a_command,
    wait_for_a_background,
    let_go_of_a_background,
    fail_after_a_command,
    fail_after_a_command_through_a_relay,
    kill_a_whole_command,
    cancel_a_whole_command,
    kill_a_whole_command_through_a_relay,
    drain_through_a_relay,
    feed_a_process_that_does_not_read,
    fill_a_disk,
    use_binary_files,
    use_text_files,
    use_paths,
    use_fifos,
    use_names_of_any_bytes,
    use_a_connection,
    send_to_a_connection_that_is_not_read,
    connect_to_nobody,
    be_a_client,
]


@pytest.fixture(params=PARTS, ids=lambda part: part.__name__)
def sweep(request: pytest.FixtureRequest, make_sweep: Callable[..., Sweep], tmp_path: Path) -> Sweep:
    return make_sweep(lambda: place(str(tmp_path)), request.param, check_guest, patience=HANG / 2)


def test_a_part_cancelled_at_some_moments_leaves_nothing_behind(sweep: Sweep) -> None:
    sweep.sample(6)


@pytest.mark.nightly
def test_a_part_cancelled_at_every_moment_in_two_nights_leaves_nothing_behind(sweep: Sweep) -> None:
    sweep.all(tonight(2), 2)

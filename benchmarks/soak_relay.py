"""Long runs of a shared guest: ``python benchmarks/soak_relay.py [stall|kill|full|fuzz|bulk][=N] ...``.

Without arguments all of them run. Each prints its measurements, and fails if a promise is broken:

stall     one client stops reading in the middle of a flood while eight others run ``echo``: their latency with and
          without it, the relay's memory, and whether the reader then gets every byte. N: commands of each.
kill      a client is killed by SIGKILL while ten of its commands run: how long until their processes are
          gone, and whether a frame of theirs reaches the next client in that slot. N times.
full      128 clients at once, and one more.
fuzz      mutated frames from clients and from a guest, for N seconds each, while another client works.
bulk      ping while another client reads N MiB of output, and then of a file, against an idle relay.
"""

from __future__ import annotations

import hashlib
import os
import random
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from contextlib import asynccontextmanager
from functools import partial
from typing import TYPE_CHECKING

import trio

import trio_console
from trio_console import _wire as wire

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable

MIB = 1024 * 1024
COMMANDS = [sys.executable, "-m", "trio_console"]


# Parts that the runs share


class Relay:
    """A relay in a process of its own."""

    def __init__(self, process: trio.Process, path: str) -> None:
        self.process = process
        self.path = path

    def rss_mib(self) -> float:
        with open(f"/proc/{self.process.pid}/status") as file:
            status = dict(line.split(":", 1) for line in file)
        return int(status["VmRSS"].split()[0]) / 1024


@asynccontextmanager
async def relay_process(*, quiet: bool = False) -> AsyncIterator[Relay]:
    with tempfile.TemporaryDirectory() as place:
        path = os.path.join(place, "relay.sock")
        process = await trio.lowlevel.open_process(
            [*COMMANDS, "relay", "--listen", path],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL if quiet else None,
        )
        try:
            assert process.stdout is not None
            with trio.fail_after(30):
                said = bytes(await process.stdout.receive_some())
            assert said == f"ready {path}\n".encode(), said
            yield Relay(process, path)
        finally:
            process.terminate()
            with trio.CancelScope(shield=True), trio.move_on_after(10):
                await process.wait()
            process.kill()
        assert process.returncode == 0, process.returncode


class RawClient:
    """A client that speaks frames, counts no credit, and reads only when it is told to."""

    def __init__(self, stream: trio.SocketStream) -> None:
        self.stream = stream
        self.decoder = wire.FrameDecoder()
        self.start = 0

    async def greet(self) -> None:
        got = b""
        while len(got) < 8:
            data = await self.stream.receive_some(8 - len(got))
            assert data, "refused"
            got += bytes(data)
        self.start = int.from_bytes(got[:4], "big")
        frame = await self.receive()
        assert frame is not None
        assert frame.id == 0

    async def send(self, message: wire.Message, id_: int) -> None:
        await self.stream.send_all(wire.encode(message, id_))

    async def receive(self) -> wire.Frame | None:
        while (frame := self.decoder.next_frame()) is None:
            data = await self.stream.receive_some(65536)
            if not data:
                return None
            self.decoder.feed(bytes(data))
        return frame


@asynccontextmanager
async def raw_client(path: str) -> AsyncIterator[RawClient]:
    async with await trio.open_unix_socket(path) as stream:
        client = RawClient(stream)
        await client.greet()
        yield client


def percentile(times: list[float], percent: int) -> float:
    return statistics.quantiles(times, n=100)[percent - 1] * 1e3


# One client that does not read


async def echo_times(path: str, count: int) -> list[float]:
    times: list[float] = []

    async def work() -> None:
        async with trio_console.connect_guest(path) as guest:
            for number in range(count):
                start = time.perf_counter()
                result = await guest.run_process(["echo", str(number)], capture_stdout=True)
                times.append(time.perf_counter() - start)
                assert result.stdout == b"%d\n" % number

    async with trio.open_nursery() as nursery:
        for _ in range(8):
            nursery.start_soon(work)
    return times


async def soak_stall(count: int = 100) -> None:
    size = 64 * MIB
    pattern = b"".join(b"%07d\n" % number for number in range(MIB // 8))
    expected = hashlib.sha256(pattern * (size // MIB)).hexdigest()
    script = f"i=0; while [ $i -lt {size // MIB} ]; do seq -f %07.0f 0 {MIB // 8 - 1}; i=$((i+1)); done"
    async with relay_process() as relay:
        await echo_times(relay.path, 10)
        ratios = []
        for _ in range(3):
            before = percentile(await echo_times(relay.path, count), 99)
            rss = relay.rss_mib()
            async with raw_client(relay.path) as slow:
                await slow.send(wire.ExecRequest(cmd="sh", args=["-c", script]), slow.start)
                received, digest = 0, hashlib.sha256()
                status: int | None = None
                stalled = 0.0
                while status is None:
                    frame = await slow.receive()
                    assert frame is not None, "the slow reader was cut"
                    message = wire.decode(frame)
                    if isinstance(message, wire.ExecStdout):
                        received += len(message.data)
                        digest.update(message.data)
                    elif isinstance(message, wire.ExecExited):
                        status = message.code
                    if received > MIB and not stalled:
                        stalled = percentile(await echo_times(relay.path, count), 99)
                        grown = relay.rss_mib() - rss
            assert (status, received, digest.hexdigest()) == (0, size, expected)
            ratios.append(stalled / before)
            print(
                f"  p99 of 8 x {count} echos: {before:.1f} ms; with a stalled reader {stalled:.1f} ms, "
                f"relay memory {grown:+.1f} MiB; the reader then got all {size // MIB} MiB"
            )
            assert grown < 8, "memory is not flat"
        print(f"  best ratio {min(ratios):.2f}, median {statistics.median(ratios):.2f}")
        assert min(ratios) <= 1.5


# Clients that are killed

_VICTIM = """
import os, socket, struct, sys
sock = socket.socket(socket.AF_UNIX)
sock.connect(sys.argv[1])
got = b""
while len(got) < 12 or len(got) < 12 + struct.unpack_from(">I", got, 8)[0]:
    got += sock.recv(65536)
start = struct.unpack_from(">I", got)[0]
raw = bytearray(bytes.fromhex(sys.argv[2]))
for number in range(10):
    struct.pack_into(">I", raw, 4, start + number)
    sock.sendall(raw)
os.write(1, struct.pack(">I", start))
while data := sock.recv(65536):
    os.write(1, data)
"""


def is_running(pid: int) -> bool:
    """Whether the process runs; a zombie does not count."""
    try:
        with open(f"/proc/{pid}/stat") as file:
            return file.read().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


async def run_victim(path: str) -> tuple[int, list[int], trio.Process]:
    """A client process with ten commands running; returns the first of its ids, and all processes in them."""
    request = wire.encode(wire.ExecRequest(cmd="sh", args=["-c", "sleep 999 & echo $!; exec sleep 999"]), 1)
    process = await trio.lowlevel.open_process(
        [sys.executable, "-SEc", _VICTIM, path, request.hex()], stdout=subprocess.PIPE
    )
    assert process.stdout is not None
    got = b""
    while len(got) < 4:
        got += bytes(await process.stdout.receive_some())
    decoder = wire.FrameDecoder()
    decoder.feed(got[4:])
    pids: list[int] = []
    while len(pids) < 20:
        for frame in decoder:
            message = wire.decode(frame)
            if isinstance(message, wire.ExecStarted):
                pids.append(message.pid)
            elif isinstance(message, wire.ExecStdout):
                pids.append(int(message.data))
        if len(pids) < 20:
            decoder.feed(bytes(await process.stdout.receive_some()))
    return int.from_bytes(got[:4], "big"), pids, process


async def soak_kill(count: int = 1000) -> None:
    delays: list[float] = []
    reuses: list[float] = []
    strays = 0
    async with relay_process() as relay:
        for number in range(count):
            with trio.fail_after(30):
                start, pids, process = await run_victim(relay.path)
                os.kill(process.pid, signal.SIGKILL)
                killed = time.perf_counter()
                while any(is_running(pid) for pid in pids):  # noqa: ASYNC110  (the kernel has no event for it)
                    await trio.sleep(0.001)
                delays.append(time.perf_counter() - killed)
                await process.wait()
                assert process.stdout is not None
                await process.stdout.aclose()
                while True:
                    async with raw_client(relay.path) as probe:
                        if probe.start == start:
                            reuses.append(time.perf_counter() - killed)
                            # (Not a ping: its answer would overtake the rest of the output.)
                            await probe.send(wire.FsRequest(wire.OpStat("/", follow_symlink=True)), start + 99)
                            frame = await probe.receive()
                            strays += frame is None or not isinstance(wire.decode(frame), wire.FsResponse)
                            break
            if number == min(100, count - 1):
                rss = relay.rss_mib()
        grown = relay.rss_mib() - rss
    print(
        f"  {count} clients killed with 10 commands each: all their processes gone after "
        f"{statistics.median(delays) * 1e3:.0f} ms (median), {max(delays) * 1e3:.0f} ms (worst)"
    )
    print(
        f"  slot used again after {statistics.median(reuses) * 1e3:.0f} ms (median), {max(reuses) * 1e3:.0f} ms "
        f"(worst); {strays} stray frames; relay memory {grown:+.1f} MiB"
    )
    assert max(delays) < 1
    assert not strays
    assert grown < 8, "memory is not flat"


# All slots taken


async def soak_full(_count: int = 0) -> None:
    async with relay_process() as relay:
        ready = 0
        all_ready, done = trio.Event(), trio.Event()

        async def client(number: int) -> None:
            nonlocal ready
            async with trio_console.connect_guest(relay.path) as guest:
                ready += 1
                if ready == 128:
                    all_ready.set()
                await all_ready.wait()
                result = await guest.run_process(["echo", str(number)], capture_stdout=True)
                assert result.stdout == b"%d\n" % number
                await done.wait()

        start = time.perf_counter()
        async with trio.open_nursery() as nursery:
            for number in range(128):
                nursery.start_soon(client, number)
            await all_ready.wait()
            refused = ""
            try:
                async with trio_console.connect_guest(relay.path):
                    pass
            except trio_console.GuestLostError as exc:
                refused = exc.reason
            done.set()
        assert "slots" in refused, refused
        took = time.perf_counter() - start
        print(f"  128 clients at once ran a command each, in {took:.1f} s; relay {relay.rss_mib():.0f} MiB")
        print(f"  the 129th was told: {refused}")


# Mutated frames


def mutated(rng: random.Random, frames: list[bytes]) -> bytes:
    """A few frames with faults in them; mostly not in their length, because that would end the connection soon."""
    raw = bytearray(b"".join(rng.choices(frames, k=rng.randint(1, 5))))
    for _ in range(rng.randint(1, 4)):
        at = rng.randrange(len(raw))
        if at > 3 or rng.random() < 0.02:
            raw[at] = rng.randrange(256) if rng.random() < 0.5 else raw[at] ^ (1 << rng.randrange(8))
    return bytes(raw)


def client_frames(start: int) -> list[bytes]:
    messages: list[wire.Message] = [
        wire.ExecRequest(cmd="true"),
        wire.ExecRequest(cmd="cat", window=1000),
        wire.ExecStdin(b"x" * 500),
        wire.ExecStdin(b""),
        wire.ExecSignal(15),
        wire.ExecResize(3, 4),
        wire.FsRequest(wire.OpStat(path="/", follow_symlink=True)),
        wire.FsRequest(wire.OpRead(handle=1, offset=0)),
        wire.FsData(b"y" * 50),
        wire.TcpConnect(host="127.0.0.1", port=1),
        wire.TcpData(b"z"),
        wire.TcpClose(),
        wire.Credit("stdout", 100),
        wire.Cancel(),
        wire.Ping(),
    ]
    return [wire.encode(message, start + offset) for message in messages for offset in range(3)]


async def fuzz_client(path: str, seed: int, stop: trio.Event) -> int:
    rng, sent = random.Random(seed), 0
    while not stop.is_set():
        async with raw_client(path) as client, trio.open_nursery() as nursery:

            async def read(client: RawClient = client, scope: trio.CancelScope = nursery.cancel_scope) -> None:
                try:
                    while await client.receive() is not None:
                        pass
                except trio.BrokenResourceError:
                    pass
                scope.cancel()

            nursery.start_soon(read)
            frames = client_frames(client.start)
            try:
                for _ in range(rng.randint(1, 200)):
                    if stop.is_set():
                        break
                    await client.stream.send_all(mutated(rng, frames))
                    sent += 1
            except trio.BrokenResourceError:
                pass
            nursery.cancel_scope.cancel()
    return sent


async def fuzz_clients(seconds: int) -> None:
    async with relay_process(quiet=True) as relay:
        await echo_times(relay.path, 20)
        rss: list[float] = []
        sent = worked = 0
        stop = trio.Event()

        async def fuzz(seed: int) -> None:
            nonlocal sent
            sent += await fuzz_client(relay.path, seed, stop)

        async with trio.open_nursery() as nursery:
            for seed in range(3):
                nursery.start_soon(fuzz, seed)
            deadline = time.perf_counter() + seconds
            async with trio_console.connect_guest(relay.path) as guest:
                while time.perf_counter() < deadline:
                    text = os.urandom(20).hex()
                    with trio.fail_after(20):
                        result = await guest.run_process(["cat"], stdin=text.encode(), capture_stdout=True)
                    assert result.stdout.decode() == text
                    worked += 1
                    if time.perf_counter() > deadline - seconds / 2:
                        rss.append(relay.rss_mib())
            stop.set()
        print(
            f"  clients: {sent} mutated writes in {seconds} s, {worked} commands of another client unharmed, "
            f"relay memory {rss[0]:.1f} to {rss[-1]:.1f} MiB in the second half"
        )
        assert rss[-1] < rss[0] + 8, "memory grows"


def guest_frames() -> list[bytes]:
    messages: list[wire.Message] = [
        wire.ExecStarted(5),
        wire.ExecStdout(b"x" * 300),
        wire.ExecStderr(b"y" * 30),
        wire.ExecExited(0),
        wire.FsResponse(ok=True),
        wire.FsData(b"z" * 3000),
        wire.TcpConnected(),
        wire.TcpEof(),
        wire.TcpClosed(),
        wire.Credit("stdin", 10),
        wire.Error("invalid_payload", "no"),
        wire.Pong(),
    ]
    return [wire.encode(message, id_) for message in messages for id_ in (1, 2, 3, 33554432, 0)]


async def hostile_guest(sock: socket.socket, rng: random.Random, frames: list[bytes]) -> int:
    """Boot in order, and then send mutated frames; returns their number."""
    stream = trio.SocketStream(trio.socket.from_stdlib_socket(sock))
    said = 0
    async with stream, trio.open_nursery() as nursery:

        async def listen() -> None:
            while await stream.receive_some(65536):
                pass

        try:
            ready = wire.Ready(boot_time_ns=1, init_time_ns=1, ready_time_ns=1, flow=wire.Flow(1000))
            await stream.send_all(wire.encode(wire.InitResolved(wire.DefaultUser(0, 0))) + wire.encode(ready))
            nursery.start_soon(listen)
            for _ in range(rng.randint(1, 300)):
                await stream.send_all(mutated(rng, frames))
                said += 1
                await trio.lowlevel.checkpoint()
        except trio.BrokenResourceError:
            pass
        nursery.cancel_scope.cancel()
    return said


async def fuzz_guest(seconds: int) -> None:
    rng, frames = random.Random(1), guest_frames()
    said = guests = 0
    endings: set[str] = set()
    with tempfile.TemporaryDirectory() as place:
        path = os.path.join(place, "s")

        async def one_guest() -> None:
            nonlocal said
            ours, theirs = socket.socketpair()

            async def talk() -> None:
                nonlocal said
                said += await hostile_guest(theirs, rng, frames)

            async def use() -> None:
                try:
                    async with trio_console.connect_guest(path) as guest:
                        await guest.run_process(["true"], capture_stdout=True, check=False)
                except (OSError, trio_console.GuestLostError, trio_console.ProtocolError, RuntimeError):
                    pass

            async with trio.open_nursery() as nursery:
                nursery.start_soon(talk)
                try:
                    async with trio.open_nursery() as serving:
                        await serving.start(trio_console.serve_relay, ours, path)
                        nursery.start_soon(use)
                except* trio_console.GuestLostError as group:
                    endings.update(str(exc)[:40] for exc in group.exceptions)
                nursery.cancel_scope.cancel()

        deadline = time.perf_counter() + seconds
        rss = 0.0
        while time.perf_counter() < deadline:
            with trio.fail_after(20):
                await one_guest()
            guests += 1
            if not rss and time.perf_counter() > deadline - seconds / 2:
                rss = own_rss_mib()
    print(
        f"  guests: {guests} of them said {said} mutated things in {seconds} s; own memory {rss:.1f} to "
        f"{own_rss_mib():.1f} MiB in the second half"
    )
    print(f"  endings: {sorted(endings)}")
    assert own_rss_mib() < rss + 8, "memory grows"


def own_rss_mib() -> float:
    with open("/proc/self/status") as file:
        status = dict(line.split(":", 1) for line in file)
    return int(status["VmRSS"].split()[0]) / 1024


async def soak_fuzz(seconds: int = 30) -> None:
    await fuzz_clients(seconds)
    await fuzz_guest(seconds)


# Control beside bulk


FILE_READER = """
import sys
import trio, trio_console

async def main():
    left = int(sys.argv[3])
    async with trio_console.connect_guest(sys.argv[1]) as guest, await guest.open_file(sys.argv[2], "rb") as file:
        while data := await file.read(1024 * 1024):
            left -= len(data)
    assert not left

trio.run(main)
"""


async def soak_bulk(mib: int = 1024) -> None:
    async with relay_process() as relay, trio_console.connect_guest(relay.path) as guest:

        async def pings(until: trio.Event | None) -> list[float]:
            times: list[float] = []
            while len(times) < 500 if until is None else not until.is_set():
                times.append(await guest.ping())
                await trio.sleep(0.002)
            return times

        async def beside(what: str, command: list[str]) -> None:
            idle = percentile(await pings(None), 95)
            done = trio.Event()
            start = time.perf_counter()

            async def bulk() -> None:
                await trio.run_process(command, stdout=subprocess.DEVNULL)
                done.set()

            async with trio.open_nursery() as nursery:
                nursery.start_soon(bulk)
                times = await pings(done)
            took = time.perf_counter() - start
            busy = percentile(times, 95)
            print(
                f"  ping p95: idle {idle:.2f} ms; beside {mib} MiB of {what} ({mib / took:.0f} MiB/s) "
                f"{busy:.2f} ms, which is {busy / idle:.1f} times as long; {len(times)} pings"
            )
            assert busy <= 5 * idle

        await pings(None)
        size = mib * MIB
        output = ["sh", "-c", f"head -c {size} /dev/zero"]
        await beside("stdout", [*COMMANDS, "exec", "--relay", relay.path, "--", *output])
        with tempfile.NamedTemporaryFile() as file:
            os.truncate(file.name, size)
            await beside("a file", [sys.executable, "-c", FILE_READER, relay.path, file.name, str(size)])
        print(f"  relay memory {relay.rss_mib():.0f} MiB")


SOAKS: dict[str, Callable[..., Awaitable[None]]] = {
    "stall": soak_stall,
    "kill": soak_kill,
    "full": soak_full,
    "fuzz": soak_fuzz,
    "bulk": soak_bulk,
}


def main() -> None:
    for argument in sys.argv[1:] or SOAKS:
        name, _, count = argument.partition("=")
        print(f"{name}:", flush=True)
        start = time.perf_counter()
        soak = SOAKS[name]
        trio.run(partial(soak, int(count)) if count else soak)
        print(f"  ({time.perf_counter() - start:.0f} s)", flush=True)


if __name__ == "__main__":
    main()

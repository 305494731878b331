"""The relay with the real agent: several programs use one guest."""

from __future__ import annotations

import gc
import hashlib
import os
import random
import signal
import socket
import subprocess
import sys
from typing import TYPE_CHECKING, Any

import pytest
import trio

import trio_console
from tests.relay.router._world import RawClient
from tests.tools.leftovers import runs
from tests.tools.limits import HANG
from tests.tools.peer import connect_to_listener
from trio_console import GuestLostError, ProcessGuest, RelayOptions, connect_guest, open_guest, serve_relay
from trio_console import _wire as wire

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable
    from pathlib import Path

    from trio_console import Guest, Relay


async def gone(*pids: int) -> None:
    """Wait until none of these processes runs."""
    with trio.fail_after(HANG):
        while any(runs(pid) for pid in pids):
            await trio.sleep(0.002)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "relay.sock"


async def use(path: Path, work: Callable[[Guest], Awaitable[Any]]) -> None:
    async with connect_guest(path) as guest:
        await work(guest)


async def test_the_opener_and_another_client_share_the_guest(path: Path) -> None:
    with trio.fail_after(HANG):
        async with open_guest(relay_path=path) as guest, connect_guest(path) as other:
            for one in (guest, other):
                result = await one.run_process(["echo", "hi"], capture_stdout=True)
                assert result.stdout == b"hi\n"
                assert await one.ping() > 0
            assert guest.ready == other.ready
        assert not path.exists()


async def test_another_process_can_use_it(path: Path) -> None:
    code = (
        "import sys, trio, trio_console\n"
        "async def main():\n"
        "    async with trio_console.connect_guest(sys.argv[1]) as guest:\n"
        "        done = await guest.run_process(['cat'], stdin=b'from afar', capture_stdout=True)\n"
        "        print(done.stdout.decode())\n"
        "trio.run(main)\n"
    )
    with trio.fail_after(HANG):
        async with open_guest(relay_path=path):
            done = await trio.run_process([sys.executable, "-c", code, str(path)], capture_stdout=True)
    assert done.stdout == b"from afar\n"


async def test_clients_at_once_do_not_mix(path: Path) -> None:
    async def work(guest: Guest) -> None:
        for _ in range(5):
            data = os.urandom(50_000)
            result = await guest.run_process(["cat"], stdin=data, capture_stdout=True)
            assert result.stdout == data

    with trio.fail_after(HANG):
        async with open_guest(relay_path=path) as guest, trio.open_nursery() as nursery:
            nursery.start_soon(work, guest)
            for _ in range(6):
                nursery.start_soon(use, path, work)


async def test_megabytes_go_both_ways_intact(path: Path) -> None:
    data = random.Random(5).randbytes(6_000_000)
    with trio.fail_after(HANG):
        async with open_guest(relay_path=path), connect_guest(path) as guest:
            result = await guest.run_process(["cat"], stdin=data, capture_stdout=True)
    assert hashlib.sha256(result.stdout).digest() == hashlib.sha256(data).digest()


async def test_a_paused_reader_gets_everything_later_and_holds_up_nobody(path: Path) -> None:
    size = 3_000_000
    with trio.fail_after(HANG):
        async with open_guest(relay_path=path), connect_guest(path) as slow, connect_guest(path) as other:
            command = f"head -c {size} /dev/zero"
            async with slow.open_process(command, shell=True, stdout=subprocess.PIPE) as process:
                for _ in range(20):
                    result = await other.run_process(["echo", "go"], capture_stdout=True)
                    assert result.stdout == b"go\n"
                assert process.stdout is not None
                got = 0
                async for chunk in process.stdout:
                    got += len(chunk)
                assert got == size


async def test_a_raw_client_that_stops_reading_its_socket_gets_everything_later(path: Path) -> None:
    size = 5_000_000
    with trio.fail_after(HANG):
        async with open_guest(relay_path=path) as guest:
            client = RawClient(await trio.open_unix_socket(path))
            await client.greet()
            id_ = client.ids[0]
            await client.send(wire.ExecRequest(cmd="head", args=["-c", str(size), "/dev/zero"]), id_)
            for _ in range(20):
                await guest.run_process(["true"])
            await client.expect(wire.ExecStarted)
            got = 0
            while True:
                one = await client.receive()
                assert one is not None
                if isinstance(one[1], wire.ExecExited):
                    break
                assert isinstance(one[1], wire.ExecStdout)
                got += len(one[1].data)
            assert got == size
            await client.leave()


async def test_files_pass_through(path: Path, tmp_path: Path) -> None:
    data = random.Random(1).randbytes(2_000_000)
    with trio.fail_after(HANG):
        async with open_guest(relay_path=path), connect_guest(path) as guest:
            await guest.path(str(tmp_path / "file")).write_bytes(data)
            assert (tmp_path / "file").read_bytes() == data
            assert await guest.path(str(tmp_path / "file")).read_bytes() == data


async def test_connections_pass_through(path: Path) -> None:
    async def echo(stream: trio.SocketStream) -> None:
        async for chunk in stream:
            await stream.send_all(chunk)

    data = random.Random(2).randbytes(1_000_000)
    with trio.fail_after(HANG):
        async with open_guest(relay_path=path), connect_guest(path) as guest, trio.open_nursery() as nursery:
            [listener] = await trio.open_tcp_listeners(0, host="127.0.0.1")
            nursery.start_soon(trio.serve_listeners, echo, [listener])
            port = listener.socket.getsockname()[1]
            async with await guest.open_tcp_stream("127.0.0.1", port) as stream, trio.open_nursery() as sending:

                async def send() -> None:
                    await stream.send_all(data)
                    await stream.send_eof()

                sending.start_soon(send)
                got = b"".join([bytes(chunk) async for chunk in stream])
            assert got == data
            nursery.cancel_scope.cancel()


async def test_leaving_kills_what_the_client_still_runs(path: Path) -> None:
    with trio.fail_after(HANG):
        async with open_guest(relay_path=path) as guest:
            client = RawClient(await trio.open_unix_socket(path))
            await client.greet()
            for offset in range(5):
                await client.send(wire.ExecRequest(cmd="sleep", args=["999"]), client.ids[offset])
            pids = [(await client.expect(wire.ExecStarted))[1].pid for _ in range(5)]
            await client.leave()
            await gone(*pids)
            assert (await guest.run_process(["true"])).returncode == 0


async def test_what_a_client_stops_is_stopped_for_nobody_else(path: Path) -> None:
    with trio.fail_after(HANG):
        async with open_guest(relay_path=path) as guest, guest.open_process(["sleep", "999"]) as process:
            async with connect_guest(path):
                pass
            await guest.ping()
            assert process.poll() is None


@pytest.mark.parametrize("seed", range(3))
async def test_a_cancelled_client_leaves_nothing_behind(path: Path, seed: int) -> None:
    rng = random.Random(seed)

    async def work(guest: Guest) -> None:
        await guest.run_process(["cat"], stdin=bytes(200_000), capture_stdout=True)

    with trio.fail_after(HANG):
        async with open_guest(relay_path=path) as guest:
            for _ in range(15):
                with trio.move_on_after(rng.random() * 0.05):
                    await use(path, work)
            result = await guest.run_process(["echo", "fine"], capture_stdout=True)
            assert result.stdout == b"fine\n"


async def test_slots_are_used_again_by_many_clients_in_a_row(path: Path) -> None:
    with trio.fail_after(HANG):
        async with open_guest(relay_path=path):
            for number in range(200):  # more than there are slots
                async with connect_guest(path) as guest:
                    if number % 40 == 0:
                        await guest.run_process(["true"])
                    else:
                        await guest.ping()


# Its life


async def test_serve_relay_tells_where_it_is_and_counts(path: Path) -> None:
    with trio.fail_after(HANG):
        async with trio.open_nursery() as nursery:
            relay: Relay = await nursery.start(serve_relay, ProcessGuest(), path)
            assert relay.path == str(path)
            assert repr(relay) == f"<trio_console.Relay at {str(path)!r}>"
            async with connect_guest(path) as guest:
                await guest.run_process(["true"])
                now = relay.statistics()
                assert (now.clients, now.clients_served, now.clients_refused) == (1, 1, 0)
                assert now.frames_from_agent >= 2
                assert relay.console_statistics() is not None
            nursery.cancel_scope.cancel()
    assert not path.exists()


async def test_a_client_can_shut_the_guest_down_for_everybody(path: Path) -> None:
    with trio.fail_after(HANG):
        async with trio.open_nursery() as nursery:
            await nursery.start(serve_relay, ProcessGuest(), path)
            async with connect_guest(path) as other, connect_guest(path) as guest:
                await guest.shutdown()
                with pytest.raises(GuestLostError):
                    await other.ping()
    # (serve_relay has returned, as the nursery is left.)
    assert not path.exists()


async def test_a_guest_that_does_not_obey_a_shutdown_is_ended_by_force(path: Path) -> None:
    with trio.fail_after(HANG):
        async with trio.open_nursery() as nursery:
            ours, theirs = socket.socketpair()
            agent = trio.SocketStream(trio.socket.from_stdlib_socket(theirs))

            async def disobey() -> None:
                ready = wire.Ready(boot_time_ns=1, init_time_ns=1, ready_time_ns=1)
                await agent.send_all(wire.encode(ready))
                async for _ in agent:
                    pass

            nursery.start_soon(disobey)
            start = trio.current_time()
            async with trio.open_nursery() as serving:
                await serving.start(serve_relay, ours, path)
                client = RawClient(await trio.open_unix_socket(path))
                await client.greet()
                await client.send(wire.Shutdown())
                await client.expect_farewell("the guest was shut down")
                await client.leave()
            assert 1.5 < trio.current_time() - start < 10
            await agent.aclose()


async def test_a_guest_that_dies_is_an_error_with_its_reason(path: Path) -> None:
    with trio.fail_after(HANG):
        with pytest.raises(ExceptionGroup) as caught:
            async with trio.open_nursery() as nursery:
                await nursery.start(serve_relay, ProcessGuest(), path)
                async with connect_guest(path) as guest, connect_guest(path) as idle:
                    agent = int((await guest.run_process("echo $PPID", shell=True, capture_stdout=True)).stdout)
                    os.kill(agent, signal.SIGKILL)
                    with pytest.raises(GuestLostError) as told:
                        while True:
                            await guest.ping()
                    reasons = {told.value.reason, (await idle.wait_lost()).reason}
        [error] = caught.value.exceptions
        assert isinstance(error, GuestLostError)
        assert "SIGKILL" in error.reason
        assert reasons == {error.reason}  # its clients know as much
    assert not path.exists()


async def test_who_comes_before_the_guest_is_ready_waits(path: Path) -> None:
    with trio.fail_after(HANG):
        async with trio.open_nursery() as nursery:
            ours, theirs = socket.socketpair()
            agent = trio.SocketStream(trio.socket.from_stdlib_socket(theirs))
            with pytest.raises(ExceptionGroup) as caught:
                async with trio.open_nursery() as serving:
                    serving.start_soon(serve_relay, ours, path)
                    client = RawClient(await connect_to_listener(path))
                    nursery.start_soon(client.greet)
                    await agent.send_all(wire.encode(wire.Ready(boot_time_ns=1, init_time_ns=1, ready_time_ns=1)))
                    while not hasattr(client, "greeting"):
                        await trio.sleep(0.002)
                    await agent.aclose()
            assert caught.group_contains(GuestLostError)
            await client.expect_farewell("console")
            await client.leave()


@pytest.mark.parametrize("delay", [0.0, 0.02, 0.1, 0.3, 0.5])
async def test_cancelling_at_any_time_leaves_no_socket_file(path: Path, delay: float) -> None:
    with trio.fail_after(HANG):
        with trio.move_on_after(delay):
            await serve_relay(ProcessGuest(), path)
        assert not path.exists()


async def test_two_relays_at_one_place_are_one_too_many(path: Path) -> None:
    with trio.fail_after(HANG):
        async with open_guest(relay_path=path):
            with pytest.raises(OSError, match="listening there already"):
                await serve_relay(ProcessGuest(), path)
            async with connect_guest(path) as guest:
                await guest.ping()


async def test_arguments_that_make_no_sense_start_nothing(path: Path) -> None:
    options = RelayOptions(session_log=path.parent / "log")
    with pytest.raises(ValueError):
        await serve_relay(ProcessGuest(), path, options=options, bootstrap={"no": 1})
    with pytest.raises(ValueError, match="relay_path"):
        async with open_guest(relay_options=options):
            pass
    assert not list(path.parent.iterdir())
    gc.collect()


# Errors of connecting


async def test_no_relay_is_an_error_with_its_name(path: Path) -> None:
    with pytest.raises(FileNotFoundError) as caught:
        async with connect_guest(path):
            pass
    assert caught.value.filename == str(path)


async def test_a_dead_relays_socket_is_an_error_with_its_name(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(path))
    with pytest.raises(ConnectionRefusedError) as caught:
        async with connect_guest(path):
            pass
    assert caught.value.filename == str(path)


@pytest.mark.parametrize(
    ("said", "error"),
    [
        (b"", GuestLostError),
        (b"\0\0", trio_console.ProtocolError),
        (b"\0\0\0\1\1\xff\xff\xff", GuestLostError),
        (b"\0\0\0\1\1\xff\xff\xff\0\0", trio_console.ProtocolError),
        (b"\0\0\0\0\1\xff\xff\xff", trio_console.ProtocolError),
        (b"\0\0\0\5\0\0\0\5", trio_console.ProtocolError),
        (b"HTTP/1.1 400 Bad Request\r\n\r\n", trio_console.ProtocolError),
        (b"\0\0\0\1\1\xff\xff\xff" + wire.encode(wire.Pong(), 1), trio_console.ProtocolError),
        (b"\0\0\0\1\1\xff\xff\xff\0\0\0\x08\0\0\0\0\0abc", trio_console.ProtocolError),
    ],
)
async def test_a_greeting_that_is_none_is_an_error(path: Path, said: bytes, error: type[Exception]) -> None:
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(path))
        server.listen()

        def answer() -> None:
            with server.accept()[0] as connection:
                connection.sendall(said)

        with trio.fail_after(HANG):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(trio.to_thread.run_sync, answer)
                with pytest.raises(error):
                    async with connect_guest(path):
                        pass


@pytest.mark.parametrize("split", [1, 3, 7])
async def test_a_greeting_in_pieces_is_understood(split: int) -> None:
    from trio_console._session.attach import attach

    ready = wire.encode(wire.Ready(boot_time_ns=1, init_time_ns=2, ready_time_ns=3))
    raw = bytes.fromhex("0000000101ffffff") + ready + wire.encode(wire.Pong(), 1)
    sender, receiver = trio.testing.memory_stream_one_way_pair()

    async def send() -> None:
        for at in range(0, len(raw), split):
            await sender.send_all(raw[at : at + split])
            await trio.lowlevel.checkpoint()

    with trio.fail_after(HANG):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(send)
            attached = await attach(receiver)
    assert attached.ids == range(1, 33554431)
    assert attached.ready.ready_time_ns == 3
    assert attached.generation == 7


# Nonsense for a moment. (`benchmarks/soak_relay.py` sends it for minutes.)


@pytest.mark.parametrize("seed", range(2))
async def test_mutated_frames_of_a_client_harm_nobody(path: Path, seed: int) -> None:
    rng = random.Random(seed)
    with trio.fail_after(HANG):
        async with open_guest(relay_path=path) as guest:
            for _ in range(25):
                client = RawClient(await trio.open_unix_socket(path))
                await client.greet()
                raw = b"".join(
                    wire.encode(message, client.ids[rng.randrange(3)])
                    for message in (
                        wire.ExecRequest(cmd="true"),
                        wire.ExecStdin(b"x" * 50),
                        wire.TcpClose(),
                        wire.FsData(b"y"),
                        wire.ExecSignal(9),
                        wire.Cancel(),
                        wire.Ping(),
                    )
                )
                broken = bytearray(raw)
                for _ in range(rng.randrange(4)):
                    broken[rng.randrange(len(broken))] = rng.randrange(256)
                await client.send_raw(bytes(broken))
                with trio.move_on_after(0.005):
                    while await client.receive() is not None:
                        pass
                await client.leave()
            text = rng.randbytes(2000)
            result = await guest.run_process(["cat"], stdin=text, capture_stdout=True)
            assert result.stdout == text


@pytest.mark.parametrize("seed", range(4))
async def test_mutated_frames_of_a_guest_end_in_order(path: Path, seed: int) -> None:
    rng = random.Random(seed)
    frames = [
        wire.encode(message, id_)
        for message in (wire.ExecStdout(b"x" * 90), wire.ExecExited(0), wire.Credit("stdin", 1), wire.Pong())
        for id_ in (0, 1, 2, 33554432, 2**32 - 1)
    ]
    with trio.fail_after(HANG):
        ours, theirs = socket.socketpair()
        agent = trio.SocketStream(trio.socket.from_stdlib_socket(theirs))
        flow = wire.Flow(1000) if seed % 2 else wire.UNSET
        ready = wire.Ready(boot_time_ns=1, init_time_ns=1, ready_time_ns=1, flow=flow)
        await agent.send_all(wire.encode(ready))
        with pytest.raises(ExceptionGroup) as caught:
            async with trio.open_nursery() as nursery:
                await nursery.start(serve_relay, ours, path)
                client = RawClient(await trio.open_unix_socket(path))
                await client.greet()
                await client.send(wire.ExecRequest(cmd="x"), 1)
                for _ in range(200):
                    raw = bytearray(rng.choice(frames))
                    raw[rng.randrange(4, len(raw))] = rng.randrange(256)
                    await agent.send_all(raw)
                await agent.send_all(b"\xff" * 4)
        assert caught.group_contains(GuestLostError, match="out of step")
        await client.leave()
        await agent.aclose()

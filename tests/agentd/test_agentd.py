"""The agents of the makers, of two generations, in machines: commands, files, connections, input nobody reads."""

from __future__ import annotations

import errno
import json
import signal
import subprocess
import sys
import tempfile
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import trio

import trio_console
from tests.relay.test_interop import CLIENT
from tests.relay.test_interop import EXPECTED as CLIENTS_TABLE
from tests.tools.agentd import VERSIONS, machine
from trio_console import SocketGuest

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable

    from trio_console import Guest

#: Seconds for a machine to boot and for all that a test does in it. On a quiet host it is done in some seconds; an
#: emulated one on a busy host takes several times as long.
PATIENCE = 90

#: The generation that counts what comes over its console.
COUNTING = "0.7.11"


@asynccontextmanager
async def booted(version: str, **options: Any) -> AsyncIterator[Guest]:
    with tempfile.TemporaryDirectory(prefix="ad") as directory, trio.fail_after(PATIENCE):
        async with machine(version, Path(directory)) as console:
            async with trio_console.open_guest(SocketGuest(console), **options) as guest:
                yield guest


# A table of what is asked of it, and what the answer is


async def _output(guest: Guest, *command: str, **options: Any) -> bytes:
    return (await guest.run_process(command, capture_stdout=True, **options)).stdout


async def says_who_it_is(guest: Guest) -> object:
    return guest.ready.agent_version


async def output(guest: Guest) -> object:
    return await _output(guest, "echo", "hello")


async def input_and_output(guest: Guest) -> object:
    data = bytes(range(256)) * 4000
    return await _output(guest, "cat", stdin=data) == data


async def status(guest: Guest) -> object:
    done = await guest.run_process("echo no >&2; exit 3", shell=True, capture_stderr=True, check=False)
    return done.returncode, done.stderr


async def killed(guest: Guest) -> object:
    return (await guest.run_process("kill -9 $$", shell=True, check=False)).returncode


async def not_found(guest: Guest) -> object:
    with pytest.raises(FileNotFoundError) as caught:
        await guest.run_process(["no-such-command"])
    return caught.value.errno


async def environment(guest: Guest) -> object:
    return await _output(guest, "sh", "-c", "echo $A; pwd", env={"A": "b"}, cwd="/tmp")


async def terminal(guest: Guest) -> object:
    return await _output(guest, "stty", "size", tty=True, rows=33, cols=44)


async def cancelled(guest: Guest) -> object:
    with trio.move_on_after(0.5) as scope:
        await guest.run_process(["sleep", "1000"])
    return scope.cancelled_caught


async def signalled(guest: Guest) -> object:
    async with guest.open_process(["sleep", "1000"]) as process:
        process.send_signal(signal.SIGTERM)
        return await process.wait()


async def many_at_once(guest: Guest) -> object:
    said: set[bytes] = set()

    async def one(number: int) -> None:
        said.add(await _output(guest, "cat", stdin=b"%d" % number))

    async with trio.open_nursery() as nursery:
        for number in range(10):
            nursery.start_soon(one, number)
    return said == {b"%d" % number for number in range(10)}


async def file(guest: Guest) -> object:
    path, data = guest.path("/tmp/file"), bytes(range(256)) * 2000
    await path.write_bytes(data)
    return await path.read_bytes() == data, (await path.stat()).st_size


async def missing_file(guest: Guest) -> object:
    with pytest.raises(FileNotFoundError) as caught:
        await guest.path("/tmp/no").read_bytes()
    return caught.value.errno


async def folder(guest: Guest) -> object:
    path = guest.path("/tmp/folder")
    await path.mkdir()
    await (path / "a").touch()
    names = [one.name for one in await path.iterdir()]
    await (path / "a").unlink()
    await path.rmdir()
    return names, await path.exists()


async def connection(guest: Guest) -> object:
    async with guest.open_process(["nc", "-l", "-p", "7000", "-e", "cat"]):
        while True:
            try:
                stream = await guest.open_tcp_stream("127.0.0.1", 7000)
            except ConnectionRefusedError:
                continue  # it does not listen yet
            async with stream:
                await stream.send_all(b"there and back")
                got = b""
                while len(got) < 14:
                    got += await stream.receive_some()
                return got


async def no_connection(guest: Guest) -> object:
    with pytest.raises(ConnectionRefusedError):
        await guest.open_tcp_stream("127.0.0.1", 7001)
    return True


async def many_questions(guest: Guest) -> object:
    """More of them than an agent that counts admits at a time."""
    for _ in range(300):
        await guest.ping()
    return True


TABLE: dict[Callable[[Guest], Awaitable[object]], object] = {
    output: b"hello\n",
    input_and_output: True,
    status: (3, b"no\n"),
    killed: -1,  # upstream does not say by which signal
    not_found: errno.ENOENT,
    environment: b"b\n/tmp\n",
    terminal: b"33 44\r\n",
    cancelled: True,
    signalled: -1,
    many_at_once: True,
    file: (True, 512_000),
    missing_file: errno.ENOENT,
    folder: (["a"], False),
    connection: b"there and back",
    no_connection: True,
    many_questions: True,
}


async def answers(guest: Guest) -> dict[str, object]:
    """All of the table, each of whose rows is tried, also behind one that fails."""
    got: dict[str, object] = {}
    for question in TABLE:
        try:
            got[question.__name__] = await question(guest)
        except Exception as exc:
            got[question.__name__] = repr(exc)
    return got


EXPECTED = {question.__name__: answer for question, answer in TABLE.items()}


@pytest.mark.parametrize("version", VERSIONS)
async def test_each_question_of_the_table_is_answered(version: str) -> None:
    async with booted(version) as guest:
        assert guest.ready.agent_version == version
        assert await answers(guest) == EXPECTED


# Input that is not read


async def flood(guest: Guest) -> None:
    """Send 100 MB to a command that never reads."""
    async with guest.open_process(["sleep", "1000"], stdin=subprocess.PIPE) as process:
        assert process.stdin is not None
        await process.stdin.send_all(bytes(100_000_000))


async def stalled(guest: Guest, name: str) -> int:
    """Wait until the input of a command has to wait; returns how much of it was sent."""
    while True:
        for session in guest.statistics().sessions:
            if session.name == name and session.streams[0].stalls:
                return session.streams[0].moved
        await guest.ping()


async def test_input_that_is_not_read_pauses_its_writer_and_harms_nobody() -> None:
    async with booted(COUNTING) as guest, trio.open_nursery() as nursery:
        nursery.start_soon(flood, guest)
        assert 0 < await stalled(guest, "sleep") < 32 * 2**20
        for number in range(10):
            data = b"%d" % number * 200_000
            assert await _output(guest, "cat", stdin=data) == data
        nursery.cancel_scope.cancel()


@pytest.mark.parametrize("version", VERSIONS)
async def test_input_that_is_read_late_comes_whole(version: str) -> None:
    async with booted(version) as guest:
        assert await _output(guest, "sh", "-c", "sleep 2; wc -c", stdin=bytes(24_000_000)) == b"24000000\n"


# Through a relay


async def test_each_question_is_answered_through_a_relay(tmp_path: Path) -> None:
    relay = tmp_path / "relay"
    async with booted(COUNTING, relay_path=relay), trio_console.connect_guest(relay) as guest:
        assert await answers(guest) == EXPECTED


async def runs(guest: Guest, program: str) -> bool:
    """Whether a command runs in the guest."""
    command = f"grep -qx {program} /proc/[0-9]*/comm 2>/dev/null"
    return (await guest.run_process(["sh", "-c", command], check=False)).returncode == 0


async def test_a_client_whose_command_does_not_read_harms_no_other_and_not_the_guest(tmp_path: Path) -> None:
    relay = tmp_path / "relay"
    command = [sys.executable, "-P", "-m", "trio_console", "exec", "--relay", str(relay), "--", "sleep", "1000"]
    async with booted(COUNTING, relay_path=relay), trio_console.connect_guest(relay) as other:
        async with trio.open_nursery() as nursery:
            stuck = partial(trio.run_process, command, stdin=bytes(100_000_000), deliver_cancel=_kill)
            nursery.start_soon(stuck)
            while not await runs(other, "sleep"):
                pass
            for number in range(20):
                data = b"%d" % number * 200_000
                assert await _output(other, "cat", stdin=data) == data
                await other.ping()
            nursery.cancel_scope.cancel()
        while await runs(other, "sleep"):
            pass  # its client has gone
        assert await _output(other, "cat", stdin=b"as before") == b"as before"


async def _kill(process: trio.Process) -> None:
    process.kill()


async def test_the_makers_client_is_served_by_our_relay_before_their_agent(tmp_path: Path) -> None:
    relay = tmp_path / "relay"
    got: dict[str, Any] = {}
    async with booted(COUNTING, relay_path=relay):
        for scenario in THEIRS:
            command = [sys.executable, "-c", CLIENT, str(relay), scenario, "/tmp/file"]
            done = await trio.run_process(command, capture_stdout=True, check=False)
            got[scenario] = json.loads(done.stdout or b"null")
    assert got == THEIRS


#: The relay's answers are those before our agent, but for what that adds.
THEIRS = CLIENTS_TABLE | {
    "ready": [7, "core.ready", ["agent_version", "boot_time_ns", "init_time_ns", "ready_time_ns"]],
    "exec_killed": CLIENTS_TABLE["exec_killed"] | {"last": {"code": -1}},
}

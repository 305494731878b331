"""Every way to start a guest or to attach to one, with the real agent."""

from __future__ import annotations

import hashlib
import os
import signal
import socket
import subprocess
import sys
import tempfile
from contextlib import asynccontextmanager
from functools import partial
from typing import TYPE_CHECKING, Any

import pytest
import trio

from tests.tools.installing import install
from tests.tools.leftovers import runs, state_of
from tests.tools.limits import HANG
from tests.tools.pids import agent_of, numbers_here
from trio_console import BubblewrapGuest, CommandGuest, GuestLostError, ProcessGuest, SocketGuest, open_guest
from trio_console.agent import serve_agent

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable
    from contextlib import AbstractAsyncContextManager

    from trio_console import Guest, GuestProcess

    OpenGuest = Callable[..., AbstractAsyncContextManager[Guest]]

PIPE = subprocess.PIPE
DEVNULL = subprocess.DEVNULL
STDOUT = subprocess.STDOUT

AGENT = [sys.executable, "-m", "trio_console.agent"]


@asynccontextmanager
async def _over_a_socket(**options: Any) -> AsyncIterator[Guest]:
    """A guest behind a Unix socket, as behind the console of a virtual machine."""
    with tempfile.TemporaryDirectory() as directory, trio.socket.socket(socket.AF_UNIX) as listener:
        path = os.path.join(directory, "console")
        await listener.bind(path)
        listener.listen()
        left = trio.Event()

        async def serve(task_status: Any) -> None:
            task_status.started()
            console, _ = await listener.accept()
            with console:
                fd = console.fileno()
                agent = await trio.lowlevel.open_process([*AGENT, "--fd", str(fd)], pass_fds=[fd], stdin=DEVNULL)
            # It ends when its console does, unless it was stopped.
            with trio.CancelScope(shield=True):
                await left.wait()
                agent.send_signal(signal.SIGCONT)
                await agent.wait()

        async with trio.open_nursery() as nursery:
            await nursery.start(serve)
            try:
                async with open_guest(SocketGuest(path), **options) as guest:
                    yield guest
            finally:
                left.set()


@asynccontextmanager
async def _over_stdio(**options: Any) -> AsyncIterator[Guest]:
    async with open_guest(CommandGuest([*AGENT, "--stdio"]), **options) as guest:
        yield guest


GUESTS: dict[str, OpenGuest] = {
    "process": partial(open_guest, ProcessGuest(workers="threads")),
    "process-tasks": partial(open_guest, ProcessGuest(workers="tasks")),
    "command": _over_stdio,
    "socket": _over_a_socket,
    "bubblewrap": partial(open_guest, BubblewrapGuest()),
}


@pytest.fixture(params=list(GUESTS))
def any_guest(request: pytest.FixtureRequest) -> OpenGuest:
    """Each way in turn."""
    if request.param == "bubblewrap":
        install("bwrap", "bubblewrap")
    return GUESTS[request.param]


@pytest.fixture
async def deadline() -> AsyncIterator[None]:
    """Fails a test that takes too long: a fixture that crashes has the test cancelled."""
    async with trio.open_nursery() as nursery:
        nursery.start_soon(_too_late)
        yield
        nursery.cancel_scope.cancel()


async def _too_late() -> None:
    await trio.sleep(HANG)
    raise trio.TooSlowError(f"the test took longer than {HANG} seconds")


pytestmark = pytest.mark.usefixtures("no_process_is_left")


async def receive_line(stream: trio.abc.ReceiveStream) -> bytes:
    line = b""
    while not line.endswith(b"\n"):
        byte = await stream.receive_some(1)
        assert byte, f"the stream ended after {line!r}"
        line += byte
    return line


async def until(condition: Callable[[], bool]) -> None:
    """Wait for a change in the kernel that can only be polled; the test's deadline is the bound."""
    while not condition():
        await trio.sleep(0.001)


def describe(exc: BaseException) -> tuple[Any, ...]:
    """The parts of an exception that must be equal for trio's own call and for a guest's."""
    if isinstance(exc, OSError):
        return type(exc), exc.errno, exc.filename
    if isinstance(exc, subprocess.CalledProcessError):
        return subprocess.CalledProcessError, exc.returncode, exc.cmd, exc.output, exc.stderr
    return (type(exc),)


# The same suite for each


TWINS: list[tuple[Any, dict[str, Any]]] = [
    (["echo", "hello"], {}),
    (["sh", "-c", "echo out; echo err >&2; exit 3"], {"check": False}),
    (["sh", "-c", "echo out; echo err >&2; exit 3"], {}),
    (["sh", "-c", "kill -TERM $$"], {"check": False}),
    (["sh", "-c", "kill -KILL $$"], {}),
    (["cat"], {"stdin": b"fed\0\xff"}),
    (["cat"], {}),
    (["cat"], {"stdin": DEVNULL}),
    ("echo $0 $((1 + 1)); exit 4", {"shell": True, "check": False}),
    (["pwd"], {"cwd": "/"}),
    (["sh", "-c", "echo $MINE"], {"env": {**os.environ, "MINE": "mine"}}),
    (["printf", "%s|", "", "a b", "\N{SNOWMAN}", "$HOME"], {}),
    (["sh", "-c", "exec <&-; exit 0"], {"stdin": b"x" * 1_000_000}),
    (["no-such-command"], {}),
    (["/no/such/command"], {}),
    (["/etc/passwd"], {}),
    (["/etc/passwd/command"], {}),
    (["true"], {"cwd": "/no/such/directory"}),
    (["sh", "-c", "echo lost"], {"capture_stdout": False, "stdout": DEVNULL}),
    (["sh", "-c", "echo merged >&2"], {"capture_stderr": False, "stderr": STDOUT}),
]


async def outcome(run: Any, command: Any, options: dict[str, Any]) -> tuple[Any, ...]:
    options = {"capture_stdout": True, "capture_stderr": True, **options}
    try:
        done = await run(command, **options)
    except (OSError, subprocess.CalledProcessError) as exc:
        return describe(exc)
    assert isinstance(done, subprocess.CompletedProcess)
    return done.args, done.returncode, done.stdout, done.stderr


async def test_run_process_does_what_trios_does(any_guest: OpenGuest, deadline: None) -> None:
    async with any_guest() as guest:
        for command, options in TWINS:
            expected = await outcome(trio.run_process, command, options)
            assert await outcome(guest.run_process, command, options) == expected, command


async def test_output_arrives_while_the_process_runs(any_guest: OpenGuest, deadline: None) -> None:
    async with (
        any_guest() as guest,
        guest.open_process(
            ["sh", "-c", "echo one; read x; echo $x >&2; read y"], stdin=PIPE, stdout=PIPE, stderr=PIPE
        ) as process,
    ):
        assert await receive_line(process.stdout) == b"one\n"
        await process.stdin.send_all(b"two\n")
        assert await receive_line(process.stderr) == b"two\n"
        assert process.poll() is None
        await process.stdin.aclose()
        assert await process.wait() == 1
        assert await process.stdout.receive_some() == b""


async def test_8_mib_go_through_cat_unharmed(any_guest: OpenGuest, deadline: None) -> None:
    data = os.urandom(1024 * 1024) * 8
    async with any_guest() as guest:
        done = await guest.run_process(["cat"], stdin=data, capture_stdout=True)
    assert hashlib.sha256(done.stdout).digest() == hashlib.sha256(data).digest()


async def test_a_terminal_has_a_size_that_can_be_changed(any_guest: OpenGuest, deadline: None) -> None:
    script = "stty -echo; stty size; read x; stty size; read y; echo end"
    async with (
        any_guest() as guest,
        guest.open_process(
            ["sh", "-c", script], stdin=PIPE, stdout=PIPE, stderr=PIPE, tty=True, rows=11, cols=22
        ) as process,
    ):
        assert await receive_line(process.stdout) == b"11 22\r\n"
        process.resize(33, 44)
        await process.stdin.send_all(b"\n")
        assert await receive_line(process.stdout) == b"33 44\r\n"
        await process.stdin.aclose()  # types the end of file
        assert await receive_line(process.stdout) == b"end\r\n"
        assert await process.wait() == 0


async def test_uncaptured_output_is_this_programs(
    any_guest: OpenGuest, deadline: None, capfd: pytest.CaptureFixture[str]
) -> None:
    async with any_guest() as guest:
        await guest.run_process(["sh", "-c", "echo out; echo err >&2"])
        async with guest.open_process(["sh", "-c", "echo more; echo worse >&2"]) as process:
            await process.wait()
    assert capfd.readouterr() == ("out\nmore\n", "err\nworse\n")


async def test_several_processes_run_at_once(any_guest: OpenGuest, deadline: None) -> None:
    async with any_guest() as guest, trio.open_nursery() as nursery:
        first: list[GuestProcess] = [
            await nursery.start(
                lambda task_status: guest.run_process(
                    ["cat"], stdin=PIPE, stdout=PIPE, capture_stderr=True, task_status=task_status
                )
            )
            for _ in range(8)
        ]
        for number, process in enumerate(reversed(first)):
            await process.stdin.send_all(b"%d\n" % number)
        for number, process in enumerate(reversed(first)):
            assert await receive_line(process.stdout) == b"%d\n" % number
            await process.stdin.aclose()
        for process in first:
            assert await process.wait() == 0


async def test_leaving_the_block_ends_the_whole_process_group(any_guest: OpenGuest, deadline: None) -> None:
    async with any_guest() as guest:
        script = "sleep 1000 & echo $!; wait"
        async with guest.open_process(["sh", "-c", script], stdout=PIPE, stderr=PIPE) as process:
            there = process.pid, int(await receive_line(process.stdout))
            child, grandchild = await numbers_here(guest, *there)
        assert process.returncode == -9
        assert not runs(child)
        # (A child whose parent is gone is reaped by another process, which may take time.)
        await until(lambda: not runs(grandchild))


async def test_an_agent_killed_in_the_middle_of_output_is_a_lost_guest_after_the_output(
    any_guest: OpenGuest, deadline: None
) -> None:
    # (yes and cat end by themselves when the other ends of their pipes are closed.)
    async with any_guest() as guest:
        pid = await agent_of(guest)
        async with guest.open_process(["yes", "abc"], stdout=PIPE, stderr=PIPE) as process:
            [child] = await numbers_here(guest, process.pid)
            got = await process.stdout.receive_some()
            os.kill(pid, signal.SIGKILL)
            with pytest.raises(GuestLostError) as caught:
                while True:
                    got += await process.stdout.receive_some()
            assert got == (b"abc\n" * (len(got) // 4 + 1))[: len(got)]
            with pytest.raises(GuestLostError) as waited:
                await process.wait()
            assert waited.value.reason == caught.value.reason
        await until(lambda: not runs(child))
        for call in (guest.ping, lambda: guest.run_process(["true"])):
            with pytest.raises(GuestLostError):
                await call()


async def test_after_a_shutdown_calls_say_so(any_guest: OpenGuest, deadline: None) -> None:
    async with any_guest() as guest:
        assert 0 <= await guest.ping() < HANG
        assert await guest.touch() < await guest.touch()
        assert guest.ready.generation == 7
        assert guest.statistics().active_sessions == 0
        async with guest.open_process(["cat"], stdin=PIPE, stdout=PIPE, stderr=PIPE) as process:
            await guest.shutdown()
            with pytest.raises(GuestLostError, match="was shut down"):
                await process.wait()
        with pytest.raises(GuestLostError, match="was shut down"):
            await guest.run_process(["true"])


async def test_a_stopped_agent_costs_no_more_than_the_grace_and_leaves_nothing(
    any_guest: OpenGuest, deadline: None
) -> None:
    began = 0.0
    async with any_guest(grace=1.0) as guest:
        pid = await agent_of(guest)
        os.kill(pid, signal.SIGSTOP)
        await until(lambda: state_of(pid) == "T")
        began = trio.current_time()
    assert trio.current_time() - began < 10


async def test_a_cancelled_body_ends_its_process_without_delay(any_guest: OpenGuest, deadline: None) -> None:
    async with trio.open_nursery() as nursery, any_guest() as guest:
        await nursery.start(
            lambda task_status: guest.run_process(
                ["sleep", "1000"], check=False, task_status=task_status, capture_stdout=True
            )
        )
        nursery.cancel_scope.cancel()
        await trio.sleep_forever()
    assert nursery.cancel_scope.cancelled_caught


# One of them is enough for these


async def test_a_cancelled_run_process_whose_process_never_stops_talking_ends_at_sigterm(deadline: None) -> None:
    async with open_guest() as guest, trio.open_nursery() as nursery:
        process: list[GuestProcess] = []

        async def run(task_status: Any) -> None:
            await guest.run_process(
                ["sh", "-c", "echo started; exec yes"], stdin=None, capture_stderr=True, stdout=PIPE,
                task_status=task_status,
            )  # fmt: skip

        process.append(await nursery.start(run))
        await receive_line(process[0].stdout)
        await until(lambda: process[0]._session.output.bytes_received >= 256 * 1024)
        nursery.cancel_scope.cancel()
    # SIGPIPE would be -13, and SIGKILL -9.
    assert process[0].returncode == -15


async def test_a_body_cancelled_from_outside_ends_its_processes_in_order(deadline: None) -> None:
    # If all tasks are cancelled at once, the connection must stay, because processes are ended over it.
    with trio.CancelScope() as scope:
        async with open_guest() as guest, trio.open_nursery() as nursery:

            async def start() -> GuestProcess:
                process: GuestProcess = await nursery.start(
                    lambda task_status: guest.run_process(
                        ["sleep", "1000"], capture_stdout=True, capture_stderr=True, task_status=task_status
                    )
                )
                return process

            processes = [await start(), await start()]
            scope.cancel()
    assert [process.returncode for process in processes] == [-15, -15]


class MyError(Exception):
    pass


@pytest.mark.parametrize("cancelled", [False, True])
async def test_what_a_body_raises_comes_out_as_it_is(deadline: None, cancelled: bool) -> None:
    error = MyError("mine")
    with pytest.raises(MyError) as caught, trio.CancelScope() as scope:
        async with open_guest() as guest:
            await guest.ping()
            if cancelled:
                scope.cancel()
            raise error
    assert caught.value is error
    assert not isinstance(error.__context__, BaseExceptionGroup)


async def test_a_group_that_a_body_raises_comes_out_as_it_is(deadline: None) -> None:
    error = ExceptionGroup("mine", [MyError(), MyError()])
    with pytest.RaisesGroup(MyError, MyError) as caught:
        async with open_guest():
            raise error
    assert caught.value is error


async def test_a_daemon_of_a_killed_agent_is_found_and_killed(deadline: None) -> None:
    async with open_guest() as guest:
        pid = await agent_of(guest)
        done = await guest.run_process(
            ["sh", "-c", "setsid sh -c 'echo $$; exec sleep 1000 >/dev/null 2>&1' &"], capture_stdout=True
        )
        daemon = int(done.stdout)
        assert runs(daemon)
        os.kill(pid, signal.SIGKILL)
        with pytest.raises(GuestLostError, match="killed by SIGKILL"):
            await guest.ping()
    assert not runs(daemon)


async def test_a_guests_environment_and_directory_can_be_chosen(deadline: None, tmp_path: Any) -> None:
    env = {**os.environ, "MINE": "mine"}
    async with open_guest(ProcessGuest(env=env, cwd=tmp_path)) as guest:
        done = await guest.run_process(["sh", "-c", "echo $MINE; pwd"], capture_stdout=True)
    assert done.stdout.decode().split() == ["mine", str(tmp_path.resolve())]


async def test_what_a_bootstrap_says_holds_for_every_command(deadline: None) -> None:
    bootstrap = {"default_cwd": "/usr", "default_env": [{"key": "MINE", "value": "mine"}]}
    async with open_guest(bootstrap=bootstrap) as guest:
        done = await guest.run_process(["sh", "-c", "echo $MINE; pwd"], capture_stdout=True)
    assert done.stdout.decode().split() == ["mine", "/usr"]


async def test_a_guest_shows_whether_it_runs(deadline: None) -> None:
    async with open_guest() as guest:
        assert "running" in repr(guest)
        console = guest.statistics().console
        assert console is not None
        assert not console.closed
    assert "lost: the guest was shut down" in repr(guest)


async def test_40_guests_can_be_used_at_once(deadline: None, tmp_path: Any) -> None:
    # The guests have more than twice as many threads as trio's default limiter has tokens.
    path = str(tmp_path / "console")
    with trio.socket.socket(socket.AF_UNIX) as listener:
        await listener.bind(path)
        listener.listen(64)
        pings = 0
        all_open = trio.Event()

        async def serve(nursery: trio.Nursery) -> None:
            while True:
                console, _ = await listener.accept()
                nursery.start_soon(serve_agent, trio.SocketStream(console))

        async def use() -> None:
            nonlocal pings
            async with open_guest(SocketGuest(path)) as guest:
                await guest.ping()
                pings += 1
                if pings == 40:
                    all_open.set()
                await all_open.wait()

        async with trio.open_nursery() as agents:
            agents.start_soon(serve, agents)
            async with trio.open_nursery() as nursery:
                for _ in range(40):
                    nursery.start_soon(use)
            agents.cancel_scope.cancel()
    assert pings == 40


# What is not theirs to keep


async def test_cleaning_up_needs_none_of_the_programs_threads(deadline: None) -> None:
    limiter = trio.to_thread.current_default_thread_limiter()
    async with open_guest() as guest:
        await guest.ping()
        before = limiter.total_tokens
        holders = [object() for _ in range(int(before))]
        for holder in holders:
            limiter.acquire_on_behalf_of_nowait(holder)
    for holder in holders:
        limiter.release_on_behalf_of(holder)


INTERRUPTED = """
import os, signal, sys
import trio, trio_console

async def main():
    async with trio_console.open_guest(grace=2.0) as guest:
        result = await guest.run_process("echo $PPID", shell=True, capture_stdout=True)
        os.kill(int(result.stdout), signal.SIGSTOP)
        print("leaving", flush=True)

trio.run(main)
"""


async def test_ctrl_c_while_leaving_a_stopped_guest_ends_the_program() -> None:
    async def run(task_status: Any) -> None:
        command = [sys.executable, "-c", INTERRUPTED]
        await trio.run_process(
            command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, check=False, task_status=task_status
        )

    with trio.fail_after(HANG):
        async with trio.open_nursery() as nursery:
            program = await nursery.start(run)
            assert (await program.stdout.receive_some()).startswith(b"leaving")
            program.send_signal(signal.SIGINT)
            assert await program.wait() != 0

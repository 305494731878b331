"""``python -m trio_console.agent`` as a process of its own."""

from __future__ import annotations

import os
import signal
import socket
import sys
import termios
from contextlib import asynccontextmanager, suppress
from functools import partial
from subprocess import PIPE
from typing import TYPE_CHECKING

import pytest
import trio

from tests.agent._host import Host, pid_is_taken, popen
from tests.tools.leftovers import becomes, runs
from tests.tools.limits import HANG
from trio_console import _wire as wire

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

AGENT = [sys.executable, "-m", "trio_console.agent"]


@asynccontextmanager
async def agent_on_stdio() -> AsyncIterator[tuple[Host, trio.Process]]:
    """A booted agent on two pipes. If it has not ended at the end of the block, it is killed."""
    async with trio.open_nursery() as nursery:
        start = partial(trio.run_process, stdin=PIPE, stdout=PIPE, stderr=PIPE, check=False)
        process = await nursery.start(start, [*AGENT, "--stdio"])
        host = Host(trio.StapledStream(process.stdin, process.stdout))
        try:
            await host.boot()
            yield host, process
        finally:
            with trio.move_on_after(HANG, shield=True):
                await host.stream.aclose()
                await process.stderr.aclose()
            nursery.cancel_scope.cancel()


async def exit_status(process: trio.Process) -> int:
    with trio.fail_after(HANG):
        return await process.wait()


async def test_it_serves_on_stdio_and_exits_0_at_the_end() -> None:
    async with agent_on_stdio() as (host, process):
        outcome = await host.run("cat", stdin=b"hello")
        assert outcome.stdout == b"hello"
        await host.stream.send_stream.aclose()  # type: ignore[attr-defined]
        assert await exit_status(process) == 0


async def test_it_serves_on_a_descriptor() -> None:
    ours, theirs = socket.socketpair()
    with theirs:
        process = popen(*AGENT, "--fd", str(theirs.fileno()), pass_fds=[theirs.fileno()])
    try:
        host = Host(trio.SocketStream(trio.socket.from_stdlib_socket(ours)))
        await host.boot()
        assert (await host.run("echo", "hi")).stdout == b"hi\n"
        await host.send(wire.Shutdown())
        assert await host.gone() == []
        await host.stream.aclose()
    finally:
        status = process.wait(HANG)
    assert status == 0


@pytest.mark.parametrize("closed", ["<&- >&- 2>&-", ">&-", "2>&-"])
async def test_it_serves_where_standard_descriptors_are_closed(closed: str) -> None:
    ours, theirs = socket.socketpair()
    with theirs:
        command = f'exec "$@" --fd {theirs.fileno()} {closed}'
        process = popen("sh", "-c", command, "sh", *AGENT, pass_fds=[theirs.fileno()])
    host = Host(trio.SocketStream(trio.socket.from_stdlib_socket(ours)))
    try:
        await host.boot()
        open_files = (await host.sh("for n in 0 1 2; do readlink /proc/$PPID/fd/$n; done")).stdout.split()
        assert open_files.count(b"/dev/null") >= closed.count("&-")
        outcome = await host.sh("cat; echo err >&2; exit 3", stdin=b"in")
        assert (outcome.stdout, outcome.stderr, outcome.last) == (b"in", b"err\n", wire.ExecExited(3))
    finally:
        await host.stream.aclose()
        assert process.wait(HANG) == 0


async def test_it_serves_on_stdio_where_its_error_output_is_closed() -> None:
    with popen("sh", "-c", 'exec "$@" --stdio 2>&-', "sh", *AGENT, stdin=PIPE, stdout=PIPE) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        sending = trio.lowlevel.FdStream(os.dup(process.stdin.fileno()))
        receiving = trio.lowlevel.FdStream(os.dup(process.stdout.fileno()))
        host = Host(trio.StapledStream(sending, receiving))
        process.stdin.close()
        await host.boot()
        assert (await host.run("cat", stdin=b"in")).stdout == b"in"
        await host.stream.aclose()
        assert process.wait(HANG) == 0


@pytest.mark.parametrize("closed", ["<&-", ">&-"])
def test_it_says_that_the_console_on_stdio_is_closed(closed: str) -> None:
    with popen("sh", "-c", f'exec "$@" --stdio {closed}', "sh", *AGENT, stderr=PIPE) as process:
        _, error = process.communicate(timeout=HANG)
    assert process.returncode == 1
    assert b"cannot open the console" in error
    assert b"Traceback" not in error


#: With some builds of libffi, the import of ctypes, and so of trio, leaves a file open.
GREEDY = """
import os, runpy, sys
class Greedy:
    taken = None
    def find_spec(self, name, path, target=None):
        if name == "trio" and self.taken is None:
            self.taken = os.open("/proc/self/exe", os.O_RDONLY)
sys.meta_path.insert(0, Greedy())
sys.argv[1:] = ["--stdio"]
runpy.run_module("trio_console.agent", run_name="__main__", alter_sys=True)
"""


@pytest.mark.parametrize("closed", ["<&-", ">&-"])
def test_a_file_that_an_import_opens_is_not_the_console(closed: str) -> None:
    with popen("sh", "-c", f'exec "$@" {closed}', "sh", sys.executable, "-c", GREEDY, stderr=PIPE) as process:
        _, error = process.communicate(timeout=HANG)
    assert process.returncode == 1
    assert b"cannot open the console" in error


@asynccontextmanager
async def agent_on_terminal(*arguments: str) -> AsyncIterator[Host]:
    """An agent on a terminal."""
    master, slave = os.openpty()
    names = [argument.format(os.ttyname(slave)) for argument in arguments]
    stdio = {"stdin": slave, "stdout": slave, "stderr": PIPE} if "--stdio" in arguments else {"pass_fds": [slave]}
    process = popen(*AGENT, *(name.replace("FD", str(slave)) for name in names), **stdio)
    host = Host(trio.lowlevel.FdStream(master))
    try:
        # The agent sets raw mode. Before that, the terminal would echo the bytes that it gets.
        with trio.fail_after(HANG):
            while _is_cooked(slave):
                await trio.lowlevel.checkpoint()
        yield host
        assert process.wait(HANG) == 0
    finally:
        os.close(slave)
        process.kill()
        process.communicate()
        await host.stream.aclose()


@pytest.mark.parametrize("arguments", [("--port", "{}"), ("--fd", "FD"), ("--stdio",)], ids=" ".join)
async def test_it_serves_on_a_terminal(arguments: tuple[str, ...]) -> None:
    async with agent_on_terminal(*arguments) as host:
        await host.boot()
        assert (await host.run("printf", "a\\nb\\004")).stdout == b"a\nb\x04"
        assert (await host.run("cat", stdin=bytes(range(256)))).stdout == bytes(range(256))
        await host.send(wire.Shutdown())


async def test_the_terminal_on_stdio_gets_its_settings_back() -> None:
    master, slave = os.openpty()
    before = termios.tcgetattr(slave)
    with popen(*AGENT, "--stdio", stdin=slave, stdout=slave, stderr=PIPE) as process:
        host = Host(trio.lowlevel.FdStream(master))
        with trio.fail_after(HANG):
            while _is_cooked(slave):
                await trio.lowlevel.checkpoint()
        await host.boot()
        await host.send(wire.Shutdown())
        assert process.wait(HANG) == 0
    assert termios.tcgetattr(slave) == before
    os.close(slave)
    await host.stream.aclose()


def test_a_terminal_that_has_changed_bytes_is_named() -> None:
    master, slave = os.openpty()
    os.write(master, b"typed by somebody\r")
    with popen(*AGENT, "--stdio", stdin=slave, stdout=slave, stderr=PIPE) as process:
        try:
            _, error = process.communicate(timeout=HANG)
        finally:
            os.close(slave)
            os.close(master)
    assert process.returncode == 1
    assert b"the console is a terminal" in error
    assert b"without a terminal" in error


def _is_cooked(fd: int) -> bool:
    return bool(termios.tcgetattr(fd)[3] & termios.ICANON)


async def test_stray_prints_do_not_reach_the_console() -> None:
    async with agent_on_stdio() as (host, process):
        fds = f"/proc/{process.pid}/fd"
        assert os.readlink(f"{fds}/0") == "/dev/null"
        assert os.readlink(f"{fds}/1") == os.readlink(f"{fds}/2")
        await host.ping()


async def test_children_do_not_inherit_the_console() -> None:
    async with agent_on_stdio() as (host, process):
        pipes = set()
        for fd in os.listdir(f"/proc/{process.pid}/fd"):
            with suppress(FileNotFoundError):  # a thread that gets ready has some open for a moment
                pipes.add(os.readlink(f"/proc/{process.pid}/fd/{fd}"))
        sid = await host.start("sleep", "60")
        listed = (await host.run("ls", "-l", "/proc/self/fd")).stdout.decode()
        assert not [p for p in pipes if p.startswith("pipe:") and p in listed]
        await host.send(wire.ExecSignal(9), sid)


async def test_control_c_is_not_for_the_agent_but_for_its_children() -> None:
    async with agent_on_stdio() as (host, process):
        process.send_signal(signal.SIGINT)
        await host.ping()
        sid = await host.start("sleep", "60")
        await host.send(wire.ExecSignal(signal.SIGINT), sid)
        assert (await host.collect(sid)).last == wire.ExecExited(code=-1, signal=2)


MEANINGLESS = [
    *(
        "HUP",
        "INT",
        "QUIT",
        "USR1",
        "USR2",
        "VTALRM",
        "PROF",
        "IO",
        "PWR",
        "STKFLT",
        "TSTP",
        "WINCH",
        "URG",
        "CONT",
    ),
    *("PIPE", "XFSZ", "CHLD", "RTMIN", "RTMAX"),
]


async def test_signals_that_mean_nothing_do_not_end_the_agent() -> None:
    async with agent_on_stdio() as (host, _):
        for name in MEANINGLESS:
            outcome = await host.run("/bin/bash", "-c", f"kill -{name} $PPID && echo sent {name}")
            assert outcome.stdout == b"sent %s\n" % name.encode()
            await host.ping()
            assert (await host.run("echo", "alive")).stdout == b"alive\n"


async def test_what_the_agent_ignores_is_not_ignored_by_its_children() -> None:
    async with agent_on_stdio() as (host, _):
        outcome = await host.run("grep", "SigIgn", "/proc/self/status")
        ignored = int(outcome.stdout.split()[1], 16)
        # (The C library keeps two signals for itself. A program that `posix_spawn` starts ignores one of them.)
        assert [number for number in signal.valid_signals() if ignored >> (number - 1) & 1] == []
        for number in (signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2, signal.SIGRTMIN):
            last = (await host.run("/bin/bash", "-c", f"kill -{int(number)} $$; exit 3")).last
            assert last == wire.ExecExited(code=-1, signal=number)


async def test_children_have_default_signals_even_if_the_agent_was_started_without() -> None:
    script = "trap '' INT HUP TERM QUIT CHLD USR1; exec " + " ".join([*AGENT, "--stdio"])
    with popen("/bin/sh", "-c", script, stdin=PIPE, stdout=PIPE) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        receive = trio.lowlevel.FdStream(os.dup(process.stdout.fileno()))
        host = Host(trio.StapledStream(trio.lowlevel.FdStream(os.dup(process.stdin.fileno())), receive))
        process.stdin.close()
        async with host.stream:
            await host.boot()
            outcome = await host.run("grep", "-E", "Sig(Ign|Blk)", "/proc/self/status")
        # Signals from 32 on belong to the C library. Some are ignored below make, and no program can change that.
        assert [int(word, 16) & 0x7FFFFFFF for word in outcome.stdout.split()[1::2]] == [0, 0]


async def test_sigterm_is_a_shutdown() -> None:
    async with agent_on_stdio() as (host, process):
        sid = await host.start("/bin/sh", "-c", "echo $$; exec sleep 60")
        pid = int(await host.read_stdout(sid, b"\n"))
        process.send_signal(signal.SIGTERM)
        assert await exit_status(process) == 0
        assert not runs(pid)


async def test_a_daemon_that_left_its_group_ends_with_the_agent() -> None:
    async with agent_on_stdio() as (host, process):
        outcome = await host.sh("setsid sleep 60 >/dev/null 2>&1 & echo $!")
        pid = int(outcome.stdout)
        await becomes(pid, b"sleep")
        await host.stream.send_stream.aclose()  # type: ignore[attr-defined]
        assert await exit_status(process) == 0
        assert not runs(pid)


HANGING = """
import sys, time
from trio_console.agent import _serve, main
from trio_console.agent._process import spawn

def hang(plan):
    print("hangs", file=sys.stderr)
    time.sleep(3600)

_serve._LAST_DEADLINE = 1
spawn._look_at_files = hang
sys.exit(main(["--stdio"]))
"""


async def test_a_start_that_hangs_does_not_keep_the_process_from_ending() -> None:
    frames = [wire.Bootstrap(), wire.InitAck(), wire.ExecRequest("true"), wire.Shutdown()]
    sent = b"".join(wire.encode(frame, isinstance(frame, wire.ExecRequest)) for frame in frames)
    with trio.fail_after(HANG):
        done = await trio.run_process(
            [sys.executable, "-c", HANGING],
            stdin=sent,
            capture_stdout=True,
            capture_stderr=True,
            check=False,
        )
    assert (done.stderr, done.returncode) == (b"hangs\n", 1)


async def test_orphans_are_reaped() -> None:
    async with agent_on_stdio() as (host, process):
        outcome = await host.sh("(sh -c 'exec >/dev/null 2>&1; sleep 0.01' & echo $!) ; exit 0")
        pid = int(outcome.stdout)
        with trio.fail_after(HANG):
            while pid_is_taken(pid):
                await host.run("true")  # more exits, more looks
        assert process.returncode is None


async def test_a_host_that_boots_it_wrongly_is_told_on_stderr() -> None:
    done = await trio.run_process(
        [*AGENT, "--stdio"], stdin=b"\0\0\0\0", capture_stdout=True, capture_stderr=True, check=False
    )
    assert (done.returncode, done.stdout) == (1, b"")
    assert done.stderr.count(b"\n") == 1
    assert b"core.bootstrap" in done.stderr


async def test_a_refusal_has_a_status_of_its_own() -> None:
    bootstrap = wire.encode(wire.Bootstrap(host_alias="host"))
    done = await trio.run_process(
        [*AGENT, "--stdio"], stdin=bootstrap, capture_stdout=True, capture_stderr=True, check=False
    )
    assert (done.returncode, done.stdout) == (3, b"")
    assert done.stderr.count(b"\n") == 1
    assert b"host_alias" in done.stderr


@pytest.mark.parametrize("arguments", [[], ["--stdio", "--fd", "3"], ["--fd", "x"]])
async def test_bad_arguments_exit_2(arguments: list[str]) -> None:
    done = await trio.run_process([*AGENT, *arguments], stdin=b"", capture_stderr=True, check=False)
    assert done.returncode == 2


@pytest.mark.parametrize("arguments", [["--fd", "99"], ["--port", "/no/such"]])
async def test_a_console_that_cannot_be_opened_exits_1(arguments: list[str]) -> None:
    done = await trio.run_process([*AGENT, *arguments], stdin=b"", capture_stderr=True, check=False)
    assert done.returncode == 1
    assert done.stderr.count(b"\n") == 1


async def test_it_needs_only_the_required_dependencies() -> None:
    code = "import sys, trio_console.agent; print(*{name.partition('.')[0] for name in sys.modules})"
    done = await trio.run_process([sys.executable, "-c", code], capture_stdout=True)
    assert not {"pytest", "rich", "hypothesis", "asyncio"} & set(done.stdout.decode().split())
    code = "import sys, trio_console.agent; print('trio_console._session' in sys.modules)"
    done = await trio.run_process([sys.executable, "-c", code], capture_stdout=True)
    assert done.stdout == b"False\n"


FREEZING = """
import gc, sys
from trio_console.agent import main
main(["--stdio"])
sys.exit(42 if gc.get_freeze_count() > 10_000 else 0)
"""


async def test_collections_of_garbage_look_only_at_what_sessions_have_made() -> None:
    with trio.fail_after(HANG):
        done = await trio.run_process([sys.executable, "-c", FREEZING], capture_stderr=True, check=False)
    assert done.returncode == 42


COLLECTING = """
import gc, sys
from trio_console.agent import main
before = gc.get_threshold()
main(["--stdio"])
sys.exit(42 if gc.get_threshold() == (before[0], 3, 150) else 0)
"""


async def test_collections_of_garbage_are_short_or_rare() -> None:
    with trio.fail_after(HANG):
        done = await trio.run_process([sys.executable, "-c", COLLECTING], capture_stderr=True, check=False)
    assert done.returncode == 42

"""A forked child keeps none of our connections open, and breaks none."""

from __future__ import annotations

import os
import resource
import select
import signal
import socket
import subprocess
import sys
from contextlib import ExitStack, contextmanager, suppress
from typing import TYPE_CHECKING, Any

import pytest
import trio

from tests.tools.limits import HANG
from tests.tools.peer import connect_to_listener
from trio_console import CommandGuest, ProcessGuest, open_guest
from trio_console._forked import let_go_in_child

if TYPE_CHECKING:
    from collections.abc import Iterator

    from trio_console._guests.spec import GuestSpec

# These tests fork, and the process that runs them may have other threads. The children end at once.
pytestmark = pytest.mark.filterwarnings("ignore:.*is multi-threaded, use of fork:DeprecationWarning")


PIPE = subprocess.PIPE
HOST = """
import os, signal, sys, trio
from trio_console import connect_guest, open_guest

theirs, own = sys.argv[1:]

async def main():
    async with open_guest(relay_path=own) as guest, connect_guest(theirs) as other:
        await trio.to_thread.run_sync(sys.stdin.readline)  # somebody has connected
        agent = await guest.run_process(["sh", "-c", "echo $PPID"], capture_stdout=True)
        child = os.fork()
        if not child:
            signal.pause()
        await guest.ping()  # nothing was shut down
        await other.ping()
        print(child, int(agent.stdout), flush=True)
        await trio.sleep_forever()

trio.run(main)
"""


@contextmanager
def _killed_at_the_end(pid: int) -> Iterator[int]:
    """A descriptor that becomes readable when the process has ended."""
    pidfd = os.pidfd_open(pid)
    try:
        yield pidfd
    finally:
        with suppress(ProcessLookupError):
            signal.pidfd_send_signal(pidfd, signal.SIGKILL)
        os.close(pidfd)


async def test_end_of_file_comes_when_the_parent_dies_although_a_forked_child_lives(tmp_path: Any) -> None:
    ours, theirs = os.fspath(tmp_path / "ours.sock"), os.fspath(tmp_path / "theirs.sock")
    command = [sys.executable, "-W", "ignore", "-c", HOST, ours, theirs]
    with trio.fail_after(HANG), ExitStack() as stack:
        async with open_guest(relay_path=ours) as guest:
            with subprocess.Popen(command, stdin=PIPE, stdout=PIPE) as host:  # noqa: ASYNC220
                try:
                    assert host.stdin is not None
                    assert host.stdout is not None
                    client = await connect_to_listener(theirs)
                    assert await client.receive_some()  # it is greeted
                    host.stdin.write(b"\n")
                    host.stdin.flush()
                    pids = (await trio.to_thread.run_sync(host.stdout.readline)).split()
                    child, agent = (stack.enter_context(_killed_at_the_end(int(pid))) for pid in pids)
                    await guest.ping()
                finally:
                    host.kill()
            await trio.lowlevel.wait_readable(agent)  # of the dead program: it has ended
            while await client.receive_some():
                pass  # until the end of file of the relay
            await client.aclose()
            with socket.socket(socket.AF_UNIX) as late:
                assert late.connect_ex(theirs) != 0  # nobody listens
            await guest.ping()
        assert select.select([child], [], [], 0)[0] == []  # it lives


COMPLAINING_HOST = """
import os, signal, sys, trio
from trio_console import CommandGuest, open_guest

agent = f"export SHELL_PID=$$; {sys.executable} -m trio_console.agent --stdio; head -c 1000000 /dev/zero >&2"

async def main():
    async with open_guest(CommandGuest(["sh", "-c", agent])) as guest:
        shell = await guest.run_process(["sh", "-c", "echo $SHELL_PID"], capture_stdout=True)
        child = os.fork()
        if not child:
            signal.pause()
        print(child, int(shell.stdout), flush=True)
        await trio.sleep_forever()

trio.run(main)
"""


async def test_a_guest_that_complains_ends_although_a_forked_child_of_its_dead_host_lives() -> None:
    # Its error output is a pipe. If a reader stayed that does not read, the guest would be stuck in a write.
    command = [sys.executable, "-W", "ignore", "-c", COMPLAINING_HOST]
    with trio.fail_after(HANG), ExitStack() as stack:
        with subprocess.Popen(command, stdout=PIPE) as host:  # noqa: ASYNC220
            try:
                assert host.stdout is not None
                pids = (await trio.to_thread.run_sync(host.stdout.readline)).split()
                child, shell = (stack.enter_context(_killed_at_the_end(int(pid))) for pid in pids)
            finally:
                host.kill()
        await trio.lowlevel.wait_readable(shell)
        assert select.select([child], [], [], 0)[0] == []  # it lives


def _in_a_child(function: Any) -> int:
    child = os.fork()
    if not child:
        status = 1
        try:
            status = function()
        finally:
            os._exit(status)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def test_a_child_has_a_null_device_in_the_place_of_each_descriptor_and_the_parent_keeps_them() -> None:
    one, two = map(let_go_in_child, socket.socketpair())
    closed = let_go_in_child(socket.socket())
    closed.close()
    null = os.stat(os.devnull).st_rdev

    def look() -> int:
        return 0 if all(os.fstat(end.fileno()).st_rdev == null for end in (one, two)) else 2

    with one, two:
        assert _in_a_child(look) == 0
        one.sendall(b"x")
        assert two.recv(1) == b"x"


def test_what_was_collected_is_nobodys() -> None:
    end = let_go_in_child(socket.socket())
    number = end.fileno()
    end.close()
    del end
    reading, writing = os.pipe()
    try:
        assert number in (reading, writing)
        assert _in_a_child(lambda: 0 if os.fstat(number).st_mode & 0o170000 == 0o010000 else 2) == 0
    finally:
        os.close(reading)
        os.close(writing)


def _pipes_and_sockets() -> set[str]:
    names = set()
    for number in os.listdir("/proc/self/fd"):
        with suppress(OSError):
            names.add(os.readlink(f"/proc/self/fd/{number}"))
    return {name for name in names if name.startswith(("pipe:", "socket:"))}


@pytest.mark.parametrize(
    "guest", [ProcessGuest(), CommandGuest([sys.executable, "-m", "trio_console.agent", "--stdio"])]
)
async def test_a_child_that_is_forked_while_a_guest_starts_holds_nothing_of_it(
    guest: GuestSpec, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = _pipes_and_sockets()
    real = trio.lowlevel.open_process
    statuses = []

    async def forking(command: Any, **options: Any) -> trio.Process:
        if "-S" in command:  # the warden
            return await real(command, **options)
        assert _pipes_and_sockets() > before
        assert options["stderr"] != PIPE, "a pipe of trio's making is nobody's to let go of"
        statuses.append(_in_a_child(lambda: 0 if _pipes_and_sockets() <= before else 2))
        return await real(command, **options)

    monkeypatch.setattr(trio.lowlevel, "open_process", forking)
    with trio.fail_after(HANG):
        async with open_guest(guest):
            pass
    assert statuses == [0]


@contextmanager
def _descriptors_below(limit: int) -> Iterator[None]:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (limit, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def test_a_child_without_a_free_descriptor_lets_go_as_well() -> None:
    one, two = map(let_go_in_child, socket.socketpair())
    null = os.stat(os.devnull).st_rdev
    free = os.dup(0)
    os.close(free)

    def look() -> int:
        ends = (one.fileno(), two.fileno())
        if not all(os.fstat(fd).st_rdev == null for fd in ends):
            return 2
        return 3 if any(map(os.get_inheritable, ends)) else 0

    with one, two, _descriptors_below(free):
        assert _in_a_child(look) == 0


@pytest.mark.parametrize("why", ["there is none", "the limit was lowered"])
def test_a_child_that_cannot_have_the_null_device_closes_its_copies(
    why: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    one, two = map(let_go_in_child, socket.socketpair())
    ends = (one.fileno(), two.fileno())
    limit = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    if why == "there is none":
        monkeypatch.setattr(os, "devnull", "/nowhere")
    else:
        limit = 3  # which the standard ones take

    def look() -> int:
        for fd in ends:
            with suppress(OSError):
                os.fstat(fd)
                return 2
        return 0

    with one, two, _descriptors_below(limit):
        assert _in_a_child(look) == 0

"""The guests of a program that is killed die with it, whatever they do."""

from __future__ import annotations

import contextlib
import os
import secrets
import signal
import socket
import subprocess
import sys
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import trio

from tests.tools.installing import install
from tests.tools.leftovers import children, runs
from tests.tools.limits import HANG
from tests.tools.pidfds import pidfd_open, pidfd_send_signal
from trio_console import CommandGuest, open_guest
from trio_console._guests import warden
from trio_console._guests.interpreter import place_of_this_package
from trio_console._processes import GUEST_MARK, start_time

if TYPE_CHECKING:
    from collections.abc import Iterator

ROOT = Path(__file__).parents[2]
AGENT = [sys.executable, "-P", "-m", "trio_console.agent", "--stdio"]

#: A program with a guest; prints the processes that are to die with it, and then does what its argument says.
PROGRAM = """
import os, signal, subprocess, sys, time, trio
from trio_console import BubblewrapGuest, CommandGuest, ProcessGuest, open_guest
from trio_console._guests import warden
from tests.tools.leftovers import children

kind, how = sys.argv[1:3]
agent = " ".join([sys.executable, "-P", "-m", "trio_console.agent", "--stdio"])
specs = {
    "process": ProcessGuest(),
    "command": CommandGuest(["sh", "-c", f"sleep 1000 & export CHILD=$! LEADER=$$; {agent}; exec sleep 1000"]),
    "bubblewrap": BubblewrapGuest(),
}

async def main():
    async with open_guest(specs[kind]) as guest:
        async def ask(script):
            done = await guest.run_process(["sh", "-c", script], capture_stdout=True)
            return [int(word) for word in done.stdout.split()]
        if kind == "process":
            pids = await ask("echo $PPID; setsid sh -c 'echo $$; exec sleep 1000 >/dev/null' &")
            os.kill(pids[0], signal.SIGSTOP)  # so that it ends nothing itself
        elif kind == "bubblewrap":
            [pids] = [[inner, outer] for outer in children() for inner in children(outer)]
            for pid in pids:
                os.kill(pid, signal.SIGSTOP)
        else:
            pids = await ask("echo $LEADER $CHILD")
        if how == "copies":  # as a child has that a C library has forked
            control = warden._current.get()._control.fileno()
            held = subprocess.Popen(["sleep", "1000"], pass_fds=[control], start_new_session=True)
            print(held.pid, end=" ")
        print(*pids, flush=True)
        if how == "idle":
            await trio.sleep(15)
            print("awake", flush=True)
        await trio.sleep_forever()

trio.run(main)
"""


@contextlib.contextmanager
def watched(pid: int) -> Iterator[int]:
    """A descriptor that becomes readable when the process has ended; it is killed at the end."""
    pidfd = pidfd_open(pid)
    try:
        yield pidfd
    finally:
        with contextlib.suppress(ProcessLookupError):
            pidfd_send_signal(pidfd, signal.SIGKILL)
        os.close(pidfd)


@pytest.fixture(params=["process", "command", "bubblewrap"])
def kind(request: pytest.FixtureRequest) -> str:
    """Each kind of guest in turn, as `PROGRAM` names it."""
    if request.param == "bubblewrap":
        install("bwrap", "bubblewrap")
    return str(request.param)


@pytest.mark.parametrize("how", ["killed", "copies"])
async def test_the_processes_of_a_guest_die_with_the_program(kind: str, how: str) -> None:
    with trio.fail_after(HANG), ExitStack() as stack:
        command = [sys.executable, "-c", PROGRAM, kind, how]
        with subprocess.Popen(command, stdout=subprocess.PIPE, cwd=ROOT) as program:  # noqa: ASYNC220
            assert program.stdout is not None
            pids = [int(word) for word in (await trio.to_thread.run_sync(program.stdout.readline)).split()]
            if how == "copies":
                stack.enter_context(watched(pids.pop(0)))
            assert len(pids) == 2
            pidfds = [stack.enter_context(watched(pid)) for pid in pids]
            program.kill()
        for pidfd in pidfds:
            await trio.lowlevel.wait_readable(pidfd)


@pytest.mark.nightly  # because it sleeps
async def test_they_live_when_the_thread_that_has_started_them_has_ended(kind: str) -> None:
    with trio.fail_after(2 * HANG), ExitStack() as stack:
        command = [sys.executable, "-c", PROGRAM, kind, "idle"]
        with subprocess.Popen(command, stdout=subprocess.PIPE, cwd=ROOT) as program:  # noqa: ASYNC220
            assert program.stdout is not None
            line = await trio.to_thread.run_sync(program.stdout.readline)
            pids = [int(word) for word in line.split()]
            pidfds = [stack.enter_context(watched(pid)) for pid in pids]
            assert await trio.to_thread.run_sync(program.stdout.readline) == b"awake\n"
            assert all(map(runs, pids))
            program.kill()
        for pidfd in pidfds:
            await trio.lowlevel.wait_readable(pidfd)


# One for all guests of a run


def wardens() -> set[int]:
    """The wardens among the children of this process."""
    found = set()
    for pid in children():
        with contextlib.suppress(OSError), open(f"/proc/{pid}/cmdline", "rb") as file:
            if b"trio_console._warden" in file.read():
                found.add(pid)
    return found


async def test_guests_share_a_warden_that_ends_with_the_last_of_them() -> None:
    with trio.fail_after(HANG):
        async with open_guest(CommandGuest(AGENT)):
            first = wardens()
            assert len(first) == 1
            async with open_guest():
                assert wardens() == first
            assert wardens() == first
        assert wardens() == set()
        async with open_guest():
            assert len(wardens() - first) == 1


async def test_guests_that_are_opened_at_once_share_a_warden() -> None:
    opened = []

    async def use() -> None:
        async with open_guest():
            opened.append(wardens())
            while len(opened) < 3:
                await trio.sleep(0.01)

    with trio.fail_after(HANG):
        async with trio.open_nursery() as nursery:
            for _ in range(3):
                nursery.start_soon(use)
    assert len(set.union(*opened)) == 1
    assert wardens() == set()


# It only helps


async def test_a_guest_is_opened_without_a_warden(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    async def refuse(*_args: object, **_options: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(warden, "start", refuse)
    with trio.fail_after(HANG):
        async with open_guest() as guest:
            await guest.ping()
    assert [record.message for record in caplog.records] == [
        "guests may outlive this program if it is killed: their warden did not start: [Errno 13] Permission denied"
    ]


async def test_a_command_of_a_frozen_application_has_no_warden(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(sys, "frozen", True, raising=False)
    with trio.fail_after(HANG):
        async with open_guest(CommandGuest(AGENT)) as guest:
            await guest.ping()
            assert wardens() == set()
    assert "would start itself again" in caplog.text


async def test_a_warden_that_was_killed_costs_a_warning(caplog: pytest.LogCaptureFixture) -> None:
    with trio.fail_after(HANG):
        async with open_guest() as guest:
            (pid,) = wardens()
            pidfd = pidfd_open(pid)
            os.kill(pid, signal.SIGKILL)
            await trio.lowlevel.wait_readable(pidfd)
            os.close(pidfd)
            async with open_guest() as another:
                await another.ping()
            await guest.ping()
    messages = [record.message for record in caplog.records]
    assert len(messages) == 1
    assert messages[0].startswith("guests may outlive this program if it is killed: their warden is lost: ")


async def test_a_warden_that_does_not_listen_holds_nothing_up() -> None:
    with trio.fail_after(HANG):
        async with open_guest() as guest:
            (pid,) = wardens()
            os.kill(pid, signal.SIGSTOP)
            own: Any = warden._current.get()
            while own._control is not None:
                own.say("- nothing")
            await guest.ping()
    assert wardens() == set()


# The program itself


class Warden:
    """The warden's program, with this test in the place of the program that it serves."""

    def __init__(self, before: str = "pass", parent: int | None = None) -> None:
        self.control, theirs = socket.socketpair()
        begin = f"import os, signal, sys; sys.path.append({place_of_this_package()!r}); {before}"
        code = f"{begin}; from trio_console._warden import main; main()"
        words = [str(os.getpid() if parent is None else parent), str(theirs.fileno())]
        with theirs:
            self.process = subprocess.Popen(
                [sys.executable, "-I", "-S", "-c", code, *words], pass_fds=(theirs.fileno(),)
            )

    def say(self, *lines: str) -> None:
        for line in lines:
            self.control.sendall(f"{line}\n".encode())

    def wait(self) -> int:
        return self.process.wait(HANG)

    def end(self) -> int:
        self.control.close()
        return self.wait()


@contextlib.contextmanager
def sleeper(mark: str) -> Iterator[subprocess.Popen[bytes]]:
    env = {**os.environ, GUEST_MARK: mark}
    with subprocess.Popen(["sleep", "1000"], env=env, start_new_session=True) as process:
        try:
            yield process
        finally:
            process.kill()


@pytest.mark.parametrize("lack", ["pass", "del os.pidfd_open"])
def test_a_process_that_was_told_is_killed(lack: str) -> None:
    mark = secrets.token_hex(8)
    with sleeper(mark) as process:
        served = Warden(lack)
        served.say(f"+ {mark} 0", f"= {mark} {process.pid} {start_time(process.pid)}")
        assert served.end() == 0
        assert process.wait(HANG) == -signal.SIGKILL


def test_a_process_is_killed_by_its_number_alone_where_there_is_no_proc() -> None:
    mark = secrets.token_hex(8)
    with sleeper(mark) as process:
        served = Warden()
        served.say(f"+ {mark} 0", f"= {mark} {process.pid} ")
        assert served.end() == 0
        assert process.wait(HANG) == -signal.SIGKILL


def test_a_process_of_which_was_not_told_is_found_by_its_mark() -> None:
    mark = secrets.token_hex(8)
    with sleeper(mark) as process:
        served = Warden()
        served.say(f"+ {mark} 0")
        assert served.end() == 0
        assert process.wait(HANG) == -signal.SIGKILL


def test_a_process_that_has_got_the_number_of_an_ended_one_lives() -> None:
    mark = secrets.token_hex(8)
    with sleeper(secrets.token_hex(8)) as process:
        served = Warden()
        served.say(f"+ {mark} 0", f"= {mark} {process.pid} 1")
        assert served.end() == 0
        assert runs(process.pid)


@pytest.mark.parametrize("whole", [0, 1])
def test_what_left_a_commands_group_lives_on_and_an_agents_does_not(whole: int) -> None:
    # A command may leave a process on purpose, such as the shared connection of ssh.
    mark = secrets.token_hex(8)
    with sleeper(mark) as leader, sleeper(mark) as other:
        served = Warden()
        served.say(f"+ {mark} {whole}", f"= {mark} {leader.pid} {start_time(leader.pid)}")
        assert served.end() == 0
        assert leader.wait(HANG) == -signal.SIGKILL
        assert runs(other.pid) is not bool(whole)


def test_what_has_ended_is_forgotten() -> None:
    mark = secrets.token_hex(8)
    with sleeper(mark) as process:
        served = Warden()
        served.say(f"+ {mark} 1", f"= {mark} {process.pid} {start_time(process.pid)}", f"- {mark}", f"- {mark}")
        assert served.end() == 0
        assert runs(process.pid)


@pytest.mark.parametrize("number", [signal.SIGHUP, signal.SIGINT, signal.SIGTERM, signal.SIGQUIT, signal.SIGUSR1])
def test_signals_for_everybody_do_not_end_it(number: int) -> None:
    mark = secrets.token_hex(8)
    with sleeper(mark) as process:
        # (When it begins to watch; before that a signal may end it.)
        kill = f"os.kill(os.getpid(), {number})"
        served = Warden(f"import select; poll = select.poll; select.poll = lambda: {kill} or poll()")
        served.say(f"+ {mark} 0", f"= {mark} {process.pid} {start_time(process.pid)}")
        assert served.end() == 0
        assert process.wait(HANG) == -signal.SIGKILL


@pytest.mark.parametrize("lack", ["pass", "del os.pidfd_open"])
def test_it_ends_guests_of_a_program_that_had_died_already_although_the_socket_is_open(lack: str) -> None:
    mark = secrets.token_hex(8)
    with sleeper(mark) as process:
        served = Warden(lack, parent=2**22 + 1)
        with served.control:
            with contextlib.suppress(OSError):  # it may have ended already
                served.say(f"+ {mark} 0", f"= {mark} {process.pid} {start_time(process.pid)}")
            assert served.wait() == 0

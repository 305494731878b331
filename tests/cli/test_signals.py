"""Signals for ``exec`` and ``relay``: passed on, or ending the program, whatever it waits for."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING

import pytest

from tests.cli._programs import PIPE, PROGRAM, execute, executing, relay_at, state_of, stop, wait_full, wait_until
from tests.tools.limits import HANG

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

ENDING = [signal.SIGTERM, signal.SIGINT, signal.SIGHUP]


@contextmanager
def stopped(pid: int) -> Iterator[None]:
    """A process that is stopped for the time of a block."""
    os.kill(pid, signal.SIGSTOP)
    try:
        wait_until(lambda: state_of(pid) == "T", "the process is stopped")
        yield
    finally:
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGCONT)


def pid_of(line: bytes) -> int:
    return int(line.split()[0])


# exec: output that nobody reads


@pytest.mark.parametrize("number", ENDING)
def test_a_signal_ends_a_command_whose_output_nobody_reads(relay: str, number: int) -> None:
    with executing(relay, "yes") as process:
        assert process.stdout is not None
        wait_full(process.stdout.fileno())
        process.send_signal(number)
        assert process.wait(HANG) == -number


def test_a_signal_ends_exec_if_the_command_has_left_output_that_nobody_reads(relay: str) -> None:
    with executing(relay, "head", "-c", "400000", "/dev/zero") as process:
        assert process.stdout is not None
        wait_full(process.stdout.fileno())
        # (The rest of it has come as well, or has no way to come.)
        assert execute(relay, "true").returncode == 0
        process.send_signal(signal.SIGTERM)
        assert process.wait(HANG) == -signal.SIGTERM


def test_output_that_is_not_read_is_dropped_with_a_message(relay: str) -> None:
    with executing(relay, "yes") as process:
        assert process.stdout is not None
        assert process.stderr is not None
        wait_full(process.stdout.fileno())
        process.send_signal(signal.SIGTERM)
        process.wait(HANG)
        assert b"nobody reads it" in process.stderr.read()


def test_a_message_that_nobody_reads_holds_up_nothing(relay: str) -> None:
    with executing(relay, "yes", stderr=subprocess.STDOUT) as process:
        assert process.stdout is not None
        wait_full(process.stdout.fileno())
        process.send_signal(signal.SIGTERM)
        assert process.wait(HANG) == -signal.SIGTERM


def test_what_a_killed_command_has_written_is_read_to_its_end(relay: str) -> None:
    with executing(relay, "sh", "-c", "trap 'echo bye; exit 3' TERM; echo up; read x", says=b"up") as process:
        process.send_signal(signal.SIGTERM)
        out, _ = process.communicate(timeout=HANG)
        assert (out, process.returncode) == (b"bye\n", 3)


# exec: a relay, an agent or a command that is stopped


@pytest.fixture
def own_relay(tmp_path: Path) -> Iterator[subprocess.Popen[bytes]]:
    """A relay for one test, which may stop it; its socket is ``s``."""
    with relay_at(str(tmp_path / "s")) as process:
        yield process


IDLE = "echo $$ $PPID; exec sleep 1000"  # the command's pid, and the agent's


@pytest.mark.parametrize("numbers", [ENDING[:2], ENDING[1:], ENDING])
@pytest.mark.parametrize("who", ["relay", "agent"])
def test_a_second_signal_ends_exec_if_the_first_cannot_be_delivered(
    own_relay: subprocess.Popen[bytes], tmp_path: Path, who: str, numbers: list[signal.Signals]
) -> None:
    with executing(str(tmp_path / "s"), "sh", "-c", IDLE) as process:
        assert process.stdout is not None
        command, agent = map(int, process.stdout.readline().split())
        with stopped(own_relay.pid if who == "relay" else agent):
            for number in numbers:
                process.send_signal(number)
            assert -process.wait(HANG) in numbers
        # The command did not survive its exec.
        wait_until(lambda: state_of(command) in ("", "Z"), "the command is dead")


@pytest.mark.parametrize("number", ENDING)
def test_the_same_signal_three_times_ends_exec(
    own_relay: subprocess.Popen[bytes], tmp_path: Path, number: int
) -> None:
    with executing(str(tmp_path / "s"), "sh", "-c", IDLE) as process:
        assert process.stdout is not None
        process.stdout.readline()
        with stopped(own_relay.pid):
            # Until it is dead: the kernel joins signals that come at the same time.
            wait_until(lambda: process.poll() is not None or process.send_signal(number), "it has ended")
            assert process.returncode == -number


def test_a_signal_is_kept_for_a_stopped_command(relay: str) -> None:
    with executing(relay, "sh", "-c", "echo $$; kill -STOP $$") as process:
        assert process.stdout is not None
        command = pid_of(process.stdout.readline())
        wait_until(lambda: state_of(command) == "T", "the command is stopped")
        process.send_signal(signal.SIGTERM)
        # (What is sent later comes later.)
        assert execute(relay, "kill", "-CONT", str(command)).returncode == 0
        assert process.wait(HANG) == -signal.SIGTERM


def test_a_third_signal_within_two_seconds_ends_exec_of_a_stopped_command(relay: str) -> None:
    with executing(relay, "sh", "-c", "echo $$; kill -STOP $$") as process:
        assert process.stdout is not None
        command = pid_of(process.stdout.readline())
        wait_until(lambda: state_of(command) == "T", "the command is stopped")
        for number in ENDING:
            process.send_signal(number)
        assert -process.wait(HANG) in ENDING
        wait_until(lambda: state_of(command) in ("", "Z"), "the command is dead")


def test_two_signals_for_a_guest_that_answers_are_both_passed_on(relay: str) -> None:
    script = (
        "n=0; trap 'n=$((n+1)); echo $n; [ $n = 2 ] && exit 42' TERM HUP; echo up; while :; do sleep 0.02; done"
    )
    with executing(relay, "sh", "-c", script, says=b"up") as process:
        assert process.stdout is not None
        process.send_signal(signal.SIGTERM)
        assert process.stdout.readline() == b"1\n"
        process.send_signal(signal.SIGHUP)
        assert process.stdout.readline() == b"2\n"
        assert process.wait(HANG) == 42


# exec: before the command, and at the start


@pytest.mark.parametrize("number", ENDING)
def test_a_signal_ends_exec_before_the_command_has_started(tmp_path: Path, number: int) -> None:
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(tmp_path / "s"))
        server.listen(1)
        with executing(str(tmp_path / "s"), "true") as process, server.accept()[0]:  # which says nothing
            assert stop(process, number) == (-number, b"")


@pytest.mark.parametrize("number", [signal.SIGHUP, signal.SIGINT])
def test_a_signal_that_was_ignored_at_the_start_of_exec_stays_ignored(relay: str, number: signal.Signals) -> None:
    script = "trap 'echo heard' HUP INT; echo up; read x; echo done"
    with executing(relay, "sh", "-c", script, says=b"up", ignoring="HUP INT") as process:
        process.send_signal(number)
        out, _ = process.communicate(b"go on\n", timeout=HANG)
        assert (out, process.returncode) == (b"done\n", 0)


# relay


def test_signals_that_were_ignored_at_the_start_of_a_relay_stay_ignored(tmp_path: Path) -> None:
    def ignore() -> None:
        signal.signal(signal.SIGHUP, signal.SIG_IGN)
        signal.signal(signal.SIGINT, signal.SIG_IGN)

    with relay_at(str(tmp_path / "s"), preexec_fn=ignore) as process:
        process.send_signal(signal.SIGHUP)
        process.send_signal(signal.SIGINT)
        # Commands do not inherit that.
        with executing(str(tmp_path / "s"), "sh", "-c", "kill -INT $$; echo alive") as inner:
            assert inner.wait(HANG) == -signal.SIGINT
        assert stop(process, signal.SIGTERM) == (0, b"")
    assert not (tmp_path / "s").exists()


def test_a_relay_whose_stdout_is_full_serves_and_ends(tmp_path: Path) -> None:
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    with suppress(BlockingIOError):
        while True:
            os.write(writer, bytes(65536))
    os.set_blocking(writer, True)
    process = subprocess.Popen([*PROGRAM, "relay", "--listen", str(tmp_path / "s")], stdout=writer, stderr=PIPE)
    os.close(writer)
    try:
        wait_until((tmp_path / "s").exists, "its socket is there")
        wait_until(lambda: execute(str(tmp_path / "s"), "true").returncode == 0, "it serves")
        assert stop(process, signal.SIGTERM) == (0, b"")
        assert not (tmp_path / "s").exists()
    finally:
        process.kill()
        process.communicate()
        os.close(reader)


def test_a_relay_that_cannot_say_that_it_is_ready_ends(tmp_path: Path) -> None:
    with open("/dev/full", "wb") as full:
        done = subprocess.run(
            [*PROGRAM, "relay", "--listen", str(tmp_path / "s")],
            check=False,
            stdout=full,
            stderr=PIPE,
            timeout=HANG,
        )
    assert (done.returncode, done.stderr) == (1, b"trio_console: writing to stdout: No space left on device\n")
    assert not (tmp_path / "s").exists()


def test_a_third_signal_ends_a_relay_that_waits_for_its_guest(tmp_path: Path) -> None:
    with relay_at(str(tmp_path / "s"), "--grace", "1000") as process:
        agent = pid_of(execute(str(tmp_path / "s"), "sh", "-c", "echo $PPID").stdout)
        with stopped(agent):
            for number in ENDING:
                process.send_signal(number)
            assert -process.wait(HANG) in ENDING
            assert not (tmp_path / "s").exists()
        wait_until(lambda: state_of(agent) in ("", "Z"), "the agent is gone")

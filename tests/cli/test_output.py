"""The output of ``exec``: all that had arrived is written, and what cannot be written is said."""

from __future__ import annotations

import signal
import subprocess
from typing import TYPE_CHECKING

import pytest

from tests.cli._fake_relay import accepted, fake_relay
from tests.cli._programs import PIPE, command_line, execute, executing, relay_at, wait_full
from tests.tools.limits import HANG
from trio_console import _wire as wire

if TYPE_CHECKING:
    from pathlib import Path

LINES = b"".join(b"%07d\n" % number for number in range(40_000))  # more than a pipe holds


# A guest that is lost


def test_what_had_arrived_is_written_before_the_guest_is_said_to_be_lost(tmp_path: Path) -> None:
    with fake_relay(tmp_path / "s") as server, executing(str(tmp_path / "s"), "cat") as process:
        assert process.stdout is not None
        with accepted(server) as relay:
            relay.start()
            for start in range(0, len(LINES), 65536):
                relay.send(wire.ExecStdout(LINES[start : start + 65536]))
            relay.send(wire.ExecStderr(b"the last line\n"))
        wait_full(process.stdout.fileno())
        out, err = process.communicate(timeout=HANG)
        assert out == LINES
        assert err.startswith(b"the last line\ntrio_console: ")
        assert (err.count(b"\n"), process.returncode) == (2, 125)


def test_output_that_is_lost_is_no_success(tmp_path: Path) -> None:
    with fake_relay(tmp_path / "s") as server, executing(str(tmp_path / "s"), "cat") as process:
        with accepted(server) as relay:
            relay.start()
            relay.send(wire.ExecLeft(0), wire.ExecStdout(b"the beginning\n"))
        out, err = process.communicate(timeout=HANG)
        assert (out, process.returncode) == (b"the beginning\n", 125)
        assert b"the relay" in err


def test_a_status_that_is_not_known_is_no_success(tmp_path: Path) -> None:
    with fake_relay(tmp_path / "s") as server, executing(str(tmp_path / "s"), "cat") as process:
        with accepted(server) as relay:
            relay.start()
            relay.send(wire.ExecStdout(b"out\n"), wire.Error("exit_unknown", "somebody else has reaped it"))
            out, err = process.communicate(timeout=HANG)
        assert (out, process.returncode) == (b"out\n", 125)
        assert b"Traceback" not in err


def test_a_peer_that_breaks_the_protocol_in_a_command_that_runs_is_125(tmp_path: Path) -> None:
    with fake_relay(tmp_path / "s") as server, executing(str(tmp_path / "s"), "cat") as process:
        with accepted(server) as relay:
            relay.start()
            relay.send(wire.ExecStdout(b"out\n"), wire.Error("invalid_session", "no such command"))
            out, err = process.communicate(timeout=HANG)
        assert (out, process.returncode) == (b"out\n", 125)
        assert b"no such command" in err


def test_input_that_an_agent_has_lost_is_no_success(tmp_path: Path) -> None:
    with fake_relay(tmp_path / "s") as server, executing(str(tmp_path / "s"), "cat") as process:
        assert process.stdin is not None
        with accepted(server, window=None) as relay:
            relay.start()
            relay.send(wire.ExecStdinError(message="No space left on device", errno=28))
            process.stdin.write(b"x" * 10)
            process.stdin.close()
            relay.expect(wire.ExecSignal)  # it kills the command, whose result would be wrong
            relay.send(wire.ExecExited(-1, signal.SIGKILL))
            assert process.wait(HANG) == 125


def test_the_last_line_of_a_command_is_written_when_its_relay_is_shut_down(tmp_path: Path) -> None:
    for number in range(3):
        with relay_at(str(tmp_path / "s")) as relay:
            done = execute(str(tmp_path / "s"), "sh", "-c", f"echo {number}; kill -TERM {relay.pid}; sleep 1000")
            assert (done.stdout, done.returncode) == (b"%d\n" % number, 125)
            assert relay.wait(HANG) == 0


# Output that cannot be written here


@pytest.mark.parametrize("how", ["1", "2"])
def test_an_output_that_is_full_ends_the_command(relay: str, how: str) -> None:
    with open("/dev/full", "wb") as full:
        done = execute(
            relay,
            "sh",
            "-c",
            f"exec yes >&{how}",
            capture_output=False,
            **{"stdout": PIPE, "stderr": PIPE} | {"stdout" if how == "1" else "stderr": full},
        )
    assert done.returncode == 1
    if how == "1":
        assert done.stderr == b"trio_console: writing to stdout: No space left on device\n"
    # It is not left running in the guest either.
    assert execute(relay, "sh", "-c", "pgrep -P $PPID -x yes || echo none").stdout == b"none\n"


def test_a_reader_that_has_gone_ends_it_as_it_ends_other_programs(relay: str) -> None:
    process = subprocess.Popen(command_line(relay, "yes"), stdin=subprocess.DEVNULL, stdout=PIPE, stderr=PIPE)
    assert process.stdout is not None
    assert process.stderr is not None
    assert process.stdout.read(4) == b"y\ny\n"
    process.stdout.close()
    with process.stderr:
        assert (process.stderr.read(), process.wait(HANG)) == (b"", -signal.SIGPIPE)


@pytest.mark.parametrize(("command", "status"), [("no-such-command", 127), ("/", 126)])
def test_a_status_does_not_depend_on_the_message(relay: str, command: str, status: int) -> None:
    with open("/dev/full", "wb") as full:
        assert execute(relay, command, capture_output=False, stderr=full).returncode == status

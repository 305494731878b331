"""``relay`` as a process."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from tests.cli._programs import PROGRAM, execute, relay_at, stop
from tests.tools.limits import HANG


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_a_relay_ends_in_order_at_a_signal(tmp_path: Path, number: int) -> None:
    with relay_at(str(tmp_path / "s")) as process:
        assert (tmp_path / "s").is_socket()
        assert stop(process, number) == (0, b"")
    assert not (tmp_path / "s").exists()


@pytest.mark.skipif(os.geteuid() != 0, reason="only root may raise a rank")
def test_a_relay_and_its_agent_go_first(tmp_path: Path) -> None:
    with relay_at(str(tmp_path / "s")) as process:
        agent = execute(str(tmp_path / "s"), "sh", "-c", "echo $PPID").stdout
        assert [os.getpriority(os.PRIO_PROCESS, pid) for pid in (process.pid, int(agent))] == [-19, -19]
        assert execute(str(tmp_path / "s"), "nice").stdout == b"0\n"
        stop(process, signal.SIGTERM)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root may raise a rank")
def test_the_threads_of_a_relays_agent_go_as_far_as_it(tmp_path: Path) -> None:
    with relay_at(str(tmp_path / "s")) as process:
        agent = execute(str(tmp_path / "s"), "sh", "-c", "echo $PPID").stdout.strip().decode()
        execute(str(tmp_path / "s"), "sh", "-c", "sleep 60 >/dev/null 2>&1 &")
        ranks = {
            task.joinpath("comm").read_text().strip(): os.getpriority(os.PRIO_PROCESS, int(task.name))
            for task in Path(f"/proc/{agent}/task").iterdir()
        }
        assert ranks["thread for comm"] == ranks["thread to look"] == -19
        stop(process, signal.SIGTERM)


FREEZING = """
import gc, sys
from trio_console.__main__ import main
main(sys.argv[1:])
print(gc.get_freeze_count())
"""


def test_collections_of_garbage_look_only_at_what_clients_have_made(tmp_path: Path) -> None:
    command = [sys.executable, "-c", FREEZING, "relay", "--listen", str(tmp_path / "s")]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        process.stdout.readline()
        process.terminate()
        assert int(process.communicate(timeout=HANG)[0]) > 10_000


def test_a_relay_serves_a_console_socket(tmp_path: Path) -> None:
    console = tmp_path / "console.sock"
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(console))
        server.listen(1)
        # As a VM does it: the agent is at the other end of the console.
        process = subprocess.Popen(
            [*PROGRAM, "relay", "--console", str(console), "--listen", str(tmp_path / "s")], stdout=subprocess.PIPE
        )
        with server.accept()[0] as connection:
            agent = subprocess.Popen(
                [sys.executable, "-m", "trio_console.agent", "--fd", str(connection.fileno())],
                pass_fds=[connection.fileno()],
            )
    try:
        assert process.stdout is not None
        assert process.stdout.readline() == f"ready {tmp_path / 's'}\n".encode()
        assert execute(str(tmp_path / "s"), "echo", "hi").stdout == b"hi\n"
        assert stop(process, signal.SIGTERM)[0] == 0
        assert agent.wait(HANG) == 0
    finally:
        process.kill()
        agent.kill()
        process.communicate()
        agent.wait()


def test_a_relay_without_its_console_says_why(tmp_path: Path) -> None:
    done = subprocess.run(
        [*PROGRAM, "relay", "--console", str(tmp_path / "no"), "--listen", str(tmp_path / "s")],
        check=False,
        capture_output=True,
        timeout=HANG,
    )
    assert done.returncode == 1
    assert b"connecting to the guest's console" in done.stderr
    assert b"Traceback" not in done.stderr
    assert not list(tmp_path.iterdir())


def test_a_relay_in_a_place_that_is_taken_says_so(relay: str) -> None:
    done = subprocess.run([*PROGRAM, "relay", "--listen", relay], check=False, capture_output=True, timeout=HANG)
    assert done.returncode == 1
    assert b"listening there already" in done.stderr
    assert execute(relay, "true").returncode == 0


def test_a_relay_whose_guest_dies_says_why(tmp_path: Path) -> None:
    with relay_at(str(tmp_path / "s")) as process:
        lost = execute(str(tmp_path / "s"), "sh", "-c", "kill -KILL $PPID; sleep 9")
        assert lost.returncode == 125
        assert b"SIGKILL" in lost.stderr
        assert b"Traceback" not in lost.stderr
        _, said = process.communicate(timeout=HANG)
        assert process.returncode == 1
        assert b"SIGKILL" in said
        assert b"Traceback" not in said
    assert not (tmp_path / "s").exists()


def test_a_signal_before_the_guest_is_ready_ends_it_in_order(tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(tmp_path / "console"))
        server.listen(1)
        process = subprocess.Popen(
            [*PROGRAM, "relay", "--console", str(tmp_path / "console"), "--listen", str(tmp_path / "s")],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )
        with server.accept()[0]:
            assert stop(process, signal.SIGTERM) == (0, b"")
    assert not (tmp_path / "s").exists()

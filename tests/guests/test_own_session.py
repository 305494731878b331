"""A guest's process has a session of its own: signals for this program's process group are not for it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import trio

from tests.tools.limits import HANG
from trio_console import CommandGuest, ProcessGuest, open_guest

if TYPE_CHECKING:
    from trio_console._guests.spec import GuestSpec

#: Sends its whole process group a signal that it handles itself, and uses its guest after that.
PROGRAM = """
import os, signal, sys, trio
from trio_console import CommandGuest, ProcessGuest, open_guest

kind, number = sys.argv[1], int(sys.argv[2])
command = "trap - QUIT HUP TERM USR1 INT; exec " + sys.executable + " -P -m trio_console.agent --stdio"
specs = {"process": ProcessGuest(), "command": CommandGuest(["sh", "-c", "sleep 0; " + command + "; exit 0"])}

async def main():
    handled = []
    signal.signal(number, lambda *args: handled.append(args))
    async with open_guest(specs[kind]) as guest:
        os.killpg(0, number)
        done = await guest.run_process(["echo", "alive"], capture_stdout=True)
    print(len(handled), done.stdout.decode(), end="")

trio.run(main)
"""


@pytest.mark.parametrize("number", [signal.SIGQUIT, signal.SIGHUP, signal.SIGTERM, signal.SIGUSR1, signal.SIGINT])
@pytest.mark.parametrize("kind", ["process", "command"])
def test_a_signal_for_the_programs_group_is_handled_by_the_program_alone(kind: str, number: int) -> None:
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, kind, str(int(number))],
        capture_output=True,
        start_new_session=True,
        timeout=HANG,
        check=False,
    )
    assert (done.stdout, done.stderr) == (b"1 alive\n", b"")


AGENT = [sys.executable, "-P", "-m", "trio_console.agent", "--stdio"]


@pytest.mark.parametrize("spec", [ProcessGuest(), CommandGuest(AGENT)])
async def test_a_guests_process_leads_a_session_and_group_without_this_programs_terminal(spec: GuestSpec) -> None:
    with trio.fail_after(HANG):
        async with open_guest(spec) as guest:
            shown = await guest.run_process(["sh", "-c", "echo $PPID"], capture_stdout=True)
            pid = int(shown.stdout)
            assert (os.getsid(pid), os.getpgid(pid)) == (pid, pid)
            terminal = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()[4]
            assert terminal == "0"


async def test_what_a_command_has_started_in_its_group_ends_with_it(tmp_path: Path) -> None:
    # A command line may be a shell with children, such as a pipeline: the leader's death alone would leave them.
    command = f"sleep 1000 & echo $! > {tmp_path}/pid; {' '.join(AGENT)}; wait"
    with trio.fail_after(HANG):
        async with open_guest(CommandGuest(["sh", "-c", command])) as guest:
            await guest.ping()
            pidfd = os.pidfd_open(int((tmp_path / "pid").read_text()))
        try:
            await trio.lowlevel.wait_readable(pidfd)
        finally:
            os.close(pidfd)

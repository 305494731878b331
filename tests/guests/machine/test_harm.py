"""What a command does to its machine harms neither the host nor the agent: other commands go on beside it."""

from __future__ import annotations

import os
import resource
from typing import TYPE_CHECKING, NamedTuple

import pytest
import trio

from tests.guests.machine.test_endings import BOOT, qemu_of
from tests.guests.machine.test_minimal import output
from tests.tools.leftovers import marking
from trio_console import GuestLostError, MicroVMGuest, Root, open_guest
from trio_console._guests.machine import qemu

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from trio_console import Guest

pytestmark = pytest.mark.usefixtures("machines", "no_process_is_left")

#: Seconds for an answer beside all that. It takes one or two where nothing else runs.
ANSWER = 60

MEMORY_MIB = 256

BOMB = "b() { b | b & }; b; echo begun; sleep 1000"
FULL = "dd if=/dev/zero of=/tmp/full bs=64k 2>/dev/null; echo begun; sleep 1000"
MEMORY = "python3 -c 'import sys; x = bytearray(10 << 30); x[:] = b\"x\" * len(x)'; echo begun; sleep 1000"
MUCH = """\
python3 -c '
held = []
while True:
    held.append(b"x" * (1 << 20))
'; echo begun; sleep 1000"""


class Machine(NamedTuple):
    guest: Guest
    qemu: int


@pytest.fixture
async def machine() -> AsyncIterator[Machine]:
    with marking() as mark:
        spec = MicroVMGuest(root=Root.MINIMAL, accel="tcg", memory_mib=MEMORY_MIB)
        async with open_guest(spec, launch_timeout=BOOT, grace=ANSWER) as guest:
            yield Machine(guest, qemu_of(mark))


def held(pid: int) -> int:
    """MiB of this machine's memory that a process has in use."""
    with open(f"/proc/{pid}/status") as file:
        return next(int(line.split()[1]) // 1024 for line in file if line.startswith("VmRSS"))


@pytest.mark.parametrize("script", [BOMB, FULL, MEMORY, MUCH], ids=["fork bomb", "full", "10 GB", "all memory"])
async def test_the_agent_answers_and_other_commands_start_beside_it(machine: Machine, script: str) -> None:
    guest = machine.guest
    async with guest.open_process(script, shell=True, stdout=-1) as process:
        assert process.stdout is not None
        with trio.fail_after(ANSWER):
            assert await process.stdout.receive_some() == b"begun\n"
        for _ in range(3):
            with trio.fail_after(ANSWER):
                await guest.ping()
                assert await output(guest, "echo another") == "another"
        assert held(machine.qemu) < MEMORY_MIB + 150
        process.kill()
    with trio.fail_after(ANSWER):
        assert await output(guest, "rm -f /tmp/full; echo > /tmp/new; echo done") == "done"


async def test_the_agent_is_none_of_those_that_the_kernel_kills_for_memory(machine: Machine) -> None:
    # (Process 1 of a machine is none, whatever the number; what the agent is, commands must not be.)
    assert await output(machine.guest, "cat /proc/self/oom_score_adj") == "0"
    assert await output(machine.guest, "echo $PPID") == "1"


async def test_no_command_may_have_all_threads_of_the_machine(machine: Machine) -> None:
    script = "cat /proc/sys/kernel/threads-max /sys/fs/cgroup$(sed -n s/^0:://p /proc/self/cgroup)/pids.max"
    threads, most = map(int, (await output(machine.guest, script)).split())
    assert most == threads // 2


async def test_qemu_may_not_grow_beyond_its_bound(machine: Machine) -> None:
    bound = (MEMORY_MIB + qemu._TRANSLATED + qemu._OWN) * 2**20
    assert resource.prlimit(machine.qemu, resource.RLIMIT_DATA) == (bound, bound)


async def test_a_qemu_that_would_grow_beyond_its_bound_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        "trio_console._guests.machine.launch.most_memory", lambda _plan: os.sysconf("SC_PAGE_SIZE")
    )
    spec = MicroVMGuest(root=Root.MINIMAL, accel="tcg", memory_mib=MEMORY_MIB, template=False)
    with pytest.raises(GuestLostError, match="did not start 3 times"):
        async with open_guest(spec, launch_timeout=BOOT):
            pass

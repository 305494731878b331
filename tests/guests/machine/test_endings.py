"""The ends of machines: in order, by force, with their program, and before they have begun."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest
import trio

from tests.tools.leftovers import children, marked, marking, runs, wait_until_none
from tests.tools.limits import HANG
from trio_console import GuestLostError, MicroVMGuest, Root, open_guest
from trio_console._guests.machine.qemu import _kernel_arguments

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = pytest.mark.usefixtures("machines", "no_process_is_left")

#: Seconds for a machine to start on a busy machine; less than pytest's own limit.
BOOT = 100.0


def qemu_of(mark: str) -> int:
    """QEMU, which does not carry the mark of a test in a jail, but is started by a process that does."""
    found = {child for pid in marked(mark) for child in (pid, *children(pid))}
    (pid,) = (pid for pid in found if is_qemu(pid))
    return pid


def is_qemu(pid: int) -> bool:
    try:
        return "qemu" in os.readlink(f"/proc/{pid}/exe")
    except OSError:  # it has just ended
        return False


async def test_a_machine_is_described_and_leaves_nothing() -> None:
    async with open_guest(
        MicroVMGuest(root=Root.MINIMAL, accel="tcg", template=False), launch_timeout=BOOT
    ) as guest:
        machine = guest.machine
        assert machine is not None
        assert (machine.accelerator, machine.model, machine.attempts) == ("tcg", "microvm", 1)
        assert not machine.cloned
        assert list(machine.seconds) == ["prepare", "boot", "ready"]
        release = await guest.run_process(["uname", "-r"], capture_stdout=True)
        assert release.stdout.decode().strip() == machine.kernel


async def test_a_machine_that_is_killed_is_lost_with_a_reason() -> None:
    with marking() as mark:
        async with open_guest(MicroVMGuest(root=Root.MINIMAL), launch_timeout=BOOT) as guest:
            os.kill(qemu_of(mark), signal.SIGKILL)
            with trio.fail_after(HANG):
                lost = await guest.wait_lost()
            assert "QEMU was killed by SIGKILL" in lost.reason


def test_a_machine_ends_with_a_program_that_is_killed() -> None:
    program = (
        "import trio, trio_console\n"
        "async def main():\n"
        "    spec = trio_console.MicroVMGuest(root=trio_console.Root.MINIMAL)\n"
        f"    async with trio_console.open_guest(spec, launch_timeout={BOOT}):\n"
        "        print('ready', flush=True)\n"
        "        await trio.sleep_forever()\n"
        "trio.run(main)\n"
    )
    with marking() as mark, subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"ready\n"
        qemu = qemu_of(mark)
        process.kill()
        process.wait(HANG)
        assert not wait_until_none(lambda: marked(mark) or {pid for pid in (qemu,) if runs(pid)})


async def test_the_reason_has_what_qemu_says() -> None:
    spec = MicroVMGuest(root=Root.MINIMAL, template=False, extra_args=["-nonsense"])
    with pytest.raises(GuestLostError, match=r"did not start 3 times.*QEMU exited with status 1.*-nonsense"):
        async with open_guest(spec):
            pass


async def test_the_reason_has_what_the_kernel_says() -> None:
    spec = MicroVMGuest(
        root=Root.MINIMAL,
        template=False,
        extra_args=["-append", f"{_kernel_arguments('tcg')} rdinit=/none init=/none"],
    )
    with pytest.raises(GuestLostError, match=r"Kernel panic") as info:
        async with open_guest(spec, launch_timeout=BOOT):
            pass
    assert "as q35" in info.value.reason


async def test_a_cancelled_start_leaves_nothing() -> None:
    with marking() as mark, trio.move_on_after(HANG) as scope:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(_open)
            while not marked(mark) or not any(
                is_qemu(child) for pid in marked(mark) for child in (pid, *children(pid))
            ):
                await trio.sleep(0.01)
            nursery.cancel_scope.cancel()
    assert not scope.cancelled_caught
    assert not marked(mark)


async def _open() -> None:
    async with open_guest(MicroVMGuest(root=Root.MINIMAL, template=False)):
        await trio.sleep_forever()


async def test_a_missing_qemu_is_an_error_that_says_how_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    with pytest.raises(FileNotFoundError, match="trio-console vm setup"):
        async with open_guest(MicroVMGuest(root=Root.MINIMAL)):
            pass


async def test_a_missing_kernel_is_an_error_that_says_how_to_get_it(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr("trio_console._guests.machine.stock.kernel.BOOT", tmp_path)
    with pytest.raises(FileNotFoundError, match="trio-console vm setup"):
        async with open_guest(MicroVMGuest(root=Root.MINIMAL)):
            pass

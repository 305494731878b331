"""The ends of machines: in order, by force, with their program, and before they have begun."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
import trio

from tests.guests.machine.moments import is_qemu
from tests.tools.leftovers import children, marked, marking
from tests.tools.limits import HANG
from trio_console import GuestLostError, MicroVMGuest, Root, open_guest
from trio_console import _wire as wire
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


async def test_a_machine_is_described_and_leaves_nothing() -> None:
    async with open_guest(
        MicroVMGuest(root=Root.MINIMAL, accel="tcg", template=False), launch_timeout=BOOT
    ) as guest:
        machine = guest.machine
        assert machine is not None
        assert (machine.accelerator, machine.model, machine.attempts) == ("tcg", "microvm", 1)
        assert not machine.cloned
        # So that no question waits behind more input than it takes in some milliseconds.
        assert guest._connection.ready.flow == wire.Flow(32 * 1024)
        assert list(machine.seconds) == ["prepare", "boot", "ready"]
        release = await guest.run_process(["uname", "-r"], capture_stdout=True)
        assert release.stdout.decode().strip() == machine.kernel


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

"""Copies of a machine that runs: what they have of it, what is their own, and that it goes on undisturbed."""

from __future__ import annotations

import os
import signal
import subprocess
from dataclasses import replace
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest
import trio

from tests.guests.machine.test_endings import qemu_of
from tests.guests.machine.test_minimal import output
from tests.guests.machine.test_prepared import OWN, said, start_server
from tests.tools.leftovers import marked, marking, wait_until_none
from tests.tools.limits import HANG
from trio_console import GuestLostError, MicroVMGuest, Root, open_guest
from trio_console._guests.machine.monitor import MonitorError
from trio_console._guests.machine.saved import copied, running

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

    from trio_console import Guest

pytestmark = pytest.mark.usefixtures("machines", "no_process_is_left")

#: Seconds for a machine to start on a busy machine; less than pytest's own limit.
BOOT = 100.0

SPEC = MicroVMGuest(root=Root.MINIMAL, accel="tcg", env={"GIVEN": "1"})


@pytest.fixture
async def guest() -> AsyncIterator[Guest]:
    async with open_guest(SPEC, launch_timeout=BOOT, grace=HANG) as guest:
        yield guest


async def test_copies_have_what_it_has_and_nothing_in_common_that_must_be_ones_own(guest: Guest) -> None:
    await start_server(guest)
    await guest.path("/tmp/file").write_text("of the original")
    async with guest.fork(2) as copies:
        assert len(copies) == 2
        drawn = []
        for each in (guest, *copies):
            assert await output(each, "cat /tmp/file; echo $GIVEN") == "of the original1"
            word, random = (await said(each)).split()
            assert word == "warm"
            drawn.append({random, *(await output(each, OWN)).splitlines()})
        assert len(set.union(*drawn)) == 3 * 8
        await copies[0].path("/tmp/file").write_text("of the first")
        assert await output(guest, "cat /tmp/file") == "of the original"
        assert await output(copies[1], "cat /tmp/file") == "of the original"
    assert isinstance(await copies[0].wait_lost(), GuestLostError)


async def test_sessions_are_the_originals_alone_and_go_on_undisturbed(guest: Guest) -> None:
    """Bytes that are on their way when the machine is copied arrive, each once."""
    size = 4_000_000
    pattern = bytes(range(256)) * 4096
    sent = b"".join([pattern] * (size // len(pattern)))
    take = f"head -c {len(sent)} > /tmp/up; echo done"
    async with guest.open_process(["sh", "-c", take], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as up:
        assert up.stdin is not None
        assert up.stdout is not None
        async with trio.open_nursery() as nursery:
            received = bytearray()

            async def download() -> None:
                script = "i=0; while test $i -lt 10000; do echo $i; i=$((i+1)); done"
                async with guest.open_process(["sh", "-c", script], stdout=subprocess.PIPE) as down:
                    assert down.stdout is not None
                    async for data in down.stdout:
                        received.extend(data)

            nursery.start_soon(download)
            nursery.start_soon(up.stdin.send_all, sent)
            while len(received) < 1000:
                await trio.sleep(0.01)
            async with guest.fork(1) as copies:
                assert await output(copies[0], "cat /proc/*/comm 2>/dev/null | grep -c -w head; true") == "0"
        assert received.split() == [b"%d" % n for n in range(10000)]
        assert await up.stdout.receive_some() == b"done\n"
    assert (await guest.path("/tmp/up").read_bytes()) == sent


async def test_a_copy_can_be_copied_and_a_machine_copied_twice(guest: Guest) -> None:
    await guest.path("/tmp/file").write_text("of the original")
    async with guest.fork(1) as first, guest.fork(1) as second, first[0].fork(1) as third:
        for each in (*first, *second, *third):
            assert await each.path("/tmp/file").read_text() == "of the original"
            assert each.machine is not None
            assert each.machine.cloned
    await guest.ping()


async def test_a_machine_that_was_started_can_be_copied() -> None:
    spec = MicroVMGuest(root=Root.MINIMAL, accel="tcg", template=False)
    async with open_guest(spec, launch_timeout=BOOT) as guest, guest.fork(1) as copies:
        assert await output(copies[0], "echo a") == "a"


async def test_a_copy_gets_what_the_machine_has_changed_and_nothing_else_is_written(
    guest: Guest, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def whole(*_arguments: Any, **_options: Any) -> None:
        raise MonitorError("QEMU was to write the memory")

    monkeypatch.setattr(copied, "save_state", whole)
    await guest.run_process("head -c 20000000 /dev/urandom > /tmp/file", shell=True)
    wanted = await output(guest, "sha256sum /tmp/file")
    async with guest.fork(1) as first, first[0].fork(2) as second:
        for each in (*first, *second):
            assert await output(each, "sha256sum /tmp/file") == wanted
        assert await output(guest, "sha256sum /tmp/file") == wanted


@pytest.mark.parametrize(("bound", "unused"), [("_MOST", "_read"), ("_MOST_STOPPED", "_save_devices")])
async def test_a_machine_that_has_changed_much_of_its_memory_is_written_while_it_runs(
    guest: Guest, monkeypatch: pytest.MonkeyPatch, bound: str, unused: str
) -> None:
    await guest.path("/tmp/file").write_text("of the original")
    monkeypatch.setattr(copied, bound, 0)
    monkeypatch.setattr(copied, unused, None)
    async with guest.fork(1) as copies:
        assert await copies[0].path("/tmp/file").read_text() == "of the original"
    await guest.ping()


async def test_a_machine_whose_devices_qemu_does_not_write_alone_is_written_as_a_whole(
    guest: Guest, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def refused(monitor: Any, state: int) -> None:
        os.write(state, b"what is no state")
        await monitor.execute("no-such-command")

    await guest.path("/tmp/file").write_text("of the original")
    monkeypatch.setattr(copied, "_save_devices", refused)
    async with guest.fork(1) as copies:
        assert await copies[0].path("/tmp/file").read_text() == "of the original"
    await guest.ping()


async def test_a_machine_whose_template_was_made_anew_is_written_as_a_whole(
    guest: Guest, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    other = tmp_path / "memory"
    other.write_bytes(b"")
    look = copied._look

    def replaced(machine: Any, *rest: Any) -> Any:
        stand_in = SimpleNamespace(pid=machine.pid, memory=replace(machine.memory, path=other))
        return look(stand_in, *rest)  # type: ignore[arg-type]

    monkeypatch.setattr(copied, "_look", replaced)
    monkeypatch.setattr(copied, "_read", None)
    async with guest.fork(1) as copies:
        assert await output(copies[0], "echo a") == "a"


async def test_a_copy_that_has_started_with_another_memory_is_lost_and_says_so(
    guest: Guest, monkeypatch: pytest.MonkeyPatch
) -> None:
    save = copied.save_copy

    async def of_another(*arguments: Any) -> Any:
        return replace(await save(*arguments), inode=1)  # type: ignore[type-var]

    monkeypatch.setattr(running, "save_copy", of_another)
    with pytest.raises(GuestLostError, match="is not that of the original"):
        async with guest.fork(1):
            pass


@pytest.mark.parametrize(
    ("count", "error"), [(0, ValueError), (-1, ValueError), (True, TypeError), ("1", TypeError)], ids=repr
)
async def test_a_number_of_copies_that_makes_no_sense_is_refused(
    guest: Guest, count: Any, error: type[Exception]
) -> None:
    with pytest.raises(error, match="number of copies"):
        async with guest.fork(count):
            pass


async def test_a_guest_that_is_no_machine_cannot_be_copied() -> None:
    async with open_guest() as guest:
        with pytest.raises(ValueError, match="only a MicroVMGuest"):
            async with guest.fork(1):
                pass


@pytest.mark.nightly  # because it needs a template of its own
async def test_a_machine_with_shares_cannot_be_copied() -> None:
    spec = MicroVMGuest(root=Root.MINIMAL, accel="tcg", shares={"/mnt": "/usr"})
    async with open_guest(spec, launch_timeout=BOOT) as guest:
        with pytest.raises(ValueError, match="without shares"):
            async with guest.fork(1):
                pass


async def test_a_copy_that_is_called_off_leaves_nothing_and_the_original_goes_on(
    guest: Guest, monkeypatch: pytest.MonkeyPatch
) -> None:
    saved = trio.Event()
    save = copied.save_copy

    async def noted(*arguments: Any, **options: Any) -> Any:
        changes = await save(*arguments, **options)
        saved.set()
        return changes

    monkeypatch.setattr(running, "save_copy", noted)
    for moment in (trio.lowlevel.checkpoint, saved.wait):
        with marking() as mark:
            with trio.CancelScope() as scope:
                async with trio.open_nursery() as nursery:

                    async def call_off(moment: Any = moment, scope: trio.CancelScope = scope) -> None:
                        await moment()
                        scope.cancel()

                    nursery.start_soon(call_off)
                    async with guest.fork(2):
                        await trio.sleep_forever()
            assert scope.cancelled_caught
            assert not wait_until_none(lambda: marked(mark))
        assert await output(guest, "echo on") == "on"


async def test_a_machine_that_is_killed_while_it_is_copied_is_lost_with_a_reason(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with marking() as mark:
        async with open_guest(SPEC, launch_timeout=BOOT) as guest:
            save = copied.save_copy

            async def killed(*arguments: Any, **options: Any) -> Any:
                os.kill(qemu_of(mark), signal.SIGKILL)
                return await save(*arguments, **options)

            monkeypatch.setattr(running, "save_copy", killed)
            with pytest.raises(GuestLostError, match="QEMU was killed by SIGKILL"):
                async with guest.fork(1):
                    pass
        assert not wait_until_none(lambda: marked(mark))

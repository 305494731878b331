"""A guest that misbehaves on demand, seen through `open_guest`."""

from __future__ import annotations

import errno
import signal
from functools import partial
from typing import TYPE_CHECKING, Any

import pytest
import trio

import trio_console
from tests.tools.limits import HANG
from trio_console import GuestLostError, ProtocolError, connect_guest, open_guest, serve_relay
from trio_console.testing import (
    Corrupt,
    Disconnect,
    Drop,
    Duplicate,
    Exits,
    Fault,
    FaultyGuest,
    Flood,
    ScriptedGuest,
    Signal,
    Stall,
    Truncate,
)
from trio_console.testing._faults import FiredFault
from trio_console.testing._faulty_device import FaultyDevice

if TYPE_CHECKING:
    import pathlib
    import subprocess


def commands() -> ScriptedGuest:
    return ScriptedGuest({"talk": Exits(3, stdout=b"hello"), "quiet": Exits()})


def scripted(*faults: Fault) -> FaultyGuest:
    return FaultyGuest(faults, guest=commands())


async def talk(guest: trio_console.Guest) -> subprocess.CompletedProcess[bytes]:
    return await guest.run_process(["talk"], capture_stdout=True, check=False)


async def test_without_faults_it_is_the_guest_it_was() -> None:
    faulty = FaultyGuest()
    with trio.fail_after(HANG):
        async with open_guest(faulty) as guest:
            done = await guest.run_process(["cat"], stdin=b"x" * 300_000, capture_stdout=True)
    assert done.stdout == b"x" * 300_000
    assert faulty.fired == ()
    for direction, bytes_ in (("tx", 300_000), ("rx", 300_000)):
        now = faulty.statistics(direction)  # type: ignore[arg-type]
        assert now.bytes_in == now.bytes_out > bytes_
        assert now.frames > 5


async def test_a_dropped_frame_is_lost_and_the_rest_goes_on() -> None:
    fault = Fault(Drop(), "core.exec.stdout")
    with trio.fail_after(HANG):
        async with open_guest(faulty := scripted(fault)) as guest:
            first, second = await talk(guest), await talk(guest)
    assert (first.returncode, first.stdout) == (3, b"")
    assert (second.returncode, second.stdout) == (3, b"hello")
    (fired,) = faulty.fired
    assert fired.fault is fault
    assert (fired.message, fired.session) == ("core.exec.stdout", 1)


async def test_frames_to_the_guest_go_wrong_too() -> None:
    with trio.fail_after(HANG):
        async with open_guest(scripted(Fault(Corrupt(9), "core.exec.request"))) as guest:
            with pytest.raises(ProtocolError, match="refused"):
                await talk(guest)
            assert (await talk(guest)).stdout == b"hello"


async def test_an_end_of_file_in_the_middle_of_a_frame_loses_the_guest() -> None:
    fault = Fault(Truncate(then=Disconnect()), "core.exec.exited")
    with trio.fail_after(HANG):
        async with open_guest(scripted(fault)) as guest:
            with pytest.raises(GuestLostError, match="ended inside a frame"):
                await talk(guest)


@pytest.mark.parametrize("error", [None, errno.EIO])
async def test_a_cut_console_loses_the_guest(error: int | None) -> None:
    with trio.fail_after(HANG):
        async with open_guest(scripted(Fault(Disconnect(error), "core.exec.started"))) as guest:
            with pytest.raises(GuestLostError) as caught:
                await talk(guest)
    assert (getattr(caught.value.__cause__, "errno", None)) == error


async def test_a_killed_agent_loses_the_guest_and_is_named() -> None:
    fault = Fault(Signal(signal.SIGKILL), "core.exec.started")
    with trio.fail_after(HANG):
        async with open_guest(FaultyGuest([fault])) as guest:
            with pytest.raises(GuestLostError, match="SIGKILL"):
                await guest.run_process(["sleep", "1000"])


async def test_a_stopped_agent_is_left_within_the_grace() -> None:
    with trio.fail_after(HANG):
        async with open_guest(FaultyGuest([Fault(Signal(signal.SIGSTOP), "core.pong")]), grace=0.5) as guest:
            await guest.ping()
            with trio.move_on_after(0.05) as scope:
                await guest.ping()
    assert scope.cancelled_caught


async def test_a_stalled_console_goes_on_where_it_was() -> None:
    fault = Fault(Stall(), "core.exec.stdout")
    faulty = scripted(fault)
    with trio.fail_after(HANG):
        async with open_guest(faulty) as guest, trio.open_nursery() as nursery:

            async def resume() -> None:
                assert (await faulty.wait_fired(fault)).message == "core.exec.stdout"
                faulty.resume()

            nursery.start_soon(resume)
            assert (await talk(guest)).stdout == b"hello"


@pytest.mark.parametrize("direction", ["tx", "rx", None])
async def test_a_test_stalls_and_resumes_at_once(direction: str | None) -> None:
    faulty = scripted()
    with trio.fail_after(HANG):
        async with open_guest(faulty) as guest, trio.open_nursery() as nursery:
            await guest.ping()
            faulty.stall(direction)  # type: ignore[arg-type]
            before = faulty.statistics("tx").bytes_out
            nursery.start_soon(talk, guest)
            with trio.move_on_after(0.05):
                await trio.sleep_forever()
            assert faulty.statistics("tx").bytes_out == before
            faulty.resume(direction)  # type: ignore[arg-type]


async def test_a_test_cuts_and_signals_at_once() -> None:
    for cut in (True, False):
        faulty = FaultyGuest()
        with trio.fail_after(HANG):
            async with open_guest(faulty) as guest:
                await guest.ping()
                if cut:
                    faulty.disconnect()
                else:
                    faulty.send_signal()
                with pytest.raises(GuestLostError):
                    await guest.run_process(["true"])


async def test_a_flood_harms_nobody_but_its_own_guest() -> None:
    fault = Fault(Flood(), "core.exec.stdout")
    with trio.fail_after(HANG):
        faulty = scripted(fault)
        async with open_guest(faulty, grace=0.5) as flooding, open_guest(commands()) as other:
            with pytest.warns(RuntimeWarning, match="did not confirm"):
                await run_until_it_floods(flooding, faulty)
            assert (await talk(other)).stdout == b"hello"


async def run_until_it_floods(guest: trio_console.Guest, faulty: FaultyGuest) -> None:
    async with trio.open_nursery() as nursery:
        run = partial(guest.run_process, capture_stdout=True, deliver_cancel=kill)
        nursery.start_soon(run, ["talk"])
        await faulty.wait_fired()
        nursery.cancel_scope.cancel()


async def kill(process: trio_console.GuestProcess) -> None:
    process.kill()


async def test_a_fault_can_be_added_while_it_runs() -> None:
    faulty = scripted()
    with trio.fail_after(HANG):
        async with open_guest(faulty) as guest:
            assert (await talk(guest)).stdout == b"hello"
            faulty.inject(Fault(Duplicate(2), "core.exec.stdout"))
            assert (await talk(guest)).stdout == b"hello" * 3
            assert (await faulty.wait_fired()).session == 2


async def test_it_can_be_opened_again_and_its_script_begins_anew() -> None:
    faulty = scripted(Fault(Drop(), "core.exec.stdout"))
    with trio.fail_after(HANG):
        for _ in range(2):
            async with open_guest(faulty) as guest:
                assert (await talk(guest)).stdout == b""
                assert len(faulty.fired) == 1
                with pytest.raises(RuntimeError, match="is open: make one"):
                    async with open_guest(faulty):
                        pass


async def test_a_boot_that_goes_wrong_is_an_error_of_opening() -> None:
    with trio.fail_after(HANG):
        with pytest.raises(GuestLostError, match="not ready within"):
            async with open_guest(scripted(Fault(Drop(), "core.ready")), ready_timeout=0.1):
                pass


async def test_a_relay_serves_one(tmp_path: pathlib.Path) -> None:
    faulty = scripted(Fault(Drop(), "core.exec.stdout"))
    with trio.fail_after(HANG):
        async with trio.open_nursery() as nursery:
            await nursery.start(serve_relay, faulty, tmp_path / "relay.sock")
            async with connect_guest(tmp_path / "relay.sock") as guest:
                assert (await talk(guest)).stdout == b""
                assert (await talk(guest)).stdout == b"hello"
            nursery.cancel_scope.cancel()


async def test_a_signal_needs_a_process() -> None:
    with pytest.raises(ValueError, match="no process"):
        async with open_guest(scripted(Fault(Signal()))):
            pass
    with pytest.raises(ValueError, match="no process"):
        async with open_guest(scripted(Fault(Truncate(then=Signal())))):
            pass
    faulty = scripted()
    async with open_guest(faulty):
        with pytest.raises(ValueError, match="no process"):
            faulty.inject(Fault(Signal()))
        with pytest.raises(ValueError, match="no process"):
            faulty.send_signal()


def test_one_that_was_never_opened_says_so() -> None:
    faulty = FaultyGuest()
    for call in (faulty.stall, faulty.resume, faulty.disconnect, faulty.send_signal):
        with pytest.raises(RuntimeError, match="has not been opened"):
            call()


def test_nonsense_is_refused() -> None:
    with pytest.raises(TypeError, match="must be Faults"):
        FaultyGuest([Drop()])  # type: ignore[list-item]
    with pytest.raises(TypeError, match="GuestSpec"):
        FaultyGuest(guest=3)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="give all faults to one"):
        FaultyGuest(guest=FaultyGuest())


def test_a_cut_console_does_not_end_before_its_fault_has_been_told_of() -> None:
    told: list[object] = []
    told_at_the_end: list[int] = []

    class Inner:
        def close(self) -> None:
            told_at_the_end.append(len(told))

    inner: Any = Inner()
    fault = Fault(Disconnect(), "core.exec.request")
    device = FaultyDevice(inner, [fault], send_signal=lambda _number: None, fired=told.append)
    device._fire(FiredFault(fault, 1, "core.exec.request", 1))
    assert told_at_the_end == [1]

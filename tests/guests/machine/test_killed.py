"""A machine whose QEMU is killed, or whose program is, at any moment: all is told and nothing is left."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import trio

from tests.guests.machine.moments import SPEC, STARTS, USES, at, qemus
from tests.guests.machine.test_endings import BOOT
from tests.tools.leftovers import marked, marking, runs, wait_until_none
from tests.tools.limits import HANG
from trio_console import Guest, GuestLostError, MicroVMGuest, Root, open_guest
from trio_console._guests.machine.stock.cache import directory
from trio_console.agent._init import _HOSTLESS_TIME

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = pytest.mark.usefixtures("machines", "no_process_is_left")


@pytest.fixture
def cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Path]:
    """A cache without templates, in which nothing that was begun may be left."""
    real = directory()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    directory().mkdir()
    for kind in ("kernels", "initramfs", "kvm"):
        (directory() / kind).symlink_to(real / kind)
    yield directory()
    assert not list(directory().rglob("*.new"))


def kill() -> None:
    for pid, together in qemus().items():
        os.kill(pid, signal.SIGKILL)
        assert not wait_until_none(lambda pids=together: set(filter(has_threads, pids)))


def has_threads(pid: int) -> bool:
    """Whether any thread of a process runs: then its sockets are open, also if the first thread has ended."""
    try:
        return runs(pid) or len(os.listdir(f"/proc/{pid}/task")) > 1
    except FileNotFoundError:
        return False


#: Moments at which there may be a template, and for the others an empty cache, which takes two starts.
WITH_TEMPLATE = ("telling",)
TWO_STARTS = [
    pytest.param("booting", marks=pytest.mark.nightly),
    pytest.param("saving", marks=pytest.mark.nightly),  # (the next test but one is killed there, too)
    pytest.param("loading", marks=pytest.mark.nightly),  # which removes the template
]


def test_no_moment_is_left_out() -> None:
    assert {"booting", "saving", "loading", *WITH_TEMPLATE} == set(STARTS)


@pytest.mark.parametrize("moment", TWO_STARTS)
async def test_a_first_machine_that_is_killed_at_its_start_is_started_again(moment: str, cache: Path) -> None:
    await start_again(moment)


@pytest.mark.parametrize("moment", WITH_TEMPLATE)
async def test_a_clone_that_is_killed_at_its_start_is_started_again(moment: str) -> None:
    async with open_guest(SPEC, launch_timeout=BOOT):
        pass
    await start_again(moment)


async def start_again(moment: str) -> None:
    kills = iter([kill])

    def kill_once() -> None:
        next(kills, lambda: None)()

    with at(moment, kill_once):
        async with open_guest(SPEC, launch_timeout=BOOT) as guest:
            assert guest.machine is not None
            assert guest.machine.attempts == 2
            assert guest.machine.cloned
    assert next(kills, None) is None


async def test_a_machine_that_is_killed_at_every_start_is_lost_with_the_reason() -> None:
    with at("booting", kill), pytest.raises(GuestLostError, match=r"not start 3 times.*was killed by SIGKILL"):
        async with open_guest(MicroVMGuest(root=Root.MINIMAL, template=False), launch_timeout=BOOT):
            pass


@pytest.mark.parametrize("use", [use for use in USES if use != "idle"])
async def test_a_machine_that_is_killed_in_use_is_lost_with_the_reason(use: str) -> None:
    async with open_guest(SPEC, launch_timeout=BOOT) as guest:
        with trio.fail_after(HANG), pytest.raises(GuestLostError, match="QEMU was killed by SIGKILL"):
            await USES[use](guest, kill)
        with pytest.raises(GuestLostError, match="QEMU was killed by SIGKILL"):
            await guest.ping()


async def test_a_machine_that_is_killed_as_its_block_is_left_is_left_in_order(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    tell = Guest._tell_to_end

    def kill_and_tell(guest: Guest) -> None:
        kill()
        tell(guest)

    monkeypatch.setattr(Guest, "_tell_to_end", kill_and_tell)
    with trio.fail_after(BOOT):
        async with open_guest(SPEC, launch_timeout=BOOT) as guest:
            pass
    with pytest.raises(GuestLostError):
        await guest.ping()


# The program

#: It comes to the moment, and says so; if it is told to, some time later. Then it kills itself.
PROGRAM = """\
import json, os, signal, sys, time
import trio, trio_console
from tests.guests.machine.moments import SPEC, STARTS, USES, at, qemus

moment, idle = json.loads(sys.argv[1])

def die():
    print(*qemus(), flush=True)
    os.kill(os.getpid(), signal.SIGKILL)

async def main():
    async with trio_console.open_guest(SPEC, launch_timeout=100) as guest:
        await trio.sleep(idle)
        await USES[moment](guest, die)

if moment in STARTS:
    with at(moment, die):
        trio.run(main)
else:
    trio.run(main)
"""


#: It starts a machine, and kills its warden and then itself.
WITH_WARDEN = """\
import os, signal
import trio, trio_console
from tests.guests.machine.moments import SPEC, qemus
from tests.guests.test_warden import wardens

async def main():
    async with trio_console.open_guest(SPEC, launch_timeout=100):
        print(*qemus(), flush=True)
        for pid in (*wardens(), os.getpid()):
            os.kill(pid, signal.SIGKILL)

trio.run(main)
"""


@pytest.mark.nightly  # because it takes a minute
def test_a_machine_whose_host_and_warden_were_killed_ends_by_itself() -> None:
    program = [sys.executable, "-c", WITH_WARDEN]
    done: Any = subprocess.run(
        program, cwd=Path(__file__).parents[3], stdout=subprocess.PIPE, timeout=BOOT, check=False
    )
    assert done.returncode == -signal.SIGKILL
    (pid,) = map(int, done.stdout.split())
    assert runs(pid), "nobody is there who would end it"
    deadline = time.monotonic() + _HOSTLESS_TIME + HANG
    while runs(pid):
        assert time.monotonic() < deadline
        time.sleep(0.1)


def die_at(moment: str, idle: float = 0.0) -> None:
    with marking() as mark:
        program = [sys.executable, "-c", PROGRAM, json.dumps([moment, idle])]
        done: Any = subprocess.run(
            program, cwd=Path(__file__).parents[3], stdout=subprocess.PIPE, timeout=BOOT, check=False
        )
        assert done.returncode == -signal.SIGKILL
        (pid,) = map(int, done.stdout.split())  # QEMU in a jail does not carry the mark
        assert not wait_until_none(lambda: marked(mark) | set(filter(runs, [pid])))


@pytest.mark.nightly  # because two machines have to boot for each
@pytest.mark.parametrize("moment", ["booting", "saving"])
async def test_a_program_that_is_killed_while_it_starts_a_first_machine_harms_no_later_one(
    moment: str, cache: Path
) -> None:
    await die_and_start(moment)


@pytest.mark.parametrize("moment", ["loading", "telling"])
async def test_a_program_that_is_killed_while_it_starts_a_clone_harms_no_later_one(moment: str) -> None:
    await die_and_start(moment)


async def die_and_start(moment: str) -> None:
    await trio.to_thread.run_sync(die_at, moment)
    async with open_guest(SPEC, launch_timeout=BOOT) as guest:
        assert guest.machine is not None
        assert guest.machine.attempts == 1
        assert guest.machine.cloned


@pytest.mark.parametrize("use", [use for use in USES if use != "waiting for its end"])
def test_a_machine_ends_with_a_program_that_is_killed(use: str) -> None:
    die_at(use)


@pytest.mark.nightly  # because it waits
def test_a_machine_of_an_idle_program_lives_until_that_is_killed() -> None:
    # A thread of trio's that has started QEMU has ended by then, and QEMU still runs: it carries the command.
    die_at("running a command", idle=15.0)

"""Machines that were prepared and kept: what every guest of a template has, and what none has."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from contextlib import ExitStack, asynccontextmanager
from typing import TYPE_CHECKING, Any

import pytest
import trio

from tests.guests.machine.moments import at
from tests.guests.machine.test_killed import kill
from tests.guests.machine.test_minimal import output
from tests.tools.leftovers import marked, marking, wait_until_none
from tests.tools.limits import HANG
from trio_console import (
    CommandGuest,
    GuestFile,
    GuestLostError,
    MicroVMGuest,
    Root,
    Template,
    make_template,
    open_guest,
)
from trio_console._guests.machine.saved.prepared import PREPARED, discard
from trio_console._guests.machine.stock.cache import directory

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable, Iterator

    from trio_console import Guest

pytestmark = pytest.mark.usefixtures("machines", "no_process_is_left")

#: Seconds for a machine to start on a busy machine; less than pytest's own limit.
BOOT = 100.0

SECRET = "the secret of the one who prepares"
SPEC = MicroVMGuest(root=Root.MINIMAL, accel="tcg", env={"SECRET": SECRET}, user="nobody")

#: An interpreter that has imported something, and answers each line with what it has, and with what it draws.
SERVER = """\
import os, socket
listener = socket.create_server(("127.0.0.1", 7000))
while True:
    connection, _ = listener.accept()
    connection.sendall(f"warm {os.urandom(8).hex()}\\n".encode())
    connection.close()
"""

#: What no two machines may have in common, of processes that are started in them.
OWN = """\
cat /proc/sys/kernel/random/uuid /etc/machine-id /etc/hostname
python3 -c 'print(hash("text"))'
python3 -c 'import random; print(random.random())'
dd if=/dev/urandom bs=16 count=1 2>/dev/null | sha256sum
mktemp -u
"""


async def prepare(guest: Guest) -> None:
    await guest.path("/tmp/prepared").write_text("by the first host")
    assert SECRET in await output(guest, "echo $SECRET")
    await start_server(guest)


async def start_server(guest: Guest) -> None:
    """Start it in the background, without the environment of commands, and leave it in order."""
    start = 'exec env -i "$@" >/dev/null 2>&1 &'
    await guest.run_process(["sh", "-c", start, "sh", "/usr/bin/python3", "-c", SERVER], user="root")
    with trio.fail_after(HANG):
        while not await said(guest):
            await trio.sleep(0.05)


async def said(guest: Guest) -> str:
    try:
        stream = await guest.open_tcp_stream("127.0.0.1", 7000)
    except ConnectionRefusedError:
        return ""
    async with stream:
        return (await stream.receive_some(100)).decode()


@pytest.fixture(scope="module")
def template(machines: None) -> Iterator[Template]:
    """One for all tests of this module."""
    made = trio.run(make_template, SPEC, prepare)
    yield made
    discard(made._entry.place)  # (it would end with this program)


@asynccontextmanager
async def making(spec: MicroVMGuest, prepare: Callable[[Guest], Awaitable[object]]) -> AsyncIterator[Template]:
    made = await make_template(spec, prepare)
    try:
        yield made
    finally:
        discard(made._entry.place)


def entries() -> set[str]:
    folder = directory() / PREPARED
    return set(os.listdir(folder)) if folder.is_dir() else set()


async def test_guests_have_what_was_prepared_and_no_two_have_their_own_in_common(template: Template) -> None:
    async with (
        open_guest(template.guest(), launch_timeout=BOOT) as one,
        open_guest(MicroVMGuest(template=template, env={"GIVEN": "1"}), launch_timeout=BOOT) as other,
    ):
        drawn = []
        for guest in (one, other):
            assert guest.machine is not None
            assert guest.machine.cloned
            assert await guest.path("/tmp/prepared").read_text() == "by the first host"
            word, random = (await said(guest)).split()
            assert word == "warm"
            drawn.append({random, *(await output(guest, OWN)).splitlines()})
        assert len(drawn[0]) == len(drawn[1]) == 8
        assert not drawn[0] & drawn[1]
        assert await output(other, "echo $GIVEN; id -u") == "1\n0"


async def test_nothing_of_the_host_that_prepared_is_in_a_guest(template: Template) -> None:
    async with open_guest(template.guest(), launch_timeout=BOOT) as guest:
        assert await output(guest, "echo $SECRET; id -u") == "0"
        assert SECRET not in (await output(guest, "cat /proc/*/environ 2>/dev/null | tr '\\0' '\\n'; true"))


async def test_a_guest_of_a_template_is_as_that_was(template: Template) -> None:
    different: dict[str, Any]
    for different in ({"memory_mib": 512}, {"cpus": 2}, {"root": Root.MINIMAL}, {"ports": ["x"]}):
        with pytest.raises(ValueError, match="no other arguments"):
            MicroVMGuest(template=template, **different)


async def test_a_template_can_be_made_of_a_guest_of_one(template: Template) -> None:
    async def more(guest: Guest) -> None:
        await guest.path("/tmp/more").write_text("by the second")

    further = making(template.guest(), more)
    async with further as made, open_guest(made.guest(), launch_timeout=BOOT) as guest:
        assert await output(guest, "cat /tmp/prepared /tmp/more") == "by the first hostby the second"


async def test_what_goes_on_behind_the_preparation_ends_with_it() -> None:
    ended: list[Exception] = []
    files: list[GuestFile[Any]] = []

    async def sleep(guest: Guest) -> None:
        try:
            await guest.run_process(["sleep", "1000"])
        except (subprocess.CalledProcessError, GuestLostError) as exc:
            ended.append(exc)

    async with trio.open_nursery() as nursery:

        async def leave(guest: Guest) -> None:
            nursery.start_soon(sleep, guest)
            while "sleep" not in await output(guest, "cat /proc/*/comm 2>/dev/null; true"):
                await trio.sleep(0.05)
            files.append(await guest.open_file("/etc/hostname"))

        async with making(SPEC, leave) as made:
            assert len(ended) == 1
            await files[0].aclose()
            async with open_guest(made.guest(), launch_timeout=BOOT) as guest:
                assert "sleep" not in await output(guest, "cat /proc/*/comm 2>/dev/null; true")
                assert await output(guest, "ls -l /proc/1/fd | grep -c hostname; true") == "0"


@pytest.mark.parametrize(
    "spec", [MicroVMGuest(), MicroVMGuest(root=Root.MINIMAL, shares={"/mnt": "/tmp"})], ids=["host", "shares"]
)
async def test_a_machine_that_cannot_be_saved_is_refused(spec: MicroVMGuest) -> None:
    before = entries()
    with pytest.raises(ValueError, match="cannot be saved"):
        await make_template(spec, prepare)
    assert entries() == before


async def test_arguments_that_make_no_sense_are_refused() -> None:
    with pytest.raises(TypeError, match="MicroVMGuest"):
        await make_template(CommandGuest(["true"]), prepare)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="name"):
        await make_template(SPEC, prepare, name="")
    with pytest.raises(LookupError, match="make_template"):
        await Template.load("nobody has made this")


async def test_a_preparation_that_fails_or_is_cancelled_leaves_nothing() -> None:
    before = entries()

    async def fails(guest: Guest) -> None:
        raise KeyError("of the preparation")

    async def hangs(guest: Guest) -> None:
        cancelled.cancel()
        await trio.sleep_forever()

    with marking() as mark:
        with pytest.raises(KeyError, match="of the preparation"):
            await make_template(SPEC, fails)
        with trio.CancelScope() as cancelled:
            await make_template(SPEC, hangs)
        assert cancelled.cancelled_caught
        assert not wait_until_none(lambda: marked(mark))
    assert entries() == before


@pytest.mark.parametrize("moment", ["preparing", "saving"])
async def test_a_machine_that_is_killed_while_it_is_prepared_is_lost_with_a_reason_and_leaves_nothing(
    moment: str,
) -> None:
    before = entries()

    async def prepare(guest: Guest) -> None:
        await guest.path("/tmp/prepared").write_text("")
        if moment == "preparing":
            kill()
            await guest.ping()
        else:
            killed.enter_context(at("saving", kill))

    with marking() as mark:
        with ExitStack() as killed, pytest.raises(GuestLostError, match="QEMU was killed by SIGKILL"):
            await make_template(SPEC, prepare)
        assert not wait_until_none(lambda: marked(mark))
    assert entries() == before
    async with making(SPEC, nothing) as made, open_guest(made.guest(), launch_timeout=BOOT) as guest:
        await guest.ping()


async def nothing(_guest: Guest) -> None:
    pass


PROGRAM = """\
import os, sys, trio, trio_console
async def prepare(guest):
    await guest.path("/tmp/prepared").write_text("1")
    if sys.argv[2] == "is killed":
        os.kill(os.getpid(), 9)
async def main():
    name = sys.argv[1] or None
    spec = trio_console.MicroVMGuest(root=trio_console.Root.MINIMAL, accel="tcg")
    await trio_console.make_template(spec, prepare, name=name)
    print("made", flush=True)
    if sys.argv[2] == "waits":
        await trio.sleep_forever()
trio.run(main)
"""


def test_one_with_a_name_is_found_by_others_and_one_without_ends_with_its_program() -> None:
    before = entries()
    subprocess.run([sys.executable, "-c", PROGRAM, "", ""], check=True, timeout=300)
    assert entries() == before
    subprocess.run([sys.executable, "-c", PROGRAM, "of a test", ""], check=True, timeout=300)

    async def find() -> None:
        found = await Template.load("of a test")
        held = found._entry.place
        async with open_guest(found.guest(), launch_timeout=BOOT) as guest:
            assert await guest.path("/tmp/prepared").read_text() == "1"
        discard(held)  # (which does not end with this program)

    trio.run(find)
    with pytest.raises(LookupError):
        trio.run(Template.load, "of a test")


def test_a_program_that_is_killed_while_it_prepares_leaves_nothing_that_the_next_finds() -> None:
    before = entries()
    with marking() as mark:
        done = subprocess.run([sys.executable, "-c", PROGRAM, "", "is killed"], check=False, timeout=300)
        assert done.returncode == -signal.SIGKILL
        assert not wait_until_none(lambda: marked(mark))
    subprocess.run([sys.executable, "-c", PROGRAM, "", ""], check=True, timeout=300)
    assert entries() <= before


def test_what_a_killed_program_has_left_is_removed_by_the_next() -> None:
    before = entries()
    command = [sys.executable, "-c", PROGRAM, "", "waits"]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"made\n"
        process.kill()
    assert entries() > before
    subprocess.run([sys.executable, "-c", PROGRAM, "", ""], check=True, timeout=300)
    assert entries() <= before

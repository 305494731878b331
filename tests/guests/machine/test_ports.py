"""Further ports of a machine, as its programs and its host use them."""

from __future__ import annotations

import os
import signal
import subprocess
from typing import TYPE_CHECKING

import pytest
import trio

from tests.guests.machine.test_endings import BOOT, qemu_of
from tests.guests.machine.test_minimal import output
from tests.tools.leftovers import marking
from tests.tools.limits import HANG
from trio_console import GuestLostError, MicroVMGuest, Root, open_guest

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from trio_console import Guest, GuestProcess

pytestmark = pytest.mark.usefixtures("machines", "no_process_is_left")

NAMES = ("one", "other.port-2_")
SPEC = MicroVMGuest(root=Root.MINIMAL, ports=NAMES)

#: Answers in capitals until the host is gone.
ECHO = """\
import os
fd = os.open("/dev/virtio-ports/one", os.O_RDWR)
print("open", flush=True)
while data := os.read(fd, 65536):
    while data:
        data = data[os.write(fd, data.upper()):]
"""

PYTHON = ["python3", "-c"]


@pytest.fixture
async def guest() -> AsyncIterator[Guest]:
    with trio.fail_after(BOOT):
        async with open_guest(SPEC, launch_timeout=BOOT) as guest:
            yield guest


async def exactly(stream: trio.abc.ReceiveStream, count: int) -> bytes:
    found = b""
    while len(found) < count:
        found += await stream.receive_some(count - len(found))
    return found


async def end(process: GuestProcess) -> None:
    assert await process.wait() == 0


async def test_a_port_without_a_host_is_at_its_end(guest: Guest) -> None:
    async with guest.open_process([*PYTHON, ECHO], stdout=subprocess.DEVNULL) as process:
        await end(process)


async def test_a_program_is_answered_and_sees_the_end_of_the_block(guest: Guest) -> None:
    async with (
        guest.open_port("one") as stream,
        guest.open_process([*PYTHON, ECHO], stdout=subprocess.PIPE) as echo,
    ):
        assert echo.stdout is not None
        assert await echo.stdout.receive_some(100) == b"open\n"
        await stream.send_all(b"hello")
        assert await exactly(stream, 5) == b"HELLO"
        await stream.aclose()
        await end(echo)


async def test_bytes_wait_for_a_program_that_comes_later_and_comes_back(guest: Guest) -> None:
    read = "head -c 5 /dev/virtio-ports/one"
    async with guest.open_port("one") as stream:
        await stream.send_all(b"first")
        assert await output(guest, read) == "first"
        await stream.send_all(b"again")
        assert await output(guest, read) == "again"


async def test_a_program_that_writes_waits_for_the_host(guest: Guest) -> None:
    async with guest.open_process(["sh", "-c", "echo early >/dev/virtio-ports/one"]) as process:
        await output(
            guest, "until fuser /dev/vport0p2 2>/dev/null || ls -l /proc/*/fd | grep -q vport0p2; do :; done"
        )
        assert process.poll() is None
        async with guest.open_port("one") as stream:
            assert await exactly(stream, 6) == b"early\n"
            await end(process)


async def test_a_port_is_opened_again_after_its_block(guest: Guest) -> None:
    for text in ("a", "b", "c"):
        async with guest.open_port("one") as stream:
            await output(guest, f"printf {text} >/dev/virtio-ports/one")
            assert await exactly(stream, 1) == text.encode()


async def test_what_was_sent_before_the_end_of_the_block_is_taken(guest: Guest) -> None:
    size = 1_000_000
    count = ["sh", "-c", "sleep 0.2; wc -c </dev/virtio-ports/one"]  # slower than the block's end
    async with guest.open_process(count, stdout=subprocess.PIPE) as process:
        async with guest.open_port("one") as stream:
            await stream.send_all(bytes(size))
        assert process.stdout is not None
        assert int(await process.stdout.receive_some(100)) == size


async def test_a_host_that_does_not_read_stops_only_the_program_that_writes(guest: Guest) -> None:
    size = 10_000_000  # the guest's kernel and this one hold half of it
    write = ["sh", "-c", f"head -c {size} /dev/zero >/dev/virtio-ports/one"]
    async with guest.open_port("one") as stream, guest.open_port(NAMES[1]) as other:
        async with guest.open_process(write) as process:
            assert await exactly(stream, 1) == b"\0"
            await guest.ping()
            await other.send_all(b"beside\n")
            assert await output(guest, f"head -c 6 /dev/virtio-ports/{NAMES[1]}") == "beside"
            assert process.poll() is None
            assert len(await exactly(stream, size - 1)) == size - 1
            await end(process)


async def test_a_port_is_for_one_stream_at_a_time(guest: Guest) -> None:
    async with guest.open_port("one"):
        with pytest.raises(trio.BusyResourceError, match="'one' is open already"):
            async with guest.open_port("one"):
                pass


async def test_a_port_that_was_not_named_is_an_error(guest: Guest) -> None:
    with pytest.raises(LookupError, match=r"no port 'none'.*'one', 'other.port-2_'"):
        async with guest.open_port("none"):
            pass


async def test_a_machine_that_is_killed_ends_its_ports_with_a_reason() -> None:
    with marking() as mark:
        async with open_guest(SPEC, launch_timeout=BOOT) as guest:
            async with guest.open_port("one") as stream:
                os.kill(qemu_of(mark), signal.SIGKILL)
                with trio.fail_after(HANG), pytest.raises(GuestLostError, match="killed by SIGKILL"):
                    await stream.receive_some()
                with pytest.raises(GuestLostError, match="killed by SIGKILL"):
                    await stream.send_all(b"x")
            with pytest.raises(GuestLostError, match="killed by SIGKILL"):
                async with guest.open_port("one"):
                    pass


@pytest.mark.nightly  # because it needs a machine of its own
async def test_a_machine_has_as_many_ports_as_are_allowed() -> None:
    names = [f"port{number}" for number in range(29)]
    spec = MicroVMGuest(root=Root.MINIMAL, ports=names, template=False)
    async with open_guest(spec, launch_timeout=BOOT) as guest:
        assert (await output(guest, "ls /dev/virtio-ports")).split() == sorted(names)
        async with guest.open_port("port28") as stream:
            await output(guest, "printf x >/dev/virtio-ports/port28")
            assert await exactly(stream, 1) == b"x"

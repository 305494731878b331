"""The host's side of further ports, with a socket in the place of QEMU."""

from __future__ import annotations

import os
import socket
from contextlib import closing
from typing import TYPE_CHECKING, Any

import pytest
import trio
import trio.testing

from trio_console import GuestLostError, MicroVMGuest, ProcessGuest, open_guest
from trio_console._guests.machine.monitor import MonitorError
from trio_console._guests.machine.ports import Ports, check_ports
from trio_console._guests.supervisor import Tail

if TYPE_CHECKING:
    from collections.abc import AsyncIterator


class Qemu:
    """In the place of QEMU, its monitor and its process: it holds the other end of the port."""

    returncode: int | None = None

    def __init__(self) -> None:
        self.process = self
        self.end: socket.socket | None = None
        self.refusal: MonitorError | None = None

    async def give(self, _name: str, fd: int) -> None:
        await trio.lowlevel.checkpoint()
        self.close()
        self.end = socket.socket(fileno=os.dup(fd))

    async def execute(self, command: str, **_arguments: Any) -> None:
        await trio.lowlevel.checkpoint()
        assert command == "chardev-change"
        if self.refusal is not None:
            raise self.refusal

    async def explain(self) -> str:
        await trio.lowlevel.checkpoint()
        return "it has its reasons"

    error = Tail.error

    def take(self) -> socket.socket:
        assert self.end is not None
        return self.end

    def close(self) -> None:
        if self.end is not None:
            self.end.close()


@pytest.fixture
async def qemu() -> AsyncIterator[Qemu]:
    with closing(Qemu()) as qemu:
        yield qemu


@pytest.fixture
def ports(qemu: Qemu) -> Ports:
    return Ports(("a",), qemu, qemu)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("names", "error", "what"),
    [
        ("one", TypeError, "a sequence of names, not one"),
        ([1], TypeError, "must be a string"),
        ([""], ValueError, "1 to 63"),
        (["x" * 64], ValueError, "1 to 63"),
        ([".x"], ValueError, "begin with"),
        (["a/b"], ValueError, "letters"),
        (["a,b"], ValueError, "letters"),
        (["a\n"], ValueError, "letters"),
        (["é"], ValueError, "letters"),
        (["trio_console"], ValueError, "the agent's own"),
        (["a", "b", "a"], ValueError, "'a' is there twice"),
        ([f"p{n}" for n in range(30)], ValueError, "29 further ports, not 30"),
    ],
)
def test_names_that_no_port_can_have_are_refused(names: Any, error: type[Exception], what: str) -> None:
    with pytest.raises(error, match=what):
        MicroVMGuest(ports=names)


def test_names_of_ports_may_be_long_and_many() -> None:
    names = ["x" * 63, "0", "A.b_c-d", *(f"p{n}" for n in range(26))]
    assert check_ports(names) == tuple(names)


async def test_bytes_pass_in_both_directions(qemu: Qemu, ports: Ports) -> None:
    async with ports.open("a") as stream:
        await stream.send_all(b"to the guest")
        assert qemu.take().recv(100) == b"to the guest"
        qemu.take().send(b"to the host")
        assert await stream.receive_some() == b"to the host"


async def test_bytes_that_nobody_takes_are_dropped_with_a_warning(
    qemu: Qemu, ports: Ports, autojump_clock: trio.testing.MockClock
) -> None:
    began = trio.current_time()
    with pytest.warns(RuntimeWarning, match="'a' within 5 seconds"):
        async with ports.open("a") as stream:
            await stream.send_all(b"x")
    assert trio.current_time() - began == pytest.approx(5, abs=0.1)


async def test_a_cancelled_block_waits_for_nobody(
    qemu: Qemu, ports: Ports, autojump_clock: trio.testing.MockClock
) -> None:
    began = trio.current_time()
    with trio.CancelScope() as scope:
        async with ports.open("a") as stream:
            await stream.send_all(b"x")
            scope.cancel()
    assert trio.current_time() == began


async def test_a_program_that_must_write_before_it_reads_can(qemu: Qemu, ports: Ports) -> None:
    async with ports.open("a") as stream:
        await stream.send_all(b"x")
        guest = qemu.take()
        guest.setblocking(False)
        with pytest.raises(BlockingIOError):
            while True:
                guest.send(bytes(65536))

        async def read_when_it_can_write() -> None:
            await trio.lowlevel.wait_writable(guest)
            guest.recv(100)

        async with trio.open_nursery() as nursery:
            nursery.start_soon(read_when_it_can_write)
            nursery.start_soon(stream.aclose)


async def test_a_closed_port_says_so_and_not_that_the_machine_is_gone(qemu: Qemu, ports: Ports) -> None:
    async with ports.open("a") as stream:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(_closed, stream)
            await trio.testing.wait_all_tasks_blocked()
            nursery.start_soon(stream.aclose)
        with pytest.raises(trio.ClosedResourceError):
            await stream.send_all(b"x")
        with pytest.raises(trio.ClosedResourceError):
            await stream.wait_send_all_might_not_block()
        await stream.aclose()


async def _closed(stream: trio.abc.Stream) -> None:
    with pytest.raises(trio.ClosedResourceError):
        await stream.receive_some()


async def test_a_port_that_qemu_closes_behind_us_is_not_lost(qemu: Qemu, ports: Ports) -> None:
    async with ports.open("a") as stream, trio.open_nursery() as nursery:
        await stream.send_all(b"x")
        nursery.start_soon(_closed, stream)
        nursery.start_soon(stream.aclose)
        await trio.testing.wait_all_tasks_blocked()
        qemu.take().recv(100)
        qemu.close()


async def test_the_end_of_qemu_is_a_lost_guest(qemu: Qemu, ports: Ports) -> None:
    async with ports.open("a") as stream:
        qemu.close()
        with pytest.raises(GuestLostError, match="its reasons"):
            await stream.receive_some()
        with pytest.raises(GuestLostError, match="its reasons"):
            await stream.send_all(b"x")


@pytest.mark.parametrize(("code", "error"), [(None, trio.BrokenResourceError), (0, GuestLostError)])
async def test_a_port_that_qemu_does_not_connect_is_an_error(
    qemu: Qemu, ports: Ports, code: int | None, error: type[Exception]
) -> None:
    qemu.refusal, qemu.returncode = MonitorError("no"), code
    with pytest.raises(error, match="cannot be opened: no: it has its reasons") as info:
        async with ports.open("a"):
            pass
    assert type(info.value) is error
    qemu.refusal = None
    async with ports.open("a"):
        pass


async def test_another_kind_of_guest_has_no_ports() -> None:
    async with open_guest(ProcessGuest()) as guest:
        with pytest.raises(ValueError, match="only the program that has opened a MicroVMGuest"):
            async with guest.open_port("a"):
                pass

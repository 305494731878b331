"""What moves a guest's bytes: two threads, or tasks of trio."""

from __future__ import annotations

import inspect
import socket
import sys
from typing import TYPE_CHECKING, Any

import pytest
import trio

from tests.tools.leftovers import name_thread, threads
from trio_console import CommandGuest, ProcessGuest, SocketGuest, open_guest
from trio_console._console.polled import PolledStream
from trio_console._console.stream import ConsoleStream
from trio_console.testing import Fault, FaultyGuest, Stall

if TYPE_CHECKING:
    from collections.abc import Callable

    from trio_console import GuestSpec
    from trio_console._guests.supervisor import Workers

AGENT = [sys.executable, "-P", "-m", "trio_console.agent", "--stdio"]

MAKE: list[Callable[[Any], GuestSpec]] = [
    lambda workers: ProcessGuest(workers=workers),
    lambda workers: CommandGuest(AGENT, workers=workers),
]


def pumping() -> list[str]:
    """The threads that move a console's bytes."""
    return [name for thread in threads() if "for a console" in (name := name_thread(thread))]


@pytest.mark.parametrize("make", MAKE, ids=["process", "command"])
@pytest.mark.parametrize("workers", ["threads", "tasks"])
async def test_a_guests_console_has_two_threads_or_none(
    make: Callable[[Any], GuestSpec], workers: Workers
) -> None:
    async with open_guest(make(workers)) as guest:
        assert len(pumping()) == (2 if workers == "threads" else 0)
        before = guest.statistics().console
        await guest.run_process(["true"])
        after = guest.statistics().console
        assert before is not None
        assert after is not None
        assert after.rx.bytes_out > before.rx.bytes_out
        assert after.tx.bytes_in > before.tx.bytes_in
        assert (after.tx.max_buffer_bytes, after.tx.max_buffer_size) == (1 << 20, 2048)


@pytest.mark.parametrize(
    ("kind", "default"), [(ProcessGuest, "threads"), (CommandGuest, "tasks"), (SocketGuest, "tasks")]
)
def test_a_program_with_hundreds_of_sockets_gets_tasks_unless_it_says_otherwise(kind: type, default: str) -> None:
    parameter = inspect.signature(kind).parameters["workers"]
    assert parameter.kind is inspect.Parameter.KEYWORD_ONLY
    assert f'workers: what moves the console\'s bytes in this program: ``"{default}"``, the default' in str(
        kind.__doc__
    )


async def test_a_device_of_the_user_always_gets_threads() -> None:
    from trio_console.agent import serve_agent

    ours, theirs = socket.socketpair()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(serve_agent, trio.SocketStream(trio.socket.from_stdlib_socket(theirs)))
        async with open_guest(ours) as guest:
            await guest.ping()
            assert isinstance(guest._connection._stream, ConsoleStream)


async def test_faults_happen_to_a_guest_whose_console_would_have_tasks() -> None:
    stall = Fault(Stall(), "core.pong")
    faulty = FaultyGuest([stall], guest=CommandGuest(AGENT, workers="tasks"))
    async with open_guest(faulty) as guest, trio.open_nursery() as nursery:
        nursery.start_soon(guest.ping)
        await faulty.wait_fired(stall)
        faulty.resume()


async def test_a_guest_without_threads_is_a_polled_stream() -> None:
    async with open_guest(ProcessGuest(workers="tasks")) as guest:
        assert isinstance(guest._connection._stream, PolledStream)

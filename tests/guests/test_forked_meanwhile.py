"""A child that is forked at any moment, by another task or another thread, holds no connection of ours."""

from __future__ import annotations

import os
import socket
import threading
from contextlib import suppress
from functools import partial
from importlib import import_module
from typing import TYPE_CHECKING, Any

import pytest
import trio

from tests.tools.limits import ENDING, HANG
from trio_console import ProcessGuest, SocketGuest, _forked, connect_guest, open_guest, serve_relay
from trio_console._forked import let_go_in_child, no_fork
from trio_console._relay.socket import RelaySocket
from trio_console.agent import serve_agent

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from pathlib import Path

# These tests fork, and the process that runs them may have other threads. The children end at once.
pytestmark = pytest.mark.filterwarnings("ignore:.*is multi-threaded, use of fork:DeprecationWarning")


def in_a_child(function: Callable[[], int]) -> int:
    """The status of a child that calls a function: what it returns, or 1 if it raises."""
    child = os.fork()
    if not child:
        status = 1
        try:
            status = function()
        finally:
            os._exit(status)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def sockets() -> set[str]:
    names = set()
    for number in os.listdir("/proc/self/fd"):
        with suppress(OSError):
            names.add(os.readlink(f"/proc/self/fd/{number}"))
    return {name for name in names if name.startswith("socket:")}


class ForkAtEachStep(trio.abc.Instrument):
    """Forks before each step of a task, and notes the steps at which the child holds a socket of ours."""

    def __init__(self) -> None:
        self.before = sockets()
        self.steps = 0
        self.held: list[str] = []

    def before_task_step(self, task: trio.lowlevel.Task) -> None:
        self.steps += 1
        if in_a_child(lambda: 0 if sockets() <= self.before else 2) != 0:
            self.held.append(f"step {self.steps}, {task.name}")


async def test_a_task_that_forks_at_any_step_of_opening_and_leaving(tmp_path: Path) -> None:
    path = os.fspath(tmp_path / "sock")
    forking = ForkAtEachStep()
    with trio.fail_after(2 * HANG):
        trio.lowlevel.add_instrument(forking)
        try:
            async with trio.open_nursery() as nursery:
                await nursery.start(serve_relay, ProcessGuest(), path)
                async with connect_guest(path) as guest:
                    await guest.ping()
                nursery.cancel_scope.cancel()
        finally:
            trio.lowlevel.remove_instrument(forking)
    assert forking.steps > 50
    assert forking.held == []


async def test_a_task_that_forks_while_a_socket_is_connected(tmp_path: Path) -> None:
    path = os.fspath(tmp_path / "console")
    with socket.socket(socket.AF_UNIX) as listener, trio.fail_after(HANG):
        listener.bind(path)
        listener.listen()
        forking = ForkAtEachStep()
        trio.lowlevel.add_instrument(forking)
        async with trio.open_nursery() as nursery:

            async def agent() -> None:
                await trio.lowlevel.wait_readable(listener)
                sock = let_go_in_child(listener.accept()[0])
                await serve_agent(trio.SocketStream(trio.socket.from_stdlib_socket(sock)))

            nursery.start_soon(agent)
            async with open_guest(SocketGuest(path)) as guest:
                trio.lowlevel.remove_instrument(forking)
                await guest.ping()
    assert forking.steps > 10
    assert forking.held == []


#: The modules that make descriptors and let go of them in a child.
MAKERS = (
    "_guests.process",
    "_guests.socket",
    "_guests.supervisor",
    "_relay.serve",
    "_relay.server",
    "_relay.socket",
)


def a_fork_waits() -> bool:
    """Whether a fork in another thread would wait for this one."""
    free: list[bool] = []

    def look() -> None:
        free.append(_forked._lock.acquire(blocking=False))
        if free[0]:
            _forked._lock.release()

    thread = threading.Thread(target=look)
    thread.start()
    thread.join()
    return not free[0]


@pytest.fixture
def unguarded(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The places that let go of descriptors while another thread may fork."""
    found: list[str] = []

    def let_go(where: str, owner: Any, numbers: Callable[[Any], Iterable[int]] = _forked._own_number) -> Any:
        if any(number >= 0 for number in numbers(owner)) and not a_fork_waits():
            found.append(where)
        return let_go_in_child(owner, numbers)

    for name in (*MAKERS, "_trio.sockets"):
        monkeypatch.setattr(import_module(f"trio_console.{name}"), "let_go_in_child", partial(let_go, name))
    return found


async def test_a_thread_that_forks_waits_while_descriptors_are_made(
    tmp_path: Path, unguarded: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    path = os.fspath(tmp_path / "sock")
    # (So that the agent's end gets another number, as in a program that has closed its standard descriptors.)
    monkeypatch.setattr("trio_console._guests.supervisor._LAST_STANDARD_FD", 500)
    with trio.fail_after(HANG):
        async with open_guest(relay_path=path), connect_guest(path) as guest:
            await guest.ping()
    assert unguarded == []


def test_a_fork_waits_until_a_descriptor_is_let_go_of() -> None:
    null = os.stat(os.devnull).st_rdev
    begun = threading.Event()
    statuses: list[int] = []

    def fork() -> None:
        begun.set()
        statuses.append(in_a_child(lambda: 0 if os.fstat(number).st_rdev == null else 2))

    thread = threading.Thread(target=fork)
    with no_fork():
        end = socket.socket()
        number = end.fileno()
        thread.start()
        begun.wait()
        assert a_fork_waits()
        let_go_in_child(end)
    with end:
        thread.join()
    assert statuses == [0]


def test_the_thread_that_makes_descriptors_may_fork_itself_and_so_may_its_child() -> None:
    with no_fork():
        assert in_a_child(lambda: in_a_child(lambda: 7)) == 7
        assert a_fork_waits()
    assert not a_fork_waits()
    assert in_a_child(lambda: a_fork_waits()) == 0


def test_a_fork_that_has_waited_long_enough_is_made(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_forked, "_LONGEST_WAIT", 0.0)
    statuses: list[int] = []
    thread = threading.Thread(target=lambda: statuses.append(in_a_child(lambda: a_fork_waits())))
    with no_fork():
        thread.start()
        thread.join(ENDING)
        assert a_fork_waits()
    assert statuses == [0]


def test_a_child_gives_up_the_lock_of_a_relays_directory(tmp_path: Path) -> None:
    made = RelaySocket(tmp_path / "sock")
    null = os.stat(os.devnull).st_rdev
    try:
        assert in_a_child(lambda: 0 if os.fstat(made._directory).st_rdev == null else 2) == 0
    finally:
        made.close()
        made.sock.close()
    assert in_a_child(lambda: 0) == 0

"""The bytes of input that an agent holds for its clients, and the windows that grow."""

from __future__ import annotations

import errno
import os
from typing import TYPE_CHECKING

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule
from trio.testing import wait_all_tasks_blocked

from trio_console import _wire as wire
from trio_console._wire.ids import slot_ids
from trio_console.agent import AgentOptions
from trio_console.agent._held import Held, Holding, Received
from trio_console.agent._inflow import Inflow, Put

if TYPE_CHECKING:
    from tests.agent.conftest import AgentFactory

KIB = 1024

#: Bytes that a pipe takes before its reader reads.
PIPE = 64 * KIB

KEEP, OVER, NO_ROOM = Received.KEEP, Received.OVER_WINDOW, Received.NO_ROOM


# What clients may hold


@pytest.mark.parametrize(
    ("pages", "most"), [(4096, 2 << 20), (1 << 30, 128 << 20), (-4143084953965427008, 128 << 20)]
)
def test_an_eighth_of_the_memory_is_held_where_that_is_known(
    monkeypatch: pytest.MonkeyPatch, pages: int, most: int
) -> None:
    monkeypatch.setattr(os, "sysconf", {"SC_PHYS_PAGES": pages, "SC_PAGE_SIZE": 4096}.__getitem__)
    assert AgentOptions().most_input == most


@pytest.mark.parametrize(("more", "kept"), [(-1, KEEP), (0, KEEP), (1, NO_ROOM)])
def test_one_client_alone_may_hold_half_of_all(more: int, kept: Received) -> None:
    held = Held(1000)
    assert Holding(held, 1, 400, 400).receive(400) is KEEP
    assert Holding(held, 1, 400, 400).receive(100 + more) is kept


@pytest.mark.parametrize(("more", "kept"), [(-1, KEEP), (0, KEEP), (1, NO_ROOM)])
def test_of_greedy_clients_each_may_hold_as_much_as_stays_free(more: int, kept: Received) -> None:
    held = Held(1000)
    for client in range(3):
        session = Holding(held, client, 1000, 1000)
        while session.receive(1) is KEEP:
            pass
    assert held.used == 500 + 250 + 125
    assert Holding(held, 9, 1000, 1000).receive(62 + more) is kept  # one that comes later


def test_what_is_taken_makes_room() -> None:
    held = Held(1000)
    session, other = Holding(held, 1, 500, 500), Holding(held, 1, 500, 500)
    assert session.receive(500) is KEEP
    assert other.receive(1) is NO_ROOM
    session.consume(100)
    assert other.receive(100) is KEEP
    assert other.receive(1) is NO_ROOM


def test_a_session_that_ends_makes_room_once() -> None:
    held = Held(1000)
    session, other = Holding(held, 1, 300, 300), Holding(held, 2, 300, 300)
    session.receive(300)
    other.receive(300)
    session.close()
    session.close()
    session.consume(300)  # a task had still been using them
    assert held.used == 300


def test_what_was_refused_may_be_sent_again() -> None:
    held = Held(1000)
    full, session = Holding(held, 1, 500, 500), Holding(held, 1, 100, 100)
    full.receive(500)
    assert session.receive(100) is NO_ROOM
    assert session.refuse(100) == 100
    full.consume(500)
    assert session.receive(100) is KEEP


# Windows that grow


@pytest.mark.parametrize(("size", "kept"), [(99, KEEP), (100, KEEP), (101, OVER)])
def test_at_first_only_a_part_of_the_window_may_be_sent(size: int, kept: Received) -> None:
    assert Holding(Held(10_000), 1, 1000, 100).receive(size) is kept


@pytest.mark.parametrize(("size", "granted"), [(49, 0), (50, 900)])
def test_the_window_grows_when_half_of_the_first_part_was_used(size: int, granted: int) -> None:
    held = Held(100_000)
    session = Holding(held, 1, 1000, 100)
    session.receive(size)
    assert session.grow() == granted
    assert held.used == (1000 if granted else size)
    assert session.grow() == 0
    assert session.receive(100 - size + granted) is KEEP
    assert session.receive(1) is OVER


def test_a_window_that_has_grown_is_granted_by_halves() -> None:
    session = Holding(Held(100_000), 1, 1000, 100)
    session.receive(100)
    session.grow()
    session.receive(900)
    assert [session.consume(250) for _ in range(4)] == [0, 500, 0, 500]


def test_windows_grow_less_and_less_the_more_a_client_holds() -> None:
    held = Held(8000)
    grown = []
    for _ in range(12):
        session = Holding(held, 1, 1000, 100)
        session.receive(50)
        grown.append(session.grow())
    assert grown[0] == 900
    assert grown == sorted(grown, reverse=True)
    assert grown[-1] == 0
    assert held.used < 4000


def test_a_window_that_could_not_grow_grows_when_there_is_room() -> None:
    held = Held(2000)
    greedy, session = Holding(held, 1, 900, 900), Holding(held, 1, 200, 100)
    greedy.receive(900)
    assert session.receive(100) is KEEP
    assert session.grow() == 0
    greedy.close()
    session.consume(100)
    assert session.grow() == 100


def test_a_session_that_has_ended_does_not_grow() -> None:
    session = Holding(Held(100_000), 1, 1000, 100)
    session.receive(100)
    session.close()
    assert session.grow() == 0


class HeldMachine(RuleBasedStateMachine):
    """Sessions of several clients send what they may, and their tasks take some of it."""

    MOST = 5000

    def __init__(self) -> None:
        super().__init__()
        self.held = Held(self.MOST)
        self.sessions: list[tuple[Holding, list[int]]] = []  # each with: may be sent, kept, owed to the sender

    @rule(client=st.integers(0, 3), window=st.integers(1, 400), first=st.integers(1, 200))
    def open(self, client: int, window: int, first: int) -> None:
        self.sessions.append((Holding(self.held, client, window, first), [min(window, first), 0]))

    @precondition(lambda self: self.sessions)
    @rule(data=st.data(), size=st.integers(1, 400))
    def send(self, data: st.DataObject, size: int) -> None:
        session, numbers = data.draw(st.sampled_from(self.sessions))
        received = session.receive(size)
        assert (received is OVER) == (size > numbers[0])
        if received is OVER:
            return
        numbers[0] -= size
        if received is KEEP:
            numbers[1] += size
            numbers[0] += session.grow()
        else:
            numbers[0] += session.refuse(size)

    @precondition(lambda self: self.sessions)
    @rule(data=st.data(), part=st.floats(0.1, 1))
    def take(self, data: st.DataObject, part: float) -> None:
        session, numbers = data.draw(st.sampled_from(self.sessions))
        size = int(numbers[1] * part)
        if size:
            numbers[1] -= size
            numbers[0] += session.consume(size) + session.grow()

    @precondition(lambda self: self.sessions)
    @rule(data=st.data())
    def end(self, data: st.DataObject) -> None:
        one = data.draw(st.sampled_from(self.sessions))
        self.sessions.remove(one)
        one[0].close()

    @invariant()
    def holds_no_more_than_it_has_room_for(self) -> None:
        assert sum(kept for _, (_, kept) in self.sessions) <= self.held.used <= self.MOST
        if not self.sessions:
            assert self.held.used == 0


TestHeld = HeldMachine.TestCase


# In the queue of a session


async def test_an_inflow_grants_what_its_window_grows_by() -> None:
    granted: list[int] = []
    holding = Holding(Held(100_000), 1, 1000, 100)
    inflow = Inflow(granted.append, window=holding, budget=0, patience=1.0, since=0)
    assert await inflow.put(bytes(49)) is Put.TAKEN
    assert granted == []
    assert await inflow.put(bytes(51)) is Put.TAKEN
    assert granted == [900]
    assert await inflow.put(bytes(900)) is Put.TAKEN
    assert await inflow.put(bytes(1)) is Put.OVER_WINDOW


async def test_an_inflow_grows_late_when_its_bytes_are_taken() -> None:
    granted: list[int] = []
    held = Held(2000)
    greedy, holding = Holding(held, 1, 900, 900), Holding(held, 1, 200, 100)
    greedy.receive(900)
    inflow = Inflow(granted.append, window=holding, budget=0, patience=1.0, since=0)
    await inflow.put(bytes(100))
    greedy.close()
    inflow.pop()
    assert granted == [200]


async def test_an_inflow_refuses_what_there_is_no_room_for_and_grants_it_anew() -> None:
    granted: list[int] = []
    held = Held(1000)
    Holding(held, 1, 500, 500).receive(500)
    inflow = Inflow(granted.append, window=Holding(held, 1, 100, 100), budget=0, patience=1.0, since=0)
    assert await inflow.put(bytes(100)) is Put.FULL
    assert granted == [100]


async def test_an_inflow_that_is_closed_holds_nothing() -> None:
    held = Held(1000)
    inflow = Inflow(lambda _: None, window=Holding(held, 1, 100, 100), budget=0, patience=1.0, since=0)
    await inflow.put(bytes(100))
    assert held.used == 100
    inflow.close()
    assert held.used == 0
    inflow.pop()
    assert held.used == 0


# In an agent


@pytest.mark.parametrize("more", [-1, 0, 1])
async def test_a_client_whose_commands_do_not_read_is_refused_input_and_no_other_client_is(
    agent: AgentFactory, more: int
) -> None:
    sleeps = wire.ExecRequest("sleep", ["1000"], window=KIB)
    reads = wire.ExecRequest("wc", ["-c"], window=KIB)
    async with agent(stdin_window=256 * KIB, first_input=256 * KIB, most_input=1024 * KIB) as host:
        greedy, other = slot_ids(1), slot_ids(2)
        for id_, request in ((greedy[0], sleeps), (greedy[1], sleeps), (greedy[2], sleeps), (other[0], reads)):
            await host.send(request, id_)
            assert isinstance(await host.receive(id_), wire.ExecStarted)
        for id_ in greedy[:3]:
            await host.send(wire.ExecStdin(bytes(PIPE)), id_)  # it goes into the command's pipe
        await wait_all_tasks_blocked()
        for id_ in greedy[:2]:
            await host.send(wire.ExecStdin(bytes(192 * KIB)), id_)
        # 384 KiB are held, and as many of the rest are free as this client may have: a half, 128 KiB.
        await host.send(wire.ExecStdin(bytes(128 * KIB + more)), greedy[2])
        await host.ping()
        for _ in range(20):
            await host.send(wire.ExecStdin(bytes(100 * KIB)), other[0])
            await wait_all_tasks_blocked(0.01)
        await host.send(wire.ExecStdin(b""), other[0])
        outcome = await host.collect(other[0])
        assert not [one for one in outcome.messages if isinstance(one, wire.ExecStdinError)]
        for id_ in greedy[:3]:
            await host.send(wire.ExecSignal(9), id_)
        said = [one for id_ in greedy[:3] for one in (await host.collect(id_)).messages]
        refused = [one for one in said if isinstance(one, wire.ExecStdinError) and one.errno == errno.ENOSPC]
        assert len(refused) == (more > 0)

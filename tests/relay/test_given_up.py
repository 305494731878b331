"""Sessions that a client has given up, and sessions that end while their client does not read."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.relay.router._frames import Table
from tests.relay.router._world import serving
from tests.tools.peer import settle
from trio_console import _wire as wire
from trio_console._relay.router.limits import RouterLimits
from trio_console._relay.server import ServerOptions

if TYPE_CHECKING:
    from pathlib import Path

    from trio_console._relay.router import Client

CREDIT = 1000
READ = wire.FsRequest(wire.OpRead(handle=1, offset=0), window=CREDIT)
CONNECT = wire.TcpConnect("h", 1, window=CREDIT)
EXEC = wire.ExecRequest("c", window=CREDIT)

#: For each kind of session its request, its data, its last frame, and the message that gives it up.
GIVEN_UP = {
    "a read": (READ, wire.FsData(bytes(CREDIT)), wire.FsResponse(ok=False), wire.Cancel()),
    "a connection": (CONNECT, wire.TcpData(bytes(CREDIT)), wire.TcpClosed(), wire.Cancel()),
    "a closed connection": (CONNECT, wire.TcpData(bytes(CREDIT)), wire.TcpClosed(), wire.TcpClose()),
}


def with_data_held(request: wire.Message, data: wire.Message) -> tuple[Table, Client, int]:
    """A session whose client has used up its credit, so that the relay holds the rest of the data."""
    table = Table()
    client = table.connect()
    id_ = table.open(client, request)
    table.agent_says(data, id_)
    table.agent_says(data, id_)
    table.client_reads(client)
    assert client.account.held > 0
    return table, client, id_


@pytest.mark.parametrize("what", GIVEN_UP)
def test_the_end_of_what_was_given_up_needs_no_credit(what: str) -> None:
    request, data, last, give_up = GIVEN_UP[what]
    table, client, id_ = with_data_held(request, data)
    table.client_says(client, give_up, id_)
    table.agent_says(data, id_)
    table.agent_says(last, id_)
    assert (id_, data) not in table.client_reads(client)[0]
    assert not client.sessions
    assert client.account.held == client.account.reserved == table.router.books.relay.reserved == 0


@pytest.mark.parametrize("what", GIVEN_UP)
def test_nor_does_an_end_that_has_come_before(what: str) -> None:
    request, data, last, give_up = GIVEN_UP[what]
    table, client, id_ = with_data_held(request, data)
    table.agent_says(last, id_)
    orders = table.client_says(client, give_up, id_)
    if isinstance(give_up, wire.Cancel):
        assert orders.busy is client
        assert table.client_reads(client)[0] == [(id_, last)]
    assert not client.sessions
    assert client.account.held == client.account.reserved == table.router.books.relay.reserved == 0


@pytest.mark.parametrize("what", GIVEN_UP)
def test_data_of_what_was_given_up_are_dropped_and_counted(what: str) -> None:
    request, data, _, give_up = GIVEN_UP[what]
    table, client, id_ = with_data_held(request, data)
    before = table.router.books.dropped_bytes
    table.client_says(client, give_up, id_)
    table.agent_says(data, id_)
    assert table.router.books.dropped_bytes == before + 2 * CREDIT
    assert client.account.held == 0


def test_an_end_that_overtakes_a_close_on_its_way_needs_no_credit() -> None:
    request, data, last, _ = GIVEN_UP["a closed connection"]
    table, client, id_ = with_data_held(request, data)
    table.client_says(client, wire.TcpClose(), id_)  # and the console has no room for it yet
    table.agent_says(last, id_)
    table.client_reads(client)
    assert table.to_agent(client) == []
    assert not client.sessions
    assert client.account.pending == client.account.reserved == 0


def test_a_command_cannot_be_given_up_so_its_output_stays() -> None:
    output = wire.ExecStdout(bytes(CREDIT))
    table, client, id_ = with_data_held(EXEC, output)
    table.client_says(client, wire.Cancel(), id_)
    table.agent_says(wire.ExecExited(0), id_)
    table.client_says(client, wire.Credit("stdout", CREDIT), id_)
    assert table.client_reads(client)[0] == [(id_, output), (id_, wire.ExecExited(0))]


async def test_a_client_is_read_again_when_the_session_it_has_sent_too_much_for_has_ended(tmp_path: Path) -> None:
    options = ServerOptions(limits=RouterLimits(pending_budget=4096))
    async with serving(tmp_path, window=1, options=options) as world:
        client = await world.connect()
        id_ = client.ids[0]
        output = wire.ExecStdout(bytes(CREDIT))
        await client.send(EXEC, id_)
        await world.agent.expect(wire.ExecRequest)
        await world.agent.send(output, id_)
        await world.agent.send(output, id_)  # held, and the end behind it
        assert await client.expect(wire.ExecStdout) == (id_, output)
        await client.send(wire.ExecStdin(bytes(5000)), id_)
        await settle()
        await client.send(wire.Credit("stdout", CREDIT), id_)
        await world.agent.send(wire.ExecExited(0), id_)
        await settle()
        assert await client.pending() == [(id_, output), (id_, wire.ExecExited(0))]
        assert world.server.statistics().sessions == 0
        await client.leave()

"""A running agent in this process, with real child processes, and a check that it leaves nothing behind."""

from __future__ import annotations

import socket
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

import pytest
import trio
from trio.testing import memory_stream_pair

from tests.agent._host import Host
from tests.tools.leftovers import children, idle_threads
from tests.tools.limits import HANG
from trio_console.agent import AgentOptions, serve_agent

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterator
    from contextlib import AbstractAsyncContextManager

    AgentFactory = Callable[..., AbstractAsyncContextManager[Host]]


@pytest.fixture(autouse=True)
def no_child_is_left_behind() -> Iterator[None]:
    """No child, not even a zombie, and no more idle threads than an agent keeps for its next commands.

    Those that tests before this one have left to trio's cache are not this agent's.
    """
    children_before, idle_before = children(), idle_threads()
    yield
    assert children() <= children_before
    assert len(idle_threads() - idle_before) <= 16  # four that start commands, nine for files, and trio's own


@asynccontextmanager
async def running_agent(
    *, boot: bool = True, over_socket: bool = False, bootstrap: dict[str, Any] | None = None, **options: Any
) -> AsyncIterator[Host]:
    """A booted agent; at the end the console is closed and the agent has returned.

    Unless it is told, it takes whole windows of input at once: most tests do not wait for grants.
    """
    options.setdefault("first_input", options.get("stdin_window", AgentOptions.stdin_window))
    ours: trio.abc.Stream
    theirs: trio.abc.Stream
    if over_socket:
        ours, theirs = (trio.SocketStream(trio.socket.from_stdlib_socket(s)) for s in socket.socketpair())
    else:
        ours, theirs = memory_stream_pair()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(lambda: serve_agent(theirs, options=AgentOptions(**options)))
        host = Host(ours)
        if boot:
            await host.boot(**(bootstrap or {}))
        yield host
        await ours.aclose()
        # The agent must end by itself now. The limit only keeps a broken agent from hanging the test.
        nursery.cancel_scope.deadline = trio.current_time() + HANG


@pytest.fixture
def agent() -> AgentFactory:
    """Start an agent: ``async with agent(stdin_window=...) as host``."""
    return running_agent


@pytest.fixture
async def host() -> AsyncIterator[Host]:
    """An agent with its default options."""
    async with running_agent() as host:
        yield host

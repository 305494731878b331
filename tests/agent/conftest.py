"""A live agent in this process, with real children, and proof that it leaves nothing behind."""

from __future__ import annotations

import gc
import os
import socket
import threading
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

import pytest
import trio
from trio.testing import memory_stream_pair

from tests.agent._host import PATIENCE, Host, child_pids
from trio_console.agent import AgentOptions, serve_agent

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterator
    from contextlib import AbstractAsyncContextManager

    AgentFactory = Callable[..., AbstractAsyncContextManager[Host]]


@pytest.fixture(autouse=True)
def nothing_is_left_behind() -> Iterator[None]:
    """No child, no descriptor, and no more threads than are kept for what comes next."""
    children, fds = child_pids(), _open_fds()
    yield
    gc.collect()
    assert child_pids() <= children
    assert _open_fds() <= fds
    assert threading.active_count() <= 16  # four that start commands, nine for files, and trio's own


def _open_fds() -> set[str]:
    return {f"{fd} {_target(fd)}" for fd in os.listdir("/proc/self/fd") if _target(fd) is not None}


def _target(fd: str) -> str | None:
    try:
        return os.readlink(f"/proc/self/fd/{fd}")
    except OSError:
        return None


@asynccontextmanager
async def running_agent(
    *, boot: bool = True, over_socket: bool = False, bootstrap: dict[str, Any] | None = None, **options: Any
) -> AsyncIterator[Host]:
    """A booted agent; at the end the console is closed and the agent has returned."""
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
        # The agent has to end by itself now; this only keeps a broken one from hanging the test.
        nursery.cancel_scope.deadline = trio.current_time() + PATIENCE


@pytest.fixture
def agent() -> AgentFactory:
    """Start an agent: ``async with agent(stdin_window=...) as host``."""
    return running_agent


@pytest.fixture
async def host() -> AsyncIterator[Host]:
    """An agent with nothing out of the ordinary."""
    async with running_agent() as host:
        yield host

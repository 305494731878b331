"""A stream that takes bytes only when the test allows it, and an outbox that writes to it."""

from __future__ import annotations

from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

import trio
import trio.testing

from tests.tools.limits import HANG
from trio_console._wire.outbox import Outbox

if TYPE_CHECKING:
    from collections.abc import AsyncIterator


class GatedStream(trio.abc.SendStream):
    """Takes one `send_all` each time the gate is opened, and keeps what it took."""

    def __init__(self, *, is_open: bool = False) -> None:
        self.sent: list[bytes] = []
        self.started: list[bytes] = []
        self._open = is_open
        self._gate = trio.Semaphore(0)
        self.error: BaseException | None = None

    def let(self, count: int = 1) -> None:
        for _ in range(count):
            self._gate.release()

    def open(self) -> None:
        self._open = True
        self._gate.release()

    async def send_all(self, data: bytes | bytearray | memoryview) -> None:
        await trio.lowlevel.checkpoint()
        self.started.append(bytes(data))
        if not self._open:
            await self._gate.acquire()
        if self.error is not None:
            raise self.error
        self.sent.append(bytes(data))

    async def wait_send_all_might_not_block(self) -> None:
        await trio.lowlevel.checkpoint()

    async def aclose(self) -> None:
        await trio.lowlevel.checkpoint()


@asynccontextmanager
async def running(*, is_open: bool = False, **budgets: int) -> AsyncIterator[tuple[Outbox, GatedStream]]:
    stream = GatedStream(is_open=is_open)
    outbox = Outbox(stream, **budgets)
    with trio.fail_after(HANG):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(outbox.run)
            await trio.testing.wait_all_tasks_blocked()
            yield outbox, stream
            nursery.cancel_scope.cancel()


async def settle() -> None:
    await trio.testing.wait_all_tasks_blocked()

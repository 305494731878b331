"""An outbox before an agent that counts all that comes: whatever the order of things, never more than it admits.

The bytes say who sends, what the agent takes, what it announces, who gives up and how much time passes. In the end
the agent takes everything, and then everything that was queued has come, and in order.
"""

from __future__ import annotations

import zlib
from typing import Final

import trio
import trio.testing

from tests.fuzz.targets.script import Script
from tests.tools.counting import CountingAgent, GatheringAgent
from trio_console import _wire as wire
from trio_console._wire.credit import Admission, Admitted
from trio_console._wire.outbox import Outbox

__all__ = ["fuzz_admission"]

_SESSIONS: Final = 5

#: Bytes of a piece of data, by a byte of the script.
_SIZES: Final = (1, 2, 30, 100, 1000, 4096, 20_000, 65_536)

_WINDOWS: Final = (
    Admitted(2000, 4, 100_000, 8),
    Admitted(2000, 8, 300_000, 40),
    Admitted(100_000, 100, 70_000, 1000),
    Admitted(500, 2, 5000, 3),
    Admitted(1, 1, 1, 1),
)

_MOST_STEPS: Final = 60

#: Seconds of the script's clock after which something hangs.
_LONG: Final = 10_000_000


def fuzz_admission(data: bytes) -> int:
    """A window, whether it is known from the start, whether frames may be written at once, and the steps."""
    world = _World(Script(data))
    trio.run(world.run, clock=trio.testing.MockClock(autojump_threshold=0))
    return world.trace


class _World:
    def __init__(self, script: Script) -> None:
        self.script = script
        how = script.byte()
        self.window = _WINDOWS[how % len(_WINDOWS)]
        known = how < 128
        kind = GatheringAgent if how & 64 else CountingAgent
        self.agent = kind(self.window, consumes=lambda session: session in self.taken)
        # An agent whose limits are not known from the start may be sent too much before it announces them.
        self.admission = Admission(self.window if known else None)
        self.outbox = Outbox(self.agent, admission=self.admission)
        self.agent.announce = self.outbox.announce
        self.taken: set[int] = set()
        self.queued: list[tuple[int, int]] = []  # the session and the mark of each piece of data
        self.senders: list[trio.CancelScope] = []
        self.marks = 0
        self.trace = 0
        if not known:
            self.agent.say()

    async def run(self) -> None:
        with trio.fail_after(_LONG):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self.outbox.run)
                for _ in range(_MOST_STEPS):
                    if not self.script:
                        break
                    await self._step(nursery)
                    assert not self.agent.violations, self.agent.violations[0]
                await self._end()
                nursery.cancel_scope.cancel()

    async def _step(self, nursery: trio.Nursery) -> None:
        what, which = divmod(self.script.byte(), 32)
        session = 1 + which % _SESSIONS
        match what:
            case 0:
                self.outbox.send_control(wire.encode(wire.Ping(), session))
            case 1:
                self.outbox.commit(wire.encode(wire.TcpEof(), session), 0)
            case 2 | 3:
                nursery.start_soon(self._send, session, _SIZES[which % len(_SIZES)], 1 + self.script.byte() % 80)
            case 4:
                self.taken.add(session)
                self.agent.consume(session)
            case 5:
                if self.senders:
                    self.senders[which % len(self.senders)].cancel()
            case 6:
                await trio.sleep((0, 0.1, 0.3, 3.0, 100.0)[which % 5])
            case _:
                less = self.agent.limits[which % 4] - 1
                shrunk = self.agent.limits._replace(**{Admitted._fields[which % 4]: less})
                assert not self.outbox.announce(shrunk)
                self.taken.discard(session)
        await trio.testing.wait_all_tasks_blocked()

    async def _send(self, session: int, size: int, count: int) -> None:
        with trio.CancelScope() as scope:
            self.senders.append(scope)
            for _ in range(count):
                await self.outbox.reserve(size, session)
                self.marks += 1
                if self.marks % 7 == 0:
                    self.outbox.release(size, session)
                    continue
                self.queued.append((session, self.marks))
                piece = self.marks.to_bytes(4, "big").ljust(size, b"\0")[:size]
                self.outbox.commit(wire.encode_data(wire.ExecStdin, session, piece), size)

    async def _end(self) -> None:
        """Let the agent take all, at last more than it has said, so that the largest frame fits."""
        self.taken.update(range(1, _SESSIONS + 1))
        self.agent.limits = Admitted(*(2**40,) * 4)
        for session in self.taken:
            self.agent.consume(session)
        self.agent.say()
        await trio.testing.wait_all_tasks_blocked()
        assert self.outbox.bulk_written == self.outbox.bulk_queued, "data waits for nothing"
        assert self.outbox.control_written == self.outbox.control_queued
        assert self.admission.used == self.agent.used, "the agent counts something else"
        assert not self.agent.violations, self.agent.violations[0]
        for session in self.taken:
            came = [m for id_, m in self.agent.frames if id_ == session and isinstance(m, wire.ExecStdin)]
            marks = [mark for one, mark in self.queued if one == session]
            assert len(came) == len(marks), "data was lost or doubled"
            for message, mark in zip(came, marks, strict=True):
                assert message.data[:4] == mark.to_bytes(4, "big")[: len(message.data)], "another order"
        self.trace = zlib.crc32(repr([id_ for id_, _ in self.agent.frames]).encode())

"""A session that is cut short stays until its command has ended, so that nothing of it is left unreaped."""

from __future__ import annotations

import os
import signal
from typing import Any, cast

import trio
import trio.testing

from tests.tools.limits import HANG
from trio_console import _wire as wire
from trio_console._processes import COMMAND_MARK, Wanted
from trio_console.agent._held import Held, Holding
from trio_console.agent._process.session import ExecSession


class Sender:
    """Takes messages, and keeps none."""

    def send(self, message: wire.Message, session_id: int) -> None: ...

    commit_small = send

    async def reserve_small(self) -> None:
        await trio.lowlevel.checkpoint()


class SlowToDie:
    """A command without streams that ends some time after it was killed; it is also what ends all of it."""

    tty = False
    pid = number = 5
    stdin = None

    def __init__(self) -> None:
        self.exit_fd, self._exit = os.pipe()
        self.outputs: dict[str, int] = {}
        self.killed: list[int] = []
        self.reaped_as: wire.ExecExited | None = None
        self._status: wire.ExecExited | None = None

    def end(self) -> None:
        self._status = wire.ExecExited(-1, signal.SIGKILL)
        os.close(self._exit)

    def kill_group(self, number: int) -> None:
        self.killed.append(number)

    async def kill(self, _wanted: Wanted, _grace: float) -> int:
        await trio.lowlevel.checkpoint()
        return 0

    def wanted(self) -> Wanted:
        return Wanted(COMMAND_MARK, "mark")

    def status(self) -> wire.ExecExited | None:
        return self._status

    def resize(self, rows: int, cols: int) -> None: ...

    def let_go_of_terminal(self) -> None: ...

    def reap(self) -> None:
        self.reaped_as = self._status
        os.close(self.exit_fd)


async def test_a_session_whose_agent_is_cancelled_waits_for_the_end_of_its_command() -> None:
    command = SlowToDie()

    async def spawn(_request: wire.ExecRequest, _size: tuple[int, int]) -> SlowToDie:
        await trio.lowlevel.checkpoint()
        return command

    fake_sender, fakes, fake_spawn = cast("Any", (Sender(), command, spawn))
    session = ExecSession(
        fake_sender,
        10,
        wire.ExecRequest("c"),
        spawn=fake_spawn,
        sinks=fakes,
        hunt=fakes,
        stdin_window=Holding(Held(1000), 0, 100, 100),
    )
    with trio.fail_after(HANG):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(session.run)
            await trio.testing.wait_all_tasks_blocked()
            nursery.cancel_scope.cancel()
            with trio.CancelScope(shield=True):
                await trio.testing.wait_all_tasks_blocked()
            assert command.killed == [signal.SIGKILL]
            assert len(nursery.child_tasks) == 1
            command.end()
    assert command.reaped_as == wire.ExecExited(-1, signal.SIGKILL)

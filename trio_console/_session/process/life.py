"""The life of a guest's commands, from the request to the guest's confirmation that all of it is over."""

from __future__ import annotations

import signal
import warnings
from contextlib import suppress
from typing import TYPE_CHECKING, Final, final

import trio

from trio_console import _wire as wire
from trio_console._errors import UnsupportedByPeer
from trio_console._session.connection import Question
from trio_console._session.process.plumbing import attach_input, attach_output
from trio_console._session.process.session import ProcessSession
from trio_console._trio.lost import GuestLostError
from trio_console._trio.nursery import grouping_nursery

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from trio_console._session.confirmations import Confirmations
    from trio_console._session.connection import Connection
    from trio_console._session.process.command import Command
    from trio_console._session.process.process import GuestProcess

__all__ = ["Commands"]

#: Seconds between SIGTERM and SIGKILL when a `run_process` is cancelled, as in `trio.run_process`.
_TERMINATE_TIME: Final = 5.0


@final
class Commands:
    """Starts the commands of a guest, and sees each to its end.

    Args:
        connection: carries their sessions.
        confirmations: bounds the waits for the guest.
    """

    def __init__(self, connection: Connection, confirmations: Confirmations) -> None:
        self._connection: Final = connection
        self._confirmations: Final = confirmations

    async def start(
        self, command: Command, nursery: trio.Nursery, *, carried_through: bool = False
    ) -> ProcessSession:
        """Start a process, with its streams connected to what the user asked for.

        A start that is ``carried_through`` cannot be cancelled any more once it was requested, unless the guest
        does not answer. The cancellation is then delivered to the process, as in `trio.run_process`.
        """
        await self._connection.wait_may_open()
        session = ProcessSession(self._connection, command)
        session.open()
        try:
            # Done while the guest starts the command, so that a short command need not wait for it.
            feeding = attach_input(session)
            for job in attach_output(session):
                nursery.start_soon(job)
            await (self._carry_through(session) if carried_through else session.wait_started())
        except BaseException:
            with trio.CancelScope(shield=True):
                await self.end(session)
            raise
        if feeding is not None:
            nursery.start_soon(feeding)
        return session

    async def _carry_through(self, session: ProcessSession) -> None:
        """Wait until the process runs; if cancelled, too, but for no longer than a confirmation may take."""
        try:
            await session.wait_started()
        except trio.Cancelled:  # noqa: ASYNC103
            # The caller's next checkpoint raises it again, when the process can be told.
            started = False
            with trio.CancelScope(shield=True):
                # (If the guest is lost meanwhile, no process is left to tell. Perhaps the same cancellation has
                # ended the guest, and then its user did not ask for that error.)
                with suppress(GuestLostError):
                    started = await self._confirmations.wait(session.wait_started)
            if not started:
                raise

    async def deliver_cancel(
        self,
        session: ProcessSession,
        process: GuestProcess,
        deliver_cancel: Callable[[GuestProcess], Awaitable[object]] | None,
    ) -> None:
        """End a process whose `run_process` was cancelled; the user's function may take any time."""
        # Otherwise a process that is ended by SIGTERM would take the session with it, and its children live on.
        session.kill_rest(self._confirmations.grace)
        with trio.CancelScope(shield=True):
            # (An exception of the user's function is raised in one group, as by `trio.run_process`.)
            async with grouping_nursery() as delivery:

                @trio.lowlevel.enable_ki_protection
                async def deliver() -> None:
                    try:
                        if deliver_cancel is None:
                            await _terminate(session)
                        else:
                            if not session.tells_ends:
                                delivery.start_soon(_discard_unread, session)
                            await deliver_cancel(process)
                            # The process may end by itself now. (`peek`: a process that does not end says nothing
                            # about the guest, so this does not count as a missing confirmation.)
                            with trio.move_on_at(self._confirmations.peek()):
                                await session.wait_left()
                    finally:
                        # Also if the user's function failed. (Does nothing if the process has ended.)
                        with trio.CancelScope(shield=True):
                            await self.end(session)

                delivery.start_soon(deliver)
                await session.wait_left()
                delivery.cancel_scope.cancel()

    async def leave(self, session: ProcessSession) -> None:
        """Leave a process in order: if it has exited, what it has left lives on. A call of `end` follows."""
        if session.left:
            session.spare_background()
            if not session.ended and session.tells_ends:
                session.send(wire.ExecRelease())
                session.discard_claimed_output()
                await self._confirmations.wait(session.wait_ended)

    async def end(self, session: ProcessSession) -> None:
        """Kill all of the command, and wait for the guest's confirmation, at most for the grace."""
        if not session.ended:
            session.kill_all(self._confirmations.peek() - trio.current_time())
            session.discard_output()
            if not await self._confirmations.wait(session.wait_ended) and not session.ended:
                session.give_up(self._confirmations.confirmed)
                warnings.warn(
                    f"the guest did not confirm within {self._confirmations.grace:g} seconds that {session!r} is "
                    f"gone; it may still run{self._confirmations.note()}",
                    RuntimeWarning,
                    stacklevel=1,
                )
        if session.ended:
            await self._kill_background(session)
        if session.alive:
            warnings.warn(
                f"the guest could not end {session.alive} processes of {session!r} in time; they may still run",
                RuntimeWarning,
                stacklevel=1,
            )
            session.alive = 0  # said once

    async def _kill_background(self, session: ProcessSession) -> None:
        """Kill what a command has left whose session has ended by itself, perhaps just before it was to be killed.

        (An agent that has killed all says so, and a failed start leaves nothing.)
        """
        kill = session.kill_of_background(self._confirmations.peek() - trio.current_time())
        if kill is None or self._connection.lost is not None:
            return
        question = Question(self._connection.new_id())
        try:
            self._connection.open(question, kill)
        except UnsupportedByPeer:  # it has told a number that none of its generation has
            return
        if not await self._confirmations.wait(question.done.wait):
            warnings.warn(
                f"the guest did not confirm within {self._confirmations.grace:g} seconds that what {session!r} "
                f"has left in the background is gone; it may still run{self._confirmations.note()}",
                RuntimeWarning,
                stacklevel=1,
            )
        # (A relay that does not know the request refuses it.)
        if isinstance(question.reply, wire.BackgroundKilled):
            session.alive = question.reply.alive


@trio.lowlevel.enable_ki_protection
async def _discard_unread(session: ProcessSession) -> None:
    """Discard the output of a cancelled process after some seconds, for an agent that tells no exit by itself.

    A user's function may wait for the exit, which comes behind the output; nobody may read that any more.
    """
    await trio.sleep(_TERMINATE_TIME)
    session.discard_output()


async def _terminate(session: ProcessSession) -> None:
    """Send SIGTERM, and wait as long as `trio.run_process` does; then warn, because SIGKILL comes next."""
    session.discard_output()  # the task that reads a pipe was most likely cancelled, too
    session.send(wire.ExecSignal(signal.SIGTERM))
    await trio.sleep(_TERMINATE_TIME)
    warnings.warn(
        f"{session!r} ignored SIGTERM for {_TERMINATE_TIME:g} seconds. (Maybe you should pass a different "
        "deliver_cancel?) Trying SIGKILL.",
        RuntimeWarning,
        stacklevel=1,
    )

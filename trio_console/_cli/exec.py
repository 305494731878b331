"""``exec``: runs one command in a relay's guest; its streams and its exit status are this program's."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
from contextlib import AsyncExitStack, asynccontextmanager
from typing import TYPE_CHECKING, Final, final

import trio

import trio_console
from trio_console._cli.failures import Failure, OutputError, first_of
from trio_console._cli.signals import act_by_default, caught, die_of
from trio_console._cli.standard import Output, read_stdin, say
from trio_console._trio.threads import NoThreadError

if TYPE_CHECKING:
    import argparse
    from collections.abc import AsyncIterator

__all__ = ["execute"]

#: Exit statuses that are not the command's own; shells and ``env`` use the same three, and ``cat`` the last.
_NOT_FOUND: Final = 127
_NOT_STARTED: Final = 126
_LOST: Final = 125
_NOT_WRITTEN: Final = 1

#: Seconds for the guest to answer behind a signal. Then a second signal counts as one too many.
_ANSWER_TIME: Final = 1.0

#: Seconds for which a reader that takes nothing is waited for, after the command was killed by a signal from here.
_READER_TIME: Final = 2.0


def execute(args: argparse.Namespace) -> int:
    """Run the command; returns the exit status, or ends this program by the signal that has ended the command."""
    status = 0
    act_by_default()
    try:
        status = trio.run(_run_command, args)
    except* OutputError as group:
        error = first_of(group)
        status = -signal.SIGPIPE if error.errno == errno.EPIPE else _NOT_WRITTEN
        if status > 0:
            say(error)
    except* Failure as group:
        failure = first_of(group)
        status = failure.status
        say(failure)
    except* NoThreadError as group:
        status = _LOST
        say(first_of(group))
    if status < 0:
        die_of(-status)
    return status


async def _run_command(args: argparse.Namespace) -> int:
    async with (
        _connected(args.relay, args.server_uid) as guest,
        _started(guest, args) as process,
        trio.open_nursery() as nursery,
    ):
        run = _Run(guest, process, nursery)
        with caught(run.pass_signal, die_of):
            nursery.start_soon(run.pass_stdin)
            status = await run.pass_output()
            nursery.cancel_scope.cancel()
    return status


@asynccontextmanager
async def _connected(path: str, server_uids: list[int] | None) -> AsyncIterator[trio_console.Guest]:
    async with AsyncExitStack() as stack:
        try:
            guest = await stack.enter_async_context(trio_console.connect_guest(path, server_uids=server_uids))
        except (OSError, ValueError, trio_console.GuestLostError, trio_console.ProtocolError) as exc:
            raise Failure(exc, _LOST) from exc
        yield guest


@asynccontextmanager
async def _started(
    guest: trio_console.Guest, args: argparse.Namespace
) -> AsyncIterator[trio_console.GuestProcess]:
    async with AsyncExitStack() as stack:
        try:
            process = await stack.enter_async_context(
                guest.open_process(
                    args.command,
                    stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE,
                    stderr=subprocess.PIPE,
                    env=dict(args.env),
                    cwd=args.cwd,
                    user=args.user,
                    tty=args.tty,
                )
            )
        except trio_console.GuestLostError as exc:
            raise Failure(exc, _LOST) from exc
        except OSError as exc:
            raise _not_started(exc, args.command[0]) from exc
        except (
            LookupError,
            ValueError,
            trio_console.ProtocolError,
            trio_console.UnsupportedByPeer,
        ) as exc:
            raise Failure(exc, _NOT_STARTED) from exc
        yield process


def _not_started(exc: OSError, command: str) -> Failure:
    if exc.filename not in (command, None):  # the only other file that is needed here
        return Failure(
            f"cannot enter the working directory {exc.filename!r}: {os.strerror(exc.errno or 0)}", _NOT_STARTED
        )
    return Failure(exc, _NOT_FOUND if isinstance(exc, FileNotFoundError) else _NOT_STARTED)


@final
class _Run:
    """A command that runs: its output, its input, and the signals for it.

    Args:
        nursery: for tasks that end with the command. It is open until `pass_output` has returned or raised.
    """

    def __init__(
        self, guest: trio_console.Guest, process: trio_console.GuestProcess, nursery: trio.Nursery
    ) -> None:
        self._guest: Final = guest
        self._process: Final = process
        self._nursery: Final = nursery
        self._token: Final = trio.lowlevel.current_trio_token()
        self._outputs: Final = (Output(1), Output(2))
        self._error: Exception | None = None  # the guest was lost, or a part of the output
        self._over = False  # the command has ended, in whatever way
        self._passed: set[int] = set()  # the signals that were passed on
        # The passed signals behind which the guest has not answered yet, in order: an event, and the time.
        self._unanswered: dict[trio.Event, float] = {}

    async def pass_output(self) -> int:
        """Pass on all output until its end, and return the command's status.

        Raises:
            Failure: the guest was lost. All output that had arrived was passed on.
            OutputError: output could not be written here.
        """
        assert self._process.stdout is not None, "a pipe was asked for"
        assert self._process.stderr is not None, "a pipe was asked for"
        status = 0
        try:
            async with trio.open_nursery() as streams:
                streams.start_soon(self._pass_stream, self._process.stdout, self._outputs[0])
                streams.start_soon(self._pass_stream, self._process.stderr, self._outputs[1])
                try:
                    status = await self._process.wait()
                except (trio_console.GuestLostError, trio_console.ProtocolError, ChildProcessError) as exc:
                    self._error = exc
                self._over = True
                if -status in self._passed:
                    self._nursery.start_soon(self._give_up_readers, streams.cancel_scope)
        finally:
            self._over = True  # from here on no signal uses the nursery
        if self._error is not None:
            raise Failure(self._error, _LOST) from self._error
        return status

    async def _pass_stream(self, stream: trio.abc.ReceiveStream, output: Output) -> None:
        try:
            async for data in stream:
                await output.write(bytes(data))
        except (trio.BrokenResourceError, trio_console.ProtocolError) as exc:
            self._error = self._error or exc

    async def _give_up_readers(self, streams: trio.CancelScope) -> None:
        """End the output when nobody has taken any of it for a time.

        On this machine a command that is killed while it waits for a reader is dead at once. Here its output is
        still on its way, so the reader has a moment to take it.
        """
        written = -1
        while written != (written := sum(output.written for output in self._outputs)):  # noqa: ASYNC110  (progress)
            await trio.sleep(_READER_TIME)
        if any(output.busy for output in self._outputs):
            say("the end of the output was dropped: nobody reads it, and the command was killed", patient=False)
        streams.cancel()

    async def pass_stdin(self) -> None:
        """Pass on this program's stdin, then end of file. A stdin that cannot be read counts as one at its end.

        Raises:
            Failure: an agent without credit has lost some of it.
        """
        assert self._process.stdin is not None, "a pipe was asked for"
        async with self._process.stdin as stdin:
            try:
                while data := await read_stdin():
                    await stdin.send_all(data)
            except OSError:
                pass
            except trio.BrokenResourceError as exc:  # the command does not read it, or has exited
                if isinstance(exc.__cause__, OSError) and exc.__cause__.errno == errno.ENOSPC:
                    raise Failure(exc, _LOST) from exc

    def pass_signal(self, number: int) -> None:
        """Pass a signal on to the command, or end this program if there is no command any more.

        It runs in a signal handler, so it leaves the rest to the event loop.
        """
        if self._over:
            die_of(number)
        self._process.send_signal(number)
        self._token.run_sync_soon(self._note_passed, number)

    def _note_passed(self, number: int) -> None:
        if self._over:
            return
        self._passed.add(number)
        if self._unanswered:
            self._nursery.start_soon(self._insist, number, *next(iter(self._unanswered.items())))
        answered = trio.Event()
        self._unanswered[answered] = trio.current_time()
        self._nursery.start_soon(self._ask, answered)

    async def _ask(self, answered: trio.Event) -> None:
        """Learn by a ping that the guest has got the signal: what it does to the command cannot be known."""
        try:
            await self._guest.ping()
        except trio_console.GuestLostError:
            return
        except (trio_console.UnsupportedByPeer, trio_console.ProtocolError):
            pass
        del self._unanswered[answered]
        answered.set()

    async def _insist(self, number: int, answered: trio.Event, since: float) -> None:
        """End this program by a second signal, unless the guest answers behind the first one in time."""
        with trio.move_on_at(since + _ANSWER_TIME):
            await answered.wait()
            return
        die_of(number)

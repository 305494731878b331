"""A guest, as its user sees it: trio's own calls, carried out in the guest."""

from __future__ import annotations

import errno
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import TYPE_CHECKING, Any, Final, TypeVar, final, overload

import trio

from trio_console import _wire as wire
from trio_console._errors import ProtocolError, again, system_error
from trio_console._session.connection import Connection, Question
from trio_console._session.files.names import name_of, plain_name
from trio_console._session.files.open import open_guest_file
from trio_console._session.files.operations import FileSystem
from trio_console._session.files.path import GuestPath
from trio_console._session.net.tcp import open_guest_tcp_stream
from trio_console._session.owner import Owner, owned
from trio_console._session.process.command import NOT_GIVEN, Command, target_of
from trio_console._session.process.life import Commands
from trio_console._session.process.process import GuestProcess
from trio_console._session.statistics import GuestStatistics
from trio_console._trio.interrupts import interrupt_safe
from trio_console._trio.lost import GuestLostError
from trio_console._trio.nursery import hidden_nursery

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
    from contextlib import AbstractAsyncContextManager

    from _typeshed import OpenBinaryMode, OpenTextMode

    from trio_console._console.stream import ConsoleStatistics
    from trio_console._machine.described import Machine
    from trio_console._session.confirmations import Confirmations
    from trio_console._session.files.file import GuestFile
    from trio_console._session.files.names import Name
    from trio_console._session.process.command import CommandLine, Input, Rlimits
    from trio_console._session.process.completed import CompletedProcess
    from trio_console._session.process.session import ProcessSession

__all__ = ["Guest", "GuestReady"]

_M = TypeVar("_M", bound=wire.Message)


@final
@dataclass(frozen=True, slots=True)
class GuestReady:
    """The contents of the agent's ready message.

    Attributes:
        boot_time_ns: the guest's boot clock when the agent began, in ns.
        init_time_ns: the time of the guest's initialisation, in ns.
        ready_time_ns: the guest's boot clock when the agent was ready, in ns.
        agent_version: the agent's version, for diagnostics; may be empty.
        generation: the generation of the protocol that the agent speaks.
    """

    boot_time_ns: int
    init_time_ns: int
    ready_time_ns: int
    agent_version: str
    generation: int


@final
@owned("open_process", "open_port", "fork")
class Guest:
    """A running guest, reached over a console. `open_guest`, `run_guest` and `connect_guest` make them.

    Any number of tasks of the same trio run may call all methods. From another thread or another run, all methods
    but `path` and `statistics` raise `RuntimeError` before they have done anything; signals are the exception, see
    `GuestProcess.send_signal`. Once the guest is lost, each call ends with `GuestLostError`, also a call that
    waits.

    Attributes:
        ready: what the agent said when it was ready, a `GuestReady`.
    """

    def __init__(
        self,
        connection: Connection,
        *,
        confirmations: Confirmations,
        force: Callable[[], None],
        console: Callable[[], ConsoleStatistics | None] = lambda: None,
        machine: Machine | None = None,
        open_port: Callable[[str], AbstractAsyncContextManager[trio.abc.Stream]] | None = None,
        fork: Callable[[int], AbstractAsyncContextManager[list[Guest]]] | None = None,
    ) -> None:
        self._owner: Final = Owner()
        self._connection = connection
        self._confirmations = confirmations
        self._commands: Final = Commands(connection, confirmations)
        self._force = force
        self._console = console
        self._machine = machine
        self._open_port = open_port
        self._fork = fork
        self._was_shut_down = False
        ready = connection.ready
        self._ready: Final = GuestReady(
            ready.boot_time_ns,
            ready.init_time_ns,
            ready.ready_time_ns,
            ready.agent_version,
            connection.peer_generation,
        )

    def __repr__(self) -> str:
        lost = self._connection.lost
        return f"<trio_console.Guest {'lost: ' + lost.reason if lost else 'running'}>"

    @property
    def ready(self) -> GuestReady:
        """What the agent said when it was ready: boot times, its version, the generation of the protocol."""
        return self._ready

    @property
    def machine(self) -> Machine | None:
        """The virtual machine that the guest is, as it was started; `None` if it is none, or is another
        program's."""
        return self._machine

    # Processes

    async def run_process(
        self,
        command: CommandLine,
        *,
        stdin: Input = b"",
        capture_stdout: bool = False,
        capture_stderr: bool = False,
        check: bool = True,
        deliver_cancel: Callable[[GuestProcess], Awaitable[object]] | None = None,
        stdout: int | None = NOT_GIVEN,
        stderr: int | None = NOT_GIVEN,
        shell: bool = False,
        env: Mapping[str, Name] | None = None,
        cwd: Name | None = None,
        user: str | int | None = None,
        rlimits: Rlimits | None = None,
        tty: bool = False,
        rows: int = 24,
        cols: int = 80,
        drain: float | None = 2.0,
        task_status: trio.TaskStatus[GuestProcess] = trio.TASK_STATUS_IGNORED,
    ) -> CompletedProcess:
        """Run a command in the guest, and wait for it, as `trio.run_process` does on this machine.

        Output that is not captured is written to this program's own stdout and stderr.

        What the command has started in the background lives on when it has exited, also if it holds the command's
        output; see ``drain``.

        If cancelled, the command is ended by ``deliver_cancel`` (by default with SIGTERM to its process group, and
        with SIGKILL if it still runs 5 seconds later), and then everything that it has started is killed. The call
        returns once the guest has confirmed the end; or, with a `RuntimeWarning`, when the grace of `open_guest`
        has passed after the last attempt (one grace for everything that a guest does not confirm).

        Args:
            command: a sequence of strings, bytes or paths, or one path; with ``shell``, one string. A `GuestPath`
                must be of this guest, also in ``env`` and ``cwd``. A name without a slash is looked up on the PATH
                of the command's own environment, in the guest.
            stdin: bytes for its input, by default none; ``subprocess.DEVNULL`` or `None` for no input;
                ``subprocess.PIPE`` only under ``nursery.start``.
            capture_stdout, capture_stderr: return the output in the result; by default not.
            check: raise if the command exits with another status than 0; by default true.
            deliver_cancel: async function that ends the process given to it; see `trio.run_process`. It is
                cancelled when the process has ended. If it returns before that, the process has the grace of
                `open_guest` to end by itself, and is then killed.
            stdout, stderr: in place of capturing: ``subprocess.DEVNULL``, or ``subprocess.PIPE`` under
                ``nursery.start``; for stderr also ``subprocess.STDOUT``. `None`, the default, copies it to this
                program's own.
            shell: run the command with ``/bin/sh -c``; by default not.
            env: variables that are set on top of the guest's own environment; by default none.
            cwd: working directory in the guest; by default the guest's.
            user: ``USER``, ``UID``, ``USER:GROUP`` or ``UID:GID`` to run as; by default the guest's.
            rlimits: a mapping from a resource's name (such as ``"nofile"``) to a limit or to a (soft, hard) pair;
                -1 is unlimited. By default the guest's.
            tty: give it a terminal, on which all output is stdout; by default not.
            rows, cols: size of the terminal in characters; by default 24 and 80.
            drain: seconds of silence after the command's exit, for which output that another process still holds
                is waited for: by default 2; `None` for its end, as `trio.run_process` does; 0 not at all. What was
                written before the exit always comes. After that the process writes into nothing, without an error,
                and ``output_open`` of the result is true. (An agent without this feature waits for the end.)
            task_status: under ``nursery.start``, returns the running `GuestProcess`.

        Returns:
            A `subprocess.CompletedProcess`, which also has ``output_open``.

        Raises:
            subprocess.CalledProcessError: ``check`` is true and the command exited with another status than 0. It
                also has ``output_open``.
            OSError: the command could not be started: the subclass for its errno, with ``.filename``.
            LookupError: the guest does not know the user or group.
            GuestLostError: the guest is gone. How the command ended is not known.
            ProtocolError: one side violated the protocol, which ended this command.
            UnsupportedByPeer: the agent takes too few bytes at a time for a terminal's input, or only words that
                are UTF-8. Nothing was sent.
            ChildProcessError: another process in the guest has taken the status of the command.
            TypeError, ValueError: an argument is not valid. Nothing was sent.
        """
        checked = Command(
            self._connection,
            command,
            stdin=stdin,
            stdout=target_of("stdout", stdout, capture_stdout),
            stderr=target_of("stderr", stderr, capture_stderr),
            capture_stdout=capture_stdout,
            capture_stderr=capture_stderr,
            shell=shell,
            env=env,
            cwd=cwd,
            user=user,
            rlimits=rlimits,
            tty=tty,
            rows=rows,
            cols=cols,
            drain=drain,
        )
        if task_status is trio.TASK_STATUS_IGNORED:
            checked.check_no_pipes()
        session: ProcessSession | None = None
        try:
            async with hidden_nursery() as nursery:
                session = await self._commands.start(checked, nursery, carried_through=True)
                process = GuestProcess(session)
                try:
                    task_status.started(process)
                    await session.wait_ended()
                    session.check()
                except BaseException:
                    if not session.ended:
                        session.discard_unclaimed_output()
                        # (It shields itself.)
                        await self._commands.deliver_cancel(session, process, deliver_cancel)  # noqa: ASYNC102
                    raise
        except BaseException:
            # Cancelled at the moment of its end, or while its output was still copied.
            if session is not None and session.error is None:
                with trio.CancelScope(shield=True):
                    await self._commands.end(session)
            raise
        if session.lost_output is not None:
            raise again(session.lost_output)
        return session.completed(check)

    @interrupt_safe
    @asynccontextmanager
    async def open_process(
        self,
        command: CommandLine,
        *,
        stdin: Input = None,
        stdout: int | None = None,
        stderr: int | None = None,
        shell: bool = False,
        env: Mapping[str, Name] | None = None,
        cwd: Name | None = None,
        user: str | int | None = None,
        rlimits: Rlimits | None = None,
        tty: bool = False,
        rows: int = 24,
        cols: int = 80,
    ) -> AsyncIterator[GuestProcess]:
        """Start a command in the guest, and yield the process.

        Leaving the block kills the process if it still runs, and everything that it has started. It returns once
        the guest has confirmed the end; or, with a `RuntimeWarning`, after the grace of `open_guest` (one grace
        for everything that a guest does not confirm). If the process has exited before, what it has started in
        the background lives on, with a working output that nobody reads; but if the block is left by an exception,
        also by a cancellation, that is killed, too.

        Each stream lives until its own end, or the block's, also after the process has exited.

        Args:
            command: as in `run_process`.
            stdin: ``subprocess.PIPE`` for a stream to write to; bytes for its input; ``subprocess.DEVNULL`` or
                `None`, the default, for no input (the guest cannot inherit this program's).
            stdout, stderr: ``subprocess.PIPE`` for a stream to read; ``subprocess.DEVNULL``; `None`, the default,
                to copy it to this program's own stdout and stderr. For stderr also ``subprocess.STDOUT``.
            shell, env, cwd, user, rlimits, tty, rows, cols: as in `run_process`.

        Raises:
            OSError: the command could not be started.
            GuestLostError, ProtocolError, UnsupportedByPeer, TypeError, ValueError: as in `run_process`.
        """
        checked = Command(
            self._connection,
            command,
            stdin=stdin,
            stdout=stdout,
            stderr=stderr,
            shell=shell,
            env=env,
            cwd=cwd,
            user=user,
            rlimits=rlimits,
            tty=tty,
            rows=rows,
            cols=cols,
        )
        session: ProcessSession | None = None
        try:
            async with hidden_nursery() as nursery:
                session = await self._commands.start(checked, nursery)
                try:
                    yield GuestProcess(session)
                    with trio.CancelScope(shield=True):
                        await self._commands.leave(session)
                finally:
                    with trio.CancelScope(shield=True):
                        await self._commands.end(session)
                    session.close_input()
                    # Output that the process wrote before its end is still copied, if our own output takes it. (If
                    # the block raised, that is cancelled.)
                    nursery.cancel_scope.deadline = trio.current_time() + self._confirmations.grace
        finally:
            if session is not None:
                session.close()

    # Files

    @overload
    async def open_file(
        self,
        file: Name,
        mode: OpenTextMode = "r",
        buffering: int = -1,
        encoding: str | None = None,
        errors: str | None = None,
        newline: str | None = None,
        closefd: bool = True,
        opener: None = None,
    ) -> GuestFile[str]: ...

    @overload
    async def open_file(
        self,
        file: Name,
        mode: OpenBinaryMode,
        buffering: int = -1,
        encoding: None = None,
        errors: None = None,
        newline: None = None,
        closefd: bool = True,
        opener: None = None,
    ) -> GuestFile[bytes]: ...

    @overload
    async def open_file(
        self,
        file: Name,
        mode: str,
        buffering: int = -1,
        encoding: str | None = None,
        errors: str | None = None,
        newline: str | None = None,
        closefd: bool = True,
        opener: None = None,
    ) -> GuestFile[Any]: ...

    async def open_file(
        self,
        file: Name,
        mode: str = "r",
        buffering: int = -1,
        encoding: str | None = None,
        errors: str | None = None,
        newline: str | None = None,
        closefd: bool = True,
        opener: None = None,
    ) -> GuestFile[Any]:
        """Open a file of the guest, as `trio.open_file` opens one of this machine.

        If cancelled, no file stays open, but one may have been created or truncated.

        Args:
            file: a path in the guest; a relative path is relative to the agent's working directory, mostly ``/``.
            mode: as in `open`; by default ``"r"``.
            buffering: bytes of the buffer, at most 64 KiB, which is also the default; 0 for no buffer (binary mode
                only); 1 to write out each line (text mode only).
            encoding: encoding of a text file; by default (and for ``"locale"``) UTF-8, whatever the locale of
                either side is.
            errors, newline: as in `open`; by default lines are written with the guest's line end, ``\\n``.
            closefd, opener: only the defaults are valid, because a guest shares no descriptors.

        Raises:
            OSError: the guest could not open it: the subclass for its errno, with ``.filename``.
            GuestLostError: the guest is gone.
            UnsupportedByPeer: the agent is too old for file operations, or for a name that is not UTF-8.
            TypeError, ValueError, LookupError: an argument is not valid. Nothing was sent.
        """
        fs = FileSystem(self._connection, self._confirmations)
        path = name_of(file, "path", self._connection)
        return await open_guest_file(fs, path, mode, buffering, encoding, errors, newline, closefd, opener)

    def path(self, path: Name) -> GuestPath:
        """Make a `GuestPath`, which is to the guest's files what `trio.Path` is to this machine's.

        Raises:
            TypeError: ``path`` is not a path.
            ValueError: ``path`` is a path of another guest.
        """
        pure = PurePosixPath(plain_name(path, "path", self._connection))
        return GuestPath(FileSystem(self._connection, self._confirmations), pure)

    # Network

    async def open_tcp_stream(self, host: str | bytes, port: int) -> trio.abc.HalfCloseableStream:
        """Connect to a TCP port as the guest sees it, as `trio.open_tcp_stream` does from this machine.

        If cancelled, the guest gives up connecting, or closes the connection.

        Args:
            host: a name, which the guest resolves, or an address.
            port: between 0 and 65535.

        Returns:
            A stream of bytes in both directions; its `aclose` never blocks.

        Raises:
            OSError: the guest could not connect: the subclass for its errno, such as `ConnectionRefusedError`
                or `TimeoutError`; `socket.gaierror` if it does not know the host.
            GuestLostError: the guest is gone.
            UnsupportedByPeer: the agent is too old for connections.
            TypeError, ValueError: an argument is not valid. Nothing was sent.
        """
        return await open_guest_tcp_stream(self._connection, host, port)

    # Ports

    @interrupt_safe
    @asynccontextmanager
    async def open_port(self, name: str) -> AsyncIterator[trio.abc.Stream]:
        """Open a further port of a `MicroVMGuest`, and yield a stream of bytes to and from the guest's program.

        The program opens ``/dev/virtio-ports/NAME``, before or after this, and may close it and open it again. A
        port has one stream here at a time, and one program there. What a port cannot do, a stream over it cannot:
        this side does not see that the program opens or closes it, and there is no `send_eof`, because the end of
        one direction is that of both. So the program sees the end of the block as an end of file, and what it has
        to say it must frame.

        Bytes wait until the program takes them, in either direction: a program that writes before this side has
        opened the port sleeps, and so it does while this side does not read. (Bytes that came to a program which
        closes the port without reading them are lost.) No other port waits for that, nor does the guest's agent.

        Leaving the block closes the port. Up to 5 seconds are waited for bytes that nobody in the guest has taken;
        then a `RuntimeWarning` says that they are dropped. If cancelled, they are dropped at once.

        It can be used by the program that has opened the guest, and not by clients of its relay.

        Args:
            name: one of the ``ports`` of the `MicroVMGuest`.

        Yields:
            The stream. Its methods raise `GuestLostError` once the machine has ended.

        Raises:
            LookupError: the guest has no port of that name.
            trio.BusyResourceError: the port is open already.
            GuestLostError: the guest is gone.
            trio.BrokenResourceError: QEMU does not connect it.
            ValueError: the guest is no `MicroVMGuest`, or this is a client of a relay.
        """
        if self._open_port is None:
            raise ValueError(
                f"port {name!r:.100}: only the program that has opened a MicroVMGuest can open its ports, "
                "and neither another kind of guest has any, nor a client of a relay"
            )
        async with self._open_port(name) as stream:
            yield stream

    # Copies

    @interrupt_safe
    @asynccontextmanager
    async def fork(self, n: int) -> AsyncIterator[list[Guest]]:
        """Copy the machine of a `MicroVMGuest`, as it is now, and yield the copies.

        Each has the processes, the memory and the files of this one, and goes on by itself. What runs in a session
        here has ended there: sessions are this guest's alone. What commands have left in the background runs on,
        such as a server or an interpreter that has imported all that it needs.

        Before anything is served there, a copy has got random bytes of this machine, the time, and names of its
        own, and commands that are started draw from these. But a process that was copied has what it drew before:
        seeds of its random numbers, keys, ids. And it runs some hundredths of a second until the copy is told.

        This guest pauses for some hundredths of a second, and its sessions notice nothing. A copy takes as much
        memory as this machine has changed since it was started, or has used of all. It has the environment, the
        user and the bootstrap of this guest, and may be forked, too.

        Leaving the block ends all copies, as leaving `open_guest` does. If cancelled before it is entered, nothing
        is left, and this guest goes on.

        Args:
            n: how many, at least 1.

        Yields:
            The guests, in no particular order.

        Raises:
            GuestLostError: this guest is gone, or a copy has not started; the message says why.
            OSError: QEMU could not save the machine.
            TypeError, ValueError: ``n`` is not valid; or the guest is no `MicroVMGuest`, has ``Root.HOST`` or
                shares, or this is a client of a relay. Nothing was done.
        """
        if isinstance(n, bool) or not isinstance(n, int):
            raise TypeError(f"the number of copies must be an int, not {n!r:.100}")
        if n < 1:
            raise ValueError(f"the number of copies must be at least 1, not {n}")
        if self._fork is None:
            raise ValueError(
                "only a MicroVMGuest can be forked, with Root.MINIMAL or a path for its root and without shares, "
                "and only by the program that has opened it"
            )
        self._connection.check_alive()
        async with self._fork(n) as guests:
            yield guests

    # Maintenance

    async def ping(self) -> float:
        """Send the agent a ping, and return the seconds until its answer.

        If cancelled, the ping has been sent all the same, and its answer is dropped.

        Raises:
            GuestLostError: the guest is gone.
            UnsupportedByPeer: the agent is too old for this message.
        """
        start = trio.current_time()
        await self._ask(wire.Ping(), wire.Pong)
        return trio.current_time() - start

    async def touch(self) -> int:
        """Count as activity, so that an idle guest is kept; return the agent's activity counter.

        If cancelled, it may have been counted or not.

        Raises:
            GuestLostError, UnsupportedByPeer: as in `ping`.
        """
        return (await self._ask(wire.Touch(), wire.Touched)).activity_seq

    async def _ask(self, request: wire.Message, expected: type[_M]) -> _M:
        await self._connection.wait_may_open()
        call = Question(self._connection.new_id())
        self._connection.open(call, request)
        # If cancelled, the id stays in use until the answer comes, which is then dropped.
        await call.done.wait()
        if call.error is not None:
            raise again(call.error)
        if isinstance(call.reply, expected):
            return call.reply
        name = wire.type_of(request).name
        if isinstance(call.reply, wire.Error):
            raise ProtocolError(f"the agent refused {name}: {call.reply.message}", kind=call.reply.kind)
        raise ProtocolError(f"the agent answered {name} with {call.reply!r}", kind="invalid_session")

    async def shutdown(self) -> None:
        """Shut the guest down, which ends its processes, and wait until it is gone.

        A guest that is not gone after the grace of `open_guest` is ended by force, where that is possible. Does
        nothing if the guest is gone already. If cancelled, the guest has been told to shut down all the same.

        Raises:
            PermissionError: the relay does not let this user shut the guest down; nothing has changed.
        """
        await trio.lowlevel.checkpoint()
        connection = self._connection
        if wire.SHUTDOWN in (connection.ready.features or ()):
            await self._ask_to_end()
        elif connection.lost is None:
            self._was_shut_down = True
            self._tell_to_end()
            try:
                with trio.move_on_at(self._confirmations.begin_last()):
                    await connection.wait_ended()
            except BaseException:
                connection.await_end_no_more()
                raise
            if connection.lost is None:
                self._force()
                note = self._confirmations.note()
                connection.lose(f"the guest did not shut down in time and was ended by force{note}")

    async def _ask_to_end(self) -> None:
        """Ask a relay that will not allow it to shut the guest down."""
        try:
            await self._ask(wire.Shutdown(), wire.Pong)
        except ProtocolError as exc:
            raise system_error(errno.EPERM, str(exc)) from None
        except GuestLostError:
            pass  # it has allowed it, or the guest has gone in between

    def _tell_to_end(self) -> None:
        """Tell the guest to shut down, behind all data that was sent; does not wait.

        (Data that the console does not take in time never arrives. Then the guest ends when its console does.)
        """
        if self._connection.lost is None:
            self._connection.expect_end("the guest was shut down")
            self._connection.leave()
            grace = wire.guest_grace(self._confirmations.peek() - trio.current_time())
            self._connection.send_behind(wire.Shutdown(grace), 0)

    async def wait_lost(self) -> GuestLostError:
        """Wait until the guest is gone, for whatever reason. If cancelled, nothing changes.

        Returns:
            The error with which calls of this guest end from then on: a new instance each time, which may be
            raised.
        """
        await trio.lowlevel.checkpoint()
        await self._connection.wait_ended()
        assert self._connection.lost is not None, "every session ends with a reason, and so does the connection"
        return again(self._connection.lost)

    def statistics(self) -> GuestStatistics:
        """The state of the sessions, and of the channel below them. Any thread may ask."""
        connection = self._connection
        return GuestStatistics(
            active_sessions=connection.active_sessions,
            sessions=connection.session_statistics(),
            frames_received=connection.frames_received,
            frames_dropped=connection.frames_dropped,
            bytes_discarded=connection.bytes_discarded,
            console=self._console(),
        )

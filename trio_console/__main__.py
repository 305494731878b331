"""The command line: ``trio-console relay ...`` and ``trio-console exec ...``, or ``python -m trio_console``."""

from __future__ import annotations

import argparse
import os
import resource
import select
import signal
import subprocess
import sys
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from typing import TYPE_CHECKING, NoReturn


def _open_standard_descriptors() -> None:
    """Open the null device for each standard descriptor that was closed when this program was started.

    Otherwise the next file opened would get that number, and this program's output would go into the file.
    """
    for fd in range(3):
        try:
            os.fstat(fd)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # gets the lowest free number, which is ``fd``


_open_standard_descriptors()  # before trio, whose import of ctypes opens a descriptor with some builds of libffi

import trio  # noqa: E402

import trio_console  # noqa: E402

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Sequence

#: Exit statuses of ``exec`` that are not the command's own; shells and ``env`` use the same.
_NOT_FOUND = 127
_NOT_STARTED = 126
_LOST = 125


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit status."""
    args = _parser().parse_args(argv)
    if args.what == "relay":
        return _relay(args)
    return _exec(args)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="trio-console", description="Share a guest, and use a shared one.")
    parser.add_argument("--version", action="version", version=f"trio_console {trio_console.__version__}")
    commands = parser.add_subparsers(dest="what", required=True, metavar="{relay,exec}")
    relay = commands.add_parser(
        "relay",
        help="boot a guest and serve it on a Unix socket",
        description="Boot a guest and serve it on a Unix socket, until SIGTERM, Ctrl-C or the guest's end. "
        "Prints 'ready PATH' once clients are served.",
    )
    relay.add_argument("--listen", required=True, metavar="PATH", help="where clients connect")
    relay.add_argument(
        "--console",
        metavar="SOCKET",
        help="the guest's raw console socket; without it, an agent in a child process",
    )
    relay.add_argument("--grace", type=float, default=5.0, metavar="SECONDS", help="for the teardown (default 5)")
    relay.add_argument("--ready-timeout", type=float, default=60.0, metavar="SECONDS", help="(default 60)")
    relay.add_argument(
        "--slow-client",
        choices=["cut", "pause", "drop"],
        default="cut",
        help="what to do with a client that does not read, if the guest's agent counts no credit (default cut)",
    )
    relay.add_argument("--session-log", metavar="FILE", help="record every command and its output, as JSON Lines")
    run = commands.add_parser(
        "exec",
        help="run one command in a relay's guest",
        description="Run one command in a relay's guest. Its stdin, stdout, stderr and exit status are this "
        "program's; 125 is a relay that cannot be reached or a lost guest, 126 a command that could not be "
        "started, 127 one that was not found.",
    )
    run.add_argument("--relay", required=True, metavar="PATH", help="the relay's socket")
    run.add_argument("--cwd", metavar="DIR", help="working directory in the guest")
    run.add_argument("--user", help="USER, UID, USER:GROUP or UID:GID")
    run.add_argument(
        "--env",
        action="append",
        default=[],
        type=_variable,
        metavar="NAME[=VALUE]",
        help="a variable; without a value it is passed on from this program's environment; may be repeated",
    )
    run.add_argument("--tty", action="store_true", help="give the command a terminal")
    run.add_argument("command", nargs="+", metavar="COMMAND", help="after --")
    return parser


def _variable(text: str) -> tuple[str, str]:
    name, equals, value = text.partition("=")
    if not equals:
        if name not in os.environ:
            raise argparse.ArgumentTypeError(f"{name!r} is not set here: give it a value, as {name}=VALUE")
        value = os.environ[name]
    return name, value


def _fail(message: object, status: int) -> int:
    print(f"trio_console: {message}", file=sys.stderr)
    return status


# relay


def _relay(args: argparse.Namespace) -> int:
    status = 0
    try:
        trio.run(_serve, args)
    except* (OSError, ValueError, trio_console.GuestLostError, trio_console.ProtocolError) as group:
        status = _fail(_first(group), 1)
    return status


async def _serve(args: argparse.Namespace) -> None:
    spec = trio_console.ProcessGuest() if args.console is None else trio_console.SocketGuest(args.console)
    with trio.open_signal_receiver(signal.SIGTERM, signal.SIGINT) as signals:
        async with trio.open_nursery() as nursery:

            async def watch() -> None:
                await anext(signals)
                nursery.cancel_scope.cancel()

            async def serve(task_status: trio.TaskStatus[trio_console.Relay]) -> None:
                await trio_console.serve_relay(
                    spec,
                    args.listen,
                    grace=args.grace,
                    ready_timeout=args.ready_timeout,
                    slow_client=args.slow_client,
                    session_log=args.session_log,
                    task_status=task_status,
                )
                nursery.cancel_scope.cancel()  # a client has shut the guest down

            nursery.start_soon(watch)
            relay = await nursery.start(serve)
            sys.stdout.write(f"ready {relay.path}\n")  # one write, also if the output is not buffered
            sys.stdout.flush()


# exec


def _exec(args: argparse.Namespace) -> int:
    status = 0
    try:
        status = trio.run(_run_command, args)
    except* KeyboardInterrupt:
        status = -signal.SIGINT
    except* BrokenPipeError:
        status = -signal.SIGPIPE  # the reader of our output has gone
    except* FileNotFoundError as group:
        status = _fail(_first(group), _NOT_FOUND)
    except* (trio_console.GuestLostError, _NoRelayError) as group:
        status = _fail(_first(group), _LOST)
    except* (OSError, ValueError, trio_console.ProtocolError) as group:
        status = _fail(_first(group), _NOT_STARTED)
    if status < 0:
        _die_of(-status)
    return status


def _first(group: BaseExceptionGroup[BaseException]) -> BaseException:
    exc: BaseException = group
    while isinstance(exc, BaseExceptionGroup):
        exc = exc.exceptions[0]
    return exc


def _die_of(number: int) -> NoReturn:
    """End this program by the signal that ended the command, so that its parent sees the same status."""
    if number not in (signal.SIGKILL, signal.SIGSTOP):
        signal.signal(number, signal.SIG_DFL)
    _, hard = resource.getrlimit(resource.RLIMIT_CORE)
    resource.setrlimit(resource.RLIMIT_CORE, (0, hard))  # a core dump of this program would be of no use
    os.kill(os.getpid(), number)
    sys.exit(128 + number)  # reached if the signal's default action is to do nothing


class _NoRelayError(Exception):
    """The relay cannot be used, so the command was not started."""


@asynccontextmanager
async def _connected(path: str) -> AsyncIterator[trio_console.Guest]:
    async with AsyncExitStack() as stack:
        try:
            guest = await stack.enter_async_context(trio_console.connect_guest(path))
        except (OSError, ValueError, trio_console.ProtocolError) as exc:
            raise _NoRelayError(exc) from exc
        yield guest


async def _run_command(args: argparse.Namespace) -> int:
    async with (
        _connected(args.relay) as guest,
        guest.open_process(
            args.command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env=dict(args.env),
            cwd=args.cwd,
            user=args.user,
            tty=args.tty,
        ) as process,
    ):
        assert process.stdout is not None, "a pipe was asked for"
        assert process.stderr is not None, "a pipe was asked for"
        with trio.open_signal_receiver(signal.SIGINT, signal.SIGTERM, signal.SIGHUP) as signals:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(_pass_stdin, process)
                nursery.start_soon(_pass_signals, signals, process)
                async with trio.open_nursery() as outputs:
                    outputs.start_soon(_pass_output, process.stdout, 1)
                    outputs.start_soon(_pass_output, process.stderr, 2)
                    status = await process.wait()
                nursery.cancel_scope.cancel()
    return status


async def _pass_signals(signals: AsyncIterator[int], process: trio_console.GuestProcess) -> None:
    async for number in signals:
        process.send_signal(number)


async def _pass_stdin(process: trio_console.GuestProcess) -> None:
    assert process.stdin is not None, "a pipe was asked for"
    async with process.stdin as stdin:
        # A stdin that cannot be read counts as one at end of file.
        with suppress(trio.BrokenResourceError, OSError):
            while data := await trio.to_thread.run_sync(_read_stdin, abandon_on_cancel=True):
                await stdin.send_all(data)


async def _pass_output(stream: trio.abc.ReceiveStream, fd: int) -> None:
    # If the guest is lost, process.wait() raises the error with the same reason.
    with suppress(trio.BrokenResourceError):
        async for data in stream:
            await trio.to_thread.run_sync(_write_all, fd, bytes(data), abandon_on_cancel=True)


def _read_stdin() -> bytes:
    while True:
        try:
            return os.read(0, 65536)
        except BlockingIOError:  # another process that shares our stdin has made it non-blocking
            select.select([0], [], [])


def _write_all(fd: int, data: bytes) -> None:
    view = memoryview(data)
    while view:
        try:
            view = view[os.write(fd, view) :]
        except BlockingIOError:
            select.select([], [fd], [])


if __name__ == "__main__":
    sys.exit(main())

"""The agent as a program: its arguments, signals and exit status; it also turns off a machine of its own.

Exit status: 0 after a shutdown, or when the console was closed; 1 if the host did not boot the agent properly, or
if the frames on the console cannot be told apart any more; 2 for wrong arguments; 3 if the agent refuses a setting
of the bootstrap.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import signal
from functools import partial
from typing import TYPE_CHECKING, Final

import trio

from trio_console._rank import go_first
from trio_console._standard import fill_standard_descriptors
from trio_console._trio.turns import keep_collections_short
from trio_console._version import __version__
from trio_console.agent._router import Ending, log
from trio_console.agent._serve import AgentOptions, serve_agent
from trio_console.agent._system.boot import EXIT_FAILED, BootError, BootTimes
from trio_console.agent._system.console import (
    accept_unix,
    accept_vsock,
    is_cooked,
    open_fd,
    open_port,
    open_stdio,
)
from trio_console.agent._system.environment import restore_environment
from trio_console.agent._system.machine import become_subreaper, flush_disks, power_off

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

__all__ = ["main", "prepare"]

#: Functions of `os` that are looked for at the start, so that no session fails later because one is missing.
_NEEDED: Final = ("killpg", "openpty", "preadv", "pwritev", "sendfile", "waitid")

#: What is added to the reason of a failed boot.
_COOKED: Final = (
    "; the console is a terminal, which may have changed what came before it was set to raw mode: start the agent "
    "without a terminal (ssh -T, docker exec -i without -t)"
)


#: The signals whose default would end or stop the agent, and that tell it nothing. (SIGTERM ends it in order,
#: SIGALRM is its own, and SIGXCPU is a limit. SIGTTIN and SIGTTOU are for the terminal that may be its console.)
_MEANINGLESS: Final = (
    *(signal.SIGHUP, signal.SIGINT, signal.SIGQUIT, signal.SIGUSR1, signal.SIGUSR2, signal.SIGVTALRM),
    *(signal.SIGPROF, signal.SIGPOLL, signal.SIGPWR, signal.SIGSTKFLT, signal.SIGTSTP),
    *range(signal.SIGRTMIN, signal.SIGRTMAX + 1),
)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the agent until it ends; return the exit status.

    As process 1 with a device or a vsock for its console, the agent is a machine's only program, and turns the
    machine off at the end: if process 1 only exited, the kernel would panic.
    """
    began = BootTimes.now()
    arguments = _parse(argv)
    if missing := _missing_names():
        log(
            f"this Python cannot run the agent: it has no {', '.join(missing)}, because it was built for another "
            "system or against a C library that is too old; run the agent with another Python"
        )
        return EXIT_FAILED
    is_init = os.getpid() == 1
    owns_machine = is_init and (arguments.port is not None or arguments.vsock is not None)
    restore_environment()
    note = _COOKED if arguments.stdio and (is_cooked(0) or is_cooked(1)) else ""
    fill_standard_descriptors()  # done already, unless another program has called this function
    options = AgentOptions(owns_process=True)
    prepare(owns_machine=owns_machine)
    return _run(partial(_open_console, arguments), options, began=began, note=note, owns_machine=owns_machine)


def prepare(*, owns_machine: bool = False) -> None:
    """Let this process be an agent from now on. (It takes a while where the processor is emulated.)

    Args:
        owns_machine: whether the machine is turned off when the agent's end takes too long.
    """
    _prepare_signals()
    signal.signal(signal.SIGALRM, lambda *_: _give_up(owns_machine=owns_machine))
    if os.getpid() != 1:
        _try_to_be_subreaper()
    keep_collections_short()
    go_first(for_parent=True)


def _run(
    open_console: Callable[[], trio.abc.Stream],
    options: AgentOptions,
    *,
    began: int,
    note: str = "",
    owns_machine: bool = False,
) -> int:
    """Run the agent as what this process is for, and was prepared for; return the exit status.

    Args:
        open_console: makes the stream to the host.
        options: how the agent behaves.
        began: when it began, in ns of the boot clock.
        note: is added to the reason of a failed boot.
        owns_machine: whether the machine is turned off at the end.
    """
    try:
        stream = open_console()
    except OSError as exc:
        log(f"cannot open the console: {exc}")
        return EXIT_FAILED
    try:
        return trio.run(_serve, stream, options, began, note)
    finally:
        if owns_machine:
            trio.run(flush_disks)
            power_off()


def _missing_names() -> list[str]:
    """The functions that the agent needs and that this Python does not have."""
    return [f"os.{name}" for name in _NEEDED if not hasattr(os, name)]


def _try_to_be_subreaper() -> None:
    try:
        become_subreaper()
    except OSError as exc:
        log(f"cannot adopt orphans, so processes that leave their session will outlive the agent: {exc.strerror}")


def _give_up(*, owns_machine: bool) -> None:
    if owns_machine:
        power_off()
    os._exit(EXIT_FAILED)


async def _serve(stream: trio.abc.Stream, options: AgentOptions, began: int, note: str) -> int:
    try:
        ending = await serve_agent(stream, options=options, boot_time_ns=began)
    except BootError as exc:
        log(f"{exc}{note}")
        return exc.exit_code
    return EXIT_FAILED if ending is Ending.OUT_OF_STEP else 0


def _parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="trio-console-agent", description="The guest's side of the agent protocol."
    )
    parser.add_argument("--version", action="version", version=f"trio_console {__version__}")
    console = parser.add_mutually_exclusive_group(required=True)
    console.add_argument("--stdio", action="store_true", help="use standard input and output")
    console.add_argument("--fd", type=int, metavar="N", help="use an inherited descriptor")
    console.add_argument("--port", metavar="PATH", help="open a console device")
    console.add_argument("--listen", metavar="PATH", help="wait for the host on a Unix socket, which is made")
    console.add_argument(
        "--vsock", type=int, metavar="PORT", help="wait for the host on a port of a machine's vsock"
    )
    return parser.parse_args(argv)


def _open_console(arguments: argparse.Namespace) -> trio.abc.Stream:
    if arguments.stdio:
        return open_stdio()
    if arguments.fd is not None:
        return open_fd(arguments.fd)
    if arguments.listen is not None:
        return accept_unix(arguments.listen)
    if arguments.vsock is not None:
        return accept_vsock(arguments.vsock)
    return open_port(arguments.port)


def _prepare_signals() -> None:
    """Let the agent ignore the signals that mean nothing to it, but let its children ignore none.

    Ctrl-C is meant for the host; and any command may signal the agent, its parent, which serves all others. An
    ignored signal stays ignored after exec, and a signal with a handler gets its default again. So each signal
    that the agent should ignore gets a handler that does nothing.
    """
    signal.pthread_sigmask(signal.SIG_SETMASK, ())
    for number in _MEANINGLESS:
        signal.signal(number, _do_nothing)
    for number in signal.valid_signals() - {signal.SIGPIPE, signal.SIGXFSZ, signal.SIGKILL, signal.SIGSTOP}:
        # (Python itself ignores the first two, and `subprocess` sets them back in the child.)
        if signal.getsignal(number) is signal.SIG_IGN:
            # If SIGCHLD were ignored, the kernel would reap the agent's children before the agent does.
            handler = signal.SIG_DFL if number == signal.SIGCHLD else _do_nothing
            with contextlib.suppress(OSError, ValueError):
                signal.signal(number, handler)


def _do_nothing(_number: int, _frame: object) -> None:
    pass

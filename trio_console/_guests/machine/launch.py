"""One start of a machine: QEMU as a process of ours, until the machine has greeted and was told its settings."""

from __future__ import annotations

import os
import secrets
import socket
import subprocess
from typing import TYPE_CHECKING, Final

import trio

from trio_console._forked import let_go_in_child, no_fork
from trio_console._guests.machine.qemu import command
from trio_console._guests.supervisor import TheirEnds, attend, beyond_standard, start
from trio_console._guests.warden import guarded
from trio_console._machine.welcome import GREETING
from trio_console._processes import GUEST_MARK
from trio_console._trio.sockets import enlarge_buffer

if TYPE_CHECKING:
    from collections.abc import Callable

    from trio_console._guests.machine.qemu import Plan
    from trio_console._guests.supervisor import Tail

__all__ = ["NotBootedError", "run_machine"]

#: Seconds between two looks at a machine that says nothing.
_LOOK: Final = 5.0

#: Seconds of processor time that a machine may use while it says nothing: an emulated one has started after three
#: to five of them, so it is in a loop. The time of this machine would not do, because it goes on while others have
#: its processors. And the least share of it that a machine uses which has not stopped.
_SILENT_WORK: Final = 15.0
_STOPPED: Final = 0.01


class NotBootedError(Exception):
    """A machine did not start; the message has the last that it and QEMU have said."""


@trio.lowlevel.enable_ki_protection
async def run_machine(
    plan: Plan, model: str, settings: Callable[[], bytes], hand_over: Callable[[socket.socket, Tail], None]
) -> None:
    """Start a machine, and return when it has ended; if cancelled, end it.

    Args:
        plan: what is started.
        model: QEMU's name for the kind of machine.
        settings: makes what the machine is told when it has greeted.
        hand_over: gets the machine's console when it was told.

    Raises:
        NotBootedError: it did not come so far.
        OSError: QEMU could not be started.
    """
    mark = secrets.token_hex(16)
    with no_fork():
        ours, theirs = map(let_go_in_child, socket.socketpair())
    with ours, theirs, beyond_standard(theirs) as theirs, TheirEnds() as ends, ends.error_pipe() as stderr:
        for end in (ours, theirs):
            enlarge_buffer(end)
        async with guarded(mark, whole=True) as guard:
            process = await start(
                command(plan, model, theirs.fileno()),
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=ends.numbers[0],
                pass_fds=(theirs.fileno(),),
                env={**os.environ, GUEST_MARK: mark},
                cwd="/",
            )
            guard(process.pid)
            theirs.close()
            ends.close()
            tails: list[Tail] = []

            @trio.lowlevel.enable_ki_protection
            async def tell() -> None:
                (tail,) = tails
                await _hear_greeting(ours, tail)
                await _say(ours, settings(), tail)
                hand_over(ours, tail)

            await attend(process, "QEMU", stderr, tails.append, tell)


async def _hear_greeting(sock: socket.socket, tail: Tail) -> None:
    left = len(GREETING)
    while left:
        await _wait_readable(sock, tail)
        try:
            data = sock.recv(left, socket.MSG_DONTWAIT)
        except BlockingIOError:
            continue
        except ConnectionResetError:
            data = b""
        if not data:
            raise NotBootedError(await tail.explain())
        left -= len(data)


async def _wait_readable(sock: socket.socket, tail: Tail) -> None:
    """Wait for bytes of a machine that works, or says something on its serial console."""
    heard, worked = tail.heard, _worked(tail.process.pid)
    while True:
        before = _worked(tail.process.pid)
        with trio.move_on_after(_LOOK):
            await trio.lowlevel.wait_readable(sock)
            return
        now = _worked(tail.process.pid)
        if heard != tail.heard:
            heard, worked = tail.heard, now
        elif now - before < _STOPPED * _LOOK:
            raise NotBootedError(f"it has stopped; {await tail.explain()}")
        elif now - worked >= _SILENT_WORK:
            raise NotBootedError(f"it said nothing in {now - worked:.0f} seconds of work; {await tail.explain()}")


def _worked(pid: int) -> float:
    """Seconds of processor time that a process has used; 0 of one that has gone."""
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:
            fields = file.read().rpartition(b")")[2].split()
    except OSError:
        return 0.0
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


async def _say(sock: socket.socket, data: bytes, tail: Tail) -> None:
    rest = memoryview(data)
    while rest:
        await trio.lowlevel.wait_writable(sock)
        try:
            rest = rest[sock.send(rest, socket.MSG_DONTWAIT | socket.MSG_NOSIGNAL) :]
        except BlockingIOError:
            continue
        except OSError as exc:
            raise NotBootedError(await tail.explain()) from exc

"""The warden: a small process that ends a program's guests on this machine when the program has died.

A program that is killed by SIGKILL runs no more code, and not all processes of its guests end by themselves: an
agent may be stopped, a command may not look at its input. The kernel's own means (``PR_SET_PDEATHSIG``) counts the
thread that has started a process as its parent, and trio starts processes in threads that end when they are idle.

One warden serves all guests of a trio run; `_guests.warden` starts it. It learns of a death by a pidfd of the
program, and by the end of a socket, and of guests by lines on that socket:

* ``+ MARK WHOLE``: a process with this mark in its environment is about to be started. If WHOLE is 1, all
  processes with the mark end with it.
* ``= MARK PID STARTED``: it runs, and leads a process group. STARTED tells it from a later process with its id.
* ``- MARK``: it has ended.

It imports no trio, runs for as long as a guest does, and then ends.
"""

from __future__ import annotations

import contextlib
import os
import select
import signal
import socket
import sys
import time
from typing import Final, final

from trio_console._processes import GUEST_MARK, Wanted, kill_processes, start_time

__all__ = ["main"]

#: Seconds for guests to end by themselves after the program's death: their consoles have ended with it.
_PATIENCE: Final = 0.5
_PAUSE: Final = 0.01

#: Seconds between two looks at the parent where there are no pidfds.
_LOOK: Final = 0.5

#: Signals for a whole cgroup or session, such as systemd sends, must not end the warden before the program.
_IGNORED: Final = (
    *(signal.SIGHUP, signal.SIGINT, signal.SIGQUIT, signal.SIGTERM),
    *(signal.SIGUSR1, signal.SIGUSR2, signal.SIGPIPE, signal.SIGALRM),
)


@final
class _Guest:
    """The process of a guest, as far as it is known."""

    def __init__(self, mark: str, *, whole: bool) -> None:
        self.mark: Final = mark
        self.whole: Final = whole
        self.pid: int | None = None
        self.started = ""

    @property
    def is_over(self) -> bool:
        """Whether its process has ended; of one whose number is not known that cannot be said."""
        if self.pid is None:
            return False
        return start_time(self.pid) != self.started if self.started else not _exists(self.pid)

    def kill(self) -> None:
        """Kill its process with the group that it leads, or all that carries the mark."""
        # (1 would stand for every process of the machine.)
        if self.pid is not None and self.pid > 1 and (not self.started or start_time(self.pid) == self.started):
            for kill in (os.killpg, os.kill):
                with contextlib.suppress(OSError):
                    kill(self.pid, signal.SIGKILL)
        if self.whole or self.pid is None:
            kill_processes(Wanted(GUEST_MARK, self.mark))


def _exists(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except OSError:
        return False
    return True


@final
class _Warden:
    def __init__(self, program: int, control: socket.socket) -> None:
        self._program: Final = program
        self._control: Final = control
        self._guests: dict[str, _Guest] = {}
        self._rest = b""

    def run(self) -> None:
        """Watch until the program has died or has closed its end, and then end the guests that are left."""
        self._control.setblocking(False)
        poller = select.poll()
        poller.register(self._control, select.POLLIN)
        pidfd = _pidfd_of(self._program)
        if pidfd is not None:
            poller.register(pidfd, select.POLLIN)
        while not self._is_orphan() and self._listen():
            poller.poll(None if pidfd is not None else _LOOK * 1000)
        self._listen()  # the last words of a program that has died
        self._end()

    def _is_orphan(self) -> bool:
        return os.getppid() != self._program

    def _listen(self) -> bool:
        """Read what the program has said by now; returns whether it may say more."""
        while True:
            try:
                data = self._control.recv(65536)
            except BlockingIOError:
                return True
            except OSError:
                return False
            if not data:
                return False
            *lines, self._rest = (self._rest + data).split(b"\n")
            for line in lines:
                self._note(line.decode())

    def _note(self, line: str) -> None:
        kind, mark, *rest = line.split(" ")
        if kind == "+":
            self._guests[mark] = _Guest(mark, whole=rest == ["1"])
        elif kind == "=":
            self._guests[mark].pid, self._guests[mark].started = int(rest[0]), rest[1]
        else:
            self._guests.pop(mark, None)

    def _end(self) -> None:
        guests = list(self._guests.values())
        deadline = time.monotonic() + _PATIENCE
        while not all(guest.is_over for guest in guests) and time.monotonic() < deadline:
            time.sleep(_PAUSE)
        for guest in guests:
            guest.kill()


def _pidfd_of(pid: int) -> int | None:
    with contextlib.suppress(AttributeError, OSError):  # an old C library, or a sandbox, has none
        return os.pidfd_open(pid)
    return None


def main() -> None:
    """The program: its arguments are the process id of the program that it serves, and its end of the socket."""
    program, control = map(int, sys.argv[1:])
    for number in _IGNORED:
        signal.signal(number, signal.SIG_IGN)
    _Warden(program, socket.socket(fileno=control)).run()

"""The system calls that the agent cannot do without, each tried once at its start.

A sandbox (seccomp) may refuse any call. An agent that noticed this later would be ready, and then fail in the
middle of a client's work, or hang: trio's loop, for example, would never be woken. So what is refused is named
before the host is answered. What only helps is not tried here; its users do without it.

This module must not know what the calls are for.
"""

from __future__ import annotations

import errno
import os
import select
import signal
import socket
import threading
import time
from contextlib import suppress
from typing import TYPE_CHECKING, Final, TypeVar, final

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["refused_calls", "say_refused"]

_T = TypeVar("_T")

#: The errors of a sandbox that forbids a call, or does not know it. Others, such as a lack of memory, may pass.
_REFUSED: Final = (errno.EPERM, errno.EACCES, errno.ENOSYS)

#: The C library returns what the kernel returns of the calls that cannot fail: a small negative number.
_LARGEST_ID: Final = 2**32 - 4096

#: The status of the child if it could not lead a session.
_NO_SESSION: Final = 2

#: Seconds that a thread may take to be gone on a busy machine. (It takes microseconds.)
_LONGEST_END: Final = 5.0


@final
class _Trial:
    def __init__(self) -> None:
        self.refused: list[str] = []

    def call(self, name: str, function: Callable[[], _T]) -> _T | None:
        """Call a function; `None` if it fails, and the name is noted if it was refused."""
        try:
            return function()
        except OSError as exc:
            if exc.errno in _REFUSED:
                self.refused.append(name)
            return None

    def check(self, name: str, *, good: bool) -> None:
        if not good:
            self.refused.append(name)


def refused_calls() -> list[str]:
    """The names of the system calls that the agent needs and that are refused; takes a few milliseconds.

    It forks, so it must be called before other threads are started.
    """
    if os.getpid() <= 0:
        return ["getpid"]  # without it nothing else is tried: signals would go to wrong processes
    trial = _Trial()
    trial.check("geteuid", good=0 <= os.geteuid() < _LARGEST_ID)
    trial.check("getegid", good=0 <= os.getegid() < _LARGEST_ID)
    _try_descriptors(trial)
    _try_wake_ups(trial)
    _try_processes(trial)
    _try_thread(trial)
    return trial.refused


def say_refused(calls: list[str]) -> None:
    """Say on stderr what is refused, and what to do."""
    text = (
        f"trio_console.agent: this system refuses what the agent needs: {', '.join(calls)}; allow these system "
        "calls in the sandbox (seccomp) that the agent runs in\n"
    ).encode()
    with suppress(OSError):
        if "write" in calls:
            os.writev(2, [text])
        else:
            os.write(2, text)


def _try_descriptors(trial: _Trial) -> None:
    null = os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC)
    try:
        trial.call("write", lambda: os.write(null, b"x"))
        trial.call("writev", lambda: os.writev(null, [b"x"]))
    finally:
        os.close(null)
    trial.call("poll", lambda: select.poll().poll(0))


def _try_wake_ups(trial: _Trial) -> None:
    """What trio's loop is woken with."""
    pair = trial.call("socketpair", socket.socketpair)
    if pair is None:
        return
    one, other = pair
    with one, other, select.epoll() as epoll:
        trial.call("setsockopt", lambda: one.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1))
        if trial.call("sendto", lambda: one.send(b"x")):
            trial.call("recvfrom", lambda: other.recv(1))
        trial.call("epoll_ctl", lambda: epoll.register(other, select.EPOLLIN))
        trial.call("epoll_wait", lambda: epoll.poll(0))


def _try_processes(trial: _Trial) -> None:
    """A child that leads a session, gets a signal, and is waited for."""
    pid = trial.call("clone", os.fork)
    if pid is None:
        return
    if not pid:
        _be_a_child()
    trial.call("kill", lambda: os.kill(pid, 0))  # no signal, to a child that was not reaped yet
    trial.call("waitid", lambda: os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT))
    _, status = os.waitpid(pid, 0)
    trial.check("rt_sigreturn", good=not os.WIFSIGNALED(status))
    trial.check("setsid", good=status != _NO_SESSION << 8)


def _be_a_child() -> None:
    status = _NO_SESSION
    try:
        os.setsid()
        status = 0
        signal.signal(signal.SIGUSR1, lambda *_: None)
        signal.raise_signal(signal.SIGUSR1)  # for this thread: a child without the call for a handler's end dies
    finally:
        os._exit(status)


def _try_thread(trial: _Trial) -> None:
    # It is not joined: that waits for the kernel's thread, since Python 3.13, and so for one that cannot end.
    ran = threading.Event()
    thread = threading.Thread(target=ran.set, name="trial", daemon=True)
    try:
        thread.start()
    except RuntimeError:  # it does not say why
        trial.refused.append("clone3 (or the number of threads is limited to this one)")
    else:
        ran.wait()
        trial.check("exit", good=_is_gone(thread))


def _is_gone(thread: threading.Thread) -> bool:
    """Whether a thread that has run has ended; one whose last call is refused repeats it for ever.

    Without ``/proc`` it is taken for granted.
    """
    deadline = time.monotonic() + _LONGEST_END
    while os.path.exists(f"/proc/self/task/{thread.native_id}"):
        if time.monotonic() > deadline:
            return False
        threading.Event().wait(0.001)  # which asks for no other call, unlike `time.sleep`
    return True

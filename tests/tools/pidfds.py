"""`os.pidfd_open` on every interpreter: one built against an old C library lacks it on any kernel."""

from __future__ import annotations

import ctypes
import os
import signal

__all__ = ["pidfd_open", "pidfd_send_signal"]

# The numbers of the calls, which are the same on every architecture.
_PIDFD_SEND_SIGNAL = 424
_PIDFD_OPEN = 434


def _syscall(number: int, *arguments: int) -> int:
    result: int = ctypes.CDLL(None, use_errno=True).syscall(*map(ctypes.c_long, (number, *arguments)))
    if result < 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))
    return result


def pidfd_open(pid: int) -> int:
    return os.pidfd_open(pid) if hasattr(os, "pidfd_open") else _syscall(_PIDFD_OPEN, pid, 0)


def pidfd_send_signal(pidfd: int, sig: int) -> None:
    if hasattr(signal, "pidfd_send_signal"):
        signal.pidfd_send_signal(pidfd, sig)
    else:
        _syscall(_PIDFD_SEND_SIGNAL, pidfd, sig, 0, 0)

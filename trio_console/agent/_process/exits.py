"""A descriptor that becomes readable when a child has ended: a pidfd, or a pipe on systems without one.

This module must not know sessions, and reaps no child.
"""

from __future__ import annotations

import contextlib
import errno
import os
import threading
from typing import Final

__all__ = ["open_exit_fd"]

#: The errors of a kernel or a sandbox that does not know ``pidfd_open(2)``. Other errors may pass.
_UNKNOWN_CALL: Final = (errno.ENOSYS, errno.EPERM, errno.EINVAL)


def open_exit_fd(pid: int) -> int:
    """Open a descriptor that becomes readable when a child ends, and stays readable. The caller closes it.

    It is a pidfd if the system has them. (An interpreter that was built against an old C library has no
    `os.pidfd_open`, and some sandboxes refuse it.) If not, a thread waits for the child, and then closes the other
    end of a pipe.

    Args:
        pid: the id of a child of this process that was not reaped yet.

    Raises:
        OSError: no descriptor or no thread is left.
    """
    if hasattr(os, "pidfd_open"):
        try:
            return os.pidfd_open(pid)
        except OSError as exc:
            if exc.errno not in _UNKNOWN_CALL:
                raise
    return _open_watched_pipe(pid)


def _open_watched_pipe(pid: int) -> int:
    reader, writer = os.pipe()
    try:
        _start_watching(pid, writer)
    except BaseException:
        os.close(reader)
        os.close(writer)
        raise
    return reader


def _start_watching(pid: int, writer: int) -> None:
    try:
        threading.Thread(target=_wait_and_close, args=(pid, writer), name="exit watcher", daemon=True).start()
    except RuntimeError as exc:  # Python raises this if no more threads can be started
        raise OSError(errno.EAGAIN, os.strerror(errno.EAGAIN)) from exc


def _wait_and_close(pid: int, writer: int) -> None:
    # The child stays a zombie, so that no other process gets its number. If the child was reaped before this
    # begins, no task looks at the pipe any more. If another child has got its number by then, this waits for that
    # child, which only costs a thread and a descriptor until it ends.
    with contextlib.suppress(ChildProcessError):
        os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)
    os.close(writer)

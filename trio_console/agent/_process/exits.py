"""A descriptor that tells when a child has ended, with or without the kernel's own.

This module must not know sessions, and reaps no child.
"""

from __future__ import annotations

import contextlib
import errno
import os
import threading
from typing import Final

__all__ = ["open_exit_fd"]

#: What a kernel or a sandbox says that does not know ``pidfd_open(2)``. Other errors are this moment's.
_UNKNOWN_CALL: Final = (errno.ENOSYS, errno.EPERM, errno.EINVAL)


def open_exit_fd(pid: int) -> int:
    """Open a descriptor that is readable from the moment on in which a child has ended. The caller closes it.

    A pidfd where there is one: an interpreter that was built against an old C library has no `os.pidfd_open`, and
    some sandboxes refuse it. There a thread waits for the child, and the descriptor is a pipe's that ends.

    Args:
        pid: the id of a child of this process that was not reaped yet.

    Raises:
        OSError: there is no descriptor or no thread to be had.
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
    except RuntimeError as exc:  # how Python says that there are no more threads
        raise OSError(errno.EAGAIN, os.strerror(errno.EAGAIN)) from exc


def _wait_and_close(pid: int, writer: int) -> None:
    # The child is left a zombie, so that its number stays its own. Should it have been reaped before this begins,
    # nobody looks at the pipe any more. Should its number be another child's by then, this waits for that one, and
    # costs a thread and a descriptor for as long.
    with contextlib.suppress(ChildProcessError):
        os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)
    os.close(writer)

"""From a plan to a running child: pipes or terminal, fork and exec.

All functions block for a moment, run in a worker thread, and use no trio object. The result is a `Child`, or a
`StartError` with the answer to send. `subprocess.Popen` makes the fork: without a user switch, limits or a
terminal it uses vfork, which is several times faster than copying the agent.

This module must not know when a child is started, nor what it is for.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import signal
import struct
import subprocess
import sys
import termios
import threading
import warnings
from typing import TYPE_CHECKING, Final, final

from trio_console import _wire as wire
from trio_console.agent._process.exits import open_exit_fd
from trio_console.agent._process.limits import Limit, apply_limit
from trio_console.agent._process.plan import ExecDefaults, Plan, make_plan
from trio_console.agent._process.users import Account, UnknownUserError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

__all__ = ["Child", "StartError", "os_error_text", "spawn"]

_KINDS: Final[dict[int, str]] = {
    errno.ENOENT: "not_found",
    errno.ENOTDIR: "bad_cwd",
    **dict.fromkeys((errno.EACCES, errno.EPERM), "permission_denied"),
    **dict.fromkeys((errno.ENOEXEC, errno.EISDIR, errno.ETXTBSY), "not_executable"),
    **dict.fromkeys((errno.E2BIG, errno.ELOOP, errno.ENAMETOOLONG, errno.EFAULT), "bad_args"),
    **dict.fromkeys((errno.EMFILE, errno.ENFILE, errno.EAGAIN), "resource_limit"),
    errno.ENOMEM: "out_of_memory",
}

# From Python 3.12 on, a fork in a program with threads warns. The child makes only two system calls before exec,
# and takes no lock that another thread could hold. Warning filters are global, so a lock guards their change.
_WARNS_AT_FORK: Final = sys.version_info >= (3, 12)
_filters_lock = threading.Lock()


class StartError(Exception):
    """A command could not be started; ``failure`` is the message that says why."""

    def __init__(self, failure: wire.ExecFailed) -> None:
        super().__init__(failure.message)
        self.failure = failure


def os_error_text(code: int) -> str:
    """The text of upstream's agent for an errno; clients show it as it is."""
    return f"{os.strerror(code)} (os error {code})"


# --- the child ------------------------------------------------------------------------------------


@final
class Child:
    """A process group's leader and the agent's ends of its pipes, or its terminal.

    The leader stays a zombie until `reap`. Until then its number, which is also the group's, cannot be another
    process's, so `kill_group` never hits a process of another session.

    ``stdin`` and the members of ``outputs`` are non-blocking; with a terminal all are one descriptor.
    """

    __slots__ = ("_fds", "_popen", "_reaped", "exit_fd", "on_reap", "outputs", "pid", "stdin", "tty")

    def __init__(self, popen: subprocess.Popen[bytes], exit_fd: int, ends: _Ends) -> None:
        self._popen = popen
        self._reaped = False
        #: Called with the pid once it may belong to another process.
        self.on_reap: Callable[[int], None] | None = None
        self.pid = popen.pid
        #: Readable once the leader has ended.
        self.exit_fd = exit_fd
        self.stdin = ends.stdin
        self.outputs = ends.outputs
        self.tty = ends.tty
        self._fds = {exit_fd, ends.stdin, *ends.outputs}

    def kill_group(self, number: int) -> None:
        """Send a signal to every process of the group that is left. Does nothing after `reap`."""
        if not self._reaped:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(self.pid, number)

    def resize(self, rows: int, cols: int) -> None:
        """Tell the terminal its size; does nothing without one."""
        if self.tty and self.stdin in self._fds:
            _set_size(self.stdin, rows, cols)

    def status(self) -> wire.ExecExited | None:
        """How the leader ended, or ``None`` while it runs. It stays a zombie."""
        result = os.waitid(os.P_PID, self.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT)
        if result is None:
            return None
        if result.si_code == os.CLD_EXITED:
            return wire.ExecExited(code=result.si_status)
        return wire.ExecExited(code=-1, signal=result.si_status)

    def close_stdin(self) -> None:
        """Close the pipe, so that the child reads end of file. Nobody may be waiting for it."""
        self._fds.discard(self.stdin)
        os.close(self.stdin)

    def reap(self) -> None:
        """Let go of the zombie and of all descriptors. Idempotent."""
        if not self._reaped:
            self._reaped = True
            # If it cannot be killed, it is left, and no task waits for it.
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            self._popen.returncode = os.waitstatus_to_exitcode(status) if pid else -signal.SIGKILL
            if self.on_reap is not None:
                self.on_reap(self.pid)
        while self._fds:
            os.close(self._fds.pop())


def _set_size(fd: int, rows: int, cols: int) -> None:
    fcntl.ioctl(fd, termios.TIOCSWINSZ, struct.pack("HHHH", rows, cols, 0, 0))


@final
class _Ends:
    """Both ends of a child's pipes or terminal; who is in the middle of failing closes them all."""

    __slots__ = ("child_side", "outputs", "stdin", "tty")

    def __init__(self, stdin: int, outputs: Sequence[int], child: Sequence[int], *, tty: bool) -> None:
        self.stdin = stdin
        self.outputs = tuple(outputs)
        self.child_side = tuple(child)
        self.tty = tty
        for fd in {stdin, *outputs}:
            os.set_blocking(fd, False)

    def close_child_side(self) -> None:
        for fd in set(self.child_side):
            os.close(fd)

    def close_own_side(self) -> None:
        for fd in {self.stdin, *self.outputs}:
            os.close(fd)


def _open_pipes() -> _Ends:
    with contextlib.ExitStack() as opened:

        def pipe() -> tuple[int, int]:
            ends = os.pipe()  # close-on-exec, as everything Python opens
            for fd in ends:
                opened.callback(os.close, fd)
            return ends

        (stdin, feed), (out, stdout), (err, stderr) = pipe(), pipe(), pipe()
        opened.pop_all()
    return _Ends(feed, (out, err), (stdin, stdout, stderr), tty=False)


def _open_terminal(rows: int, cols: int, account: Account | None) -> _Ends:
    master, slave = os.openpty()
    _set_size(slave, rows, cols)
    if account is not None:
        # As login(1) does: programs open their terminal by its name.
        with contextlib.suppress(OSError):
            os.fchown(slave, account.uid, -1)
    return _Ends(master, (master,), (slave, slave, slave), tty=True)


# --- starting -------------------------------------------------------------------------------------


@final
class _InChild:
    """Runs in the child between fork and exec, as the new user.

    An exception here reaches the parent without its errno, so that goes through a pipe of our own. (The
    pipe's ends are close-on-exec; a child that got as far as exec leaves nothing behind.)
    """

    __slots__ = ("_limits", "_report", "_tty")

    def __init__(self, limits: tuple[Limit, ...], report: int, *, tty: bool) -> None:
        self._limits = limits
        self._report = report
        self._tty = tty

    def __call__(self) -> None:
        try:
            if self._tty:
                fcntl.ioctl(0, termios.TIOCSCTTY, 0)
            for limit in self._limits:
                apply_limit(limit)
        except OSError as exc:
            os.write(self._report, str(exc.errno).encode())
            raise


def spawn(
    request: wire.ExecRequest,
    size: tuple[int, int],
    defaults: ExecDefaults,
    first_limits: tuple[Limit, ...] = (),
) -> Child:
    """Start what ``request`` asks for.

    Args:
        request: the request; its window is of no interest here.
        size: rows and columns of the terminal, which may have changed since the request.
        defaults: what holds for every command.
        first_limits: set in the child before all others.

    Raises:
        StartError: it could not be started; nothing is left behind.
    """
    try:
        plan = make_plan(request, defaults, first_limits)
    except UnknownUserError as exc:
        raise StartError(wire.ExecFailed(kind="other", message=str(exc))) from exc
    try:
        ends = _open_terminal(*size, plan.account) if request.tty else _open_pipes()
    except OSError as exc:
        kind = _kind(exc, "pty_setup_failed" if request.tty else "other")
        raise StartError(_failure(request, exc, kind=kind)) from exc
    try:
        return _start(plan, ends)
    except (OSError, ValueError) as exc:
        ends.close_own_side()
        raise StartError(_failure(request, exc, filename=_blamed(exc, plan))) from exc
    finally:
        ends.close_child_side()


def _start(plan: Plan, ends: _Ends) -> Child:
    _look_at_files(plan)
    popen = _fork(plan, ends)
    try:
        exit_fd = open_exit_fd(popen.pid)
    except BaseException:
        os.killpg(popen.pid, signal.SIGKILL)
        popen.wait()
        raise
    return Child(popen, exit_fd, ends)


def _look_at_files(plan: Plan) -> None:
    """Touch the files the child will touch first.

    The fork keeps the interpreter from running anything else until the child has entered the program. A
    file system that hangs should hang this call instead, which holds up this thread alone.
    """
    if not plan.argv[0]:
        raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), plan.argv[0])
    for path in (plan.cwd, plan.argv[0] if plan.argv[0].startswith(b"/") else None):
        if path is not None:
            with contextlib.suppress(OSError, ValueError):
                os.stat(path)


def _fork(plan: Plan, ends: _Ends) -> subprocess.Popen[bytes]:
    if not ends.tty and not plan.limits:
        return _popen(plan, ends, None)
    report, report_in_child = os.pipe()
    os.set_blocking(report, False)
    try:
        return _popen(plan, ends, _InChild(plan.limits, report_in_child, tty=ends.tty))
    except subprocess.SubprocessError:
        code = int(os.read(report, 16))
        raise OSError(code, os.strerror(code)) from None
    finally:
        os.close(report)
        os.close(report_in_child)


def _popen(plan: Plan, ends: _Ends, in_child: _InChild | None) -> subprocess.Popen[bytes]:
    stdin, stdout, stderr = ends.child_side
    account = plan.account
    with _quiet_fork() if in_child is not None else contextlib.nullcontext():
        # PATH is searched as the child has it, because the environment is passed explicitly.
        return subprocess.Popen(
            plan.argv,
            stdin=stdin,
            stdout=stdout,
            stderr=stderr,
            env=plan.env,
            cwd=plan.cwd,
            user=None if account is None else account.uid,
            group=None if account is None else account.gid,
            extra_groups=None if account is None else account.groups,
            start_new_session=True,
            preexec_fn=in_child,
        )


@contextlib.contextmanager
def _quiet_fork() -> Iterator[None]:
    if not _WARNS_AT_FORK:
        yield
        return
    with _filters_lock, warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        yield


# --- why it failed --------------------------------------------------------------------------------


def _blamed(exc: OSError | ValueError, plan: Plan) -> str | None:
    """The working directory, if it could not be entered."""
    if plan.cwd is None or not isinstance(exc, OSError) or exc.filename is not plan.cwd:
        return None
    # Before 3.12 or so a failed user switch is put down to the directory as well; chdir(2) never fails so.
    return None if exc.errno in (errno.EPERM, errno.EINVAL, errno.EAGAIN) else plan.cwd.decode()


def _kind(exc: OSError, otherwise: str = "other") -> str:
    return _KINDS.get(exc.errno or 0, otherwise)


def _failure(
    request: wire.ExecRequest,
    exc: OSError | ValueError,
    *,
    kind: str | None = None,
    filename: str | None = None,
) -> wire.ExecFailed:
    """The answer, worded as upstream words it: about the command, whichever file is to blame."""
    command = '"' + request.cmd.replace("\\", "\\\\").replace('"', '\\"') + '"'
    if not isinstance(exc, OSError) or exc.errno is None:
        # Of what came over the wire only a NUL gets here.
        text = "nul byte found in provided data" if "null" in str(exc) else str(exc)
        return wire.ExecFailed(kind="other", message=f"spawn {command}: {text}", stage=_stage(request, None))
    return wire.ExecFailed(
        kind=kind or _kind(exc),
        errno=exc.errno,
        errno_name=errno.errorcode.get(exc.errno),
        message=f"spawn {command}: {os_error_text(exc.errno)}",
        stage=_stage(request, exc.errno),
        filename=filename or request.cmd,
    )


def _stage(request: wire.ExecRequest, code: int | None) -> str:
    if not request.tty:
        return "Command::spawn"
    return "fork" if code in (errno.EAGAIN, errno.ENOMEM) else "execvp"

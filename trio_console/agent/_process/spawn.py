"""Starts a child from a plan: its pipes or its terminal, fork and exec.

All functions block for a moment, run in a thread beside trio, and use no trio object. The result is a `Child`, or
a `StartError` with the answer to the client. `subprocess.Popen` makes the fork: if the child needs no other user,
no limits and no terminal, it uses vfork, which is several times faster because it does not copy the agent.

This module must not know sessions.
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

import msgspec

from trio_console import _wire as wire
from trio_console._processes import COMMAND_MARK, Wanted, ticks
from trio_console.agent._process.exits import open_exit_fd
from trio_console.agent._process.limits import Limit, apply_limit
from trio_console.agent._process.plan import ExecDefaults, Plan, make_plan
from trio_console.agent._process.users import Account, UnknownUserError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

__all__ = ["Child", "StartError", "failure", "os_error_text", "spawn"]

_KINDS: Final[dict[int, str]] = {
    errno.ENOENT: "not_found",
    errno.ENOTDIR: "bad_cwd",
    **dict.fromkeys((errno.EACCES, errno.EPERM), "permission_denied"),
    **dict.fromkeys((errno.ENOEXEC, errno.EISDIR, errno.ETXTBSY), "not_executable"),
    **dict.fromkeys((errno.E2BIG, errno.ELOOP, errno.ENAMETOOLONG, errno.EFAULT), "bad_args"),
    **dict.fromkeys((errno.EMFILE, errno.ENFILE, errno.EAGAIN), "resource_limit"),
    errno.ENOMEM: "out_of_memory",
}

# From Python 3.12 on, a fork in a program with threads warns. The warning is ignored, because the child makes only
# two kinds of system calls before exec, and takes no lock that another thread could hold. The filters of warnings
# belong to the whole process, so a lock guards their change.
_WARNS_AT_FORK: Final = sys.version_info >= (3, 12)
_filters_lock = threading.Lock()


class StartError(Exception):
    """A command could not be started; ``failure`` is the message that says why."""

    def __init__(self, failure: wire.ExecFailed) -> None:
        super().__init__(failure.message)
        self.failure = failure


def os_error_text(code: int) -> str:
    """The text for an errno, as the agent of microsandbox writes it. Clients show it unchanged."""
    return f"{os.strerror(code)} (os error {code})"


# --- the child ------------------------------------------------------------------------------------


@final
class Child:
    """The leader of a process group, with the agent's ends of its pipes or its terminal.

    The leader stays a zombie until `reap`. Until then no other process can get its number, which is also the
    number of the group. So `kill_group` never hits a process of another session. Where another part of the program
    has reaped the leader, the number may be another's from the moment on at which it was last seen here.

    Args:
        popen: the leader.
        exit_fd: readable once the leader has ended.
        ends: the pipes, or the terminal. The child closes them in the end.
        mark: the beginning of the mark in the environment of everything that the command starts.
        since: when the start of the leader began, in `ticks`.

    ``stdin`` and the values of ``outputs``, which has the streams by their names, are non-blocking. With a
    terminal there is one output, ``stdout``, and its descriptor is also ``stdin``.
    """

    __slots__ = (
        "_fds",
        "_kept",
        "_mark",
        "_popen",
        "_reaped",
        "_seen",
        "exit_fd",
        "number",
        "on_reap",
        "outputs",
        "pid",
        "since",
        "stdin",
        "tty",
    )

    def __init__(self, popen: subprocess.Popen[bytes], exit_fd: int, ends: _Ends, mark: str, since: int) -> None:
        self._popen = popen
        popen.args = ()  # these may be long, and nothing reads them
        self._reaped = False  # or lost: the number may be another's
        self._seen = since  # when it was known last that the number is the leader's
        self._mark: Final = mark
        self.since: Final = since
        #: The number of the command, by which a client may name it.
        self.number = 0
        #: Called in `reap`, with the pid and until when it was the leader's, in `ticks`. After that it may belong
        #: to another process.
        self.on_reap: Callable[[int, int], None] | None = None
        self.pid = popen.pid
        #: Readable once the leader has ended.
        self.exit_fd = exit_fd
        self.stdin = ends.stdin
        self.outputs = ends.outputs
        self.tty = ends.tty
        self._kept = ends.kept
        self._fds = {exit_fd, *ends.own_side(), *ends.kept}

    def kill_group(self, number: int) -> None:
        """Send a signal to every process of the group. Does nothing once the leader was reaped, by whomever."""
        with contextlib.suppress(ChildProcessError, ProcessLookupError, PermissionError):
            self.status()  # it tells whether the number is still the leader's
            os.killpg(self.pid, number)

    def wanted(self) -> Wanted:
        """All processes of the command, for `kill_processes`."""
        reaped = self._seen if self._reaped else None
        return Wanted(COMMAND_MARK, self._mark, self.pid, reaped, since=self.since)

    def resize(self, rows: int, cols: int) -> None:
        """Set the size of the terminal; does nothing if there is none."""
        if self.tty and self.stdin is not None and self.stdin in self._fds:
            _set_size(self.stdin, rows, cols)

    def status(self) -> wire.ExecExited | None:
        """How the leader ended; ``None`` while it runs. After its end it stays a zombie.

        Raises:
            ChildProcessError: it was reaped by somebody else, so its status is lost.
        """
        if self._reaped:
            raise ChildProcessError(errno.ECHILD, os.strerror(errno.ECHILD))
        now = ticks()
        try:
            result = os.waitid(os.P_PID, self.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT)
        except ChildProcessError:
            self._reaped = True
            raise
        self._seen = now
        if result is None:
            return None
        if result.si_code == os.CLD_EXITED:
            return wire.ExecExited(code=result.si_status)
        assert result.si_status > 0, "a missing exit is never 0: what ended by a signal has the signal's number"
        return wire.ExecExited(code=-1, signal=result.si_status)

    def close_stdin(self) -> None:
        """Close the pipe, so that the child reads end of file. No task may be waiting for the pipe."""
        assert self.stdin in self._fds, "a descriptor is closed once"
        assert self.stdin not in self.outputs.values(), "a descriptor is never closed while another may use it"
        self._fds.discard(self.stdin)
        os.close(self.stdin)

    def let_go_of_terminal(self) -> None:
        """Close this process's hold on the child's side of its terminal; without one this does nothing.

        The hold keeps the terminal from ending while no process of the command has it open: another may open it.
        """
        for fd in self._kept:
            self._fds.discard(fd)
            os.close(fd)
        self._kept = ()

    def give_away(self, fd: int) -> int:
        """A descriptor with which another object reads an output, and which it closes."""
        assert fd in self._fds, "a descriptor has one owner"
        if fd == self.stdin:  # a terminal's
            return os.dup(fd)
        self._fds.discard(fd)
        return fd

    def reap(self) -> None:
        """Reap the leader, and close all descriptors. A second call does nothing."""
        if self._popen.returncode is None:
            # (If it cannot be killed, it has not ended yet; no task waits for it any more.)
            pid, status, now = 0, 0, ticks()
            if not self._reaped:
                try:
                    pid, status = os.waitpid(self.pid, os.WNOHANG)
                    self._seen = now
                except ChildProcessError:
                    pass
            self._reaped = True
            self._popen.returncode = os.waitstatus_to_exitcode(status) if pid else -signal.SIGKILL
            if self.on_reap is not None:
                self.on_reap(self.pid, self._seen)
        while self._fds:
            os.close(self._fds.pop())


def _set_size(fd: int, rows: int, cols: int) -> None:
    fcntl.ioctl(fd, termios.TIOCSWINSZ, struct.pack("HHHH", rows, cols, 0, 0))


@final
class _Ends:
    """Both ends of a child's pipes or terminal. If the start fails, its caller closes all of them."""

    __slots__ = ("child_side", "kept", "outputs", "stdin", "tty")

    def __init__(
        self, stdin: int | None, outputs: Mapping[wire.StreamName, int], child: Sequence[int], *, tty: bool
    ) -> None:
        self.stdin = stdin
        self.outputs = outputs
        self.child_side = tuple(child)
        self.tty = tty
        #: Of the child's side, what stays open here: a hold on the terminal.
        self.kept = self.child_side[:1] if tty else ()
        for fd in self.own_side():
            os.set_blocking(fd, False)

    def own_side(self) -> set[int]:
        ends = set(self.outputs.values())
        return ends if self.stdin is None else ends | {self.stdin}

    def close_child_side(self, *, failed: bool) -> None:
        for fd in set(self.child_side):
            if failed or fd not in self.kept:
                os.close(fd)

    def close_own_side(self) -> None:
        for fd in self.own_side():
            os.close(fd)


_PIPES: Final = wire.ExecStdio()


def _open_pipes(stdio: wire.ExecStdio, account: Account | None) -> _Ends:
    outputs: dict[wire.StreamName, int] = {}
    feed: int | None = None
    with contextlib.ExitStack() as opened:

        def keep(fd: int) -> int:
            opened.callback(os.close, fd)
            return fd

        def pipe() -> tuple[int, int]:
            reader, writer = os.pipe()  # close-on-exec, as everything Python opens
            _give(reader, account)  # one file, so the writer's owner is the same
            return keep(reader), keep(writer)

        if stdio.stdin == "null":
            stdin = keep(os.open(os.devnull, os.O_RDONLY | os.O_CLOEXEC))
        else:
            stdin, feed = pipe()
        if stdio.stdout == "null":
            stdout = keep(os.open(os.devnull, os.O_WRONLY | os.O_CLOEXEC))
        else:
            outputs["stdout"], stdout = pipe()
        if stdio.stderr == "null":
            stderr = keep(os.open(os.devnull, os.O_WRONLY | os.O_CLOEXEC))
        elif stdio.stderr == "stdout":
            stderr = stdout
        else:
            outputs["stderr"], stderr = pipe()
        opened.pop_all()
    return _Ends(feed, outputs, (stdin, stdout, stderr), tty=False)


def _open_terminal(rows: int, cols: int, account: Account | None) -> _Ends:
    master, slave = os.openpty()
    _set_size(slave, rows, cols)
    _give(slave, account)  # login(1) does the same
    return _Ends(master, {"stdout": master}, (slave, slave, slave), tty=True)


def _give(fd: int, account: Account | None) -> None:
    """Make the command's user the owner of a pipe or a terminal, which programs open by names like /dev/stdout."""
    if account is not None:
        with contextlib.suppress(OSError):
            os.fchown(fd, account.uid, -1)


# --- starting -------------------------------------------------------------------------------------


@final
class _InChild:
    """Runs in the child between fork and exec, as the new user.

    An exception here reaches the parent without its errno. So the errno goes through a pipe of our own, whose ends
    are closed by exec.

    Args:
        report: the pipe's writing end.
        cwd: a working directory to be entered by the new user.
    """

    __slots__ = ("_cwd", "_limits", "_report", "_tty")

    def __init__(self, limits: tuple[Limit, ...], report: int, cwd: bytes | None, *, tty: bool) -> None:
        self._limits = limits
        self._report = report
        self._cwd = cwd
        self._tty = tty

    def __call__(self) -> None:
        entering = self._cwd is not None
        try:
            if self._cwd is not None:
                os.chdir(self._cwd)
                entering = False
            if self._tty:
                fcntl.ioctl(0, termios.TIOCSCTTY, 0)
            for limit in self._limits:
                apply_limit(limit)
        except OSError as exc:
            os.write(self._report, b"%d %d" % (exc.errno or errno.EIO, entering))
            raise


def spawn(
    request: wire.ExecRequest,
    size: tuple[int, int],
    defaults: ExecDefaults,
    first_limits: tuple[Limit, ...] = (),
    mark: str = "",
) -> Child:
    """Start the command of a request.

    Args:
        request: the request; its window is not used here.
        size: rows and columns of the terminal, which may have changed since the request.
        defaults: the settings for all commands.
        first_limits: limits that are set in the child before all others.
        mark: the mark of everything that the command starts; see `_processes`.

    Raises:
        StartError: the command could not be started. No process and no descriptor is left.
    """
    try:
        request = _unpacked(request)
        plan = make_plan(request, defaults, first_limits, mark)
    except ValueError as exc:
        raise StartError(
            wire.ExecFailed(kind="bad_args", errno=errno.EINVAL, errno_name="EINVAL", message=str(exc))
        ) from exc
    except UnknownUserError as exc:
        raise StartError(wire.ExecFailed(kind="other", message=str(exc), stage=wire.USER_STAGE)) from exc
    try:
        ends = (
            _open_terminal(*size, plan.account)
            if request.tty
            else _open_pipes(request.stdio or _PIPES, plan.account)
        )
    except OSError as exc:
        kind = _kind(exc, "pty_setup_failed" if request.tty else "other")
        raise StartError(failure(request, exc, kind=kind)) from exc
    child: Child | None = None
    since = ticks()
    try:
        child = _start(plan, ends, mark, since)
    except (OSError, ValueError) as exc:
        ends.close_own_side()
        raise StartError(failure(request, exc, filename=_blamed(exc, plan))) from exc
    finally:
        ends.close_child_side(failed=child is None)
    return child


def _unpacked(request: wire.ExecRequest) -> wire.ExecRequest:
    """The request with its words as names; raises ValueError for a character that is no octet."""
    if request.octets is not True:
        return request
    return msgspec.structs.replace(
        request,
        cmd=wire.unpacked(request.cmd),
        args=[wire.unpacked(arg) for arg in request.args],
        env=[wire.unpacked(entry) for entry in request.env],
        cwd=None if request.cwd is None else wire.unpacked(request.cwd),
    )


def _start(plan: Plan, ends: _Ends, mark: str, since: int) -> Child:
    _look_at_files(plan)
    popen = _fork(plan, ends)
    try:
        exit_fd = open_exit_fd(popen.pid)
    except BaseException:
        os.killpg(popen.pid, signal.SIGKILL)
        popen.wait()
        raise
    return Child(popen, exit_fd, ends, mark, since)


def _look_at_files(plan: Plan) -> None:
    """Look at the files that the child will need first.

    The child closes the agent's descriptors behind its change of directory. While that hung, the ends of other
    sessions' pipes and connections would stay open in it. If a file system hangs, it must hang before the fork.
    """
    if not plan.argv[0]:
        raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), plan.argv[0])
    for path in (plan.cwd, plan.argv[0] if plan.argv[0].startswith(b"/") else None):
        if path is not None:
            with contextlib.suppress(OSError, ValueError):
                os.stat(path)


def _fork(plan: Plan, ends: _Ends) -> subprocess.Popen[bytes]:
    try:
        return _fork_in(plan, ends, plan.cwd)
    except PermissionError as exc:
        # A directory of the user may be closed even to root, such as one of a network file system.
        if plan.account is None or _blamed(exc, plan) is None:
            raise
        return _fork_in(plan, ends, None)


def _fork_in(plan: Plan, ends: _Ends, cwd: bytes | None) -> subprocess.Popen[bytes]:
    """Fork a child that enters ``cwd`` as the agent; with `None` it enters the plan's as its own user."""
    own_cwd = plan.cwd if cwd is None else None
    if not ends.tty and not plan.limits and own_cwd is None:
        return _popen(plan, ends, cwd, None)
    report, report_in_child = os.pipe()
    os.set_blocking(report, False)
    try:
        return _popen(plan, ends, cwd, _InChild(plan.limits, report_in_child, own_cwd, tty=ends.tty))
    except subprocess.SubprocessError:
        code, entering = map(int, os.read(report, 32).split())
        raise OSError(code, os.strerror(code), own_cwd if entering else None) from None
    finally:
        os.close(report)
        os.close(report_in_child)


def _popen(plan: Plan, ends: _Ends, cwd: bytes | None, in_child: _InChild | None) -> subprocess.Popen[bytes]:
    stdin, stdout, stderr = ends.child_side
    account = plan.account
    with _quiet_fork() if in_child is not None else contextlib.nullcontext():
        # The PATH that is searched is the child's, because the environment is passed explicitly.
        return subprocess.Popen(
            plan.argv,
            stdin=stdin,
            stdout=stdout,
            stderr=stderr,
            env=plan.env,
            cwd=cwd,
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
    # Older Pythons (up to about 3.11) name the directory also if the change of the user failed, with one of these
    # errors. They are not errors of chdir(2).
    return None if exc.errno in (errno.EPERM, errno.EINVAL, errno.EAGAIN) else wire.name_text(plan.cwd)


def _kind(exc: OSError, otherwise: str = "other") -> str:
    return _KINDS.get(exc.errno or 0, otherwise)


def failure(
    request: wire.ExecRequest,
    exc: OSError | ValueError,
    *,
    kind: str | None = None,
    filename: str | None = None,
) -> wire.ExecFailed:
    """The answer, in the words of the agent of microsandbox: it names the command, whichever file has failed."""
    command = '"' + wire.lossy(request.cmd).replace("\\", "\\\\").replace('"', '\\"') + '"'
    if not isinstance(exc, OSError) or exc.errno is None:
        # Of the values from the wire only a NUL in a text leads here.
        text = "nul byte found in provided data" if "null" in str(exc) else str(exc)
        return wire.ExecFailed(kind="other", message=f"spawn {command}: {text}", stage=_stage(request, None))
    return wire.ExecFailed(
        kind=kind or _kind(exc),
        errno=exc.errno,
        errno_name=errno.errorcode.get(exc.errno),
        message=f"spawn {command}: {os_error_text(exc.errno)}",
        stage=_stage(request, exc.errno),
        filename=(wire.packed if request.octets is True else wire.lossy)(
            request.cmd if filename is None else filename
        ),
    )


def _stage(request: wire.ExecRequest, code: int | None) -> str:
    if not request.tty:
        return "Command::spawn"
    return "fork" if code in (errno.EAGAIN, errno.ENOMEM) else "execvp"

"""The agent's actions on its machine: orphans, the clock, the power, the activity file.

Most of them are only for process 1 of a guest. An agent that is a child process on a shared machine leaves the
clock and the power alone.

This module must not know frames.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import time
from functools import partial
from typing import TYPE_CHECKING, Final, final

import msgspec
import trio

from trio_console._trio.threads import NoThreadError, in_thread

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator, Mapping

    from trio_console.agent._session import Activity

__all__ = [
    "ACTIVITY_DIR",
    "Leaders",
    "become_subreaper",
    "kill_remaining",
    "power_off",
    "reap_orphans",
    "set_clock",
    "write_activity",
]

ACTIVITY_DIR: Final = "/.msb"

_CLOCK_TOLERANCE_NS: Final = 100_000_000
_PR_SET_CHILD_SUBREAPER: Final = 36
_RB_POWER_OFF: Final = 0x4321FEDC

#: Seconds between a child's exit and the search for orphans: no session waits for them, and one search serves a
#: whole burst of exits.
_REAP_DELAY: Final = 0.5

#: Seconds after which a start is not waited for: it hangs before its fork, or in its exec, so it has no zombie.
_LONGEST_START: Final = 10.0

_KILL_POLL: Final = 0.005

_SYNC_GRACE: Final = 1.0


@final
class Leaders:
    """The children of sessions, which the sessions reap themselves.

    A child's number is known here only some time after its fork. So while any start runs (see `starting`), no
    process is reaped as an orphan.
    """

    __slots__ = ("_pids", "_settled", "_starting")

    def __init__(self) -> None:
        self._pids: set[int] = set()
        self._starting = 0
        self._settled = trio.Event()

    @contextlib.contextmanager
    def starting(self) -> Iterator[None]:
        """A context manager around a start, including its `add`."""
        self._starting += 1
        try:
            yield
        finally:
            self._starting -= 1
            if not self._starting:
                self._settled.set()

    async def wait_settled(self) -> None:
        """Wait until all leaders have been added; that stays true until the next checkpoint."""
        while self._starting:
            self._settled = trio.Event()
            await self._settled.wait()

    def add(self, pid: int) -> None:
        assert self._starting, (
            "a leader is added while its start runs: before that it could be reaped as an orphan"
        )
        self._pids.add(pid)

    def discard(self, pid: int) -> None:
        """Forget a leader, whose number may be another process's from now on."""
        assert pid in self._pids, "a leader is added before its session can reap it, and reaped once"
        self._pids.discard(pid)

    def __contains__(self, pid: int) -> bool:
        return pid in self._pids


# --- orphans --------------------------------------------------------------------------------------


def become_subreaper() -> None:
    """Make orphaned descendants children of this process, as they become children of process 1.

    So a daemon that has left its session's process group is still found, and ended with the guest.

    Raises:
        OSError: this system cannot do that.
    """
    _call_libc("prctl", _PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)


def _call_libc(name: str, *args: int) -> None:
    """Call a function of the C library that Python does not have."""
    if getattr(ctypes.CDLL(None, use_errno=True), name)(*args) != 0:
        code = ctypes.get_errno()
        raise OSError(code, f"{name}: {os.strerror(code)}")


async def reap_orphans(leaders: Leaders) -> None:
    """Reap children that belong to no session, for ever. Only in the main thread, and only one at a time.

    Between two searches SIGCHLD is not received: it comes at each exit of a command, and receiving it would take a
    good part of the time until the exit is reported.
    """
    while True:
        with trio.open_signal_receiver(signal.SIGCHLD) as exits:
            # The search comes after the receiver was opened, so each exit is either found here or signalled.
            with trio.move_on_after(_LONGEST_START):
                await leaders.wait_settled()
            # There is no checkpoint from here on, so no session can start or reap a leader in between.
            for pid, state in _children(leaders):
                if state == b"Z":
                    _reap(pid)
            await anext(exits)
        await trio.sleep(_REAP_DELAY)


async def kill_remaining() -> None:
    """Kill and reap all descendants, in rounds until there are none; the caller sets a deadline.

    The children of a killed process become children of this process, so one round is not enough.
    """
    while children := list(_children()):
        for pid, _ in children:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.kill(pid, signal.SIGKILL)
            _reap(pid)
        await trio.sleep(_KILL_POLL)


def _reap(pid: int) -> None:
    with contextlib.suppress(ChildProcessError):
        os.waitpid(pid, os.WNOHANG)


def _children(but: Leaders | Collection[int] = ()) -> Iterator[tuple[int, bytes]]:
    """Number and state letter of each child of this process ``but`` those; none where there is no ``/proc``."""
    own = str(os.getpid()).encode()
    listed = _listed_children()
    for pid in _all_processes() if listed is None else listed:
        if pid in but:
            continue
        with contextlib.suppress(OSError), open(f"/proc/{pid}/stat", "rb") as file:
            # The command's name, in parentheses, may hold anything; what follows may not.
            state, parent = file.read().rpartition(b")")[2].split(None, 2)[:2]
            if parent == own:
                yield pid, state


def _listed_children() -> set[int] | None:
    """The children of all threads, as the kernel lists them, if it does: `None` if it does not.

    (A search of all processes would hold up the loop, which makes a call or two for each of thousands.)

    The list is read twice: between the reads of two threads' lists a thread may end, and then its children are
    another thread's.
    """
    found: set[int] = set()
    own = str(os.getpid())
    try:
        for _ in range(2):
            for thread in os.listdir("/proc/self/task"):
                try:
                    with open(f"/proc/self/task/{thread}/children") as file:
                        found.update(map(int, file.read().split()))
                except (FileNotFoundError, ProcessLookupError):
                    if thread == own:
                        raise  # not because the thread has ended, but because this kernel keeps no such list
    except OSError:
        return None
    return found


def _all_processes() -> Iterator[int]:
    try:
        names = os.listdir("/proc")
    except OSError:
        return
    yield from (int(name) for name in names if name.isdigit())


# --- clock and power ------------------------------------------------------------------------------


def set_clock(unix_time_ns: int) -> bool:
    """Step the wall clock if it is off by more than 100 ms; return whether it was stepped.

    If this process may not do that, it is not an error: then another program keeps the clock.
    """
    if abs(time.time_ns() - unix_time_ns) <= _CLOCK_TOLERANCE_NS:
        return False
    try:
        time.clock_settime_ns(time.CLOCK_REALTIME, unix_time_ns)
    except (OSError, OverflowError):
        return False
    return True


async def flush_disks() -> None:
    """Write all data of the file systems to disk, for at most a second."""
    with trio.move_on_after(_SYNC_GRACE, shield=True):
        try:
            await in_thread("to flush the disks", os.sync, abandon=True)
        except NoThreadError:
            os.sync()  # it may take longer; SIGALRM ends that


def power_off() -> None:
    """Turn the machine off. Returns only if that is not allowed."""
    with contextlib.suppress(OSError):
        _call_libc("reboot", _RB_POWER_OFF)


# --- activity file ----------------------------------------------------------------------------------


async def write_activity(
    activity: Activity, sessions: Mapping[int, object], directory: str = ACTIVITY_DIR
) -> None:
    """Rewrite the activity file each second, for ever; return at once if its directory does not exist."""
    path = os.path.join(directory, "heartbeat.json")
    seq = 0
    while True:
        # A full or read-only disk must not stop the agent, and neither must the lack of a thread or a descriptor.
        with contextlib.suppress(OSError, NoThreadError):
            if not await in_thread("for the activity file", partial(os.path.isdir, directory)):
                return
            seq += 1
            text = msgspec.json.encode(_activity_record(seq, activity, sessions))
            await in_thread("for the activity file", partial(_replace_file, path, text))
        await trio.sleep(1)


def _activity_record(seq: int, activity: Activity, sessions: Mapping[int, object]) -> dict[str, object]:
    kinds = [getattr(session, "kind", "") for session in sessions.values()]
    return {
        "heartbeat_seq": seq,
        "activity_seq": activity.seq,
        "timestamp": _rfc3339(time.time()),
        "last_activity": _rfc3339(activity.last),
        "active_exec_sessions": kinds.count("exec"),
        "active_fs_streams": kinds.count("fs"),
        "active_tcp_streams": kinds.count("tcp"),
        "activity_counters": {
            "host_messages": activity.host_messages,
            "guest_messages": activity.guest_messages,
            "exec_output_bytes": activity.exec_output_bytes,
            "fs_bytes": activity.fs_bytes,
            "tcp_bytes": activity.tcp_bytes,
        },
    }


def _rfc3339(seconds: float) -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(seconds)) + f".{int(seconds % 1 * 1000):03}Z"


def _replace_file(path: str, data: bytes) -> None:
    """Replace the file at once: a reader sees the old file or the new one, and never half of one."""
    temporary = path + ".tmp"
    with open(temporary, "wb") as file:
        file.write(data)
    os.replace(temporary, path)

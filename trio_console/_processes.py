"""Finding and killing processes that nobody waits for, by a mark in their environment.

The background processes of a command are no children of its agent, and an agent's commands are no children of the
host: each may have a POSIX session of its own, and its parent may be gone. But each has inherited its environment,
and in it a mark that no other guest, and no other command, has.

All functions block, and read ``/proc``; on a system without it they find no process. If this process has no
descriptors or memory for a look, they raise `OSError`: then nothing is known, and the look has to be repeated. A
process can make a look hang in the kernel, because its environment is in its memory: see `Watch`.
"""

from __future__ import annotations

import enum
import errno
import os
import signal
import time
from contextlib import contextmanager
from typing import TYPE_CHECKING, Final, NamedTuple, final

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
    from collections.abc import Set as AbstractSet

__all__ = [
    "CLEAN_SCANS",
    "COMMAND_MARK",
    "GUEST_MARK",
    "Elders",
    "Leftovers",
    "Look",
    "Wanted",
    "Watch",
    "is_any_left",
    "kill_found",
    "kill_processes",
    "start_time",
    "ticks",
]

#: The environment variables that carry the marks of a guest, and of a command in it.
GUEST_MARK: Final = "TRIO_CONSOLE_GUEST"
COMMAND_MARK: Final = "TRIO_CONSOLE_COMMAND"

#: Scans in a row that must find no process. One is not enough: after ``/proc`` was listed, a listed process may
#: fork and end before it is checked, and its child is not in the list.
CLEAN_SCANS: Final = 2

#: The most seconds for all scans, by default. A process that was forked between two scans is found by the next.
#: Processes that fork faster than they can be killed for so long are a fork bomb, which needs other means. On a
#: busy machine a killed process may need this time to get a processor and die, and a process in an exec to finish
#: it.
MAX_TIME: Final = 1.0

#: The errors of a process that has no descriptors or memory for a look; they say nothing of the other process.
_LACKING: Final = (errno.EMFILE, errno.ENFILE, errno.ENOMEM)

#: In ``/proc/PID/stat``: states of processes that only wait to be reaped, and the flag of the kernel's own
#: threads.
_DEAD: Final = (b"Z", b"X")
_PF_KTHREAD: Final = 0x0020_0000

#: Behind the name there: the number of the field with the address of the environment, from 0.
_ENVIRONMENT_AT: Final = 47

#: Bytes that are more than a line of ``/proc/PID/stat`` has.
_LINE: Final = 4096

#: Seconds between scans while a killed process is still there.
_PAUSE: Final = 0.001


class Leftovers(NamedTuple):
    """The ids of the processes that were wanted.

    Attributes:
        killed: those that were sent SIGKILL.
        left: of those, the ones that were still there at the end, such as in an uninterruptible system call.
    """

    killed: frozenset[int]
    left: frozenset[int]


class Wanted(NamedTuple):
    """The processes to be found.

    Attributes:
        variable: the environment variable with the mark.
        mark: its value, or a part of it up to a dot: ``a.b.c.`` is wanted with ``a.b.`` and with ``a.``.
        leader: the id of a process: all of its POSIX session and process group are wanted, and all children of a
            wanted process; ``None`` for none of them.
        reaped: when the leader was reaped, in `ticks`; ``None`` if it was not. Its number may be another's since:
            then only the session is wanted, and only if a process in it is as old.
        members: the ids of processes that are wanted whatever they carry, with all their children; other ids in it
            count for nothing.
        since: when the first of them was started, in `ticks`; 0, the default, if that is not known. An older
            process that cannot be judged is none of them.
    """

    variable: str
    mark: str
    leader: int | None = None
    reaped: int | None = None
    members: frozenset[int] = frozenset()
    since: int = 0


@final
class Elders:
    """Processes that no scan need look at again: those older than all that is wanted, and the kernel's own.

    They are most of a machine's, and a scan that leaves them out takes less than half of the time. Each is known
    by its number and the inode of its directory in ``/proc``, which is told with the list of all. An inode is that
    of one process, for as long as that lives; the kernel may choose another in between, and then it is looked at.

    Scans of several threads may use it: each says what it has found to be so, and that stays so.

    Args:
        since: in `ticks`, when the first of what is wanted may have been started.
    """

    __slots__ = ("_known", "_since")

    def __init__(self, since: int) -> None:
        self._since: Final = since
        self._known: frozenset[tuple[int, int]] = frozenset()

    def others(self, listed: Collection[tuple[int, int]]) -> list[tuple[int, int]]:
        """The processes that have to be looked at, of all that there are: their numbers and inodes."""
        known = self._known = self._known.intersection(listed)
        return [each for each in listed if each not in known]

    def includes(self, process: _Process) -> bool:
        return process.is_the_kernels or int(process.started) < self._since

    def note(self, found: AbstractSet[tuple[int, int]]) -> None:
        """Note that these are among them."""
        self._known |= found


@final
class Watch:
    """What a scan reads from processes, for who waits for a scan in another thread.

    Args:
        avoided: processes whose memory is not read, each with its id and its start time.
        blind: whether no process's memory is read.
        elders: what need not be looked at, for who scans often; `None`, the default, for nothing.

    Attributes:
        at: the process whose memory is read now: a new object for each time; `None` between two. It is set by the
            scan alone.
    """

    __slots__ = ("at", "avoided", "blind", "elders")

    def __init__(
        self,
        avoided: AbstractSet[tuple[int, bytes]] = frozenset(),
        *,
        blind: bool = False,
        elders: Elders | None = None,
    ) -> None:
        self.avoided: Final = avoided
        self.blind = blind
        self.elders: Final = elders
        self.at: tuple[int, bytes] | None = None

    def hides(self, process: _Process) -> bool:
        """Whether the memory of a process is not read."""
        return self.blind or (process.pid, process.started) in self.avoided

    @contextmanager
    def reading(self, process: _Process) -> Iterator[None]:
        """In this block the memory of a process is read."""
        self.at = process.pid, process.started
        try:
            yield
        finally:
            self.at = None


class Look(NamedTuple):
    """What one scan has found of something that is wanted.

    Attributes:
        found: the ids of processes that were killed.
        unclear: the ids of all other processes that may be wanted and cannot be judged now, for this or for a
            longer time.
        living: since when each process runs that was looked at, and lives, by its id. One that was killed before
            may be among them and not be found any more: dead parents, or memory that is being freed, no longer
            tell whose it is. It starts no process any more. (Its number may be a younger one's by now.)
    """

    found: set[int]
    unclear: set[int]
    living: Mapping[int, bytes]

    def note_killed(self, killed: dict[int, bytes]) -> None:
        """Note what was found here among all that was killed, with its start time."""
        killed.update((pid, self.living[pid]) for pid in self.found)

    def left(self, killed: Mapping[int, bytes]) -> set[int]:
        """The ids of the processes that are still there, of those that were ``killed`` up to now."""
        return {pid for pid, started in killed.items() if self.living.get(pid) == started}

    def is_clean(self, killed: Mapping[int, bytes]) -> bool:
        """Whether no process can be wanted any more; what was found here was noted."""
        return not (self.unclear or self.left(killed))


class _Process(NamedTuple):
    """A line of ``/proc/PID/stat``, as far as it is of interest, and the open directory that it came from."""

    pid: int
    proc_fd: int
    state: bytes
    parent: int
    group: int
    session: int
    flags: int
    threads: int
    started: bytes  # since when it runs, in ticks: no two processes with the same id have the same

    @property
    def dead(self) -> bool:
        """Whether it has let go of everything. (A leader of threads may be a zombie before its last thread is.)"""
        return self.state in _DEAD and self.threads <= 1

    @property
    def is_the_kernels(self) -> bool:
        """Whether it is a thread of the kernel."""
        return bool(self.flags & _PF_KTHREAD)


def ticks() -> int:
    """Now, in the clock in which the kernel notes when a process has started.

    On a system without that clock it is earlier, by the time for which the machine has slept.
    """
    clock = getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC)
    return int(time.clock_gettime(clock) * os.sysconf("SC_CLK_TCK"))


def start_time(pid: int) -> str | None:
    """Since when a process runs, in ticks: no other process with its id has the same.

    It is `None` for a process that is dead or not there, and without ``/proc``.
    """
    for process in _processes([pid]):
        return None if process.dead else process.started.decode()
    return None


def kill_processes(wanted: Wanted, max_time: float = MAX_TIME) -> Leftovers:
    """Kill every process of this user that is wanted, and wait until they are gone.

    It takes about ``max_time`` seconds at most.
    """
    killed: dict[int, bytes] = {}
    left: set[int] = set()
    deadline = time.monotonic() + max_time
    clean = 0
    while clean < CLEAN_SCANS:
        try:
            [look] = kill_found([wanted])
        except OSError:
            clean = 0
        else:
            look.note_killed(killed)
            left = look.left(killed)
            clean = clean + 1 if look.is_clean(killed) else 0
        if time.monotonic() >= deadline:
            break
        if not clean:
            time.sleep(_PAUSE)
    return Leftovers(frozenset(killed), frozenset(left))


def kill_found(wanted: Sequence[Wanted], watch: Watch | None = None) -> list[Look]:
    """Kill the processes that are wanted, in one scan; returns what was found of each.

    With a watch, a process whose memory it hides is found by its group, session and parent alone.

    A process that is dead is not found. To be sure that no process is left, see `CLEAN_SCANS`.

    None is killed before all were looked at: when a process dies, its children lose their parent, by which they
    may have to be found.

    Parents are killed before their children. Otherwise a shell whose child was killed would go on with its next
    command, or exit with a status of its own, before it is killed too.
    """
    marks = {f"{each.variable}={each.mark}".encode(): number for number, each in enumerate(wanted)}
    variables = {f"{each.variable}=".encode() for each in wanted}
    leaders = {
        each.leader: number
        for number, each in enumerate(wanted)
        if each.leader is not None and each.reaped is None
    }
    found: list[set[int]] = [set() for _ in wanted]
    unknown: set[int] = set()
    living: dict[int, _Process] = {}
    watch = watch or Watch()
    members = frozenset[int]().union(*(each.members for each in wanted))
    for process in _processes(None, watch.elders, members):
        if process.dead:
            continue
        living[process.pid] = process
        environment, state = _look_into(process, watch)
        if state is not _Memory.CLEAR:
            unknown.add(process.pid)
        numbers = {leaders[pid] for pid in (process.pid, process.group, process.session) if pid in leaders}
        numbers |= {marks[mark] for mark in _marks(environment, variables) if mark in marks}
        for number in numbers:
            found[number].add(process.pid)
    for number, each in enumerate(wanted):
        found[number] |= each.members & living.keys()
        if each.leader is not None or each.members:
            found[number] |= _orphans(each, living)
            found[number] |= _descendants(found[number], living)
    for process in _processes(_parents_first(set().union(*found), living)):
        if process.started == living[process.pid].started:  # or else another process has got the number
            with _ended():
                _kill(process)
    started = {pid: process.started for pid, process in living.items()}
    looks = []
    for what, its in zip(wanted, found, strict=True):
        unclear = {pid for pid in unknown if int(started[pid]) >= what.since}
        looks.append(Look(its, unclear - its, started))
    return looks


def is_any_left(wanted: Wanted, watch: Watch | None = None) -> bool:
    """Whether a process lives that carries the mark or follows the leader, or one that cannot be judged now."""
    watch = watch or Watch()
    needle = f"{wanted.variable}={wanted.mark}".encode()
    for process in _processes(None, watch.elders, wanted.members):
        if not process.dead and process.pid != wanted.leader:
            with _ended():
                if _follows(process, wanted):
                    return True
                environment, state = _look_into(process, watch)
                if needle in _marks(environment, {f"{wanted.variable}=".encode()}):
                    return True
                if state in (_Memory.UNCLEAR, _Memory.HIDDEN) and int(process.started) >= wanted.since:
                    return True
    return False


def _follows(process: _Process, wanted: Wanted) -> bool:
    """Whether a process is of the group or the session of a leader."""
    if wanted.reaped is None:
        return wanted.leader in (process.group, process.session)
    return process.session == wanted.leader and int(process.started) <= wanted.reaped


class _Memory(enum.Enum):
    """What is known by the memory of a process."""

    CLEAR = enum.auto()
    UNCLEAR = enum.auto()  # it may have had the mark a moment ago, or have it in a moment
    HIDDEN = enum.auto()


def _look_into(process: _Process, watch: Watch) -> tuple[bytes, _Memory]:
    """The environment of a process, which may be empty, and what is known by it."""
    if watch.hides(process):
        return b"", _Memory.HIDDEN
    with watch.reading(process):
        environment = _environment(process)
        with _ended():
            if environment is not None and _is_unclear(process, environment):
                return environment, _Memory.UNCLEAR
        if environment == b"":  # an exec may have ended since it was read
            environment = _environment(process)
    return environment or b"", _Memory.CLEAR


def _environment(process: _Process) -> bytes | None:
    """The environment of a process; ``None`` if it is dying, and empty if it may not be read.

    A process may hold locks and descriptors until its memory is free, which takes long if it has much. From the
    moment at which that begins its environment is empty, or is refused by newer kernels. In an exec it is empty as
    well: the old memory is gone and the new not filled, which may last long on a busy machine. The arguments are
    empty too then, unlike those of a process that really has no environment.
    """
    try:
        return _read(process.proc_fd, "environ")
    except ProcessLookupError:
        return b"" if process.state in _DEAD else None
    except OSError as exc:
        if exc.errno in _LACKING:
            raise
        return b""


def _is_unclear(process: _Process, environment: bytes) -> bool:
    """Whether a process without the mark may have had it a moment ago, or have it in a moment."""
    return not environment and not _read(process.proc_fd, "cmdline") and _is_in_exec(process)


def _is_in_exec(process: _Process) -> bool:
    """Whether a process that shows neither environment nor arguments is in the middle of an exec.

    A process can take both away from itself, for ever and without any rights (PR_SET_MM_MAP of prctl(2)). It then
    has the two at an address, and one in an exec has none yet. (A kernel that does not tell says 0.)
    """
    fields = _read(process.proc_fd, "stat", _LINE).rpartition(b")")[2].split()
    return len(fields) <= _ENVIRONMENT_AT or fields[_ENVIRONMENT_AT] == b"0"


def _marks(environment: bytes, variables: set[bytes]) -> Iterator[bytes]:
    """The marks in a process's environment, each whole, and without its last parts."""
    environment = b"\0" + environment
    for variable in variables:
        start = environment.find(b"\0" + variable) + 1
        if start:
            mark = environment[start : environment.find(b"\0", start)]
            while mark:
                yield mark
                mark = mark[: mark.rfind(b".", 0, -1) + 1]


def _orphans(wanted: Wanted, living: Mapping[int, _Process]) -> set[int]:
    """The ids of the processes in the session of a leader that was reaped.

    While one of them lives, the kernel gives the leader's number to no other process. So the session is the
    leader's if one of it has lived since before the leader was reaped; or else it may have begun later.
    """
    if wanted.reaped is None or wanted.leader in living:
        return set()
    session = {pid: int(one.started) for pid, one in living.items() if one.session == wanted.leader}
    return set(session) if any(started <= wanted.reaped for started in session.values()) else set()


def _descendants(found: set[int], living: Mapping[int, _Process]) -> set[int]:
    """The ids of the processes that descend from those found.

    They may have cleared their environment and left the session.
    """
    more: set[int] = set()
    while fresh := {pid for pid, one in living.items() if one.parent in found | more} - found - more:
        more |= fresh
    return more


def _parents_first(pids: set[int], living: Mapping[int, _Process]) -> list[int]:
    def depth(pid: int) -> int:
        above: list[int] = []
        while pid in living and pid not in above:  # (what was read at different moments may form a ring)
            above.append(pid)
            pid = living[pid].parent
        return len(above)

    return sorted(pids, key=depth)


def _processes(
    only: Collection[int] | None = None, elders: Elders | None = None, members: AbstractSet[int] = frozenset()
) -> Iterator[_Process]:
    """All processes but this one and the kernel's threads. The descriptor of each is open until the next comes.

    Args:
        only: the numbers of the processes, if it is not all.
        elders: those that are left out of all, and learn of others like them; or `None`.
        members: the numbers of those that are not left out, whatever they are.
    """
    if only is not None:
        yield from _looked_at(only)
        return
    listed: list[tuple[int, int]] = []
    with _ended():
        listed = _listed()
    if elders is None:
        yield from _looked_at([pid for pid, _ in listed])
        return
    inodes = dict(elders.others(listed)) | {pid: inode for pid, inode in listed if pid in members}
    found: set[tuple[int, int]] = set()
    for process in _looked_at(inodes, with_kernel=True):
        if process.pid not in members and elders.includes(process):
            found.add((process.pid, inodes[process.pid]))
        elif not process.is_the_kernels:
            yield process
    elders.note(found)


def _listed() -> list[tuple[int, int]]:
    """The number of each process, and the inode of its directory."""
    with os.scandir("/proc") as entries:
        return [(int(entry.name), entry.inode()) for entry in entries if entry.name.isdigit()]


def _looked_at(pids: Iterable[int], *, with_kernel: bool = False) -> Iterator[_Process]:
    """Those of these processes that there are, but this one; see `_processes`."""
    own = os.getpid()
    for pid in pids:
        if pid == own:
            continue
        with _ended():
            fd = os.open(f"/proc/{pid}", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            try:
                process = _look(pid, fd)
                if with_kernel or not process.is_the_kernels:
                    yield process
            finally:
                os.close(fd)


@final
class _ended:  # noqa: N801  (used as a function)
    """In this block errors mean that the process has ended, or that there is no ``/proc``; others are raised.

    (Not a generator: an error that is thrown into one leads to the frame that throws it, and that to the error.)
    """

    __slots__ = ()

    def __enter__(self) -> None:
        pass

    def __exit__(self, _type: type[BaseException] | None, exc: BaseException | None, _traceback: object) -> bool:
        return isinstance(exc, OSError) and exc.errno not in _LACKING


def _look(pid: int, proc_fd: int) -> _Process:
    # The name, which is in parentheses, may hold any byte.
    fields = _read(proc_fd, "stat", _LINE).rpartition(b")")[2].split(None, 20)
    state, parent, group, session, _, _, flags = fields[:7]
    numbers = (int(parent), int(group), int(session), int(flags), int(fields[17]))
    return _Process(pid, proc_fd, state, *numbers, fields[19])


def _read(proc_fd: int, name: str, most: int | None = None) -> bytes:
    """A file of a process; if it has no more than ``most`` bytes, the kernel gives them all at once."""
    fd = os.open(name, os.O_RDONLY | os.O_CLOEXEC, dir_fd=proc_fd)
    try:
        if most is not None:
            return os.read(fd, most)
        parts = []
        while part := os.read(fd, 65536):
            parts.append(part)
    finally:
        os.close(fd)
    return b"".join(parts)


def _kill(process: _Process) -> None:
    pidfd = _open_pidfd(process.pid)
    if pidfd is not None:
        try:
            # Look again, through the directory that was opened before the pidfd: if the process of the directory
            # is still there, it has the number, and so the pidfd is its own. (If not, this raises
            # ProcessLookupError.)
            _look(process.pid, process.proc_fd)
            signal.pidfd_send_signal(pidfd, signal.SIGKILL)
        except OSError as exc:
            if exc.errno not in (errno.ENOSYS, errno.EPERM):
                raise
        else:
            return
        finally:
            os.close(pidfd)
    # Between this look and the signal another process could get the number. But that would take 32 thousand
    # process starts within microseconds.
    _look(process.pid, process.proc_fd)
    os.kill(process.pid, signal.SIGKILL)


def _open_pidfd(pid: int) -> int | None:
    """A pidfd; `None` if the kernel, a sandbox or the C library that Python was built with does not give one.

    Nor is there one for a process that has no more descriptors.
    """
    if not (hasattr(os, "pidfd_open") and hasattr(signal, "pidfd_send_signal")):
        return None
    try:
        return os.pidfd_open(pid)
    except OSError as exc:
        if exc.errno in (errno.ENOSYS, errno.EPERM, *_LACKING):
            return None
        raise

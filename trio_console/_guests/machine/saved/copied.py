"""What a machine has changed of its memory: read out of its QEMU, and put into that of a copy.

A machine's memory is its own as far as it has changed it: the rest are pages of a template, or nothing at all. It
is copied by the changed pages alone, which are few; the kernel tells which. QEMU writes the state of its devices
beside that. The machine is stopped meanwhile, so one that has changed much is not copied like this, but is written
by QEMU while it runs; so is one whose memory the kernel does not let this program read.

QEMU may have been taken over by its machine. So what it says is taken for a place in its own memory, whose bytes
are given to nobody but its copies.
"""

from __future__ import annotations

import os
import re
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Final, final

import trio

from trio_console._guests.machine.monitor import Monitor, MonitorError
from trio_console._guests.machine.saved.template import RESUME_TIME, save_state
from trio_console._trio.threads import in_thread

if TYPE_CHECKING:
    from collections.abc import Sequence

    from trio_console._guests.machine.launch import Started
    from trio_console._guests.machine.qemu import Memory

__all__ = ["Changes", "put_changes", "save_copy"]

#: Bytes of changed memory up to which a machine is stopped to be copied. It was stopped for 0.17 s for 110 MiB, on
#: a busy machine. And those up to which it stays stopped, if it has changed more until it was.
_MOST: Final = 64 * 2**20
_MOST_STOPPED: Final = 96 * 2**20

#: What the kernel tells of a page: eight bytes, and in the last of them whether it is there, whether it is swapped
#: out, and whether it is a file's. One that is there or swapped out, and no file's, is the process's own.
_ENTRY: Final = 8
_OWN: Final = re.compile(rb"[\x40-\x5f\x80-\x9f\xc0-\xdf]+")

#: (No address has more than 57 bits.)
_ADDRESS: Final = re.compile(r" is (0x[0-9a-f]{1,15})\b")


@final
@dataclass(frozen=True)
class Changes:
    """What a machine has changed of its memory.

    Attributes:
        memory: the memory with which a copy starts.
        runs: where these bytes lie in it: the offset and the length of each run.
        data: the bytes, one run after the other.
        inode: which file the memory lies in, if in any.
    """

    memory: Memory
    runs: Sequence[tuple[int, int]]
    data: bytearray
    inode: int | None


async def save_copy(machine: Started, size: int, state: int) -> Changes | None:
    """Write the state of a machine to a file, open as ``state``; it goes on after it.

    If cancelled, the file is of no use, and the machine goes on, too.

    Args:
        machine: the machine.
        size: of its memory, in bytes.
        state: the descriptor of an empty file.

    Returns:
        What is not in the file, or `None` if all of it is.

    Raises:
        MonitorError: QEMU has ended, or could not do it.
    """
    if machine.memory.path is None or machine.memory.private:
        # (What fails here may work as QEMU does it. If it has ended, that says so.)
        with suppress(MonitorError, OSError, ValueError):
            address = await _address(machine.monitor)
            look = partial(_look, machine, address, size)
            if (inode := await in_thread("to look at a machine's memory", look)) is not False:
                return await _save_changes(machine, address, size, inode, state)
        os.ftruncate(state, 0)
        os.lseek(state, 0, os.SEEK_SET)
    await save_state(machine.monitor, state, with_memory=True)
    return None


async def _save_changes(machine: Started, address: int, size: int, inode: int | None, state: int) -> Changes:
    monitor = machine.monitor
    try:
        await monitor.execute("stop")
        runs, data = await in_thread("to copy a machine's memory", partial(_read, machine.pid, address, size))
        await _save_devices(monitor, state)
    finally:
        with trio.move_on_after(RESUME_TIME, shield=True), suppress(MonitorError):  # it has ended
            await monitor.execute("cont")  # noqa: ASYNC102  (shielded)
    if not os.fstat(state).st_size:
        raise MonitorError("QEMU has written nothing")
    return Changes(replace(machine.memory, saved=True, apart=True), runs, data, inode)


async def _save_devices(monitor: Monitor, state: int) -> None:
    fd = os.open(f"/proc/self/fd/{state}", os.O_WRONLY | os.O_CLOEXEC)
    try:
        number = await monitor.lend(fd)
    finally:
        os.close(fd)
    try:
        # (Its name is the history's: there is nothing of Xen in it.)
        await monitor.execute("xen-save-devices-state", filename=f"/dev/fdset/{number}", live=False)
    finally:
        with trio.move_on_after(RESUME_TIME, shield=True), suppress(MonitorError):
            await monitor.execute("remove-fd", **{"fdset-id": number})  # noqa: ASYNC102  (shielded)


async def put_changes(machine: Started, size: int, changes: Changes) -> None:
    """Let a machine that was not loaded yet have the memory of the one of which it is a copy.

    Raises:
        MonitorError: QEMU has ended, or its memory is another.
        OSError: the kernel does not let us write there.
    """
    await machine.monitor.begin()
    # QEMU answers after this, so it is not the memory of another process that has got its number.
    memory = os.open(f"/proc/{machine.pid}/mem", os.O_RDWR | os.O_CLOEXEC)
    try:
        address = await _address(machine.monitor)
        write = partial(_write, machine.pid, memory, address, size, changes)
        if not await in_thread("to copy a machine's memory", write):
            raise MonitorError("the memory with which it has started is not that of the original")
    finally:
        os.close(memory)


async def _address(monitor: Monitor) -> int:
    """Where QEMU has the beginning of the machine's memory."""
    said = await monitor.execute("human-monitor-command", **{"command-line": "gpa2hva 0"})
    if (found := _ADDRESS.search(str(said))) is None:
        raise MonitorError(f"QEMU does not say where the memory is, but {said!r:.100}")
    return int(found[1], 16)


# --- in threads -----------------------------------------------------------------------------------


def _look(machine: Started, address: int, size: int) -> int | bool | None:
    """Which file the memory lies in; `False` if it cannot be copied, or only in too much time."""
    inode = None
    if (path := machine.memory.path) is not None:
        inode = _file_at(machine.pid, address, size)
        if inode != os.stat(path).st_ino:
            return False  # the template was removed, and perhaps made again
        with suppress(OSError):  # another user's
            os.utime(path.parent)  # so that it is kept for the copies
    with open(f"/proc/{machine.pid}/mem", "r+b", buffering=0):  # as it will be opened of the copy
        pass
    found = sum(length for _, length in _changed(machine.pid, address, size))
    return False if found > _MOST else inode


def _file_at(pid: int, address: int, size: int) -> int | None:
    """Which file a process has at an address, so many bytes of it."""
    wanted = f"{address:x}-{address + size:x}"
    with open(f"/proc/{pid}/maps", "rb") as file:
        for line in file:
            fields = line.split(None, 5)
            if fields[0].decode() == wanted:
                return int(fields[4])
    return None


def _changed(pid: int, address: int, size: int) -> list[tuple[int, int]]:
    """The offset and length of each run of pages that are a process's own."""
    page = os.sysconf("SC_PAGE_SIZE")
    entries = b""
    with open(f"/proc/{pid}/pagemap", "rb", buffering=0) as file:
        while len(entries) < size // page * _ENTRY:
            at = address // page * _ENTRY + len(entries)
            if not (read := os.pread(file.fileno(), size // page * _ENTRY - len(entries), at)):
                raise OSError("the kernel does not tell of all pages")
            entries += read
    runs = map(re.Match[bytes].span, _OWN.finditer(entries[_ENTRY - 1 :: _ENTRY]))
    return [(start * page, (end - start) * page) for start, end in runs]


def _read(pid: int, address: int, size: int) -> tuple[list[tuple[int, int]], bytearray]:
    runs = _changed(pid, address, size)
    if (length := sum(length for _, length in runs)) > _MOST_STOPPED:
        raise OSError(f"the machine has changed {length} bytes of its memory")
    data = bytearray(length)
    with open(f"/proc/{pid}/mem", "rb", buffering=0) as file:
        rest = memoryview(data)
        for offset, length in runs:
            _all(partial(os.preadv, file.fileno()), rest[:length], address + offset)
            rest = rest[length:]
    return runs, data


def _write(pid: int, memory: int, address: int, size: int, changes: Changes) -> bool:
    if changes.inode is not None and _file_at(pid, address, size) != changes.inode:
        return False
    rest = memoryview(changes.data)
    for offset, length in changes.runs:
        _all(partial(os.pwritev, memory), rest[:length], address + offset)
        rest = rest[length:]
    return True


def _all(move: partial[int], part: memoryview, at: int) -> None:
    """Read or write all of a part, which the kernel may do in pieces."""
    while part:
        if not (moved := move([part], at)):
            raise OSError("the process has ended")
        part, at = part[moved:], at + moved

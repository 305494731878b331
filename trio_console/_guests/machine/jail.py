"""The jail around QEMU: bubblewrap gives it namespaces of its own, and no file of this machine but what it needs.

Whatever a machine has made of its QEMU finds no other file or process of this machine there, no network and no
environment. QEMU's own files lie where they do on this machine, because it looks for them there, and all that
belongs to one machine in a directory of the jail. So nothing that a user names can cover a file of QEMU's.

This module must not know how processes are started.
"""

from __future__ import annotations

import errno
import json
import os
import re
import subprocess
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import partial
from glob import escape, glob
from pathlib import Path
from typing import TYPE_CHECKING, Final, Literal, TypeAlias, final

from trio_console._guests.machine.accelerator import start_of_this_machine
from trio_console._guests.machine.stock.cache import by_thread, kept, key_of, stamp
from trio_console._guests.machine.stock.initramfs import libraries_of
from trio_console._guests.namespaces.advice import advised, find_bwrap
from trio_console._guests.namespaces.layout import NAMESPACES
from trio_console._processes import GUEST_MARK

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from trio_console._guests.machine.qemu import Memory, Plan

__all__ = [
    "JAILS",
    "Bubblewrap",
    "Jail",
    "check_jail",
    "find_bubblewrap",
    "find_jail",
    "in_jail",
    "jailed",
    "memory_in_jail",
]

#: What is to be around QEMU.
Jail: TypeAlias = Literal["auto", "seccomp", "bwrap", "none"]

#: The kind of the answers in the cache.
JAILS: Final = "jails"
_ANSWER: Final = "answer"

#: Where the files of one machine lie.
_PLACE: Final = Path("/machine")

_KVM: Final = "/dev/kvm"

_LIBRARIES: Final = "/etc/ld.so.cache"

#: A machine that does nothing, and is told to end. It needs the firmware and the emulation, which may be a module.
_ENDING_MACHINE: Final = (
    *("-nodefaults", "-no-user-config", "-display", "none", "-M", "microvm", "-accel", "tcg"),
    *("-S", "-monitor", "stdio"),
)

#: Seconds for programs that only say something of themselves.
_TIME: Final = 30.0

_DOES_NOT_WORK: Final = (FileNotFoundError, PermissionError, subprocess.TimeoutExpired)

#: From this version on, QEMU can have memory of its own that begins as a file which it may only read.
_READS_ONLY: Final = (8, 2)


def check_jail(jail: Jail) -> Jail:
    """Raise if ``jail`` is none of the four words; return it."""
    if jail not in ("auto", "seccomp", "bwrap", "none"):
        raise ValueError(f'jail must be "auto", "seccomp", "bwrap" or "none", not {jail!r:.100}')
    return jail


@final
@dataclass(frozen=True)
class Bubblewrap:
    """What is known of bubblewrap and QEMU, once it was seen that one runs in the other.

    Attributes:
        program: bubblewrap's path.
        files: all files and directories that QEMU needs for itself.
        reads_only: whether it can do with templates that it may only read.
    """

    program: str
    files: tuple[str, ...]
    reads_only: bool


async def find_jail(wanted: Jail, qemu: str) -> Bubblewrap | None:
    """What is to be around a QEMU beside its own filter.

    Raises:
        FileNotFoundError, PermissionError: as `find_bubblewrap`, if nothing else will do.
    """
    if wanted in ("seccomp", "none"):
        return None
    found: Bubblewrap | None = None
    with suppress(*(_DOES_NOT_WORK if wanted == "auto" else ())):
        found = await find_bubblewrap(qemu)
    return found


async def find_bubblewrap(qemu: str) -> Bubblewrap:
    """The jail for a QEMU. It is tried once after each start of this machine, because that takes 0.2 seconds.

    Raises:
        FileNotFoundError: bubblewrap is not installed.
        PermissionError: it does not work for this user. The message says what would help.
        subprocess.TimeoutExpired: QEMU does not answer.
    """
    program = find_bwrap()
    place = await kept(JAILS, _key(program, qemu), by_thread(partial(_try, program, qemu)))
    files, reads_only = json.loads((place / _ANSWER).read_text())
    return Bubblewrap(program, tuple(files), reads_only)


def _key(program: str, qemu: str) -> str:
    """A name for all that an answer depends on, but for settings of the kernel that are changed later."""
    libraries = stamp(_LIBRARIES) if os.path.exists(_LIBRARIES) else ()
    return key_of(stamp(__file__), stamp(program), stamp(qemu), libraries, start_of_this_machine(), os.geteuid())


def _try(program: str, qemu: str, place: Path) -> None:
    """Let QEMU make a machine in a jail and end it again, and write down what it needs for that."""
    everything = [program, *NAMESPACES, "--ro-bind", "/", "/", "--proc", "/proc", "--remount-ro", "/proc", "--"]
    _run([*everything, qemu, "--version"])  # so that what fails does so soon
    files = _files_of(qemu)
    said = _run([program, *_system(files), "--", qemu, *_ENDING_MACHINE])
    version = re.search(r"QEMU (\d+)\.(\d+)", said)
    reads_only = version is not None and (int(version[1]), int(version[2])) >= _READS_ONLY
    (place / _ANSWER).write_text(json.dumps([files, reads_only]))


def _run(command: list[str]) -> str:
    done = subprocess.run(command, input="quit\n", capture_output=True, text=True, timeout=_TIME, check=False)
    if done.returncode:
        reason = f"bwrap exited with status {done.returncode}, and said: {done.stderr.strip()}"
        raise PermissionError(
            errno.EPERM,
            f'QEMU does not run in bubblewrap here: {advised(reason, out_of_memory=False)}. With jail="auto" it '
            "runs without where it must",
        )
    return done.stdout


def _files_of(qemu: str) -> list[str]:
    """The program, its libraries and its data: firmware, and the accelerators that are modules."""
    linked = list(libraries_of([qemu]))
    folders = sorted({os.path.dirname(os.path.realpath(path)) for path in linked})
    modules = [path for folder in folders for path in glob(f"{escape(folder)}/qemu/accel-*.so")]
    said = subprocess.run(
        [qemu, "-L", "help"], stdin=subprocess.DEVNULL, capture_output=True, timeout=_TIME, check=False
    )
    data = [os.path.normpath(line) for line in os.fsdecode(said.stdout).splitlines()]
    files = [qemu, *linked, *libraries_of(modules), *modules, _LIBRARIES, *data]
    return [path for path in dict.fromkeys(files) if os.path.exists(path)]


def _system(files: Iterable[str]) -> Iterator[str]:
    """The arguments of bubblewrap for all that does not belong to one machine."""
    yield from NAMESPACES
    for path in files:
        yield from ("--ro-bind", path, path)
    yield from ("--proc", "/proc", "--remount-ro", "/proc", "--symlink", "/proc/self/fd", "/dev/fd")
    for path in ("/dev/null", "/dev/urandom"):
        yield from ("--dev-bind", path, path)


def jailed(jail: Bubblewrap, plan: Plan, memory: Memory, news: int, mark: str) -> list[str]:
    """The beginning of a command that runs another one in a jail with the files of one machine.

    Args:
        jail: what is known of it.
        plan: the machine.
        memory: its memory; if that is a file, it must be there.
        news: the descriptor on which bubblewrap tells which process it has started.
        mark: what that process is found by.
    """
    made = [jail.program, "--info-fd", str(news), *_system(jail.files)]
    if plan.accelerator == "kvm":
        made += ["--dev-bind", _KVM, _KVM]
    here, there = _named(plan), _named(in_jail(plan))
    for name, path in here.items():
        made += ["--ro-bind", str(path), str(there[name])]
    for share, inside in zip(plan.shared, in_jail(plan).shared, strict=True):
        made += ["--bind" if share.writable else "--ro-bind", share.path, inside.path]
    if memory.path is not None:
        rights = "--ro-bind" if memory.private and jail.reads_only else "--bind"
        made += [rights, str(memory.path), str(memory_in_jail(memory).path)]
    # QEMU is not to fill this machine's memory with files in the jail's root.
    return [*made, "--remount-ro", "/", "--clearenv", "--setenv", GUEST_MARK, mark, "--chdir", "/", "--"]


def _named(plan: Plan) -> dict[str, Path]:
    named = {"kernel": plan.kernel, "initramfs": plan.initramfs}
    return named if plan.disk is None else {**named, "disk": plan.disk}


def in_jail(plan: Plan) -> Plan:
    """The machine as QEMU finds it in the jail."""
    return replace(
        plan,
        kernel=_PLACE / "kernel",
        initramfs=_PLACE / "initramfs",
        disk=None if plan.disk is None else _PLACE / "disk",
        shared=[replace(share, path=str(_PLACE / share.tag)) for share in plan.shared],
    )


def memory_in_jail(memory: Memory) -> Memory:
    """Its memory as QEMU finds it there."""
    return memory if memory.path is None else replace(memory, path=_PLACE / "memory")

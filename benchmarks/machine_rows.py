"""Rows of virtual machines: their starts, their clones and what these hold, beside QEMU alone.

QEMU alone is the same command, kernel and template, started by a plain program that has nothing around it: no
event loop, nothing that ends it if this program dies, no agent that anything is said to. So it shows how much of a
start is QEMU's and the kernel's.

What machines are made of is kept in a temporary folder for as long as the rows take, but for the kernels.
"""

from __future__ import annotations

import array
import atexit
import json
import os
import shutil
import socket
import subprocess
import tempfile
import time
from contextlib import closing, contextmanager, suppress
from functools import cache, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final
from unittest import mock

import trio

import trio_console
from benchmarks._measure import Row, Statistic
from trio_console._guests.machine.qemu import Memory, command, find_qemu
from trio_console._guests.machine.saved import running
from trio_console._guests.machine.saved.copied import save_copy
from trio_console._guests.machine.saved.template import template_of
from trio_console._guests.machine.stock.cache import directory
from trio_console._guests.machine.view import view_of
from trio_console._guests.roots import Root
from trio_console._machine.welcome import GREETING

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from trio_console._guests.machine.launch import Started
    from trio_console._guests.machine.monitor import Monitor
    from trio_console._guests.machine.qemu import Plan
    from trio_console._guests.machine.saved.copied import Changes
    from trio_console._guests.machine.view import View

__all__ = ["can_be_measured", "rows"]

KINDS: Final = ("minimal", "host", "image")

#: Which of the commands in a machine is timed: before it, much runs there for the first time.
TENTH: Final = 10

_MODEL: Final = "microvm"
_MIB: Final = 1024 * 1024

#: Seconds for a machine to start beside other work.
_PATIENCE: Final = 300.0


def can_be_measured() -> bool:
    """Whether QEMU is installed."""
    try:
        find_qemu()
    except FileNotFoundError:
        return False
    return True


@cache
def _own_cache() -> Path:
    """The folder in which all is kept; gone when this program ends."""
    kernels = directory() / "kernels"
    place = Path(tempfile.mkdtemp())
    atexit.register(shutil.rmtree, place)
    os.environ["XDG_CACHE_HOME"] = str(place)
    directory().mkdir()
    if kernels.is_dir():
        (directory() / "kernels").symlink_to(kernels)
    return place


@cache
def _image() -> Path:
    """A directory for the root of a machine: the program `true`, and what that needs."""
    program = os.path.realpath("/bin/true")
    libraries = subprocess.run(["ldd", program], capture_output=True, text=True, check=True).stdout
    found = [word for word in libraries.split() if word.startswith("/")]
    root = _own_cache() / "image"
    for path in ("/bin/true", *found):
        place = root / path.lstrip("/")
        place.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(path, place)
    return root


def _root(kind: str) -> Root | Path:
    _own_cache()
    return {"minimal": Root.MINIMAL, "host": Root.HOST}.get(kind) or _image()


# --- ours -----------------------------------------------------------------------------------------


async def _opened(kind: str, *, template: bool, commands: int = 0) -> tuple[float, float, float]:
    """Seconds until a machine is ready and of the last command in it, and MiB that it holds then."""
    spec = trio_console.MicroVMGuest(root=_root(kind), template=template)
    start = time.perf_counter()
    async with trio_console.open_guest(spec, launch_timeout=_PATIENCE) as guest:
        ready = time.perf_counter() - start
        last = 0.0
        for _ in range(commands):
            start = time.perf_counter()
            await guest.run_process(["true"])
            last = time.perf_counter() - start
        return ready, last, _held(_qemu()) if commands else 0.0


def _ours(index: int, kind: str, *, template: bool, commands: int = 0) -> Sequence[float]:
    return [trio.run(partial(_opened, kind, template=template, commands=commands))[index]]


def _qemu() -> int:
    """The process id of the one QEMU that this program, or a bubblewrap that it has started, has started."""
    parents, machines = {}, []
    for pid in map(int, filter(str.isdigit, os.listdir("/proc"))):
        with suppress(OSError), open(f"/proc/{pid}/stat") as file:
            name, fields = file.read().split("(", 1)[1].rsplit(")", 1)
            parents[pid] = int(fields.split()[1])
            if name.startswith("qemu-system"):
                machines.append(pid)
    (found,) = [pid for pid in machines if os.getpid() in _above(pid, parents)]
    return found


def _above(pid: int, parents: dict[int, int]) -> Iterator[int]:
    while (pid := parents.get(pid, 0)) > 1:
        yield pid


def _held(pid: int) -> float:
    """MiB of memory that a process has for itself alone, and its part of what it shares."""
    with open(f"/proc/{pid}/smaps_rollup") as file:
        return next(int(line.split()[1]) for line in file if line.startswith("Pss:")) / 1024


@contextmanager
def _copying() -> Iterator[list[Monitor]]:
    """The monitors of the machines that are copied meanwhile."""
    monitors: list[Monitor] = []

    async def noted(machine: Started, size: int, state: int) -> Changes | None:
        monitors.append(machine.monitor)
        return await save_copy(machine, size, state)

    with mock.patch.object(running, "save_copy", noted):
        yield monitors


async def _forked(kind: str) -> tuple[float, float]:
    """Seconds until a copy of a machine that runs is ready, and for which the original was stopped for it."""
    spec = trio_console.MicroVMGuest(root=_root(kind))
    async with trio_console.open_guest(spec, launch_timeout=_PATIENCE) as guest:
        for _ in range(TENTH):
            await guest.run_process(["true"])
        with _copying() as monitors:
            start = time.perf_counter()
            async with guest.fork(1):
                ready = time.perf_counter() - start
    (monitor,) = monitors
    at = {event["event"]: event["timestamp"] for event in monitor.events}
    stopped, resumed = (at[name]["seconds"] + at[name]["microseconds"] / 1e6 for name in ("STOP", "RESUME"))
    return ready, resumed - stopped


def _fork(index: int, kind: str) -> Sequence[float]:
    return [trio.run(_forked, kind)[index]]


async def _true_in_child() -> Sequence[float]:
    async with trio_console.open_guest(trio_console.ProcessGuest(workers="tasks")) as guest:
        for _ in range(TENTH):
            start = time.perf_counter()
            await guest.run_process(["true"])
        return [time.perf_counter() - start]


# --- QEMU alone -----------------------------------------------------------------------------------


@cache
def _plan(kind: str) -> Plan:
    root = _root(kind)
    spec = trio_console.MicroVMGuest(root=root)
    _, plan = trio.run(spec._plan, _view(kind))
    return plan


def _view(kind: str) -> View:
    root = _root(kind)
    return view_of(root if isinstance(root, Root) else Root.MINIMAL, {})


@contextmanager
def _started(plan: Plan, memory: Memory) -> Iterator[tuple[int, socket.socket, socket.socket]]:
    """QEMU's process id, the machine's console and QEMU's monitor."""
    pairs = [socket.socketpair() for _ in range(2)]
    numbers = [theirs.fileno() for _, theirs in pairs]
    (console, _), (monitor, _) = pairs
    made = command(plan, _MODEL, numbers[0], monitor=numbers[1], memory=memory)
    process = subprocess.Popen(
        made, pass_fds=numbers, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    try:
        for _, theirs in pairs:
            theirs.close()
        with closing(console), closing(monitor):
            yield process.pid, console, monitor
    finally:
        process.kill()
        process.wait()


def _boot_alone(kind: str) -> Sequence[float]:
    """Seconds from QEMU's start until the machine greets."""
    plan = _plan(kind)
    start = time.perf_counter()
    with _started(plan, Memory()) as (_, console, _monitor):
        if console.recv(len(GREETING), socket.MSG_WAITALL) != GREETING:
            raise RuntimeError("QEMU has ended before the machine greeted")
        return [time.perf_counter() - start]


def _clone_alone(index: int, kind: str) -> Sequence[float]:
    """Seconds from QEMU's start until it has loaded the template and runs, or MiB that it holds then."""
    plan = _plan(kind)
    template = trio.run(template_of, plan, _MODEL, _view(kind).layout)
    start = time.perf_counter()
    with _started(plan, Memory(template / "memory", private=True, saved=True)) as (pid, _console, monitor):
        with monitor.makefile("r") as answers, open(template / "state", "rb") as state:

            def execute(what: str, fd: int | None = None, **arguments: Any) -> Any:
                line = json.dumps({"execute": what, "arguments": arguments}).encode()
                rights = [] if fd is None else [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", [fd]))]
                monitor.sendmsg([line], rights)
                return next(said["return"] for said in map(json.loads, answers) if "return" in said)

            execute("qmp_capabilities")
            ignore = [{"capability": "x-ignore-shared", "state": True}]
            execute("migrate-set-capabilities", capabilities=ignore)
            execute("getfd", state.fileno(), fdname="state")
            execute("migrate-incoming", uri="fd:state")
            while execute("query-status")["status"] == "inmigrate":
                time.sleep(0.001)
            execute("cont")
        return [(time.perf_counter() - start, _held(pid))[index]]


# --- the rows -------------------------------------------------------------------------------------


def _warm_up(kind: str) -> Callable[[], object]:
    """Make the archive, the disk and the template."""
    return lambda: trio.run(partial(_opened, kind, template=True))


def _row(
    kind: str,
    what: str,
    title: str,
    contenders: dict[str, Callable[[], Sequence[float]]],
    statistic: Statistic = Statistic(),  # noqa: B008  (it cannot be changed)
    *,
    turns: int,
    unit: str = "s",
    note: str = "",
) -> Row:
    """A row of machines of one kind: the smaller the better, and ours comes first."""
    return Row(
        f"machine-{what}-{kind}",
        title,
        unit,
        contenders,
        peers=tuple(contenders)[1:],
        higher_is_better=False,
        statistics=(statistic,),
        turns=turns,
        warm_up=_warm_up(kind),
        note=note,
        process="machines",
        facts={"group": "machines"},
    )


def rows() -> Iterator[Row]:
    """The rows."""
    for kind in KINDS:
        yield from _rows_of(kind)
        if kind != "host":  # what is mounted of this machine cannot be copied
            yield from _rows_of_copies(kind)


def _rows_of(kind: str) -> Iterator[Row]:
    yield _row(
        kind,
        "boot",
        f"a machine ({kind}) started, until it is ready",
        {
            "MicroVMGuest(template=False)": partial(_ours, 0, kind, template=False),
            "QEMU alone, until the greeting": partial(_boot_alone, kind),
        },
        Statistic(bar=1.25),
        turns=10,
    )
    yield _row(
        kind,
        "clone",
        f"a machine ({kind}) cloned, until it is ready",
        {
            "MicroVMGuest": partial(_ours, 0, kind, template=True),
            "QEMU alone, until it runs": partial(_clone_alone, 0, kind),
        },
        Statistic(limit=0.5),
        turns=20,
    )
    yield _row(
        kind,
        "true",
        f'the tenth run_process(["true"]) in a clone ({kind})',
        {
            "MicroVMGuest": partial(_ours, 1, kind, template=True, commands=TENTH),
            "ProcessGuest": partial(trio.run, _true_in_child),
        },
        Statistic(limit=0.04),
        turns=20,
    )
    yield _row(
        kind,
        "memory",
        f"memory of a clone ({kind}) of 256 MiB that has run ten commands",
        {
            "MicroVMGuest": partial(_ours, 2, kind, template=True, commands=TENTH),
            "QEMU alone, as soon as it runs": partial(_clone_alone, 1, kind),
        },
        turns=5,
        unit="MiB",
        note="what it has for itself, and its part of what several processes share (Pss of QEMU)",
    )


def _rows_of_copies(kind: str) -> Iterator[Row]:
    yield _row(
        kind,
        "fork",
        f"a copy of a machine ({kind}) that runs, until it is ready",
        {
            "guest.fork(1)": partial(_fork, 0, kind),
            "MicroVMGuest, a clone": partial(_ours, 0, kind, template=True),
        },
        Statistic(limit=0.5),
        turns=10,
    )
    yield _row(
        kind,
        "stopped",
        f"the time for which a machine ({kind}) is stopped while it is copied",
        {"guest.fork(1)": partial(_fork, 1, kind)},
        Statistic(limit=0.15),
        turns=10,
        note="from QEMU's own events",
    )

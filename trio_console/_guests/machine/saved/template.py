"""Machines that were started once and saved: a clone of one goes on where it was saved, and so starts at once.

A machine is saved when it has greeted its host and waits for its settings. So nothing in it belongs to one host or
one guest, and every clone is told, first of all, what makes it unlike the others.

Its memory lies in a file, which clones map so that each has its own copy of what it changes: nothing that a clone
does can harm the template. What else there is of a machine, less than a MiB, is in a file beside it. QEMU gets
that as a descriptor, because it may start no program.
"""

from __future__ import annotations

import os
from contextlib import suppress
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Final

import trio

from trio_console._guests.machine.launch import NotBootedError, run_machine
from trio_console._guests.machine.monitor import Monitor, MonitorError
from trio_console._guests.machine.qemu import Memory, command
from trio_console._guests.machine.stock.cache import discard, kept, key_of, stamp
from trio_console._machine.welcome import Layout, pack, unpack
from trio_console._trio.threads import in_thread

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from trio_console._guests.machine.launch import Started
    from trio_console._guests.machine.qemu import Plan

__all__ = [
    "RESUME_TIME",
    "TEMPLATES",
    "clone",
    "load_state",
    "memory_in",
    "processor",
    "save",
    "save_state",
    "template_of",
]

#: The kind of these in the cache.
TEMPLATES: Final = "templates"

#: Templates that are kept, of some 180 MiB each.
_MOST: Final = 8

_MEMORY: Final = "memory"
_STATE: Final = "state"
_LAYOUT: Final = "layout"

#: Bytes in a second, which would otherwise be limited as on a network.
_NO_LIMIT: Final = 10**11

#: Milliseconds for which a machine may be stopped while the last of it is written, and seconds for which it is
#: written while it runs: it takes a tenth of a second, unless the machine changes its memory faster than that.
_PAUSE: Final = 30
_LIVE_TIME: Final = 2.0

#: Seconds for QEMU to break off, and to let the machine go on: it takes milliseconds.
RESUME_TIME: Final = 5.0


async def template_of(plan: Plan, model: str, layout: Layout | None = None) -> Path:
    """The directory of the template for a machine, which is started and saved if there is none.

    Args:
        plan: the machine.
        model: which of QEMU's kinds it is.
        layout: what its root directory is made of; by default that is its own. In the template may be another one
            of the same directories: `clone` tells what has changed.

    Raises:
        NotBootedError: it did not start, or could not be saved.
    """
    make = partial(_make, plan, model, layout)
    what = "starting the first machine of its kind"
    return await kept(TEMPLATES, _key(plan, model, layout), make, what=what, most=_MOST)


def _key(plan: Plan, model: str, layout: Layout | None) -> str:
    """A name for all that a template and its clones must have in common."""
    words = command(
        replace(plan, sandbox=True, jail=None),
        model,
        console=0,
        monitor=0,
        memory=Memory(Path(_MEMORY)),
    )
    shared = {share.path for share in plan.shared}
    alike = [word for word in words if not any(path in word for path in shared)]
    disk = None if plan.disk is None else stamp(plan.disk)  # it is mounted: another one would not fit
    lower = None if layout is None else layout.lower
    return key_of(stamp(plan.qemu), stamp(plan.kernel), disk, len(plan.shared), lower, alike, processor())


def processor() -> str:
    """The kind of this machine's processor, which machines see."""
    return next((line for line in _lines("/proc/cpuinfo") if line.startswith("model name")), "")


def _lines(path: str) -> list[str]:
    with suppress(OSError), open(path) as file:
        return file.read().splitlines()
    return []


async def _make(plan: Plan, model: str, layout: Layout | None, place: Path) -> None:
    async def talk(machine: Started) -> None:
        await machine.come_up(layout)
        await save(machine, place)

    if layout is not None:
        (place / _LAYOUT).write_bytes(pack(layout))
    await run_machine(plan, model, memory_in(place), talk)


def _changes(template: Path, layout: Layout | None) -> Layout | None:
    """What of the layout has changed since the template was made."""
    if layout is None:
        return None
    with open(template / _LAYOUT, "rb") as file:
        former = unpack(file.read)
    if not isinstance(former, Layout):
        raise NotBootedError(f"{template / _LAYOUT} is not what was written there")
    return layout.since(former)


async def save(machine: Started, place: Path) -> None:
    """Save a machine whose memory is `memory_in` the directory ``place``, and end it; it waits for its settings.

    Raises:
        NotBootedError: it could not be saved.
    """
    state = os.open(place / _STATE, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    try:
        await machine.monitor.begin()
        await machine.monitor.execute("stop")
        await save_state(machine.monitor, state, with_memory=False)
        size = os.fstat(state).st_size
    except MonitorError as exc:
        raise NotBootedError(f"it could not be saved: {exc}; {await machine.tail.explain()}") from exc
    finally:
        os.close(state)
    if not size:
        raise NotBootedError("nothing of it was saved")
    machine.tail.kill()


def memory_in(place: Path) -> Memory:
    """The memory of a machine that is to be saved in a directory; it is empty."""
    path = place / _MEMORY
    path.unlink(missing_ok=True)  # of an attempt before this one
    path.touch(0o600)  # it must be there to be seen in a jail
    return Memory(path)


async def save_state(monitor: Monitor, state: int, *, with_memory: bool) -> None:
    """Write the state of a machine to a file, open as ``state``; with its memory the machine goes on after it.

    It runs meanwhile, and is stopped for the last of it, or for the rest when it writes to its memory for so long.
    If cancelled, the file is of no use, and the machine goes on, too.

    Raises:
        MonitorError: QEMU has ended, or could not do it.
    """
    await _ignore_memory(monitor, ignored=not with_memory)
    await monitor.execute("migrate-set-parameters", **{"max-bandwidth": _NO_LIMIT, "downtime-limit": _PAUSE})
    await monitor.give("state", state)
    status = ""
    try:
        await monitor.execute("migrate", uri="fd:state")
        with trio.move_on_after(_LIVE_TIME):
            status = await monitor.wait_until("query-migrate", "completed", "failed")
        if not status:
            await monitor.execute("stop")
            status = await monitor.wait_until("query-migrate", "completed", "failed")
        if status == "failed":
            raise MonitorError("QEMU could not write it")
    finally:
        if with_memory:
            with trio.move_on_after(RESUME_TIME, shield=True):
                await _go_on(monitor, status)  # noqa: ASYNC102  (shielded)


async def _go_on(monitor: Monitor, status: str) -> None:
    """Let a machine go on, whether it was saved or that was broken off."""
    with suppress(MonitorError):  # it has ended
        if not status:
            await monitor.execute("migrate_cancel")
            await monitor.wait_until("query-migrate", "completed", "failed", "cancelled", "none")
        await monitor.execute("cont")


async def _ignore_memory(monitor: Monitor, *, ignored: bool) -> None:
    """Whether memory in a file that is shared is left out of the state."""
    capability = {"capability": "x-ignore-shared", "state": ignored}
    await monitor.execute("migrate-set-capabilities", capabilities=[capability])


async def clone(
    plan: Plan,
    model: str,
    template: Path,
    talk: Callable[[Started, Layout | None], Awaitable[None]],
    *,
    layout: Layout | None = None,
    place: Path | None = None,
    stock: bool = True,
) -> None:
    """Start a clone, and return when it has ended; if cancelled, end it.

    Args:
        plan: as for the template.
        model: as for the template.
        template: its directory.
        talk: what is said to the machine, which has greeted already; called with it, and what of its layout has
            changed since that was told.
        layout: as for the template, but may have other links and files.
        place: a directory for the memory of a clone that is to be saved; `None`, the default, for one that is not.
        stock: whether the template can be made anew; by default true.

    Raises:
        NotBootedError: the template could not be loaded. If it is a stock one, it was removed, so that another
            start makes it anew.
        OSError: QEMU could not be started.
    """
    memory = Memory(template / _MEMORY, private=True, saved=True)
    if place is not None:
        memory = replace(memory_in(place), saved=True)
        copy = partial(_copy_sparse, template / _MEMORY, place / _MEMORY)
        await in_thread("to copy a machine's memory", copy)
    loaded = False

    async def load(machine: Started) -> None:
        nonlocal loaded
        error: Exception | None = None
        changes: Layout | None = None
        try:
            changes = _changes(template, layout)
            await load_state(machine.monitor, template / _STATE, with_memory=False)
        except (MonitorError, NotBootedError, OSError, ValueError) as exc:
            error = exc
        if error is not None:
            why = f"its template could not be loaded: {error}; {await machine.tail.explain()}"
            raise NotBootedError(why) from error
        loaded = True
        await talk(machine, changes)

    try:
        await run_machine(plan, model, memory, load)
    except NotBootedError:
        if stock and not loaded:
            await discard(template)  # noqa: ASYNC120  (cut short, the next start does it)
        raise


def _copy_sparse(old: Path, new: Path) -> None:
    """Copy a file with its holes: a machine uses half of its memory."""
    with open(old, "rb", buffering=0) as source, open(new, "wb", buffering=0) as target:
        size = os.fstat(source.fileno()).st_size
        os.ftruncate(target.fileno(), size)
        at = 0
        while at < size:
            try:
                start = os.lseek(source.fileno(), at, os.SEEK_DATA)
            except OSError:  # ENXIO: only a hole is left
                return
            at = os.lseek(source.fileno(), start, os.SEEK_HOLE)
            os.lseek(target.fileno(), start, os.SEEK_SET)
            while start < at:
                start += os.sendfile(target.fileno(), source.fileno(), start, at - start)


async def load_state(monitor: Monitor, state: Path | str, *, with_memory: bool) -> None:
    """Let a QEMU that waits for it have the state of a machine, and let that go on.

    Raises:
        MonitorError: QEMU has ended, or cannot load it.
        OSError: the file cannot be read.
    """
    await monitor.begin()
    await _ignore_memory(monitor, ignored=not with_memory)
    fd = os.open(state, os.O_RDONLY | os.O_CLOEXEC)
    try:
        await monitor.give("state", fd)
        await monitor.execute("migrate-incoming", uri="fd:state")
        await monitor.wait_until("query-status", "paused", "postmigrate", "running", "prelaunch")
    finally:
        os.close(fd)
    await monitor.execute("cont")

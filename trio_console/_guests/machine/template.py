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

from trio_console._guests.machine.launch import NotBootedError, run_machine
from trio_console._guests.machine.monitor import Monitor, MonitorError
from trio_console._guests.machine.qemu import Memory, command
from trio_console._guests.machine.stock.cache import discard, kept, key_of, stamp

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from trio_console._guests.machine.launch import Started
    from trio_console._guests.machine.qemu import Plan

__all__ = ["TEMPLATES", "clone", "template_of"]

#: The kind of these in the cache.
TEMPLATES: Final = "templates"

#: Templates that are kept, of some 180 MiB each.
_MOST: Final = 8

_MEMORY: Final = "memory"
_STATE: Final = "state"

#: Memory in a file that is shared is not copied into the state.
_CAPABILITIES: Final = [{"capability": "x-ignore-shared", "state": True}]

#: Bytes in a second, which would otherwise be limited as on a network.
_NO_LIMIT: Final = 10**11


async def template_of(plan: Plan, model: str) -> Path:
    """The directory of the template for a machine, which is started and saved if there is none.

    Raises:
        NotBootedError: it did not start, or could not be saved.
    """
    make = partial(_make, plan, model)
    what = "starting the first machine of its kind"
    return await kept(TEMPLATES, _key(plan, model), make, what=what, most=_MOST)


def _key(plan: Plan, model: str) -> str:
    """A name for all that a template and its clones must have in common."""
    words = command(
        replace(plan, sandbox=True, jail=None),
        model,
        console=0,
        monitor=0,
        memory=Memory(Path(_MEMORY), private=False),
    )
    shared = {share.path for share in plan.shared}
    processor = next((line for line in _lines("/proc/cpuinfo") if line.startswith("model name")), "")
    alike = [word for word in words if not any(path in word for path in shared)]
    return key_of(stamp(plan.qemu), stamp(plan.kernel), len(plan.shared), alike, processor)


def _lines(path: str) -> list[str]:
    with suppress(OSError), open(path) as file:
        return file.read().splitlines()
    return []


async def _make(plan: Plan, model: str, place: Path) -> None:
    memory = Memory(place / _MEMORY, private=False)
    memory.path.touch(0o600)  # it must be there to be seen in a jail

    async def save(machine: Started) -> None:
        await machine.hear_greeting()
        state = os.open(place / _STATE, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        try:
            monitor = machine.monitor
            await monitor.begin()
            await monitor.execute("stop")
            await monitor.execute("migrate-set-capabilities", capabilities=_CAPABILITIES)
            await monitor.execute("migrate-set-parameters", **{"max-bandwidth": _NO_LIMIT})
            await monitor.give("state", state)
            await monitor.execute("migrate", uri="fd:state")
            if await monitor.wait_until("query-migrate", "completed", "failed") == "failed":
                raise NotBootedError("it could not be saved")
        except MonitorError as exc:
            raise NotBootedError(f"it could not be saved: {exc}; {await machine.tail.explain()}") from exc
        finally:
            os.close(state)
        machine.tail.kill()

    await run_machine(plan, model, memory, save)
    if not (place / _STATE).stat().st_size:
        raise NotBootedError("nothing of it was saved")


async def clone(plan: Plan, model: str, template: Path, talk: Callable[[Started], Awaitable[None]]) -> None:
    """Start a clone, and return when it has ended; if cancelled, end it.

    Args:
        plan: as for the template.
        model: as for the template.
        template: its directory.
        talk: what is said to the machine, which has greeted already.

    Raises:
        NotBootedError: the template could not be loaded. It was removed, so that another start makes it anew.
        OSError: QEMU could not be started.
    """
    memory = Memory(template / _MEMORY, private=True)
    loaded = False

    async def load(machine: Started) -> None:
        nonlocal loaded
        error: Exception | None = None
        try:
            await _load(machine.monitor, template / _STATE)
        except (MonitorError, OSError) as exc:
            error = exc
        if error is not None:
            why = f"its template could not be loaded: {error}; {await machine.tail.explain()}"
            raise NotBootedError(why) from error
        loaded = True
        await talk(machine)

    try:
        await run_machine(plan, model, memory, load)
    except NotBootedError:
        if not loaded:
            await discard(template)  # noqa: ASYNC120  (cut short, the next start does it)
        raise


async def _load(monitor: Monitor, state: Path) -> None:
    await monitor.begin()
    await monitor.execute("migrate-set-capabilities", capabilities=_CAPABILITIES)
    fd = os.open(state, os.O_RDONLY | os.O_CLOEXEC)
    try:
        await monitor.give("state", fd)
        await monitor.execute("migrate-incoming", uri="fd:state")
        await monitor.wait_until("query-status", "paused", "postmigrate", "running", "prelaunch")
    finally:
        os.close(fd)
    await monitor.execute("cont")

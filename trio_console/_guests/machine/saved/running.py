"""A machine that runs: it is told its settings and handed over to the library; and copies of it are made.

A copy goes on where the machine was when it was made, with its processes and its memory, and has a host of its
own. What the machine has changed of its memory is read out of its QEMU while it is stopped, for some hundredths
of a second, and put into that of each copy. If that is much, or cannot be read here, the machine's whole state is
written to a file without a name, while the machine runs: QEMU writes what the machine has changed meanwhile once
more, and stops it only for the last of that. So a machine that is never copied pays nothing for the possibility.

In a copy the agent sees that its host has gone, ends what belonged to that, and waits for another. It closes its
console meanwhile, by which the copy's host sees that nothing of the former host is under way any more.
"""

from __future__ import annotations

import errno
import os
import secrets
import time
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Final, final

import trio

from trio_console._guests.machine.launch import NotBootedError, run_machine
from trio_console._guests.machine.monitor import MonitorError
from trio_console._guests.machine.ports import Ports
from trio_console._guests.machine.qemu import Memory
from trio_console._guests.machine.saved.copied import put_changes, save_copy
from trio_console._guests.machine.saved.template import load_state
from trio_console._guests.spec import GuestSpec
from trio_console._guests.supervisor import Ours, ProcessHost
from trio_console._machine.described import Machine
from trio_console._machine.welcome import Welcome, pack
from trio_console._trio.interrupts import interrupt_safe
from trio_console._trio.lost import GuestLostError

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Mapping

    from trio_console._guests.machine.launch import Started
    from trio_console._guests.machine.qemu import Plan
    from trio_console._guests.machine.saved.copied import Changes
    from trio_console._guests.machine.view import View
    from trio_console._guests.spec import GuestHost
    from trio_console._guests.supervisor import Workers
    from trio_console._machine.welcome import Layout

__all__ = ["Kind", "Terms", "hand_over", "settings"]

_SEED_BYTES: Final = 256


@final
@dataclass(frozen=True)
class Kind:
    """What a machine has in common with its copies: the plan, QEMU's kind of machine, the kernel's release."""

    plan: Plan
    model: str
    release: str


@final
@dataclass(frozen=True)
class Terms:
    """What its host may choose for each machine: the environment and user of commands, and how bytes are moved."""

    env: Mapping[str, str] = field(default_factory=dict)
    user: str | None = None
    workers: Workers = "tasks"


def settings(kind: Kind, terms: Terms, view: View | None = None, changes: Layout | None = None) -> bytes:
    """The settings of a machine; what it sees of this one only if it has not been told that before.

    ``changes`` is what of its layout has changed since that was told.
    """
    name = secrets.token_hex(4)
    welcome = Welcome(
        seed=secrets.token_bytes(_SEED_BYTES),
        time_ns=time.time_ns(),
        hostname=f"guest-{name}",
        machine_id=secrets.token_hex(16),
        env=dict(terms.env),
        user=terms.user,
        changes=changes,
        disk=kind.plan.disk is not None,
        mounts=() if view is None else view.mounts,
        ports=tuple(kind.plan.ports),
        stays=_can_be_saved(kind.plan),
    )
    return pack(welcome)


def _can_be_saved(plan: Plan) -> bool:
    """Whether a machine can be saved while it has a host: what it has mounted of this machine cannot."""
    return not plan.shared


async def hand_over(
    machine: Started, kind: Kind, terms: Terms, described: Machine, task_status: trio.TaskStatus[GuestHost]
) -> None:
    """Let the library have a machine that has been told its settings.

    Raises:
        MonitorError: QEMU has ended.
    """
    tail = machine.tail
    saves = _can_be_saved(kind.plan)
    if saves or kind.plan.ports:
        await machine.monitor.begin()
    open_port = Ports(kind.plan.ports, machine.monitor, tail).open
    fork = _Forks(machine, kind, terms).fork if saves else None
    with Ours(lambda: machine.console, terms.workers) as ours:
        told = ours.device, tail.kill, tail.explain, described, open_port, fork
        ours.hand_over(ProcessHost(*told, process=tail.process, outlives_console=saves), task_status)


@final
class _Forks:
    """Makes copies of a machine."""

    def __init__(self, machine: Started, kind: Kind, terms: Terms) -> None:
        self._machine: Final = machine
        self._kind: Final = kind
        self._terms: Final = terms
        self._turn: Final = trio.Lock()

    @interrupt_safe
    @asynccontextmanager
    async def fork(self, count: int) -> AsyncIterator[list[GuestSpec]]:
        """Save the machine, and yield so many specs of copies, which can be started within the block.

        Raises:
            GuestLostError: the machine is gone.
            OSError: QEMU does not save it, or there is no memory for that.
        """
        state = os.memfd_create("trio_console machine")
        try:
            changes = await self._save(state)
            yield [_Copy(self._kind, self._terms, state, changes) for _ in range(count)]
        finally:
            os.close(state)

    async def _save(self, state: int) -> Changes | None:
        machine = self._machine
        error: MonitorError
        try:
            async with self._turn:  # QEMU saves once at a time
                return await save_copy(machine, _size(self._kind), state)
        except MonitorError as exc:
            error = exc
        why = f"the machine could not be copied: {error}"
        raise await machine.tail.error(why, partial(OSError, errno.EIO)) from error


def _size(kind: Kind) -> int:
    return kind.plan.memory_mib * 2**20


@final
class _Copy(GuestSpec):
    """A machine that goes on where another one was when it was saved."""

    def __init__(self, kind: Kind, terms: Terms, state: int, changes: Changes | None) -> None:
        self._kind: Final = kind
        self._terms: Final = terms
        self._state: Final = state
        self._changes: Final = changes

    def __repr__(self) -> str:
        return "a fork of a MicroVMGuest"

    @trio.lowlevel.enable_ki_protection
    async def run(self, *, task_status: trio.TaskStatus[GuestHost]) -> None:
        """See `GuestSpec.run`. If cancelled, the guest is ended by force."""
        began = time.monotonic()
        kind, changes = self._kind, self._changes

        async def talk(machine: Started) -> None:
            error: Exception | None = None
            try:
                if changes is not None:
                    await put_changes(machine, _size(kind), changes)
                # Opened anew, so that it is read from its beginning by each copy.
                await load_state(machine.monitor, f"/proc/self/fd/{self._state}", with_memory=True)
                await machine.wait_left(loaded=True)
                await machine.attach()
            except (MonitorError, OSError) as exc:
                error = exc
            if error is not None:
                raise NotBootedError(f"{error}; {await machine.tail.explain()}") from error
            await machine.hear_greeting()
            await machine.say(settings(kind, self._terms))
            seconds = {"prepare": 0.0, "load": time.monotonic() - began}
            described = Machine(
                kind.plan.accelerator, kind.model, kind.plan.jailed_by, kind.release, True, 1, seconds
            )
            await hand_over(machine, kind, self._terms, described, task_status)

        memory = Memory(saved=True) if changes is None else changes.memory
        try:
            await run_machine(kind.plan, kind.model, memory, talk, connected=False)
        except NotBootedError as exc:
            raise GuestLostError(f"the copy of the machine did not start: {exc}") from exc

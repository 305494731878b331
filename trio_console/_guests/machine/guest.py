"""A guest that is a virtual machine of its own, run by QEMU."""

from __future__ import annotations

import os
import platform
import time
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Final, final

import trio

from trio_console._guests.images.disk import disk_of
from trio_console._guests.machine.accelerator import check_accelerator, choose
from trio_console._guests.machine.jail import check_jail, find_jail
from trio_console._guests.machine.launch import NotBootedError, run_machine
from trio_console._guests.machine.ports import check_ports
from trio_console._guests.machine.qemu import MODELS, Memory, Plan, find_qemu, modules_for
from trio_console._guests.machine.saved.prepared import find
from trio_console._guests.machine.saved.running import Kind, Terms, hand_over, settings
from trio_console._guests.machine.saved.template import clone, memory_in, template_of
from trio_console._guests.machine.stock.cache import kept
from trio_console._guests.machine.stock.initramfs import initramfs_of
from trio_console._guests.machine.stock.kernel import find_kernel
from trio_console._guests.machine.view import view_of
from trio_console._guests.roots import Root, check_shares
from trio_console._guests.spec import GuestSpec
from trio_console._guests.supervisor import check_workers
from trio_console._machine.described import Machine
from trio_console._trio.lost import GuestLostError
from trio_console._trio.threads import in_thread

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from trio_console._guests.machine.accelerator import Accelerator
    from trio_console._guests.machine.jail import Jail
    from trio_console._guests.machine.launch import Started
    from trio_console._guests.machine.saved.prepared import Entry
    from trio_console._guests.machine.stock.kernel import Kernel
    from trio_console._guests.machine.view import View
    from trio_console._guests.roots import PathLike, Share
    from trio_console._guests.spec import GuestHost
    from trio_console._guests.supervisor import Workers
    from trio_console._machine.welcome import Layout

__all__ = ["Making", "MicroVMGuest", "Template"]

#: Below this an emulated machine does not get as far as its agent.
_LEAST_MEMORY: Final = 128

#: What `MicroVMGuest` has for the arguments that a `Template` decides.
_WORDS_OF_DEFAULT: Final = (Root.HOST, (), 256, 1, (), None, "auto", ())


@final
class MicroVMGuest(GuestSpec):
    """A virtual machine (QEMU) with a kernel of its own, in which the agent is the first program.

    It needs QEMU and a Linux kernel, which ``trio-console vm setup`` gets where they are missing, and neither
    root, KVM nor an image. The first start makes an archive of this program's Python and the agent, starts a
    machine and saves it; all later guests of its kind are clones of that. Both are kept in
    ``$XDG_CACHE_HOME/trio_console`` (``~/.cache/trio_console``); ``trio-console vm prune`` removes them.

    The machine has no network, and sees nothing of this machine but what is named here. What it writes vanishes
    with it, except in a share that is writable. It ends with the block, and with this program if that is killed. A
    guest is shut down by a shutdown frame, as every guest, and what it leaves is what QEMU has in memory: nothing.

    **What isolates it** is QEMU, with its system calls restricted (seccomp): no program can be started from
    within. With KVM that is what clouds rely on. For emulation, which is used where KVM does not run guests,
    QEMU's authors promise no security: it keeps out what makes mistakes, and much of what means harm, but treat
    it as one wall of several.

    Args:
        root: `Root.HOST`, the default, is this machine's ``/usr`` and what belongs to it, under a layer in memory;
            `Root.MINIMAL` the agent, its Python, a shell and some fifty small commands, all in memory, which
            starts faster. A path is that of a root directory, of an OCI image layout (a directory or an archive),
            or of an archive of ``docker save``. It becomes a disk image that is only read, made once in the cache
            by mke2fs (package e2fsprogs), without root; what is written lies in memory above it. It needs no
            Python. Only its files are used: commands, variables and users of an image's configuration are not.
            docs/images.md says what is kept of them, and what is refused.
        shares: directories of this machine by their paths in the guest; a `Share` may be writable.
        env: the environment of commands, beside ``PATH``, ``HOME`` and the agent's own mark. Nothing of this
            program's environment is in it.
        user: the user of commands that name none: a name or number of the guest. `None`, the default, is root.
        memory_mib: the machine's memory in MiB, by default 256. QEMU takes it as it is used, and
            some more.
        cpus: its processors, by default 1.
        ports: names of further virtio ports, by default none, and at most 29: `Guest.open_port` opens one on this
            side, and in the guest a program of root opens ``/dev/virtio-ports/NAME``. A name has at most 63
            letters, digits, and ``.``, ``_`` or ``-``, and begins with a letter or digit.
        template: whether it goes on from a machine that was started once and kept, by default `True`: then only
            the first guest of its kind takes the time of a start. Or a `Template`, with which all other arguments
            but ``env``, ``user``, ``jail`` and ``workers`` are left out.
        kernel: path of the image (``vmlinuz``) of a Linux kernel for x86-64, with its modules in
            ``../lib/modules`` or in ``/lib/modules``; `None`, the default, is the one of ``trio-console vm
            setup``, or else one of this machine's.
        accel: ``"kvm"``, ``"tcg"`` (QEMU's emulation), or ``"auto"``, the default: KVM if a test shows that it
            runs guests, and else emulation. That ``/dev/kvm`` exists shows nothing.
        jail: what keeps in a QEMU that its machine has taken over. ``"seccomp"`` is QEMU's own filter of system
            calls; ``"bwrap"`` is that, and bubblewrap around QEMU, which then sees no file, process or network of
            this machine but what belongs to the guest; ``"auto"``, the default, is ``"bwrap"`` where that works,
            and else ``"seccomp"``; ``"none"`` is neither. docs/machines.md says what differs.
        extra_args: further arguments for QEMU. They can undo everything that is said here. Files that they name
            are not seen in bubblewrap.
        workers: what moves the console's bytes in this program: ``"tasks"``, the default, or ``"threads"``. Tasks
            need no threads and less processor time; docs/embedding.md says when to take which.

    Raises:
        TypeError, ValueError: an argument is not valid.

    Opening it raises `RuntimeError` on a machine of another kind than x86-64, `FileNotFoundError` if QEMU, a
    kernel, mke2fs, a root or a share is missing, or bubblewrap that must be there, `PermissionError` if that does
    not work for this user, `ValueError` for a root that is no image, a damaged one, or one
    for another kind of machine, `NotADirectoryError` for a share that is no directory, and `GuestLostError` if
    the machine does not start in three attempts. The message has the last that its kernel and QEMU have said.
    """

    def __init__(
        self,
        *,
        root: Root | PathLike = Root.HOST,
        shares: Mapping[str, PathLike | Share] | None = None,
        env: Mapping[str, str] | None = None,
        user: str | None = None,
        memory_mib: int = 256,
        cpus: int = 1,
        ports: Sequence[str] = (),
        template: bool | Template = True,
        kernel: PathLike | None = None,
        accel: Accelerator = "auto",
        jail: Jail = "auto",
        extra_args: Sequence[str] = (),
        workers: Workers = "tasks",
    ) -> None:
        if not isinstance(root, (Root, str, os.PathLike)):
            raise TypeError(f"root must be Root.HOST, Root.MINIMAL or a path, not {root!r:.100}")
        if memory_mib < _LEAST_MEMORY:
            raise ValueError(f"memory_mib must be at least {_LEAST_MEMORY}, not {memory_mib}")
        if cpus < 1:
            raise ValueError(f"cpus must be at least 1, not {cpus}")
        self._root = root if isinstance(root, Root) else Root.MINIMAL
        self._disk_of = None if isinstance(root, Root) else Path(root)
        self._shares = check_shares(shares or {})
        self._terms = Terms(dict(env or {}), user, check_workers(workers))
        self._memory_mib = memory_mib
        self._cpus = cpus
        self._ports = check_ports(ports)
        self._template = bool(template)
        self._entry: Entry | None = None
        self._kernel = None if kernel is None else Path(kernel)
        self._accel = check_accelerator(accel)
        self._jail = check_jail(jail)
        self._extra_args = tuple(extra_args)
        if isinstance(template, Template):
            if self._words() != _WORDS_OF_DEFAULT:
                raise ValueError(
                    "a guest that goes on from a Template is as that was: give it no other arguments than "
                    "template, env, user, jail and workers"
                )
            self._entry = template._entry
            self._root = Root.MINIMAL  # (it is told nothing of its root)

    def _words(self) -> tuple[object, ...]:
        """What tells machines apart, but not what their hosts may choose for each."""
        root = self._disk_of or self._root
        kind = self._memory_mib, self._cpus, self._ports, self._kernel, self._accel, self._extra_args
        return root, tuple(self._shares), *kind

    def _root_in_words(self) -> str:
        return self._entry.root if self._entry is not None else str(self._disk_of or self._root)

    def __repr__(self) -> str:
        return f"MicroVMGuest(root={self._root_in_words()})"

    @trio.lowlevel.enable_ki_protection
    async def run(self, *, task_status: trio.TaskStatus[GuestHost]) -> None:
        """See `GuestSpec.run`. If cancelled, the guest is ended by force."""
        await self._run(task_status)

    def _to_make(self) -> Making:
        """What runs such a machine that is to be saved.

        Raises:
            ValueError: it cannot be saved.
        """
        if self._root is Root.HOST or self._shares:
            raise ValueError(
                "a machine that has Root.HOST or shares cannot be saved, because these are directories of this "
                "machine: give it Root.MINIMAL or a path for its root, and no shares"
            )
        return Making(self)

    async def _run(self, task_status: trio.TaskStatus[GuestHost], making: Making | None = None) -> None:
        failures: list[str] = []
        models = MODELS if self._entry is None else (self._entry.kind.model,) * 2
        for model in models:
            try:
                await self._start(model, len(failures) + 1, task_status, making)
            except NotBootedError as exc:
                failures.append(f"as {model}: {exc}")
            else:
                return
        raise GuestLostError(f"the machine did not start {len(failures)} times. {'. '.join(failures)}")

    @trio.lowlevel.enable_ki_protection
    async def _start(
        self, model: str, attempt: int, task_status: trio.TaskStatus[GuestHost], making: Making | None
    ) -> None:
        """Start the machine as one of QEMU's kinds, and return when it has ended."""
        began = time.monotonic()
        view = await in_thread("to look at a guest's shares", partial(view_of, self._root, self._shares))
        kind, template = await self._origin(model, attempt, view)
        prepared = time.monotonic()

        async def boot(machine: Started) -> None:
            await machine.come_up(view.layout)
            await talk(machine)

        async def talk(machine: Started, changes: Layout | None = None) -> None:
            await machine.say(settings(kind, self._terms, view, changes))
            phase = "boot" if template is None else "load"
            seconds = {"prepare": prepared - began, phase: time.monotonic() - prepared}
            cloned = template is not None
            described = Machine(
                kind.plan.accelerator, model, kind.plan.jailed_by, kind.release, cloned, attempt, seconds
            )
            if making is not None:
                making.machine, making.kind = machine, kind
            await hand_over(machine, kind, self._terms, described, task_status)

        place = None if making is None else making.place
        if template is None:
            await run_machine(kind.plan, model, Memory() if place is None else memory_in(place), boot)
        else:
            stock = self._entry is None
            await clone(kind.plan, model, template, talk, layout=view.layout, place=place, stock=stock)

    async def _origin(self, model: str, attempt: int, view: View) -> tuple[Kind, Path | None]:
        """What is started, and the directory of the machine of which it is a clone."""
        if self._entry is not None:
            kind = self._entry.kind
            plan = replace(
                kind.plan, sandbox=self._jail != "none", jail=await find_jail(self._jail, kind.plan.qemu)
            )
            return replace(kind, plan=plan), self._entry.place
        kernel, plan = await self._plan(view)
        # The last attempt does without, in case that it is the saving or loading that does not work here.
        clones = self._template and attempt < len(MODELS)
        template = await template_of(plan, model, view.layout) if clones else None
        return Kind(plan, model, kernel.release), template

    async def _plan(self, view: View) -> tuple[Kernel, Plan]:
        if platform.machine() != "x86_64":
            raise RuntimeError(f"virtual machines need a machine with x86-64 processors, not {platform.machine()}")
        qemu = find_qemu()
        disk = (
            None
            if self._disk_of is None
            else await disk_of(self._disk_of, partial(kept, what="making a disk of the image"))
        )
        modules = modules_for(shares=bool(view.shared), disk=disk is not None)
        kernel = await in_thread("to look for a kernel", partial(find_kernel, self._kernel, modules))
        return kernel, Plan(
            qemu=qemu,
            kernel=kernel.image.absolute(),
            initramfs=await initramfs_of(kernel, modules),
            accelerator=await choose(self._accel),
            memory_mib=self._memory_mib,
            cpus=self._cpus,
            shared=view.shared,
            extra_args=self._extra_args,
            disk=disk,
            ports=self._ports,
            sandbox=self._jail != "none",
            jail=await find_jail(self._jail, qemu),
        )


@final
class Making(GuestSpec):
    """A machine that is to be saved when it was prepared.

    Attributes:
        place: the directory for it; set before it is opened.
        machine: the machine, once it runs.
        kind: what it is, likewise.
        root: the root directory that was asked for, in words.
    """

    def __init__(self, spec: MicroVMGuest) -> None:
        self._spec: Final = spec
        self.place: Path
        self.machine: Started
        self.kind: Kind
        self.root: Final = spec._root_in_words()

    @trio.lowlevel.enable_ki_protection
    async def run(self, *, task_status: trio.TaskStatus[GuestHost]) -> None:
        """See `GuestSpec.run`."""
        await self._spec._run(task_status, self)


@final
class Template:
    """A machine that was prepared and kept: `make_template` makes it, and `load` finds it.

    Attributes:
        name: its name; `None` if it ends with the program that has made it.
    """

    def __init__(self, entry: Entry, name: str | None) -> None:
        self._entry: Final = entry
        self.name: Final = name

    def __repr__(self) -> str:
        return f"<trio_console.Template {self.name or 'without a name'}>"

    def guest(
        self, *, env: Mapping[str, str] | None = None, user: str | None = None, workers: Workers = "tasks"
    ) -> MicroVMGuest:
        """A guest that goes on where the template was saved. Its memory, processors, root and ports are those.

        Args:
            env, user, workers: as for `MicroVMGuest`. Those of the machine that was prepared are forgotten.
        """
        return MicroVMGuest(template=self, env=env, user=user, workers=workers)

    @staticmethod
    async def load(name: str) -> Template:
        """The template that was made with a name, by this program or another. If cancelled, nothing changes.

        Args:
            name: the name.

        Raises:
            LookupError: there is none, or it was made with another version of QEMU, with one of this package that
                says other words to machines, or on another processor.
        """
        return Template(await in_thread("for a template", partial(find, name)), name)

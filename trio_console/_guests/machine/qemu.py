"""The command that starts QEMU.

This module must not know how the process is started or watched, or what is said on its console.
"""

from __future__ import annotations

import errno
import os
import shutil
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, final

from trio_console._machine.welcome import ON_DISK, PORT

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from trio_console._guests.machine.jail import Bubblewrap
    from trio_console._guests.machine.view import Shared

__all__ = ["AGENT", "MODELS", "Memory", "Plan", "chardev_of", "command", "find_qemu", "modules_for", "most_memory"]

#: The kinds of machine, in the order in which they are tried. The first boots fastest; some kernels do not know
#: it.
MODELS: Final = ("microvm", "microvm", "q35")

#: QEMU's name for the port that is the agent's console, in its events.
AGENT: Final = "agent"

#: For each kind how its devices are attached.
_BUS: Final = {"microvm": "device", "q35": "pci"}

#: Modules of the kernel, for both kinds.
_MODULES: Final = ("virtio_mmio", "virtio_pci", "virtio_console")
_SHARE_MODULES: Final = ("9pnet_virtio", "9p", "overlay")
_DISK_MODULES: Final = ("virtio_blk", "ext4", "overlay")

#: MiB for what the emulation has translated. QEMU would take up to a gigabyte.
_TRANSLATED: Final = 256

#: MiB that QEMU may have beside the machine's memory and translations: stacks for 64 threads and for hundreds of
#: requests, which it hardly touches, and what it keeps for devices, such as each file that the machine has open in
#: a share. It takes some 70.
_OWN: Final = 1024

#: What a QEMU that a guest has taken over may not do any more: start programs, change its rights.
_SANDBOX: Final = "on,obsolete=deny,elevateprivileges=deny,spawn=deny,resourcecontrol=deny"


@final
@dataclass(frozen=True)
class Plan:
    """A machine to be started."""

    qemu: str
    kernel: Path
    initramfs: Path
    accelerator: str
    memory_mib: int
    cpus: int
    shared: Sequence[Shared]
    extra_args: Sequence[str]
    disk: Path | None = None
    ports: Sequence[str] = ()
    sandbox: bool = True
    jail: Bubblewrap | None = None

    @property
    def jailed_by(self) -> str:
        """The word for what is around QEMU."""
        if self.jail is not None:
            return "bwrap"
        return "seccomp" if self.sandbox else "none"


@final
@dataclass(frozen=True)
class Memory:
    """The memory of a machine.

    Attributes:
        path: the file in which it lies, which has its size; `None`, the default, for no file.
        private: whether what the machine changes is its own, and not written to the file; by default not.
        saved: whether it goes on where a machine was saved, and waits to be told where the state of that is; by
            default not.
        apart: whether the state of a machine that was saved has nothing of its memory; by default not.
    """

    path: Path | None = None
    private: bool = False
    saved: bool = False
    apart: bool = False


_ANY_MEMORY: Final = Memory()


def find_qemu() -> str:
    """The path of the program.

    Raises:
        FileNotFoundError: it is not installed.
    """
    name = "qemu-system-x86_64"
    if (found := shutil.which(name)) is None:
        raise FileNotFoundError(
            errno.ENOENT, "QEMU for x86-64 is not installed; get it with: trio-console vm setup", name
        )
    return os.path.realpath(found)


def modules_for(*, shares: bool, disk: bool = False) -> tuple[str, ...]:
    """The kernel's modules that a machine needs, in case they are not built in."""
    return tuple(dict.fromkeys((*_MODULES, *(_SHARE_MODULES * shares), *(_DISK_MODULES * disk))))


def most_memory(plan: Plan) -> int:
    """The bytes of memory that QEMU may have, whatever its machine does."""
    return (plan.memory_mib + _TRANSLATED + _OWN) * 2**20


def command(
    plan: Plan, model: str, console: int | None, *, monitor: int | None = None, memory: Memory = _ANY_MEMORY
) -> list[str]:
    """The command for one kind of machine, whose console and monitor are descriptors that QEMU inherits.

    The console leads nowhere if it is `None`.
    The kernel's own console is QEMU's error output: so the last that either has said is in one place.
    """
    bus = _BUS[model]
    made = [
        *(plan.qemu, "-nodefaults", "-no-user-config", "-display", "none", "-no-reboot"),
        *(("-sandbox", _SANDBOX) if plan.sandbox else ()),
        *("-m", f"{plan.memory_mib}M", "-smp", str(plan.cpus)),
        *_processor(plan.accelerator),
        *_machine(model, ",memory-backend=memory"),
        *("-chardev", "file,id=kernel,path=/dev/fd/2", "-serial", "chardev:kernel"),
        *("-device", f"virtio-serial-{bus},id=ports"),
        *("-chardev", "null,id=console" if console is None else f"socket,id=console,fd={console}"),
        *("-device", f"virtserialport,bus=ports.0,chardev=console,name={PORT},id={AGENT}"),
    ]
    for number, name in enumerate(plan.ports):
        made += ["-chardev", f"null,id={chardev_of(number)}"]  # until the host opens it: see `ports`
        made += ["-device", f"virtserialport,bus=ports.0,chardev={chardev_of(number)},name={name}"]
    for share in plan.shared:
        path = share.path.replace(",", ",,")
        rights = "off" if share.writable else "on"
        made += [
            "-fsdev",
            f"local,id={share.tag},path={path},security_model=none,readonly={rights},multidevs=remap",
        ]
        made += ["-device", f"virtio-9p-{bus},fsdev={share.tag},mount_tag={share.tag}"]
    if monitor is not None:
        made += ["-chardev", f"socket,id=monitor,fd={monitor}", "-mon", "chardev=monitor,mode=control"]
    if not memory.saved:
        # (A clone has its kernel in its memory. QEMU would read all of both files before it loads anything.)
        made += ["-kernel", str(plan.kernel), "-initrd", str(plan.initramfs)]
        made += ["-append", _kernel_arguments(plan.accelerator, disk=plan.disk is not None)]
    made += _memory(memory, plan)
    if plan.disk is not None:
        path = str(plan.disk).replace(",", ",,")
        made += ["-drive", f"if=none,id=root,format=raw,readonly=on,file={path}"]
        made += ["-device", f"virtio-blk-{bus},drive=root"]
    return [*made, *plan.extra_args]


def chardev_of(number: int) -> str:
    """QEMU's name for this machine's end of the further port with this number."""
    return f"port{number}"


def _memory(memory: Memory, plan: Plan) -> list[str]:
    size = f"id=memory,size={plan.memory_mib}M"
    if memory.path is None:
        made = ["-object", f"memory-backend-ram,{size}"]
    else:
        path = str(memory.path).replace(",", ",,")
        shared = "off" if memory.private else "on"
        if memory.private and plan.jail is not None and plan.jail.reads_only:
            shared += ",readonly=on,rom=off"
        made = ["-object", f"memory-backend-file,{size},mem-path={path},share={shared}"]
    if memory.apart:
        made += ["-global", "migration.send-configuration=off"]  # (QEMU writes the devices without a heading)
    return [*made, "-incoming", "defer"] if memory.saved else made


def _processor(accelerator: str) -> list[str]:
    if accelerator == "kvm":
        return ["-accel", "kvm", "-cpu", "host"]
    # Without cmpxchg16b, which QEMU 7.2 emulates so that some kernels crash.
    return ["-accel", f"tcg,thread=multi,tb-size={_TRANSLATED}", "-cpu", "max,-cx16"]


def _machine(model: str, options: str) -> list[str]:
    if model == "microvm":
        return ["-M", f"microvm,rtc=on{options}", "-global", "virtio-mmio.force-legacy=false"]
    return ["-M", f"{model}{options}"]


def _kernel_arguments(accelerator: str, *, disk: bool = False) -> str:
    # A panic ends QEMU, because a restart does, which is made by an error that every processor answers so.
    words = ["console=ttyS0", "quiet", "panic=-1", "reboot=t", *([ON_DISK] if disk else ())]
    if accelerator == "tcg":
        # On a busy machine the kernel cannot find out how fast its clock counts, and would never start. It counts
        # as fast as that of this machine.
        words += ["tsc=reliable", "no_timer_check"]
        # Each process has its programs at the same addresses, because what QEMU has translated counts for these
        # only. Elsewhere it would translate the loader, the C library and the program anew for each process, which
        # takes most of the time of a short one.
        words.append("norandmaps")
        if (rate := _clock_rate()) is not None:
            words.append(f"tsc_early_khz={rate}")
    return " ".join(words)


def _clock_rate() -> int | None:
    """How fast the clock of this machine's processors counts, in kHz, as the kernel has measured it."""
    try:
        with open("/proc/cpuinfo") as file:
            for line in file:
                name, _, value = line.partition(":")
                if name.strip() == "bogomips":
                    return round(float(value) * 500)
    except (OSError, ValueError):
        pass
    return None

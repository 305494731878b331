"""``vm``: gets what virtual machines need, says what works here, and removes what is kept for them."""

from __future__ import annotations

import os
import subprocess
import sys
from typing import TYPE_CHECKING, Final, NamedTuple

import trio

from trio_console._cli.signals import act_by_default
from trio_console._cli.standard import say
from trio_console._errors import in_words
from trio_console._guests.images.disk import KIND as DISKS
from trio_console._guests.machine.accelerator import ANSWERS, kvm_runs
from trio_console._guests.machine.jail import JAILS, find_bubblewrap
from trio_console._guests.machine.qemu import find_qemu, modules_for
from trio_console._guests.machine.saved.prepared import prune_prepared
from trio_console._guests.machine.saved.template import TEMPLATES
from trio_console._guests.machine.stock.cache import directory, prune
from trio_console._guests.machine.stock.initramfs import INITRAMFS
from trio_console._guests.machine.stock.kernel import KERNELS, find_kernel
from trio_console._guests.machine.stock.setup import SetupError, get_kernels, get_qemu
from trio_console._trio.threads import NoThreadError

if TYPE_CHECKING:
    import argparse

__all__ = ["vm"]

_KINDS: Final = (ANSWERS, DISKS, INITRAMFS, JAILS, KERNELS, TEMPLATES)


def vm(args: argparse.Namespace) -> int:
    """Run one of the command's actions; returns the exit status."""
    act_by_default()
    try:
        if args.action == "setup":
            get_qemu(_print)
            trio.run(get_kernels, _print)
            return 0
        if args.action == "doctor":
            return trio.run(_doctor)
        freed = trio.run(prune, _KINDS) + prune_prepared()
    except (OSError, SetupError, NoThreadError) as exc:
        say(in_words(exc))
        return 1
    _print(f"{directory()}: {freed / 2**20:.0f} MiB freed")
    return 0


def _print(line: str) -> None:
    sys.stdout.write(f"{line}\n")
    sys.stdout.flush()


class _Finding(NamedTuple):
    what: str
    works: bool
    why: str


async def _doctor() -> int:
    kernels = [_kernel("kernel", shares=False), _kernel("kernel with shares", shares=True)]
    findings = [_qemu(), *kernels, _kvm(runs=await kvm_runs()), await _jail()]
    width = max(len(finding.what) for finding in findings)
    for finding in findings:
        _print(f"{finding.what:{width}}  {'yes' if finding.works else 'no':3}  {finding.why}")
    _print(f"{'kept in':{width}}       {directory()}")
    qemu, kernel, *_ = findings
    return 0 if qemu.works and kernel.works else 1


def _qemu() -> _Finding:
    try:
        path = find_qemu()
    except FileNotFoundError as exc:
        return _Finding("QEMU", works=False, why=in_words(exc))
    done = subprocess.run([path, "--version"], capture_output=True, text=True, check=False)
    version = done.stdout.partition("\n")[0]
    return _Finding("QEMU", works=done.returncode == 0, why=version or done.stderr.strip())


def _kernel(what: str, *, shares: bool) -> _Finding:
    try:
        kernel = find_kernel(None, modules_for(shares=shares))
    except FileNotFoundError as exc:
        return _Finding(what, works=False, why=in_words(exc))
    return _Finding(what, works=True, why=f"{kernel.release} ({kernel.image})")


def _kvm(*, runs: bool) -> _Finding:
    if runs:
        return _Finding("KVM", works=True, why="it runs guests on the processor")
    if not os.path.exists("/dev/kvm"):
        why = "there is no /dev/kvm"
    elif not os.access("/dev/kvm", os.R_OK | os.W_OK):
        why = "this user may not open /dev/kvm"
    else:
        why = "/dev/kvm opens, but does not run a guest's kernel on the processor"
    return _Finding("KVM", works=False, why=f"{why}; machines are emulated")


async def _jail() -> _Finding:
    what = "bubblewrap"
    try:
        await find_bubblewrap(find_qemu())
    except (OSError, subprocess.TimeoutExpired) as exc:
        return _Finding(what, works=False, why=f"{in_words(exc)}; QEMU has its own filter alone")
    return _Finding(what, works=True, why="QEMU runs in it, and sees only its own files")

"""What is known of the virtual machine that a guest is: `Machine`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, final

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = ["Machine"]


@final
@dataclass(frozen=True)
class Machine:
    """The virtual machine of a guest, as it was started.

    Attributes:
        accelerator: ``"kvm"``, or ``"tcg"`` for a processor that QEMU emulates.
        model: QEMU's name for the kind of machine: ``"microvm"``, or ``"q35"``, with which a start is tried last.
        jail: what is around QEMU: ``"bwrap"`` for bubblewrap and seccomp, ``"seccomp"``, or ``"none"``.
        kernel: the release of its kernel, as ``uname -r`` says it.
        cloned: whether it goes on from a machine that was started before.
        attempts: how many starts it took; 1 unless a machine said nothing and was given up.
        seconds: the seconds that each phase took, in this order: ``"prepare"`` (find or make kernel and
            initramfs, and the template), ``"boot"`` or, of a clone, ``"load"`` (of the last attempt, until the
            agent was told its settings), ``"ready"`` (from then on).
    """

    accelerator: str
    model: str
    jail: str
    kernel: str
    cloned: bool
    attempts: int
    seconds: Mapping[str, float]

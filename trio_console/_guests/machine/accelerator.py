"""What runs a machine's instructions: the processor by KVM, where that works, or QEMU's emulation."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path
from typing import Final, Literal, TypeAlias

from trio_console._guests.interpreter import executable, place_of_this_package
from trio_console._guests.machine.stock.cache import by_thread, kept, key_of

__all__ = ["ANSWERS", "Accelerator", "check_accelerator", "choose", "kvm_runs", "start_of_this_machine"]

Accelerator: TypeAlias = Literal["auto", "kvm", "tcg"]

_DEVICE: Final = "/dev/kvm"

#: The kind of the answers in the cache.
ANSWERS: Final = "kvm"
_ANSWER: Final = "answer"
_YES: Final = "it runs guests"

_PROGRAM: Final = "import sys; sys.path.append({!r}); from trio_console._guests.machine._kvm import main; main()"

#: Seconds for the program that asks. It needs a tenth of one, most of it to start Python.
_TIME: Final = 5.0


def check_accelerator(accel: Accelerator) -> Accelerator:
    """Raise if ``accel`` is none of the three words; return it."""
    if accel not in ("auto", "kvm", "tcg"):
        raise ValueError(f'accel must be "auto", "kvm" or "tcg", not {accel!r:.100}')
    return accel


async def choose(wanted: Accelerator) -> str:
    """QEMU's word for the accelerator to use: ``"kvm"`` or ``"tcg"``."""
    if wanted == "auto":
        return "kvm" if await kvm_runs() else "tcg"
    return wanted


async def kvm_runs() -> bool:
    """Whether KVM runs guests on the processor, and this user may use it.

    It is tried once after each start of this machine, because that takes a tenth of a second.
    """
    if not os.access(_DEVICE, os.R_OK | os.W_OK):
        return False
    place = await kept(ANSWERS, key_of(os.uname().release, start_of_this_machine()), by_thread(_ask))
    return (place / _ANSWER).read_text() == _YES


def start_of_this_machine() -> str:
    """Another text after each start of this machine."""
    return Path("/proc/sys/kernel/random/boot_id").read_text()


def _ask(place: Path) -> None:
    command = [executable(), "-I", "-S", "-c", _PROGRAM.format(place_of_this_package())]
    try:
        done = subprocess.run(command, capture_output=True, timeout=_TIME, check=False)
        answer = _YES if done.returncode == 0 else "it does not"
    except subprocess.TimeoutExpired:
        answer = "it does not answer"
    (place / _ANSWER).write_text(answer)

"""A program that finds out whether KVM runs guests on the processor; its exit status is 0 if it does.

That ``/dev/kvm`` opens and makes machines proves little: there are kernels whose KVM interprets a guest's kernel
instruction by instruction, a thousand times slower and without the instructions that every kernel uses. So two
small guests run in 64-bit mode with a kernel's rights: one for such an instruction, and a loop of a million
rounds, which takes under a millisecond on a processor.

It is a program of its own, because KVM may not return, and because it takes a signal to stop a guest.
"""

from __future__ import annotations

import ctypes
import fcntl
import mmap
import os
import signal
import struct
import sys
from contextlib import ExitStack, suppress
from typing import Final

__all__ = ["main"]

#: Seconds for each of the two guests.
_TIME: Final = 0.2

#: mov edi, 0x200000; lock cmpxchg16b [rdi]; hlt
_EXCHANGE: Final = bytes.fromhex("bf00002000 f0480fc70f f4")
#: mov ecx, 1000000; again: dec rcx; jnz again; hlt
_MILLION: Final = bytes.fromhex("b940420f00 48ffc9 75fb f4")

# Of <linux/kvm.h>.
_GET_API_VERSION: Final = 0xAE00
_CREATE_VM: Final = 0xAE01
_GET_VCPU_MMAP_SIZE: Final = 0xAE04
_GET_SUPPORTED_CPUID: Final = 0xC008AE05
_CREATE_VCPU: Final = 0xAE41
_SET_USER_MEMORY_REGION: Final = 0x4020AE46
_RUN: Final = 0xAE80
_GET_REGS: Final = 0x8090AE81
_SET_REGS: Final = 0x4090AE82
_GET_SREGS: Final = 0x8138AE83
_SET_SREGS: Final = 0x4138AE84
_SET_CPUID2: Final = 0x4008AE90
_API_VERSION: Final = 12
_EXIT_HLT: Final = 5
_EXIT_REASON_AT: Final = 8
_RIP_AT: Final = 128

_MEMORY: Final = 4 * 1024 * 1024
_CODE_AT: Final = 0x1000
#: Page tables that map the memory to itself, and descriptors of a code and a data segment.
_TABLES: Final = (
    *((0x2000, 0x3007), (0x3000, 0x4007), (0x4000, 0x87), (0x4008, 0x200087)),
    *((0x5008, 0x00AF9B000000FFFF), (0x5010, 0x00CF93000000FFFF)),
)


def _segment(selector: int, kind: int, *, big: int, long: int) -> bytes:
    return struct.pack("<QIHBBBBBBBBBB", 0, 0xFFFFFFFF, selector, kind, 1, 0, big, 1, long, 1, 0, 0, 0)


def _runs(code: bytes) -> bool:
    """Whether a guest gets to the end of its code in time."""
    with ExitStack() as stack:

        def keep(fd: int) -> int:
            stack.callback(os.close, fd)
            return fd

        kvm = keep(os.open("/dev/kvm", os.O_RDWR | os.O_CLOEXEC))
        if fcntl.ioctl(kvm, _GET_API_VERSION) != _API_VERSION:
            return False
        machine = keep(fcntl.ioctl(kvm, _CREATE_VM, 0))
        memory = mmap.mmap(-1, _MEMORY)
        memory[_CODE_AT : _CODE_AT + len(code)] = code
        for at, value in _TABLES:
            memory[at : at + 8] = struct.pack("<Q", value)
        address = ctypes.addressof(ctypes.c_char.from_buffer(memory))
        fcntl.ioctl(machine, _SET_USER_MEMORY_REGION, struct.pack("<IIQQQ", 0, 0, 0, _MEMORY, address))
        processor = keep(fcntl.ioctl(machine, _CREATE_VCPU, 0))
        shared = mmap.mmap(processor, fcntl.ioctl(kvm, _GET_VCPU_MMAP_SIZE))
        _set_up(kvm, processor)
        signal.setitimer(signal.ITIMER_REAL, _TIME)
        status = ctypes.CDLL(None).ioctl(processor, _RUN, 0)
        signal.setitimer(signal.ITIMER_REAL, 0)
        registers = bytearray(144)
        fcntl.ioctl(processor, _GET_REGS, registers)
        reason = struct.unpack_from("<I", shared, _EXIT_REASON_AT)[0]
        reached = struct.unpack_from("<Q", registers, _RIP_AT)[0]
        return bool(status == 0 and reason == _EXIT_HLT and reached == _CODE_AT + len(code))


def _set_up(kvm: int, processor: int) -> None:
    """Put a processor into 64-bit mode, at the start of the code."""
    features = bytearray(8 + 40 * 256)
    struct.pack_into("<I", features, 0, 256)
    fcntl.ioctl(kvm, _GET_SUPPORTED_CPUID, features)
    fcntl.ioctl(processor, _SET_CPUID2, features)
    special = bytearray(312)
    fcntl.ioctl(processor, _GET_SREGS, special)
    special[0:24] = _segment(8, 11, big=0, long=1)
    for number in range(1, 6):
        special[24 * number : 24 * (number + 1)] = _segment(16, 3, big=1, long=0)
    struct.pack_into("<QH", special, 192, 0x5000, 23)
    struct.pack_into("<QQQQQQ", special, 224, 0x80050033, 0, 0x2000, 0x20, 0, 0x500)
    fcntl.ioctl(processor, _SET_SREGS, special)
    registers = bytearray(144)
    struct.pack_into("<QQ", registers, _RIP_AT, _CODE_AT, 2)
    struct.pack_into("<Q", registers, 48, 0x8000)
    fcntl.ioctl(processor, _SET_REGS, registers)


def main() -> None:
    """The program."""
    signal.signal(signal.SIGALRM, lambda *_: None)
    with suppress(OSError):
        if _runs(_EXCHANGE) and _runs(_MILLION):
            sys.exit(0)
    sys.exit(1)

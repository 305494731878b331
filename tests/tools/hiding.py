"""A program that nobody can look at: it has taken its arguments and its environment away from itself.

It needs no rights for that: prctl(2) lets each process say where in its memory these are.
"""

from __future__ import annotations

import pytest

__all__ = ["HIDING", "check_hidden"]

#: As an argument of ``python -c``. It says "hidden" when it is, or "refused" where the kernel has no such call
#: (it is one of its options), and then sleeps.
HIDING = """\
import ctypes, os, struct, time
line = open("/proc/self/stat").read()
field = lambda number: int(line.rpartition(")")[2].split()[number - 3])
libc = ctypes.CDLL(None)
libc.sbrk.restype = ctypes.c_void_p
memory = [field(26), field(27), field(45), field(46), field(47), libc.sbrk(0), field(28)]
memory += [field(48)] * 2 + [field(50)] * 2
memory = struct.pack("=12QII", *memory, 0, 0, 2**32 - 1)
hides = libc.prctl(35, 14, ctypes.create_string_buffer(memory), ctypes.c_ulong(len(memory)), 0) == 0
os.write(1, b"hidden\\n" if hides else b"refused\\n")  # (in one piece, however Python buffers)
time.sleep(1000)
"""


def check_hidden(said: bytes) -> None:
    """Check what the program has said; the test is skipped on a kernel that does not know how to do it."""
    if said == b"refused\n":
        pytest.skip("this kernel lets no process change where its arguments are")
    assert said == b"hidden\n"

"""The Python that runs the agent where nothing of this machine can be seen: its files, and where they lie there.

It is this program's interpreter, with its standard library, the libraries that these are linked to, and the
agent's modules. All of it is in one directory, `PLACE`, and started by its own dynamic loader. So it does not
matter what else is in the guest: it may have another C library, or none.

This module must not know how the files get there.
"""

from __future__ import annotations

import functools
import glob
import os
import re
import struct
import subprocess
import sys
import sysconfig
from dataclasses import dataclass
from typing import Final, final

from trio_console._bundle.packages import needed_modules
from trio_console._guests.interpreter import executable, letters

__all__ = ["PLACE", "Runtime", "find_runtime"]

#: Where it lies in the guest.
PLACE: Final = "/run/trio-console"

#: Extension modules of the standard library that the agent does not use, and that are linked to many libraries.
_UNUSED: Final = ("_curses", "_dbm", "_gdbm", "_sqlite3", "_test", "_tkinter", "nis", "readline")

#: Seconds for the dynamic loader to name the libraries: it reads their heads only.
_LOADER_TIME: Final = 30.0

_PT_INTERP: Final = 3


@final
@dataclass(frozen=True)
class Runtime:
    """The files of a Python, and the beginning of the command that starts it.

    Attributes:
        files: the path of each file or directory on this machine, by its path in the guest.
        hidden: directories in these that are to be empty.
        command: to which options and a program are added.
        modules: the directory that is to be in ``sys.path``.
    """

    files: dict[str, str]
    hidden: tuple[str, ...]
    command: tuple[str, ...]
    modules: str


@functools.cache
def find_runtime() -> Runtime:
    """Find it. It blocks for about 0.1 seconds, the first time.

    Raises:
        RuntimeError: this program has no interpreter that could be started.
        OSError: a file of it cannot be read.
    """
    python = _base_interpreter()
    library = sysconfig.get_path("stdlib", vars=_base_variables())
    in_guest = f"{PLACE}/{sys.platlibdir}/{os.path.basename(library)}"
    files = {f"{PLACE}/bin/python": python, in_guest: library}
    modules = needed_modules()
    files.update({f"{PLACE}/modules/{name}": path for name, path in modules.items()})
    command = [f"{PLACE}/bin/python", *letters(), "-I", "-S"]
    loader = _loader_of(python)
    if loader is not None:
        extensions = [
            path
            for place in (f"{library}/lib-dynload/*.so", *(f"{path}/*.so" for path in modules.values()))
            for path in glob.glob(place)
            if not os.path.basename(path).startswith(_UNUSED)
        ]
        linked = _libraries(loader, python, extensions)
        files[f"{PLACE}/loader"] = loader
        files.update({f"{PLACE}/libraries/{name}": path for name, path in linked.items()})
        command = [f"{PLACE}/loader", "--library-path", f"{PLACE}/libraries", *command]
    hidden = tuple(f"{in_guest}/{name}" for name in ("site-packages",) if os.path.isdir(f"{library}/{name}"))
    return Runtime(files, hidden, tuple(command), f"{PLACE}/modules")


def _base_interpreter() -> str:
    """The interpreter of this program; in a virtual environment, the one that this stands on."""
    given = executable()
    base: str | None = getattr(sys, "_base_executable", None)
    return os.path.realpath(base if base and os.path.exists(base) else given)


def _base_variables() -> dict[str, str]:
    return {"installed_base": sys.base_prefix, "installed_platbase": sys.base_exec_prefix}


def _loader_of(program: str) -> str | None:
    """The dynamic loader that a program names in its ELF header; `None` if it needs none."""
    with open(program, "rb") as file:
        head = file.read(64)
        if head[:4] != b"\x7fELF":
            raise OSError(f"the interpreter {program!r} is no ELF program: a guest cannot have a copy of it")
        wide, order = head[4] == 2, "<" if head[5] == 1 else ">"
        (start,) = struct.unpack_from(f"{order}{'Q' if wide else 'I'}", head, 32 if wide else 28)
        size, count = struct.unpack_from(f"{order}HH", head, 54 if wide else 42)
        for number in range(count):
            file.seek(start + number * size)
            entry = file.read(size)
            if struct.unpack_from(f"{order}I", entry)[0] == _PT_INTERP:
                form, offset, length = ("Q", 8, 32) if wide else ("I", 4, 16)
                (where,) = struct.unpack_from(f"{order}{form}", entry, offset)
                (bytes_,) = struct.unpack_from(f"{order}{form}", entry, length)
                file.seek(where)
                return os.fsdecode(file.read(bytes_).rstrip(b"\0"))
    return None


def _libraries(loader: str, program: str, extensions: list[str]) -> dict[str, str]:
    """The path of each library that a program and its extension modules are linked to, by its name in them."""
    command = [loader, "--preload", " ".join(path for path in extensions if " " not in path), "--list", program]
    said = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, timeout=_LOADER_TIME, check=True)
    return dict(re.findall(r"^\s*(\S+) => (/\S+) \(", os.fsdecode(said.stdout), re.MULTILINE))

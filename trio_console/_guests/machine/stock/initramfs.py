"""The first file system of a machine: this program's Python with the agent, a shell, and the kernel's modules.

It is made of files of this machine, by nothing but Python: what the agent imports is asked of a fresh interpreter,
and which shared libraries that needs of the system's loader (``ldd``).

This module must not know the machine that boots it.
"""

from __future__ import annotations

import marshal
import os
import re
import shutil
import subprocess
import sys
import sysconfig
import tempfile
from functools import partial
from importlib.util import MAGIC_NUMBER, find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Final

from trio_console._guests.interpreter import find_modules, place_of_this_package
from trio_console._guests.machine.stock.cache import by_thread, kept, key_of, stamp
from trio_console._guests.machine.stock.cpio import Archive

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from trio_console._guests.machine.stock.kernel import Kernel

__all__ = ["INITRAMFS", "initramfs_of", "libraries_of"]

#: The kind of these in the cache.
INITRAMFS: Final = "initramfs"

#: Archives that are kept, of some 40 MiB each.
_MOST: Final = 8

_FILE: Final = "initramfs.cpio"

#: Changed when the code below makes something else of the same files.
_EDITION: Final = 1

#: Where modules are that do not belong to Python.
_PLACE: Final = "/agent"

#: What commands find in a machine without this machine's programs, as far as it is here.
_COMMANDS: Final = (
    *("sh", "basename", "cat", "chmod", "chown", "cp", "cut", "date", "dd", "df", "dirname", "du", "echo", "env"),
    *(
        "false",
        "find",
        "grep",
        "head",
        "hostname",
        "id",
        "kill",
        "ln",
        "ls",
        "mkdir",
        "mktemp",
        "mount",
        "mv",
        "nproc",
    ),
    *(
        "printf",
        "ps",
        "pwd",
        "readlink",
        "rm",
        "rmdir",
        "sed",
        "seq",
        "sha256sum",
        "sleep",
        "sort",
        "stat",
        "stty",
    ),
    *("tail", "tee", "test", "timeout", "touch", "tr", "true", "tty", "umount", "uname", "uniq", "wc", "which"),
    *("xargs", "yes"),
)
_PATHS: Final = "/usr/local/bin:/usr/bin:/bin:/usr/sbin:/sbin"

#: Packages that the agent needs; another version has other files.
_NEEDED: Final = ("attr", "cbor2", "idna", "msgspec", "outcome", "sniffio", "sortedcontainers", "trio")

#: Files of this size and more are stripped of what only debuggers need, where ``strip`` is installed.
_WORTH_STRIPPING: Final = 1024 * 1024

#: A library as ldd names it: behind an arrow, or, for the loader itself, at the start of its line.
_LIBRARY: Final = re.compile(r"(?:=> |^\s*)(/\S+) \(0x", re.MULTILINE)

#: Run in a fresh interpreter: tells of each module that the agent needs its name, whether it is a package, the
#: file that is loaded as it is, or else its code.
_COLLECT: Final = """\
import importlib, marshal
from trio_console.agent._init import modules_of_agent
for name in modules_of_agent():
    importlib.import_module(name)
import runpy
found = []
for name, module in sorted(sys.modules.items()):
    spec = getattr(module, "__spec__", None)
    if spec is None or not spec.has_location or name == "__main__":
        continue
    package = spec.submodule_search_locations is not None
    code = spec.loader.get_code(name) if hasattr(spec.loader, "get_code") else None
    found.append((name, package, spec.origin, None if code is None else marshal.dumps(code)))
sys.stdout.buffer.write(marshal.dumps(found))
"""

_INIT: Final = """\
#!{python} -IS
import sys
sys.path.insert(0, {place!r})
from trio_console.agent._init import main
main()
"""

_ETC: Final = {
    "passwd": "root:x:0:0:root:/root:/bin/sh\nnobody:x:65534:65534:nobody:/nonexistent:/bin/false\n",
    "group": "root:x:0:\ntty:x:5:\nnogroup:x:65534:\n",
}


async def initramfs_of(kernel: Kernel, modules: Iterable[str]) -> Path:
    """The path of the archive, which is made if it is not in the cache.

    Raises:
        OSError, RuntimeError: it cannot be made.
    """
    modules = tuple(modules)
    key = key_of(_EDITION, sys.version, _ingredients(), stamp(kernel.image), kernel.modules, modules)
    make = by_thread(partial(_make, kernel, modules))
    return await kept(INITRAMFS, key, make, what="making the archive that machines start from", most=_MOST) / _FILE


def _python() -> str:
    """The interpreter itself, without a virtual environment."""
    return os.path.realpath(getattr(sys, "_base_executable", "") or sys.executable)


def _ingredients() -> list[object]:
    """Stamps of the files by which another agent, or another Python, is noticed."""
    ours = place_of_this_package()
    files = sorted(_sources(os.path.join(ours, "trio_console"))) if os.path.isdir(ours) else [ours]
    specs = map(find_spec, _NEEDED)
    origins = [spec.origin for spec in specs if spec is not None and spec.origin is not None]
    return [stamp(path) for path in [_python(), *files, *origins] if os.path.exists(path)]


def _sources(folder: str) -> Iterator[str]:
    for place, _, names in os.walk(folder):
        yield from (os.path.join(place, name) for name in names if name.endswith(".py"))


def _make(kernel: Kernel, modules: Iterable[str], place: Path) -> None:
    """Write the archive. Blocks for about a second."""
    with open(place / _FILE, "wb") as file:
        archive = Archive(file)
        for directory, mode in (("dev", 0o755), ("proc", 0o755), ("sys", 0o755), ("run", 0o755), ("root", 0o700)):
            archive.directory(directory, mode)
        for directory in ("tmp", "var/tmp"):
            archive.directory(directory, 0o1777)
        archive.device("dev/console", 5, 1)  # for what goes wrong before the program has its devices
        for name, text in _ETC.items():
            archive.file(f"etc/{name}", text.encode())
        for number, (name, data) in enumerate(kernel.modules_for(modules)):
            archive.file(f"lib/modules/{number:03}-{name}.ko", data)
        _add_python(archive)
        archive.end()


def _add_python(archive: Archive) -> None:
    python = _python()
    loaded = [python]
    for name, package, origin, code in _modules():
        if code is None:
            loaded.append(origin)
            archive.file(_place_of(name, origin, os.path.basename(origin)), Path(origin).read_bytes(), 0o755)
        else:
            # Bytecode without its source: a header that is not compared with anything, and the code.
            last = "__init__.pyc" if package else name.rpartition(".")[2] + ".pyc"
            place = _place_of(name + ".x" if package else name, origin, last)
            archive.file(place, MAGIC_NUMBER + bytes(12) + code)
    stdlib = sysconfig.get_path("stdlib")
    archive.file(f"{stdlib}/os.py", b"")  # by which this Python knows where its library is
    archive.directory(f"{stdlib}/lib-dynload")
    archive.file(python, _stripped(python), 0o755)
    archive.link("usr/bin/python3", python)
    archive.file("init", _INIT.format(python=python, place=_PLACE).encode(), 0o755)
    for name in _COMMANDS:
        if (found := shutil.which(name, path=_PATHS)) is not None:
            loaded.append(found)
            archive.file(f"bin/{name}", Path(found).read_bytes(), 0o755)
    for library in libraries_of(loaded):
        archive.file(library, _stripped(library), 0o755)


def _place_of(name: str, origin: str, last: str) -> str:
    """Where a module is in the machine: Python's own where it is here, since Python looks for it there."""
    for root in {sysconfig.get_path("stdlib"), sysconfig.get_path("platstdlib")}:
        if origin.startswith(root + "/") and "site-packages" not in origin and "dist-packages" not in origin:
            return f"{os.path.dirname(origin)}/{last}"
    return "/".join([_PLACE, *name.split(".")[:-1], last])


def _modules() -> list[tuple[str, bool, str, bytes | None]]:
    program = find_modules() + _COLLECT
    command = [sys.executable, "-I", "-S", "-"]
    done = subprocess.run(command, input=program.encode(), capture_output=True, check=False)
    if done.returncode:
        said = done.stderr.decode(errors="replace").strip()
        raise RuntimeError(f"a fresh interpreter ({sys.executable}) could not import the agent: {said}")
    found: list[tuple[str, bool, str, bytes | None]] = marshal.loads(done.stdout)
    return found


def libraries_of(files: Iterable[str]) -> Iterator[str]:
    """The shared libraries that these programs and libraries need, by the paths at which they are looked for."""
    try:
        # (A script among them, or a static program, has none, and makes the status 1.)
        done = subprocess.run(["ldd", *files], capture_output=True, check=False)
    except FileNotFoundError as exc:
        raise FileNotFoundError(
            exc.errno, "ldd is needed to find the libraries of a machine; it belongs to the C library", "ldd"
        ) from exc
    found = dict.fromkeys(_LIBRARY.findall(done.stdout.decode(errors="surrogateescape")))
    yield from found
    for library in found:
        # The C library loads it by itself when a thread ends.
        if os.path.basename(library) == "libc.so.6":
            helper = os.path.join(os.path.dirname(library), "libgcc_s.so.1")
            if os.path.exists(helper):
                yield helper


def _stripped(path: str) -> bytes:
    strip = shutil.which("strip")
    if strip is not None and os.path.getsize(path) >= _WORTH_STRIPPING:
        with tempfile.NamedTemporaryFile() as file:
            command = [strip, "--strip-unneeded", "-o", file.name, path]
            if not subprocess.run(command, capture_output=True, check=False).returncode:
                return Path(file.name).read_bytes()
    return Path(path).read_bytes()

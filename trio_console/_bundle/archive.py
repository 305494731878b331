"""The agent with all that it needs in one file, which any Python of some versions runs (`zipapp` has the format).

The same versions of everything make the same bytes. What is compiled is taken from this installation for this
version of Python, and for others from the wheels of the same releases, which pip finds.
"""

from __future__ import annotations

import importlib.metadata
import os
import platform
import re
import subprocess
import sys
import tempfile
import zipfile
from contextlib import suppress
from typing import TYPE_CHECKING, Final

from trio_console._bundle.packages import needed_modules

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

__all__ = ["VERSIONS", "BundleError", "write_bundle"]

#: The versions of Python that are released, and that the agent runs on.
VERSIONS: Final = ("3.11", "3.12", "3.13", "3.14")

#: The parts of this package that the agent does not import.
_HOSTS_PARTS: Final = frozenset({"_cli", "_console", "_guests", "_relay", "_session", "testing"})

#: Directories of packages that only their tests and tools use.
_UNUSED: Final = frozenset({"__pycache__", "_tests", "_tools", "tests"})

#: The distributions with compiled modules, and those modules.
_COMPILED: Final = {"cbor2": "cbor2._cbor2", "msgspec": "msgspec._core"}

_MAIN: Final = """\
import sys
if sys.version_info < (3, 11):
    sys.exit("the agent needs Python 3.11 or later, not " + sys.version.partition(" ")[0])
from trio_console._bundle.compiled import load_from
load_from(__loader__, {needed!r})
from trio_console.agent.__main__ import main
sys.exit(main())
"""

_SHEBANG: Final = b"#!/usr/bin/env python3\n"

#: The time of all files in it: the earliest that the format has.
_TIME: Final = (1980, 1, 1, 0, 0, 0)
_MODE: Final = 0o644 << 16

#: Seconds for pip to fetch the wheels for one version.
_PIP_TIME: Final = 300.0


class BundleError(Exception):
    """The bundle cannot be made. The message says why, and what to do."""


def write_bundle(
    path: str | os.PathLike[str], versions: Sequence[str] = VERSIONS, wheels: str | None = None
) -> int:
    """Write the bundle, all at once: a file that was there is replaced, or unchanged if this raises.

    It blocks.

    Args:
        path: of the file; it becomes executable.
        versions: of Python, such as ``"3.12"``, for which it is to have compiled modules.
        wheels: a directory in which the wheels are, for those without a network; `None` for where pip finds them.

    Returns:
        Its size in bytes.

    Raises:
        BundleError: something that belongs into it is missing.
        OSError: the file cannot be written.
    """
    contents = dict(_sources())
    own = "{}.{}".format(*sys.version_info[:2])
    for version in versions:
        contents.update(_installed() if version == own else _fetched(version, wheels))
    contents["__main__.py"] = _MAIN.format(needed=tuple(_COMPILED.values())).encode()
    target = os.path.abspath(path)
    number, temporary = tempfile.mkstemp(prefix=".bundle-", dir=os.path.dirname(target))
    try:
        with open(number, "wb") as file:
            file.write(_SHEBANG)
            _zip(file, contents)
            file.flush()
            os.fsync(number)
            size = file.tell()
        umask = os.umask(0o077)
        os.umask(umask)
        os.chmod(temporary, 0o777 & ~umask)
        os.replace(temporary, target)
    except BaseException:
        with suppress(FileNotFoundError):
            os.unlink(temporary)
        raise
    return size


def _zip(file: object, contents: dict[str, bytes]) -> None:
    with zipfile.ZipFile(file, "w") as archive:  # type: ignore[call-overload]
        for name in sorted(contents):
            info = zipfile.ZipInfo(name, _TIME)
            info.external_attr = _MODE
            info.create_system = 3  # Unix, on every system
            archive.writestr(info, contents[name], zipfile.ZIP_DEFLATED, compresslevel=9)


def _sources() -> Iterator[tuple[str, bytes]]:
    """The sources of all modules that the agent needs, by their names in the archive."""
    try:
        modules = needed_modules()
    except ModuleNotFoundError as exc:
        raise BundleError(f"{exc}: make the bundle from an installation that has files") from None
    for top, place in modules.items():
        if os.path.isfile(place):
            yield top, _read(place)
            continue
        for directory, names, files in os.walk(place):
            unused = _UNUSED | (_HOSTS_PARTS if top == "trio_console" and directory == place else frozenset())
            names[:] = [name for name in names if name not in unused]
            inside = os.path.relpath(directory, os.path.dirname(place))
            for name in files:
                if name.endswith(".py"):
                    yield f"{inside}/{name}", _read(os.path.join(directory, name))


def _read(path: str) -> bytes:
    with open(path, "rb") as file:
        return file.read()


def _installed() -> Iterator[tuple[str, bytes]]:
    """The compiled modules of this installation."""
    for top, place in needed_modules().items():
        if os.path.isdir(place):
            for name in os.listdir(place):
                if name.endswith(".so"):
                    yield f"{top}/{name}", _read(os.path.join(place, name))
        elif top.endswith(".so"):
            yield top, _read(place)


def _fetched(version: str, wheels: str | None) -> Iterator[tuple[str, bytes]]:
    """The compiled modules of the same releases, for another version of Python."""
    if not re.fullmatch(r"3\.\d+", version):
        raise BundleError(f"{version!r} is no version of Python: give one such as {VERSIONS[0]}")
    wanted = [f"{name}=={importlib.metadata.version(name)}" for name in _COMPILED]
    source = [] if wheels is None else ["--no-index", "--find-links", wheels]
    with tempfile.TemporaryDirectory() as directory:
        command = [
            *(sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--only-binary=:all:"),
            *("--disable-pip-version-check", "--implementation", "cp", "--python-version", version),
            *(part for tag in sorted(_platforms()) for part in ("--platform", tag)),
            *(*source, "--dest", directory, *wanted),
        ]
        done = subprocess.run(
            command, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=_PIP_TIME, check=False
        )
        if done.returncode:
            own = "{}.{}".format(*sys.version_info[:2])
            said = done.stderr.strip().rpartition("\n")[2]
            raise BundleError(
                f"pip did not find {' and '.join(wanted)} for Python {version}: {said}. Give a directory with "
                f"their wheels (--wheels), or only versions for which there are some: --python {own} needs no pip"
            )
        for name in os.listdir(directory):
            with zipfile.ZipFile(os.path.join(directory, name)) as wheel:
                for member in wheel.namelist():
                    if member.endswith(".so"):
                        yield member, wheel.read(member)


def _platforms() -> set[str]:
    """The tags of the systems for which wheels run here: those of what is installed, and the usual ones."""
    machine = platform.machine()
    tags = {f"manylinux_2_17_{machine}", f"manylinux2014_{machine}", f"manylinux_2_28_{machine}"}
    for name in _COMPILED:
        text = importlib.metadata.distribution(name).read_text("WHEEL") or ""
        for tag in re.findall(r"^Tag: \S+-(\S+)$", text, re.MULTILINE):
            if tag.startswith(("manylinux", "musllinux")):
                tags.add(tag)
    return tags

"""The kernel of a machine, with its modules: found on this machine, in the cache, or given.

This module must not know the machine that boots it.
"""

from __future__ import annotations

import lzma
import os
import re
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final, final

from trio_console._guests.machine.stock.cache import directory

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

__all__ = ["KERNELS", "Kernel", "find_kernel"]

#: The kind of the kernels in the cache; each entry is laid out like a package: ``boot`` and ``lib/modules``.
KERNELS: Final = "kernels"

#: Where this machine's own are.
BOOT: Final = Path("/boot")

# Of the kernel's boot protocol: where an image says that it is one, and where its release is.
_MAGIC_AT: Final = 0x202
_MAGIC: Final = b"HdrS"
_RELEASE_AT: Final = 0x20E
_RELEASE_OFFSET: Final = 0x200
_LONGEST_HEAD: Final = 0x10000

_SUFFIX: Final = re.compile(r"\.ko(\.xz|\.gz|\.zst)?$")
_DEPENDS: Final = re.compile(rb"\0depends=([\w,-]*)\0")


@final
@dataclass(frozen=True)
class Kernel:
    """A kernel that can be booted.

    Attributes:
        image: path of the compressed image (``vmlinuz``).
        release: what ``uname -r`` says of it.
        modules: the directory with its modules; `None` if there is none, and all it has is built in.
    """

    image: Path
    release: str
    modules: Path | None

    def modules_for(self, wanted: Iterable[str]) -> list[tuple[str, bytes]]:
        """Names and contents of these modules and all that they need, in an order in which they can be loaded.

        A module that the kernel has not is left out: it may be built in.

        Raises:
            OSError: one cannot be read, or is compressed in a way that this Python cannot undo.
        """
        files = self._files()
        loaded: dict[str, bytes] = {}

        def load(name: str) -> None:
            if name in loaded or name not in files:
                return
            data = _read(files[name])
            found = _DEPENDS.search(data)
            for other in found[1].decode().split(",") if found else ():
                load(other.replace("-", "_"))
            loaded[name] = data

        for name in wanted:
            load(name)
        return list(loaded.items())

    def lacks(self, wanted: Iterable[str]) -> list[str]:
        """Those of these modules that it has neither as a file nor built in. Without a directory it lacks none."""
        if self.modules is None:
            return []
        has = set(self._files())
        try:
            text = (self.modules / "modules.builtin").read_text()
        except OSError:
            return []  # it does not say
        has.update(_module_name(line) for line in text.split())
        return [name for name in wanted if name not in has]

    def _files(self) -> dict[str, str]:
        # (There are thousands, and each start looks for some: so no objects are made of their paths.)
        if self.modules is None:
            return {}
        return {
            _module_name(name): os.path.join(folder, name)
            for folder, _, names in os.walk(self.modules)
            for name in names
            if _SUFFIX.search(name)
        }


def find_kernel(given: Path | None, wanted: Iterable[str]) -> Kernel:
    """The kernel to boot: the one given, or the first with these modules, in the cache or of this machine.

    Raises:
        FileNotFoundError: there is none.
        ValueError: the one that is given is no kernel, or lacks a module.
    """
    wanted = list(wanted)
    if given is not None:
        kernel = _kernel_at(given)
        if kernel is None:
            raise ValueError(f"{given} is no kernel image for x86-64 (a vmlinuz, as Linux distributions have it)")
        if lacking := kernel.lacks(wanted):
            raise ValueError(f"the kernel {given} ({kernel.release}) lacks the modules {', '.join(lacking)}")
        return kernel
    for image in _images():
        kernel = _kernel_at(image)
        if kernel is not None and kernel.modules is not None and not kernel.lacks(wanted):
            return kernel
    raise FileNotFoundError(
        f"no Linux kernel with the modules {', '.join(wanted)} is in {directory() / KERNELS} or in {BOOT}; get "
        "one with: trio-console vm setup"
    )


def _images() -> Iterator[Path]:
    """Images that may be tried: small ones first, which boot faster, and those of this machine last."""
    kept = (directory() / KERNELS).glob("*/boot/vmlinuz-*")
    yield from sorted(kept, key=lambda path: ("cloud" not in path.name, path.name))
    yield from sorted(BOOT.glob("vmlinuz-*"), reverse=True)


def _kernel_at(image: Path) -> Kernel | None:
    release = _release_of(image)
    if release is None:
        return None
    beside = image.absolute().parent.parent / "lib/modules" / release
    for modules in (beside, Path("/lib/modules") / release):
        if modules.is_dir():
            return Kernel(image, release, modules)
    return Kernel(image, release, None)


def _release_of(image: Path) -> str | None:
    """The release of a kernel image; `None` if the file cannot be read, or is none."""
    try:
        with open(image, "rb") as file:
            head = file.read(_LONGEST_HEAD)
    except OSError:
        return None
    if head[_MAGIC_AT : _MAGIC_AT + 4] != _MAGIC:
        return None
    at = int.from_bytes(head[_RELEASE_AT : _RELEASE_AT + 2], "little") + _RELEASE_OFFSET
    words = head[at:].split(b"\0", 1)[0].split()
    return words[0].decode(errors="replace") if words else None


def _module_name(path: str) -> str:
    return _SUFFIX.sub("", os.path.basename(path)).replace("-", "_")


def _read(path: str) -> bytes:
    data = Path(path).read_bytes()
    if path.endswith(".xz"):
        return lzma.decompress(data)
    if path.endswith(".gz"):
        return zlib.decompress(data, wbits=31)
    if path.endswith(".zst"):
        raise OSError(None, "this Python cannot unpack modules that are compressed by zstd", path)
    return data

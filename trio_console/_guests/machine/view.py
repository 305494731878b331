"""What a machine sees of this one: its programs, if they are its root directory, and shares.

Of this machine's programs it sees ``/usr`` and what belongs to that. Of ``/etc``, in which there are secrets, only
the links and the list of libraries by which programs in ``/usr`` are reached.

This module must not know how directories get into a machine.
"""

from __future__ import annotations

import errno
import os
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, final

from trio_console._guests.roots import Root
from trio_console._machine.welcome import Layout, Mount

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from trio_console._guests.roots import Share

__all__ = ["Shared", "View", "view_of"]

#: The directories of programs and libraries. Beside the first they are links into it, on most systems.
_TREES: Final = ("usr", "bin", "sbin", "lib", "lib32", "lib64", "libx32")

#: Where ``/usr/bin/awk`` and others lead to: which of several programs they stand for.
_ALTERNATIVES: Final = "etc/alternatives"
_OTHER_LINKS: Final = ("etc/os-release",)

#: Where the loader finds libraries.
_FILES: Final = ("etc/ld.so.cache",)


@final
@dataclass(frozen=True)
class Shared:
    """A directory of this machine, by the tag under which the other machine's kernel finds it."""

    tag: str
    path: str
    writable: bool


@final
@dataclass(frozen=True)
class View:
    """What a machine sees.

    Attributes:
        shared: all directories of this machine that it can get at.
        layout: what its root directory is made of; `None` if that is its own.
        mounts: those that are mounted on it.
    """

    shared: Sequence[Shared]
    layout: Layout | None
    mounts: tuple[Mount, ...]


def view_of(root: Root, shares: Mapping[str, Share], here: str = "/") -> View:
    """What a machine with this root directory and these shares sees of the system at ``here``.

    Raises:
        FileNotFoundError, NotADirectoryError: a share is not there, or is no directory.
    """
    mounted = [Shared(f"share{n}", _directory(share), share.writable) for n, share in enumerate(shares.values())]
    lower, layout = _programs(here) if root is Root.HOST else ([], None)
    return View(
        shared=[*lower, *mounted],
        layout=layout,
        mounts=tuple(Mount(each.tag, path, each.writable) for path, each in zip(shares, mounted, strict=True)),
    )


def _programs(here: str) -> tuple[list[Shared], Layout]:
    trees = _trees(here)
    links = [name for name in trees if os.path.islink(os.path.join(here, name))]
    lower = [
        Shared(f"root{n}", os.path.join(here, name), False) for n, name in enumerate(trees) if name not in links
    ]
    links += _links_in_etc(here)
    return lower, Layout(
        lower=tuple(Mount(each.tag, f"/{os.path.relpath(each.path, here)}") for each in lower),
        links={f"/{name}": os.readlink(os.path.join(here, name)) for name in links},
        files=dict(_files(here)),
    )


def _trees(here: str) -> list[str]:
    return [name for name in _TREES if os.path.isdir(os.path.join(here, name))]


def _links_in_etc(here: str) -> Iterator[str]:
    with suppress(OSError):
        for name in sorted(os.listdir(os.path.join(here, _ALTERNATIVES))):
            if os.path.islink(os.path.join(here, _ALTERNATIVES, name)):
                yield f"{_ALTERNATIVES}/{name}"
    yield from (name for name in _OTHER_LINKS if os.path.islink(os.path.join(here, name)))


def _files(here: str) -> Iterator[tuple[str, bytes]]:
    for name in _FILES:
        with suppress(OSError), open(os.path.join(here, name), "rb") as file:
            yield f"/{name}", file.read()


def _directory(share: Share) -> str:
    path = os.path.realpath(share.host_path, strict=True)
    if not os.path.isdir(path):
        raise NotADirectoryError(
            errno.ENOTDIR, "a virtual machine can share only directories", os.fspath(share.host_path)
        )
    return path

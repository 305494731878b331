"""The words in which users say what a guest that isolates sees of this machine: `Root`, `Share` and `Limits`.

This module must not know the guests: each says itself which of the words it can keep.
"""

from __future__ import annotations

import enum
import os
import posixpath
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeAlias, final

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = ["Limits", "PathLike", "Root", "Share", "check_shares"]

PathLike: TypeAlias = "str | os.PathLike[str]"


@final
class Root(enum.Enum):
    """What a guest has for its root directory, where that is no path of this machine.

    Attributes:
        HOST: this machine's programs (``/usr`` and what belongs to it), read-only.
        MINIMAL: the agent, its Python and a shell, all in the memory of a virtual machine.
    """

    HOST = "host"
    MINIMAL = "minimal"


@final
@dataclass(frozen=True)
class Share:
    """A file or directory of this machine that a guest sees.

    Attributes:
        host_path: its path on this machine. A symbolic link at its end is followed, once, when the guest starts.
        writable: whether the guest may change it; by default it may not.
    """

    host_path: PathLike
    writable: bool = False


@final
@dataclass(frozen=True)
class Limits:
    """The most that all processes of a guest may have together.

    Attributes:
        memory_mib: memory in MiB, with the guest's files in memory; `None`, the default, for no limit.
        processes: processes and threads, with the agent's own; `None`, the default, for no limit.

    Raises:
        ValueError: a limit is less than 1.
    """

    memory_mib: int | None = None
    processes: int | None = None

    def __post_init__(self) -> None:
        for name in ("memory_mib", "processes"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"{name} must be at least 1, not {value!r:.80}")


def check_shares(shares: Mapping[str, PathLike | Share]) -> dict[str, Share]:
    """The shares by their paths in the guest, outer ones first, with absolute paths of this machine.

    Raises:
        ValueError: a path in the guest is not absolute, or has ``..`` in it, or is the root.
    """
    checked = {}
    for guest_path, given in shares.items():
        parts = guest_path.split("/")
        if not guest_path.startswith("/") or ".." in parts or "\0" in guest_path or not any(parts):
            raise ValueError(
                f"a share's path in the guest must be absolute, without '..', and not '/': {guest_path!r:.100}"
            )
        share = given if isinstance(given, Share) else Share(given)
        absolute = os.path.abspath(os.fspath(share.host_path))
        checked[posixpath.normpath("/" + guest_path.lstrip("/"))] = Share(absolute, share.writable)
    return dict(sorted(checked.items()))

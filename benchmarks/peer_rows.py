"""Rows that compare a session with what people use today for commands in a guest.

The modules of the contenders are imported when a row is measured: they are in the ``bench`` extra, and some of the
programs that they need are installed only then.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, NamedTuple

from benchmarks._measure import Row, Statistic

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

__all__ = ["PEERS", "WORK", "can", "contender", "rows"]

MIB = 1024 * 1024


class _Work(NamedTuple):
    """What is done in a row.

    Attributes:
        title: in words.
        unit: of the values.
        size: times in one turn, or bytes.
        bar: of the ratio to the best peer.
        beyond: peers that are shown, but are not to be beaten: they have no loop of Python at one end at least.
    """

    title: str
    unit: str
    size: int
    bar: float
    beyond: tuple[str, ...] = ()


WORK = {
    "no-op": _Work("a call that does nothing", "s", 2000, 1.0, ("OpenSSH", "asyncssh to sshd", "qemu-ga")),
    "true": _Work("`true` run to its end", "s", 60, 1.0),
    "cat": _Work("64 bytes through a `cat` that runs", "s", 1500, 1.0, ("OpenSSH", "asyncssh to sshd", "qemu-ga")),
    "stdout": _Work("1 GiB of stdout", "MiB/s", 1024 * MIB, 1.0),
    "through-cat": _Work("512 MiB through `cat`", "MiB/s", 512 * MIB, 1.4),
    "file-read": _Work("a file of 1 GiB read", "MiB/s", 1024 * MIB, 1.1),
    "file-write": _Work("a file of 1 GiB written", "MiB/s", 1024 * MIB, 1.05),
}

#: Their modules, the functions in them, and the first arguments.
_OURS = "benchmarks.peers._ours"
_SSH = "benchmarks.peers._ssh"
_OWN: dict[str, tuple[str, ...]] = {
    "trio_console, tasks": (_OURS, "in_guest", "tasks"),
    "trio_console, threads": (_OURS, "in_guest", "threads"),
    "trio_console, relay": (_OURS, "in_guest", "relay"),
    "trio alone": (_OURS, "alone"),
}
PEERS: dict[str, tuple[str, ...]] = {
    "asyncssh at both ends": (_SSH, "both_asyncssh"),
    "asyncssh to sshd": (_SSH, "to_sshd"),
    "OpenSSH": (_SSH, "both_openssh"),
    "qemu-ga": ("benchmarks.peers._qemu", "qemu_ga"),
}


def can(peer: str, what: str) -> bool:
    """OpenSSH's client has no call that does nothing, and qemu-ga has no streams."""
    return (peer, what) not in {("OpenSSH", "no-op"), ("qemu-ga", "cat")}


def contender(name: str, what: str, size: int) -> Callable[[], Sequence[float]]:
    """What makes one turn of a contender, by its name, with so many calls or bytes."""
    module, function, *first = (_OWN | PEERS)[name]

    def turn() -> Sequence[float]:
        result: Sequence[float] = getattr(import_module(module), function)(*first, what, size)
        return result

    return turn


def rows() -> Iterator[Row]:
    for what, work in WORK.items():
        peers = [name for name in PEERS if can(name, what)]
        yield Row(
            f"peer-{what}",
            work.title,
            work.unit,
            {name: contender(name, what, work.size) for name in (*_OWN, *peers)},
            peers=[name for name in peers if name not in work.beyond],
            higher_is_better=work.unit != "s",
            statistics=(Statistic(bar=work.bar),),
            turns=5,
            note="ssh encrypts what it carries; a guest's console and qemu-ga do not",
            facts={"group": "peers"},
        )

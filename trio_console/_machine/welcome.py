"""The first words between a virtual machine and its host: the machine greets, and is told its settings.

They go over the agent's console before its first frame. So a machine is the same for all of its hosts until it is
told what belongs to one of them: nothing of that is in its kernel's command line, or in its initramfs. (That the
root directory is on a disk is there, because the disk is the same for all of them.)

A machine whose root directory is made of its host's is told first what is in it, greets once more, and can then be
saved: so the hundreds of links of that need not be made in its clones.

This module must not know who carries the bytes, or what is done with the settings.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, final

import msgspec

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = [
    "GREETING",
    "LARGEST_WELCOME",
    "ON_DISK",
    "PORT",
    "WORDS",
    "Layout",
    "Mount",
    "Welcome",
    "pack",
    "unpack",
]

#: The name of the virtio port that is the agent's console.
PORT: Final = "trio_console"

#: The word of the kernel's command line by which the root directory is what the machine's disk has, so that it can
#: be mounted before there is a host.
ON_DISK: Final = "trio_console.disk"

#: What a machine says when it has started, and can be told its settings.
GREETING: Final = b"trio_console: started\n"

#: Bytes of the settings' length, which comes before them.
_LENGTH: Final = 4

#: The most bytes of settings. (An environment of a command has a few MiB at most.)
LARGEST_WELCOME: Final = 16 * 1024 * 1024


@final
class Mount(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A directory of the host that the machine is to mount.

    Attributes:
        tag: its name among the machine's devices.
        path: where it is mounted in the guest.
        writable: whether the guest may change it.
    """

    tag: str
    path: str
    writable: bool = False


@final
class Layout(msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag="layout"):
    """What a root directory is made of that is not the machine's own.

    Attributes:
        lower: directories of the host in it, each under a layer in memory.
        links: symbolic links in it, by their paths.
        files: small files in it, by their paths.
        gone: paths of links and files that were in it before, and are removed, or made anew.
    """

    lower: tuple[Mount, ...] = ()
    links: dict[str, str] = {}
    files: dict[str, bytes] = {}
    gone: tuple[str, ...] = ()

    def since(self, former: Layout) -> Layout | None:
        """What makes this one of a former one with the same directories; `None` if nothing has to be made."""
        before: dict[str, str | bytes] = {**former.links, **former.files}
        now: dict[str, str | bytes] = {**self.links, **self.files}
        if now == before:
            return None
        return Layout(
            links={path: target for path, target in self.links.items() if before.get(path) != target},
            files={path: data for path, data in self.files.items() if before.get(path) != data},
            gone=tuple(path for path, what in before.items() if now.get(path) != what),
        )


@final
class Welcome(msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag="welcome"):
    """The settings of a machine.

    Attributes:
        seed: random bytes of the host, which no other machine gets.
        time_ns: the host's time, in ns since 1970.
        hostname: the name of the machine.
        machine_id: what is in ``/etc/machine-id``: 32 hexadecimal digits.
        env: the environment of commands, beside what every command has.
        user: the user of commands that name none; `None` for root.
        changes: what of the root directory's layout is another than the machine was told; `None` for nothing.
        disk: the root directory is to be what the disk has, if it is not that already; it has no layout then.
        mounts: directories of the host that are mounted on the root directory.
        ports: names of virtio ports, beside the agent's own, which programs find below ``/dev/virtio-ports``.
        stays: whether the machine waits for another host when this one has gone, and is not turned off. To that
            one only the names, the time, the seed, the environment and the user are its own.
    """

    seed: bytes
    time_ns: int
    hostname: str
    machine_id: str
    env: dict[str, str]
    user: str | None = None
    changes: Layout | None = None
    disk: bool = False
    mounts: tuple[Mount, ...] = ()
    ports: tuple[str, ...] = ()
    stays: bool = False


#: What a machine can be told: another list if a machine of another version of this package does not understand it.
WORDS: Final = tuple((each.__struct_config__.tag, each.__struct_fields__) for each in (Mount, Layout, Welcome))

#: Made with this module: a machine is saved behind its import, so no clone has to look at the fields again.
_DECODER: Final = msgspec.json.Decoder(Layout | Welcome)


def pack(said: Layout | Welcome) -> bytes:
    """Settings as the host sends them.

    Raises:
        ValueError: they are too long, or a name in them is not valid text.
    """
    body = msgspec.json.encode(said)
    if len(body) > LARGEST_WELCOME:
        raise ValueError(f"the settings of a machine have {len(body)} bytes; they may have {LARGEST_WELCOME}")
    return len(body).to_bytes(_LENGTH, "big") + body


def unpack(read: Callable[[int], bytes]) -> Layout | Welcome | None:
    """Read settings, and no byte more; `None` if the stream ends before them.

    Args:
        read: returns at most so many bytes, and none at the end.

    Raises:
        ValueError: it was something else that was read.
    """
    head = _read_exactly(read, _LENGTH)
    if head is None:
        return None
    length = int.from_bytes(head, "big")
    if length > LARGEST_WELCOME:
        raise ValueError(f"the host announces settings of {length} bytes, so it is no host of ours")
    body = _read_exactly(read, length)
    return None if body is None else _DECODER.decode(body)


def _read_exactly(read: Callable[[int], bytes], count: int) -> bytes | None:
    found = bytearray()
    while len(found) < count:
        data = read(count - len(found))
        if not data:
            return None
        found += data
    return bytes(found)

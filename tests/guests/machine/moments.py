"""Moments in the life of a machine at which its QEMU, or the program that has started it, is killed."""

from __future__ import annotations

import os
import subprocess
import time
from contextlib import contextmanager
from typing import TYPE_CHECKING, Final
from unittest import mock

import trio

from tests.tools.leftovers import children
from tests.tools.limits import HANG
from trio_console import MicroVMGuest, Root
from trio_console._guests.machine.launch import Started
from trio_console._guests.machine.monitor import Monitor

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterator

    from trio_console import Guest

__all__ = ["PORT", "SPEC", "STARTS", "USES", "at", "is_qemu", "qemus"]

PORT: Final = "port"
SPEC: Final = MicroVMGuest(root=Root.MINIMAL, ports=[PORT])

#: Moments of a start: the method that is about to be called, and what QEMU's monitor is about to be told.
STARTS: Final[dict[str, tuple[type, str, str | None]]] = {
    "booting": (Started, "hear_greeting", None),
    "saving": (Monitor, "execute", "migrate"),
    "loading": (Monitor, "execute", "migrate-incoming"),
    "telling": (Started, "say", None),
}

#: Bytes after which a transfer is in its midst.
_MIDST: Final = 1_000_000


@contextmanager
def at(moment: str, happens: Callable[[], object]) -> Iterator[None]:
    """Call a function each time that a start of a machine comes to the moment."""
    cls, name, command = STARTS[moment]
    method = getattr(cls, name)

    async def called(self: object, *args: str, **options: object) -> object:
        if command in (None, *args[:1]):
            happens()
        return await method(self, *args, **options)

    with mock.patch.object(cls, name, called):
        yield


def is_qemu(pid: int) -> bool:
    try:
        return "qemu" in os.readlink(f"/proc/{pid}/exe")
    except OSError:  # it has just ended
        return False


def qemus() -> dict[int, set[int]]:
    """The machines of this program: QEMU, and all processes that have its sockets (with bubblewrap around it).

    One that bubblewrap is about to become is waited for.
    """
    over = time.monotonic() + HANG
    while not (found := _qemus_now()) and time.monotonic() < over:
        time.sleep(0.001)
    return found


def _qemus_now() -> dict[int, set[int]]:
    found = {}
    for child in children():
        for pid in (child, *children_of(child)):
            if is_qemu(pid):
                found[pid] = {child, pid}
    return found


def children_of(pid: int) -> set[int]:
    try:
        return children(pid)
    except OSError:  # it has just ended
        return set()


# What a guest is used for, for ever; ``happens`` is called once it is in the midst of it.


async def _idle(_guest: Guest, happens: Callable[[], object]) -> None:
    happens()
    await trio.sleep_forever()


async def _wait_for_its_end(guest: Guest, happens: Callable[[], object]) -> None:
    happens()
    raise await guest.wait_lost()


async def _run_a_command(guest: Guest, happens: Callable[[], object]) -> None:
    async with guest.open_process(["sleep", "1000"]) as process:
        happens()
        await process.wait()


async def _upload(guest: Guest, happens: Callable[[], object]) -> None:
    async with guest.open_process(["sh", "-c", "cat >/dev/null"], stdin=subprocess.PIPE) as process:
        assert process.stdin is not None
        await process.stdin.send_all(bytes(_MIDST))
        happens()
        while True:
            await process.stdin.send_all(bytes(_MIDST))


async def _download(guest: Guest, happens: Callable[[], object]) -> None:
    async with guest.open_process(["cat", "/dev/zero"], stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        await _receive_for_ever(process.stdout, happens)


async def _use_a_port(guest: Guest, happens: Callable[[], object]) -> None:
    async with guest.open_port(PORT) as stream, guest.open_process(["sh", "-c", f"cat /dev/zero >{_DEVICE}"]):
        await _receive_for_ever(stream, happens)


_DEVICE: Final = f"/dev/virtio-ports/{PORT}"


async def _receive_for_ever(stream: trio.abc.ReceiveStream, happens: Callable[[], object]) -> None:
    came = 0
    while True:
        before = came
        came += len(await stream.receive_some())
        if before < _MIDST <= came:
            happens()


USES: Final[dict[str, Callable[[Guest, Callable[[], object]], Awaitable[None]]]] = {
    "idle": _idle,
    "waiting for its end": _wait_for_its_end,
    "running a command": _run_a_command,
    "uploading": _upload,
    "downloading": _download,
    "using a port": _use_a_port,
}

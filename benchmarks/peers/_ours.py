"""The same work through this project, and through trio alone on this machine."""

from __future__ import annotations

import subprocess
import time
from functools import partial
from typing import TYPE_CHECKING, Any, Final

import trio

import trio_console
from benchmarks.peers._system import MIB, PIECE, file_in_memory, rate, writer
from benchmarks.session_rows import relayed_guest

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Sequence

__all__ = ["GUEST", "TRIO", "alone", "in_guest"]


async def _repeated(n: int, call: Callable[[], Awaitable[object]]) -> Sequence[float]:
    await call()
    seconds = []
    for _ in range(n):
        start = time.perf_counter()
        await call()
        seconds.append(time.perf_counter() - start)
    return seconds


# --- with a process, of the guest or of trio ------------------------------------------------------


async def _echoed(process: Any, n: int) -> Sequence[float]:
    data = bytes(64)

    async def echo() -> None:
        await process.stdin.send_all(data)
        got = 0
        while got < len(data):
            got += len(await process.stdout.receive_some())

    seconds = await _repeated(n, echo)
    await process.stdin.aclose()
    return seconds


async def _received(stream: trio.abc.ReceiveStream, nbytes: int, start: float) -> Sequence[float]:
    total = 0
    async for data in stream:
        total += len(data)
    return [rate(total, nbytes, start)]


async def _through(process: Any, nbytes: int) -> Sequence[float]:
    async def send() -> None:
        data = bytes(PIECE)
        for _ in range(nbytes // PIECE):
            await process.stdin.send_all(data)
        await process.stdin.aclose()

    start = time.perf_counter()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(send)
        speed = await _received(process.stdout, nbytes, start)
    return speed  # noqa: RET504  (not inside of the nursery)


async def _file_read(file: Any, nbytes: int) -> Sequence[float]:
    start = time.perf_counter()
    total = 0
    while data := await file.read(MIB):
        total += len(data)
    return [rate(total, nbytes, start)]


async def _file_write(file: Any, nbytes: int) -> Sequence[float]:
    data = bytes(MIB)
    start = time.perf_counter()
    for _ in range(nbytes // MIB):
        await file.write(data)
    await file.flush()
    return [rate(await file.tell(), nbytes, start)]


# --- in a guest -----------------------------------------------------------------------------------


async def _guest_no_op(guest: trio_console.Guest, n: int) -> Sequence[float]:
    return await _repeated(n, guest.ping)


async def _guest_true(guest: trio_console.Guest, n: int) -> Sequence[float]:
    return await _repeated(n, partial(guest.run_process, ["true"]))


async def _guest_cat(guest: trio_console.Guest, n: int) -> Sequence[float]:
    async with guest.open_process(["cat"], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        return await _echoed(process, n)


async def _guest_stdout(guest: trio_console.Guest, nbytes: int) -> Sequence[float]:
    start = time.perf_counter()
    async with guest.open_process(writer(nbytes).split(), stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        return await _received(process.stdout, nbytes, start)


async def _guest_through_cat(guest: trio_console.Guest, nbytes: int) -> Sequence[float]:
    async with guest.open_process(["cat"], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        return await _through(process, nbytes)


async def _guest_file_read(guest: trio_console.Guest, nbytes: int) -> Sequence[float]:
    with file_in_memory(nbytes) as path:
        async with await guest.open_file(path, "rb") as file:
            return await _file_read(file, nbytes)


async def _guest_file_write(guest: trio_console.Guest, nbytes: int) -> Sequence[float]:
    with file_in_memory(0) as path:
        async with await guest.open_file(path, "wb") as file:
            return await _file_write(file, nbytes)


GUEST: Final[dict[str, Callable[[trio_console.Guest, int], Awaitable[Sequence[float]]]]] = {
    "no-op": _guest_no_op,
    "true": _guest_true,
    "cat": _guest_cat,
    "stdout": _guest_stdout,
    "through-cat": _guest_through_cat,
    "file-read": _guest_file_read,
    "file-write": _guest_file_write,
}


#: What moves the bytes of a guest, by the name of the contender.
_SPECS: Final = {
    "tasks": trio_console.ProcessGuest(workers="tasks"),
    "threads": trio_console.ProcessGuest(workers="threads"),
}


def in_guest(mode: str, what: str, size: int) -> Sequence[float]:
    """One turn of a row in a guest: ``tasks`` or ``threads`` move its bytes, or it is behind a ``relay``."""

    async def main() -> Sequence[float]:
        async with relayed_guest() if mode == "relay" else trio_console.open_guest(_SPECS[mode]) as guest:
            return await GUEST[what](guest, size)

    return trio.run(main)


# --- by trio --------------------------------------------------------------------------------------


async def _trio_no_op(n: int) -> Sequence[float]:
    return await _repeated(n, partial(trio.to_thread.run_sync, int))


async def _trio_true(n: int) -> Sequence[float]:
    return await _repeated(n, partial(trio.run_process, ["true"]))


async def _trio_with_process(
    command: list[str], use: Callable[[Any, int], Awaitable[Sequence[float]]], size: int
) -> Sequence[float]:
    process = await trio.lowlevel.open_process(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert process.stdout is not None
    async with process.stdout:
        result = await use(process, size)
        await process.wait()
    return result


async def _trio_stdout(nbytes: int) -> Sequence[float]:
    start = time.perf_counter()
    return await _trio_with_process(
        writer(nbytes).split(), lambda process, size: _received(process.stdout, size, start), nbytes
    )


async def _trio_file_read(nbytes: int) -> Sequence[float]:
    with file_in_memory(nbytes) as path:
        async with await trio.open_file(path, "rb") as file:
            return await _file_read(file, nbytes)


async def _trio_file_write(nbytes: int) -> Sequence[float]:
    with file_in_memory(0) as path:
        async with await trio.open_file(path, "wb") as file:
            return await _file_write(file, nbytes)


#: (trio has no guest to ask: its no-op is a thread's.)
TRIO: Final[dict[str, Callable[[int], Awaitable[Sequence[float]]]]] = {
    "no-op": _trio_no_op,
    "true": _trio_true,
    "cat": partial(_trio_with_process, ["cat"], _echoed),
    "stdout": _trio_stdout,
    "through-cat": partial(_trio_with_process, ["cat"], _through),
    "file-read": _trio_file_read,
    "file-write": _trio_file_write,
}


def alone(what: str, size: int) -> Sequence[float]:
    """One turn of a row by trio, without a guest."""
    return trio.run(TRIO[what], size)

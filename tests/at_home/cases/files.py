"""Open files: their buffers, their positions, and what becomes of those that nobody closes."""

from __future__ import annotations

import gc
import os
import warnings
from functools import partial
from subprocess import PIPE
from typing import TYPE_CHECKING, Any

import trio

from tests.at_home.cases.streams import digest
from tests.at_home.places import InGuest
from tests.at_home.table import case

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.at_home.places import Here

DATA = b"".join(b"line %d\n" % number for number in range(30_000))

# File buffers


async def steps(here: Here, file: Any, *calls: tuple[Any, ...]) -> list[Any]:
    """The results of calls of a file's methods, one after the other."""
    return [await here.result(getattr(file, name), *args) for name, *args in calls]


@case("file buffers")
async def reads_and_writes_of_one_file_see_each_other(here: Here) -> object:
    async with await here.open_file(here.file("f", DATA), "r+b") as file:
        results = await steps(
            here, file, ("read", 3), ("write", b"XYZ"), ("read", 4), ("seek", 0), ("readline",), ("tell",),
            ("truncate",), ("seek", 0, 2), ("write", b"end"), ("seek", 0), ("read",),
        )  # fmt: skip
    return results, await here.path(here.file("f")).read_bytes()


@case("file buffers")
async def a_cancelled_write_leaves_no_stale_reads(here: Here) -> object:
    async with await here.open_file(here.file("f", DATA), "r+b") as file:
        await file.read(10)
        with trio.CancelScope() as scope:
            scope.cancel()
            await file.write(b"z" * 100_000)
        await file.seek(0)
        seen = await file.read()
        await file.flush()
    return seen == await here.path(here.file("f")).read_bytes(), len(seen)


@case("file buffers")
async def a_cancelled_truncate_leaves_no_stale_reads(here: Here) -> object:
    async with await here.open_file(here.file("f", DATA), "r+b") as file:
        await file.read(10)
        with trio.CancelScope() as scope:
            scope.cancel()
            await file.truncate(20)
        await file.seek(0)
        seen = await file.read()
    return seen == await here.path(here.file("f")).read_bytes()


@case("file buffers")
async def what_another_has_written_is_read_behind_a_seek(here: Here) -> object:
    path = here.file("f", b"old contents")
    async with await here.open_file(path, "r+b") as file:
        first = await file.read(3)
        await file.seek(0, 2)
        here.file("f", b"new contents, longer")
        await file.seek(0)
        return first, await file.read()


@case("file buffers")
async def touch_makes_no_file_older(here: Here) -> object:
    path = here.path(here.file("f", b""))
    outcomes = []
    for _ in range(3):
        before = os.stat(here.file("f")).st_mtime_ns
        await path.touch()
        outcomes.append(os.stat(here.file("f")).st_mtime_ns >= before)
    return outcomes


@case("file buffers")
async def times_are_not_cut_to_seconds(here: Here) -> object:
    path = here.file("f", b"")
    os.utime(path, ns=(1_000_000_000_123_456_789, 1_100_000_000_987_654_321))
    found = await here.path(path).stat()
    return found.st_mtime_ns, found.st_atime_ns, found.st_mtime, found.st_size


@case("file buffers")
async def a_stat_has_all_fields(here: Here) -> object:
    path = here.file("f", b"12345")
    os.link(path, here.file("g"))
    found, real = await here.path(path).stat(), os.stat(path)
    return [
        name
        for name in ("st_mode", "st_ino", "st_dev", "st_nlink", "st_uid", "st_gid", "st_size", "st_ctime_ns")
        if getattr(found, name) != getattr(real, name)
    ]


@case("file buffers")
async def a_name_that_is_no_text_is_listed_and_opened(here: Here) -> object:
    odd = os.fsdecode(b"caf\xe9")
    here.file(odd, b"inside")
    [path] = await here.path(here.dir).iterdir()
    return os.fsencode(str(path.name)), await path.read_bytes()


@case("file buffers")
async def a_fifo_is_opened_read_and_written(here: Here) -> object:
    os.mkfifo(here.file("fifo"))
    got = []

    async def read() -> None:
        async with await here.open_file(here.file("fifo"), "rb") as file:
            got.append(await file.read())

    async with trio.open_nursery() as nursery:
        nursery.start_soon(read)
        async with await here.open_file(here.file("fifo"), "wb") as file:
            await file.write(b"through")
    return got


@case("file buffers")
async def a_fifo_cannot_be_sought(here: Here) -> object:
    os.mkfifo(here.file("fifo"))
    keeper = os.open(here.file("fifo"), os.O_RDWR)
    try:
        async with await here.open_file(here.file("fifo"), "rb", buffering=0) as file:
            refused = [await here.result(file.seek, 0), await here.result(file.tell)]
            return file.seekable(), [one[0] in ("OSError", "UnsupportedOperation") for one in refused]
    finally:
        os.close(keeper)


@case("file buffers")
async def a_device_is_read_and_written(here: Here) -> object:
    async with await here.open_file("/dev/zero", "rb") as file:
        zeros = await file.read(10)
    async with await here.open_file("/dev/null", "wb") as file:
        written = await file.write(b"x" * 10)
    return zeros, written


@case(
    "file buffers",
    differs="names in errors",
    in_guest=("OSError", 28, "No space left on device", "/dev/full", None),
)
async def a_write_that_fails_is_an_error(here: Here) -> object:
    async with await here.open_file("/dev/full", "wb", buffering=0) as file:
        return await here.result(file.write, b"x")


@case("file buffers")
async def a_directory_cannot_be_opened(here: Here) -> object:
    return [await here.result(here.open_file, here.dir, mode) for mode in ("r", "w", "r+", "rb")]


@case("file buffers")
async def a_large_file_comes_back_as_it_was_written(here: Here) -> object:
    await here.path(here.file("f")).write_bytes(DATA * 5)
    return digest(await here.path(here.file("f")).read_bytes()), digest(DATA * 5)


@case("file buffers")
async def a_hole_stays_one(here: Here) -> object:
    async with await here.open_file(here.file("f"), "wb") as file:
        await file.seek(50_000_000)
        await file.write(b"end")
    found = os.stat(here.file("f"))
    return found.st_size, found.st_blocks < 1000


# Collected


async def forgotten(here: Here, make: Callable[[], Any]) -> object:
    """What collecting an object that nobody has closed says."""
    kept = [await make()]
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        kept.clear()
        await trio.to_thread.run_sync(int)  # so that no thread has the last result in its hands
        gc.collect()
    return sorted({warning.category.__name__ for warning in caught})


async def no_session_left(here: Here) -> bool:
    """Whether the guest has let go of everything that was forgotten here."""
    with trio.move_on_after(5):
        while isinstance(here, InGuest) and here.guest.statistics().active_sessions:
            await trio.sleep(0.002)
        return True
    return False


@case("collected")
async def a_forgotten_file_warns(here: Here) -> object:
    path = here.file("f", b"contents")
    return await forgotten(here, partial(here.open_file, path)), await no_session_left(here)


@case("collected")
async def a_forgotten_binary_file_warns(here: Here) -> object:
    path = here.file("f", b"contents")
    return await forgotten(here, partial(here.open_file, path, "rb", buffering=0)), await no_session_left(here)


@case("collected")
async def a_forgotten_connection_warns_and_is_closed(here: Here) -> object:
    [listener] = await trio.open_tcp_listeners(0, host="127.0.0.1")
    async with listener:
        port = listener.socket.getsockname()[1]
        said = await forgotten(here, partial(here.open_tcp_stream, "127.0.0.1", port))
        async with await listener.accept() as theirs:
            with trio.move_on_after(5):
                return said, await theirs.receive_some()
    return said, "open"


def descriptors_on(path: str) -> int:
    """How many descriptors of all processes have a file open."""
    count = 0
    for pid in filter(str.isdigit, os.listdir("/proc")):
        try:
            names = os.listdir(f"/proc/{pid}/fd")
        except OSError:
            continue
        for name in names:
            try:
                count += os.readlink(f"/proc/{pid}/fd/{name}") == path
            except OSError:
                continue
    return count


async def none_on(path: str) -> bool:
    with trio.move_on_after(5):
        while descriptors_on(path):
            await trio.sleep(0.01)
        return True
    return False


@case("collected")
async def forgotten_files_are_closed_where_they_are(here: Here) -> object:
    path = here.file("f", b"contents")
    said = [await forgotten(here, partial(here.open_file, path, "rb")) for _ in range(20)]
    return said, await none_on(path)


@case("collected")
async def a_file_whose_opening_was_cancelled_is_closed(here: Here) -> object:
    path = here.file("f", b"contents")
    for _ in range(5):
        with trio.CancelScope() as scope:
            scope.cancel()
            await here.open_file(path)
    return await none_on(path)


@case("collected")
async def a_closed_file_does_not_warn(here: Here) -> object:
    async def opened_and_closed() -> Any:
        file = await here.open_file(here.file("f", b"contents"))
        await file.aclose()
        return file

    return await forgotten(here, opened_and_closed), await none_on(here.file("f"))


@case("collected")
async def a_command_whose_streams_were_closed_leaves_no_pipe(here: Here) -> object:
    async with here.open_process(["cat"], stdin=PIPE, stdout=PIPE) as process:
        await process.stdin.aclose()
        await process.stdout.aclose()
        return await process.wait()

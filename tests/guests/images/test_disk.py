"""Disks of directories and images, from the door of the room to what e2fsprogs find in them."""

from __future__ import annotations

import contextlib
import gzip
import os
import shutil
import subprocess
import sys
import tarfile
import zlib
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import trio

from tests.guests.images.making import (
    Disk,
    Item,
    archive_of,
    docker_files,
    file,
    folder,
    hard_link,
    layer,
    layout,
    symlink,
    write,
)
from tests.tools.installing import install
from tests.tools.limits import HANG
from trio_console._guests.images import disk as disk_module
from trio_console._guests.images import ext4
from trio_console._guests.images.bounds import BOUNDS, BadImageError, Bounds
from trio_console._guests.images.disk import KIND, disk_of
from trio_console._guests.machine.stock.cache import kept, prune

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

LAYERS = (
    layer(
        folder("bin"),
        file("bin/su", b"program", mode=0o4755),
        hard_link("bin/sg", "bin/su"),
        file("etc/shadow", b"secret", mode=0, uid=0, gid=42, mtime=1234567890),
        symlink("sbin", "/bin"),
        folder("tmp", mode=0o1777),
        folder("home/user", uid=100_000, gid=70_000),
        Item("run/pipe", tarfile.FIFOTYPE, fields={"mode": 0o622}),
        Item("dev/null", tarfile.CHRTYPE),
        file("etc/old"),
    ),
    layer(file("etc/.wh.old"), file("sbin/new", b"x" * 100_000)),
)


@pytest.fixture(scope="module", autouse=True)
def tools() -> None:
    install("zstd", "zstd")
    if not (shutil.which("mke2fs") or os.path.exists("/usr/sbin/mke2fs")):
        install("mke2fs", "e2fsprogs")


class Cache:
    """A cache that is a directory: enough to see what is made, and how often."""

    def __init__(self, place: Path) -> None:
        self.place = place
        self.made: list[str] = []

    async def __call__(self, kind: str, key: str, make: Callable[[Path], Awaitable[None]], /) -> Path:
        entry = self.place / kind / key
        if not entry.exists():
            new = self.place / "new"
            new.mkdir(parents=True)
            try:
                await make(new)
                entry.parent.mkdir(parents=True, exist_ok=True)
                new.rename(entry)
            finally:
                shutil.rmtree(new, ignore_errors=True)
            self.made.append(key)
        return entry


@pytest.fixture
def cache(tmp_path: Path) -> Cache:
    return Cache(tmp_path / "cache")


FORMS: dict[str, Callable[[Path], Path]] = {
    "layout": lambda path: write(path, layout(LAYERS)),
    "nested layout": lambda path: write(path, layout(LAYERS, nested=True)),
    "archive of a layout": lambda path: archive_of(path, layout(LAYERS)),
    "old docker save": lambda path: Path(shutil.move(_written(path, layer(*docker_files(LAYERS))), path)),
    "new docker save": lambda path: archive_of(path, {**layout(LAYERS, pack=bytes), "manifest.json": b"[{}]"}),
    "zstd": lambda path: write(path, layout(LAYERS, pack=_zstd)),
}


def _written(path: Path, data: bytes) -> str:
    path.with_suffix(".1").write_bytes(data)
    return str(path.with_suffix(".1"))


def _zstd(data: bytes) -> bytes:
    return subprocess.run(["zstd", "-q", "-c"], input=data, capture_output=True, check=True).stdout


@pytest.mark.parametrize("form", FORMS)
async def test_an_image_becomes_the_same_disk_in_each_form(form: str, cache: Cache, tmp_path: Path) -> None:
    first = await disk_of(FORMS["layout"](tmp_path / "first"), cache)
    assert await disk_of(FORMS[form](tmp_path / "image"), cache) == first
    # (That it would not be made from this form is no proof that it can be.)
    disk = Disk(await disk_of(tmp_path / "image", Cache(tmp_path / "other")))
    disk.check()
    assert disk.names() == {"bin", "dev", "etc", "sbin", "tmp", "home", "run", "lost+found"} - {"dev"}
    assert disk.names("/bin") == {"su", "sg", "new"}
    assert disk.names("/etc") == {"shadow"}
    assert disk.read("/bin/new") == b"x" * 100_000


@pytest.fixture
async def disk(cache: Cache, tmp_path: Path) -> Disk:
    return Disk(await disk_of(FORMS["layout"](tmp_path / "image"), cache))


async def test_owners_rights_and_times_are_those_of_the_image(disk: Disk) -> None:
    found = disk.stat("/etc/shadow")
    assert (found.mode, found.uid, found.gid, found.mtime) == (0, 0, 42, 1234567890)
    assert disk.read("/etc/shadow") == b"secret"
    assert disk.stat("/bin/su").mode == 0o4755
    assert disk.stat("/tmp").mode == 0o1777


async def test_ids_may_have_more_than_16_bits(disk: Disk) -> None:
    found = disk.stat("/home/user")
    assert (found.uid, found.gid) == (100_000, 70_000)


async def test_hard_links_are_one_file(disk: Disk) -> None:
    assert disk.stat("/bin/su").inode == disk.stat("/bin/sg").inode
    assert disk.stat("/bin/su").links == 2


async def test_links_and_named_pipes_are_kept(disk: Disk) -> None:
    assert disk.stat("/sbin").type == "symlink"
    assert disk.stat("/run/pipe").type == "FIFO"


async def test_capabilities_of_files_are_kept(cache: Cache, tmp_path: Path) -> None:
    value = bytes.fromhex("0100000200200000000000000000000000000000")
    headers = {"SCHILY.xattr.security.capability": value.decode(), "SCHILY.xattr.user.other": "x"}
    lower = layer(file("a"), Item("ping", fields={"pax_headers": headers}))
    disk = Disk(await disk_of(write(tmp_path / "image", layout([lower])), cache))
    assert b"security.capability (20) = 01 00 00 02 00 20 00" in disk.ask("ea_list /ping")
    assert b"user.other" not in disk.ask("ea_list /ping")
    assert b"security.capability" not in disk.ask("ea_list /a")
    disk.check()


async def test_a_directory_of_that_name_becomes_ext4s_own(cache: Cache, tmp_path: Path) -> None:
    lower = layer(folder("lost+found", uid=5, mode=0o711), file("lost+found/a", b"x"))
    disk = Disk(await disk_of(write(tmp_path / "image", layout([lower])), cache))
    disk.check()
    assert disk.stat("/lost+found").uid == 5
    assert disk.read("/lost+found/a") == b"x"


async def test_many_files_and_long_names_find_room(cache: Cache, tmp_path: Path) -> None:
    lower = layer(
        *(file(f"d/{'n' * 200}{number}", b"x") for number in range(1000)),
        *(symlink(f"l/{number}", "t" * 200) for number in range(500)),
        file("large", bytes(40_000_000)),
    )
    disk = Disk(await disk_of(write(tmp_path / "image", layout([lower])), cache))
    disk.check()
    assert len(disk.names("/d")) == 1000


async def test_a_disk_is_made_once(cache: Cache, tmp_path: Path) -> None:
    for number in range(2):
        await disk_of(FORMS["layout"](tmp_path / str(number)), cache)
    assert len(cache.made) == 1


async def test_the_cache_of_machines_keeps_disks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    path = await disk_of(FORMS["layout"](tmp_path / "image"), kept)
    Disk(path).check()
    assert await prune([KIND]) > 0
    assert not path.exists()


async def test_nothing_but_the_disk_is_left_and_nobody_may_write_to_it(disk: Disk, cache: Cache) -> None:
    (entry,) = (cache.place / "disks").iterdir()
    (only,) = entry.iterdir()
    assert (only.name, only.stat().st_mode & 0o777) == ("disk", 0o400)


# --- directories ----------------------------------------------------------------------------------


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    place = tmp_path / "tree"
    write(place, {"bin/su": b"program", "etc/shadow": b"secret"})
    (place / "bin/su").chmod(0o4711)
    (place / "link").symlink_to("/etc/passwd")
    return place


async def test_a_directory_becomes_a_disk(tree: Path, cache: Cache) -> None:
    disk = Disk(await disk_of(tree, cache))
    disk.check()
    assert disk.names() == {"bin", "etc", "link", "lost+found"}
    assert disk.stat("/bin/su").mode == 0o4711
    assert disk.read("/etc/shadow") == b"secret"
    assert disk.stat("/link").type == "symlink"


async def test_the_root_of_a_directory_has_its_rights(tree: Path, cache: Cache) -> None:
    tree.chmod(0o751)
    assert Disk(await disk_of(tree, cache)).stat("/").mode == 0o751


@pytest.mark.parametrize("change", ["content", "mode", "name", "nothing"])
async def test_a_directory_that_was_changed_becomes_another_disk(change: str, tree: Path, cache: Cache) -> None:
    await disk_of(tree, cache)
    path = tree / "bin/su"
    if change == "content":
        found = path.stat()
        path.write_bytes(b"PROGRAM")
        os.utime(path, ns=(found.st_atime_ns, found.st_mtime_ns))  # no trick hides it
    elif change == "mode":
        path.chmod(0o700)
    elif change == "name":
        path.rename(tree / "bin/other")
    await disk_of(tree, cache)
    assert len(cache.made) == (1 if change == "nothing" else 2)


async def test_a_directory_that_changes_meanwhile_becomes_no_disk(
    tree: Path, cache: Cache, monkeypatch: pytest.MonkeyPatch
) -> None:
    make = ext4.image_of_directory

    def changed(*arguments: Any) -> None:
        make(*arguments)
        (tree / "new").touch()

    monkeypatch.setattr(disk_module, "image_of_directory", changed)
    with pytest.raises(BadImageError, match="was changed while"):
        await disk_of(tree, cache)
    assert cache.made == []


async def test_a_disk_is_not_made_of_a_directory_that_it_would_be_in(tree: Path) -> None:
    with pytest.raises(BadImageError, match="the disk would be in it"):
        await disk_of(tree, Cache(tree / "cache"))


@pytest.mark.parametrize("bounds", [Bounds(total_bytes=12), Bounds(entries=5)])
async def test_a_directory_is_bounded(bounds: Bounds, tree: Path, cache: Cache) -> None:
    with pytest.raises(BadImageError, match="has more than"):
        await disk_of(tree, cache, bounds=bounds)


AS_NOBODY = """
import os, sys
from pathlib import Path
import trio
from tests.guests.images.test_disk import Cache
from trio_console._guests.images.disk import disk_of
os.setgroups([]); os.setgid(65534); os.setuid(65534)  # (who may not read where these modules are)
print(trio.run(disk_of, Path(sys.argv[1]), Cache(Path(sys.argv[2]))))
"""


@pytest.mark.skipif(os.getuid() != 0, reason="every other test is one by a user who is not root")
async def test_nobody_has_to_be_root() -> None:
    with contextlib.ExitStack() as stack:
        place = Path("/var/tmp", f"trio-console-test-{os.getpid()}")
        place.mkdir()
        stack.callback(shutil.rmtree, place)
        FORMS["layout"](place / "image")
        write(place / "tree", {"mine": b"x"})
        (place / "cache").mkdir(mode=0o777)
        for path in (place / "tree", place / "tree/mine", place / "cache"):
            os.chown(path, 65534, 65534)
        for name in ("image", "tree"):
            done = await trio.run_process(
                [sys.executable, "-c", AS_NOBODY, place / name, place / "cache"],
                capture_stdout=True,
                cwd=Path(__file__).parents[3],
            )
            disk = Disk(Path(done.stdout.decode().strip()))
            disk.check()
            if name == "image":
                found = disk.stat("/etc/shadow")
                assert (found.mode, found.uid, found.gid) == (0, 0, 42)
                assert disk.stat("/home/user").uid == 100_000
                assert disk.stat("/bin/su").mode == 0o4755
            else:
                assert (disk.stat("/mine").uid, disk.stat("/").gid) == (0, 0)


# --- what is refused ------------------------------------------------------------------------------


async def test_without_mke2fs_the_error_says_what_to_install(
    tree: Path, cache: Cache, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ext4, "_SBIN", "/nowhere")
    monkeypatch.setenv("PATH", "/nowhere")
    with pytest.raises(FileNotFoundError, match="install the package e2fsprogs"):
        await disk_of(tree, cache)


@pytest.mark.skipif(sys.version_info >= (3, 14), reason="this Python can decompress it itself")
async def test_without_zstd_the_error_says_what_to_install(
    cache: Cache, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    image = FORMS["zstd"](tmp_path / "image")
    monkeypatch.setenv("PATH", "/usr/sbin:/nowhere")
    monkeypatch.setattr(shutil, "which", lambda name, path=None: None if name == "zstd" else f"/usr/sbin/{name}")
    with pytest.raises(FileNotFoundError, match="install the package zstd"):
        await disk_of(image, cache)


async def test_what_mke2fs_says_is_in_the_error(tmp_path: Path, cache: Cache) -> None:
    lower = layer(file("lost+found", b"no directory"))
    with pytest.raises(OSError, match=r"(?s)mke2fs could not make a disk.*already exists"):
        await disk_of(write(tmp_path / "image", layout([lower])), cache)
    assert not list(cache.place.iterdir())


async def test_who_cancels_waits_for_no_disk(
    tree: Path, cache: Cache, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    endless = tmp_path / "mke2fs"
    endless.write_text(f"#!/bin/sh\necho $$ > {tmp_path}/pid\nexec /bin/sleep 1000\n")
    endless.chmod(0o755)
    os.mkfifo(tmp_path / "pid")
    tools = ext4.find_tools()._replace(mke2fs=str(endless))
    monkeypatch.setattr(disk_module, "find_tools", lambda: tools)
    with trio.fail_after(HANG):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(disk_of, tree, cache)
            pid = await trio.to_thread.run_sync((tmp_path / "pid").read_text)
            nursery.cancel_scope.cancel()
    assert pid.strip() not in os.listdir("/proc")
    assert not list(cache.place.iterdir())


def bomb(size: int) -> bytes:
    return layer(file("zeros", bytes(size)))


@pytest.mark.parametrize("pack", [gzip.compress, _zstd, bytes])
async def test_a_layer_that_unpacks_to_too_much_is_refused(
    pack: Callable[[bytes], bytes], cache: Cache, tmp_path: Path
) -> None:
    image = write(tmp_path / "image", layout([bomb(10_000_000)], pack=pack))
    with pytest.raises(BadImageError, match="larger than the bound"):
        await disk_of(image, cache, bounds=Bounds(total_bytes=9_000_000))
    assert not list(cache.place.iterdir())
    await disk_of(image, cache, bounds=Bounds(total_bytes=11_000_000))


async def test_layers_are_bounded_together(cache: Cache, tmp_path: Path) -> None:
    image = write(tmp_path / "image", layout([bomb(5_000_000), bomb(5_000_001)]))
    with pytest.raises(BadImageError, match="larger than the bound"):
        await disk_of(image, cache, bounds=Bounds(total_bytes=9_000_000))


@pytest.mark.parametrize("damage", ["a bit", "the end", "another layer"])
@pytest.mark.parametrize("form", ["layout", "old docker save"])
async def test_a_damaged_layer_is_refused(damage: str, form: str, cache: Cache, tmp_path: Path) -> None:
    image = FORMS[form](tmp_path / "image")
    victim = image if image.is_file() else max((image / "blobs/sha256").iterdir(), key=lambda p: p.stat().st_size)
    data = bytearray(victim.read_bytes())
    if form == "layout":
        if damage == "a bit":
            data[20] ^= 1
        elif damage == "the end":
            del data[-1:]
        else:
            data[:] = gzip.compress(LAYERS[1][:1024])
    else:
        place = data.index(b"program" if damage != "another layer" else b"secret")
        data[place] ^= 1
        if damage == "the end":
            del data[place:]
    victim.write_bytes(data)
    with pytest.raises(BadImageError, match="damaged"):
        await disk_of(image, cache)


@pytest.mark.parametrize("pack", [lambda data: gzip.compress(data)[:-4], lambda data: _zstd(data)[:-20]])
async def test_a_layer_that_cannot_be_unpacked_is_refused(
    pack: Callable[[bytes], bytes], cache: Cache, tmp_path: Path
) -> None:
    # Its digest is right: it was made so.
    with pytest.raises(BadImageError, match="is damaged"):
        await disk_of(write(tmp_path / "image", layout(LAYERS, pack=pack)), cache)


@pytest.mark.parametrize("magic", [b"BZh", b"\xfd7zXZ"])
async def test_other_compressions_are_named(magic: bytes, cache: Cache, tmp_path: Path) -> None:
    image = write(tmp_path / "image", layout(LAYERS, pack=lambda data: magic + data))
    with pytest.raises(BadImageError, match="gzip and zstd are known"):
        await disk_of(image, cache)


async def test_an_archive_that_is_compressed_as_a_whole_is_refused(cache: Cache, tmp_path: Path) -> None:
    (tmp_path / "image").write_bytes(zlib.compress(b"", wbits=31))
    with pytest.raises(BadImageError, match="decompress it first"):
        await disk_of(tmp_path / "image", cache)


async def test_what_is_no_file_is_not_waited_for(cache: Cache, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    with trio.fail_after(HANG), pytest.raises(BadImageError, match="neither a directory nor a file"):
        await disk_of(tmp_path / "pipe", cache)


async def test_a_path_to_nothing_is_an_error_that_names_it(cache: Cache, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="missing"):
        await disk_of(tmp_path / "missing", cache)


def test_the_bounds_are_those_that_the_docs_state() -> None:
    assert (BOUNDS.total_bytes, BOUNDS.entries, BOUNDS.layers) == (16 * 1024**3, 1_000_000, 256)

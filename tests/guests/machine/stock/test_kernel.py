"""Kernels: which is taken, and which of its modules in which order."""

from __future__ import annotations

import gzip
import lzma
from typing import TYPE_CHECKING

import pytest

from trio_console._guests.machine.stock import kernel
from trio_console._guests.machine.stock.kernel import Kernel, find_kernel

if TYPE_CHECKING:
    from pathlib import Path


def image(release: str) -> bytes:
    head = bytearray(0x1000)
    head[0x202:0x206] = b"HdrS"
    head[0x20E:0x210] = (0x400).to_bytes(2, "little")
    head[0x600:] = f"{release} (somebody) #1\0".encode()
    return bytes(head)


def module(*depends: str) -> bytes:
    return b"\x7fELF\0depends=" + ",".join(depends).encode() + b"\0name=x\0"


def add(place: Path, release: str, modules: dict[str, bytes], builtin: str = "") -> Path:
    """A kernel laid out like its package."""
    (place / "boot").mkdir(parents=True)
    path = place / f"boot/vmlinuz-{release}"
    path.write_bytes(image(release))
    folder = place / "lib/modules" / release
    (folder / "kernel/fs").mkdir(parents=True)
    (folder / "modules.builtin").write_text(builtin)
    for name, data in modules.items():
        (folder / "kernel/fs" / name).write_bytes(data)
    return path


@pytest.fixture
def kept(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(kernel, "BOOT", tmp_path / "boot")
    return tmp_path / "trio_console/kernels"


def names(found: Kernel, *wanted: str) -> list[str]:
    return [name for name, _ in found.modules_for(wanted)]


def test_modules_come_behind_those_that_they_need(tmp_path: Path) -> None:
    modules = {"a.ko": module("b", "c-d"), "b.ko": module("c_d"), "c-d.ko": module(), "e.ko": module()}
    found = find_kernel(add(tmp_path, "6.1", modules), ["a"])
    assert names(found, "a") == ["c_d", "b", "a"]


@pytest.mark.parametrize(("suffix", "pack"), [("", bytes), (".xz", lzma.compress), (".gz", gzip.compress)])
def test_modules_are_unpacked(tmp_path: Path, suffix: str, pack: type[bytes]) -> None:
    found = find_kernel(add(tmp_path, "6.1", {f"a.ko{suffix}": pack(module())}), ["a"])
    assert found.modules_for(["a"]) == [("a", module())]


def test_a_module_that_cannot_be_unpacked_is_an_error(tmp_path: Path) -> None:
    found = find_kernel(add(tmp_path, "6.1", {"a.ko.zst": b""}), ["a"])
    with pytest.raises(OSError, match="zstd"):
        found.modules_for(["a"])


def test_what_is_built_in_is_not_lacking(tmp_path: Path) -> None:
    path = add(tmp_path, "6.1", {}, builtin="kernel/fs/a-b.ko\n")
    assert names(find_kernel(path, ["a_b"]), "a_b") == []


def test_a_given_kernel_that_lacks_a_module_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"\(6.1\) lacks the modules b"):
        find_kernel(add(tmp_path, "6.1", {"a.ko": module()}), ["a", "b"])


def test_a_file_that_is_no_kernel_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(bytes(0x1000))
    for name in ("file", "missing"):
        with pytest.raises(ValueError, match="is no kernel image"):
            find_kernel(tmp_path / name, [])


def test_the_small_kernel_is_taken_if_it_has_all_modules(kept: Path) -> None:
    add(kept / "full", "6.1-amd64", {"a.ko": module(), "b.ko": module()})
    add(kept / "small", "6.1-cloud-amd64", {"a.ko": module()})
    assert find_kernel(None, ["a"]).release == "6.1-cloud-amd64"
    assert find_kernel(None, ["a", "b"]).release == "6.1-amd64"


def test_a_kernel_that_is_kept_comes_before_this_machines_own(kept: Path, tmp_path: Path) -> None:
    add(tmp_path, "6.9", {"a.ko": module()})
    assert find_kernel(None, ["a"]).release == "6.9"
    add(kept / "one", "6.1", {"a.ko": module()})
    assert find_kernel(None, ["a"]).release == "6.1"


def test_without_a_kernel_the_error_says_how_to_get_one(kept: Path) -> None:
    with pytest.raises(FileNotFoundError, match="trio-console vm setup"):
        find_kernel(None, ["a"])

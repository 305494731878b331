"""Images for tests: layers, and the four forms in which they come. And what disks hold."""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import os
import re
import subprocess
import tarfile
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from trio_console._guests.images.ext4 import find_tools

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from pathlib import Path

ARCHITECTURE: Final = {"x86_64": "amd64", "aarch64": "arm64"}.get(os.uname().machine, os.uname().machine)
PLATFORM: Final = {"os": "linux", "architecture": ARCHITECTURE}


class Item(NamedTuple):
    name: str
    type: bytes = tarfile.REGTYPE
    data: bytes = b""
    link: str = ""
    fields: Mapping[str, Any] = {}


def file(name: str, data: bytes = b"", **fields: Any) -> Item:
    return Item(name, data=data, fields=fields)


def folder(name: str, **fields: Any) -> Item:
    return Item(name, tarfile.DIRTYPE, fields={"mode": 0o755, **fields})


def symlink(name: str, target: str) -> Item:
    return Item(name, tarfile.SYMTYPE, link=target)


def hard_link(name: str, target: str) -> Item:
    return Item(name, tarfile.LNKTYPE, link=target)


def layer(*items: Item, format: int = tarfile.PAX_FORMAT) -> bytes:  # noqa: A002  (as tarfile has it)
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w:", format=format, errors="surrogateescape") as archive:
        for item in items:
            info = tarfile.TarInfo(item.name)
            info.type, info.linkname, info.size = item.type, item.link, len(item.data)
            for name, value in item.fields.items():
                setattr(info, name, value)
            archive.addfile(info, io.BytesIO(item.data))
    return out.getvalue()


def digest(data: bytes) -> str:
    return "sha256:" + hashlib.sha256(data).hexdigest()


def config_of(layers: Sequence[bytes], **others: Any) -> bytes:
    diff_ids = [digest(each) for each in layers]
    return json.dumps({**PLATFORM, "rootfs": {"type": "layers", "diff_ids": diff_ids}, **others}).encode()


def layout(
    layers: Sequence[bytes], pack: Callable[[bytes], bytes] = gzip.compress, nested: bool = False, **config: Any
) -> dict[str, bytes]:
    """The files of an OCI layout."""
    files: dict[str, bytes] = {"oci-layout": b'{"imageLayoutVersion": "1.0.0"}'}

    def blob(data: bytes, **others: Any) -> dict[str, Any]:
        files["blobs/sha256/" + digest(data).removeprefix("sha256:")] = data
        return {"digest": digest(data), "size": len(data), **others}

    manifest = {
        "schemaVersion": 2,
        "config": blob(config_of(layers, **config)),
        "layers": [blob(pack(each)) for each in layers],
    }
    found = blob(json.dumps(manifest).encode(), platform=PLATFORM)
    if nested:
        other = {**found, "platform": {"os": "linux", "architecture": "other"}}
        found = blob(json.dumps({"schemaVersion": 2, "manifests": [other, found]}).encode())
    files["index.json"] = json.dumps({"schemaVersion": 2, "manifests": [found]}).encode()
    return files


def docker_files(layers: Sequence[bytes]) -> list[Item]:
    """The files of an archive as `docker save` wrote it before it had OCI's layout."""
    config = config_of(layers)
    name = hashlib.sha256(config).hexdigest() + ".json"
    names = [f"{number:064x}/layer.tar" for number in range(len(layers))]
    manifest = [{"Config": name, "RepoTags": ["image:latest"], "Layers": names}]
    items = [file(name, config), file("manifest.json", json.dumps(manifest).encode())]
    for name, each in zip(names, layers, strict=True):
        items += [folder(os.path.dirname(name)), file(name, each)]
    return items


def write(directory: Path, files: Mapping[str, bytes]) -> Path:
    for name, data in files.items():
        (directory / name).parent.mkdir(parents=True, exist_ok=True)
        (directory / name).write_bytes(data)
    return directory


def archive_of(path: Path, files: Mapping[str, bytes]) -> Path:
    path.write_bytes(layer(*(file(name, data) for name, data in files.items())))
    return path


class Found(NamedTuple):
    type: str
    mode: int
    uid: int
    gid: int
    links: int
    inode: int
    mtime: int


class Disk:
    """A disk image, as e2fsprogs reads it."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._debugfs = find_tools().debugfs

    def ask(self, request: str) -> bytes:
        command = [self._debugfs, "-R", request, str(self._path)]
        return subprocess.run(command, check=True, capture_output=True).stdout

    def read(self, name: str) -> bytes:
        return self.ask(f'cat "{name}"')

    def stat(self, name: str) -> Found:
        text = self.ask(f'stat "{name}"').decode()
        number = {
            key: int(re.search(pattern, text)[1], base)  # type: ignore[index]
            for key, pattern, base in (
                ("mode", r"Mode: +(\d+)", 8),
                ("uid", r"User: +(\d+)", 10),
                ("gid", r"Group: +(\d+)", 10),
                ("links", r"Links: (\d+)", 10),
                ("inode", r"Inode: (\d+)", 10),
                ("mtime", r"mtime: 0x([0-9a-f]+)", 16),
            )
        }
        kind = re.search(r"Type: (.*?) +Mode", text)
        assert kind
        return Found(kind[1], **number)

    def names(self, name: str = "/") -> set[str]:
        lines = self.ask(f'ls -p "{name}"').decode().splitlines()
        return {line.split("/")[5] for line in lines if line.startswith("/")} - {".", ".."}

    def check(self) -> None:
        """Nothing is wrong with it."""
        e2fsck = os.path.join(os.path.dirname(find_tools().mke2fs), "e2fsck")
        subprocess.run([e2fsck, "-fn", self._path], check=True, capture_output=True)

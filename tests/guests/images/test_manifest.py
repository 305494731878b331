"""Which image is meant, and what is refused on the way to its layers."""

from __future__ import annotations

import hashlib
import io
import json
import os
import tempfile
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any

import pytest

from tests.guests.images.making import (
    PLATFORM,
    Item,
    config_of,
    digest,
    docker_files,
    file,
    hard_link,
    layer,
    layout,
    symlink,
    write,
)
from trio_console._guests.images.blobs import ArchiveSource, DirectorySource
from trio_console._guests.images.bounds import BOUNDS, BadImageError, Bounds
from trio_console._guests.images.manifest import Image, find_image

if TYPE_CHECKING:
    from pathlib import Path

LAYERS = (layer(file("a", b"lower")), layer(file("b", b"upper")))


class Layout:
    """The files of a layout, whose index can be changed."""

    def __init__(self, place: Path, **options: Any) -> None:
        self.place = write(place / "image", layout(LAYERS, **options))
        (self.entry,) = json.loads((self.place / "index.json").read_text())["manifests"]

    def blob(self, content: Any) -> dict[str, Any]:
        data = content if isinstance(content, bytes) else json.dumps(content).encode()
        write(self.place, {"blobs/" + digest(data).replace(":", "/"): data})
        return {"digest": digest(data), "size": len(data)}

    def found(self, *manifests: dict[str, Any], bounds: Bounds = BOUNDS) -> Image:
        (self.place / "index.json").write_text(json.dumps({"manifests": manifests}))
        return find_image(DirectorySource(self.place), bounds)

    def manifest(self, **changes: Any) -> dict[str, Any]:
        path = self.place / "blobs" / self.entry["digest"].replace(":", "/")
        return self.blob({**json.loads(path.read_text()), **changes})


@pytest.fixture
def image(tmp_path: Path) -> Layout:
    return Layout(tmp_path)


def archive(*items: Item, bounds: Bounds = BOUNDS) -> Image:
    with tempfile.TemporaryFile() as out:
        out.write(layer(*items))
        return find_image(ArchiveSource(out, "archive", bounds), bounds)


def test_the_manifest_for_this_machine_is_taken(image: Layout) -> None:
    other = {"digest": digest(b"missing"), "platform": {"os": "linux", "architecture": "other"}}
    attestation = {"digest": digest(b"missing"), "platform": {"os": "unknown", "architecture": "unknown"}}
    found = image.found(other, attestation, image.entry)
    assert [each.diff_id for each in found.layers] == [digest(each) for each in LAYERS]


def test_of_several_for_this_machine_the_first_is_taken(image: Layout) -> None:
    newer = {"digest": digest(b"missing"), "platform": {**PLATFORM, "variant": "v3"}}
    assert image.found(image.entry, newer).layers


def test_an_image_for_another_machine_is_refused_and_says_which(image: Layout) -> None:
    with pytest.raises(BadImageError, match=r"not for this machine, .*windows/arm"):
        image.found({**image.entry, "platform": {"os": "windows", "architecture": "arm"}})


@pytest.mark.parametrize("others", [{"architecture": "other"}, {"os": "windows"}])
def test_a_configuration_for_another_machine_is_refused(others: dict[str, str], tmp_path: Path) -> None:
    image = Layout(tmp_path, **others)
    with pytest.raises(BadImageError, match="not for this machine"):
        image.found({"digest": image.entry["digest"]})


def test_several_images_are_not_guessed_at(image: Layout) -> None:
    entries = [
        {**image.entry, "annotations": {"org.opencontainers.image.ref.name": name}} for name in ("one", "two")
    ]
    with pytest.raises(BadImageError, match=r"more than one image: .*one.*two"):
        image.found(*entries)


@pytest.mark.parametrize("over", [0, 1])
def test_indexes_in_one_another_are_bounded(over: int, image: Layout) -> None:
    entry = image.entry
    for _ in range(3 + over):
        entry = image.blob({"manifests": [entry]})
    if over:
        with pytest.raises(BadImageError, match="indexes in one another"):
            image.found(entry)
    else:
        assert image.found(entry).layers


def test_an_index_that_claims_to_be_in_itself_is_refused(image: Layout) -> None:
    name = "sha256:" + "0" * 64
    write(image.place, {"blobs/sha256/" + "0" * 64: json.dumps({"manifests": [{"digest": name}]}).encode()})
    with pytest.raises(BadImageError, match="damaged"):
        image.found({"digest": name})


BAD_DIGESTS = [
    "sha256:../../../../etc/passwd",
    "sha256:" + "A" * 64,
    "sha256:" + "0" * 63,
    "sha256:" + "0" * 64 + "\n",
    "md5:" + "0" * 32,
    "../secret",
    "",
    7,
    None,
]


@pytest.mark.parametrize("bad", BAD_DIGESTS)
def test_a_digest_that_is_none_is_no_path(bad: Any, image: Layout) -> None:
    (image.place.parent / "secret").write_text("{}")
    entries = [
        {"digest": bad},
        image.manifest(config={"digest": bad}),
        image.manifest(layers=[{"digest": bad}] * 2),
    ]
    for entry in entries:
        with pytest.raises(BadImageError):
            image.found(entry)


@pytest.mark.parametrize("victim", ["manifest", "config"])
def test_a_document_that_is_not_what_its_digest_says_is_refused(victim: str, image: Layout) -> None:
    path = image.place / "blobs" / image.entry["digest"].replace(":", "/")
    if victim == "config":
        path = image.place / "blobs" / json.loads(path.read_text())["config"]["digest"].replace(":", "/")
    path.write_bytes(path.read_bytes() + b" ")
    with pytest.raises(BadImageError, match="damaged"):
        image.found(image.entry)


@pytest.mark.parametrize("over", [0, 1])
def test_documents_are_bounded(over: int, image: Layout) -> None:
    largest = max(path.stat().st_size for path in [*(image.place / "blobs/sha256").iterdir()])
    size = max(largest, len(json.dumps({"manifests": [image.entry]})))
    bounds = Bounds(document_bytes=size - over)
    if over:
        with pytest.raises(BadImageError, match="that it may have"):
            image.found(image.entry, bounds=bounds)
    else:
        assert image.found(image.entry, bounds=bounds).layers


@pytest.mark.parametrize("over", [0, 1])
def test_layers_are_bounded(over: int, image: Layout) -> None:
    if over:
        with pytest.raises(BadImageError, match="has 2 layers; it may have 1 to 1"):
            image.found(image.entry, bounds=Bounds(layers=1))
    else:
        assert image.found(image.entry, bounds=Bounds(layers=2)).layers


@pytest.mark.parametrize("content", [b"", b"[]", b"{", b"\xff", b"[" * 100_000, b"1" * 10_000, b'{"a": NaN}'])
def test_what_is_no_document_is_refused(content: bytes, image: Layout) -> None:
    for entry in (image.blob(content), image.manifest(config=image.blob(content))):
        with pytest.raises(BadImageError):
            image.found(entry)


@pytest.mark.parametrize("diff_ids", [None, [], "sha256:", [digest(b"")], [digest(b""), 1], [digest(b""), "../x"]])
def test_digests_that_are_not_one_for_each_layer_are_refused(diff_ids: Any, image: Layout) -> None:
    config = {**PLATFORM, "rootfs": {"diff_ids": diff_ids}}
    with pytest.raises(BadImageError):
        image.found(image.manifest(config=image.blob(config)))


@pytest.mark.parametrize("place", ["blobs", "blobs/sha256", "index.json", "a blob"])
def test_no_link_out_of_a_layout_is_followed(place: str, image: Layout) -> None:
    path = image.place / "blobs" / image.entry["digest"].replace(":", "/")
    if place != "a blob":
        path = image.place / place
    (image.place / "index.json").write_text(json.dumps({"manifests": [image.entry]}))
    elsewhere = image.place.parent / "elsewhere"
    path.rename(elsewhere)
    path.symlink_to(elsewhere)
    with pytest.raises(BadImageError):
        find_image(DirectorySource(image.place), BOUNDS)


def test_a_blob_that_is_a_pipe_is_not_waited_for(image: Layout) -> None:
    path = image.place / "blobs" / image.entry["digest"].replace(":", "/")
    path.unlink()
    os.mkfifo(path)
    with pytest.raises(BadImageError, match="is no file"):
        image.found(image.entry)


def test_an_archive_of_something_else_is_refused() -> None:
    with pytest.raises(BadImageError, match="this is no image"):
        archive(file("etc/passwd"))


# --- `docker save`, as it was ---------------------------------------------------------------------


def with_manifest(*images: Any) -> list[Item]:
    items = [item for item in docker_files(LAYERS) if item.name != "manifest.json"]
    return [*items, file("manifest.json", json.dumps(images).encode())]


def described() -> dict[str, Any]:
    (manifest,) = [item for item in docker_files(LAYERS) if item.name == "manifest.json"]
    (found,) = json.loads(manifest.data)
    assert isinstance(found, dict)
    return found


def test_the_image_of_an_archive_is_found() -> None:
    assert [each.diff_id for each in archive(*docker_files(LAYERS)).layers] == [digest(each) for each in LAYERS]


def test_an_archive_with_two_images_is_refused() -> None:
    with pytest.raises(BadImageError, match="2 images; save one"):
        archive(*with_manifest(described(), described()))


@pytest.mark.parametrize(
    "changes",
    [{"Config": "../../etc/passwd"}, {"Config": 1}, {"Layers": None}, {"Layers": [1, 2]}, {"Layers": []}],
)
def test_a_manifest_that_names_no_parts_of_the_archive_is_refused(changes: dict[str, Any]) -> None:
    with pytest.raises(BadImageError):
        archive(*with_manifest({**described(), **changes}))


def test_a_configuration_that_is_not_what_its_name_says_is_refused() -> None:
    items = [item for item in docker_files(LAYERS) if not item.name.endswith(".json")]
    name = hashlib.sha256(b"other").hexdigest() + ".json"
    manifest = [{**described(), "Config": name}]
    with pytest.raises(BadImageError, match="damaged"):
        archive(*items, file(name, config_of(LAYERS)), file("manifest.json", json.dumps(manifest).encode()))


def test_a_name_that_is_twice_in_an_archive_is_refused() -> None:
    with pytest.raises(BadImageError, match=r"manifest\.json' twice"):
        archive(*docker_files(LAYERS), file("./manifest.json"))


def read(items: tuple[Item, ...], name: str) -> bytes:
    data = layer(*items)
    with ExitStack() as stack:
        blob = ArchiveSource(io.BytesIO(data), "archive", BOUNDS).blob(name, stack)
    return data[blob.offset : blob.offset + blob.size]


@pytest.mark.parametrize(
    "link", [symlink("b/layer.tar", "../a/layer.tar"), hard_link("b/layer.tar", "a/layer.tar")]
)
def test_a_layer_that_is_twice_may_be_a_link(link: Item) -> None:
    assert read((file("a/layer.tar", b"x"), link), "b/layer.tar") == b"x"


@pytest.mark.parametrize("target", ["/etc/passwd", "../../../../../etc/passwd", "b", "c"])
def test_no_link_leads_out_of_an_archive(target: str) -> None:
    with pytest.raises(BadImageError, match="has no file"):
        read((symlink("b", target), symlink("c", "b")), "b")


@pytest.mark.parametrize("over", [0, 1])
def test_the_entries_of_an_archive_are_bounded(over: int) -> None:
    items = docker_files(LAYERS)
    bounds = Bounds(entries=len(items) - over)
    if over:
        with pytest.raises(BadImageError, match="entries"):
            archive(*items, bounds=bounds)
    else:
        assert archive(*items, bounds=bounds).layers

"""Which layers an image has: from an index to a manifest for this machine, to the configuration, to the digests.

An OCI layout and an archive of `docker save`, old and new, end in the same list; so the same image in any of them
has the same name.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from trio_console._guests.images.blobs import document, hasher_of
from trio_console._guests.images.bounds import BadImageError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from trio_console._guests.images.blobs import Source
    from trio_console._guests.images.bounds import Bounds

__all__ = ["Image", "Layer", "find_image"]

#: Indexes in one another. Registries allow one in another; digests cannot make a circle, but a chain of any
#: length.
_DEPTH: Final = 4

#: Machines as the kernel and as images name them. (Others have one name.)
_ARCHITECTURES: Final = {"x86_64": "amd64", "aarch64": "arm64"}

#: Annotations that tell two images in one index from each other.
_NAMES: Final = ("io.containerd.image.name", "org.opencontainers.image.ref.name")

_NAMED_BY_DIGEST: Final = re.compile(r"(?:.*/)?([0-9a-f]{64})(?:\.json)?")


class Layer(NamedTuple):
    """A layer: its name in its source, its digest there if that is known, and its digest when not compressed."""

    name: str
    digest: str | None
    diff_id: str


class Image(NamedTuple):
    layers: tuple[Layer, ...]

    @property
    def key(self) -> str:
        """A name of what the layers add up to."""
        return hashlib.sha256("\n".join(layer.diff_id for layer in self.layers).encode()).hexdigest()


def find_image(source: Source, bounds: Bounds) -> Image:
    """The image for this machine.

    Raises:
        BadImageError: there is none, there is more than one, or something is damaged.
    """
    if source.has("oci-layout") and source.has("index.json"):
        return _of_layout(source, bounds)
    if source.has("manifest.json"):
        return _of_docker(source, bounds)
    raise BadImageError(
        "this is no image: it has neither oci-layout and index.json (OCI) nor manifest.json (Docker)"
    )


def _of_layout(source: Source, bounds: Bounds) -> Image:
    manifest = _parse(document(source, "index.json", None, bounds), "index.json")
    depth = 0
    while "manifests" in manifest:
        depth += 1
        if depth > _DEPTH:
            raise BadImageError(f"the image has indexes in one another, more than {_DEPTH}")
        digest = _text(_chosen(_objects(manifest, "manifests")), "digest")
        manifest = _parse(document(source, _blob_name(digest), digest, bounds), digest)
    config = _text(_object(manifest, "config"), "digest")
    layers = [_text(layer, "digest") for layer in _objects(manifest, "layers")]
    names: list[tuple[str, str | None]] = [(_blob_name(digest), digest) for digest in layers]
    return _image(names, document(source, _blob_name(config), config, bounds), config, bounds)


def _chosen(descriptors: list[dict[str, Any]]) -> dict[str, Any]:
    """The manifest for this machine: one that says so, or else the one that does not say."""
    wanted = {"os": "linux", "architecture": _architecture()}
    platforms = [each.get("platform") for each in descriptors]
    fitting = [
        each
        for each, platform in zip(descriptors, platforms, strict=True)
        if isinstance(platform, dict) and wanted.items() <= platform.items()
    ] or [each for each, platform in zip(descriptors, platforms, strict=True) if platform is None]
    if not fitting:
        there = sorted({f"{p.get('os')}/{p.get('architecture')}" for p in platforms if isinstance(p, dict)})
        raise BadImageError(
            f"the image is not for this machine, linux/{wanted['architecture']}, but for: {ascii(there)[:500]}"
        )
    names = {json.dumps([(each.get("annotations") or {}).get(name) for name in _NAMES]) for each in fitting}
    if len(names) > 1:
        raise BadImageError(f"there is more than one image: {', '.join(sorted(names))[:500]}. Save one by itself")
    return fitting[0]  # the first that fits, as the format has it: the others are for newer processors


def _of_docker(source: Source, bounds: Bounds) -> Image:
    images = _parse(document(source, "manifest.json", None, bounds), "manifest.json", list)
    if len(images) != 1 or not isinstance(images[0], dict):
        raise BadImageError(f"the archive has {len(images)} images; save one by itself")
    config = _text(images[0], "Config")
    layers = images[0].get("Layers")
    if not isinstance(layers, list) or not all(isinstance(layer, str) for layer in layers):
        raise BadImageError("manifest.json does not say which layers the image has")
    named = _NAMED_BY_DIGEST.fullmatch(config)
    found = document(source, config, f"sha256:{named[1]}" if named else None, bounds)
    return _image([(layer, None) for layer in layers], found, config, bounds)


def _image(names: Sequence[tuple[str, str | None]], config: bytes, name: str, bounds: Bounds) -> Image:
    found = _parse(config, name)
    diff_ids = _object(found, "rootfs").get("diff_ids")
    if not isinstance(diff_ids, list) or not all(isinstance(each, str) for each in diff_ids):
        raise BadImageError(f"{name!a} does not say what the layers are (rootfs.diff_ids)")
    for each in diff_ids:
        hasher_of(each)
    if len(diff_ids) != len(names):
        raise BadImageError(f"the image has {len(names)} layers, and its configuration has {len(diff_ids)}")
    if not 0 < len(names) <= bounds.layers:
        raise BadImageError(f"the image has {len(names)} layers; it may have 1 to {bounds.layers}")
    if (found.get("os"), found.get("architecture")) != ("linux", _architecture()):
        raise BadImageError(
            f"the image is not for this machine, linux/{_architecture()}, but for "
            f"{ascii(found.get('os'))[:50]}/{ascii(found.get('architecture'))[:50]}"
        )
    return Image(tuple(Layer(*each, diff_id) for each, diff_id in zip(names, diff_ids, strict=True)))


def _architecture() -> str:
    machine = os.uname().machine
    return _ARCHITECTURES.get(machine, machine)


def _blob_name(digest: str) -> str:
    hasher_of(digest)  # so that it is no path
    return "blobs/" + digest.replace(":", "/")


def _parse(text: bytes, name: str, kind: type = dict) -> Any:
    try:
        found = json.loads(text)
    except (ValueError, RecursionError) as exc:
        raise BadImageError(f"{name!a} is no JSON: {ascii(str(exc))[:200]}") from exc
    if not isinstance(found, kind):
        raise BadImageError(f"{name!a} is not what it should be: a JSON {kind.__name__}")
    return found


def _object(found: dict[str, Any], key: str) -> dict[str, Any]:
    value = found.get(key)
    if not isinstance(value, dict):
        raise BadImageError(f"the image says nothing of its {key}")
    return value


def _objects(found: dict[str, Any], key: str) -> list[dict[str, Any]]:
    value = found.get(key)
    if not isinstance(value, list) or not all(isinstance(each, dict) for each in value):
        raise BadImageError(f"the image has no list of its {key}")
    return value


def _text(found: dict[str, Any], key: str) -> str:
    value = found.get(key)
    if not isinstance(value, str):
        raise BadImageError(f"the image does not say the {key} of one of its parts")
    return value

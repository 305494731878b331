"""Frames recorded from the protocol's own implementations, and inputs that are known to be bad."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from trio_console import _wire as wire

_DATA = Path(__file__).parent / "data"


def _load(name: str) -> list[dict[str, Any]]:
    return json.loads((_DATA / name).read_text())


VECTORS = _load("vectors.json")
MALFORMED = _load("malformed.json")

# Written by hand or by a newer peer: decoded like the others, but not what this build would write.
NOT_OURS = {
    "core_bootstrap_empty",
    "exec_request_rlimit_infinity",
    "sdk0711_mkdir_request",
    "sdk0711_open_request",
    "agentd0711_ready",
}


def frame_bytes(vector: dict[str, Any]) -> bytes:
    """The frame of a vector, without the eight bytes a relay puts in front of the first one."""
    raw = bytes.fromhex(vector["frame_hex"])
    return raw[8:] if "handshake_prefix" in vector else raw


def frame_of(raw: bytes) -> wire.Frame:
    decoder = wire.FrameDecoder()
    decoder.feed(raw)
    frame = decoder.next_frame()
    assert frame is not None
    assert decoder.pending == 0
    return frame


def payload_of(vector: dict[str, Any]) -> Any:
    """The recorded payload as plain values: bytes for the marked ones, tags taken off."""
    return _plain(vector["payload"])


def _plain(value: Any) -> Any:
    match value:
        case {"$bytes": text}:
            return bytes.fromhex(text)
        case {"$tag": _, "$value": inner}:
            return _plain(inner)
        case dict():
            return {key: _plain(item) for key, item in value.items()}
        case list():
            return [_plain(item) for item in value]
    return value

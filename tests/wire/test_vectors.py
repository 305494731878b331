"""Recorded frames, decoded and encoded, and recorded bad inputs."""

from __future__ import annotations

from typing import Any

import cbor2
import pytest

from tests.wire.wire_data import MALFORMED, NOT_OURS, VECTORS, frame_bytes, frame_of, payload_of
from trio_console import _wire as wire
from trio_console._errors import ProtocolError

CANONICAL = [v for v in VECTORS if v["canonical"]]
OURS = [v for v in CANONICAL if v["name"] not in NOT_OURS]

KIND_OF_MALFORMED = {
    "garbage_cbor_body": ("malformed_message", None),
    "empty_body": ("malformed_message", None),
    "v_256": ("malformed_message", "v"),
    "v_missing": ("malformed_message", "v"),
    "v_float": ("malformed_message", "v"),
    "t_missing": ("malformed_message", "t"),
    "t_bytes": ("malformed_message", "t"),
    "p_null": ("malformed_message", "p"),
    "duplicate_key_v": ("malformed_message", None),
    "envelope_is_array": ("malformed_message", None),
    "wrong_flags_ping_terminal": ("invalid_flags", None),
    "wrong_flags_exec_request_zero": ("invalid_flags", None),
    "wrong_flags_v4": ("invalid_flags", None),
    "bad_payload_type": ("invalid_payload", "cmd"),
    "payload_null": ("invalid_payload", None),
    "payload_array": ("invalid_payload", None),
    "payload_null_for_list": ("invalid_payload", "args"),
    "payload_u16_overflow": ("invalid_payload", "rows"),
    "payload_duplicate_key": ("invalid_payload", None),
    "payload_text_for_bytes": ("invalid_payload", "data"),
    "payload_unknown_enum_variant": ("invalid_payload", "op"),
    "payload_enum_two_keys": ("invalid_payload", "op"),
    "payload_missing_bool_in_options": ("invalid_payload", "op.OpenFile.options.write"),
    "payload_invalid_utf8": ("invalid_payload", None),
    "len_4": ("bad_frame", None),
    "len_over_4MiB": ("bad_frame", None),
}

# These are well formed: only a session can find their fault.
WELL_FORMED = {
    "bootstrap_after_ready",
    "stdin_unknown_session",
    "tcp_data_unknown_session",
    "tcp_eof_unknown_session",
}


def by_name(vectors: list[dict[str, Any]]) -> Any:
    return pytest.mark.parametrize("vector", vectors, ids=lambda v: v["name"])


@by_name(VECTORS)
def test_a_recorded_frame_has_its_recorded_id_type_and_version(vector: dict[str, Any]) -> None:
    frame = frame_of(frame_bytes(vector))
    envelope = wire.decode_envelope(frame.body)
    assert (frame.id, frame.flags) == (vector["id"], vector["flags"])
    assert (envelope.version, envelope.type) == (vector["v"], vector["message_type"])
    assert wire.peek_type(frame.body) == vector["message_type"]


@by_name(VECTORS)
def test_a_recorded_frame_decodes_to_its_class_and_values(vector: dict[str, Any]) -> None:
    message = wire.decode(frame_of(frame_bytes(vector)))
    assert wire.type_of(message).name == vector["message_type"]
    # What is sent for the message says the same as the recorded payload, apart from keys that one of
    # the two does not know or leaves to its default.
    again = cbor2.loads(wire.decode_envelope(frame_of(wire.encode(message)).body).payload)
    assert _agree(again, payload_of(vector))


def _agree(ours: Any, recorded: Any) -> bool:
    if isinstance(ours, dict) and isinstance(recorded, dict):
        return all(_agree(ours[key], recorded[key]) for key in ours.keys() & recorded.keys())
    return bool(ours == recorded)


@by_name(OURS)
def test_a_recorded_frame_encodes_to_the_very_same_bytes(vector: dict[str, Any]) -> None:
    raw = frame_bytes(vector)
    message = wire.decode(frame_of(raw))
    assert wire.encode(message, vector["id"], version=vector["v"]) == raw


@by_name(CANONICAL)
def test_a_recorded_payload_re_encodes_to_the_same_bytes_as_plain_values(vector: dict[str, Any]) -> None:
    raw = frame_bytes(vector)
    payload = cbor2.dumps(payload_of(vector))
    body = cbor2.dumps({"v": vector["v"], "t": vector["message_type"], "p": payload})
    assert wire.encode_frame(vector["id"], vector["flags"], body) == raw


def test_every_type_that_was_recorded_is_in_the_table() -> None:
    assert {v["message_type"] for v in VECTORS} <= wire.MESSAGE_TYPES.keys()


def test_every_recorded_bad_input_is_covered() -> None:
    assert {case["name"] for case in MALFORMED} == KIND_OF_MALFORMED.keys() | WELL_FORMED


@pytest.mark.parametrize("name", KIND_OF_MALFORMED)
def test_a_bad_input_ends_in_its_kind_of_protocol_error(name: str) -> None:
    [case] = [case for case in MALFORMED if case["name"] == name]
    decoder = wire.FrameDecoder()
    decoder.feed(bytes.fromhex(case["frame_hex"]))
    with pytest.raises(ProtocolError) as caught:
        wire.decode(next(iter(decoder)))
    assert (caught.value.kind, caught.value.field) == KIND_OF_MALFORMED[name]
    if caught.value.kind != "bad_frame":
        assert caught.value.frame_id == int(case["frame_hex"][8:16], 16)


@pytest.mark.parametrize("name", sorted(WELL_FORMED))
def test_an_input_that_is_only_out_of_place_decodes(name: str) -> None:
    [case] = [case for case in MALFORMED if case["name"] == name]
    wire.decode(frame_of(bytes.fromhex(case["frame_hex"])))

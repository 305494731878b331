"""Names as text, as bytes, and on the wire."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trio_console import _wire as wire


@given(st.binary())
def test_every_name_survives(raw: bytes) -> None:
    name = wire.name_text(raw)
    assert wire.name_bytes(name) == raw
    text = wire.packed(name)
    assert [ord(character) for character in text] == list(raw)
    text.encode()  # it can be sent
    assert wire.unpacked(text) == name


def test_what_is_no_octet_is_refused() -> None:
    with pytest.raises(ValueError, match="octets"):
        wire.unpacked("a\u0100")


def test_a_name_for_people_has_replacement_characters() -> None:
    assert wire.lossy(wire.name_text(b"a\xff\xc3\xa4")) == "a\N{REPLACEMENT CHARACTER}ä"
    assert wire.lossy("ä") == "ä"

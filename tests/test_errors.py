"""The errors' classes and attributes, for code that catches them."""

from __future__ import annotations

import copy
import pickle

import trio_console


def test_a_protocol_error_is_no_mistake_of_the_callers() -> None:
    assert trio_console.ProtocolError.__bases__ == (Exception,)


def test_a_protocol_error_can_be_copied_with_all_it_says() -> None:
    error = trio_console.ProtocolError("bad", kind="bad_frame", frame_id=5, message_type="core.ping", field="f")
    for twin in (copy.copy(error), pickle.loads(pickle.dumps(error))):
        assert str(twin) == "bad"
        assert vars(twin) == vars(error)

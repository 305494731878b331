"""One direction of a console with faults, without I/O: which bytes come out, and when which fault has happened."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trio_console import _wire as wire
from trio_console.testing import (
    Corrupt,
    Disconnect,
    Drop,
    Duplicate,
    Fault,
    FiredFault,
    Flood,
    Reorder,
    Signal,
    Stall,
    Truncate,
)
from trio_console.testing._faults import FaultLine

#: Five frames of two sessions, each of another size.
A1, A2, A3 = (wire.encode(wire.ExecStdout(b"a" * size), 1) for size in (1, 20, 300))
B1, B2 = (wire.encode(wire.ExecStderr(b"b" * size), 2) for size in (4, 50))
FRAMES = (A1, B1, A2, B2, A3)


def pass_through(*faults: Fault, data: bytes = b"".join(FRAMES), ends: bool = True) -> list[Any]:
    """What comes out: bytes, joined where nothing is between them, and fired faults."""
    line = FaultLine(faults)
    line.feed(data)
    if ends:
        line.end()
    out: list[Any] = []
    while (item := line.take()) is not None:
        if isinstance(item, bytes) and out and isinstance(out[-1], bytes):
            out[-1] += item
        else:
            out.append(item)
    return out


def bytes_of(out: list[Any]) -> bytes:
    return b"".join(item for item in out if isinstance(item, bytes))


@given(st.lists(st.integers(1, 60), max_size=40))
def test_without_faults_what_goes_in_comes_out_however_it_was_cut(cuts: list[int]) -> None:
    line = FaultLine()
    whole = b"".join(FRAMES)
    out = b""
    start = 0
    for cut in [*cuts, len(whole)]:
        line.feed(whole[start : start + cut])
        start += cut
        while (item := line.take()) is not None:
            assert isinstance(item, bytes)
            out += item
    assert out == whole
    now = line.statistics()
    assert (now.frames, now.bytes_in, now.bytes_out) == (5, len(whole), len(whole))


def test_half_a_frame_is_let_out_at_the_end_and_not_before() -> None:
    assert pass_through(data=A1 + A2[:9], ends=False) == [A1]
    assert pass_through(data=A1 + A2[:9]) == [A1 + A2[:9]]


@pytest.mark.parametrize("nonsense", [b"\0\0\0\1xyz", b"\xff" * 30])
def test_what_is_no_frame_passes_as_it_is(nonsense: bytes) -> None:
    assert pass_through(Fault(Drop()), data=nonsense, ends=False) == [nonsense]
    line = FaultLine()
    line.feed(nonsense)
    line.feed(b"more")
    assert [line.take(), line.take(), line.take()] == [nonsense, b"more", None]


@pytest.mark.parametrize(
    ("action", "expected"),
    [
        (Drop(), [A1, B1, B2, A3]),
        (Duplicate(), [A1, B1, A2, A2, B2, A3]),
        (Duplicate(copies=3), [A1, B1, A2, A2, A2, A2, B2, A3]),
        (Reorder(), [A1, B1, B2, A2, A3]),
        (Reorder(by=2), [A1, B1, B2, A3, A2]),
        (Reorder(by=99), [A1, B1, B2, A3, A2]),
        (Corrupt(), [A1, B1, A2[:-1] + b"\x60", B2, A3]),
        (Corrupt(0, mask=0x80), [A1, B1, b"\x80" + A2[1:], B2, A3]),
        (Corrupt(-1000), [A1, B1, b"\x01" + A2[1:], B2, A3]),
        (Corrupt(1000, mask=0xFF), [A1, B1, A2[:-1] + b"\x9e", B2, A3]),
    ],
)
def test_the_third_frame_is_changed_and_no_other(action: Any, expected: list[bytes]) -> None:
    assert bytes_of(pass_through(Fault(action, nth=3))) == b"".join(expected)


def test_sessions_may_overtake_a_frame_that_is_late_and_its_own_session_may_not() -> None:
    late = Fault(Reorder(across_sessions=True))
    assert bytes_of(pass_through(late, data=A1 + A2 + B1 + A3 + B2)) == B1 + A1 + A2 + A3 + B2


@pytest.mark.parametrize("action", [Stall(), Disconnect(), Signal(9)])
def test_an_effect_comes_before_its_frame(action: Any) -> None:
    fault = Fault(action, nth=3)
    before, fired, after = pass_through(fault)
    assert (before, after) == (A1 + B1, A2 + B2 + A3)
    assert fired == FiredFault(fault, 3, "core.exec.stdout", 1)
    assert fired.effect == action


@pytest.mark.parametrize("action", [Drop(), Duplicate(), Corrupt()])
def test_a_change_is_reported_and_has_no_effect_beside_it(action: Any) -> None:
    fault = Fault(action, nth=2)
    before, fired, after = pass_through(fault)
    assert before == A1
    assert fired == FiredFault(fault, 2, "core.exec.stderr", 2)
    assert fired.effect is None
    assert after.endswith(A2 + B2 + A3)


@pytest.mark.parametrize(("keep", "size"), [(None, len(A2) // 2), (0, 0), (7, 7), (10_000, len(A2))])
@pytest.mark.parametrize("then", [Stall(), Disconnect(5), Signal(9)])
def test_a_truncated_frame_is_followed_by_what_comes_then(keep: int | None, size: int, then: Any) -> None:
    before, fired, after = pass_through(Fault(Truncate(keep, then), nth=3))
    assert before == A1 + B1 + A2[:size]
    assert fired.effect == then
    assert after == B2 + A3


@pytest.mark.parametrize(("data", "repeated"), [(None, B1), (b"noise", b"noise")])
def test_a_flood_has_no_end_and_lets_nothing_else_pass(data: bytes | None, repeated: bytes) -> None:
    fault = Fault(Flood(data), nth=2)
    line = FaultLine([fault])
    line.feed(b"".join(FRAMES))
    assert line.take() == A1
    assert isinstance(line.take(), FiredFault)
    for _ in range(100):
        assert line.take() == repeated
    line.feed(A3)
    assert line.take() == repeated


def test_frames_are_counted_by_their_type() -> None:
    assert bytes_of(pass_through(Fault(Drop(), "core.exec.stderr", nth=2))) == A1 + B1 + A2 + A3
    assert bytes_of(pass_through(Fault(Drop(), "core.exec.exited"))) == b"".join(FRAMES)


def test_one_fault_acts_on_a_frame_and_another_that_is_due_waits() -> None:
    assert bytes_of(pass_through(Fault(Drop(), nth=2), Fault(Drop(), nth=2))) == A1 + B2 + A3


def test_a_fault_that_is_added_counts_from_then_on() -> None:
    line = FaultLine()
    line.feed(A1 + B1)
    line.add(Fault(Drop(), nth=2))
    line.feed(A2 + B2 + A3)
    out = b""
    while (item := line.take()) is not None:
        out += item if isinstance(item, bytes) else b""
    assert out == A1 + B1 + A2 + A3


def test_a_body_that_is_no_message_is_counted_as_a_frame() -> None:
    odd = wire.encode_frame(3, 0, b"\xff\xff")
    assert bytes_of(pass_through(Fault(Drop(), nth=2), data=A1 + odd + A2)) == A1 + A2


@pytest.mark.parametrize(
    ("message", "given", "direction"),
    [
        (None, None, "tx"),
        (None, "rx", "rx"),
        ("core.exec.stdout", None, "tx"),
        ("core.exec.stdin", None, "rx"),
        ("core.tcp.data", None, "tx"),
        ("core.tcp.data", "rx", "rx"),
    ],
)
def test_the_direction_follows_from_the_message_where_it_can(message: Any, given: Any, direction: str) -> None:
    assert Fault(Drop(), message, direction=given).direction == direction


@pytest.mark.parametrize(
    "make",
    [
        lambda: Fault(Drop(), "core.exec.stdoot"),
        lambda: Fault(Drop(), "core.exec.stdout", direction="rx"),
        lambda: Fault(Drop(), direction="up"),  # type: ignore[arg-type]
        lambda: Fault(Drop(), nth=0),
        lambda: Corrupt(mask=0),
        lambda: Corrupt(mask=256),
        lambda: Reorder(by=0),
        lambda: Truncate(keep=-1),
        lambda: Flood(b""),
    ],
)
def test_a_fault_that_makes_no_sense_is_refused(make: Any) -> None:
    with pytest.raises(ValueError):
        make()


def test_an_action_that_is_none_is_refused() -> None:
    with pytest.raises(TypeError, match="action must be one of"):
        Fault("drop")  # type: ignore[arg-type]

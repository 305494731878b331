"""To which client each id belongs, and in which order ids are used."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trio_console._wire.ids import MAX_CLIENTS, STEP, IdSequence, slot_ids, slot_of, slots_in

EDGES = [edge + offset for edge in (0, STEP, 2 * STEP, 127 * STEP, 128 * STEP) for offset in range(-2, 3)]
IDS = st.one_of(st.sampled_from([id_ for id_ in EDGES if id_ >= 0]), st.integers(0, 2**32 - 1))


def test_ranges_are_those_of_the_protocol() -> None:
    assert (slot_ids(0).start, slot_ids(0).stop) == (1, 33554431)
    assert (slot_ids(1).start, slot_ids(1).stop) == (33554432, 67108862)
    assert (slot_ids(127).start, slot_ids(127).stop) == (4261412738, 4294967168)


@pytest.mark.parametrize("slot", [0, 1, 63, 127])
def test_an_id_belongs_to_the_slot_of_its_range(slot: int) -> None:
    ids = slot_ids(slot)
    assert slot_of(ids[0]) == slot_of(ids[-1]) == slot


@pytest.mark.parametrize("slot", [0, 1, 63, 127])
def test_the_gaps_between_ranges_belong_to_nobody(slot: int) -> None:
    assert slot_of(slot * STEP) is None


@pytest.mark.parametrize("id_", [0, MAX_CLIENTS * STEP, MAX_CLIENTS * STEP + 1, 0xFFFFFFFF])
def test_ids_outside_all_ranges_belong_to_nobody(id_: int) -> None:
    assert slot_of(id_) is None


@given(IDS, IDS)
def test_the_slots_of_some_ids_are_those_that_have_one_of_them(start: int, end: int) -> None:
    expected = [slot for slot in range(MAX_CLIENTS) if start < slot_ids(slot).stop and end > slot_ids(slot).start]
    assert list(slots_in(start, end)) == (expected if start < end else [])


def test_the_gap_before_a_range_is_not_the_client_before() -> None:
    assert list(slots_in(5 * STEP, 6 * STEP)) == [5]


def test_ids_are_used_in_turn_and_then_from_the_first_again() -> None:
    sequence = IdSequence(range(5, 8))
    assert [sequence.take([]) for _ in range(5)] == [5, 6, 7, 5, 6]


def test_an_id_in_use_is_passed_over() -> None:
    sequence = IdSequence(range(5, 8))
    assert [sequence.take({5, 7}) for _ in range(2)] == [6, 6]


def test_without_an_id_that_is_free_the_caller_is_told() -> None:
    sequence = IdSequence(range(5, 7))
    assert sequence.take({5}) == 6
    with pytest.raises(RuntimeError, match="every correlation id"):
        sequence.take({5, 6})

"""Which CBOR is accepted, item by item, and that both readers accept the same."""

from __future__ import annotations

import math
import tracemalloc
from typing import Any

import cbor2
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from trio_console._wire import cbor as _cbor
from trio_console._wire.cbor import MAX_DEPTH, MAX_ITEMS, CBORError, IndefiniteMap, load


def exact(data: bytes) -> Any:
    return _cbor._Reader(data).item(MAX_DEPTH)


ACCEPTED = {
    "00": 0,
    "17": 23,
    "1818": 24,
    "1800": 0,
    "190000": 0,
    "1bffffffffffffffff": 2**64 - 1,
    "20": -1,
    "3bffffffffffffffff": -(2**64),
    "40": b"",
    "5803010203": b"\1\2\3",
    "5f41014102ff": b"\1\2",
    "5fff": b"",
    "6161": "a",
    "780161": "a",
    "7f61616162ff": "ab",
    "80": [],
    "820102": [1, 2],
    "9f0102ff": [1, 2],
    "9b000000000000000101": [1],
    "a0": {},
    "a1616101": {"a": 1},
    "b90001616101": {"a": 1},
    "bf616101ff": {"a": 1},
    "a1416101": {"a": 1},
    "a25f4161ff01616202": {"a": 1, "b": 2},
    "a1c0616101": {"a": 1},
    "f4": False,
    "f5": True,
    "f6": None,
    "f97e00": math.nan,
    "f93c00": 1.0,
    "fa3f800000": 1.0,
    "fb3ff0000000000000": 1.0,
    "0000": 0,
    "a0ff": {},
}
REFUSED = {
    "nothing": "",
    "reserved_length": "1c",
    "reserved_simple": "fc",
    "short_argument": "19ff",
    "short_string": "4201",
    "huge_string": "5b7fffffffffffffff00",
    "short_array": "8201",
    "huge_array": "9bffffffffffffffff00",
    "short_map": "a16161",
    "huge_map": "bbffffffffffffffff616101",
    "endless_array": "9f01",
    "endless_map": "bf6161",
    "endless_string": "5f4101",
    "break": "ff",
    "break_in_array": "8201ff",
    "break_as_key": "a1ff",
    "break_as_value": "a16161ff",
    "break_as_value_of_indefinite": "bf6161ff",
    "tagged_break": "9fc0ff",
    "tag_without_value": "d840",
    "tag_without_number": "df01",
    "integer_without_value": "1f",
    "negative_without_value": "3f",
    "bytes_in_text": "7f4161ff",
    "text_in_bytes": "5f6161ff",
    "nested_indefinite_string": "5f5f4161ffff",
    "invalid_utf8": "62fffe",
    "surrogate": "63eda080",
    "overlong_utf8": "62c080",
    "utf8_split_between_pieces": "7f61c361a9ff",
    "duplicate_key": "a2616101616102",
    "duplicate_key_as_bytes": "a2616101416102",
    "duplicate_key_both_bytes": "a2416101416102",
    "duplicate_key_deep": "a16178a2616101616102",
    "simple_value_in_two_bytes": "f814",
}
TAGS = (
    0,
    1,
    2,
    3,
    4,
    5,
    24,
    25,
    28,
    29,
    30,
    35,
    36,
    37,
    52,
    54,
    64,
    100,
    256,
    258,
    260,
    261,
    1004,
    43000,
    55799,
)
VALUES = ("a", b"abc", 7, -7, [1], {"k": 1}, None, True, 1.5, "2013-03-21T20:04:00Z", [0, 1])


@pytest.mark.parametrize("text", ACCEPTED)
def test_an_item_is_accepted(text: str) -> None:
    expected = ACCEPTED[text]
    for reader in (load, exact):
        value = reader(bytes.fromhex(text))
        assert value == expected or math.isnan(expected)
        assert type(value) in (type(expected), IndefiniteMap)


@pytest.mark.parametrize("name", REFUSED)
def test_bytes_are_refused(name: str) -> None:
    for reader in (load, exact):
        with pytest.raises(CBORError):
            reader(bytes.fromhex(REFUSED[name]))


@pytest.mark.parametrize("value", VALUES, ids=repr)
@pytest.mark.parametrize("tag", [*TAGS, 2**32, 2**64 - 1])
def test_a_tag_in_front_of_anything_is_skipped(tag: int, value: Any) -> None:
    assert load(_cbor.head(0xC0, tag) + cbor2.dumps(value)) == value
    assert load(b"\xa1\x61k" + _cbor.head(0xC0, tag) + cbor2.dumps(value)) == {"k": value}
    assert load(b"\x81" + _cbor.head(0xC0, tag) * 3 + cbor2.dumps(value)) == [value]


def test_any_number_of_tags_is_skipped() -> None:
    assert load(b"\xd8\x40" * (MAX_ITEMS - 1) + b"\x41x") == b"x"


def test_nothing_is_shared_between_values() -> None:
    # [28([1]), 29(0)]: if these tags had their meaning, the second item would be the first one again.
    assert load(bytes.fromhex("82d81c8101d81d00")) == [[1], 0]


def test_a_map_without_a_length_is_marked() -> None:
    assert type(load(bytes.fromhex("bf616101ff"))) is IndefiniteMap
    assert type(load(bytes.fromhex("a1616101"))) is dict


@pytest.mark.parametrize("key", ["01", "20", "f6", "f5", "f93c00", "8101", "a0", "80", "f7"])
def test_a_key_that_is_no_text_can_be_noticed_but_not_used(key: str) -> None:
    value = load(b"\xa2" + bytes.fromhex(key) + b"\x01\x61a\x02")
    assert value.pop("a") == 2
    assert len(value) == 1
    assert not any(isinstance(rest, str) for rest in value)


def test_keys_that_are_bytes_but_no_text_are_only_strange_names() -> None:
    assert list(load(b"\xa2\x41\xff\x01\x61a\x02").values()) == [1, 2]


@pytest.mark.parametrize("unit", [b"\x81", b"\x9f", b"\xa1\x61k", b"\xbf\x61k", b"\xa1\x81", b"\x81\xc0"])
def test_depth_is_bounded(unit: bytes) -> None:
    for depth in (MAX_DEPTH, MAX_DEPTH + 1, 1_000_000):
        with pytest.raises(CBORError, match="deep"):
            load(unit * depth + b"\x00")


@pytest.mark.parametrize(("unit", "end"), [(b"\x81", b""), (b"\x9f", b"\xff"), (b"\x81\xc0", b"")])
def test_values_may_nest_up_to_the_bound(unit: bytes, end: bytes) -> None:
    value = load(unit * (MAX_DEPTH - 1) + b"\x00" + end * (MAX_DEPTH - 1))
    for _ in range(MAX_DEPTH - 1):
        [value] = value
    assert value == 0


def test_a_claimed_length_reserves_no_memory() -> None:
    tracemalloc.start()
    try:
        for lead in ("5b", "7b", "9b", "bb"):
            with pytest.raises(CBORError):
                load(bytes.fromhex(lead + "00000000ffffffff") + b"\x61k")
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 2_000_000


@pytest.mark.parametrize("size", [0, 23, 24, 255, 256, 65535, 65536, 2**32 - 1, 2**32, 2**64 - 1])
def test_heads_are_the_shortest(size: int) -> None:
    assert _cbor.head(0, size) == cbor2.dumps(size)


def test_what_cbor_cannot_carry_is_a_value_error() -> None:
    for value in ("\udc80", object()):
        with pytest.raises(ValueError):
            _cbor.dump(value)


plain = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**64), 2**64 - 1) | st.text() | st.binary() | st.floats(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=20,
)


@given(plain, st.binary(max_size=3))
@settings(deadline=None, database=None)
def test_both_readers_read_what_was_written(value: Any, rest: bytes) -> None:
    data = cbor2.dumps(value) + rest
    assert repr(load(data)) == repr(exact(data)) == repr(value)


@given(st.binary(max_size=40))
@settings(deadline=None, database=None)
def test_both_readers_agree_on_any_bytes(data: bytes) -> None:
    results = []
    for reader in (load, exact):
        try:
            results.append(repr(reader(data)))
        except CBORError:
            results.append("refused")
    assert results[0] == results[1]


def test_a_value_in_another_form_has_a_bounded_number_of_items() -> None:
    most = (MAX_ITEMS - 2) * b"\x00"  # the array and its break are items too
    assert load(b"\x9f" + most + b"\xff") == [0] * (MAX_ITEMS - 2)
    with pytest.raises(CBORError, match="items"):
        load(b"\x9f" + most + b"\x00\xff")


def test_a_value_in_the_plain_form_may_have_more() -> None:
    count = MAX_ITEMS + 1
    assert load(b"\x9a" + count.to_bytes(4, "big") + count * b"\x00") == [0] * count

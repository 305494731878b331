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
from trio_console._wire.cbor import (
    MAX_COSTLY_ITEMS,
    MAX_DEPTH,
    MAX_ITEMS,
    MAX_SLOW_ITEMS,
    CBORError,
    IndefiniteMap,
    TooManyItemsError,
    UnportableError,
    load,
)


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
    assert load(b"\xd8\x40" * MAX_COSTLY_ITEMS + b"\x41x") == b"x"


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
    most = (MAX_SLOW_ITEMS - 2) * b"\x00"  # the array and its break are items too
    assert load(b"\x9f" + most[:-1] + b"\xff") == [0] * (MAX_SLOW_ITEMS - 3)
    assert load(b"\x9f" + most + b"\xff") == [0] * (MAX_SLOW_ITEMS - 2)
    with pytest.raises(TooManyItemsError, match=f"more than {MAX_SLOW_ITEMS} items"):
        load(b"\x9f" + most + b"\x00\xff")


def array(items: int, item: bytes) -> bytes:
    """An array that is so many items with itself, each of them one."""
    return b"\x9a" + (items - 1).to_bytes(4, "big") + (items - 1) * item


@pytest.mark.parametrize("item", [b"\x00", b"\x61a", b"\x78\x00", b"\xf6", b"\x19\x01\x00"], ids=bytes.hex)
def test_a_value_in_the_plain_form_has_a_bounded_number_of_items(item: bytes) -> None:
    assert len(load(array(MAX_ITEMS - 1, item))) == MAX_ITEMS - 2
    assert len(load(array(MAX_ITEMS, item))) == MAX_ITEMS - 1
    with pytest.raises(TooManyItemsError, match=f"more than {MAX_ITEMS} items"):
        load(array(MAX_ITEMS + 1, item))


LONG = b"\x79\x01\x00" + bytes(256)


@pytest.mark.parametrize(
    "item",
    [b"\x80", b"\xa0", b"\xf9\x00\x00", b"\xf7", b"\x79\x00\x00", b"\x5a\x00\x00\x00\x00", LONG],
    ids=lambda item: item[:5].hex(),
)
def test_a_value_has_a_bounded_number_of_costly_items(item: bytes) -> None:
    for count in (MAX_COSTLY_ITEMS - 1, MAX_COSTLY_ITEMS):
        assert len(load(array(count, item))) == count - 1
    with pytest.raises(TooManyItemsError, match="arrays"):
        load(array(MAX_COSTLY_ITEMS + 1, item))


def test_the_bounds_hold_for_a_mixed_population() -> None:
    # Maps of one entry: a costly item, a key and a number.
    assert len(load(array(MAX_COSTLY_ITEMS, b"\xa1\x61k\x05"))) == MAX_COSTLY_ITEMS - 1
    with pytest.raises(TooManyItemsError):
        load(array(MAX_COSTLY_ITEMS + 1, b"\xa1\x61k\x05"))
    # Numbers in two arrays, and a text that is longer than all of them.
    for extra in (-1, 0, 1):
        inner = array(MAX_ITEMS // 2, b"\x00")
        rest = array(MAX_ITEMS // 2 - 2 + extra, b"\x18\x20")
        data = b"\x83" + inner + rest + b"\x7a" + (2**20).to_bytes(4, "big") + b"x" * 2**20
        if extra < 1:
            assert len(load(data)) == 3
        else:
            with pytest.raises(TooManyItemsError):
                load(data)


@pytest.mark.parametrize("claim", [b"\x9a\x00\x04\x00\x01", b"\xba\x00\x02\x00\x01"], ids=["array", "map"])
def test_a_claim_of_too_many_items_is_refused_before_they_are_looked_for(claim: bytes) -> None:
    with pytest.raises(TooManyItemsError, match=f"more than {MAX_ITEMS} items"):
        load(claim + bytes(MAX_COSTLY_ITEMS))  # far fewer items than claimed


def peak_of_a_refusal(data: bytes | memoryview) -> int:
    """The most bytes that are allocated while a value is refused."""
    tracemalloc.start()
    try:
        with pytest.raises(CBORError):
            load(data)
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


def test_a_view_of_a_large_value_with_too_many_items_is_refused_without_a_copy() -> None:
    data = b"\xa1\x61k\x9a\x00\x3f\xff\x00" + bytes(2**22)
    assert peak_of_a_refusal(memoryview(data)) < 100_000


def test_a_view_is_read_as_bytes_are() -> None:
    data = array(3, b"\x5a" + (2**20).to_bytes(4, "big") + bytes(2**20))
    assert load(memoryview(data)) == load(data) == [bytes(2**20)] * 2


@pytest.mark.parametrize("item", [b"\x00", b"\x80", b"\x9f", b"\xc1", b"\x61a", b"\xa0"], ids=bytes.hex)
def test_the_largest_frame_of_tiny_items_is_refused_before_they_are_built(item: bytes) -> None:
    data = array(2**22 // len(item) - 4, item)
    assert peak_of_a_refusal(data) < 100_000


def test_bytes_behind_an_item_are_not_counted() -> None:
    assert load(array(3, b"\x00") + 2 * MAX_ITEMS * b"\x80") == [0, 0]


def test_our_own_answers_are_not_counted() -> None:
    assert len(load(array(MAX_COSTLY_ITEMS + 1, b"\x80"), counted=False)) == MAX_COSTLY_ITEMS


PORTABLE = {
    "integers": "84001bffffffffffffffff203bffffffffffffffff",
    "strings": "8240" + "6161",
    "bytes_in_pieces": "5f41014102ff",
    "array_without_length": "9f0102ff",
    "map_without_length": "bf616101ff",
    "constants": "83f4f5f6",
    "long_heads": "b90001780161" + "5800",
    "key_of_bytes": "a1416101",
    "tag": "d84041" + "78",
    "two_tags": "d9d9f7d84041" + "78",
    "tag_before_a_key": "a1c0616101",
    "key_of_4096_bytes": "a1791000" + 4096 * "61" + "00",
    "integer_of_128_bits": "c250" + 16 * "ff",
    "integer_of_127_bits": "c3507f" + 15 * "ff",
    "integer_with_zeros": "c25819" + 9 * "00" + 16 * "ff",
    "text_with_high_bytes": "6ae282ac" + "f09f9880" + "c3a9" + "61",
    "behind_the_item": "80" + "f8ff",
}
UNPORTABLE = {
    "simple_value": "f8ff",
    "simple_value_in_one_byte": "e0",
    "undefined": "f7",
    "half_float": "f93c00",
    "float": "fa3f800000",
    "double": "fb3ff0000000000000",
    "deep": "a16178" + "8181" + "a16179" + "f8ff",
    "in_a_key": "a1f8ff00",
    "text_in_pieces": "7f61616162ff",
    "key_in_pieces": "a15f4161ff01",
    "key_of_4097_bytes": "a1791001" + 4097 * "61" + "00",
    "key_of_4097_bytes_behind_a_tag": "a1c0591001" + 4097 * "61" + "00",
    "three_tags": "d840d840d84041" + "78",
    "integer_of_129_bits": "c25101" + 16 * "ff",
    "integer_of_129_bits_with_a_long_tag": "d9000258" + "1101" + 16 * "ff",
    "negative_integer_of_128_bits": "c35080" + 15 * "ff",
    "integer_that_is_a_text": "c26178",
    "integer_in_pieces": "c25f4101ff",
    "integer_behind_two_tags": "c2d8404101",
    "behind_a_long_string": "82591000" + 4096 * "00" + "f7",
    "in_an_array_without_length": "9ff7ff",
    "behind_a_nested_map": "82bf616180ff" + "f7",
}


@pytest.mark.parametrize("name", PORTABLE)
def test_an_item_that_every_agent_can_decode_is_passed_on(name: str) -> None:
    data = bytes.fromhex(PORTABLE[name])
    assert load(data, portable=True) == load(data)


@pytest.mark.parametrize("name", UNPORTABLE)
def test_an_item_that_not_every_agent_can_decode_is_not_passed_on(name: str) -> None:
    data = bytes.fromhex(UNPORTABLE[name])
    load(data)
    with pytest.raises(UnportableError, match="not every agent can decode"):
        load(data, portable=True)


def test_a_fault_is_no_matter_of_other_agents() -> None:
    for name in REFUSED:
        with pytest.raises(CBORError) as caught:
            load(bytes.fromhex(REFUSED[name]), portable=True)
        assert not isinstance(caught.value, UnportableError)

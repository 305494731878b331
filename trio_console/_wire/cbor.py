"""CBOR bytes to plain values, by the rules of this protocol, which no general decoder has.

Accepted beyond plain CBOR: tags in front of any value, which are skipped; byte strings as map keys, which equal
the same text; any bytes after the item. Refused: a key twice in one map, also once as text and once as bytes. A
map without a definite length is returned as `IndefiniteMap`, because some places accept only a map with a definite
length.

There are two readers. cbor2 reads the common form: definite lengths, text keys, no tags. Input that it refuses is
read again by `_Reader`, which is slow and exact and decides. So the result does not depend on how cbor2 handles
tags or unusual keys.

Before either of them builds an object, `_Survey` walks over the heads of a large input and counts them, so that
the time and the memory that a stranger's bytes cost are bounded. It also finds the forms that are accepted here,
and that agents of another make cannot decode. This module must not know envelopes and messages.
"""

from __future__ import annotations

import re
import struct
from contextlib import suppress
from typing import TYPE_CHECKING, Any, Final, NoReturn, final

import cbor2

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = ["CBORError", "IndefiniteMap", "TooManyItemsError", "UnportableError", "dump", "head", "load"]

BYTES: Final = 0x40
TEXT: Final = 0x60

MAX_DEPTH: Final = 64
"""How deep values may nest. The protocol itself needs six; the rest is for fields yet unknown, and well
below what the interpreter's own stack allows."""

MAX_ITEMS: Final = 2**18
"""How many items a value may have. A frame could hold sixteen times as many. Linux starts no command with more
arguments and variables: with the usual limit of 2 MiB for them and their pointers, it is 233 000 empty ones."""

MAX_COSTLY_ITEMS: Final = 2**14
"""How many of these may cost some ten times as much as a number: arrays, maps, tags, floats, strings in pieces and
strings of 256 bytes and more, of which a frame holds no more. It is enough for a listing of 13 000 files in one
message, or for as many variables in a bootstrap."""

MAX_SLOW_ITEMS: Final = 2**15
"""How many items a value may have that is not in the plain form, which is read natively: here each costs half a
microsecond."""

_FRONT: Final = 256
"""Bytes of a large value that are looked at before it is copied."""

_LONGEST_KEY: Final = 4096
_MOST_TAGS: Final = 2
"""What upstream's decoder takes: keys of so many bytes; and 256 levels, of which a tag is one as well, so that
values of `MAX_DEPTH` levels may have so many tags in a row."""


@final
class _OtherKey:
    """Takes the place of all keys that are not text. Errors quote its repr, so that has no address in it."""

    def __repr__(self) -> str:
        return "a key that is no text"


_BREAK: Final = object()
_OTHER_KEY: Final = _OtherKey()


class CBORError(ValueError):
    """The bytes are not an item that this protocol accepts."""


@final
class TooManyItemsError(CBORError):
    """There are more items than a value may have."""


@final
class UnportableError(CBORError):
    """The item is accepted, and agents of another make cannot decode it."""


@final
class IndefiniteMap(dict[Any, Any]):
    """A map that was written without its length."""


def head(major: int, argument: int) -> bytes:
    """Return the shortest head of an item; ``major`` is the initial byte without its low five bits."""
    if argument < 24:
        return bytes((major | argument,))
    if argument < 0x100:
        return bytes((major | 24, argument))
    if argument < 0x10000:
        return struct.pack(">BH", major | 25, argument)
    if argument < 0x100000000:
        return struct.pack(">BI", major | 26, argument)
    return struct.pack(">BQ", major | 27, argument)


def dump(value: object) -> bytes:
    """Encode a plain value in canonical form, maps in the order of the ``dict``.

    Raises:
        ValueError: the value has a part that CBOR cannot carry, such as text with lone surrogates.
    """
    try:
        return cbor2.dumps(value)
    except (cbor2.CBOREncodeError, TypeError) as exc:
        raise ValueError(str(exc)) from exc


def load(data: bytes | memoryview, *, portable: bool = False, counted: bool = True) -> Any:
    """Decode the first item of ``data``, which is untrusted.

    Args:
        data: the bytes.
        portable: refuse an item in which there is, at any depth, more than integers, strings, arrays, maps, false,
            true, null, and tags in front of these: agents of another make stop when they cannot decode something.
        counted: bound the number of items. Without it the time that this takes is not bounded.

    Raises:
        CBORError: the only error, whatever ``data`` is. It is a `TooManyItemsError` or an `UnportableError` for
            these reasons.
    """
    survey = None
    if counted and len(data) > MAX_COSTLY_ITEMS:  # a shorter one cannot have too many of anything
        if isinstance(data, memoryview):
            _Survey(bytes(data[:_FRONT]))  # an array may say that it is too long: then nothing is copied
        data = bytes(data)
        survey = _Survey(data)
    data = bytes(data)
    try:
        value = cbor2.loads(
            data,
            semantic_decoders=_REFUSE_TAGS,
            max_depth=MAX_DEPTH - 1,  # it counts arrays and maps, and not the item in the innermost
            allow_indefinite=False,
            allow_duplicate_keys=False,
            strict_hashable_types=True,
            object_hook=_refuse_byte_keys,
        )
        is_plain = True
    except cbor2.CBORError:
        value = _Reader(data).item(MAX_DEPTH)
        is_plain = False
    # (The plain form has no tags, so it is portable unless there is a long key, or one of these bytes.)
    if portable and (not is_plain or len(data) > _LONGEST_KEY or _SUSPICIOUS.search(data)):
        survey = survey or _Survey(data)
        if survey.unportable:
            raise UnportableError(f"has {survey.unportable}: not every agent can decode that")
    return value


def _refuse_byte_keys(value: Mapping[Any, Any], immutable: bool) -> Mapping[Any, Any]:
    "".join(value)  # the cheapest way to raise TypeError unless each key is text
    return value


def _refuse_tag(value: object, immutable: bool) -> NoReturn:
    raise ValueError("tag")


@final
class _RefuseTags(dict[int, Any]):
    """Has a decoder for every tag, so that none of cbor2's own decoders is ever used."""

    def __getitem__(self, tag: int) -> Any:
        return _refuse_tag


_REFUSE_TAGS: Final = _RefuseTags()

#: The first bytes of floats and of simple values other than false, true and null. They are rare in text.
_SUSPICIOUS: Final = re.compile(rb"[\xe0-\xf3\xf7-\xff]")

_ENDLESS: Final = 1 << 62  # even, because the number of items in a map is


def _steps() -> bytes:
    """For each first byte of an item without items in it, its size, if this byte tells it; otherwise 0."""
    steps = bytearray(256)
    for major in (0, 0x20):
        steps[major : major + 28] = bytes([1] * 24 + [2, 3, 5, 9])
    for major in (BYTES, TEXT):
        steps[major : major + 24] = range(1, 25)
    steps[0xF4:0xF7] = bytes([1] * 3)  # false, true, null
    return bytes(steps)


_STEPS: Final = _steps()

#: The first bytes of strings whose length is the next byte.
_SHORT_STRINGS: Final = bytes([BYTES | 24, TEXT | 24])


@final
class _Stop(Exception):
    """The bytes have a fault, which the readers find as well."""


@final
class _Survey:
    """Walks over the heads of the first item in a byte string, and builds nothing.

    A fault in the bytes ends the walk without an error.

    Attributes:
        unportable: a form that agents of another make cannot decode, if there is one; see `load`.

    Raises:
        TooManyItemsError: there are too many items, or too many that are costly.
    """

    __slots__ = ("_costly", "_data", "_in_map", "_outer", "_tags", "_tags_end", "unportable")

    def __init__(self, data: bytes) -> None:
        self._data = data
        self._costly = 0
        self._in_map = False
        self._outer: list[tuple[int, bool]] = []  # of each array and map around: the items left, and whether a map
        self._tags = 0  # in a row, the last of which ends at this position
        self._tags_end = 0
        self.unportable = ""
        with suppress(_Stop, IndexError):
            self._walk()

    def _walk(self) -> None:
        data, outer, position, left = self._data, self._outer, 0, 1
        for _ in range(MAX_ITEMS + 1):
            while not left:
                if not outer:
                    return
                left, self._in_map = outer.pop()
            left -= 1
            head = data[position]
            step = _STEPS[head]
            if step:
                position += step
            elif head in _SHORT_STRINGS:
                position += 2 + data[position + 1]
            else:
                position, left = self._look(position, left)
        raise TooManyItemsError(f"more than {MAX_ITEMS} items")

    def _look(self, position: int, left: int) -> tuple[int, int]:
        """Look at a costly item; returns the next position, and how many items are left."""
        self._costly += 1
        if self._costly > MAX_COSTLY_ITEMS:
            raise TooManyItemsError(f"more than {MAX_COSTLY_ITEMS} arrays, maps, tags and long strings")
        head = self._data[position]
        major, info = head & 0xE0, head & 31
        if head == 0xFF:
            return position + 1, 0
        end = position + 1
        argument: int | None = info
        if info == 31:
            argument = None
        elif info >= 24:
            end += 1 << info - 24
            argument = int.from_bytes(self._data[position + 1 : end], "big")
        if info in (28, 29, 30):
            raise _Stop
        match major:
            case 0x40 | 0x60:
                return self._string(major, end, argument, left)
            case 0x80 | 0xA0:
                is_map = major == 0xA0
                count = _ENDLESS if argument is None else 2 * argument if is_map else argument
                if argument is not None and count > MAX_ITEMS:  # known without a walk of milliseconds
                    raise TooManyItemsError(f"more than {MAX_ITEMS} items")
                return end, self._enter(count, left, is_map=is_map)
            case 0xC0:
                self._tag(position, end, argument)
                return end, left + 1  # the value is still to come
        self._note("a float" if info in (25, 26, 27) else "a simple value other than false, true and null")
        return end, left

    def _string(self, major: int, end: int, size: int | None, left: int) -> tuple[int, int]:
        is_key = self._in_map and left % 2 == 1
        if is_key and (size is None or size > _LONGEST_KEY):
            self._note(f"a key in pieces, or of more than {_LONGEST_KEY} bytes")
        if size is not None:
            return end + size, left
        if major == TEXT:
            self._note("a text in pieces")
        return end, self._enter(_ENDLESS, left, is_map=False)

    def _enter(self, count: int, left: int, *, is_map: bool) -> int:
        if len(self._outer) > MAX_DEPTH:
            raise _Stop
        self._outer.append((left, self._in_map))
        self._in_map = is_map
        return count

    def _tag(self, position: int, end: int, number: int | None) -> None:
        self._tags = self._tags + 1 if position == self._tags_end else 1
        self._tags_end = end
        if self._tags > _MOST_TAGS:
            self._note(f"more than {_MOST_TAGS} tags in a row")
        if number in (2, 3) and not self._fits(end, 128 if number == 2 else 127):
            self._note("an integer of more than 128 bits, or one that is no byte string of known length")

    def _fits(self, position: int, bits: int) -> bool:
        """Whether there is a byte string of known length, whose value as an integer has at most so many bits."""
        head = self._data[position]
        size, start = head & 31, position + 1
        if head & 0xE0 != BYTES or size > 27:
            return False
        if size >= 24:
            start += 1 << size - 24
            size = int.from_bytes(self._data[position + 1 : start], "big")
        digits = self._data[start : start + size].lstrip(b"\0")
        return len(digits) <= 16 and int.from_bytes(digits, "big").bit_length() <= bits

    def _note(self, form: str) -> None:
        self.unportable = self.unportable or form


_FLOATS: Final = {25: struct.Struct(">e"), 26: struct.Struct(">f"), 27: struct.Struct(">d")}
_CONSTANTS: Final = {20: False, 21: True, 22: None, 23: cbor2.undefined}


@final
class _Reader:
    """Reads items of one byte string; exact, and bounded in depth and number. Raises only `CBORError`."""

    __slots__ = ("_data", "_left", "_position")

    def __init__(self, data: bytes) -> None:
        self._data = data
        self._position = 0
        self._left = MAX_SLOW_ITEMS

    def item(self, depth: int) -> Any:
        value = self._item_or_break(depth)
        if value is _BREAK:
            raise CBORError(f"misplaced break before byte {self._position}")
        return value

    def _item_or_break(self, depth: int) -> Any:
        if depth == 0:
            raise CBORError(f"nested more than {MAX_DEPTH} deep")
        major, info, argument = self._untagged_head()
        match major:
            case 2:
                return self._string(major, argument)
            case 3:
                return _text(self._string(major, argument))
            case 4:
                return self._array(argument, depth)
            case 5:
                return self._map(argument, depth)
            case 7:
                return self._simple(info, argument)
        if argument is None:
            raise CBORError("integer without a value")
        return argument if major == 0 else -1 - argument

    def _untagged_head(self) -> tuple[int, int, int | None]:
        major, info, argument = self._head()
        tagged = major == 6
        while major == 6:  # a loop, so that tags in front of tags cost no depth
            if argument is None:
                raise CBORError("tag without a number")
            major, info, argument = self._head()
        if tagged and (major, info) == (7, 31):
            raise CBORError("tag without a value")
        return major, info, argument

    def _head(self) -> tuple[int, int, int | None]:
        """Return the major type, the low five bits, and the argument (``None`` if indefinite)."""
        self._left -= 1
        if self._left < 0:
            raise TooManyItemsError(f"more than {MAX_SLOW_ITEMS} items, in a form that is read one by one")
        initial = self._take(1)[0]
        major, info = initial >> 5, initial & 31
        if info < 24:
            return major, info, info
        if info < 28:
            return major, info, int.from_bytes(self._take(1 << info - 24), "big")
        if info == 31:
            return major, info, None
        raise CBORError(f"reserved initial byte 0x{initial:02x}")

    def _take(self, size: int) -> bytes:
        end = self._position + size
        if end > len(self._data):
            raise CBORError(f"ends inside an item, at byte {len(self._data)}")
        piece = self._data[self._position : end]
        self._position = end
        return piece

    def _simple(self, info: int, argument: int | None) -> Any:
        if argument is None:
            return _BREAK
        if info in _FLOATS:
            return _FLOATS[info].unpack(argument.to_bytes(1 << info - 24, "big"))[0]
        if info in _CONSTANTS:
            return _CONSTANTS[info]
        if info == 24 and argument < 32:
            raise CBORError(f"simple value {argument} in two bytes")
        return cbor2.CBORSimpleValue(argument)

    def _string(self, major: int, size: int | None) -> bytes:
        if size is not None:
            return self._take(size)
        pieces: list[bytes] = []
        while True:
            piece_major, info, size = self._head()
            if (piece_major, info) == (7, 31):
                return b"".join(pieces)
            if piece_major != major or size is None:
                raise CBORError("string made of something else than strings")
            pieces.append(self._take(size))
            if major == 3:
                _text(pieces[-1])  # each piece must be text by itself

    def _array(self, size: int | None, depth: int) -> list[Any]:
        values: list[Any] = []
        # Not preallocated: a size is only a claim until the items are there.
        while size is None or len(values) < size:
            value = self._item_or_break(depth - 1)
            if value is _BREAK:
                if size is None:
                    break
                raise CBORError("break inside an array of known length")
            values.append(value)
        return values

    def _map(self, size: int | None, depth: int) -> dict[Any, Any]:
        values: dict[Any, Any] = {} if size is not None else IndefiniteMap()
        count = 0
        while size is None or count < size:
            key = self._item_or_break(depth - 1)
            if key is _BREAK:
                if size is None:
                    break
                raise CBORError("break inside a map of known length")
            count += 1
            if isinstance(key, bytes):
                # Bytes that are no text can still be a key, just none that anybody knows: no name
                # that is known has a backslash in it.
                key = key.decode("utf-8", "backslashreplace")
            value = self.item(depth - 1)
            if not isinstance(key, str):
                # All other keys share one entry: no message has such keys, so it is enough to know
                # that there were some, and hashing a stranger's objects can be made slow at will.
                values[_OTHER_KEY] = None
            elif key in values:
                raise CBORError(f"duplicate key {key!r}")
            else:
                values[key] = value
        return values


def _text(data: bytes) -> str:
    try:
        return data.decode()
    except UnicodeDecodeError as exc:
        raise CBORError(f"text is not UTF-8: {exc.reason}") from exc

"""CBOR bytes to plain values, by the rules of this protocol, which no general decoder has.

Accepted beyond plain CBOR: tags in front of any value, which are skipped; byte strings as map keys, which equal
the same text; any bytes after the item. Refused: a key twice in one map, also once as text and once as bytes. A
map without a definite length is returned as `IndefiniteMap`, because some places accept only a map with a definite
length.

There are two readers. cbor2 reads the common form: definite lengths, text keys, no tags. Input that it refuses is
read again by `_Reader`, which is slow and exact and decides. So the result does not depend on how cbor2 handles
tags or unusual keys. This module must not know envelopes and messages.
"""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING, Any, Final, NoReturn, final

import cbor2

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = ["CBORError", "IndefiniteMap", "dump", "head", "load"]

BYTES: Final = 0x40
TEXT: Final = 0x60

MAX_DEPTH: Final = 64
"""How deep values may nest. The protocol itself needs six; the rest is for fields yet unknown, and well
below what the interpreter's own stack allows."""

MAX_ITEMS: Final = 100_000
"""How many items a value may have that is not in the plain form, which is read natively. Each costs some
microseconds here: without a bound, one frame of the largest size (two million tiny items) holds
everybody up for ten seconds."""


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


def load(data: bytes) -> Any:
    """Decode the first item of ``data``, which is untrusted.

    Raises:
        CBORError: the only error, whatever ``data`` is.
    """
    try:
        return cbor2.loads(
            data,
            semantic_decoders=_REFUSE_TAGS,
            max_depth=MAX_DEPTH - 1,  # it counts arrays and maps, and not the item in the innermost
            allow_indefinite=False,
            allow_duplicate_keys=False,
            strict_hashable_types=True,
            object_hook=_refuse_byte_keys,
        )
    except cbor2.CBORError:
        return _Reader(data).item(MAX_DEPTH)


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

_FLOATS: Final = {25: struct.Struct(">e"), 26: struct.Struct(">f"), 27: struct.Struct(">d")}
_CONSTANTS: Final = {20: False, 21: True, 22: None, 23: cbor2.undefined}


@final
class _Reader:
    """Reads items of one byte string; exact, and bounded in depth and number. Raises only `CBORError`."""

    __slots__ = ("_data", "_left", "_position")

    def __init__(self, data: bytes) -> None:
        self._data = data
        self._position = 0
        self._left = MAX_ITEMS

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
            raise CBORError(f"more than {MAX_ITEMS} items, in a form that is read one by one")
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

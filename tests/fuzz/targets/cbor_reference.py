"""The reference of CBOR: a second, plain reader and writer of the CBOR that this protocol accepts."""

from __future__ import annotations

import struct
from typing import Any, Final, NamedTuple

import cbor2

__all__ = ["BOUNDS", "MOST_DEEP", "Bounds", "Refused", "head", "is_portable", "read", "write"]

MOST_DEEP: Final = 64


class Bounds(NamedTuple):
    """How many items an input may have: all, those that are costly, and all of an input that is not plain."""

    items: int
    costly: int
    slow: int


BOUNDS: Final = Bounds(2**18, 2**14, 2**15)

_STOP: Final = object()


class Refused(Exception):
    """The protocol does not accept this input."""


class _Reading:
    def __init__(self, data: bytes) -> None:
        self.data = data
        self.at = 0
        self.heads = 0
        self.costly = 0
        self.plain = True  # lengths all there, keys all text, no tags
        self.portable = True

    def take(self, size: int) -> bytes:
        piece = self.data[self.at : self.at + size]
        self.at += size
        if len(piece) < size:
            raise Refused("cut")
        return piece

    def head(self) -> tuple[int, int, int | None]:
        self.heads += 1
        first = self.take(1)[0]
        low = first % 32
        if first // 32 in (2, 3):
            self.costly += low > 24
        elif first // 32 > 3:
            self.costly += first not in (0xF4, 0xF5, 0xF6)
        if low in (28, 29, 30):
            raise Refused("reserved")
        if low == 31:
            self.plain = False
            return first // 32, low, None
        return first // 32, low, low if low < 24 else int.from_bytes(self.take(2 ** (low - 24)), "big")

    def item(self, level: int, stop: bool = False, key: bool = False) -> Any:
        """Read an item. With ``stop``, the end of an item without a length may come in its place."""
        if level > MOST_DEEP:
            raise Refused("deep")
        major, low, number = self.head()
        tags = 0
        while major == 6:
            self.plain = False
            if number is None:
                raise Refused("tag without a number")
            tags += 1
            self.portable &= tags < 3 and (number not in (2, 3) or self.is_short_integer(number))
            major, low, number = self.head()
        if key and major in (2, 3):
            self.portable &= number is not None and number <= 4096
        if (major, low) == (7, 31):
            if not stop or tags:
                raise Refused("stop")
            return _STOP
        readers = (self.whole, self.whole, self.octets, self.text, self.array, self.map, self.whole, self.simple)
        return readers[major](major, low, number, level)

    def is_short_integer(self, tag: int) -> bool:
        """Whether a byte string of known length comes, that is an integer of 128 bits, with its sign."""
        rest = _Reading(self.data)
        rest.at = self.at
        major, _, number = rest.head()
        if major != 2 or number is None:
            return False
        digits = rest.data[rest.at : rest.at + number]
        return int.from_bytes(digits, "big").bit_length() <= (128 if tag == 2 else 127)

    def whole(self, major: int, _low: int, number: int | None, _level: int) -> int:
        if number is None:
            raise Refused("integer")
        return number if major == 0 else -1 - number

    def pieces(self, major: int, number: int | None) -> list[bytes]:
        if number is not None:
            return [self.take(number)]
        pieces = []
        self.portable &= major == 2
        while (head := self.head())[:2] != (7, 31):
            if head[0] != major or head[2] is None:
                raise Refused("pieces")
            pieces.append(self.take(head[2]))
        return pieces

    def octets(self, major: int, _low: int, number: int | None, _level: int) -> bytes:
        return b"".join(self.pieces(major, number))

    def text(self, major: int, _low: int, number: int | None, _level: int) -> str:
        try:
            return "".join([piece.decode() for piece in self.pieces(major, number)])
        except UnicodeDecodeError:
            raise Refused("text") from None

    def array(self, _major: int, _low: int, number: int | None, level: int) -> list[Any]:
        values: list[Any] = []
        while len(values) != number:
            value = self.item(level + 1, number is None)
            if value is _STOP:
                break
            values.append(value)
        return values

    def map(self, _major: int, _low: int, number: int | None, level: int) -> dict[Any, Any]:
        """Make a map. All keys that are no text become one key, `None`."""
        values: dict[Any, Any] = {}
        count = 0
        while count != number:
            key = self.item(level + 1, number is None, key=True)
            if key is _STOP:
                break
            count += 1
            self.plain &= isinstance(key, str)
            if isinstance(key, bytes):
                key = key.decode("utf-8", "backslashreplace")
            value = self.item(level + 1)
            if not isinstance(key, str):
                values[None] = None
            elif key in values:
                raise Refused("twice")
            else:
                values[key] = value
        return values

    def simple(self, _major: int, low: int, number: int | None, _level: int) -> Any:
        assert number is not None
        self.portable &= low in (20, 21, 22)
        if low > 24:
            return struct.unpack({25: ">e", 26: ">f", 27: ">d"}[low], number.to_bytes(2 ** (low - 24), "big"))[0]
        if low == 24 and number < 32:
            raise Refused("simple")
        return (
            {20: False, 21: True, 22: None, 23: cbor2.undefined}.get(number)
            if 20 <= number < 24
            else _other(number)
        )


def _other(number: int) -> cbor2.CBORSimpleValue:
    return cbor2.CBORSimpleValue(number)


def read(data: bytes, bounds: Bounds = BOUNDS) -> Any:
    """The first item.

    Raises:
        Refused: it is not one that the protocol takes.
    """
    return _read(data, bounds)[1]


def is_portable(data: bytes, bounds: Bounds = BOUNDS) -> bool:
    """Whether a relay passes on the first item, which is one that the protocol takes."""
    return _read(data, bounds)[0].portable


def _read(data: bytes, bounds: Bounds) -> tuple[_Reading, Any]:
    reading = _Reading(data)
    value = reading.item(1)
    # (An input that is shorter is not counted: it has as many items as bytes, at most.)
    if len(data) > bounds.costly and (reading.heads > bounds.items or reading.costly > bounds.costly):
        raise Refused("items")
    if not reading.plain and reading.heads > bounds.slow:
        raise Refused("items that are read one by one")
    return reading, value


def write(value: Any) -> bytes:
    """The one canonical form: shortest heads, lengths in front, keys as they come."""
    match value:
        case bool() | None:
            return bytes([0xF6 if value is None else 0xF4 + value])
        case int():
            return head(0, value) if value >= 0 else head(1, -1 - value)
        case bytes():
            return head(2, len(value)) + value
        case str():
            return head(3, len(value.encode())) + value.encode()
        case list():
            return head(4, len(value)) + b"".join(map(write, value))
        case dict():
            return head(5, len(value)) + b"".join(write(part) for item in value.items() for part in item)
        case _:
            raise AssertionError(f"nothing that is sent has a {type(value).__name__}")


def head(major: int, number: int) -> bytes:
    """The shortest one."""
    if number < 24:
        return bytes([32 * major + number])
    power = next(power for power in range(4) if number < 256 ** (2**power))
    return bytes([32 * major + 24 + power]) + number.to_bytes(2**power, "big")

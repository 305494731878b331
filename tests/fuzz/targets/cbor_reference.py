"""The reference of CBOR: a second, plain reader and writer of the CBOR that this protocol accepts."""

from __future__ import annotations

import struct
from typing import Any, Final

import cbor2

__all__ = ["MOST_DEEP", "MOST_ITEMS", "Refused", "head", "read", "write"]

MOST_DEEP: Final = 64
MOST_ITEMS: Final = 100_000

_STOP: Final = object()


class Refused(Exception):
    """The protocol does not accept this input."""


class _Reading:
    def __init__(self, data: bytes) -> None:
        self.data = data
        self.at = 0
        self.heads = 0
        self.plain = True  # lengths all there, keys all text, no tags: has no bound but its size

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
        if low in (28, 29, 30):
            raise Refused("reserved")
        if low == 31:
            self.plain = False
            return first // 32, low, None
        return first // 32, low, low if low < 24 else int.from_bytes(self.take(2 ** (low - 24)), "big")

    def item(self, level: int, stop: bool = False) -> Any:
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
            major, low, number = self.head()
        if (major, low) == (7, 31):
            if not stop or tags:
                raise Refused("stop")
            return _STOP
        readers = (self.whole, self.whole, self.octets, self.text, self.array, self.map, self.whole, self.simple)
        return readers[major](major, low, number, level)

    def whole(self, major: int, _low: int, number: int | None, _level: int) -> int:
        if number is None:
            raise Refused("integer")
        return number if major == 0 else -1 - number

    def pieces(self, major: int, number: int | None) -> list[bytes]:
        if number is not None:
            return [self.take(number)]
        pieces = []
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
            key = self.item(level + 1, number is None)
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


def read(data: bytes, most: int = MOST_ITEMS) -> Any:
    """The first item, which has so many at most, unless it is plain.

    Raises:
        Refused: it is not one that the protocol takes.
    """
    reading = _Reading(data)
    value = reading.item(1)
    if not reading.plain and reading.heads > most:
        raise Refused("items")
    return value


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

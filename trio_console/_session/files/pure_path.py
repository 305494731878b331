"""What a path of the guest is without asking the guest: `pathlib.PurePosixPath`, tied to one guest.

It is no path of this machine, and deliberately not `os.PathLike`: ``open(guest_path)`` must fail, and not open
the file of the same name here.
"""

from __future__ import annotations

import os
from pathlib import PurePath, PurePosixPath
from typing import TYPE_CHECKING, TypeAlias
from urllib.parse import quote_from_bytes

from trio_console import _wire as wire

if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import Self

    from trio_console._session.files.operations import FileSystem

__all__ = ["PureGuestPath", "Segment"]

Segment: TypeAlias = "str | os.PathLike[str] | PureGuestPath"


class PureGuestPath:
    """See `GuestPath`."""

    __slots__ = ("_fs", "_pure")

    def __init__(self, fs: FileSystem, pure: PurePosixPath) -> None:
        self._fs = fs
        self._pure = pure

    def __str__(self) -> str:
        return str(self._pure)

    def __repr__(self) -> str:
        return f"{type(self).__name__}({str(self)!r})"

    def __bytes__(self) -> bytes:
        return wire.name_bytes(str(self))

    def _same_guest(self, other: object) -> bool:
        return isinstance(other, PureGuestPath) and other._fs.connection is self._fs.connection

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, PureGuestPath):
            return NotImplemented
        return self._same_guest(other) and self._pure == other._pure

    def __hash__(self) -> int:
        return hash((id(self._fs.connection), self._pure))

    def __lt__(self, other: PureGuestPath) -> bool:
        return self._pure < other._pure if self._same_guest(other) else NotImplemented

    def __le__(self, other: PureGuestPath) -> bool:
        return self._pure <= other._pure if self._same_guest(other) else NotImplemented

    def __gt__(self, other: PureGuestPath) -> bool:
        return self._pure > other._pure if self._same_guest(other) else NotImplemented

    def __ge__(self, other: PureGuestPath) -> bool:
        return self._pure >= other._pure if self._same_guest(other) else NotImplemented

    def _make(self, pure: PurePosixPath | str) -> Self:
        return type(self)(self._fs, PurePosixPath(pure))

    def _segment(self, segment: Segment) -> str | PurePosixPath:
        if isinstance(segment, PureGuestPath):
            if not self._same_guest(segment):
                raise ValueError(
                    f"{segment!r} is a path of another guest: convert it to str to use the same path here"
                )
            return segment._pure
        return os.fspath(segment)

    def __truediv__(self, key: Segment) -> Self:
        if not isinstance(key, (str, PurePath, PureGuestPath)):
            return NotImplemented
        return self._make(self._pure / self._segment(key))

    def __rtruediv__(self, key: str | PurePath) -> Self:
        if not isinstance(key, (str, PurePath)):
            return NotImplemented
        return self._make(os.fspath(key) / self._pure)

    def joinpath(self, *segments: Segment) -> Self:
        """This path, with ``segments`` appended."""
        return self._make(self._pure.joinpath(*map(self._segment, segments)))

    @property
    def parts(self) -> tuple[str, ...]:
        """Its components."""
        return self._pure.parts

    @property
    def root(self) -> str:
        """``/``, or nothing for a relative path."""
        return self._pure.root

    @property
    def anchor(self) -> str:
        """The same as `root`."""
        return self._pure.anchor

    @property
    def drive(self) -> str:
        """Always empty."""
        return self._pure.drive

    @property
    def name(self) -> str:
        """Its last component."""
        return self._pure.name

    @property
    def stem(self) -> str:
        """Its last component without the suffix."""
        return self._pure.stem

    @property
    def suffix(self) -> str:
        """The last suffix, with its dot."""
        return self._pure.suffix

    @property
    def suffixes(self) -> list[str]:
        """All suffixes."""
        return self._pure.suffixes

    @property
    def parent(self) -> Self:
        """The path without its last component."""
        return self._make(self._pure.parent)

    @property
    def parents(self) -> Sequence[Self]:
        """The parent, its parent, and so on."""
        return tuple(map(self._make, self._pure.parents))

    def as_posix(self) -> str:
        """The same as ``str(path)``."""
        return self._pure.as_posix()

    def as_uri(self) -> str:
        """The path as a ``file:`` URI; `ValueError` if it is not absolute."""
        if not self.is_absolute():
            raise ValueError("relative path can't be expressed as a file URI")
        return "file://" + quote_from_bytes(bytes(self))

    def is_absolute(self) -> bool:
        """Whether it begins with ``/``."""
        return self._pure.is_absolute()

    def match(self, pattern: str) -> bool:
        """Whether it matches a glob pattern."""
        return self._pure.match(pattern)

    def is_reserved(self) -> bool:
        """Always false."""
        return False

    def is_relative_to(self, other: Segment, /, *more: Segment) -> bool:
        """Whether this path begins with ``other``, with ``more`` appended."""
        return self._pure.is_relative_to(self._base(other, *more))

    def relative_to(self, other: Segment, /, *more: Segment) -> Self:
        """The rest of this path after ``other``, with ``more`` appended; `ValueError` if it does not begin so."""
        return self._make(self._pure.relative_to(self._base(other, *more)))

    def _base(self, *segments: Segment) -> PurePosixPath:
        return PurePosixPath(*map(self._segment, segments))

    def with_name(self, name: str) -> Self:
        """The path with another last component."""
        return self._make(self._pure.with_name(name))

    def with_stem(self, stem: str) -> Self:
        """The path with another stem."""
        return self._make(self._pure.with_stem(stem))

    def with_suffix(self, suffix: str) -> Self:
        """The path with another suffix, or without a suffix if ``suffix`` is empty."""
        return self._make(self._pure.with_suffix(suffix))

"""Layers that are damaged, or made to do harm."""

from __future__ import annotations

import io
import tarfile
from typing import TYPE_CHECKING, Any

import pytest

from tests.guests.images.making import Item, file, folder, layer
from trio_console._guests.images.bounds import BOUNDS, BadImageError, Bounds
from trio_console._guests.images.layer import entries_of

if TYPE_CHECKING:
    from trio_console._guests.images.tree import Entry


def read(data: bytes, bounds: Bounds = BOUNDS) -> list[Entry]:
    return entries_of(io.BytesIO(data), 0, bounds, lambda: None)


def with_header(data: bytes, **fields: bytes) -> bytes:
    """The first header of an archive with other bytes in its fields, and the right sum."""
    places = {"size": (124, 12), "uid": (108, 8)}
    header = bytearray(data[:512])
    for name, value in fields.items():
        start, size = places[name]
        header[start : start + size] = value.ljust(size, b"\0")
    header[148:156] = b" " * 8
    header[148:156] = b"%06o\0 " % sum(header)
    return bytes(header) + data[512:]


@pytest.mark.parametrize("name", ["../a", "a/../../b", "a/..", "x" * 256, "a/" + "x" * 256])
def test_a_name_that_cannot_be_in_an_image_is_refused(name: str) -> None:
    with pytest.raises(BadImageError, match="no name of a file"):
        read(layer(file(name)))


def test_a_nul_in_a_name_is_refused() -> None:
    with pytest.raises(BadImageError, match="no name of a file"):
        read(layer(Item("a", fields={"pax_headers": {"path": "a\0b"}})))


def test_an_absolute_name_is_one_in_the_image() -> None:
    assert read(layer(file("/etc/passwd")))[0].path == (b"etc", b"passwd")


def test_a_name_need_not_be_text() -> None:
    assert read(layer(file("\udcff"), format=tarfile.GNU_FORMAT))[0].path == (b"\xff",)


@pytest.mark.parametrize("type_", [tarfile.CHRTYPE, tarfile.BLKTYPE])
def test_devices_are_left_out_where_a_machine_has_its_own(type_: bytes) -> None:
    assert read(layer(Item("dev/null", type_))) == []


@pytest.mark.parametrize("type_", [tarfile.CHRTYPE, tarfile.BLKTYPE, b"Z"])
def test_devices_elsewhere_and_unknown_kinds_are_refused(type_: bytes) -> None:
    with pytest.raises(BadImageError, match="is a device"):
        read(layer(Item("etc/device", type_)))


def test_a_header_that_would_take_much_memory_is_refused() -> None:
    data = layer(file("x/" * 2500), format=tarfile.GNU_FORMAT)
    read(data)
    with pytest.raises(BadImageError, match="header of more than 4000 bytes"):
        read(data, Bounds(header_bytes=4000))


def test_a_bound_of_headers_is_one_of_each_entry() -> None:
    assert len(read(layer(*[file("a")] * 100), Bounds(header_bytes=2048))) == 100


def test_a_header_in_the_middle_that_is_damaged_is_no_end() -> None:
    data = bytearray(layer(file("a"), file("b")))
    data[512 + 5] ^= 1
    with pytest.raises(BadImageError, match="its byte 512 is no header"):
        read(bytes(data))


@pytest.mark.parametrize("size", [1, 511, 512 + 100, 1024 + 1])
def test_an_archive_that_was_cut_is_refused(size: int) -> None:
    with pytest.raises(BadImageError):
        read(layer(file("a", b"x" * 600), file("b"))[:size])


def test_a_file_that_is_larger_than_its_archive_is_refused() -> None:
    with pytest.raises(BadImageError):
        read(with_header(layer(file("a")), size=b"77777777777"))


def test_a_negative_size_does_not_read_a_header_again() -> None:
    minus_512 = b"\xff" * 10 + b"\xfe\x00"
    with pytest.raises(BadImageError):
        read(with_header(layer(file("a")), size=minus_512))


@pytest.mark.parametrize("size", ["-512", "-1", "99999999999999"])
def test_a_size_in_an_extended_header_is_refused_alike(size: str) -> None:
    with pytest.raises(BadImageError):
        read(layer(Item("a", fields={"pax_headers": {"size": size}})))


@pytest.mark.parametrize("uid", [-1, 2**32 - 1, 2**40])
def test_an_owner_who_cannot_be_is_refused(uid: int) -> None:
    with pytest.raises(BadImageError, match="belongs to the user"):
        read(layer(file("a", uid=uid)))


@pytest.mark.parametrize(
    ("time", "kept"), [(5.7, 5), (-3, 0), (2**31, 2**31 - 1), (float("inf"), 0), (float("nan"), 0)]
)
def test_a_time_that_cannot_be_is_the_nearest(time: float, kept: int) -> None:
    assert read(layer(Item("a", fields={"pax_headers": {"mtime": str(time)}})))[0].node.mtime == kept


def sparse(size: int, pieces: str, data: bytes = b"") -> bytes:
    """A file with holes, in the form 1.0: its map is in front of its bytes."""
    headers: dict[str, Any] = {"GNU.sparse.major": "1", "GNU.sparse.minor": "0"}
    headers |= {"GNU.sparse.name": "a", "GNU.sparse.realsize": str(size)}
    return layer(Item("a", data=pieces.encode().ljust(512, b"\0") + data, fields={"pax_headers": headers}))


def test_the_holes_of_a_file_stay_holes() -> None:
    data = sparse(10**9, "1\n999999990\n10\n", b"0123456789")
    content = read(data)[0].node.content
    assert content is not None
    (piece,) = content.pieces
    assert (content.size, piece.at, piece.size) == (10**9, 999999990, 10)
    assert data[piece.source : piece.source + 10] == b"0123456789"


@pytest.mark.parametrize(
    "pieces", ["1\n95\n10\n", "2\n50\n10\n0\n10\n", "1\n0\n-1\n", "1\n0\n9999999\n", "1\n-5\n3\n"]
)
def test_pieces_that_are_not_in_a_file_are_refused(pieces: str) -> None:
    with pytest.raises(BadImageError):
        read(sparse(100, pieces, b"x" * 20))


def test_a_map_of_pieces_without_an_end_is_refused() -> None:
    with pytest.raises(BadImageError):
        read(sparse(100, "99999999999\n", b"1\n" * 2_000_000))


@pytest.mark.parametrize("over", [0, 1])
def test_the_bytes_of_files_are_bounded_with_their_holes(over: int) -> None:
    data = sparse(1000 + over, "1\n0\n1\n", b"x")
    if over:
        with pytest.raises(BadImageError, match="more than 1000 bytes"):
            read(data, Bounds(total_bytes=1000))
    else:
        read(data, Bounds(total_bytes=1000))


@pytest.mark.parametrize("over", [0, 1])
def test_the_entries_of_a_layer_are_bounded(over: int) -> None:
    data = layer(*[folder("a")] * (3 + over))
    if over:
        with pytest.raises(BadImageError, match="more than 3 entries"):
            read(data, Bounds(entries=3))
    else:
        read(data, Bounds(entries=3))


def test_headers_that_only_announce_another_are_refused() -> None:
    announcing = layer(Item("a", tarfile.XHDTYPE, data=b"11 a=bcdef\n"))[: -1024 * 10 + 1024]
    with pytest.raises(BadImageError):
        read(announcing[:1024] * 5000)


def test_what_is_no_archive_is_refused() -> None:
    with pytest.raises(BadImageError, match="damaged, or is none"):
        read(b"no archive" * 1000)


def test_an_archive_that_is_empty_has_no_entries() -> None:
    assert read(layer()) == []

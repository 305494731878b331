"""Layers that try to get out of the image: whatever they hold, they are refused, or become what a model says.

The model is another program: a table of whole paths, on which each layer is carried out as the format describes
it.
"""

from __future__ import annotations

import io
import os
import stat
import tarfile
import tempfile
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from tests.guests.images.making import Item, file, folder, hard_link, layer, symlink
from trio_console._guests.images.bounds import BOUNDS, BadImageError
from trio_console._guests.images.layer import entries_of
from trio_console._guests.images.staging import stage
from trio_console._guests.images.tree import Tree

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

OUTSIDE: Final = "/tmp/outside-of-the-image"

# --- the model ------------------------------------------------------------------------------------


class RefusedError(Exception):
    pass


class Thing:
    """A file; what has two names is one object."""

    def __init__(self, kind: str, value: Any = None) -> None:
        self.kind, self.value = kind, value


class Model:
    def __init__(self) -> None:
        self.table: dict[str, Thing] = {"": Thing("directory")}

    def layer(self, items: Sequence[Item]) -> None:
        for item in items:
            self.check_name(item.name)
        for item in items:
            above, _, name = self.clean(item.name).rpartition("/")
            if not name.startswith(".wh."):
                continue
            place = self.real(above)
            if place is None or self.table[place].kind != "directory":
                continue
            if name == ".wh..wh..opq":
                self.remove_below(place)
            elif not name.startswith(".wh..wh.") and name not in (".wh.", ".wh..", ".wh..."):
                self.remove(self.join(place, name[4:]))
        for item in items:
            self.entry(item)

    def entry(self, item: Item) -> None:
        path = self.clean(item.name)
        parts = path.split("/")
        if any(part.startswith(".wh..wh.") for part in parts):
            return
        if any(part.startswith(".wh.") for part in parts):
            if any(part.startswith(".wh.") for part in parts[:-1]) or parts[-1] in (".wh.", ".wh..", ".wh..."):
                raise RefusedError
            return
        if not path:
            if item.type != tarfile.DIRTYPE:
                raise RefusedError
            return
        above, _, name = path.rpartition("/")
        place = self.join(self.make(above), name)
        if item.type == tarfile.LNKTYPE:
            self.check_name(item.link)
            target_above, _, target_name = self.clean(item.link).rpartition("/")
            target = self.real(target_above)
            found = self.table.get(self.join(target, target_name)) if target is not None and target_name else None
            if found is None or found.kind == "directory":
                raise RefusedError
            self.remove(place)
            self.table[place] = found
        elif item.type == tarfile.DIRTYPE:
            if place not in self.table or self.table[place].kind != "directory":
                self.remove(place)
                self.table[place] = Thing("directory")
        else:
            self.remove(place)
            self.table[place] = (
                Thing("link", item.link) if item.type == tarfile.SYMTYPE else Thing("file", item.data)
            )

    def make(self, path: str) -> str:
        """Where a directory is; it is made, and those above it, if nobody has it."""
        done = ""
        for part in filter(None, path.split("/")):
            done = self.join(done, part)
            if self.real(done) is None:
                above, _, name = done.rpartition("/")
                place = self.real(above)
                assert place is not None
                if self.join(place, name) in self.table or self.table[place].kind != "directory":
                    raise RefusedError
                self.table[self.join(place, name)] = Thing("directory")
        found = self.real(path)
        if found is None or self.table[found].kind != "directory":
            raise RefusedError
        return found

    def real(self, path: str, links: int = 0) -> str | None:
        """The path without links in it, if there is something."""
        done = ""
        rest = [part for part in path.split("/") if part not in ("", ".")]
        while rest:
            part, *rest = rest
            if self.table[done].kind != "directory":
                return None
            if part == "..":
                done = done.rpartition("/")[0]
                continue
            here = self.join(done, part)
            if here not in self.table:
                return None
            if self.table[here].kind != "link":
                done = here
                continue
            links += 1
            if links > 40:
                return None
            target = self.table[here].value
            if target.startswith("/"):
                done = ""
            rest = [each for each in target.split("/") if each not in ("", ".")] + rest
        return done

    def remove(self, path: str) -> None:
        self.remove_below(path)
        self.table.pop(path, None)

    def remove_below(self, path: str) -> None:
        for each in [each for each in self.table if each.startswith(path + "/" if path else "") and each != path]:
            del self.table[each]

    @staticmethod
    def join(above: str, name: str) -> str:
        return f"{above}/{name}" if above else name

    @staticmethod
    def clean(name: str) -> str:
        return "/".join(part for part in name.split("/") if part not in ("", "."))

    @staticmethod
    def check_name(name: str) -> None:
        if ".." in name.split("/") or any(len(part.encode()) > 255 for part in name.split("/")):
            raise RefusedError


# --- what is really written -----------------------------------------------------------------------


def really(layers: Sequence[Sequence[Item]], place: Path) -> dict[str, Any]:
    """Write the layers into a directory; returns what it has then, by path."""
    tree = Tree(BOUNDS)
    contents = {}
    with ExitStack() as stack:
        for number, items in enumerate(layers):
            contents[number] = stack.enter_context(tempfile.TemporaryFile())
            contents[number].write(layer(*items))
            contents[number].flush()
            tree.apply(entries_of(contents[number], number, BOUNDS, lambda: None))
        stage(tree.root, place, contents, lambda: None)
    return dict(found_in(place, ""))


def found_in(place: Path, above: str) -> Iterator[tuple[str, Any]]:
    for entry in os.scandir(place):
        path = f"{above}/{entry.name}" if above else entry.name
        found = entry.stat(follow_symlinks=False)
        if stat.S_ISDIR(found.st_mode):
            yield path, ("directory", None, found.st_mode & 0o7777)
            yield from found_in(place / entry.name, path)
        elif stat.S_ISLNK(found.st_mode):
            yield path, ("link", os.readlink(entry), found.st_ino)
        else:
            assert stat.S_IMODE(found.st_mode) == 0o600
            yield path, ("file", Path(entry).read_bytes(), found.st_ino)


class Same(NamedTuple):
    """What there is, and which names are those of one file."""

    things: dict[str, tuple[str, Any]]
    groups: set[frozenset[str]]


def groups(of: dict[str, Any]) -> set[frozenset[str]]:
    found: dict[Any, set[str]] = {}
    for path, number in of.items():
        found.setdefault(number, set()).add(path)
    return {frozenset(each) for each in found.values()}


def modelled(layers: Sequence[Sequence[Item]]) -> Same | None:
    model = Model()
    try:
        for items in layers:
            model.layer(items)
    except RefusedError:
        return None
    del model.table[""]
    return Same(
        {path: (thing.kind, thing.value) for path, thing in model.table.items()},
        groups({path: id(thing) for path, thing in model.table.items() if thing.kind != "directory"}),
    )


def outside(place: Path) -> dict[str, Any]:
    """Everything around the directory, to the times of it."""
    return {
        str(path): (
            found.st_mode,
            found.st_ino,
            found.st_size,
            found.st_mtime_ns,
            found.st_ctime_ns,
            found.st_nlink,
        )
        for path in sorted([place.parent, *place.parent.rglob("*")])
        if path != place and place not in path.parents
        for found in [path.lstat()]
    }


# --- hostile layers -------------------------------------------------------------------------------

PART = st.sampled_from(["a", "b", "c", ".wh.a", ".wh.b", ".wh..wh..opq", "..", ".", "", ".wh.", ".wh..wh.x"])
PLAIN = st.sampled_from(["a", "b", "c"])
NAME = st.one_of(
    st.lists(PLAIN, min_size=1, max_size=3).map("/".join),
    st.lists(PLAIN, max_size=2).flatmap(lambda above: PART.map(lambda last: "/".join([*above, last]))),
    st.lists(PART, min_size=1, max_size=4).map("/".join),
    st.sampled_from(["../secret", "/secret", "a/../../secret", "x" * 256, OUTSIDE, "/" + "b/" * 20]),
)
TARGET = st.one_of(
    st.lists(st.sampled_from(["a", "b", "c", "..", "."]), min_size=1, max_size=4).map("/".join),
    st.sampled_from(["/", "/a", "/../a", "../../../../..", "..", "../secret", "/etc", OUTSIDE, "nowhere"]),
)
ITEM = st.one_of(
    st.builds(file, NAME, st.binary(max_size=3), mode=st.sampled_from([0o644, 0o4777, 0])),
    st.builds(folder, NAME, mode=st.sampled_from([0o755, 0o1777, 0])),
    st.builds(symlink, NAME, TARGET),
    st.builds(hard_link, NAME, st.one_of(NAME, TARGET)),
)
LAYERS = st.lists(st.lists(ITEM, max_size=6), min_size=1, max_size=4)


@pytest.fixture(scope="module")
def around() -> Iterator[Path]:
    with tempfile.TemporaryDirectory() as place:
        (Path(place) / "secret").write_text("secret")
        (Path(place) / "folder").mkdir()
        yield Path(place)


@given(layers=LAYERS)
@settings(max_examples=300)
@example(layers=[[symlink("a", ".."), file("a/secret", b"x")]])
@example(layers=[[symlink("a", "../folder")], [file("a/x")]])
@example(layers=[[symlink("a", "/tmp")], [folder("a"), file("a/x")]])
@example(layers=[[folder("a"), file("a/x")], [symlink("a", "..")], [file("a/secret")]])
@example(layers=[[hard_link("a", "../secret"), file("a", b"x")]])
@example(layers=[[symlink("a", "../secret"), hard_link("b", "a"), file("b", b"x")]])
@example(layers=[[symlink("a", "b"), symlink("b", "a")], [file("a/x")]])
@example(layers=[[folder("a"), file("a/b")], [file(".wh.a")], [file("a/c")]])
def test_a_layer_writes_nowhere_else_and_is_what_a_model_says(around: Path, layers: list[list[Item]]) -> None:
    expected = modelled(layers)
    with tempfile.TemporaryDirectory(dir=around) as name:
        place = Path(name)
        before = outside(place)
        del before[str(around)]
        try:
            found = really(layers, place)
        except BadImageError:
            assert expected is None
            found = {}
        else:
            assert expected is not None
            assert {path: each[:2] for path, each in found.items()} == expected.things
            numbers = {path: each[2] for path, each in found.items() if each[0] != "directory"}
            assert groups(numbers) == expected.groups
        after = outside(place)
        del after[str(around)]
        assert after == before
    assert (around / "secret").read_text() == "secret"
    assert not os.path.exists(OUTSIDE)


@given(
    layers=st.lists(st.lists(ITEM, max_size=4), min_size=1, max_size=2),
    places=st.lists(st.tuples(st.integers(0, 10_000), st.integers(0, 255)), max_size=8),
    cut=st.integers(0, 12_000),
)
@settings(max_examples=300)
def test_damaged_bytes_are_refused_or_are_some_layer(
    layers: list[list[Item]], places: list[tuple[int, int]], cut: int
) -> None:
    tree = Tree(BOUNDS)
    for number, items in enumerate(layers):
        data = bytearray(layer(*items))
        for place, value in places:
            data[place % len(data)] = value
        for start in range(0, min(len(data), 4096), 512):  # so that changes are not refused for their sums alone
            if data[start + 257 : start + 262] == b"ustar":
                data[start + 148 : start + 156] = b" " * 8
                data[start + 148 : start + 156] = b"%06o\0 " % sum(data[start : start + 512])
        try:
            tree.apply(entries_of(io.BytesIO(data[:cut] if cut else data), number, BOUNDS, lambda: None))
        except BadImageError:
            return
    for path, node in tree.walk():
        assert b".." not in path
        assert node.content is None or all(
            piece.source + piece.size <= 20_000 and piece.at + piece.size <= node.content.size
            for piece in node.content.pieces
        )


def test_the_filters_of_the_standard_library_alone_would_not_do(tmp_path: Path) -> None:
    # A link of one layer, which leads out of the image when it is looked at from here; a file behind it in the
    # next. (Each archive is harmless by itself: the link is one that a machine follows in its own root.)
    layers = [[symlink("etc", "/"), folder("d")], [file("d/.wh.x"), file("etc/passwd", b"x")]]
    place = tmp_path / "extracted"
    with pytest.raises(tarfile.FilterError):
        for items in layers:
            with tarfile.open(fileobj=io.BytesIO(layer(*items))) as archive:
                archive.extractall(place, filter="data")
    image = tmp_path / "image"
    image.mkdir()
    assert really(layers, image)["passwd"][1] == b"x"

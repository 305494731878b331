"""What layers on one another add up to."""

from __future__ import annotations

import io
import tarfile

import pytest

from tests.guests.images.making import Item, file, folder, hard_link, layer, symlink
from trio_console._guests.images.bounds import BOUNDS, BadImageError, Bounds
from trio_console._guests.images.layer import entries_of
from trio_console._guests.images.tree import Kind, Node, Tree


def tree_of(*layers: tuple[Item, ...], bounds: Bounds = BOUNDS) -> Tree:
    tree = Tree(bounds)
    for number, items in enumerate(layers):
        tree.apply(entries_of(io.BytesIO(layer(*items)), number, bounds, lambda: None))
    return tree


def nodes(tree: Tree) -> dict[str, Node]:
    return {b"/".join(path).decode(): node for path, node in tree.walk()}


def names(*layers: tuple[Item, ...]) -> set[str]:
    return set(nodes(tree_of(*layers))) - {""}


LOWER = (folder("d"), file("d/a"), file("d/b"))


def test_a_layer_adds_to_the_one_below() -> None:
    assert names(LOWER, (file("d/c"),)) == {"d", "d/a", "d/b", "d/c"}


def test_a_whiteout_hides_a_name_of_a_lower_layer() -> None:
    assert names(LOWER, (file("d/.wh.a"),)) == {"d", "d/b"}


def test_a_whiteout_hides_a_directory_with_all_that_is_in_it() -> None:
    assert names(LOWER, (file(".wh.d"),)) == set()


@pytest.mark.parametrize("items", [(file("d/.wh.a"), file("d/a", b"new")), (file("d/a", b"new"), file("d/.wh.a"))])
def test_a_whiteout_hides_nothing_of_its_own_layer(items: tuple[Item, ...]) -> None:
    assert names(LOWER, items) == {"d", "d/a", "d/b"}


@pytest.mark.parametrize("items", [(file("d/.wh..wh..opq"), file("d/c")), (file("d/c"), file("d/.wh..wh..opq"))])
def test_an_opaque_directory_has_what_its_own_layer_has(items: tuple[Item, ...]) -> None:
    assert names(LOWER, items) == {"d", "d/c"}


def test_a_whiteout_of_nothing_is_no_error() -> None:
    assert names((file("d/.wh.a"), file("e"))) == {"e"}


@pytest.mark.parametrize("name", [".wh.", ".wh..", ".wh...", ".wh.d/file"])
def test_a_whiteout_that_can_hide_nothing_is_refused(name: str) -> None:
    with pytest.raises(BadImageError, match="deletes nothing"):
        names(LOWER, (file(name),))


def test_what_a_union_file_system_has_kept_for_itself_is_left_out() -> None:
    assert names((folder(".wh..wh.plnk"), file(".wh..wh.plnk/1"), file(".wh..wh.aufs"), file("a"))) == {"a"}


def test_a_directory_in_two_layers_is_as_the_upper_one_says() -> None:
    d = nodes(tree_of(LOWER, (folder("d", mode=0o1777, uid=3, gid=4, mtime=5),)))["d"]
    assert (d.mode, d.uid, d.gid, d.mtime, set(d.children)) == (0o1777, 3, 4, 5, {b"a", b"b"})


def test_a_file_takes_the_place_of_a_directory() -> None:
    assert names(LOWER, (file("d"),)) == {"d"}


def test_a_directory_takes_the_place_of_a_link() -> None:
    found = nodes(tree_of((folder("e"), symlink("d", "e")), (folder("d"), file("d/a"))))
    assert set(found) - {""} == {"d", "d/a", "e"}
    assert found["d"].is_directory


def test_what_lies_behind_a_link_is_where_the_link_leads() -> None:
    assert names((folder("usr/bin"), symlink("bin", "usr/bin")), (file("bin/x"),)) == {
        "usr", "usr/bin", "usr/bin/x", "bin",
    }  # fmt: skip


@pytest.mark.parametrize("target", ["/", "../../../..", "/../.."])
def test_no_link_leads_out_of_the_root(target: str) -> None:
    assert names((symlink("out", target),), (file("out/x"),)) == {"out", "x"}


@pytest.mark.parametrize(
    ("items", "reason"),
    [
        ((symlink("a", "b"), symlink("b", "a"), file("a/x")), "leads to no directory"),
        ((symlink("a", "nowhere"), file("a/x")), "leads to no directory"),
        ((file("a"), file("a/x")), "no directory"),
        ((file("a"), file("a/b/x")), "no directory"),
        ((file("f"), folder("d"), symlink("a", "f/../d"), file("a/x")), "no directory"),
    ],
)
def test_what_lies_in_no_directory_is_refused(items: tuple[Item, ...], reason: str) -> None:
    with pytest.raises(BadImageError, match=reason):
        names(items)


def test_a_hard_link_is_another_name_of_the_same_file() -> None:
    found = nodes(tree_of((file("a", b"x"),), (hard_link("b", "/a"),)))
    assert found["a"] is found["b"]


def test_a_file_that_is_replaced_keeps_its_other_names() -> None:
    found = nodes(tree_of((file("a", b"x"), hard_link("b", "a")), (file("a", b"long"),)))
    assert found["a"].content is not None
    assert found["b"].content is not None
    assert (found["a"].content.size, found["b"].content.size) == (4, 1)


@pytest.mark.parametrize("target", ["missing", "d", "", "../a", "/etc/passwd"])
def test_a_hard_link_to_no_file_of_the_image_is_refused(target: str) -> None:
    with pytest.raises(BadImageError):
        names((folder("d"), hard_link("b", target)))


def test_directories_that_nobody_has_mentioned_are_roots() -> None:
    found = nodes(tree_of((file("a/b/c"),)))
    assert [(found[name].mode, found[name].uid) for name in ("a", "a/b")] == [(0o755, 0)] * 2


def test_the_root_is_as_the_layer_says() -> None:
    assert tree_of((folder("./", mode=0o700, uid=7),)).root.uid == 7


@pytest.mark.parametrize("item", [file("."), symlink("/", "etc"), hard_link("./", "a")])
def test_the_root_stays_a_directory(item: Item) -> None:
    with pytest.raises(BadImageError, match="the root of the image"):
        names((file("a"), item))


def test_the_last_of_two_entries_of_a_name_is_there() -> None:
    assert nodes(tree_of((file("a"), symlink("a", "x"))))["a"].kind is Kind.SYMLINK


@pytest.mark.parametrize("over", [0, 1])
def test_directories_in_one_another_are_bounded(over: int) -> None:
    bounds = Bounds(depth=4)
    items = (file("/".join("abcd"[:4]) + "/e" * over),)
    if over:
        with pytest.raises(BadImageError, match="deeper than 4"):
            tree_of(items, bounds=bounds)
    else:
        tree_of(items, bounds=bounds)


def test_links_do_not_make_a_tree_deeper_than_its_bound() -> None:
    items = (folder("a/b"), symlink("l", "a/b"), folder("l/c"), symlink("m", "l/c"), file("m/d/e"))
    with pytest.raises(BadImageError, match="deeper"):
        tree_of(items, bounds=Bounds(depth=4))


@pytest.mark.parametrize("over", [0, 1])
def test_entries_are_counted_over_all_layers(over: int) -> None:
    layers = [(file("a"), file("b")), (file("c"), *[file("d")] * over)]
    if over:
        with pytest.raises(BadImageError, match="more than 3 entries"):
            tree_of(*layers, bounds=Bounds(entries=3))
    else:
        tree_of(*layers, bounds=Bounds(entries=3))


def test_directories_that_nobody_has_mentioned_are_counted() -> None:
    with pytest.raises(BadImageError, match="more than 3 entries"):
        tree_of((file("a/b/c/d"),), bounds=Bounds(entries=3))


@pytest.mark.parametrize("target", ["", "x" * 4096])
def test_a_symbolic_link_to_what_cannot_be_a_path_is_refused(target: str) -> None:
    with pytest.raises(BadImageError, match="target"):
        names((Item("a", tarfile.SYMTYPE, link=target),))

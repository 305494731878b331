"""How prepared machines are kept: whose they are, what they are called, and when they are removed. None starts."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import replace
from typing import TYPE_CHECKING

import pytest
import trio

from trio_console._guests.machine.qemu import Plan
from trio_console._guests.machine.saved import prepared, template
from trio_console._guests.machine.saved.prepared import discard, find, keep, new_place, prune_prepared
from trio_console._guests.machine.saved.running import Kind
from trio_console._guests.machine.saved.template import _copy_sparse
from trio_console._machine.welcome import WORDS

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from trio_console._machine.welcome import Layout


@pytest.fixture
def folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Path]:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    yield tmp_path / "trio_console" / prepared.PREPARED
    for place in list(prepared._held):
        discard(place)


@pytest.fixture
def kind(tmp_path: Path) -> Kind:
    for name in ("kernel", "initramfs", "disk"):
        (tmp_path / name).write_text(name)
    plan = Plan(
        qemu=sys.executable,
        kernel=tmp_path / "kernel",
        initramfs=tmp_path / "initramfs",
        accelerator="tcg",
        memory_mib=512,
        cpus=2,
        shared=(),
        extra_args=("-x",),
        disk=tmp_path / "disk",
        ports=("a", "b"),
    )
    return Kind(plan, "q35", "6.1")


def make(kind: Kind, name: str | None) -> Path:
    return keep(new_place(), kind, "MINIMAL", name).place


def places(folder: Path) -> set[Path]:
    return {path for path in folder.iterdir() if path.is_dir()}


def test_an_entry_has_all_that_its_clones_need(folder: Path, kind: Kind, tmp_path: Path) -> None:
    place = make(kind, "a name")
    for name in ("kernel", "initramfs", "disk"):
        (tmp_path / name).unlink()
    found = find("a name")
    assert found.place == place
    assert found.root == "MINIMAL"
    plan = found.kind.plan
    assert (plan.memory_mib, plan.cpus, plan.ports, plan.extra_args) == (512, 2, ("a", "b"), ("-x",))
    assert (found.kind.model, found.kind.release, plan.accelerator) == ("q35", "6.1", "tcg")
    assert [path.read_text() for path in (plan.kernel, plan.initramfs, plan.disk) if path] == [
        "kernel",
        "initramfs",
        "disk",
    ]


def test_the_last_of_two_with_one_name_is_found_and_the_other_goes_on(folder: Path, kind: Kind) -> None:
    first, second = make(kind, "a name"), make(kind, "a name")
    assert find("a name").place == second
    assert places(folder) == {first, second}
    discard(first)
    make(kind, None)
    assert second in places(folder)


def test_a_name_that_nobody_has_given_is_not_found(folder: Path, kind: Kind) -> None:
    make(kind, "a name")
    with pytest.raises(LookupError, match="make_template"):
        find("another")


def test_a_name_whose_entry_was_removed_is_not_found_and_nothing_is_held(folder: Path, kind: Kind) -> None:
    discard(make(kind, "a name"))
    with pytest.raises(LookupError, match="make_template"):
        find("a name")
    assert not prepared._held
    assert not list(folder.glob("*.lock"))


def test_one_that_was_made_with_another_qemu_is_not_found(folder: Path, kind: Kind) -> None:
    told = make(kind, "a name") / "machine.json"
    told.write_text(json.dumps({**json.loads(told.read_text()), "made_with": "another"}))
    with pytest.raises(LookupError, match="another QEMU"):
        find("a name")


def test_one_whose_agent_does_not_understand_what_it_would_be_told_is_not_found(
    folder: Path, kind: Kind, monkeypatch: pytest.MonkeyPatch
) -> None:
    make(kind, "a name")
    find("a name")
    monkeypatch.setattr(prepared, "WORDS", (*WORDS[:-1], (WORDS[-1][0], (*WORDS[-1][1], "new"))))
    with pytest.raises(LookupError, match="says other words to machines"):
        find("a name")


def let_go(place: Path) -> None:
    """As if the program had been killed that holds it."""
    prepared._held.pop(place).close()
    prepared._passing.discard(place)


def test_what_nobody_holds_and_has_no_name_is_removed_by_the_next(folder: Path, kind: Kind) -> None:
    named, unfinished, unnamed = make(kind, "a name"), new_place(), make(kind, None)
    for place in (named, unfinished, unnamed):
        let_go(place)
    latest = new_place()
    assert places(folder) == {named, latest}
    discard(latest)
    assert find("a name").place == named


PROGRAM = """\
import sys
from trio_console._guests.machine.saved.prepared import new_place
print(new_place(), flush=True)
sys.stdin.read()
"""


def test_what_another_program_holds_is_not_removed(folder: Path) -> None:
    with subprocess.Popen([sys.executable, "-c", PROGRAM], stdin=-1, stdout=-1, text=True) as process:
        assert process.stdout is not None
        place = process.stdout.readline().strip()
        assert os.path.isdir(place)
        discard(new_place())
        assert os.path.isdir(place)
        process.communicate("")
    assert not os.path.exists(place)  # it ends with its program
    assert not list(folder.iterdir())


def test_prune_removes_names_and_all_that_nobody_holds(folder: Path, kind: Kind) -> None:
    held, left = make(kind, "held"), make(kind, "left")
    (left / "memory").write_bytes(bytes(100_000))
    let_go(left)
    assert prune_prepared() >= 100_000
    assert places(folder) == {held}
    with pytest.raises(LookupError):
        find("held")
    discard(held)
    assert prune_prepared() == 0
    assert not folder.exists()


def test_a_copy_of_a_file_with_holes_has_them(tmp_path: Path) -> None:
    old, new = tmp_path / "old", tmp_path / "new"
    with open(old, "wb") as file:
        file.write(b"first")
        file.seek(10_000_000)
        file.write(b"middle")
        file.truncate(20_000_000)
    _copy_sparse(old, new)
    assert new.read_bytes() == old.read_bytes()
    assert new.stat().st_blocks <= old.stat().st_blocks + 16


@pytest.mark.parametrize("told", ["", "[]", "{}", "{"])
def test_an_entry_that_is_damaged_is_told(folder: Path, kind: Kind, told: str) -> None:
    (make(kind, "a") / "machine.json").write_text(told)
    with pytest.raises(LookupError, match="the template 'a' is damaged: make it again"):
        find("a")


# Those that are made by themselves


async def test_only_the_templates_that_were_used_last_are_kept(
    monkeypatch: pytest.MonkeyPatch, kind: Kind, tmp_path: Path
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))

    async def make(_plan: Plan, _model: str, _layout: Layout | None, _place: Path) -> None:
        await trio.lowlevel.checkpoint()

    monkeypatch.setattr(template, "_make", make)
    for memory in range(256, 266):
        place = await template.template_of(replace(kind.plan, memory_mib=memory), "microvm")
        os.utime(place, (memory, memory))
    assert len(places(place.parent)) == 8

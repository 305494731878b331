"""The table of mutants fits the source, and reports each entry that does not."""

from __future__ import annotations

import collections
import dataclasses
from typing import TYPE_CHECKING

import pytest

from tests.mutants.operators import sites
from tests.mutants.table import Mutant, StaleError, check, load, path_of, room_of, save

if TYPE_CHECKING:
    import pathlib

TABLE = load()

SOURCE = b"""
class Door:
    def pass_through(self, size):
        if size > 3:
            raise ValueError
        self.size += size
        self.size += size
"""

GUARD = Mutant(
    module="_door",
    operator="guard",
    where="Door.pass_through",
    text="if size > 3: raise ValueError",
    finder=("t",),
)


def test_no_mutant_of_the_table_is_stale() -> None:
    # For a stale one: read the code as it is now, and write the entry anew (docs/testing.md).
    assert check(TABLE) == []


def test_every_room_has_its_mutants() -> None:
    rooms = collections.Counter(room_of(mutant.module) for mutant in TABLE)
    assert sum(rooms.values()) >= 120
    assert {"console", "channel", "wire", "outbox", "session", "agent", "relay", "open"} <= set(rooms)


@pytest.mark.parametrize(
    "module", ["_console.channel", "_open.guest", "_open.client", "_open.relay", "_trio.ending", "_relay.serve"]
)
def test_each_finally_of_the_contexts_is_a_mutant(module: str) -> None:
    everywhere = sites(path_of(module).read_bytes())
    wanted = {Mutant.of_site(module, site, everywhere).id for site in everywhere if site.operator == "finally"}
    assert wanted
    assert wanted <= {mutant.id for mutant in TABLE}


def test_what_is_no_fault_says_why() -> None:
    assert all(len(mutant.equivalent) > 20 for mutant in TABLE if not mutant.finder)


def test_a_mutant_stays_valid_when_lines_move_and_are_indented_anew() -> None:
    moved = SOURCE.replace(b"class", b"# a line more\n\nclass").replace(b"size > 3", b"size  >  3")
    assert b"raise" not in GUARD.apply(SOURCE)
    assert b"raise" not in GUARD.apply(moved)


@pytest.mark.parametrize("change", [(b"> 3", b"> 4"), (b"pass_through", b"go"), (b"raise ValueError", b"return")])
def test_a_mutant_whose_text_is_gone_is_stale(change: tuple[bytes, bytes]) -> None:
    with pytest.raises(StaleError, match="pass_through:guard"):
        GUARD.apply(SOURCE.replace(*change))


def test_of_several_alike_one_is_chosen_by_its_number() -> None:
    first = Mutant(
        module="_door", operator="drop", where="Door.pass_through", text="self.size += size", finder=("t",)
    )
    second = dataclasses.replace(first, nth=1)
    assert first.apply(SOURCE).endswith(b"pass\n        self.size += size\n")
    assert second.apply(SOURCE).endswith(b"self.size += size\n        pass\n")
    assert first.id != second.id
    with pytest.raises(StaleError):
        dataclasses.replace(first, nth=2).apply(SOURCE)


@pytest.mark.parametrize("old", ["size > 4", "self.size += size"])
def test_a_text_by_hand_is_in_the_module_once(old: str) -> None:
    with pytest.raises(StaleError):
        Mutant(module="_door", name="by hand", old=old, new="pass").apply(SOURCE)


def test_a_text_by_hand_that_is_indented_deeper_now_is_stale() -> None:
    """What is left of its indentation would make no Python, or another change than the one that was meant."""
    by_hand = Mutant(module="_door", name="by hand", old="            raise ValueError\n", new="", finder=("t",))
    assert b"raise" not in by_hand.apply(SOURCE)
    with pytest.raises(StaleError, match="by hand"):
        by_hand.apply(SOURCE.replace(b"            raise", b"                raise"))


def test_the_check_names_what_is_wrong(tmp_path: pathlib.Path) -> None:
    (tmp_path / "trio_console").mkdir()
    (tmp_path / "trio_console" / "_door.py").write_bytes(SOURCE)
    same = Mutant(module="_door", name="nothing", old="raise ValueError", new="raise  ValueError", finder=("t",))
    gone = dataclasses.replace(GUARD, module="_gate")
    stale = dataclasses.replace(GUARD, where="Door.open")
    wrong = check([GUARD, GUARD, same, gone, stale], tmp_path)
    assert [line.partition(":")[0] for line in wrong] == ["twice", "the same", "stale", "stale"]


@pytest.mark.parametrize(
    "fields",
    [
        {"operator": "guard"},  # neither a finder nor a reason
        {"finder": ("t",)},  # neither an operator nor a name
        {"operator": "guard", "name": "both", "finder": ("t",)},
        {"operator": "unknown", "finder": ("t",)},
        {"name": "of nothing", "finder": ("t",)},
    ],
)
def test_an_entry_that_makes_no_sense_is_refused(fields: dict[str, str]) -> None:
    with pytest.raises(ValueError, match="_door"):
        Mutant(module="_door", **fields).check()  # type: ignore[arg-type]


def test_what_is_saved_is_what_is_loaded(tmp_path: pathlib.Path) -> None:
    hand = Mutant(
        module="_console.ring",
        name='quotes "and" such',
        old="\n  if '''x''':\n    '\\n'\n",
        new="",
        finder=("a", "b"),
        seconds=1.5,
    )
    plain = dataclasses.replace(
        hand, module="_console.wake", old="two\n  lines", new="one \\ 'line'", equivalent="a reason"
    )
    save([*TABLE, hand, plain], tmp_path)
    assert {mutant.id: mutant for mutant in load(tmp_path)} == {m.id: m for m in [*TABLE, hand, plain]}

"""What fuzzing has found does no harm any more, and would be found again."""

from __future__ import annotations

import pathlib
import sys
from typing import TYPE_CHECKING, Any

import pytest

from trio_console._relay import _router
from trio_console._relay._clients import Client
from trio_console._relay._router import Router

if TYPE_CHECKING:
    from collections.abc import Callable

ROOT = pathlib.Path(__file__).parents[1]
sys.path.append(str(ROOT))  # behind what is installed, which is what is tested

from fuzz.targets import TARGETS  # noqa: E402

CORPUS = ROOT / "fuzz" / "corpus"
FILES = sorted(path for name in TARGETS for path in (CORPUS / name).iterdir())


def run(path: pathlib.Path) -> None:
    TARGETS[path.parent.name](path.read_bytes())


@pytest.mark.parametrize("name", TARGETS)
def test_no_input_of_the_corpus_does_harm(name: str) -> None:
    for path in FILES:
        if path.parent.name == name:
            try:
                run(path)
            except BaseException as exc:
                exc.add_note(f"the input: {path.relative_to(ROOT)}")
                raise


@pytest.mark.parametrize("name", TARGETS)
def test_every_target_has_a_small_corpus(name: str) -> None:
    sizes = [path.stat().st_size for path in FILES if path.parent.name == name]
    assert 10 <= len(sizes) <= 230
    assert max(sizes) <= 2000
    assert all(path.parent.name in TARGETS for path in CORPUS.glob("*/*"))


@pytest.mark.parametrize("name", TARGETS)
def test_a_target_takes_anything_at_all(name: str) -> None:
    for data in (b"", b"\0", b"\xff" * 300, bytes(range(256))):
        TARGETS[name](data)


def last_id(client: Client, _tail: int) -> int:
    return next(id_ for id_ in reversed(client.ids) if id_ not in client.sessions)


MISTAKES: list[tuple[str, Any, str, Callable[..., Any]]] = [
    ("relay_clients/seed-late_data_under_the_id_of_a_command", _router, "may_end", lambda _cls, _kind: True),
    ("relay_clients/seed-late_data_under_the_id_of_the_question", Client, "quiet_id", last_id),
    ("relay_agent/seed-held_without_data", Router, "overflows", lambda _router, _client: False),
    ("relay_agent/seed-ends_and_slots", _router, "may_end", lambda _cls, _kind: True),
]


@pytest.mark.parametrize(("file", "place", "name", "mistake"), MISTAKES)
def test_a_mistake_of_the_relay_is_found_out(
    file: str, place: Any, name: str, mistake: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(place, name, mistake)
    with pytest.raises(AssertionError):
        run(CORPUS / file)

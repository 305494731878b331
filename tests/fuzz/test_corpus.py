"""The inputs that fuzzing has found: each passes now, and would fail again if its fault came back."""

from __future__ import annotations

import os
import pathlib
import re
import subprocess
import sys
from typing import TYPE_CHECKING, Any

import pytest

from trio_console._relay.router import mind as _router
from trio_console._relay.router.clients import Client
from trio_console._relay.router.gate import Gate

if TYPE_CHECKING:
    from collections.abc import Callable

ROOT = pathlib.Path(__file__).parents[2]

from tests.fuzz import fixed  # noqa: E402
from tests.fuzz.targets import TARGETS  # noqa: E402

CORPUS = ROOT / "tests" / "fuzz" / "corpus"
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
    assert 10 <= len(sizes) <= 240
    assert max(sizes) <= 2000
    assert all(path.parent.name in TARGETS for path in CORPUS.glob("*/*"))


@pytest.mark.parametrize("name", TARGETS)
def test_a_target_takes_anything_at_all(name: str) -> None:
    for data in (b"", b"\0", b"\xff" * 300, bytes(range(256))):
        TARGETS[name](data)


FIXED = """
import sys
from tests.fuzz import fixed
for name in fixed.COUNTS:
    fixed.run(name, 25)
"""


def test_fixed_runs_do_the_same_in_every_process() -> None:
    told = []
    for number in range(2):
        # With other hashes, and other addresses.
        done = subprocess.run(
            [sys.executable, "-c", f"junk = [object() for _ in range({number * 1000})]\n{FIXED}"],
            cwd=ROOT,
            env={**os.environ, "PYTHONHASHSEED": str(number)},
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        told.append(re.findall(r"(\w+): (\d+) inputs.* digest (\w+)", done.stdout))
    assert [name for name, _, _ in told[0]] == list(TARGETS)
    assert told[0] == told[1]


def test_fixed_inputs_are_the_same_every_time() -> None:
    for name in TARGETS:
        once, again = (list(fixed.inputs(name, 50)) for _ in range(2))
        assert once == again
        assert len({data for _, data in once}) > 0.9 * len(once)


def test_a_failure_of_a_fixed_run_is_an_input_to_run_again(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(data: bytes) -> int:
        assert len(data) < 9, "too much"
        return 0

    monkeypatch.setattr(fixed, "TARGETS", {"frames": fails})
    monkeypatch.setattr(fixed, "CRASHES", tmp_path)
    with pytest.raises(AssertionError, match="too much") as caught:
        fixed.run("frames")
    [file] = tmp_path.iterdir()
    assert len(file.read_bytes()) >= 9
    assert f"--replay frames {file}" in "".join(caught.value.__notes__)


def last_id(client: Client) -> int:
    return next(id_ for id_ in reversed(client.ids) if id_ not in client.sessions)


MISTAKES: list[tuple[str, Any, str, Callable[..., Any]]] = [
    ("relay_clients/seed-late_data_under_the_id_of_a_command", _router, "may_end", lambda _cls, _kind: True),
    ("relay_clients/seed-late_data_under_the_id_of_the_question", Client, "quiet_id", last_id),
    ("relay_agent/seed-held_without_data", Gate, "to_cut", lambda _gate, _client: None),
    ("relay_agent/seed-ends_and_slots", _router, "may_end", lambda _cls, _kind: True),
    ("relay_clients/seed-ends_credit", _router, "held_before", lambda session, _cls, _frame: session.held),
    ("relay_clients/seed-ends_credit", _router, "held_before", lambda _session, _cls, _frame: None),
    ("relay_agent/seed-ends_credit", _router, "held_before", lambda session, _cls, _frame: session.held),
]


@pytest.mark.parametrize(("file", "place", "name", "mistake"), MISTAKES)
def test_a_mistake_of_the_relay_is_found_out(
    file: str, place: Any, name: str, mistake: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(place, name, mistake)
    with pytest.raises(AssertionError):
        run(CORPUS / file)

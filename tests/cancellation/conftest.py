"""Fixtures that make sweeps, and say how a failing one is repeated."""

from __future__ import annotations

import os
import sys
from typing import TYPE_CHECKING, Any

import pytest

from tests.cancellation._sweep import Sweep
from tests.tools.leftovers import marking

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path


@pytest.fixture
def make_sweep(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Callable[..., Sweep]]:
    """`Sweep`, with the arguments that do not depend on its session. At the end it says how far it came."""
    marker = "-m nightly " if request.node.get_closest_marker("nightly") else ""
    made: list[Sweep] = []

    def hung(story: str) -> None:
        """End the program: there is no other way out of a trio run whose shielded tasks do not end."""
        capture: Any = request.config.pluginmanager.getplugin("capturemanager")
        with capture.global_and_fixture_disabled():
            # (Where tests run in several processes, nobody reads the standard output of theirs.)
            print(f"\n{request.node.nodeid} hangs: {story}", file=sys.stderr, flush=True)  # noqa: T201
        os._exit(3)

    def make(*args: Any, **options: Any) -> Sweep:
        sweep = Sweep(
            *args,
            **options,
            mark=mark,
            directory=str(tmp_path),
            reproduce=f"python -m pytest {marker}'{request.node.nodeid}'",
            hung=hung,
        )
        made.append(sweep)
        return sweep

    with marking() as mark:
        yield make
    for sweep in made:
        print(sweep)  # noqa: T201  (shown with -rP)
        sweep.check()

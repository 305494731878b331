"""The plugin of pytest that runs trio's own tests in guests, and compares their failures with the kept list."""

from __future__ import annotations

import inspect
import tomllib
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.at_home.table import DIFFERENCES
from tests.bridge.swap import in_guest, swap

if TYPE_CHECKING:
    from collections.abc import Iterator

_LISTS = tomllib.loads((Path(__file__).parent / "expected.toml").read_text())

#: Tests that fail, each with the name of a difference that is meant.
FAILURES: dict[str, str] = _LISTS["failures"]

#: Tests that are not run, with the reason.
NOT_APPLICABLE: dict[str, str] = _LISTS["not_applicable"]


def pytest_configure() -> None:
    assert len(FAILURES) <= 15
    assert set(FAILURES.values()) <= {*DIFFERENCES, *_LISTS["reasons"]}, "each failure has a reason"
    swap()


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    names = {item: f"{item.path.stem}::{item.name}" for item in items}
    left_out = [item for item in items if any(_begins(names[item], name) for name in NOT_APPLICABLE)]
    config.hook.pytest_deselected(items=left_out)
    items[:] = [item for item in items if item not in left_out]
    for item in items:
        if reason := FAILURES.get(names[item]):
            item.add_marker(pytest.mark.xfail(reason=reason, strict=True))
    if not config.getoption("keyword"):
        unknown = [*_unknown(FAILURES, names.values()), *_unknown(NOT_APPLICABLE, names.values())]
        if unknown:
            raise pytest.UsageError(f"the list names tests that are not there: {unknown}")


def _begins(name: str, listed: str) -> bool:
    return name == listed or name.startswith(f"{listed}[")


def _unknown(listed: dict[str, str], names: object) -> Iterator[str]:
    known = list(names)  # type: ignore[call-overload]
    return (one for one in listed if not any(_begins(name, one) for name in known))


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item: pytest.Item) -> None:
    if isinstance(item, pytest.Function) and inspect.iscoroutinefunction(item.obj):
        item.obj = in_guest(item.obj)

"""Tests of other suites, for a module that runs them in front of another kind of guest."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping
    from types import ModuleType

__all__ = ["taken_from"]


def taken_from(suites: Mapping[ModuleType, Collection[str]]) -> dict[str, Any]:
    """The tests of these modules by their names, without those that are named for each."""
    for suite, others in suites.items():
        assert all(hasattr(suite, name) for name in others), "a test that is left out is there"
    return {
        name: test
        for suite, others in suites.items()
        for name, test in vars(suite).items()
        if name.startswith("test_") and name not in others
    }

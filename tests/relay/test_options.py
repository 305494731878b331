"""The options of a relay: what is refused, and what the server is given."""

from __future__ import annotations

import os
from typing import Any

import pytest

from trio_console import ClientLimits, Log, RelayOptions, Rights
from trio_console._relay.options import SlowClient


@pytest.mark.parametrize(
    ("arguments", "why"),
    [
        ({"slow_client": "shoot"}, "slow_client must be 'cut', 'pause' or 'drop', not 'shoot'"),
        ({"slow_client_timeout": 0.0}, "slow_client_timeout must be above 0 seconds"),
        ({"limits": ClientLimits(queued_bytes=8191)}, "limits.queued_bytes must be at least 8192, not 8191"),
        ({"limits": ClientLimits(sessions=4001)}, "limits.sessions must be at most 4000, not 4001"),
    ],
    ids=str,
)
def test_an_option_that_makes_no_sense_is_refused(arguments: dict[str, Any], why: str) -> None:
    with pytest.raises(ValueError, match=why):
        RelayOptions(**arguments)


@pytest.mark.parametrize("rights", [{"root": Rights()}, {0: "everything"}], ids=str)
def test_rights_are_of_user_ids(rights: Any) -> None:
    with pytest.raises(TypeError, match="rights must be a mapping of user ids to Rights"):
        RelayOptions(rights=rights)


def test_the_bounds_of_the_bounds_are_allowed() -> None:
    options = RelayOptions(limits=ClientLimits(queued_bytes=8192, sessions=4000), slow_client_timeout=0.001)
    limits = options._for_server().limits
    assert (limits.client_budget, limits.sessions) == (8192, 4000)


@pytest.mark.parametrize("name", ["sessions", "queued_bytes"])
def test_a_limit_below_one_is_refused(name: str) -> None:
    with pytest.raises(ValueError, match=f"{name} must be at least 1"):
        ClientLimits(**{name: 0})
    assert getattr(ClientLimits(**{name: 1}), name) == 1


@pytest.mark.parametrize("bound", ["max_bytes", "backups"])
def test_a_log_that_keeps_nothing_is_refused(bound: str) -> None:
    with pytest.raises(ValueError, match="at least 1"):
        Log("log", **{bound: 0})
    assert getattr(Log("log", **{bound: 1}), bound) == 1


def test_a_right_to_files_is_one_of_three() -> None:
    with pytest.raises(ValueError, match="files must be"):
        Rights(files="delete")  # type: ignore[arg-type]
    assert [Rights(files=files).files for files in ("write", "read", None)] == ["write", "read", None]


def test_by_default_ones_own_user_may_do_everything() -> None:
    assert dict(RelayOptions().rights) == {os.geteuid(): Rights()}
    assert Rights() == Rights(run=True, files="write", tcp=True, shutdown=True)


def test_options_do_not_change_with_the_mapping_they_were_made_of() -> None:
    rights = {1: Rights()}
    options = RelayOptions(rights=rights)
    rights[2] = Rights()
    assert list(options.rights) == [1]
    with pytest.raises(TypeError):
        options.rights[2] = Rights()  # type: ignore[index]


@pytest.mark.parametrize("budget", [8192, 1 << 22, 1 << 30])
def test_the_budget_of_one_client_stays_below_that_of_all(budget: int) -> None:
    limits = RelayOptions(limits=ClientLimits(queued_bytes=budget))._for_server().limits
    assert limits.client_budget == budget < limits.total_budget


@pytest.mark.parametrize("name", ["cut", "pause", "drop"])
def test_a_policy_is_known_by_its_name(name: Any) -> None:
    assert RelayOptions(slow_client=name)._for_server().slow_client is SlowClient(name)

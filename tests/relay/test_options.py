"""The options of a relay: what is refused, and what the server is given."""

from __future__ import annotations

import os
from typing import Any

import pytest

from trio_console import ClientLimits, Log, RelayOptions, Rights
from trio_console._relay.options import SlowClient
from trio_console._relay.router.limits import RouterLimits


@pytest.mark.parametrize(
    ("arguments", "why"),
    [
        ({"slow_client": "shoot"}, "slow_client must be 'cut', 'pause' or 'drop', not 'shoot'"),
        ({"slow_client_timeout": 0.0}, "slow_client_timeout must be above 0 seconds"),
        ({"clients": 0}, "clients must be between 1 and 128, not 0"),
        ({"clients": 129}, "clients must be between 1 and 128, not 129"),
        ({"clients_per_uid": 0}, "clients_per_uid must be between 1 and 128, not 0"),
        ({"clients_per_uid": 129}, "clients_per_uid must be between 1 and 128, not 129"),
        ({"idle_timeout": 0}, "idle_timeout must be above 0 seconds, or None, not 0"),
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
    for number in (1, 128):
        limits = RelayOptions(clients=number, clients_per_uid=number)._for_server().limits
        assert (limits.clients, limits.clients_per_user) == (number, number)
    assert RelayOptions(slow_client_timeout=0.001, idle_timeout=0.001)._for_server().idle_timeout == 0.001


LEAST = {"sessions": 1, "processes": 1, "handles": 1, "queued_bytes": 8192, "frames_per_second": 1}


@pytest.mark.parametrize(("name", "least"), LEAST.items())
def test_a_limit_below_its_least_is_refused(name: str, least: int) -> None:
    with pytest.raises(ValueError, match=f"{name} must be at least {least}, or None, not {least - 1}"):
        ClientLimits(**{name: least - 1})
    for number in (least, least + 1):
        assert getattr(ClientLimits(**{name: number}), name) == number


def test_the_server_gets_the_limits_of_a_client_and_of_a_user() -> None:
    own = ClientLimits(sessions=1, processes=2, handles=3, queued_bytes=10_004, frames_per_second=5)
    users = ClientLimits(sessions=6, processes=7, handles=8, queued_bytes=10_009, frames_per_second=10)
    served = RelayOptions(limits=own, uid_limits=users)._for_server()
    assert (*served.limits.client, served.limits.client_budget, served.client_frames_per_second) == (
        *(1, 2, 3, 10_004, 5),
    )
    assert (*served.limits.user, served.limits.user_budget, served.user_frames_per_second) == (6, 7, 8, 10_009, 10)


def test_without_limits_there_are_only_the_relays_own() -> None:
    served = RelayOptions()._for_server()
    assert served.limits == RouterLimits()
    assert served.client_frames_per_second is served.user_frames_per_second is served.idle_timeout is None


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

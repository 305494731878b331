"""Clones of a machine that was started once: nothing that must be one's own is common to two of them."""

from __future__ import annotations

import hashlib
import time
from dataclasses import replace
from typing import TYPE_CHECKING

import msgspec
import pytest
import trio

from tests.guests.machine.test_minimal import output
from trio_console import MicroVMGuest, Root, open_guest
from trio_console._guests.machine.saved import template
from trio_console._guests.machine.stock import cache as stock_cache
from trio_console._guests.machine.stock.cache import directory
from trio_console._guests.machine.view import view_of

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from trio_console._guests.machine.qemu import Plan
    from trio_console._guests.machine.view import View
    from trio_console._guests.roots import Share
    from trio_console._machine.welcome import Layout

pytestmark = pytest.mark.usefixtures("machines", "no_process_is_left")

#: Seconds for a machine to start on a busy machine; less than pytest's own limit.
BOOT = 100.0

#: What no two machines may have in common.
OWN = """\
cat /proc/sys/kernel/random/boot_id /proc/sys/kernel/random/uuid /etc/machine-id /etc/hostname
python3 -c 'print(hash("text"))'
dd if=/dev/urandom bs=16 count=1 2>/dev/null | sha256sum
mktemp -u
"""

SPEC = MicroVMGuest(root=Root.MINIMAL, accel="tcg")


@pytest.fixture
def cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """A cache with nothing in it but kernels."""
    kernels = directory() / "kernels"
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    directory().mkdir()
    (directory() / "kernels").symlink_to(kernels)
    return directory()


async def test_clones_have_nothing_in_common_that_must_be_ones_own() -> None:
    async with open_guest(SPEC, launch_timeout=BOOT) as one, open_guest(SPEC, launch_timeout=BOOT) as other:
        assert one.machine is not None
        assert one.machine.cloned
        assert list(one.machine.seconds) == ["prepare", "load", "ready"]
        first, second = [(await output(guest, OWN)).splitlines() for guest in (one, other)]
        assert len(first) == len(second) == 7
        assert not set(first) & set(second)
        assert abs(float(await output(other, "date +%s.%N")) - time.time()) < 5


async def test_a_template_is_made_once_by_two_that_want_it(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = []
    make = template._make

    async def counted(*arguments: object) -> None:
        made.append(arguments)
        await make(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(template, "_make", counted)
    async with trio.open_nursery() as nursery:
        for _ in range(2):
            nursery.start_soon(_open)
    assert len(made) == 1


async def _open() -> None:
    async with open_guest(SPEC, launch_timeout=BOOT) as guest:
        assert guest.machine is not None
        assert guest.machine.cloned


async def test_a_clone_does_not_harm_its_template() -> None:
    await _open()
    before = _templates()
    async with open_guest(SPEC, launch_timeout=BOOT) as guest:
        await output(guest, "head -c 20000000 /dev/urandom > /tmp/file")
    after = _templates()  # another program may have made more
    common = before.keys() & after.keys()  # other programs may make templates, and remove old ones
    assert common
    assert {path: after[path] for path in common} == {path: before[path] for path in common}


async def test_a_clone_goes_on_when_its_template_is_removed(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stock_cache, "_RECENT", -1000.0)
    async with open_guest(SPEC, launch_timeout=BOOT) as guest:
        stock_cache._trim(cache / "templates", 0)
        assert not _templates()
        assert await output(guest, "head -c 20000000 /dev/urandom > /tmp/file; python3 -c 'print(6*7)'") == "42"


def _templates() -> dict[Path, str]:
    files = [path for path in (directory() / "templates").glob("*/*") if path.parent.suffix != ".new"]
    return {path: hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


async def test_a_clone_sees_what_has_changed_of_this_machine_since_its_template_was_made(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async with open_guest(MicroVMGuest(accel="tcg"), launch_timeout=BOOT):
        pass
    seen: list[Layout] = []

    def changed(root: Root, shares: Mapping[str, Share]) -> View:
        view = view_of(root, shares)
        assert view.layout is not None
        links = {**view.layout.links, "/etc/alternatives/added": "/usr/bin/added", "/etc/os-release": "changed"}
        links.pop("/sbin")
        seen.append(msgspec.structs.replace(view.layout, links={**links, "/bin2": "usr/bin"}))
        return replace(view, layout=seen[-1])

    monkeypatch.setattr("trio_console._guests.machine.guest.view_of", changed)
    async with open_guest(MicroVMGuest(accel="tcg"), launch_timeout=BOOT) as guest:
        assert guest.machine is not None
        assert guest.machine.cloned
        assert await output(guest, "readlink /etc/alternatives/added /etc/os-release /bin2") == (
            "/usr/bin/added\nchanged\nusr/bin"
        )
        assert await output(guest, "ls -d /sbin 2>/dev/null; ls /etc/alternatives | wc -l") == str(
            sum(path.startswith("/etc/alternatives/") for path in seen[0].links)
        )


async def test_a_template_that_cannot_be_loaded_is_made_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    states = []

    async def noted(plan: Plan, model: str, layout: Layout | None) -> Path:
        place = await template.template_of(plan, model, layout)
        states.append(place / "state")
        return place

    monkeypatch.setattr("trio_console._guests.machine.guest.template_of", noted)
    await _open()
    good = states[0].read_bytes()
    states[0].write_bytes(good[: len(good) // 2])
    async with open_guest(SPEC, launch_timeout=BOOT) as guest:
        assert guest.machine is not None
        assert guest.machine.attempts == 2
    assert set(states) == {states[0]}
    assert len(states[0].read_bytes()) > len(good) // 2

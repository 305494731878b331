"""A machine with this machine's programs and with shares: it sees what was named, and nothing else."""

from __future__ import annotations

import errno
import os
from typing import TYPE_CHECKING

import pytest

from tests.guests.machine.test_minimal import output

if TYPE_CHECKING:
    from pathlib import Path

    from tests.guests.machine.conftest import Served
    from trio_console import Guest


async def test_this_machines_programs_run_there(sharing: Guest) -> None:
    assert await output(sharing, "perl -e 'print 6*7'") == "42"


async def test_programs_with_alternatives_run_there(sharing: Guest) -> None:
    assert await output(sharing, "awk 'BEGIN { print 6*7 }'") == "42"


async def test_what_is_written_beside_programs_stays_there(sharing: Guest) -> None:
    await sharing.path("/usr/written-in-a-guest").write_text("x")
    assert await sharing.path("/usr/written-in-a-guest").exists()
    assert "written-in-a-guest" not in os.listdir("/usr")


async def test_settings_and_secrets_of_this_machine_are_not_seen(sharing: Guest) -> None:
    assert not await sharing.path("/etc/shadow").exists()
    assert not await sharing.path("/etc/ssh").exists()
    assert list(await sharing.path("/home").iterdir()) == []


async def test_a_share_is_read(sharing: Guest, sharing_machine: Served) -> None:
    (sharing_machine.read_only / "file").write_text("of this machine")
    assert await sharing.path("/mnt/ro/file").read_text() == "of this machine"


async def test_a_share_is_not_written(sharing: Guest, sharing_machine: Served) -> None:
    with pytest.raises(OSError) as info:
        await sharing.path("/mnt/ro/new").write_text("x")
    assert info.value.errno == errno.EROFS
    # A machine that takes the right to write gets no further: QEMU refuses.
    script = "mount -o remount,rw /mnt/ro && touch /mnt/ro/x || true"
    assert "Read-only file system" in await output(sharing, script)
    assert not (sharing_machine.read_only / "x").exists()


async def test_a_writable_share_is_written(sharing: Guest, sharing_machine: Served) -> None:
    await sharing.path("/mnt/rw/new").write_text("of the guest")
    assert (sharing_machine.writable / "new").read_text() == "of the guest"


async def test_a_change_on_this_machine_is_seen_in_a_writable_share(
    sharing: Guest, sharing_machine: Served
) -> None:
    path = sharing_machine.writable / "changing"
    for text in ("one", "another"):
        path.write_text(text)
        assert await sharing.path("/mnt/rw/changing").read_text() == text


async def test_a_link_does_not_lead_out_of_a_share(
    sharing: Guest, sharing_machine: Served, tmp_path: Path
) -> None:
    (tmp_path / "secret").write_text("secret")
    (sharing_machine.writable / "link").symlink_to(tmp_path / "secret")
    with pytest.raises(FileNotFoundError):
        await sharing.path("/mnt/rw/link").read_text()


async def test_no_parent_leads_out_of_a_share(sharing: Guest) -> None:
    assert await output(sharing, "ls -A /mnt/rw/../..") == await output(sharing, "ls -A /")

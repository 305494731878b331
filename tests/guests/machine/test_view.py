"""What a machine is told to mount, make and link of a system."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from trio_console import Root, Share
from trio_console._guests.machine.view import Shared, view_of
from trio_console._machine.welcome import Mount

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture
def system(tmp_path: Path) -> Path:
    for name in ("usr/bin", "lib64", "etc/alternatives", "etc/ssh", "home"):
        (tmp_path / name).mkdir(parents=True)
    (tmp_path / "bin").symlink_to("usr/bin")
    (tmp_path / "etc/alternatives/awk").symlink_to("/usr/bin/mawk")
    (tmp_path / "etc/ld.so.cache").write_bytes(b"libraries")
    (tmp_path / "etc/shadow").write_bytes(b"secrets")
    return tmp_path


def test_directories_of_programs_are_shared_and_links_are_made(system: Path) -> None:
    view = view_of(Root.HOST, {}, str(system))
    assert view.layout is not None
    assert view.layout.lower == (Mount("root0", "/usr"), Mount("root2", "/lib64"))
    assert [each.path for each in view.shared] == [str(system / "usr"), str(system / "lib64")]
    assert not any(each.writable for each in view.shared)
    assert view.layout.links == {"/bin": "usr/bin", "/etc/alternatives/awk": "/usr/bin/mawk"}
    assert view.layout.files == {"/etc/ld.so.cache": b"libraries"}


def test_a_machine_without_programs_of_this_one_sees_nothing(system: Path) -> None:
    view = view_of(Root.MINIMAL, {}, str(system))
    assert not any([view.shared, view.layout, view.mounts])


def test_shares_are_mounted_where_they_were_named(tmp_path: Path) -> None:
    view = view_of(Root.MINIMAL, {"/a": Share(tmp_path), "/b": Share(tmp_path, writable=True)})
    assert view.mounts == (Mount("share0", "/a"), Mount("share1", "/b", writable=True))
    assert view.shared == [Shared("share0", str(tmp_path), False), Shared("share1", str(tmp_path), True)]


def test_a_share_that_is_missing_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="missing"):
        view_of(Root.MINIMAL, {"/a": Share(tmp_path / "missing")})


def test_a_share_that_is_a_file_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(NotADirectoryError, match="only directories"):
        view_of(Root.MINIMAL, {"/a": Share(tmp_path / "file")})

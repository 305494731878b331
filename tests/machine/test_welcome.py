"""The settings of a machine, as they come before the first frame."""

from __future__ import annotations

import io

import msgspec
import pytest

from trio_console._machine.welcome import LARGEST_WELCOME, Layout, Mount, Welcome, pack, unpack

LAYOUT = Layout(
    lower=(Mount("root0", "/usr"),),
    links={"/bin": "usr/bin", "/etc/awk": "/usr/bin/mawk"},
    files={"/etc/x": b"\0\xff", "/etc/y": b""},
)

WELCOME = Welcome(
    seed=bytes(range(256)),
    time_ns=1,
    hostname="name",
    machine_id="0" * 32,
    env={"A": "ü\n"},
    user="nobody",
    changes=Layout(gone=("/bin",)),
    mounts=(Mount("share0", "/mnt", writable=True),),
    ports=("a", "b"),
)


@pytest.mark.parametrize("said", [WELCOME, LAYOUT])
def test_settings_come_as_they_were_sent(said: Layout | Welcome) -> None:
    assert unpack(io.BytesIO(pack(said)).read) == said


def test_a_layout_is_no_other_than_itself() -> None:
    assert LAYOUT.since(msgspec.structs.replace(LAYOUT)) is None


def test_only_what_has_changed_of_a_layout_is_made_anew() -> None:
    now = Layout(
        lower=LAYOUT.lower,
        links={"/bin": "usr/bin", "/etc/awk": "/usr/bin/gawk", "/etc/y": "x", "/lib": "usr/lib"},
        files={"/etc/z": b"new"},
    )
    assert now.since(LAYOUT) == Layout(
        links={"/etc/awk": "/usr/bin/gawk", "/etc/y": "x", "/lib": "usr/lib"},
        files={"/etc/z": b"new"},
        gone=("/etc/awk", "/etc/x", "/etc/y"),
    )


def test_no_byte_behind_settings_is_read() -> None:
    stream = io.BytesIO(pack(WELCOME) + b"frames")
    assert unpack(lambda count: stream.read(min(count, 7))) == WELCOME
    assert stream.read() == b"frames"


@pytest.mark.parametrize("length", [0, 3, 4, 20])
def test_settings_that_are_cut_off_are_none(length: int) -> None:
    assert unpack(io.BytesIO(pack(WELCOME)[:length]).read) is None


def test_settings_of_another_program_are_refused() -> None:
    with pytest.raises(ValueError, match="no host of ours"):
        unpack(io.BytesIO((LARGEST_WELCOME + 1).to_bytes(4, "big")).read)


def test_settings_that_are_too_long_are_refused_where_they_are_made() -> None:
    with pytest.raises(ValueError, match="the settings of a machine"):
        pack(Welcome(b"", 0, "", "", {"A": "x" * LARGEST_WELCOME}))

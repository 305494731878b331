"""The first program of a machine: what it does to the kernel, with the calls taken down in place of done."""

from __future__ import annotations

import errno
import fcntl
import math
import os
import random
import signal
import socket
import struct
import time
from typing import TYPE_CHECKING, Any

import msgspec
import pytest
import trio
import trio.testing

from trio_console._machine.welcome import Layout, Welcome
from trio_console.agent import _init, _serve
from trio_console.agent._process.spawn import Child, spawn
from trio_console.agent._serve import AgentOptions, Lasting
from trio_console.agent._system import boot, rehearsal
from trio_console.agent._system.boot import BootError

if TYPE_CHECKING:
    from pathlib import Path

    from trio_console import _wire as wire

WELCOME = Welcome(seed=bytes(range(64)), time_ns=7, hostname="name", machine_id="0" * 32, env={})


def test_a_machine_is_unlike_others_before_anything_else(monkeypatch: pytest.MonkeyPatch) -> None:
    # That two machines differ does not show it: the kernel takes some bytes of its own from the clock, soon.
    done: list[tuple[Any, ...]] = []
    monkeypatch.setattr(fcntl, "ioctl", lambda _file, *arguments: done.append(arguments))
    monkeypatch.setattr(random, "seed", lambda: done.append(("seed",)))
    monkeypatch.setattr(time, "clock_settime_ns", lambda *arguments: done.append(arguments))
    monkeypatch.setattr(socket, "sethostname", lambda name: done.append((name,)))
    _init._be_unlike_others(WELCOME)
    assert done == [
        (_init._RNDADDENTROPY, struct.pack("ii", 512, 64) + WELCOME.seed),
        (_init._RNDRESEEDCRNG,),
        ("seed",),
        (time.CLOCK_REALTIME, 7),
        ("name",),
    ]


def test_a_copy_that_has_no_room_for_its_names_goes_on_and_says_so(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def full(*_arguments: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "/etc/hostname")

    monkeypatch.setattr(_init, "_write", full)
    _init._rename(WELCOME, "former")
    assert "No space left on device: '/etc/hostname'" in capsys.readouterr().err


@pytest.mark.parametrize(("on_disk", "done"), [(False, ["disk", "furnish"]), (True, ["furnish"])])
def test_a_machine_that_was_not_told_of_its_disk_by_the_kernel_learns_of_it_from_its_host(
    monkeypatch: pytest.MonkeyPatch, on_disk: bool, done: list[str]
) -> None:
    seen: list[str] = []
    welcome = msgspec.structs.replace(WELCOME, disk=True)
    assert settled(monkeypatch, [welcome], seen, on_disk=on_disk) == []
    assert seen == done


def settled(
    monkeypatch: pytest.MonkeyPatch, said: list[Layout | Welcome], done: list[Any], *, on_disk: bool = False
) -> list[Layout | Welcome]:
    """Let a machine hear a host, and take down what it does; returns what it has not heard."""
    left = list(said)
    alarms: list[int] = []

    def next_said(_port: int) -> Layout | Welcome:
        assert alarms == [_init._HOSTLESS_TIME], "a machine whose host does not come ends"
        return left.pop(0)

    monkeypatch.setattr(_init, "_wait_for_host", next_said)
    monkeypatch.setattr(_init, "_be_unlike_others", lambda _welcome: None)
    monkeypatch.setattr(_init, "_change_to_disk", lambda: done.append("disk"))
    monkeypatch.setattr(_init, "_lay_out", lambda layout: done.append(("lay out", layout)))
    monkeypatch.setattr(_init, "_change_root", lambda *layouts: done.append(("root", *layouts)))
    monkeypatch.setattr(_init, "_furnish", lambda _welcome: done.append("furnish"))
    monkeypatch.setattr(os, "set_blocking", lambda *_arguments: None)
    monkeypatch.setattr(os, "environ", {})
    monkeypatch.setattr(signal, "alarm", alarms.append)
    _init._Settling(on_disk=on_disk).settle(0)
    assert alarms[1:] == [0], "one that has come may be silent for as long as it likes"
    return left


def test_a_machine_lays_its_root_directory_out_as_soon_as_it_knows_how(monkeypatch: pytest.MonkeyPatch) -> None:
    layout, changes = Layout(links={"/bin": "usr/bin"}), Layout(gone=("/bin",))
    done: list[Any] = []
    said = [layout, msgspec.structs.replace(WELCOME, changes=changes)]
    assert settled(monkeypatch, said, done) == []
    assert done == [("lay out", layout), ("root", layout, changes), "furnish"]


async def test_a_machine_has_run_a_command_before_its_first_host_comes(monkeypatch: pytest.MonkeyPatch) -> None:
    started: list[str] = []

    def noted(request: wire.ExecRequest, *arguments: Any) -> Child:
        started.append(request.cmd)
        return spawn(request, *arguments)

    monkeypatch.setattr(_serve, "spawn", noted)
    lasting = await _init._rehearsed(AgentOptions())
    assert started == ["true"]
    assert lasting.goes_on
    assert lasting.births is not None
    await lasting.births.end()


async def test_nothing_of_an_image_is_run_before_a_host_comes(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    done: list[str] = []

    async def rehearsed(_options: AgentOptions) -> Lasting:
        done.append("rehearsal")
        return Lasting()

    monkeypatch.setattr(_init, "_rehearsed", rehearsed)
    monkeypatch.setattr(_init, "_is_on_disk", lambda: True)
    monkeypatch.setattr(_init, "_change_to_disk", lambda: done.append("disk"))
    with pytest.raises(FileNotFoundError):
        await _init._serve_hosts(str(tmp_path / "port"), AgentOptions, 0)
    assert done == ["rehearsal", "disk"]


async def test_a_machine_that_cannot_rehearse_starts_all_the_same(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    async def fail(*_arguments: object, **_more: object) -> None:
        raise BootError("no reason")

    monkeypatch.setattr(_serve, "boot", fail)
    lasting = await _init._rehearsed(AgentOptions())
    assert not lasting.goes_on
    assert lasting.births is None
    assert "no reason" in capsys.readouterr().err


async def test_a_rehearsal_that_hangs_is_ended(
    monkeypatch: pytest.MonkeyPatch, autojump_clock: trio.testing.MockClock
) -> None:
    async def hang(stream: trio.abc.Stream) -> None:
        async with stream:
            await trio.sleep_forever()

    monkeypatch.setattr(rehearsal, "rehearse", hang)
    monkeypatch.setattr(boot, "BOOT_TIMEOUT", math.inf)
    began = trio.current_time()
    lasting = await _init._rehearsed(AgentOptions())
    assert trio.current_time() - began == _init._REHEARSAL_TIME
    assert not lasting.goes_on
    assert lasting.births is None


def test_what_has_changed_of_a_layout_replaces_what_was_there(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(_init, "_NEW_ROOT", str(tmp_path))
    _init._put(Layout(links={"/bin": "usr/bin", "/etc/a/x": "old"}, files={"/etc/y": b"old", "/etc/z": b""}))
    assert (os.readlink(tmp_path / "bin"), os.readlink(tmp_path / "etc/a/x")) == ("usr/bin", "old")
    assert (tmp_path / "etc/y").read_bytes() == b"old"
    gone = ("/bin", "/etc/a/x", "/etc/y")
    _init._put(Layout(links={"/etc/a/x": "new", "/etc/y": "link"}, files={"/bin": b"file"}, gone=gone))
    assert (os.readlink(tmp_path / "etc/y"), os.readlink(tmp_path / "etc/a/x")) == ("link", "new")
    assert (tmp_path / "bin").read_bytes() == b"file"
    assert (tmp_path / "etc/z").read_bytes() == b""

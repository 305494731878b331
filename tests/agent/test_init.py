"""The first program of a machine: what it does to the kernel, with the calls taken down in place of done."""

from __future__ import annotations

import fcntl
import random
import socket
import struct
import time
from typing import TYPE_CHECKING, Any

from trio_console._machine.welcome import Welcome
from trio_console.agent import _init

if TYPE_CHECKING:
    import pytest


def test_a_machine_is_unlike_others_before_anything_else(monkeypatch: pytest.MonkeyPatch) -> None:
    # That two machines differ does not show it: the kernel takes some bytes of its own from the clock, soon.
    done: list[tuple[Any, ...]] = []
    monkeypatch.setattr(fcntl, "ioctl", lambda _file, *arguments: done.append(arguments))
    monkeypatch.setattr(random, "seed", lambda: done.append(("seed",)))
    monkeypatch.setattr(time, "clock_settime_ns", lambda *arguments: done.append(arguments))
    monkeypatch.setattr(socket, "sethostname", lambda name: done.append((name,)))
    seed = bytes(range(64))
    _init._be_unlike_others(Welcome(seed=seed, time_ns=7, hostname="name", machine_id="0" * 32, env={}))
    assert done == [
        (_init._RNDADDENTROPY, struct.pack("ii", 512, 64) + seed),
        (_init._RNDRESEEDCRNG,),
        ("seed",),
        (time.CLOCK_REALTIME, 7),
        ("name",),
    ]

"""Signals to a command."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import pytest
import trio

from tests.tools.limits import HANG
from trio_console import _wire as wire

if TYPE_CHECKING:
    from tests.agent._host import Host


@pytest.mark.parametrize("tty", [False, True])
async def test_a_signal_reaches_the_whole_group(host: Host, tty: bool) -> None:
    sid = await host.start("/bin/sh", "-c", "sleep 61 & (sleep 62 & wait) & echo $!; wait", tty=tty)
    await host.read_stdout(sid, b"\n")
    await host.send(wire.ExecSignal(15), sid)
    # Both outputs end only when no process of the group is left.
    assert (await host.collect(sid)).last == wire.ExecExited(code=-1, signal=15)


async def test_grandchildren_are_gone_after_a_kill(host: Host) -> None:
    sid = await host.start("/bin/sh", "-c", "(sleep 63 & echo $!; wait) & wait")
    grandchild = int(await host.read_stdout(sid, b"\n"))
    watched = os.pidfd_open(grandchild)
    try:
        await host.send(wire.ExecSignal(9), sid)
        await host.collect(sid)
        with trio.fail_after(HANG):
            await trio.lowlevel.wait_readable(watched)
    finally:
        os.close(watched)


async def test_a_signal_right_behind_the_request_is_not_lost(host: Host) -> None:
    for _ in range(20):
        await host.request("sleep", "60", sid=5)
        await host.send(wire.ExecSignal(9), 5)
        outcome = await host.collect(5)
        assert isinstance(outcome.messages[0], wire.ExecStarted)
        assert outcome.last == wire.ExecExited(code=-1, signal=9)


@pytest.mark.parametrize("number", [0, -9, 32, 64, 1000])
async def test_a_number_that_is_no_plain_signal_is_ignored(host: Host, number: int) -> None:
    sid = await host.start("cat")
    await host.send(wire.ExecSignal(number), sid)
    await host.send(wire.ExecStdin(b""), sid)
    assert (await host.collect(sid)).messages == [wire.ExecExited(code=0)]


async def test_a_signal_for_nobody_is_ignored(host: Host) -> None:
    await host.send(wire.ExecSignal(9), 77)
    assert await host.nothing_for(77)


async def test_a_stopped_command_can_be_killed(host: Host) -> None:
    sid = await host.start("sleep", "60")
    await host.send(wire.ExecSignal(19), sid)
    assert await host.nothing_for(sid)
    await host.send(wire.ExecSignal(9), sid)
    assert (await host.collect(sid)).last.signal == 9

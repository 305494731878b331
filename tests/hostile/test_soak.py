"""The short hostile soak."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import trio

from tests.hostile._soak import hostile_soak
from tests.soak._soak import until_none
from tests.tools.leftovers import marked, marking
from tests.tools.limits import HANG


async def test_honest_clients_lose_nothing_beside_hostile_ones() -> None:
    figures = await hostile_soak(4.0, seed=1)
    assert figures.done
    assert figures.attacks


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
async def test_no_attack_outlives_a_soak_that_is_ended(number: signal.Signals, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "tests.hostile", "60", "--quiet", "0"]
    with marking() as mark:
        soak = await trio.lowlevel.open_process(
            command,
            env={**os.environ, "TMPDIR": str(tmp_path)},
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        try:
            with trio.fail_after(HANG):
                while not attackers(mark):
                    await trio.sleep(0.05)
        finally:
            soak.send_signal(number)
        await soak.wait()
        if number == signal.SIGTERM:
            await until_none(lambda: marked(mark), "processes of the soak are left")
            return
        await until_none(lambda: attackers(mark), "hostile clients are left")
        for relay in running(mark, b"relay"):
            os.kill(relay, signal.SIGTERM)  # it serves until somebody ends it, as relays do
        await until_none(lambda: marked(mark), "processes of the relay are left")


def attackers(mark: str) -> set[int]:
    return running(mark, b"tests.hostile._attackers")


def running(mark: str, argument: bytes) -> set[int]:
    """Processes with a mark that have this among their arguments."""
    return {pid for pid in marked(mark) if argument in arguments(pid)}


def arguments(pid: int) -> list[bytes]:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
    except OSError:
        return []  # it has gone

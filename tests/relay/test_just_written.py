"""A program that a client of a relay has just written can be run, whatever other clients start meanwhile."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import trio

from tests.faults._guests import InProcessGuest
from tests.tools.leftovers import children
from tests.tools.limits import HANG
from trio_console import connect_guest, open_guest
from trio_console.agent import _serve
from trio_console.agent._process import spawn as spawn_module
from trio_console.agent._process.spawn import Child, StartError, spawn

if TYPE_CHECKING:
    from pathlib import Path

    import pytest

    from trio_console import _wire as wire


async def test_a_program_whose_writer_another_clients_start_still_holds_is_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Between its fork and its exec a starting process has copies of all descriptors of the agent."""
    gate, opener = os.pipe()
    attempts: list[str] = []
    in_child = spawn_module._InChild.__call__

    def wait_in_child(self: spawn_module._InChild) -> None:
        os.read(gate, 1)
        in_child(self)

    def watched(request: wire.ExecRequest, *args: object) -> Child:
        try:
            return spawn(request, *args)  # type: ignore[arg-type]
        except StartError as exc:
            attempts.append(exc.failure.errno_name or "")
            os.write(opener, b"x")  # the other start goes on
            raise

    monkeypatch.setattr(spawn_module._InChild, "__call__", wait_in_child)
    monkeypatch.setattr(_serve, "spawn", watched)
    monkeypatch.setattr(_serve, "_BUSY_TIME", HANG)
    relay, tool = tmp_path / "agent.sock", tmp_path / "tool"
    async with (
        open_guest(InProcessGuest(), relay_path=relay),
        connect_guest(relay) as client,
        connect_guest(relay) as other,
        trio.open_nursery() as nursery,
    ):
        async with await client.open_file(tool, "wb") as file:
            await file.write(b"#!/bin/sh\necho ran\n")
            await file.flush()
            # With a limit the child is not started by vfork, and runs some Python before its exec.
            nursery.start_soon(lambda: other.run_process(["true"], rlimits={"core": 0}))
            with trio.fail_after(HANG):
                while not any(has_open(pid, tool) for pid in children()):
                    await trio.sleep(0.001)
        await client.path(tool).chmod(0o755)
        done = await client.run_process([tool], capture_stdout=True)
    os.close(gate)
    os.close(opener)
    assert done.stdout == b"ran\n"
    assert "ETXTBSY" in attempts


def has_open(pid: int, path: Path) -> bool:
    folder = f"/proc/{pid}/fd"
    try:
        return str(path) in [os.readlink(f"{folder}/{fd}") for fd in os.listdir(folder)]
    except OSError:  # it has ended, or closes some
        return False

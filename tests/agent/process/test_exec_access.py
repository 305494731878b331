"""Files that a command may use: its own streams, the user's working directory, a program written just now."""

from __future__ import annotations

import os
import subprocess
from typing import TYPE_CHECKING

import pytest

from tests.agent._host import popen
from tests.tools.users import NOBODY, as_root, shared_directory
from trio_console import _wire as wire
from trio_console.agent import _serve
from trio_console.agent._process import spawn as spawn_module
from trio_console.agent._process.spawn import Child, StartError, spawn

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from tests.agent._host import Host


# The streams


@as_root
@pytest.mark.parametrize("tty", [False, True])
async def test_a_user_can_open_the_commands_streams_by_name(host: Host, tty: bool) -> None:
    script = "echo out >/dev/stdout; echo err >/dev/stderr; read line </dev/stdin; echo $line"
    sid = host.new_id()
    await host.request("/bin/sh", "-c", script, sid=sid, user=str(NOBODY), tty=tty)
    await host.send(wire.ExecStdin(b"in\n"), sid)
    outcome = await host.collect(sid)
    assert outcome.last == wire.ExecExited(0)
    lines = (outcome.stdout + outcome.stderr).split()
    assert set(lines) == {b"out", b"err", b"in"}


@as_root
async def test_the_null_device_stays_roots(host: Host) -> None:
    outcome = await host.run("true", user=str(NOBODY), stdio=wire.ExecStdio("null", "null", "null"))
    assert outcome.last == wire.ExecExited(0)
    assert os.stat(os.devnull).st_uid == 0


# The working directory


@pytest.fixture
def closed_to_the_agent(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A directory that only its user may enter: root has no privilege there, as on a network file system."""
    real = subprocess.Popen

    def refuse(*args: object, cwd: bytes | None = None, **options: object) -> object:
        if cwd is not None:
            raise PermissionError(13, "Permission denied", cwd)
        return real(*args, cwd=cwd, **options)  # type: ignore[call-overload]

    monkeypatch.setattr(spawn_module.subprocess, "Popen", refuse)
    with shared_directory() as cwd:
        yield cwd


@as_root
@pytest.mark.parametrize("tty", [False, True])
async def test_a_cwd_that_only_the_user_may_enter_is_entered(
    host: Host, closed_to_the_agent: Path, tty: bool
) -> None:
    outcome = await host.run("pwd", cwd=str(closed_to_the_agent), user=str(NOBODY), tty=tty)
    assert outcome.stdout.strip() == os.fsencode(closed_to_the_agent)


@as_root
async def test_a_cwd_that_neither_may_enter_is_named(host: Host, closed_to_the_agent: Path) -> None:
    closed_to_the_agent.chmod(0o700)
    failed = (await host.run("pwd", cwd=str(closed_to_the_agent), user=str(NOBODY))).last
    assert (failed.errno_name, failed.filename) == ("EACCES", str(closed_to_the_agent))


@as_root
async def test_a_missing_command_in_a_cwd_of_the_user_is_blamed_itself(
    host: Host, closed_to_the_agent: Path
) -> None:
    failed = (await host.run("/nonexistent", cwd=str(closed_to_the_agent), user=str(NOBODY))).last
    assert (failed.errno_name, failed.filename) == ("ENOENT", "/nonexistent")


# A program written just now


@pytest.fixture
def script(tmp_path: Path) -> Path:
    path = tmp_path / "script"
    path.write_bytes(b"#!/bin/sh\necho ran\n")
    path.chmod(0o755)
    return path


@pytest.fixture
def writer(script: Path) -> Iterator[subprocess.Popen[bytes]]:
    """Another process that has the script open for writing, as any child of a writer has until its exec."""
    with popen("sh", "-c", f"exec 3>>{script}; echo; read x", stdin=-1, stdout=-1) as process:
        assert process.stdout is not None
        process.stdout.readline()
        yield process
        process.kill()


async def test_a_program_that_another_fork_still_holds_is_tried_again(
    host: Host, script: Path, writer: subprocess.Popen[bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    attempts: list[str] = []

    def watched(request: wire.ExecRequest, *args: object) -> Child:
        try:
            return spawn(request, *args)  # type: ignore[arg-type]
        except StartError as exc:
            attempts.append(exc.failure.errno_name or "")
            writer.kill()  # so each attempt but the first one finds the script free
            writer.wait()
            raise

    monkeypatch.setattr(_serve, "spawn", watched)
    assert (await host.run(str(script))).stdout == b"ran\n"
    assert attempts == ["ETXTBSY"]


async def test_a_program_that_stays_open_for_writing_is_refused_in_the_end(
    host: Host, script: Path, writer: subprocess.Popen[bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_serve, "_BUSY_TIME", 0.01)
    failed = (await host.run(str(script))).last
    assert (failed.errno_name, failed.kind) == ("ETXTBSY", "not_executable")
    assert writer.poll() is None


async def test_a_command_that_is_cancelled_while_it_is_tried_again_is_not_started(
    host: Host, script: Path, writer: subprocess.Popen[bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_serve, "_BUSY_TIME", 1e9)
    sid = host.new_id()
    await host.request(str(script), sid=sid, ends=wire.ExecEnds(None))
    await host.send(wire.ExecKill(1000), sid)
    assert (await host.collect(sid)).last == wire.ExecFailed(kind="other", message="ended before it was started")
    assert writer.poll() is None

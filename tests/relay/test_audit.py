"""The audit log: what it records of clients, and that no client can push its traces out."""

from __future__ import annotations

import json
import os
import subprocess
from functools import partial
from typing import TYPE_CHECKING, Any

import pytest
import trio

from tests.relay.router._world import serving
from tests.relay.router.test_router_rights import options as open_options
from tests.tools.limits import HANG
from trio_console import Log, ProcessGuest, Relay, RelayOptions, Rights, connect_guest, open_guest, serve_relay
from trio_console import _wire as wire
from trio_console._relay import audit as _audit
from trio_console._relay.audit import AuditLog
from trio_console._relay.options import ServerOptions

if TYPE_CHECKING:
    from pathlib import Path

MIB = 1024 * 1024
ONE, OTHER = 1000, 2000  # users


def records(path: Path) -> list[dict[str, Any]]:
    files = sorted(path.parent.glob(f"{path.name}*"), key=lambda file: (len(file.name), file.name), reverse=True)
    return [json.loads(line) for file in files for line in file.read_bytes().splitlines()]


def events(path: Path, *names: str) -> list[dict[str, Any]]:
    return [record for record in records(path) if record["event"] in names]


async def written(log: AuditLog) -> None:
    """Let the log write what it has, and end it."""
    with trio.fail_after(HANG):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(log.run)
            await trio.lowlevel.checkpoint()
            nursery.cancel_scope.cancel()


def made(path: Path, max_bytes: int = 16 * MIB, backups: int = 4) -> AuditLog:
    log = AuditLog(path, max_bytes=max_bytes, backups=backups)
    log.connected(0, ONE, 11)
    log.connected(1, OTHER, 22)
    return log


# What is recorded


async def test_a_command_is_recorded_with_its_surroundings_and_without_its_secrets(tmp_path: Path) -> None:
    log = made(tmp_path / "log")
    request = wire.ExecRequest(
        "sh", ["-c", "true"], ["TOKEN=secret", "EMPTY=", "NONE"], cwd="/srv", user="nobody", tty=True
    )
    log.asked(0, 7, request)
    await written(log)
    [run] = events(tmp_path / "log", "run")
    assert run.pop("time").endswith("Z")
    assert run == {
        "event": "run",
        "client": 1,
        "uid": ONE,
        "pid": 11,
        "session": 1,
        "command": ["sh", "-c", "true"],
        "cwd": "/srv",
        "env": ["TOKEN", "EMPTY", "NONE"],
        "user": "nobody",
        "tty": True,
    }
    assert b"secret" not in (tmp_path / "log").read_bytes()


async def test_signals_and_ends_of_commands_are_recorded(tmp_path: Path) -> None:
    log = made(tmp_path / "log")
    for number in (7, 8):
        log.asked(0, number, wire.ExecRequest("x"))
    for message in (wire.ExecSignal(15), wire.ExecResize(1, 1), wire.ExecStdin(b"x"), wire.ExecKill(0)):
        log.said(8, message)
    log.said(99, wire.ExecSignal(9))
    log.said(7, wire.ExecFailed(kind="not_found", message="no such\x9bcommand"))
    log.said(8, wire.ExecExited(-1, 9))
    log.said(8, wire.ExecSignal(9))
    await written(log)
    got = [
        (one["event"], one["session"], one.get("signal") or one["how"])
        for one in events(tmp_path / "log", "signal", "ended")
    ]
    assert got == [
        ("signal", 2, 15),
        ("signal", 2, 9),
        ("ended", 1, "could not be started: no such\x9bcommand"),
        ("ended", 2, "killed by signal 9"),
    ]
    assert "\x9b".encode() not in (tmp_path / "log").read_bytes()


@pytest.mark.parametrize(
    ("op", "fields"),
    [
        (wire.OpStat("/a", True), {"op": "Stat", "path": "/a"}),
        (wire.OpRename("/a", "/b"), {"op": "Rename", "src": "/a", "dst": "/b"}),
        (wire.OpSymlink("/a", "/b"), {"op": "Symlink", "target": "/a", "link_path": "/b"}),
        (wire.OpMkdir("/a", 0o700), {"op": "Mkdir", "path": "/a", "mode": 0o700}),
        (
            wire.OpOpenFile("/a", open_options(read=True, create=True)),
            {"op": "OpenFile", "path": "/a", "access": ["read", "create"]},
        ),
        (wire.OpFSetStat(5, wire.SetAttrs()), {"op": "FSetStat", "handle": 5}),
    ],
    ids=lambda value: value["op"] if isinstance(value, dict) else "",
)
async def test_operations_on_files_are_recorded(tmp_path: Path, op: wire.FsOp, fields: dict[str, Any]) -> None:
    log = made(tmp_path / "log")
    log.asked(1, 7, wire.FsRequest(op))
    await written(log)
    [file] = events(tmp_path / "log", "file")
    del file["time"]
    assert file == {"event": "file", "client": 2, "uid": OTHER, "pid": 22, **fields}


async def test_what_is_done_with_an_open_file_is_not_recorded_unless_it_is_refused(tmp_path: Path) -> None:
    log = made(tmp_path / "log")
    ops: list[wire.FsOp] = [wire.OpRead(1, 0), wire.OpWrite(1, 0), wire.OpReadDir(1), wire.OpFStat(1)]
    for op in (*ops, wire.OpSeek(1, 0, "data"), wire.OpCloseHandle(1)):
        log.asked(0, 7, wire.FsRequest(op))
    log.refused(0, wire.FsRequest(wire.OpWrite(1, 0)), "no right")
    await written(log)
    assert not events(tmp_path / "log", "file")
    [refused] = events(tmp_path / "log", "refused")
    assert (refused["op"], refused["why"]) == ("Write", "no right")


async def test_names_that_are_not_utf_8_are_recorded_as_they_are(tmp_path: Path) -> None:
    log = made(tmp_path / "log")
    log.asked(0, 7, wire.FsRequest(wire.OpStat("/a\xff", True), octets=True))
    log.asked(0, 8, wire.ExecRequest("\xc3\xa4", ["\xff"], ["\xe4=1"], cwd="/\xff", octets=True))
    await written(log)
    [file], [run] = events(tmp_path / "log", "file"), events(tmp_path / "log", "run")
    assert file["path"] == "/a\udcff"
    assert (run["command"], run["env"], run["cwd"]) == (["ä", "\udcff"], ["\udce4"], "/\udcff")


async def test_connections_shutdowns_and_refusals_are_recorded(tmp_path: Path) -> None:
    log = made(tmp_path / "log")
    log.asked(0, 7, wire.TcpConnect("host", 80))
    log.asked(0, 0, wire.Shutdown())
    log.asked(0, 8, wire.Ping())
    log.refused(1, wire.TcpConnect("other", 81), "a")
    log.refused(1, wire.Shutdown(), "b")
    log.refused(1, wire.ExecRequest("cmd"), "c")
    log.not_admitted(3000, 33, "d")
    log.disconnected(0)
    await written(log)
    got = [{key: one[key] for key in one if key not in ("time", "pid")} for one in records(tmp_path / "log")[2:]]
    assert got[:3] == [
        {"event": "connect", "client": 1, "uid": ONE, "host": "host", "port": 80},
        {"event": "shutdown", "client": 1, "uid": ONE, "shutdown": True},
        {"event": "refused", "client": 2, "uid": OTHER, "why": "a", "host": "other", "port": 81},
    ]
    assert [(one["event"], one["uid"], one.get("why")) for one in got[3:]] == [
        ("refused", OTHER, "b"),
        ("refused", OTHER, "c"),
        ("refused", 3000, "d"),
        ("disconnected", ONE, None),
    ]


async def test_long_words_are_cut_and_that_is_said(tmp_path: Path) -> None:
    log = made(tmp_path / "log")
    log.asked(0, 7, wire.ExecRequest("x" * 4000, ["y" * 97, "z" * 1_000_000, "more", "and more"]))
    log.asked(0, 8, wire.FsRequest(wire.OpStat("p" * 5000, True)))
    await written(log)
    [run], [file] = events(tmp_path / "log", "run"), events(tmp_path / "log", "file")
    assert run["command"] == ["x" * 4000, "y" * 96 + "... (1 characters more)", "... (3 more)"]
    assert file["path"] == "p" * 4096 + "... (904 characters more)"


# Shares


async def test_a_user_who_does_very_much_pushes_out_nothing_that_was_recorded(tmp_path: Path) -> None:
    log = made(tmp_path / "log", max_bytes=32_000, backups=3)
    log.asked(0, 5, wire.ExecRequest("the first command"))
    log.asked(1, 6, wire.ExecRequest("another's command"))
    for number in range(20_000):
        log.asked(0, 7, wire.FsRequest(wire.OpStat(f"/{number}", True)))
        log.asked(0, 8, wire.TcpConnect("host", 1))
        log.connected(2, ONE, 11)
        log.disconnected(2)
        log.not_admitted(3000 + number, 1, "a stranger")
    log.asked(0, 9, wire.ExecRequest("a later command"))
    await written(log)
    commands = [one["command"][0] for one in events(tmp_path / "log", "run")]
    assert commands == ["the first command", "another's command", "a later command"]
    assert len(events(tmp_path / "log", "connected")) > 2
    left_out = {(one["uid"], one["of"]): one["records"] for one in events(tmp_path / "log", "left_out")}
    assert left_out.keys() == {(ONE, "files"), (ONE, "connections"), (ONE, "clients"), (-1, "clients")}
    for name, kind in (("file", "files"), ("connect", "connections")):
        assert len(events(tmp_path / "log", name)) + left_out[ONE, kind] == 20_000
    size = sum(file.stat().st_size for file in tmp_path.iterdir())
    assert size < 0.6 * 4 * 32_000  # of two users


@pytest.mark.parametrize(("size", "fits"), [(-1, True), (0, True), (1, False)])
def test_a_share_is_used_up_to_the_last_byte(size: int, fits: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_audit.time, "monotonic", lambda: 5.0)
    share = _audit._Share(1000)
    assert share.take(400)
    assert share.take(600 + size) is fits


def test_a_share_grows_again_in_a_day_and_no_larger(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 1000.0
    monkeypatch.setattr(_audit.time, "monotonic", lambda: now)
    share = _audit._Share(2400)
    assert share.take(2400)
    assert not share.take(1)
    now += 3600.0
    assert share.take(100)
    assert not share.take(1)
    now += 100 * 86_400.0
    assert share.take(2400)
    assert not share.take(1)


async def test_the_number_of_missing_records_is_told_before_the_next_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = 1000.0
    monkeypatch.setattr(_audit.time, "monotonic", lambda: now)
    log = made(tmp_path / "log", max_bytes=8000, backups=1)
    for _ in range(100):
        log.asked(0, 8, wire.TcpConnect("host", 1))
    now += 86_400
    log.asked(0, 8, wire.TcpConnect("last", 1))
    await written(log)
    told = events(tmp_path / "log", "left_out", "connect")
    assert [one["event"] for one in told[-2:]] == ["left_out", "connect"]
    assert told[-2]["records"] + len(told) - 2 == 100
    assert told[-1]["host"] == "last"


# A whole relay


async def test_a_relay_records_who_did_what_until_the_last_client_has_gone(tmp_path: Path) -> None:
    log, path = tmp_path / "log", tmp_path / "s"
    rights = {os.geteuid(): Rights(tcp=False, shutdown=False)}
    options = RelayOptions(rights=rights, audit_log=Log(log), session_log=tmp_path / "session")
    with trio.fail_after(HANG):
        async with trio.open_nursery() as nursery:
            relay: Relay = await nursery.start(partial(serve_relay, ProcessGuest(), path, options=options))
            async with connect_guest(path) as guest:
                await guest.run_process(["true"], env={"SECRET": "value"})
                await guest.path("/etc/hosts").read_bytes()
                with pytest.raises(PermissionError):
                    await guest.open_tcp_stream("127.0.0.1", 1)
                with pytest.raises(PermissionError):
                    await guest.shutdown()
                async with guest.open_process(["cat"], stdin=subprocess.PIPE) as process:
                    process.send_signal(15)
                    await process.wait()
                async with guest.open_process(["sleep", "1000"]):
                    nursery.cancel_scope.cancel()
    statistics = relay.statistics().audit_log
    assert statistics is not None
    assert statistics.records_written == len(records(log))
    assert statistics.records_dropped == statistics.bytes_queued == 0
    assert {(one["uid"], one["pid"]) for one in records(log)} == {(os.geteuid(), os.getpid())}
    got = [one["event"] for one in records(log)]
    assert got[0] == "connected"
    assert got[-1] == "disconnected"
    assert [one["command"][0] for one in events(log, "run")] == ["true", "cat", "sleep"]
    assert [one["session"] for one in events(log, "ended")] == [1, 2, 3]
    assert [one["signal"] for one in events(log, "signal")][:1] == [15]
    assert {one.get("path") for one in events(log, "file")} == {"/etc/hosts"}
    assert ["does not let this user" in one["why"] for one in events(log, "refused")] == [True, True]
    assert b"value" not in log.read_bytes()


async def test_the_ends_of_clients_are_recorded_also_if_the_relay_is_stopped_at_once(tmp_path: Path) -> None:
    log = AuditLog(tmp_path / "log", max_bytes=MIB, backups=1)
    async with serving(tmp_path, options=ServerOptions(audit_log=log)) as world:
        client = await world.connect()
        await client.send(wire.ExecRequest("sleep"), client.ids[0])
        await world.agent.expect(wire.ExecRequest)
        with trio.fail_after(HANG):
            while log.statistics().bytes_queued:  # so that the log has nothing to do when all is stopped
                await trio.sleep(0.001)
    await client.leave()
    assert [one["event"] for one in records(tmp_path / "log")] == ["connected", "run", "ended", "disconnected"]


async def test_this_programs_own_client_is_recorded_as_well(tmp_path: Path) -> None:
    options = RelayOptions(audit_log=tmp_path / "log")
    with trio.fail_after(HANG):
        async with open_guest(relay_path=tmp_path / "s", relay_options=options) as guest:
            await guest.run_process(["true"])
    assert [one["event"] for one in records(tmp_path / "log")][:2] == ["connected", "run"]


async def test_a_full_disk_costs_records_and_not_the_relay(tmp_path: Path) -> None:
    options = RelayOptions(audit_log="/dev/full")
    with trio.fail_after(HANG):
        async with trio.open_nursery() as nursery:
            relay: Relay = await nursery.start(
                partial(serve_relay, ProcessGuest(), tmp_path / "s", options=options)
            )
            async with connect_guest(tmp_path / "s") as guest:
                await guest.run_process(["true"])
            nursery.cancel_scope.cancel()
    statistics = relay.statistics().audit_log
    assert statistics is not None
    assert statistics.records_written == 0
    assert statistics.records_dropped >= 3

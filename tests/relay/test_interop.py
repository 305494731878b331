"""The protocol's own Python client, as its makers ship it, with our relay and our agent."""

from __future__ import annotations

import importlib.util
import json
import sys
from typing import TYPE_CHECKING, Any

import pytest
import trio

from tests.tools.limits import HANG
from trio_console import open_guest
from trio_console._console.build import FREE_THREADED

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = pytest.mark.skipif(
    # On all other systems a missing client is a fault of the installation, and fails.
    FREE_THREADED and importlib.util.find_spec("microsandbox") is None,
    reason="the makers' client has no wheel for Python without the interpreter lock",
)

#: A program of its own, because the client needs asyncio. It prints its report as JSON.
CLIENT = """
import asyncio, json, os, sys
import cbor2
from microsandbox.agent import FLAG_SESSION_START, AgentClient

def body(type_, payload, version=10):
    return cbor2.dumps({"v": version, "t": type_, "p": cbor2.dumps(payload)})

def read(frame):
    envelope = cbor2.loads(frame["body"])
    return frame["flags"], envelope["t"], cbor2.loads(envelope["p"])

def request(*command):
    return body("core.exec.request", {
        "cmd": command[0], "args": list(command[1:]), "env": [], "cwd": None, "user": None, "tty": False,
        "rows": 24, "cols": 80, "rlimits": [],
    })

def stdin(data):
    return body("core.exec.stdin", {"data": data})

async def run(client, *command, chunks=()):
    seen = {"stdout": b"", "stderr": b"", "order": []}
    async with await client.stream(FLAG_SESSION_START, request(*command)) as stream:
        async def feed():
            for chunk in chunks:
                await client.send(stream.id, 0, stdin(chunk))
            await client.send(stream.id, 0, stdin(b""))
        feeding = asyncio.create_task(feed())
        async for frame in stream:
            flags, type_, payload = read(frame)
            name = type_.rpartition(".")[2]
            if "data" in payload:
                seen[name] += payload["data"]
            else:
                seen["order"].append(name)
                seen["last"] = {key: value for key, value in payload.items() if key != "pid"}
            seen["flags"] = flags
        await feeding
    return seen

async def call(client, type_, payload=None, flags=0):
    return read(await client.request(flags, body(type_, payload or {})))

async def file_op(client, op, **fields):
    _, _, answer = await call(client, "core.fs.request", {"op": {op: fields}}, FLAG_SESSION_START)
    return answer

SCENARIOS = {}

def scenario(function):
    SCENARIOS[function.__name__] = function
    return function

@scenario
async def ready(client):
    envelope = cbor2.loads(client.ready_bytes())
    return [envelope["v"], envelope["t"], sorted(cbor2.loads(envelope["p"]))]

@scenario
async def ping(client):
    return [await call(client, "core.ping"), await call(client, "core.ping")]

@scenario
async def touch(client):
    first, second = await call(client, "core.touch"), await call(client, "core.touch")
    return [first[1], second[2]["activity_seq"] > first[2]["activity_seq"]]

@scenario
async def exec_with_stdin(client):
    return await run(client, "cat", chunks=[b"one ", b"two"])

@scenario
async def exec_that_fails(client):
    return await run(client, "sh", "-c", "echo oops >&2; exit 3")

@scenario
async def exec_killed(client):
    return await run(client, "sh", "-c", "kill -9 $$")

@scenario
async def exec_not_found(client):
    return await run(client, "no-such-command")

@scenario
async def large_both_ways(client):
    seen = await run(client, "cat", chunks=[bytes([n]) * 100_000 for n in range(40)])
    return seen["stdout"] == b"".join(bytes([n]) * 100_000 for n in range(40))

@scenario
async def several_at_once(client):
    seen = await asyncio.gather(*(run(client, "cat", chunks=[b"%d" % n] * 50) for n in range(8)))
    return [one["stdout"] == b"%d" % n * 50 for n, one in enumerate(seen)]

@scenario
async def several_connections(client):
    async def one(number):
        other = await AgentClient.connect(sys.argv[1])
        try:
            return (await run(other, "echo", str(number)))["stdout"]
        finally:
            await other.close()
    return await asyncio.gather(*(one(number) for number in range(6)))

@scenario
async def signal_ends_a_command(client):
    async with await client.stream(FLAG_SESSION_START, request("sleep", "999")) as stream:
        types = []
        async for frame in stream:
            types.append(read(frame)[1])
            if types[-1] == "core.exec.started":
                await client.send(stream.id, 0, body("core.exec.signal", {"signal": 15}))
        return types

@scenario
async def bad_payload_is_told(client):
    flags, type_, payload = await call(client, "core.exec.request", {"cmd": 5}, FLAG_SESSION_START)
    after = await call(client, "core.ping")
    return [flags, type_, payload["kind"], after[1]]

@scenario
async def files(client):
    path = sys.argv[3]
    options = dict.fromkeys(["read", "write", "append", "create", "truncate", "create_new"], False)
    opened = await file_op(client, "OpenFile", path=path,
                           options={**options, "write": True, "create": True, "mode": None, "user": None})
    handle = opened["data"]["Handle"]
    data = bytes(range(256)) * 10_000
    write = body("core.fs.request", {"op": {"Write": {"handle": handle, "offset": 0, "len": len(data)}}})
    async with await client.stream(FLAG_SESSION_START, write) as stream:
        for at in range(0, len(data), 1_000_000):
            await client.send(stream.id, 0, body("core.fs.data", {"data": data[at:at + 1_000_000]}))
        await client.send(stream.id, 0, body("core.fs.data", {"data": b""}))
        written = [read(frame)[2]["ok"] async for frame in stream]
    await file_op(client, "CloseHandle", handle=handle)
    size = (await file_op(client, "Stat", path=path, follow_symlink=True))["data"]["Stat"]["size"]
    opened = await file_op(client, "OpenFile", path=path, options={**options, "read": True, "mode": None})
    request_ = body("core.fs.request", {"op": {"Read": {
        "handle": opened["data"]["Handle"], "offset": 0, "len": None}}})
    got = b""
    async with await client.stream(FLAG_SESSION_START, request_) as stream:
        async for frame in stream:
            got += read(frame)[2].get("data") or b""
    missing = await file_op(client, "Stat", path=path + ".no", follow_symlink=True)
    return [written, size == len(data), got == data, missing["ok"], "No such file" in missing["error"]]

async def main():
    client = await AgentClient.connect(sys.argv[1])
    try:
        result = await asyncio.wait_for(SCENARIOS[sys.argv[2]](client), 30)
    finally:
        await client.close()
    print(json.dumps(result, default=lambda data: data.decode()), flush=True)
    # Its threads outlive it, and one that comes to Python while the interpreter ends aborts the process.
    os._exit(0)

asyncio.run(main())
"""

EXPECTED: dict[str, Any] = {
    "ready": [
        7,
        "core.ready",
        ["agent_version", "boot_time_ns", "features", "flow", "init_time_ns", "ready_time_ns"],
    ],
    "ping": [[1, "core.pong", {}]] * 2,
    "touch": ["core.touched", True],
    "exec_with_stdin": {
        "stdout": "one two",
        "stderr": "",
        "order": ["started", "exited"],
        "last": {"code": 0},
        "flags": 1,
    },
    "exec_that_fails": {
        "stdout": "",
        "stderr": "oops\n",
        "order": ["started", "exited"],
        "last": {"code": 3},
        "flags": 1,
    },
    "exec_killed": {
        "stdout": "",
        "stderr": "",
        "order": ["started", "exited"],
        "last": {"code": -1, "signal": 9},
        "flags": 1,
    },
    "large_both_ways": True,
    "several_at_once": [True] * 8,
    "several_connections": [f"{number}\n" for number in range(6)],
    "signal_ends_a_command": ["core.exec.started", "core.exec.exited"],
    "bad_payload_is_told": [1, "core.error", "invalid_payload", "core.pong"],
    "files": [[True], True, True, False, True],
}


async def ask(tmp_path: Path, scenario: str) -> Any:
    """The report of the client about a relay of ours."""
    path = tmp_path / "relay.sock"
    with trio.fail_after(HANG):
        async with open_guest(relay_path=path):
            done = await trio.run_process(
                [sys.executable, "-c", CLIENT, str(path), scenario, str(tmp_path / "file")], capture_stdout=True
            )
    return json.loads(done.stdout)


@pytest.mark.parametrize("scenario", EXPECTED)
async def test_the_makers_client_is_served(tmp_path: Path, scenario: str) -> None:
    assert await ask(tmp_path, scenario) == EXPECTED[scenario]


async def test_the_makers_client_hears_of_a_command_that_is_not_there(tmp_path: Path) -> None:
    seen = await ask(tmp_path, "exec_not_found")
    assert seen["order"] == ["failed"]
    assert seen["last"]["kind"] == "not_found"
    assert seen["last"]["errno"] == 2

"""A user's program for type checkers: it is checked against the installed wheel, and not run.

Each annotation is a claim. A name whose type is unknown to a checker fails in its strict mode.
"""

from __future__ import annotations

import subprocess

import trio

import trio_console
from trio_console.testing import Exits, FaultyGuest, ScriptedGuest, console_stream_pair


async def use_guest(guest: trio_console.Guest) -> int | None:
    seconds: float = await guest.ping()
    done: subprocess.CompletedProcess[bytes] = await guest.run_process(["true"], capture_stdout=True)
    async with guest.open_process(["cat"], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        await process.stdin.send_all(done.stdout)
        data: bytes | bytearray = await process.stdout.receive_some()
        process.terminate()
        await process.wait()
    path: trio_console.GuestPath = guest.path("/tmp") / "file"
    written: int = await path.write_bytes(bytes(data))
    async with await guest.open_file(path, "rb") as file:
        content: bytes = await file.read()
    return process.returncode if seconds and written and content else None


async def use_channel(backend: trio_console.AgentConsoleBackend) -> tuple[int, bool]:
    host, guest = console_stream_pair()
    async with host, guest:
        await host.send_all(b"hello")
    pushed: int = backend.write(b"from the device")
    wake: trio_console.WakePipe = trio_console.WakePipe()
    with wake:
        woken: bool = wake.wait(0)
    return pushed, woken


async def main() -> None:
    spec: trio_console.GuestSpec = trio_console.ProcessGuest()
    try:
        async with trio_console.open_guest(spec) as guest:
            await use_guest(guest)
        async with trio_console.open_guest(FaultyGuest(guest=ScriptedGuest({"x": Exits(3)}))) as guest:
            await use_guest(guest)
    except trio_console.GuestLostError as exc:
        reason: str = exc.reason
        raise SystemExit(reason + trio_console.__version__) from None


if __name__ == "__main__":
    trio.run(main)

"""A guest whose commands are functions, seen through `open_guest`."""

from __future__ import annotations

import errno
import signal
import subprocess
from typing import TYPE_CHECKING

import pytest
import trio

from tests.tools.limits import HANG
from trio_console import connect_guest, open_guest
from trio_console._session.receiving import WINDOW
from trio_console.testing import Exits, ScriptedGuest

if TYPE_CHECKING:
    import pathlib

    from trio_console.testing import ScriptedProcess

PIPE = subprocess.PIPE


async def echo(process: ScriptedProcess) -> None:
    async for data in process.stdin:
        await process.stdout.send_all(data)


async def wait_for_ever(process: ScriptedProcess) -> None:
    await process.start()
    await trio.sleep_forever()


@pytest.mark.parametrize("status", [0, 3, -9, -15])
async def test_a_fixed_answer(status: int) -> None:
    guest = ScriptedGuest({"x": Exits(status, stdout=b"out", stderr=b"err")})
    with trio.fail_after(HANG):
        async with open_guest(guest) as opened:
            done = await opened.run_process(["x", "y"], capture_stdout=True, capture_stderr=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (status, b"out", b"err")
    assert [process.args for process in guest.processes] == [["x", "y"]]
    assert guest.processes[0].returncode == status


async def test_a_function_reads_and_writes_with_backpressure_both_ways() -> None:
    data = bytes(range(256)) * 4096 * 3
    with trio.fail_after(HANG):
        async with open_guest(ScriptedGuest(echo)) as guest:
            done = await guest.run_process(["anything"], stdin=data, capture_stdout=True)
    assert done.stdout == data


async def test_output_nobody_reads_stops_at_the_window() -> None:
    sent = 0

    async def flood(process: ScriptedProcess) -> None:
        nonlocal sent
        while True:
            await process.stdout.send_all(b"x" * 1000)
            sent += 1000

    with trio.fail_after(HANG):
        async with open_guest(ScriptedGuest(flood)) as guest:
            async with guest.open_process(["x"], stdout=PIPE) as process:
                assert process.stdout is not None
                await guest.ping()
                while sent < WINDOW - 1000:
                    await trio.sleep(0.001)
                await guest.ping()
                assert sent <= WINDOW
                assert await process.stdout.receive_some()
            assert process.returncode == -9


async def test_a_function_sees_what_was_asked_for() -> None:
    guest = ScriptedGuest({"x": Exits()})
    with trio.fail_after(HANG):
        async with open_guest(guest) as opened:
            await opened.run_process(
                ["x"], env={"A": "1=2"}, cwd="/there", user="me", tty=True, rows=3, cols=4, capture_stdout=True
            )
    (process,) = guest.processes
    assert (process.env, process.cwd, process.user) == ({"A": "1=2"}, "/there", "me")
    assert (process.tty, process.rows, process.cols) == (True, 3, 4)


@pytest.mark.parametrize("error", [FileNotFoundError(errno.ENOENT, "gone"), PermissionError(errno.EACCES, "no")])
async def test_a_command_that_cannot_be_started(error: OSError) -> None:
    with trio.fail_after(HANG):
        async with open_guest(ScriptedGuest({"x": error})) as guest:
            with pytest.raises(type(error)) as caught:
                await guest.run_process(["x"])
            assert caught.value.filename == "x"
            with pytest.raises(FileNotFoundError):
                await guest.run_process(["another"])


async def test_a_signal_ends_a_function_that_does_not_handle_it() -> None:
    with trio.fail_after(HANG):
        async with open_guest(ScriptedGuest(wait_for_ever)) as guest:
            async with guest.open_process(["x"]) as process:
                process.send_signal(signal.SIGWINCH)
                process.terminate()
                assert await process.wait() == -signal.SIGTERM


async def test_a_function_handles_signals_and_not_sigkill() -> None:
    seen = []

    async def stubborn(process: ScriptedProcess) -> int:
        signals = process.signals()
        await process.stdout.send_all(b"up")
        async for number in signals:
            seen.append(number)
            await process.stdout.send_all(b"ha")
        return 0

    with trio.fail_after(HANG):
        async with open_guest(ScriptedGuest(stubborn)) as guest:
            async with guest.open_process(["x"], stdout=PIPE) as process:
                assert process.stdout is not None
                assert await process.stdout.receive_some() == b"up"
                process.terminate()
                assert await process.stdout.receive_some() == b"ha"
                process.kill()
                assert await process.wait() == -signal.SIGKILL
    assert seen == [signal.SIGTERM]


async def test_a_terminal_is_resized() -> None:
    async def sizes(process: ScriptedProcess) -> None:
        await process.stdin.receive_some()
        await process.stdout.send_all(f"{process.rows}x{process.cols}".encode())

    with trio.fail_after(HANG):
        async with open_guest(ScriptedGuest(sizes)) as guest:
            async with guest.open_process(["x"], stdin=PIPE, stdout=PIPE, tty=True) as process:
                assert process.stdin is not None
                assert process.stdout is not None
                process.resize(7, 9)
                await process.stdin.send_all(b"\n")
                assert await process.stdout.receive_some() == b"7x9"


async def test_a_mistake_in_a_function_comes_out_of_open_guest() -> None:
    async def wrong(process: ScriptedProcess) -> None:
        await process.start()
        raise AssertionError("a mistake of the test")

    with trio.fail_after(HANG):
        with pytest.raises(AssertionError, match="a mistake of the test"):
            async with open_guest(ScriptedGuest(wrong)) as guest:
                await guest.run_process(["x"])
        with pytest.raises(OSError, match="late"):

            async def late(process: ScriptedProcess) -> None:
                await process.start()
                raise OSError("late")

            async with open_guest(ScriptedGuest(late)) as guest:
                await guest.run_process(["x"])


async def test_a_cancelled_command_is_ended_as_in_any_guest() -> None:
    ended = trio.Event()

    async def watch(process: ScriptedProcess) -> None:
        try:
            await wait_for_ever(process)
        finally:
            ended.set()

    guest = ScriptedGuest(watch)
    with trio.fail_after(HANG):
        async with open_guest(guest) as opened, trio.open_nursery() as nursery:
            await nursery.start(opened.run_process, ["x"])
            nursery.cancel_scope.cancel()
        await ended.wait()
    assert guest.processes[0].returncode == -signal.SIGTERM


async def test_pings_are_answered_and_files_and_connections_refused() -> None:
    with trio.fail_after(HANG):
        async with open_guest(ScriptedGuest()) as guest:
            assert await guest.ping() >= 0
            assert await guest.touch() > 0
            with pytest.raises(OSError, match="not implemented") as caught:
                await guest.path("/x").read_bytes()
            assert caught.value.errno == errno.ENOSYS
            with pytest.raises(OSError, match="not implemented") as caught:
                await guest.open_tcp_stream("localhost", 1)
            assert caught.value.errno == errno.ENOSYS


async def test_closed_streams_of_a_process_behave() -> None:
    async def closes(process: ScriptedProcess) -> int:
        await process.stdin.aclose()
        with pytest.raises(trio.ClosedResourceError):
            await process.stdin.receive_some()
        await process.stdout.aclose()
        with pytest.raises(trio.ClosedResourceError):
            await process.stdout.send_all(b"x")
        with pytest.raises(ValueError, match="at least 1"):
            await process.stdin.receive_some(0)
        return 5

    with trio.fail_after(HANG):
        async with open_guest(ScriptedGuest(closes)) as guest:
            # More than a window: who has closed its input holds nobody up.
            done = await guest.run_process(["x"], stdin=b"x" * 400_000, check=False)
    assert done.returncode == 5


async def test_a_relay_shares_it_and_a_client_that_leaves_takes_its_commands_along(tmp_path: pathlib.Path) -> None:
    scripted = ScriptedGuest({"x": Exits(stdout=b"hi"), "wait": wait_for_ever})
    with trio.fail_after(HANG):
        async with open_guest(scripted, relay_path=tmp_path / "sock"):
            async with connect_guest(tmp_path / "sock") as client:
                assert (await client.run_process(["x"], capture_stdout=True)).stdout == b"hi"
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(client.run_process, ["wait"])
                    while len(scripted.processes) < 2:
                        await trio.sleep(0.001)
                    nursery.cancel_scope.cancel()


async def test_it_is_open_once_at_a_time() -> None:
    guest = ScriptedGuest()
    with trio.fail_after(HANG):
        async with open_guest(guest):
            with pytest.raises(RuntimeError, match="is open: make one"):
                async with open_guest(guest):
                    pass
        async with open_guest(guest) as again:
            await again.ping()

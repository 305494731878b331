"""A process's streams, with a scripted agent: where their bytes go, and how misuse is refused."""

from __future__ import annotations

import signal
import subprocess
from typing import Any

import pytest
import trio
import trio.testing

from tests.session._fake import begin, talking
from tests.session.process._processes import opened, run
from trio_console import UnsupportedByPeer
from trio_console import _wire as wire

PIPE = subprocess.PIPE
DEVNULL = subprocess.DEVNULL
STDOUT = subprocess.STDOUT


# Misuse


async def test_two_tasks_cannot_use_one_stream_at_once() -> None:
    async with talking(window=1) as talk:
        process, _, _ = await opened(talk, stdin=PIPE)
        begin(talk.nursery, process.stdout.receive_some)
        begin(talk.nursery, lambda: process.stdin.send_all(b"abc"))
        await trio.testing.wait_all_tasks_blocked()
        with pytest.raises(trio.BusyResourceError):
            await process.stdout.receive_some()
        with pytest.raises(trio.BusyResourceError):
            await process.stdin.send_all(b"d")
        with pytest.raises(trio.BusyResourceError):
            await process.stdin.wait_send_all_might_not_block()


async def test_a_closed_stream_is_refused_also_to_whoever_waits_in_it() -> None:
    async with talking(window=1) as talk:
        process, _, _ = await opened(talk, stdin=PIPE)
        receiving = begin(talk.nursery, process.stdout.receive_some)
        sending = begin(talk.nursery, lambda: process.stdin.send_all(b"abc"))
        await trio.testing.wait_all_tasks_blocked()
        await process.stdout.aclose()
        await process.stdin.aclose()
        for call in (receiving, sending):
            with pytest.raises(trio.ClosedResourceError):
                await call.wait()
        with pytest.raises(trio.ClosedResourceError):
            await process.stdout.receive_some()
        with pytest.raises(trio.ClosedResourceError):
            await process.stdin.send_all(b"")
        await process.stdout.aclose()
        await process.stdin.aclose()


@pytest.mark.parametrize("limit", [0, -1])
async def test_a_receive_limit_below_1_is_refused(limit: int) -> None:
    async with talking() as talk:
        process, _, _ = await opened(talk)
        with pytest.raises(ValueError, match="at least 1"):
            await process.stdout.receive_some(limit)


async def test_a_receive_limit_that_is_no_integer_is_refused() -> None:
    async with talking() as talk:
        process, _, _ = await opened(talk)
        with pytest.raises(TypeError):
            await process.stdout.receive_some(1.5)


async def test_a_small_receive_limit_splits_chunks_and_loses_nothing() -> None:
    async with talking() as talk:
        process, id_, _ = await opened(talk)
        for chunk in (b"abcdef", b"g", b"", b"hij"):
            await talk.agent.send(wire.ExecStdout(chunk), id_)
        await talk.agent.send(wire.ExecExited(0), id_)
        await process.wait()
        got = []
        while chunk := await process.stdout.receive_some(4):
            got.append(chunk)
        assert (got[0], b"".join(got)) == (b"abcd", b"abcdefghij")
        assert max(map(len, got)) <= 4


# Where streams lead


async def test_pipes_are_there_exactly_where_they_were_asked_for() -> None:
    async with talking() as talk:
        process, _, _ = await opened(talk, stdin=PIPE, stdout=PIPE, stderr=PIPE)
        assert process.stdin
        assert process.stderr
        assert process.stdio.send_stream is process.stdin
        assert process.stdio.receive_stream is process.stdout
        process, _, _ = await opened(talk, stdout=DEVNULL, stderr=DEVNULL)
        assert (process.stdin, process.stdout, process.stderr, process.stdio) == (None, None, None, None)


@pytest.mark.parametrize("stdin", [None, DEVNULL, b"", bytearray(), memoryview(b"")])
async def test_no_input_is_an_immediate_end_of_file(stdin: Any) -> None:
    async with talking() as talk:
        _, id_, _ = await opened(talk, stdin=stdin)
        assert await talk.agent.expect(wire.ExecStdin) == (id_, wire.ExecStdin(b""))
        await talk.agent.nothing_more()


@pytest.mark.parametrize("stdin", [b"abc", bytearray(b"abc"), memoryview(b"abc")])
async def test_bytes_are_fed_and_then_end_of_file(stdin: Any) -> None:
    async with talking() as talk:
        await opened(talk, stdin=stdin)
        assert [(await talk.agent.expect(wire.ExecStdin))[1].data for _ in range(2)] == [b"abc", b""]


async def test_nobody_types_on_a_terminal_without_input() -> None:
    async with talking() as talk:
        await opened(talk, stdin=None, tty=True)
        await talk.agent.nothing_more()


@pytest.mark.parametrize(
    ("typed", "end"), [(b"", b"\4"), (b"line\n", b"\4"), (b"half", b"\4\4"), (b"\4", b"\4"), (b"a\n\4", b"\4")]
)
async def test_closing_a_terminals_input_types_the_end_of_file(typed: bytes, end: bytes) -> None:
    async with talking() as talk:
        process, _, _ = await opened(talk, stdin=PIPE, tty=True)
        await process.stdin.send_all(typed)
        await process.stdin.aclose()
        got = b""
        while got != typed + end:
            got += (await talk.agent.expect(wire.ExecStdin))[1].data
            assert (typed + end).startswith(got)
        await talk.agent.nothing_more()


async def test_the_end_of_file_of_a_terminal_stays_within_the_window() -> None:
    async with talking(window=100) as talk:
        process, _, _ = await opened(talk, stdin=PIPE, tty=True)
        sending = begin(talk.nursery, lambda: process.stdin.send_all(b"x" * 200))
        await trio.testing.wait_all_tasks_blocked()
        await process.stdin.aclose()
        with pytest.raises(trio.ClosedResourceError):
            await sending.wait()
        got = b""
        while not got.endswith(b"\4\4"):
            got += (await talk.agent.expect(wire.ExecStdin))[1].data
        assert len(got) <= 100


@pytest.mark.parametrize("window", [0, 1, 2])
async def test_a_window_too_small_for_the_end_of_file_of_a_terminal_is_refused(window: int) -> None:
    async with talking(window=window) as talk:
        result = run(talk, stdin=b"x", tty=True)
        await trio.testing.wait_all_tasks_blocked()
        assert isinstance(result.error, UnsupportedByPeer)
        assert f"takes {window} bytes of stdin at a time, and a terminal needs at least 3" in str(result.error)
        await talk.agent.nothing_more()


async def test_the_smallest_window_of_a_terminal_carries_a_byte_and_the_end_of_file() -> None:
    async with talking(window=3) as talk:
        process, _, _ = await opened(talk, stdin=PIPE, tty=True)
        await process.stdin.send_all(b"x")
        await process.stdin.aclose()
        got = [(await talk.agent.expect(wire.ExecStdin))[1].data for _ in range(2)]
        assert got == [b"x", b"\4\4"]


async def test_input_errors_break_the_stdin_and_leave_the_process_alone() -> None:
    async with talking() as talk:
        process, id_, _ = await opened(talk, stdin=PIPE)
        await talk.agent.send(wire.ExecStdinError(errno=32, errno_name="EPIPE", message="broken pipe"), id_)
        await trio.testing.wait_all_tasks_blocked()
        with pytest.raises(trio.BrokenResourceError, match="broken pipe") as caught:
            await process.stdin.send_all(b"x")
        assert isinstance(caught.value.__cause__, OSError)
        await talk.agent.send(wire.ExecExited(0), id_)
        assert await process.wait() == 0


async def test_end_of_file_is_sent_even_if_the_process_did_not_take_everything() -> None:
    # The process may only have been slow, and may now wait for the end of file.
    async with talking() as talk:
        process, id_, _ = await opened(talk, stdin=PIPE)
        await talk.agent.send(wire.ExecStdinError(errno=28, errno_name="ENOSPC", message="queue full"), id_)
        await trio.testing.wait_all_tasks_blocked()
        await process.stdin.aclose()
        assert await talk.agent.expect(wire.ExecStdin) == (id_, wire.ExecStdin(b""))


async def test_an_exited_process_takes_no_input() -> None:
    async with talking() as talk:
        process, id_, _ = await opened(talk, stdin=PIPE)
        await talk.agent.send(wire.ExecExited(0), id_)
        await process.wait()
        with pytest.raises(trio.BrokenResourceError, match="exited"):
            await process.stdin.send_all(b"x")
        await process.stdin.aclose()
        await talk.agent.nothing_more()


async def test_run_process_minds_input_that_the_agent_has_lost() -> None:
    async with talking(window=10) as talk:
        result = run(talk, stdin=bytes(1000))
        id_ = await talk.agent.expect_start()
        await talk.agent.expect(wire.ExecStdin)
        await talk.agent.send(wire.ExecStdinError(errno=28, errno_name="ENOSPC", message="queue full"), id_)
        assert await talk.agent.expect(wire.ExecStdin) == (id_, wire.ExecStdin(b""))
        assert await talk.agent.expect(wire.ExecSignal) == (id_, wire.ExecSignal(signal.SIGTERM))
        await talk.agent.send(wire.ExecExited(-1, 9), id_)
        with pytest.raises(trio.BrokenResourceError, match="queue full"):
            await result.wait()


async def test_run_process_does_not_mind_unread_input() -> None:
    async with talking(window=10) as talk:
        result = run(talk, stdin=bytes(1000))
        id_ = await talk.agent.expect_start()
        await talk.agent.send(wire.ExecExited(0), id_)
        assert (await result.wait()).returncode == 0


@pytest.mark.parametrize(("fd", "message"), [(1, wire.ExecStdout), (2, wire.ExecStderr)])
async def test_uncaptured_output_goes_to_this_programs_own(
    fd: int, message: Any, capfd: pytest.CaptureFixture[str]
) -> None:
    async with talking() as talk:
        result = begin(talk.nursery, lambda: talk.guest.run_process(["cmd"]))
        id_ = await talk.agent.expect_start()
        await talk.agent.send(message(b"hello"), id_)
        await talk.agent.send(wire.ExecExited(0), id_)
        completed = await result.wait()
        assert (completed.stdout, completed.stderr) == (None, None)
    assert capfd.readouterr()[fd - 1] == "hello"


async def test_what_was_written_before_leaving_the_block_is_still_passed_on(
    capfd: pytest.CaptureFixture[str],
) -> None:
    async with talking() as talk:
        _, id_, block = await opened(talk, stdout=None, stderr=None)
        frames = [wire.ExecStdout(b"x" * 1000)] * 100
        await talk.agent.send_raw(b"".join(wire.encode(frame, id_) for frame in frames))
        await trio.testing.wait_all_tasks_blocked()
        block.leave.set()
        await talk.agent.expect(wire.ExecStdin)
        await talk.agent.expect(wire.ExecSignal)
        await talk.agent.send(wire.ExecExited(-1, signal=9), id_)
        await block.result.wait()
    assert capfd.readouterr().out == "x" * 100_000

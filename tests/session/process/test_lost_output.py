"""Output that a relay has dropped: its stream says so, and it never looks like all of it."""

from __future__ import annotations

import subprocess

import pytest
import trio

from tests.session._fake import FakeAgent, begin, talking
from trio_console import _wire as wire


async def play(agent: FakeAgent, *messages: wire.Message) -> None:
    """Start a command, and send what comes of it."""
    id_ = await agent.expect_start()
    for message in messages:
        await agent.send(message, id_)


async def test_a_stream_raises_behind_what_there_is() -> None:
    said = (
        wire.ExecStdout(b"first"),
        wire.ExecDropped("stdout"),
        wire.ExecStderr(b"whole"),
        wire.ExecExited(0),
    )
    async with talking(window=None) as talk:
        talk.nursery.start_soon(play, talk.agent, *said)
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
        async with talk.guest.open_process(["yes"], **pipes) as process:
            assert process.stdout is not None
            assert process.stderr is not None
            assert await process.stdout.receive_some() == b"first"
            for _ in range(2):
                with pytest.raises(trio.BrokenResourceError, match="the relay dropped stdout of"):
                    await process.stdout.receive_some()
            assert await process.stderr.receive_some() == b"whole"
            assert await process.stderr.receive_some() == b""
            assert await process.wait() == 0


@pytest.mark.parametrize("name", ["stdout", "stderr"])
@pytest.mark.parametrize("code", [0, 3])
async def test_run_process_never_returns_a_part_of_the_output(name: wire.StreamName, code: int) -> None:
    async with talking(window=None) as talk:
        run = begin(
            talk.nursery, lambda: talk.guest.run_process(["yes"], capture_stdout=True, capture_stderr=True)
        )
        id_ = await talk.agent.expect_start()
        await talk.agent.send(wire.ExecStdout(b"first"), id_)
        await talk.agent.send(wire.ExecDropped(name), id_)
        await talk.agent.send(wire.ExecExited(code), id_)
        with pytest.raises(trio.BrokenResourceError, match=f"the relay dropped {name} of"):
            await run.wait()


async def test_merged_output_of_which_some_was_dropped_ends_with_the_error() -> None:
    async with talking(window=None) as talk:
        talk.nursery.start_soon(play, talk.agent, wire.ExecDropped("stderr"), wire.ExecExited(0))
        async with talk.guest.open_process(["yes"], stdout=subprocess.PIPE, stderr=subprocess.STDOUT) as process:
            assert process.stdout is not None
            with pytest.raises(trio.BrokenResourceError):
                await process.stdout.receive_some()
            await process.wait()


@pytest.mark.parametrize(("window", "drops"), [(None, True), (1000, wire.UNSET)])
async def test_a_relay_is_told_that_its_client_would_understand_if_output_may_be_dropped(
    window: int | None, drops: bool | wire.UnsetType
) -> None:
    async with talking(window=window) as talk:
        run = begin(talk.nursery, lambda: talk.guest.run_process(["true"]))
        id_, request = await talk.agent.expect(wire.ExecRequest)
        assert request.drops is drops
        await talk.agent.send(wire.ExecStarted(1), id_)
        await talk.agent.send(wire.ExecExited(0), id_)
        await run.wait()


@pytest.mark.parametrize("cls", [wire.ExecDropped, wire.ExecStreamEnded])
async def test_a_stream_that_is_no_output_ends_no_other(
    cls: type[wire.ExecDropped | wire.ExecStreamEnded],
) -> None:
    async with talking(window=None) as talk:
        run = begin(talk.nursery, lambda: talk.guest.run_process(["x"], capture_stdout=True))
        await play(talk.agent, cls("data"), wire.ExecStdout(b"whole"), wire.ExecExited(0))
        assert (await run.wait()).stdout == b"whole"

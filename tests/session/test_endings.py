"""A failure in one place ends only that place, and every task that waits there gets the error."""

from __future__ import annotations

import logging
import subprocess
from typing import TYPE_CHECKING, Any

import pytest
import trio
import trio.testing

from tests.session._fake import WINDOW, begin, talking
from tests.session.files._fake_files import serving_files
from trio_console import GuestLostError, ProtocolError
from trio_console import _wire as wire
from trio_console._session.connection import Session
from trio_console._session.files import operations as _fs
from trio_console._session.net import tcp as _tcp
from trio_console._session.process import session as _process
from trio_console._session.receiving import Incoming

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from trio.testing import MockClock

    from tests.session._fake import Talk
    from trio_console import Guest


async def _still_works(talk: Talk) -> None:
    ping = begin(talk.nursery, talk.guest.ping)
    id_, _ = await talk.agent.expect(wire.Ping)
    await talk.agent.send(wire.Pong(), id_)
    await ping.wait()


# Finding out why


async def test_what_an_explanation_raises_costs_nothing_but_the_explanation() -> None:
    async def explain() -> str:
        await trio.lowlevel.checkpoint()
        raise ZeroDivisionError("no idea")

    async with talking(explain=explain) as talk:
        ping = begin(talk.nursery, talk.guest.ping)
        await talk.agent.expect(wire.Ping)
        await talk.agent.close()
        with pytest.raises(GuestLostError, match=r"closed its console.*no idea"):
            await ping.wait()


async def test_an_explanation_that_takes_too_long_is_not_waited_for(autojump_clock: MockClock) -> None:
    async with talking(explain=trio.sleep_forever) as talk:
        ping = begin(talk.nursery, talk.guest.ping)
        await talk.agent.expect(wire.Ping)
        await talk.agent.close()
        with pytest.raises(GuestLostError, match=r"closed its console$"):
            await ping.wait()


async def test_whatever_ends_the_reader_those_who_wait_are_told() -> None:
    async def explain() -> str:
        await trio.lowlevel.checkpoint()
        raise SystemExit(3)

    told = False

    async def ping(guest: Guest) -> None:
        nonlocal told
        with pytest.raises(GuestLostError, match="was ended"), trio.CancelScope(shield=True):
            await guest.ping()
        told = True

    with pytest.RaisesGroup(SystemExit):  # the test's own nursery wraps; the guest's does not
        async with trio.open_nursery() as nursery, talking(explain=explain) as talk:
            nursery.start_soon(ping, talk.guest)
            await talk.agent.expect(wire.Ping)
            await talk.agent.close()
            await trio.sleep_forever()
    assert told


@pytest.mark.parametrize("direction", ["receive_some", "send_all"])
async def test_whatever_a_stream_raises_is_a_lost_guest(direction: str, autojump_clock: MockClock) -> None:
    ours, theirs = trio.testing.memory_stream_pair()
    failed = trio.Event()

    async def fail(*_args: object) -> bytes:
        await trio.lowlevel.checkpoint()
        failed.set()
        raise OSError(5, "the cable is out")

    setattr(ours, direction, fail)
    async with talking(streams=lambda: (ours, theirs)) as talk:
        with pytest.raises(GuestLostError, match="the cable is out") as caught:
            await talk.guest.ping()
        assert isinstance(caught.value.__cause__, OSError)
    assert failed.is_set()


# Starting


STARTS: dict[str, tuple[Any, str, Callable[[Guest], Any]]] = {
    "process": (_process, "DataSender", lambda guest: guest.run_process(["cmd"])),
    "tcp": (_tcp, "DataSender", lambda guest: guest.open_tcp_stream("host", 1)),
    "file": (_fs.trio, "Event", lambda guest: guest.path("/x").stat()),
}


@pytest.mark.parametrize("start", list(STARTS))
async def test_a_session_that_cannot_be_built_is_never_opened(start: str) -> None:
    module, name, call = STARTS[start]

    def no_memory(*_args: object, **_options: object) -> object:
        raise MemoryError

    async with talking() as talk:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(module, name, no_memory)
            with pytest.raises(MemoryError):
                await call(talk.guest)
        assert talk.guest.statistics().active_sessions == 0
        await talk.agent.nothing_more()
        await _still_works(talk)


async def test_a_request_that_cannot_be_queued_leaves_no_session() -> None:
    def no_memory(_frame: bytes) -> None:
        raise MemoryError

    async with talking() as talk:
        with pytest.MonkeyPatch.context() as patch:
            # (The class is final, and its attributes are not.)
            patch.setattr(type(talk.connection.outbox), "send_control", lambda _self, frame: no_memory(frame))
            with pytest.raises(MemoryError):
                await talk.guest.ping()
        assert talk.guest.statistics().active_sessions == 0
        await _still_works(talk)


# One session among others


class Clumsy(Session):
    """A session that raises at each message."""

    def __init__(self, id_: int, failures: int = 100) -> None:
        self.id = id_
        self.errors: list[Exception] = []
        self._failures = failures

    def on_message(self, message: wire.Message) -> None:
        raise KeyError("told")

    def on_error(self, error: Exception) -> None:
        self.errors.append(error)
        if len(self.errors) <= self._failures:
            raise IndexError("ended")


@pytest.mark.parametrize("failures", [0, 1, 100])
async def test_a_session_that_raises_when_told_costs_itself_alone(
    failures: int, caplog: pytest.LogCaptureFixture
) -> None:
    async with talking() as talk:
        clumsy = Clumsy(talk.connection.new_id(), failures)
        talk.connection.open(clumsy, wire.Ping())
        other = begin(talk.nursery, talk.guest.touch)
        id_, _ = await talk.agent.expect(wire.Ping)
        other_id, _ = await talk.agent.expect(wire.Touch)
        await talk.agent.send(wire.Pong(), id_)
        await talk.agent.send(wire.Touched(5), other_id)
        assert await other.wait() == 5
        assert [type(error) for error in clumsy.errors] == [KeyError] * (1 if not failures else 2)
        assert talk.guest.statistics().active_sessions == 0
    assert len(caplog.records) == min(failures, 2)


async def test_the_id_of_a_session_that_failed_on_this_side_stays_taken_until_the_guests_last_word() -> None:
    async with talking(ids=range(1, 3)) as talk:
        talk.connection.open(Clumsy(1, failures=0), wire.Ping())
        await talk.agent.expect(wire.Ping)
        await talk.agent.tell(
            wire.ExecStarted(1), 1
        )  # this message has no place in the session, and is not its terminal frame
        await trio.testing.wait_all_tasks_blocked()
        assert talk.guest.statistics().active_sessions == 0
        assert [talk.connection.new_id() for _ in range(2)] == [2, 2]
        await talk.agent.tell(wire.Pong(), 1)
        await trio.testing.wait_all_tasks_blocked()
        assert [talk.connection.new_id() for _ in range(2)] == [1, 2]


async def test_a_session_that_raises_when_the_guest_is_lost_costs_itself_alone(
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.CRITICAL)
    async with talking() as talk:
        talk.connection.open(Clumsy(talk.connection.new_id()), wire.Ping())
        others = [begin(talk.nursery, talk.guest.ping) for _ in range(2)]
        for _ in range(3):
            await talk.agent.expect(wire.Ping)
        await talk.agent.close()
        for other in others:
            with pytest.raises(GuestLostError, match="closed its console"):
                await other.wait()


async def test_output_that_there_is_no_memory_for_ends_its_process_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    def no_memory(_self: Incoming, _data: bytes) -> None:
        raise MemoryError

    async with talking() as talk:

        async def body() -> None:
            async with talk.guest.open_process(["cmd"], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
                monkeypatch.setattr(Incoming, "put", no_memory)
                await process.wait()

        result = begin(talk.nursery, body)
        id_ = await talk.agent.expect_start()
        await talk.agent.send(wire.ExecStdout(b"x"), id_)
        with pytest.raises(MemoryError):
            await result.wait()
        assert await talk.agent.expect(wire.ExecSignal) == (id_, wire.ExecSignal(9))
        assert {(await talk.agent.expect(wire.Credit))[1].stream for _ in range(2)} == {"stdout", "stderr"}
        await _still_works(talk)


# Blocks


async def test_a_block_that_raises_closes_the_streams() -> None:
    async with talking() as talk:
        processes = []

        async def body() -> None:
            async with talk.guest.open_process(
                ["cmd"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE
            ) as process:
                processes.append(process)
                raise ZeroDivisionError

        result = begin(talk.nursery, body)
        id_ = await talk.agent.expect_start()
        assert await talk.agent.expect(wire.ExecSignal) == (id_, wire.ExecSignal(9))
        await talk.agent.send(wire.ExecExited(-1, signal=9), id_)
        with pytest.raises(ZeroDivisionError):
            await result.wait()
        (process,) = processes
        for stream in (process.stdout, process.stderr):
            with pytest.raises(trio.ClosedResourceError):
                await stream.receive_some()
        with pytest.raises(trio.ClosedResourceError):
            await process.stdin.send_all(b"x")


async def test_what_deliver_cancel_raises_comes_out_in_one_group_as_from_trio() -> None:
    async def deliver(_process: object) -> None:
        await trio.lowlevel.checkpoint()
        raise ZeroDivisionError

    async with talking() as talk:
        result = begin(talk.nursery, lambda: talk.guest.run_process(["cmd"], stdin=None, deliver_cancel=deliver))
        id_ = await talk.agent.expect_start()
        await talk.agent.expect(wire.ExecStdin)
        result.scope.cancel()
        assert await talk.agent.expect(wire.ExecSignal) == (id_, wire.ExecSignal(9))
        await talk.agent.send(wire.ExecExited(-1, signal=9), id_)
        with pytest.RaisesGroup(ZeroDivisionError):
            await result.wait()


@pytest.mark.parametrize("window", [WINDOW, None], ids=["credit", "no-credit"])
@pytest.mark.parametrize("reads", [True, False], ids=["read", "write"])
async def test_a_transfer_that_ends_with_a_frame_out_of_place_ends_in_the_guest(
    tmp_path: Path, reads: bool, window: int | None
) -> None:
    file = tmp_path / "file"
    file.write_bytes(bytes(4_000_000))
    async with serving_files(window=window) as (talk, files):
        guest_file = await talk.guest.open_file(file, "rb" if reads else "wb")
        files.grant_reads = files.grant_writes = False
        transfer = begin(talk.nursery, guest_file.read if reads else lambda: guest_file.write(bytes(4_000_000)))
        await trio.testing.wait_all_tasks_blocked()
        [id_] = files.lives
        await talk.agent.send(wire.TcpEof(), id_)
        with pytest.raises(ProtocolError):
            await transfer.wait()
        files.grant_reads = files.grant_writes = True
        for live in files.lives.values():
            live.changed.set()
        await trio.testing.wait_all_tasks_blocked()
        assert not files.lives, "the guest still waits for more of it"
        assert files.cancelled == ([] if window is None else [id_])
        await guest_file.aclose()
        assert not files.open
        assert talk.connection.active_sessions == 0


async def test_the_guest_is_told_how_long_its_end_is_waited_for() -> None:
    async with talking(grace=20.0) as talk:
        begin(talk.nursery, talk.guest.shutdown)
        _, order = await talk.agent.expect(wire.Shutdown)
        assert isinstance(order.grace, int)
        assert 4000 < order.grace <= 16_000  # a part is for the way back
        await talk.agent.close()

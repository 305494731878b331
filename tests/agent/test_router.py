"""The router: bad frames, ids, clients that leave, maintenance messages."""

from __future__ import annotations

import json
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import trio
import trio.testing

from tests.agent._host import Host
from tests.tools.leftovers import runs
from tests.tools.limits import HANG
from trio_console import _wire as wire
from trio_console._trio import turns
from trio_console._trio.gathering import GatheringStream, Piece
from trio_console._wire.ids import slot_of
from trio_console._wire.outbox import Outbox
from trio_console.agent import Ending, serve_agent
from trio_console.agent._router import Router
from trio_console.agent._session import Activity, Sender, Session
from trio_console.agent._system.boot import FrameSource

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

    from tests.agent.conftest import AgentFactory

MALFORMED = json.loads((Path(__file__).parents[1] / "wire/data/malformed.json").read_text())
STEP = (2**32 - 1) // 128

FATAL = {"len_4", "len_over_4MiB"}
SILENT = {"bootstrap_after_ready", "stdin_unknown_session", "tcp_eof_unknown_session", "wrong_flags_v4"}


# --- bad frames -----------------------------------------------------------------------------------


@pytest.mark.parametrize("case", [c for c in MALFORMED if c["name"] not in FATAL], ids=lambda c: c["name"])
async def test_a_recorded_bad_frame_ends_its_session_at_most(host: Host, case: dict[str, Any]) -> None:
    frame = bytes.fromhex(case["frame_hex"])
    sid = int.from_bytes(frame[4:8], "big")
    await host.send_raw(frame)
    if case["name"] in SILENT:
        assert await host.nothing_for(sid)
        return
    message = await host.receive(sid)
    # The recorded agent died of this frame. This one says what it could not read.
    expected = case["replies"][0] if case["replies"] else {"kind": "malformed_message"}
    if expected.get("message_type") == "core.tcp.failed":
        assert message == wire.TcpFailed(expected["payload"]["error"])
    else:
        assert isinstance(message, wire.Error)
        assert message.kind == expected["kind"]
    assert await host.nothing_for(sid)


@pytest.mark.parametrize("case", [c for c in MALFORMED if c["name"] in FATAL], ids=lambda c: c["name"])
async def test_a_bad_length_ends_everything(
    agent: AgentFactory, case: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    async with agent() as host:
        sid = await host.start("/bin/sh", "-c", "echo $$; exec sleep 60")
        pid = int(await host.read_stdout(sid, b"\n"))
        await host.send_raw(bytes.fromhex(case["frame_hex"]))
        assert await host.gone() == []
        assert not runs(pid)
    assert "out of step" in capsys.readouterr().err


async def test_that_a_client_is_forgotten_is_confirmed_behind_what_was_sent_for_it(host: Host) -> None:
    sid = await host.start("/bin/sh", "-c", "echo out; exec sleep 60", sid=10)
    await host.read_stdout(sid, b"out\n")
    await host.send(wire.FsData(b""), 11)
    await host.send(wire.ClientDisconnected(10, 20, confirm=19))
    assert await host.receive(11) == wire.FsResponse(ok=False, error="unknown write session: 11")
    assert await host.receive(19) == wire.ClientForgotten()
    await host.collect(sid)


async def test_that_a_client_is_forgotten_is_confirmed_only_where_that_is_asked(host: Host) -> None:
    await host.send(wire.ClientDisconnected(10, 20))
    assert await host.nothing_for(19)


async def test_an_unknown_type_is_named(host: Host) -> None:
    body = wire.encode(wire.Ping())[wire.HEADER_SIZE :].replace(b"core.ping", b"core.pong"[:-1] + b"x")
    await host.send_raw(wire.encode_frame(5, 0, body))
    message = await host.receive(5)
    assert (message.kind, message.offending_type) == ("unsupported_message_type", "core.ponx")


async def test_a_bad_frame_ends_the_command_it_belongs_to(host: Host) -> None:
    sid = await host.start("/bin/sh", "-c", "echo $$; exec sleep 60")
    pid = int(await host.read_stdout(sid, b"\n"))
    await host.send_raw(wire.encode_frame(sid, 0, b"\xff"))
    outcome = await host.collect(sid)
    assert [m.kind for m in outcome.all(wire.Error)] == ["malformed_message"]
    assert len(outcome.messages) == 1
    assert not runs(pid)
    assert (await host.run("echo", "hi")).stdout == b"hi\n"


async def test_a_peer_too_old_for_errors_gets_an_exit_instead(host: Host) -> None:
    sid = await host.start("sleep", "60")
    frame = bytearray(wire.encode(wire.ExecSignal(9), sid, version=4))
    frame[8] = wire.FLAG_TERMINAL
    await host.send_raw(bytes(frame))
    assert (await host.collect(sid)).messages == [wire.ExecExited(code=-1, signal=9)]


async def test_a_peer_of_the_first_generation_that_knows_errors_gets_one(host: Host) -> None:
    sid = await host.start("sleep", "60")
    frame = bytearray(wire.encode(wire.ExecSignal(9), sid, version=5))
    frame[8] = wire.FLAG_TERMINAL
    await host.send_raw(bytes(frame))
    assert [m.kind for m in (await host.collect(sid)).all(wire.Error)] == ["invalid_flags"]


async def test_what_only_the_agent_sends_is_ignored(host: Host) -> None:
    for message in (wire.ExecStarted(1), wire.Pong(), wire.ExecExited(0), wire.InitAck()):
        await host.send(message, 5)
    assert await host.nothing_for(5)


async def test_unknown_keys_and_a_newer_generation_are_fine(host: Host) -> None:
    await host.send(wire.ExecRequest("true"), 5, version=10)
    assert (await host.collect(5)).last == wire.ExecExited(code=0)


# --- ids ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("sid", [1, STEP - 1, STEP + 1, 127 * STEP + 1, 128 * STEP - 1])
async def test_an_id_of_a_client_opens_a_session(host: Host, sid: int) -> None:
    assert slot_of(sid) is not None
    await host.request("true", sid=sid)
    assert (await host.collect(sid)).last == wire.ExecExited(code=0)


@pytest.mark.parametrize("sid", [0, STEP, 127 * STEP, 128 * STEP, 2**32 - 1])
async def test_an_id_of_nobody_does_not(host: Host, sid: int) -> None:
    assert slot_of(sid) is None
    await host.request("true", sid=sid)
    message = await host.receive(sid)
    assert (message.kind, message.offending_type) == ("invalid_session", "core.exec.request")


async def test_an_id_in_use_is_refused_and_its_session_ends(host: Host) -> None:
    sid = await host.start("/bin/sh", "-c", "echo $$; exec sleep 60")
    pid = int(await host.read_stdout(sid, b"\n"))
    await host.request("echo", "never", sid=sid)
    outcome = await host.collect(sid)
    assert [m.kind for m in outcome.messages] == ["invalid_session"]  # type: ignore[attr-defined]
    assert await host.nothing_for(sid)
    assert not runs(pid)
    await host.request("echo", "now", sid=sid)
    assert (await host.collect(sid)).stdout == b"now\n"


async def test_data_of_another_kind_of_session_is_a_mistake(host: Host) -> None:
    sid = await host.start("sleep", "60")
    await host.send(wire.TcpData(b"x"), sid)
    assert (await host.collect(sid)).last.kind == "invalid_session"


async def test_data_for_unknown_transfers_is_answered(host: Host) -> None:
    await host.send(wire.FsData(b"x"), 99)
    assert await host.receive(99) == wire.FsResponse(ok=False, error="unknown write session: 99")
    await host.send(wire.TcpData(b"x"), 99)
    assert await host.receive(99) == wire.TcpFailed("unknown TCP session: 99")
    await host.send(wire.TcpEof(), 99)
    await host.send(wire.TcpClose(), 99)
    assert await host.nothing_for(99)


# --- clients that leave ---------------------------------------------------------------------------


async def test_a_client_that_left_has_its_commands_killed(host: Host) -> None:
    mine = await host.start("/bin/sh", "-c", "echo $$; exec sleep 60", sid=10)
    theirs = await host.start("sleep", "60", sid=20)
    pid = int(await host.read_stdout(mine, b"\n"))
    await host.send(wire.ClientDisconnected(id_start=10, id_end_exclusive=20))
    # The terminal frame frees the id in a relay.
    assert (await host.collect(mine)).messages == [wire.ExecExited(code=-1, signal=9)]
    assert not runs(pid)
    # (The search for what the commands have started is over, once a later search is.)
    last = await host.start("sleep", "60", sid=30, ends=wire.ExecEnds(None))
    await host.send(wire.ExecKill(10_000), last)
    await host.collect(last)
    assert await ends_of_sigterm(host, theirs)


@pytest.mark.parametrize(("sid", "killed"), [(9, False), (10, True), (19, True), (20, False)])
async def test_the_ids_of_a_client_that_left_are_a_half_open_range(host: Host, sid: int, killed: bool) -> None:
    await host.start("sleep", "60", sid=sid)
    await host.send(wire.ClientDisconnected(id_start=10, id_end_exclusive=20))
    # (A command that was killed hears no SIGTERM after that.)
    assert await ends_of_sigterm(host, sid) is not killed


async def ends_of_sigterm(host: Host, sid: int) -> bool:
    """Whether a running command ends by this signal, and was not killed before."""
    await host.send(wire.ExecSignal(15), sid)
    return (await host.collect(sid)).messages == [wire.ExecExited(code=-1, signal=15)]


async def test_nothing_of_an_old_session_reaches_the_next_owner_of_its_id(host: Host) -> None:
    for attempt in range(30):
        await host.start("yes", f"old {attempt}", sid=10, window=2**30)
        await host.send_raw(
            wire.encode(wire.ClientDisconnected(1, 100))
            + wire.encode(wire.ExecRequest("echo", ["new"], window=100), 10)
        )
        # Frames that were queued before the disconnect may still come, before the start of the new session.
        while not isinstance(await host.receive(10), wire.ExecStarted):
            pass
        assert (await host.collect(10)).messages == [wire.ExecStdout(b"new\n"), wire.ExecExited(code=0)]


async def test_a_disconnect_before_the_start_leaves_no_process(host: Host) -> None:
    for _ in range(10):
        await host.request("sleep", "60", sid=10)
        await host.send(wire.ClientDisconnected(1, 100))
        assert wire.type_of((await host.collect(10)).last).flags == wire.FLAG_TERMINAL


# --- maintenance ----------------------------------------------------------------------------------


async def test_ping_is_answered_and_counts_for_nothing(host: Host) -> None:
    before = await touch(host)
    await host.ping()
    await host.ping()
    assert await touch(host) == before + 1


async def touch(host: Host) -> int:
    sid = host.new_id()
    await host.send(wire.Touch(), sid)
    seq = (await host.receive(sid)).activity_seq
    assert isinstance(seq, int)
    return seq


async def test_touch_adds_one(host: Host) -> None:
    first = await touch(host)
    assert [await touch(host), await touch(host)] == [first + 1, first + 2]


async def test_messages_both_ways_count_as_activity(host: Host) -> None:
    before = await touch(host)
    await host.run("true")  # a request, a start, an exit
    assert await touch(host) == before + 4


async def test_errors_and_clock_do_not_count_as_activity(host: Host) -> None:
    before = await touch(host)
    await host.send_raw(wire.encode_frame(5, 0, b"\xff"))
    await host.receive(5)
    await host.send(wire.ClockSync(0))
    assert await touch(host) == before + 1


async def test_an_agent_that_is_not_process_1_leaves_the_clock_alone(
    host: Host, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise AssertionError

    monkeypatch.setattr("time.clock_settime_ns", fail)
    await host.send(wire.ClockSync(1))
    await host.ping()


async def test_a_mistake_inside_one_session_costs_only_that_session(
    host: Host, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def broken(*_: object) -> None:
        raise ZeroDivisionError

    sid = await host.start("sleep", "60")
    monkeypatch.setattr("trio_console.agent._process.session._read_some", broken)
    await host.send(wire.ExecSignal(9), sid)
    assert isinstance((await host.collect(sid)).last, wire.Error)
    assert "ZeroDivisionError" in capsys.readouterr().err
    monkeypatch.undo()
    assert (await host.run("true")).last.code == 0


async def test_an_asker_that_does_not_read_is_held_back(agent: AgentFactory) -> None:
    async with agent(over_socket=True) as host:
        ping = wire.encode(wire.Ping(), 5)
        sent = 0
        with trio.move_on_after(HANG):
            while True:
                with trio.move_on_after(0.2) as stuck:
                    await host.stream.send_all(ping * 1000)
                    sent += 1000
                if stuck.cancelled_caught:
                    break
        assert stuck.cancelled_caught
        # Half a ping may be on the wire, so this connection cannot be used: the agent must see its end.


async def test_the_ending_says_why(agent: AgentFactory) -> None:
    for last, expected in (
        (b"", Ending.CONSOLE_CLOSED),
        (wire.encode(wire.Shutdown()), Ending.SHUT_DOWN),
        (b"\0\0\0\0", Ending.OUT_OF_STEP),
    ):
        ours, theirs = trio.testing.memory_stream_pair()
        host = Host(ours)
        endings: list[Ending] = []

        async def serve(stream: trio.abc.Stream = theirs, endings: list[Ending] = endings) -> None:
            endings.append(await serve_agent(stream))

        async with trio.open_nursery() as nursery:
            nursery.start_soon(serve)
            await host.boot()
            if last:
                await host.send_raw(last)
            else:
                await ours.aclose()
        assert endings == [expected]


# --- answers in few writes ------------------------------------------------------------------------


class _Writes(GatheringStream):
    """Takes all, and notes what was written at once and what by the writer."""

    def __init__(self) -> None:
        self.at_once: list[bytes] = []
        self.later: list[bytes] = []

    async def send_all(self, data: Any) -> None:
        self.later.append(bytes(data))

    async def send_gathered(self, pieces: list[Piece]) -> None:
        self.later.append(b"".join(pieces))

    def send_gathered_nowait(self, pieces: list[Piece]) -> list[Piece]:
        self.at_once.append(b"".join(pieces))
        return []

    async def wait_send_all_might_not_block(self) -> None:
        pass

    async def aclose(self) -> None:
        pass


@pytest.fixture
def no_turn_is_over(monkeypatch: pytest.MonkeyPatch) -> None:
    """On a busy machine a turn may be over between two frames, which are then answered in two writes."""
    monkeypatch.setattr(turns, "perf_counter", lambda: 0.0)


@asynccontextmanager
async def _alone() -> AsyncIterator[tuple[trio.abc.SendStream, _Writes]]:
    """A router without sessions: what is sent to it, and what it writes."""
    to_router, stream = trio.testing.memory_stream_one_way_pair()
    writes = _Writes()
    outbox = Outbox(writes)
    async with trio.open_nursery() as nursery:
        router = Router(
            FrameSource(stream, outbox.end_turn),
            Sender(outbox, Activity()),
            nursery,
            openers={},
            forget_client=lambda *_: lambda: None,
            set_clock=None,
            shutdown_grace=1.0,
        )
        nursery.start_soon(outbox.run)
        nursery.start_soon(router.run)
        await trio.testing.wait_all_tasks_blocked()
        yield to_router, writes
        nursery.cancel_scope.cancel()


async def test_requests_that_come_together_are_answered_in_one_write_before_another_task_runs(
    no_turn_is_over: None,
) -> None:
    async with _alone() as (router, writes):
        await router.send_all(b"".join(wire.encode(wire.Ping(), id_) for id_ in (1, 2, 3)))
        await trio.testing.wait_all_tasks_blocked()
        assert (writes.at_once, writes.later) == ([b"".join(wire.encode(wire.Pong(), i) for i in (1, 2, 3))], [])


async def test_what_was_answered_in_a_turn_is_written_when_it_is_over(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 0.0

    def answer(router: Router, frame_id: int, _message: wire.Message) -> None:
        nonlocal now
        router._sender.send(wire.Pong(), frame_id)
        now += 1.0

    monkeypatch.setattr(turns, "perf_counter", lambda: now)
    monkeypatch.setattr(Router, "_ping", answer)
    async with _alone() as (router, writes):
        await router.send_all(b"".join(wire.encode(wire.Ping(), id_) for id_ in (1, 2, 3)))
        await trio.testing.wait_all_tasks_blocked()
    # (No more follow behind the last one, which is written at once or by the writer, in its turn.)
    assert writes.at_once[:2] == [wire.encode(wire.Pong(), id_) for id_ in (1, 2)]


async def test_the_answers_of_a_long_turn_are_written_before_it_is_over(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 0.0
    written: list[int] = []

    def answer(router: Router, frame_id: int, _message: wire.Message) -> None:
        nonlocal now
        written.append(len(writes.at_once))
        router._sender.send(wire.Pong(), frame_id)
        now += 0.0004
        router._source._turn._end = 1.0  # the others have taken long before it, and so may it

    monkeypatch.setattr(turns, "perf_counter", lambda: now)
    monkeypatch.setattr(Router, "_ping", answer)
    async with _alone() as (router, writes):
        await router.send_all(b"".join(wire.encode(wire.Ping(), id_) for id_ in range(1, 7)))
        await trio.testing.wait_all_tasks_blocked()
    assert written == [0, 0, 1, 1, 2, 2]


async def test_a_single_request_is_answered_before_another_task_runs() -> None:
    async with _alone() as (router, writes):
        await router.send_all(wire.encode(wire.Ping(), 1))
        await trio.testing.wait_all_tasks_blocked()
        assert (writes.at_once, writes.later) == ([wire.encode(wire.Pong(), 1)], [])


class _Idle(Session):
    """A session that waits for its end, and notes in which pass of the loop that came."""

    kind = ""
    accepts = frozenset()

    def __init__(self, sender: Sender, session_id: int, seen: _Seen) -> None:
        super().__init__(sender, session_id)
        self._seen = seen
        seen.sessions.append(self)

    async def run(self) -> None:
        with self._scope:
            await trio.sleep_forever()
        self._seen.ended.append(self._seen.passes)
        self._seen.order.append(self.id)
        await self._say_last(wire.ExecExited(0))

    async def receive(self, message: wire.Message) -> None:
        raise AssertionError("nothing is sent to it")


@dataclass
class _Seen:
    """What has happened to the sessions of `_idle_sessions`."""

    sessions: list[_Idle] = field(default_factory=list)
    passes: int = 0
    ended: list[int] = field(default_factory=list)  # in which pass each has ended
    order: list[int] = field(default_factory=list)  # their ids
    forgotten: list[int] = field(default_factory=list)  # how many had ended when something was forgotten


@asynccontextmanager
async def _idle_sessions(*ids: int) -> AsyncIterator[tuple[trio.abc.SendStream, _Seen]]:
    """A router with sessions that wait for their end; what is sent to it, and what has happened."""
    to_router, stream = trio.testing.memory_stream_one_way_pair()
    outbox, seen = Outbox(_Writes()), _Seen()

    def forget(_start: int, _end: int) -> Callable[[], object]:
        seen.forgotten.append(len(seen.ended))
        return lambda: seen.forgotten.append(len(seen.ended))

    async with trio.open_nursery() as nursery:
        router = Router(
            FrameSource(stream),
            Sender(outbox, Activity()),
            nursery,
            openers={wire.ExecRequest: lambda sender, id_, _: _Idle(sender, id_, seen)},
            forget_client=forget,
            set_clock=None,
            shutdown_grace=1.0,
        )
        nursery.start_soon(outbox.run)
        nursery.start_soon(router.run)
        for id_ in ids:
            await to_router.send_all(wire.encode(wire.ExecRequest(cmd="idle"), id_))
        await trio.testing.wait_all_tasks_blocked()
        yield to_router, seen
        nursery.cancel_scope.cancel()


async def _count_until_ended(seen: _Seen, number: int) -> None:
    while len(seen.ended) < number:
        seen.passes += 1
        await trio.lowlevel.checkpoint()
    # (This task counts before or after the others run, so two that follow each other may have one number.)
    assert max(seen.ended.count(number) for number in seen.ended) <= 2, "several ended in one pass"


async def test_the_sessions_of_a_client_that_has_gone_end_one_by_one_and_what_they_have_left_then() -> None:
    async with _idle_sessions(*range(1, 9)) as (router, seen):
        await router.send_all(wire.encode(wire.ClientDisconnected(1, STEP)))
        await _count_until_ended(seen, 8)
        await trio.testing.wait_all_tasks_blocked()
        assert seen.forgotten[0] == 0
        assert seen.forgotten[1] >= 7  # (the last one may be about to end)


async def test_the_sessions_of_all_clients_that_have_gone_end_one_by_one() -> None:
    ids = [1 + slot * STEP + number for slot in range(8) for number in range(4)]
    async with _idle_sessions(*ids) as (router, seen):
        gone = [wire.ClientDisconnected(1 + slot * STEP, (slot + 1) * STEP) for slot in range(8)]
        await router.send_all(b"".join(map(wire.encode, gone)))
        await _count_until_ended(seen, len(ids))


async def test_a_session_whose_client_has_gone_reads_no_more_until_it_ends() -> None:
    async with _idle_sessions(1) as (_router, seen), trio.open_nursery() as nursery:
        session = seen.sessions[0]
        reads: list[int] = []

        async def pump() -> None:
            while True:
                await session._pass_on(wire.ExecStdout, 10, reads.append)
                await trio.lowlevel.checkpoint()

        session.depart()
        nursery.start_soon(pump)
        await trio.testing.wait_all_tasks_blocked()
        assert reads == []
        nursery.cancel_scope.cancel()


async def test_a_client_that_goes_does_not_wait_for_the_sessions_of_one_that_went_before() -> None:
    async with _idle_sessions(*range(1, 41), STEP + 1) as (router, seen):
        gone = [wire.ClientDisconnected(1 + slot * STEP, (slot + 1) * STEP) for slot in range(2)]
        await router.send_all(b"".join(map(wire.encode, gone)))
        await trio.testing.wait_all_tasks_blocked()
        assert len(seen.order) == 41
        assert seen.order.index(STEP + 1) < 8

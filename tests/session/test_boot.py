"""The frames before a guest can be used, with a scripted agent."""

from __future__ import annotations

import pytest
import trio
from trio.testing import memory_stream_pair

from tests.session._fake import FakeAgent, Result, begin
from tests.tools.limits import HANG
from trio_console import GuestLostError, ProtocolError
from trio_console import _wire as wire
from trio_console._session.boot import boot, make_bootstrap

READY = wire.Ready(boot_time_ns=1, init_time_ns=2, ready_time_ns=3, agent_version="fake")
RESOLVED = wire.InitResolved(wire.DefaultUser(0, 0))


class Booting:
    def __init__(self, nursery: trio.Nursery, bootstrap: wire.Bootstrap | None = None) -> None:
        ours, theirs = memory_stream_pair()
        self.agent = FakeAgent(theirs)
        self.result: Result = begin(nursery, lambda: boot(ours, bootstrap or wire.Bootstrap()))

    async def fails(self, cls: type[Exception], match: str | None = None) -> Exception:
        with pytest.raises(cls, match=match) as caught:
            await self.result.wait()
        return caught.value


async def test_the_bootstrap_is_the_very_first_that_is_sent(nursery: trio.Nursery) -> None:
    bootstrap = make_bootstrap({"user": "root", "default_cwd": "/tmp"})
    booting = Booting(nursery, bootstrap)
    with trio.fail_after(HANG):
        first = await booting.agent.stream.receive_some(65536)
    assert first == wire.encode(bootstrap)
    booting.result.scope.cancel()


async def test_resolved_is_acknowledged_and_ready_ends_the_boot(nursery: trio.Nursery) -> None:
    booting = Booting(nursery)
    await booting.agent.expect(wire.Bootstrap)
    await booting.agent.send(RESOLVED)
    await booting.agent.expect(wire.InitAck)
    await booting.agent.send(READY)
    booted = await booting.result.wait()
    assert booted.ready == READY
    assert booted.generation == 7


async def test_the_ready_frame_is_kept_byte_for_byte(nursery: trio.Nursery) -> None:
    booting = Booting(nursery)
    raw = wire.encode(READY, version=9)
    await booting.agent.send_raw(raw)
    booted = await booting.result.wait()
    assert wire.encode_frame(*booted.frame) == raw
    assert booted.generation == 9


async def test_an_agent_that_needs_no_acknowledgement_may_be_ready_at_once(nursery: trio.Nursery) -> None:
    booting = Booting(nursery)
    await booting.agent.send(READY)
    assert (await booting.result.wait()).ready == READY


async def test_the_exchange_works_byte_by_byte(nursery: trio.Nursery) -> None:
    booting = Booting(nursery)
    for byte in wire.encode(RESOLVED) + wire.encode(READY):
        await booting.agent.send_raw(bytes([byte]))
    assert (await booting.result.wait()).ready == READY


async def test_bytes_behind_ready_are_kept_for_the_session(nursery: trio.Nursery) -> None:
    booting = Booting(nursery)
    await booting.agent.send_raw(wire.encode(READY) + wire.encode(wire.Pong(), 5))
    booted = await booting.result.wait()
    frame = booted.decoder.next_frame()
    assert wire.decode(frame) == wire.Pong()


@pytest.mark.parametrize(
    "frame",
    [
        wire.encode(wire.ExecStdout(b"x"), 12),
        wire.encode(wire.Pong(), 0),
        wire.encode_frame(12, 0, b"not even an envelope"),
        wire.encode_frame(0, 0, bytes.fromhex("a3617607617463782e7961704100")),  # a type of a newer agent
        wire.encode_frame(0, 9, wire.encode(wire.Pong())[9:]),  # a known type with wrong flags
    ],
    ids=["session", "control", "garbage with an id", "unknown type", "wrong flags"],
)
async def test_other_frames_before_ready_are_discarded(nursery: trio.Nursery, frame: bytes) -> None:
    booting = Booting(nursery)
    await booting.agent.send_raw(frame + wire.encode(READY))
    assert (await booting.result.wait()).ready == READY


@pytest.mark.parametrize("garbage", [b"Welcome to the machine\n", b"\0\0\0\1\0\0\0\0", b"\xff" * 40])
async def test_a_length_out_of_bounds_is_a_protocol_error(nursery: trio.Nursery, garbage: bytes) -> None:
    booting = Booting(nursery)
    await booting.agent.send_raw(garbage)
    error = await booting.fails(ProtocolError)
    assert isinstance(error, ProtocolError)
    assert error.kind == "bad_frame"


async def test_a_control_frame_without_an_envelope_is_a_protocol_error(nursery: trio.Nursery) -> None:
    booting = Booting(nursery)
    await booting.agent.send_raw(wire.encode_frame(0, 0, b"\xff\xff"))
    await booting.fails(ProtocolError)


async def test_a_ready_message_without_its_fields_is_a_protocol_error(nursery: trio.Nursery) -> None:
    booting = Booting(nursery)
    body = bytes.fromhex("a361760761746a") + b"core.ready" + bytes.fromhex("617041a0")
    await booting.agent.send_raw(wire.encode_frame(0, 0, body))
    error = await booting.fails(ProtocolError)
    assert isinstance(error, ProtocolError)
    assert error.message_type == "core.ready"


async def test_a_console_that_ends_before_ready_is_a_lost_guest(nursery: trio.Nursery) -> None:
    booting = Booting(nursery)
    await booting.agent.expect(wire.Bootstrap)
    await booting.agent.close()
    await booting.fails(GuestLostError, "before it was ready")


async def test_a_console_that_ends_inside_a_frame_is_a_lost_guest_that_says_so(nursery: trio.Nursery) -> None:
    booting = Booting(nursery)
    await booting.agent.expect(wire.Bootstrap)
    await booting.agent.send_raw(wire.encode(READY)[:-1])
    await booting.agent.close()
    await booting.fails(GuestLostError, "in the middle of a frame")


def test_the_default_environment_may_be_a_mapping() -> None:
    bootstrap = make_bootstrap({"default_env": {"A": "1", "B": "x=y"}})
    assert bootstrap.default_env == [wire.EnvVar("A", "1"), wire.EnvVar("B", "x=y")]


@pytest.mark.parametrize(
    ("values", "error"),
    [
        ({"usr": "root"}, ValueError),
        ({"user": 3}, ValueError),
        ({"rlimits": "many"}, ValueError),
        ({"default_env": {"A": 3}}, ValueError),
        ([("user", "root")], TypeError),
    ],
)
def test_a_bootstrap_that_makes_no_sense_is_refused(values: object, error: type[Exception]) -> None:
    with pytest.raises(error):
        make_bootstrap(values)  # type: ignore[arg-type]

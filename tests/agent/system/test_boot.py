"""The boot exchange."""

from __future__ import annotations

import os
import pwd
from functools import partial
from typing import TYPE_CHECKING, Any

import pytest
import trio
from trio.testing import memory_stream_pair

from tests.agent._host import Host
from tests.tools.limits import HANG
from tests.tools.turns import TINY, make_steps_turns, watch
from trio_console import _wire as wire
from trio_console.agent import BootError, serve_agent
from trio_console.agent._serve import AgentOptions, Lasting, Settled
from trio_console.agent._system.boot import FrameSource

if TYPE_CHECKING:
    from trio.testing import MockClock

    from tests.agent.conftest import AgentFactory


async def boot_failure(*sent: bytes, close: bool = True) -> BootError:
    """The error of the agent when the host sends these frames and no more."""
    ours, theirs = memory_stream_pair()
    for data in sent:
        await ours.send_all(data)
    if close:
        await ours.send_stream.aclose()
    with pytest.raises(BootError) as caught:
        await serve_agent(theirs)
    return caught.value


BOOTSTRAP = wire.encode(wire.Bootstrap())
ACK = wire.encode(wire.InitAck())


async def test_the_exchange_in_order(agent: AgentFactory) -> None:
    async with agent(boot=False, first_input=AgentOptions().first_input) as host:
        await host.send(wire.Bootstrap())
        resolved = await host.receive(0)
        assert resolved == wire.InitResolved(wire.DefaultUser(os.getuid(), os.getgid()))
        await host.send(wire.InitAck())
        ready = await host.receive(0)
        assert 0 < ready.boot_time_ns < ready.ready_time_ns
        assert ready.agent_version
        assert ready.flow == wire.Flow(1024 * 1024, 960 * 1024)


async def test_ready_is_stamped_generation_7(agent: AgentFactory) -> None:
    async with agent(boot=False) as host:
        await host.send_raw(BOOTSTRAP + ACK)
        for _ in range(2):
            frame = await host.receive_frame()
            assert frame is not None
            assert wire.decode_envelope(frame.body).version == 7


async def test_everything_may_come_at_once(agent: AgentFactory) -> None:
    async with agent(boot=False) as host:
        await host.send_raw(BOOTSTRAP + ACK + wire.encode(wire.Ping(), 5))
        assert isinstance(await host.receive(5), wire.Pong)


async def test_everything_may_come_byte_by_byte(agent: AgentFactory) -> None:
    async with agent(boot=False) as host:
        for byte in BOOTSTRAP + ACK + wire.encode(wire.Ping(), 5):
            await host.send_raw(bytes([byte]))
        assert isinstance(await host.receive(5), wire.Pong)


async def test_the_acks_id_and_flags_do_not_matter(agent: AgentFactory) -> None:
    async with agent(boot=False) as host:
        await host.send_raw(BOOTSTRAP + wire.encode_frame(9, 1, ACK[wire.HEADER_SIZE :]))
        await host.ping()


async def test_a_newer_bootstrap_with_unknown_fields_is_fine(agent: AgentFactory) -> None:
    async with agent(boot=False) as host:
        await host.send(wire.Bootstrap(), version=10)
        await host.send(wire.InitAck())
        await host.ping()


async def test_the_default_user_is_resolved(agent: AgentFactory) -> None:
    entry = pwd.getpwnam("daemon")
    async with agent(boot=False) as host:
        await host.send(wire.Bootstrap(user="daemon"))
        resolved = await host.receive(0)
        assert resolved.default_user == wire.DefaultUser(entry.pw_uid, entry.pw_gid)
        await host.send(wire.InitAck())
        await host.ping()


@pytest.mark.parametrize(
    "first",
    [
        wire.encode(wire.Ping(), 1),
        wire.encode(wire.Bootstrap(), 1),
        wire.encode(wire.Bootstrap(), version=6),
        wire.encode_frame(0, 1, BOOTSTRAP[wire.HEADER_SIZE :]),
        wire.encode_frame(0, 0, b"\xff"),
        b"\0\0\0\0",
        BOOTSTRAP[:-1],
        b"",
    ],
)
async def test_anything_but_a_bootstrap_first_is_fatal(first: bytes) -> None:
    assert (await boot_failure(first)).exit_code == 1


@pytest.mark.parametrize(
    "second",
    [
        wire.encode(wire.Ping(), 1),
        wire.encode_frame(0, 0, wire.encode(wire.Shutdown())[wire.HEADER_SIZE :]),
        wire.encode_frame(0, 0, ACK[wire.HEADER_SIZE : -1] + b"\xf6"),
        b"",
    ],
)
async def test_anything_but_an_ack_second_is_fatal(second: bytes) -> None:
    assert (await boot_failure(BOOTSTRAP, second)).exit_code == 1


@pytest.mark.parametrize(("sent", "missing"), [((), "core.bootstrap"), ((BOOTSTRAP,), "core.init.ack")])
async def test_a_silent_host_is_given_a_minute(
    sent: tuple[bytes, ...], missing: str, autojump_clock: MockClock
) -> None:
    before = trio.current_time()
    error = await boot_failure(*sent, close=False)
    assert missing in str(error)
    assert trio.current_time() - before == pytest.approx(60, abs=1)


FLAGS = wire.MountFlags()


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("block_root", wire.DiskImageRoot("/dev/vda")),
        ("dir_mounts", [wire.DirMount("t", "/m", FLAGS)]),
        ("file_mounts", [wire.FileMount("t", "f", "/m", FLAGS)]),
        ("disk_mounts", [wire.DiskMount(id="d", guest_path="/m")]),
        ("tmpfs_mounts", [wire.TmpfsMount(path="/m")]),
        ("hostname", "guest"),
        ("host_alias", "host"),
        ("network", wire.Network(interface="eth0", mac=[0] * 6, mtu=1500)),
        ("handoff_init", wire.HandoffInit("/sbin/init")),
        ("security_profile", "restricted"),
        ("user", "no-such-user"),
        ("rlimits", [wire.Rlimit("bogus", 1, 1)]),
        ("rlimits", [wire.Rlimit("core", 2, 1)]),
    ],
)
async def test_what_cannot_be_honoured_is_refused_by_name(field: str, value: Any) -> None:
    error = await boot_failure(wire.encode(wire.Bootstrap(**{field: value})), close=False)
    assert field in str(error)
    assert error.exit_code == 3


async def test_empty_lists_ask_for_nothing(agent: AgentFactory) -> None:
    async with agent(bootstrap={"dir_mounts": [], "rlimits": [], "default_env": []}) as host:
        await host.ping()


async def test_a_failed_boot_closes_the_console() -> None:
    ours, theirs = memory_stream_pair()
    await ours.send_all(b"\0\0\0\0")
    with pytest.raises(BootError):
        await serve_agent(theirs)
    assert await Host(ours).gone() == []


async def test_tiny_frames_of_a_host_let_other_tasks_run(monkeypatch: pytest.MonkeyPatch) -> None:
    make_steps_turns(monkeypatch)
    ours, theirs = memory_stream_pair()
    source, taken = FrameSource(theirs), 0

    async def take() -> None:
        nonlocal taken
        while await source.next_frame():
            taken += 1

    async with trio.open_nursery() as nursery:
        nursery.start_soon(take)
        await ours.send_all(TINY * 500)
        with trio.fail_after(HANG):
            seen = await watch(lambda: taken, 500)
        await ours.aclose()
    assert len(seen) > 200


async def test_the_agent_settles_before_its_boot() -> None:
    ours, theirs = memory_stream_pair()
    entry = pwd.getpwnam("daemon")
    async with trio.open_nursery() as nursery:
        options = AgentOptions(settle=lambda: Settled("daemon", stays=False))
        nursery.start_soon(partial(serve_agent, theirs, options=options, lasting=Lasting()))
        await ours.send_all(BOOTSTRAP + ACK)
        host = Host(ours)
        assert await host.receive(0) == wire.InitResolved(wire.DefaultUser(entry.pw_uid, entry.pw_gid))
        assert wire.RESETS not in (await host.receive(0)).features  # for which there would be another host
        await ours.aclose()


async def test_a_boot_that_names_no_user_needs_no_thread(
    agent: AgentFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def refuse(*_args: object, **_kwargs: object) -> None:
        raise AssertionError("a thread was asked for")

    monkeypatch.setattr("trio_console.agent._system.boot.in_thread", refuse)
    async with agent(boot=False) as host:
        await host.boot(default_cwd="/tmp")

"""The rows: for each measurement its contenders, and the bar that was set for it."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

import trio

from benchmarks import channel_rows as channel
from benchmarks import machine_rows as machine
from benchmarks import peer_rows as peer
from benchmarks import scale_rows as scale
from benchmarks import scaling_rows as scaling
from benchmarks import session_rows as session
from benchmarks._measure import Row, Statistic
from benchmarks.peers._ours import in_guest

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterator, Sequence

__all__ = ["ROWS"]

KIB = 1024
MIB = 1024 * 1024

_SIZE_NAMES = {16: "16 B", 256: "256 B", 4 * KIB: "4 KiB", 64 * KIB: "64 KiB", MIB: "1 MiB"}

#: Chunks of each size in one turn: the fastest contender needs some 0.2 seconds for them.
_COUNTS = {16: 300_000, 256: 200_000, 4 * KIB: 60_000, 64 * KIB: 6_000, MIB: 500}

#: The same for contenders in which each chunk costs at least a turn of the event loop.
_SLOW_COUNTS = {16: 8_000, 256: 8_000, 4 * KIB: 8_000, 64 * KIB: 3_000, MIB: 300}

_BARS = {16: 6.0, 256: 4.0, 4 * KIB: 3.0, 64 * KIB: 1.5, MIB: 2.5}


def _once(function: Callable[..., float], *args: object) -> Callable[[], Sequence[float]]:
    return lambda: [function(*args)]


def _in_trio(function: Callable[..., Awaitable[float]], *args: object) -> Callable[[], Sequence[float]]:
    return lambda: [trio.run(partial(function, *args))]


def _samples_in_trio(
    function: Callable[..., Awaitable[Sequence[float]]], *args: object
) -> Callable[[], Sequence[float]]:
    return lambda: trio.run(partial(function, *args))


def _channel_rows() -> Iterator[Row]:
    for warm, when in ((None, "fresh"), (channel.small_traffic, "after small traffic")):
        suffix = "" if warm is None else "-warm"
        for size, name in _SIZE_NAMES.items():
            many, few = _COUNTS[size], _SLOW_COUNTS[size]
            yield Row(
                f"to-trio-{size}{suffix}",
                f"thread → trio, {name}, {when}",
                "chunks/s",
                {
                    "trio_console": _once(channel.to_trio_console, size, many),
                    "pipe": _once(channel.to_trio_pipe, size, many),
                    "socketpair": _once(channel.to_trio_socketpair, size, many),
                    "from_thread": _once(channel.to_trio_from_thread, size, few // 4),
                    "culsans": _once(channel.to_trio_culsans, size, few),
                    "aiologic": _once(channel.to_trio_aiologic, size, few),
                    "janus (asyncio)": _once(channel.to_asyncio_janus, size, few),
                },
                peers=("pipe", "socketpair"),
                statistics=(Statistic(bar=_BARS[size]),),
                warm_up=warm,
                facts={"size": size, "group": "to-trio", "when": when},
            )
        for size, name in _SIZE_NAMES.items():
            few = _SLOW_COUNTS[size]
            yield Row(
                f"to-thread-{size}{suffix}",
                f"trio → thread, {name}, {when}",
                "chunks/s",
                {
                    "trio_console": _once(channel.to_thread_console, size, few),
                    "pipe": _once(channel.to_thread_pipe, size, few),
                    "socketpair": _once(channel.to_thread_socketpair, size, few),
                    "culsans": _once(channel.to_thread_culsans, size, few),
                    "checkpoints alone": _once(channel.checkpoints, size, few),
                },
                peers=("pipe", "socketpair"),
                statistics=(Statistic(bar=_BARS[size]),),
                warm_up=warm,
                note="each send_all is a checkpoint, ours and the peers': nobody can be faster than that",
                facts={"size": size, "group": "to-thread", "when": when},
            )
    for size, name, many in ((16, "16 B", 2_000_000), (KIB, "1 KiB", 100_000)):
        yield Row(
            f"pieces-{size}",
            f"trio → thread, {name}, {channel.AT_A_TIME} chunks a call",
            "chunks/s",
            {
                "trio_console": _once(channel.pieces_console, size, many),
                "joined by hand": _once(channel.pieces_joined_by_hand, size, many),
                "one by one": _once(channel.to_thread_console, size, _SLOW_COUNTS[16]),
            },
            peers=("joined by hand",),
            statistics=(Statistic(bar=0.8),),
            facts={"size": size, "group": "pieces"},
        )
    yield Row(
        "echo",
        "64-byte echo trio → thread → trio",
        "s",
        {
            "trio_console": partial(channel.echo_console, 3000),
            "socketpair": partial(channel.echo_socketpair, 3000),
        },
        peers=("socketpair",),
        higher_is_better=False,
        statistics=(Statistic("p50", 0.5, 0.6), Statistic("p99", 0.99, 1.0)),
        facts={"group": "echo"},
    )
    for size in (16, 256, 4 * KIB, 64 * KIB):
        yield Row(
            f"system-calls-{size}",
            f"system calls per chunk under load, thread → trio, {_SIZE_NAMES[size]}",
            "calls/chunk",
            {
                "trio_console": _once(scale.system_calls_per_chunk, size, _COUNTS[size] // 4),
                "wake-ups alone": _once(channel.wakes_to_trio_console, size, _COUNTS[size] // 4),
            },
            higher_is_better=False,
            turns=3,
            statistics=(Statistic(limit=0.05 if size <= 4 * KIB else None),),
            note="all of both threads', counted by strace, which slows them down",
            facts={"group": "system-calls", "size": size},
        )


def _session_rows() -> Iterator[Row]:
    gib = 1024 * MIB
    yield Row(
        "run-process",
        'run_process(["true"])',
        "s",
        {
            "guest": _samples_in_trio(session.run_process_guest, 60),
            "trio": _samples_in_trio(session.run_process_trio, 60),
            "guest behind a relay": _samples_in_trio(session.run_process_relay, 60),
        },
        peers=("trio",),
        higher_is_better=False,
        statistics=(Statistic(bar=1.5),),
        facts={"group": "session"},
    )
    for name, title, function in (
        ("stdout", "agent, channel and client", session.stdout_guest),
        ("stdout-relay", "agent, relay and client", session.stdout_relay),
    ):
        yield Row(
            name,
            f"1 GiB of a process's stdout through {title}",
            "MiB/s",
            {
                "trio_console": _mib(function, gib),
                "its pipe, with trio": _mib(session.stdout_direct, gib),
                "a relay that forwards bytes (asyncio, uvloop)": _mib(session.stdout_plain_relay, gib),
            },
            peers=("its pipe, with trio",),
            statistics=(Statistic(bar=0.35),),
            turns=5,
            facts={"group": "session"},
        )
    for name, title, guests, direct in (
        ("file-read", "a file of 1 GiB read", session.file_read, session.file_read_direct),
        ("file-write", "a file of 1 GiB written", session.file_write, session.file_write_direct),
        ("tcp-echo", "256 MiB echoed over TCP", session.tcp_echo_guest, session.tcp_echo_direct),
    ):
        size = 256 * MIB if name == "tcp-echo" else gib
        yield Row(
            name,
            title,
            "MiB/s",
            {"trio_console": _mib(guests, size), "trio": _mib(direct, size)},
            peers=("trio",),
            turns=3,
            facts={"group": "session"},
        )
    tasks = ("tasks",)
    for name, title, idle, busy, how, bar in (
        ("ping", "stdout", session.ping_idle, session.ping_under_stdout, (), 5.0),
        (
            "ping-relay",
            "stdout, through a relay",
            session.ping_idle_relay,
            session.ping_under_stdout_relay,
            (),
            5.0,
        ),
        ("ping-stdout-tasks", "stdout, by tasks", session.ping_idle, session.ping_under_stdout, tasks, 2.5),
        ("ping-stdin-tasks", "stdin, by tasks", session.ping_idle, session.ping_under_stdin, tasks, 3.0),
    ):
        yield Row(
            name,
            f"ping beside 1 GiB of {title}",
            "s",
            {"beside bulk": _samples_in_trio(busy, gib, *how), "idle": _samples_in_trio(idle, 400, *how)},
            peers=("idle",),
            higher_is_better=False,
            statistics=(Statistic("p50"), Statistic("p95", 0.95, bar), Statistic("p99", 0.99)),
            turns=5,
            facts={"group": "ping"},
        )
    yield Row(
        "ping-hostile",
        "ping through a relay beside eight hostile clients, and eight that work",
        "s",
        {
            "beside hostile clients": partial(scale.pings_beside_hostile_clients, 8, 10.0),
            "without them": partial(scale.pings_beside_hostile_clients, 0, 10.0),
        },
        peers=("without them",),
        higher_is_better=False,
        statistics=(Statistic("p50"), Statistic("p95", 0.95), Statistic("p99", 0.99, 2.0)),
        turns=5,
        note="all attacks of tests/hostile, chosen at random; the hostile clients and their commands leave the "
        "processors to all others, so this shows what the relay and the agent share, and not what the kernel does",
        facts={"group": "ping"},
    )
    for size in (64, 4 * KIB, 64 * KIB):
        yield Row(
            f"frames-{size}",
            f"frames of {size} bytes of data",
            "frames/s",
            {
                "client, channel and agent": _in_trio(session.full_stack_frames, size),
                "codec alone": _in_trio(session.codec_frames, size),
            },
            turns=3,
            facts={"group": "frames", "size": size},
        )
    yield Row(
        "requests",
        "pings by 50 tasks at once",
        "requests/s",
        {"client, channel and agent": _in_trio(session.full_stack_pings, 50)},
        turns=3,
        facts={"group": "frames"},
    )


def _call_rows() -> Iterator[Row]:
    """Single calls beside trio's own, and a command where every processor is busy with something else."""
    for name, title, guests, trios, n in (
        ("small-read", "read_bytes() of 1 KiB", session.small_read_guest, session.small_read_trio, 300),
        ("stat", "stat()", session.stat_guest, session.stat_trio, 600),
    ):
        yield Row(
            name,
            title,
            "s",
            {
                "tasks": _samples_in_trio(guests, n, "tasks"),
                "threads": _samples_in_trio(guests, n),
                "trio": _samples_in_trio(trios, n),
            },
            peers=("trio",),
            higher_is_better=False,
            facts={"group": "session"},
        )
    yield Row(
        "run-process-loaded",
        'run_process(["true"]) while each processor is busy with a loop as well',
        "s",
        {
            "tasks": _loaded(_samples_in_trio(session.run_process_guest, 40, "tasks")),
            "threads": _loaded(_samples_in_trio(session.run_process_guest, 40)),
            "trio": _loaded(_samples_in_trio(session.run_process_trio, 40)),
        },
        peers=("trio",),
        higher_is_better=False,
        statistics=(Statistic("p50", 0.5, 2.5), Statistic("p95", 0.95)),
        facts={"group": "session"},
    )


def _loaded(turn: Callable[[], Sequence[float]]) -> Callable[[], Sequence[float]]:
    def loaded() -> Sequence[float]:
        with session.busy_processors():
            return turn()

    return loaded


def _tasks_rows() -> Iterator[Row]:
    """A guest whose bytes tasks move, beside the same guest with threads."""
    gib = 1024 * MIB
    p50, p95 = Statistic("p50"), Statistic("p95", 0.95)
    table: tuple[tuple[str, str, str, Callable[[session.Workers], Callable[[], Sequence[float]]]], ...] = (
        (
            "run-process",
            'run_process(["true"])',
            "s",
            lambda by: _samples_in_trio(session.run_process_guest, 60, by),
        ),
        ("ping", "ping", "s", lambda by: _samples_in_trio(session.ping_idle, 400, by)),
        (
            "ping-busy",
            "ping beside 1 GiB of stdout",
            "s",
            lambda by: _samples_in_trio(session.ping_under_stdout, gib, by),
        ),
        ("cat", "64 bytes through a `cat` that runs", "s", lambda by: partial(in_guest, by, "cat", 1500)),
        ("stdout", "1 GiB of a process's stdout", "MiB/s", lambda by: _mib(session.stdout_guest, gib, by)),
        ("stdin", "1 GiB to a process's stdin", "MiB/s", lambda by: _mib(session.stdin_guest, gib, by)),
        ("requests", "pings by 50 tasks", "requests/s", lambda by: _in_trio(session.full_stack_pings, 50, by)),
    )
    for name, title, unit, contender in table:
        yield Row(
            f"{name}-tasks",
            f"{title}: tasks or threads move the bytes",
            unit,
            {"tasks": contender("tasks"), "threads": contender("threads")},
            peers=("threads",),
            higher_is_better=unit != "s",
            statistics=(p50, p95) if unit == "s" else (Statistic(),),
            turns=5,
            facts={"group": "workers"},
        )


def _mib(function: Callable[..., Awaitable[float]], nbytes: int, *args: object) -> Callable[[], Sequence[float]]:
    async def run() -> float:
        return await function(nbytes, *args) / MIB

    return lambda: [trio.run(run)]


ROWS: dict[str, Row] = {
    row.name: row
    for make in (
        _channel_rows,
        _session_rows,
        _call_rows,
        _tasks_rows,
        peer.rows,
        scale.rows,
        scaling.rows,
        machine.rows,
    )
    for row in make()
}

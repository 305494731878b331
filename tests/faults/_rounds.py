"""Rounds: a plan is carried out, and then the invariants are checked.

After any fault these must hold: every operation has ended in one of its allowed ways, and says why; an exit status
is one that the guest has sent; every byte is accounted for; nothing is left behind; the next guest works.
"""

from __future__ import annotations

import contextlib
import errno
import json
import operator
import pathlib
import random
import resource
import warnings
from contextlib import asynccontextmanager, contextmanager, suppress
from functools import partial
from typing import TYPE_CHECKING, Any

import trio

from tests.faults import _limits
from tests.faults._guests import InProcessGuest, TappedGuest
from tests.faults._plan import BOOT, HONEST, SILENT, harms_a_session_only
from tests.faults._session import FAILURES, Session, Verdict, kill
from tests.tools.conserved import conserved
from tests.tools.leftovers import marked, marking, wait_until_none
from tests.tools.limits import HANG
from trio_console import (
    ConsoleSharedState,
    ConsoleStream,
    GuestLostError,
    Log,
    ProcessGuest,
    RelayOptions,
    connect_guest,
    open_guest,
    serve_relay,
)
from trio_console import _wire as wire
from trio_console.testing import (
    Corrupt,
    Disconnect,
    Duplicate,
    FakeConsoleDevice,
    FaultyGuest,
    Truncate,
    nothing_left_behind,
)

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator

    from tests.faults._plan import Plan
    from trio_console import ConsoleStatistics, Guest, Relay

#: Seconds of silence after a fault until the calls that still wait are cancelled.
QUIET = 0.15

POOL = random.Random(0).randbytes(1_300_000)

#: The files that the operations and the rounds make in their directory.
OWN_FILES = ("file-", "session.log", "disk")

#: The warnings of the package for a guest that does not answer, or that had too little time: the graces are short,
#: and a busy machine may use one up before all processes were killed. (Afterwards all are gone all the same.)
EXPECTED_WARNINGS = ("did not confirm within", "could not end", "ignored SIGTERM")


async def play(plan: Plan, directory: pathlib.Path) -> Verdict:
    """Carry a plan out, and judge."""
    verdict = Verdict()
    kinds = {
        "console": _guest_round,
        "agent": _guest_round,
        "cancel": _guest_round,
        "device": _device_round,
        "descriptors": _descriptors_round,
        "disk": _disk_round,
        "client": _client_round,
    }
    with warnings.catch_warnings(record=True) as caught, _no_process_left(verdict), nothing_left_behind():
        warnings.simplefilter("always")
        with trio.move_on_after(HANG) as hang:
            await kinds[plan.kind](plan, directory, verdict)
            await _next_guest_works(verdict)
    verdict.expect(not hang.cancelled_caught, "it hung")
    for warning in caught:
        known = any(text in str(warning.message) for text in EXPECTED_WARNINGS)
        verdict.expect(known, f"warned: {warning.message}")
    if not any(isinstance(fault.action, Corrupt) for fault in plan.faults):  # which may name other files
        left = [path.name for path in directory.iterdir() if not path.name.startswith(OWN_FILES)]
        verdict.expect(not left, f"left files: {left}")
    return verdict


@contextmanager
def _no_process_left(verdict: Verdict) -> Iterator[None]:
    """No process that a guest has started, whoever its parent is by now."""
    with marking() as mark:
        yield
    # A killed process may have to wait for the processor before it is gone.
    left = wait_until_none(lambda: {pid: _command_of(pid) for pid in marked(mark)}, HANG)
    verdict.expect(not left, f"left processes: {left}")


def _command_of(pid: int) -> bytes:
    with suppress(OSError):
        return pathlib.Path(f"/proc/{pid}/cmdline").read_bytes()
    return b""


async def _next_guest_works(verdict: Verdict) -> None:
    async with open_guest(InProcessGuest()) as guest:
        done = await guest.run_process(["echo", "next"], capture_stdout=True)
    verdict.expect(done.stdout == b"next\n", f"the next guest said {done.stdout!r}")


@asynccontextmanager
async def _echo_server() -> AsyncIterator[int]:
    """A TCP server that echoes, and tells its port."""

    async def echo(stream: trio.SocketStream) -> None:
        with suppress(trio.BrokenResourceError):
            async for data in stream:
                await stream.send_all(data)
            await stream.send_eof()

    async with trio.open_nursery() as nursery:
        listeners = await nursery.start(partial(trio.serve_tcp, host="127.0.0.1"), echo, 0)
        yield listeners[0].socket.getsockname()[1]
        nursery.cancel_scope.cancel()


# Faults on the console, and of the agent


async def _guest_round(plan: Plan, directory: pathlib.Path, verdict: Verdict) -> None:
    faulty = FaultyGuest(plan.faults, guest=InProcessGuest() if plan.agent == "task" else ProcessGuest())
    tapped = TappedGuest(faulty)
    silent = any(_may_be_silent(fault.action) for fault in plan.faults)
    async with _echo_server() as port:
        session = Session(directory, POOL, port)
        ending = await _guest_session(plan, session, faulty, tapped, silent)
    fired = faulty.fired
    honest = all(isinstance(each.fault.action, HONEST) for each in fired)
    _judge_outcomes(session, verdict, honest=honest, clean=not fired)
    if ending.startswith("open"):
        verdict.expect(fired, f"could not be opened, without a fault: {ending}")
    if not silent:
        verdict.expect(
            not any(o.how == "cancelled" for o in session.outcomes) or "cancelled" in ending, "cancelled"
        )
    verdict.complaints += session.complaints
    exits = tapped.exits if tapped.tap is not None else set()
    for outcome in session.outcomes:
        if outcome.returncode is not None and outcome.how == "done":
            verdict.expect(outcome.returncode in exits, f"{outcome} was told by nobody")


def _may_be_silent(action: Any) -> bool:
    if isinstance(action, Truncate):
        return not isinstance(action.then, Disconnect)
    return isinstance(action, SILENT)


async def _guest_session(
    plan: Plan, session: Session, faulty: FaultyGuest, tapped: TappedGuest, silent: bool
) -> str:
    relay_path = session.directory / "relay.sock" if plan.client_operations else None
    opening = trio.CancelScope()
    async with trio.open_nursery() as nursery:
        working = trio.CancelScope()
        opened = trio.Event()

        async def lose_patience() -> None:
            await faulty.wait_fired()
            await trio.sleep(0 if plan.kind == "cancel" else QUIET)
            (working if opened.is_set() else opening).cancel()

        if silent:
            nursery.start_soon(lose_patience)
        guest: Guest | None = None
        try:
            with opening:
                async with open_guest(tapped, relay_path=relay_path, grace=plan.grace) as guest:
                    opened.set()
                    with working:
                        if relay_path is None:
                            await session.run(guest, plan.operations, "a")
                        else:
                            await _run_both(session, guest, relay_path, plan)
                    await _look_after(session, guest, faulty)
        except FAILURES as exc:
            ending = f"{'closing' if opened.is_set() else 'opening'} failed: {exc!r}"
        else:
            ending = "opening cancelled" if opening.cancelled_caught else "closed"
        nursery.cancel_scope.cancel()
    if guest is not None and tapped.tap is not None:
        console = guest.statistics().console
        assert console is not None
        _judge_bytes(console, tapped, session)
    return ending


async def _look_after(session: Session, guest: Guest, faulty: FaultyGuest) -> None:
    """After a fault that has harmed only a session, the guest goes on. A guest that is lost says so at once."""
    fired = faulty.fired
    if all(harms_a_session_only(each.fault.action) and each.message not in BOOT for each in fired):
        await _must_go_on(session, guest, faulty)
    if "lost" in repr(guest):
        calls = (guest.ping, partial(guest.run_process, ["true"]), partial(guest.open_tcp_stream, "127.0.0.1", 1))
        for call in (*calls, guest.path("/").exists, guest.path("/").stat):
            try:
                await call()
            except GuestLostError as exc:
                if not exc.reason:
                    session.complaints.append("lost without a reason")
            else:
                session.complaints.append(f"{call} succeeded with a guest that was lost")


async def _must_go_on(session: Session, guest: Guest, faulty: FaultyGuest) -> None:
    fired = faulty.fired
    done = None
    with trio.move_on_after(HANG / 2) as patience:
        async with trio.open_nursery() as nursery:

            @nursery.start_soon
            async def _lose_patience() -> None:
                while len(faulty.fired) == len(fired):  # there may be faults to come
                    await trio.sleep(0.01)
                patience.deadline = trio.current_time() + 5

            with suppress(*FAILURES):
                done = await guest.run_process(
                    ["echo", "on"], capture_stdout=True, check=False, deliver_cancel=kill
                )
            nursery.cancel_scope.cancel()
    if (done is None or done.stdout != b"on\n") and len(faulty.fired) == len(fired):
        session.complaints.append(f"after {fired} the guest said {done}")
    if all(isinstance(each.fault.action, Duplicate) and not each.fault.action.copies for each in faulty.fired):
        # No bytes were changed on the way, so the end of each cancelled call was confirmed.
        with trio.move_on_after(HANG / 2):
            while guest.statistics().active_sessions:
                await trio.sleep(0.001)
        if guest.statistics().active_sessions:
            session.complaints.append(f"sessions are left: {guest.statistics()}")


async def _through_relay(session: Session, path: pathlib.Path, plan: Plan) -> None:
    try:
        async with connect_guest(path, grace=plan.grace) as guest:
            await session.run(guest, plan.client_operations, "r")
    except FAILURES as exc:
        session.note_connection(exc)


def _judge_outcomes(session: Session, verdict: Verdict, *, honest: bool, clean: bool) -> None:
    for outcome in session.outcomes:
        if clean:
            verdict.expect(outcome.how == "done", f"without a fault: {outcome}")
        if honest:
            verdict.expect(outcome.how in ("done", "lost", "cancelled"), f"{outcome}")
        if outcome.how in ("lost", "failed"):
            verdict.expect(outcome.detail, f"no reason: {outcome}")


def _judge_bytes(console: ConsoleStatistics, tapped: TappedGuest, session: Session) -> None:
    tap = tapped.tap
    assert tap is not None
    for name, lane in (("tx", console.tx), ("rx", console.rx)):
        if not conserved(lane):
            session.complaints.append(f"{name} does not add up: {lane}")
    if console.tx.bytes_in != tap.bytes_read:
        session.complaints.append(
            f"the device gave {tap.bytes_read} bytes, and {console.tx.bytes_in} were counted"
        )
    if console.rx.bytes_out != tap.bytes_written:
        session.complaints.append(f"the device took {tap.bytes_written} bytes, and {console.rx} was counted")


# Faults of a virtual machine monitor's threads


async def _device_round(plan: Plan, _directory: pathlib.Path, verdict: Verdict) -> None:
    """Bytes go both ways between a channel and a device's threads, until these meet a fault."""
    shared = ConsoleSharedState(max_bytes=plan.details["max_bytes"])
    device = FakeConsoleDevice(shared)
    total = sum(plan.details["sizes"])
    received, came = bytearray(), bytearray()
    async with ConsoleStream(shared) as channel, trio.open_nursery() as nursery:
        limiter = trio.CapacityLimiter(2)
        for job in (partial(_guest_writes, device, plan.details), partial(_guest_reads, device, came)):
            nursery.start_soon(partial(trio.to_thread.run_sync, job, limiter=limiter))
        nursery.start_soon(_host_sends, channel, total)
        nursery.start_soon(_host_receives, channel, total, received)
    await trio.to_thread.run_sync(device.shutdown)
    verdict.expect(not device.violations, f"the backend hangs a device: {device.violations}")
    verdict.expect(POOL.startswith(received), "the host received other bytes than the guest wrote")
    verdict.expect(POOL.startswith(came), "the guest read other bytes than the host sent")
    if plan.details["fault"] in ("nothing", "stall"):
        verdict.expect((len(received), len(came)) == (total, total), f"{len(received)} and {len(came)} of {total}")
    now = channel.statistics()
    verdict.expect(conserved(now.tx) and conserved(now.rx), f"does not add up: {now}")
    verdict.expect(now.tx.bytes_out == len(received), f"{len(received)} received, and {now.tx}")
    verdict.expect(now.tx.bytes_in == device.statistics().bytes_written, f"{device.statistics()}, and {now.tx}")
    shared.close_wakes()


async def _host_sends(channel: ConsoleStream, total: int) -> None:
    with suppress(trio.BrokenResourceError):
        await channel.send_all(POOL[:total])
        await channel.send_eof()


async def _host_receives(channel: ConsoleStream, total: int, received: bytearray) -> None:
    with suppress(trio.BrokenResourceError):
        while len(received) < total and (data := await channel.receive_some()):
            received.extend(data)


def _guest_writes(device: FakeConsoleDevice, details: dict[str, Any]) -> None:
    sent = 0
    after = min(details["after"], sum(details["sizes"][:-1]))
    with suppress(OSError):  # the device is gone
        for size in details["sizes"]:
            if sent >= after:
                _break_device(device, details["fault"])
            device.guest_write(POOL[sent : sent + size])
            sent += size
        device.guest_flush()


def _guest_reads(device: FakeConsoleDevice, came: bytearray) -> None:
    with suppress(OSError):
        while data := device.guest_read():
            came.extend(data)


def _break_device(device: FakeConsoleDevice, fault: str) -> None:
    match fault:
        case "stall":
            device.stall()
            device.resume()
        case "die":
            device.die()
        case "die in the middle":
            device.die(mid_chunk=True)
        case "die with an error":
            device.die(OSError(errno.EIO, "the device burns"))


# Descriptors run out


async def _descriptors_round(plan: Plan, directory: pathlib.Path, verdict: Verdict) -> None:
    few = partial(_limits.few_descriptors, plan.details["free"], plan.details["how"])
    relay_path = directory / "relay.sock"
    spec = ProcessGuest() if plan.agent == "process" else InProcessGuest()
    opening = partial(open_guest, spec, relay_path=relay_path, grace=plan.grace)
    async with _echo_server() as port:
        session = Session(directory, POOL, port)
        if plan.details["when"] == "before":
            with few():
                try:
                    async with opening() as guest:
                        await _run_both(session, guest, relay_path, plan)
                except FAILURES as exc:
                    session.note_connection(exc)
        else:
            async with opening() as guest:
                with few():
                    await _run_both(session, guest, relay_path, plan)
                # There are enough descriptors again, and all calls that had failed work.
                done = await guest.run_process(["echo", "back"], capture_stdout=True)
                verdict.expect(done.stdout == b"back\n", f"the same guest said {done.stdout!r}")
                async with connect_guest(relay_path) as client:
                    await client.ping()
    for outcome in session.outcomes:
        verdict.expect(outcome.how in ("done", "lost", "failed"), f"{outcome}")
        if outcome.how == "failed":
            verdict.expect("Too many open files" in outcome.detail, f"another reason: {outcome}")


async def _run_both(session: Session, guest: Guest, relay_path: pathlib.Path, plan: Plan) -> None:
    async with trio.open_nursery() as nursery:
        nursery.start_soon(session.run, guest, plan.operations, "a")
        nursery.start_soon(_through_relay, session, relay_path, plan)


# The disk of a relay's log is full


async def _disk_round(plan: Plan, directory: pathlib.Path, verdict: Verdict) -> None:
    with contextlib.ExitStack() as stack:
        log = directory / "session.log"
        match plan.details["how"]:
            case "full":
                log = pathlib.Path("/dev/full")
            case "tmpfs":
                with suppress(PermissionError):
                    log = stack.enter_context(_limits.small_disk(directory, plan.details["room"])) / "session.log"
            case "limit":
                stack.enter_context(_limits.lowered(resource.RLIMIT_FSIZE, plan.details["room"]))
        await _logged_session(plan, directory, log, verdict)


async def _logged_session(plan: Plan, directory: pathlib.Path, log: pathlib.Path, verdict: Verdict) -> None:
    async with _echo_server() as port, trio.open_nursery() as nursery:
        session = Session(directory, POOL, port)
        relay: Relay = await nursery.start(
            partial(
                serve_relay,
                InProcessGuest(),
                directory / "relay.sock",
                options=RelayOptions(session_log=Log(log, max_bytes=plan.details["max_bytes"])),
                grace=plan.grace,
            )
        )
        for _ in range(2):
            await _through_relay(session, directory / "relay.sock", plan)
        nursery.cancel_scope.cancel()
    for outcome in session.outcomes:
        full = plan.details["how"] == "limit" and "File too large" in outcome.detail
        verdict.expect(outcome.how == "done" or full, f"{outcome}")
    logged = relay.statistics().session_log
    assert logged is not None
    if not log.is_char_device():
        files = list(log.parent.glob("session.log*"))
        lines = [line for file in files for line in file.read_bytes().splitlines(keepends=True)]
        verdict.expect(all(line.endswith(b"\n") and json.loads(line) for line in lines), "half a line in the log")
        # Five files are kept, and the oldest go.
        expect = operator.eq if len(files) < 5 else operator.le
        verdict.expect(expect(len(lines), logged.records_written), f"{len(lines)} lines, and {logged}")
    verdict.expect(logged.bytes_queued == 0, f"{logged}")
    commands = [o for o in session.outcomes if o.returncode is not None]
    if log.is_char_device() and commands:
        verdict.expect(logged.records_dropped >= 2 * len(commands), f"{logged}")


# A relay's client misbehaves


async def _client_round(plan: Plan, directory: pathlib.Path, verdict: Verdict) -> None:
    path = directory / "relay.sock"
    async with _echo_server() as port, open_guest(InProcessGuest(), relay_path=path, grace=plan.grace) as guest:
        session = Session(directory, POOL, port)
        async with trio.open_nursery() as nursery:
            await nursery.start(_misbehave, path, plan.details["what"])
            await _run_both(session, guest, path, plan)
            nursery.cancel_scope.cancel()
    _judge_outcomes(session, verdict, honest=True, clean=True)


async def _misbehave(path: pathlib.Path, what: str, task_status: trio.TaskStatus[None]) -> None:
    async with await trio.open_unix_socket(path) as stream:
        greeting = b""
        while len(greeting) < 12:
            greeting += await stream.receive_some()
        id_ = int.from_bytes(greeting[:4], "big")
        request = wire.encode(wire.ExecRequest("yes"), id_)
        task_status.started()
        with suppress(trio.BrokenResourceError):
            match what:
                case "half a frame":
                    await stream.send_all(request[: len(request) // 2])
                case "garbage":
                    await stream.send_all(random.Random(1).randbytes(5000))
                case "silence":
                    await stream.send_all(request)
                case "flood":
                    ping = wire.encode(wire.Ping(), id_)
                    while True:
                        await stream.send_all(ping * 100)
                case "gone":
                    await stream.send_all(request + request[:20])
                    return
            await trio.sleep_forever()

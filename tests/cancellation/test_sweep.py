"""The sweep itself: it reaches every moment, and finds each kind of leftover."""

from __future__ import annotations

import math
import os
import select
import signal
import socket
import subprocess
import threading
import time
import traceback
import warnings
from contextlib import asynccontextmanager, suppress
from typing import TYPE_CHECKING, Any

import pytest
import trio
import trio.testing

from tests.cancellation._sweep import Moment
from tests.tools.pidfds import pidfd_open

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable, Iterator

    from tests.cancellation._sweep import Sweep


@asynccontextmanager
async def nowhere() -> AsyncIterator[None]:
    yield


async def nothing(_place: None) -> None:
    await trio.lowlevel.checkpoint()


@pytest.fixture
def sweep_over(make_sweep: Callable[..., Sweep]) -> Callable[..., Sweep]:
    return lambda session, **options: make_sweep(nowhere, session, nothing, **options)


def test_a_session_is_cancelled_at_each_of_its_checkpoints(sweep_over: Callable[..., Sweep]) -> None:
    came: set[int] = set()

    async def session(_place: None) -> None:
        done = 0
        try:
            for _ in range(4):
                await trio.lowlevel.checkpoint()
                done += 1
        finally:
            came.add(done)

    sweep_over(session).all()
    assert came == {0, 1, 2, 3, 4}


def test_a_session_is_cancelled_in_each_sleep_and_behind_it(sweep_over: Callable[..., Sweep]) -> None:
    woken: set[str] = set()

    async def session(_place: None) -> None:
        event = trio.Event()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(_set, event)
            try:
                await event.wait()
                woken.add("by the event")
                await trio.lowlevel.checkpoint()
                woken.add("not at all")
            except trio.Cancelled:
                woken.add("in its sleep" if not event.is_set() else "behind it")
                raise

    sweep_over(session).all()
    assert woken == {"by the event", "in its sleep", "behind it", "not at all"}


async def _set(event: trio.Event) -> None:
    await trio.lowlevel.checkpoint()
    event.set()


def test_a_part_of_the_moments_and_the_others_are_all(sweep_over: Callable[..., Sweep]) -> None:
    async def session(_place: None) -> None:
        for _ in range(20):
            await trio.lowlevel.checkpoint()

    whole = sweep_over(session)
    whole.all()
    parts = [sweep_over(session) for _ in range(3)]
    for number, part in enumerate(parts):
        part.all(number, len(parts))
        assert part.cancelled > 0
    assert sum(part.cancelled for part in parts) == whole.cancelled


def test_a_moment_is_what_its_text_says() -> None:
    moment = Moment("after", 12, "module.function#3")
    assert Moment.parse(str(moment)) == moment
    with pytest.raises(ValueError, match="not a moment"):
        Moment.parse("after a while")


# What is found

_left: list[Any] = []


@pytest.fixture(autouse=True)
def _take_away() -> Iterator[None]:
    yield
    for thing in _left:
        if isinstance(thing, subprocess.Popen):
            thing.kill()
            thing.wait()
        elif isinstance(thing, threading.Event):
            thing.set()
        elif isinstance(thing, int):
            with suppress(ProcessLookupError):
                os.kill(thing, signal.SIGKILL)
        else:
            thing.close()
    _left.clear()


async def leave_a_descriptor(_place: None) -> None:
    sock = socket.socket()
    _left.append(sock)
    await trio.lowlevel.checkpoint()
    sock.close()


async def leave_a_process(_place: None) -> None:
    process = subprocess.Popen(["sleep", "1000"])  # noqa: ASYNC220
    _left.append(process)
    await trio.lowlevel.checkpoint()
    process.kill()
    process.wait()


async def leave_a_zombie(_place: None) -> None:
    process = subprocess.Popen(["true"])  # noqa: ASYNC220
    _left.append(process)
    os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)  # noqa: ASYNC222
    await trio.lowlevel.checkpoint()
    process.wait()


async def leave_a_grandchild(_place: None) -> None:
    with trio.CancelScope(shield=True):  # without its number nobody could end it
        done = await trio.run_process(["sh", "-c", "sleep 1000 >/dev/null & echo $!"], capture_stdout=True)
    pid = int(done.stdout)
    _left.append(pid)
    await trio.lowlevel.checkpoint()
    ended = pidfd_open(pid)
    os.kill(pid, signal.SIGKILL)
    select.select([ended], [], [])
    os.close(ended)


async def leave_a_thread(_place: None) -> None:
    stop = threading.Event()
    _left.append(stop)
    thread = threading.Thread(target=stop.wait, name="forgotten")
    thread.start()
    await trio.lowlevel.checkpoint()
    stop.set()
    thread.join()


async def leave_a_task(_place: None) -> None:
    stop = trio.Event()
    trio.lowlevel.spawn_system_task(stop.wait)
    await trio.lowlevel.checkpoint()
    stop.set()
    await trio.testing.wait_all_tasks_blocked()


async def leave_a_socket_file(_place: None) -> None:
    directory = os.environ["SWEEP_DIRECTORY"]
    with socket.socket(socket.AF_UNIX) as sock:
        sock.bind(f"{directory}/socket")
        try:
            await trio.lowlevel.checkpoint()
        except trio.Cancelled:
            os.rename(f"{directory}/socket", f"{directory}/forgotten")
            raise
        os.unlink(f"{directory}/socket")


async def raise_something_else(_place: None) -> None:
    try:
        await trio.lowlevel.checkpoint()
    finally:
        if trio.current_effective_deadline() == -math.inf:
            raise OSError("something else")


async def warn(_place: None) -> None:
    try:
        await trio.lowlevel.checkpoint()
    except trio.Cancelled:
        warnings.warn("watch out", RuntimeWarning, stacklevel=1)
        raise


async def stay_too_long(_place: None) -> None:
    try:
        await trio.lowlevel.checkpoint()
    except trio.Cancelled:
        time.sleep(0.15)  # noqa: ASYNC251
        raise


@pytest.mark.parametrize(
    ("session", "finding"),
    [
        (leave_a_descriptor, "left behind: ['descriptor "),
        (leave_a_process, "left behind: ["),
        (leave_a_zombie, "left behind: ['child "),
        (leave_a_grandchild, "process "),
        (leave_a_thread, "left behind: ['thread forgotten"),
        (leave_a_task, "left behind: ['1 tasks']"),
        (leave_a_socket_file, "/forgotten']"),
        (raise_something_else, "OSError: something else"),
        (warn, "watch out"),
        (stay_too_long, "leaving took"),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_what_a_cancelled_session_leaves_is_found_and_can_be_found_again(
    sweep_over: Callable[..., Sweep],
    session: Callable[[None], Awaitable[None]],
    finding: str,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Any,
) -> None:
    monkeypatch.setenv("SWEEP_DIRECTORY", str(tmp_path))
    monkeypatch.setattr("tests.tools.leftovers.ENDING", 0.05)
    with pytest.raises(BaseException) as caught:
        sweep_over(session, grace=0.1 if session is stay_too_long else 60.0).all()
    story = "".join(traceback.format_exception(caught.value))
    assert finding in story
    assert "Again: SWEEP_MOMENT='" in story

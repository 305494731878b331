"""Presses Ctrl-C at every moment at which a context of the package is entered and left, each in its own process.

**Moments.** A signal is handled between two opcodes. A trace function counts the opcodes of this package's frames
in the main thread, and at the n-th raises SIGINT with `signal.raise_signal`. trio's own handler then decides, as
for a user's Ctrl-C at that place: it raises `KeyboardInterrupt` at once, or later, where the main task waits. (A
trace function that raised `KeyboardInterrupt` itself would bypass trio's protection and prove nothing.)

**Invariants.** `trio.run` ends with one `KeyboardInterrupt`, alone, within the time of an ending. No thread,
descriptor, child process, process of a guest or socket file is left, and there is no warning. In frames of the
package it is never raised at once, except in those that run before anything was entered.

**Method.** This file is a program: it imports the modules that the contexts need, has no threads and no trio run,
and forks a child for each moment. Runs differ, because they have other threads and processes; so a moment is only
a number, and a sweep ends when three numbers in a row are beyond the end of their run.

    python -m tests.interrupts._sweep CONTEXT [--first N] [--stride N] [--second OPCODES] [--jobs N] [--seconds S]

prints a line for each moment at which an invariant failed, and then a summary, in JSON.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import select
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
import traceback
import warnings
from collections import deque
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple

import trio

import trio_console
import trio_console._open.relay
import trio_console._open.template
import trio_console.testing
from tests.tools.leftovers import children, descriptors, mark, marked, name_thread, threads, wait_until_none
from tests.tools.limits import BUSY, ENDING
from trio_console import ProcessGuest, connect_guest, open_console, open_guest, serve_relay
from trio_console import _wire as wire
from trio_console._console.devices import FdDevice, as_device
from trio_console._console.polled import open_polled
from trio_console._guests import leftovers as guest_leftovers
from trio_console._guests import supervisor
from trio_console.testing import ScriptedGuest

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable
    from types import FrameType

PACKAGE = os.path.dirname(trio_console.__file__) + os.sep

#: Numbers in a row beyond the end of their runs, after which a sweep is over.
BEYOND = 3

#: Seconds that leaving may take in the contexts below, and those that a run may take besides.
GRACE = 2.0
ALLOWANCE = 2.0

#: The factor of the time limit when a moment that took too long is tried again. It shows whether the moment hangs.
PATIENCE = 6.0

# The contexts, each entered and left by the main task


async def console(_directory: str) -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        async with open_console(ours, grace=GRACE):
            pass


async def console_by_tasks(_directory: str) -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        device = trio.lowlevel.enable_ki_protection(as_device)(ours)  # as a spec calls it
        assert isinstance(device, FdDevice)
        try:
            async with open_polled(device, grace=GRACE):
                pass
        finally:
            trio.lowlevel.enable_ki_protection(device.close)()  # Ctrl-C may have come before it was entered


async def guest(_directory: str) -> None:
    async with open_guest(ProcessGuest(), grace=GRACE):
        pass


async def quick_guest(_directory: str) -> None:
    """The same, with an agent that starts in a millisecond: what this program does is the same."""
    async with open_guest(ProcessGuest(python=os.environ["SWEEP_AGENT"]), grace=GRACE):
        pass


async def quick_guest_by_tasks(_directory: str) -> None:
    async with open_guest(ProcessGuest(python=os.environ["SWEEP_AGENT"], workers="tasks"), grace=GRACE):
        pass


async def scripted_guest(_directory: str) -> None:
    async with open_guest(ScriptedGuest(), grace=GRACE):
        pass


async def guest_with_relay(directory: str) -> None:
    async with open_guest(ScriptedGuest(), grace=GRACE, relay_path=os.path.join(directory, "socket")):
        pass


async def client(_directory: str) -> None:
    async with connect_guest(os.environ["SWEEP_RELAY"], grace=GRACE):
        pass


class _Leave:
    """Leaves as soon as the relay serves."""

    def __init__(self, scope: trio.CancelScope) -> None:
        self._scope = scope

    def started(self, _relay: object = None) -> None:
        self._scope.cancel()


async def relay(directory: str) -> None:
    with trio.CancelScope() as scope:
        path = os.path.join(directory, "socket")
        await serve_relay(ScriptedGuest(), path, grace=GRACE, task_status=_Leave(scope))


async def relay_in_a_nursery(directory: str) -> None:
    path = os.path.join(directory, "socket")
    serve = partial(serve_relay, ScriptedGuest(), path, grace=GRACE)
    try:
        async with trio.open_nursery() as nursery:
            await nursery.start(serve)
            nursery.cancel_scope.cancel()
    except BaseExceptionGroup as group:
        if len(group.exceptions) > 1:
            raise
        raise group.exceptions[0] from None  # noqa: ASYNC123  (only its type is looked at)


CONTEXTS: dict[str, Callable[[str], Awaitable[None]]] = {
    "open_console": console,
    "open_console_tasks": console_by_tasks,
    "open_guest": guest,
    "open_guest_quick": quick_guest,
    "open_guest_quick_tasks": quick_guest_by_tasks,
    "open_guest_scripted": scripted_guest,
    "open_guest_relay": guest_with_relay,
    "connect_guest": client,
    "serve_relay": relay,
    "serve_relay_nursery": relay_in_a_nursery,
}


# In a child


class Presser(trio.abc.Instrument):
    """Traces the opcodes of the package, and raises SIGINT at some of them.

    Args:
        at: which, counted from 1.
    """

    def __init__(self, at: list[int]) -> None:
        self.count = 0
        self.pressed: list[str] = []
        self.struck: list[str] = []  # where `KeyboardInterrupt` was raised there and then
        self._at = deque(at)

    def install(self) -> None:
        # 3.12 has opcode events only once some frame has asked for them before this call.
        sys._getframe().f_trace_opcodes = True
        sys.settrace(self._enter)

    def before_task_step(self, _task: trio.lowlevel.Task) -> None:
        # Python ends the tracing when the tracer raises, as it does when trio's handler decides to.
        if sys.gettrace() is None:
            self.install()

    def _enter(self, frame: FrameType, _event: str, _arg: object) -> Any:
        if not frame.f_code.co_filename.startswith(PACKAGE):
            return None
        frame.f_trace_lines = False
        frame.f_trace = self._step  # before the next: 3.13 turns the events on only in a frame that has one
        frame.f_trace_opcodes = True
        return self._step

    def _step(self, frame: FrameType, event: str, _arg: object) -> Any:
        if event == "opcode":
            self.count += 1
            if self._at and self.count >= self._at[0]:
                self._at.popleft()
                self._press(frame)
        return self._step

    def _press(self, frame: FrameType) -> None:
        code = frame.f_code
        where = f"{code.co_filename.removeprefix(PACKAGE)}:{frame.f_lineno} {code.co_qualname}"
        self.pressed.append(where)
        try:
            signal.raise_signal(signal.SIGINT)
        except KeyboardInterrupt:
            self.struck.append(where)
            raise


#: Frames in which it may be raised: they run before anything has been entered.
HARMLESS = (
    "interrupt_safe.<locals>.managed",
    "_Safe.__init__",
    "ScriptedGuest.__init__",
    "ProcessGuest.__init__",
    "check_workers",
)


def left(before: set[str], directory: str) -> list[str]:
    def going() -> list[str]:
        found = [name_thread(thread) for thread in threads() - {threading.main_thread()}]
        found += [f"child {pid}" for pid in children()]
        return found + [f"process {pid}" for pid in marked(str(os.getpid()))]

    found = wait_until_none(going)
    return found + sorted(descriptors() - before) + [f"file {name}" for name in os.listdir(directory)]


def outcome(context: str, presser: Presser, directory: str) -> str | None:
    """Run the context under the presser; returns what was wrong at its end."""
    error: BaseException | None = None
    try:
        presser.install()
        try:
            trio.run(CONTEXTS[context], directory, instruments=[presser])
        finally:
            sys.settrace(None)
    except BaseException as exc:
        error = exc
    if type(error) is not (KeyboardInterrupt if presser.pressed else type(None)):
        return "ended with " + ("nothing" if error is None else "".join(traceback.format_exception(error)))
    return None


def run_child(context: str, at: list[int], directory: str) -> dict[str, Any]:
    """One run in this process; returns its report."""
    signal.signal(signal.SIGINT, signal.default_int_handler)
    mark(str(os.getpid()))
    guest_leftovers._SCAN_TIME = supervisor._KILL_TIME = BUSY
    gc.disable()  # an object that waits for the collector counts as left behind
    said: list[str] = []
    sys.unraisablehook = lambda args: said.append(f"unraisable: {args.exc_value!r} in {args.object!r}")
    threading.excepthook = lambda args: said.append(f"in a thread: {args.exc_value!r}")
    before = descriptors()
    presser = Presser(at)
    with warnings.catch_warnings(record=True) as warned:
        warnings.simplefilter("always")
        wrong = outcome(context, presser, directory)
        found = left(before, directory)
        gc.collect()
    said += [f"warning: {one.message}" for one in warned]
    faults = [] if wrong is None else [wrong]
    faults += [f"struck unprotected at {where}" for where in presser.struck if not where.endswith(HARMLESS)]
    faults += [f"left behind: {one}" for one in found] + said
    return {"count": presser.count, "pressed": presser.pressed, "faults": faults}


# In the parent


class Moment(NamedTuple):
    n: int
    tries: int = 0


@dataclass
class Child:
    moment: Moment
    pid: int
    pipe: int
    directory: str
    deadline: float
    data: bytes = b""


@dataclass
class Sweep:
    """All moments of a context, or some of them."""

    context: str
    first: int = 1
    stride: int = 1
    second: int = 0
    jobs: int = 1
    seconds: float = float("inf")
    moments: int = 0
    longest: int = 0  # opcodes in a run
    hangs: int = 0
    faulty: int = 0
    cut_short: bool = False
    _beyond: int = 0
    _again: deque[Moment] = field(default_factory=deque)
    _running: dict[int, Child] = field(default_factory=dict)

    def run(self) -> None:
        end = time.monotonic() + self.seconds
        n = self.first
        while self._running or self._again or self._beyond < BEYOND:
            while len(self._running) < self.jobs and (self._again or self._beyond < BEYOND):
                if time.monotonic() > end:
                    self.cut_short = True
                    self._beyond = BEYOND
                    self._again.clear()
                    break
                if self._again:
                    self._start(self._again.popleft())
                else:
                    self._start(Moment(n))
                    n += self.stride
            self._wait()

    def _start(self, moment: Moment) -> None:
        directory = tempfile.mkdtemp(prefix="trio-console-interrupts-")
        receive, send = os.pipe()
        pid = os.fork()
        if not pid:
            os.close(receive)
            for child in self._running.values():
                os.close(child.pipe)
            try:
                at = [moment.n] + ([moment.n + self.second] if self.second else [])
                report = run_child(self.context, at, directory)
            except BaseException as exc:
                report = {"count": 0, "pressed": ["?"], "faults": ["".join(traceback.format_exception(exc))]}
            os.write(send, json.dumps(report).encode())
            os._exit(0)
        os.close(send)
        allowed = (GRACE + ALLOWANCE) * (PATIENCE if moment.tries else 1.0) + ENDING
        self._running[receive] = Child(moment, pid, receive, directory, time.monotonic() + allowed)

    def _wait(self) -> None:
        if not self._running:
            return
        patience = min(child.deadline for child in self._running.values()) - time.monotonic()
        ready, _, _ = select.select(list(self._running), [], [], max(0.0, patience))
        for fd in ready:
            child = self._running[fd]
            data = os.read(fd, 65536)
            child.data += data
            if not data:
                self._finish(child, json.loads(child.data) if child.data else None)
        for child in [one for one in self._running.values() if time.monotonic() > one.deadline]:
            self._finish(child, None)

    def _finish(self, child: Child, report: dict[str, Any] | None) -> None:
        del self._running[child.pipe]
        os.close(child.pipe)
        if report is None:
            kill_all(child.pid)
        os.waitpid(child.pid, 0)
        shutil.rmtree(child.directory)
        n = child.moment.n
        if report is None:
            if not child.moment.tries:
                self._again.append(Moment(n, 1))
                return
            self.hangs += 1
            print(f"{self.context} at {n}: hangs", flush=True)
            report = {"count": 0, "pressed": ["?"], "faults": []}
        self.longest = max(self.longest, report["count"])
        if report["pressed"]:
            self.moments += 1
            self._beyond = 0
        else:
            self._beyond += 1
        if report["faults"]:
            self.faulty += 1
            where = ", ".join(report["pressed"])
            print(f"{self.context} at {n} ({where}): {'; '.join(report['faults'])}", flush=True)


def kill_all(pid: int) -> None:
    """Kill a child that hangs, and all processes that carry its mark."""
    os.kill(pid, signal.SIGKILL)
    for other in marked(str(pid)) - {pid}:
        with suppress(ProcessLookupError):
            os.kill(other, signal.SIGKILL)


def start_relay(directory: str) -> subprocess.Popen[str]:
    path = os.path.join(directory, "relay")
    command = [sys.executable, "-m", "trio_console", "relay", "--listen", path]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == f"ready {path}\n"
    os.environ["SWEEP_RELAY"] = path
    return process


def build_agent(directory: str) -> None:
    """Compile the agent that starts in a millisecond; see `quick_agent.c`."""
    said = {
        "RESOLVED": wire.encode(wire.InitResolved(wire.DefaultUser(0, 0))),
        "READY": wire.encode(wire.Ready(0, 0, 0, "quick", wire.Flow(1024 * 1024))),
    }
    with open(os.path.join(directory, "frames.h"), "w", encoding="ascii") as file:
        for name, frame in said.items():
            numbers = ", ".join(map(str, frame))
            file.write(f"static const unsigned char {name}[] = {{{numbers}}};\n")
    program = os.path.join(directory, "quick_agent")
    source = os.path.join(os.path.dirname(__file__), "quick_agent.c")
    options = ["-O1", "-Wall", "-Wextra", "-Werror", "-D_GNU_SOURCE", f"-I{directory}"]
    subprocess.run([os.environ.get("CC", "cc"), *options, source, "-o", program], check=True)
    os.environ["SWEEP_AGENT"] = program


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("context", choices=CONTEXTS)
    parser.add_argument("--first", type=int, default=1)
    parser.add_argument("--stride", type=int, default=1)
    parser.add_argument("--second", type=int, default=0)
    parser.add_argument("--jobs", type=int, default=1)
    parser.add_argument("--seconds", type=float, default=float("inf"))
    args = parser.parse_args()
    sweep = Sweep(**vars(args))
    start = time.monotonic()
    with tempfile.TemporaryDirectory() as directory:
        served = start_relay(directory) if args.context == "connect_guest" else None
        if args.context.startswith("open_guest_quick"):
            build_agent(directory)
        try:
            sweep.run()
        finally:
            if served is not None:
                served.terminate()
                served.communicate()
    names = ("context", "second", "first", "stride", "moments", "longest", "hangs", "faulty", "cut_short")
    summary = {name: getattr(sweep, name) for name in names}
    print(json.dumps(summary | {"seconds": round(time.monotonic() - start, 1)}), flush=True)


if __name__ == "__main__":
    main()

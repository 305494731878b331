"""Cancels a session at every moment of its life, one moment in each run, and checks what is left.

**Moments.** A trio program can be cancelled from outside only between two steps of its tasks. So the moments of a
session are those before and after each step of each of its tasks: its own task, and those that the package starts
for it. Both sides of a step matter. If a sleeping task is cancelled *before* its step, it has already been woken
with a result: it goes on with the result, and gets the cancellation at its next checkpoint. If it is cancelled
*after* the step, it waits in the middle of a call, and the cancellation is raised there.

**Delivery.** An instrument counts the steps, and cancels the session's scope inside the hook. trio calls the hooks
in its loop, while no task runs, so the cancellation comes as if from a deadline or another task at that moment.

**Runs differ.** A session has threads and processes, so each run has another number of steps. The n-th step of a
whole run would be at another place each time. Therefore a moment is the n-th step of one task, and a task is
identified by its function and its place in the order of starts. A sweep begins with the moments of one undisturbed
run, adds the moments that later runs show, and ends when all were tried. If a moment does not come in its run (a
reader was woken three times, not four), the run is an undisturbed one, which must succeed; the moment is tried
once more, and then counted as missed.
"""

from __future__ import annotations

import gc
import os
import random
import re
import sys
import threading
import warnings
import zlib
from collections import Counter, deque
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, NamedTuple, Self

import trio

from tests.cancellation._ground import Ground
from tests.tools.limits import HANG

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterator
    from contextlib import AbstractAsyncContextManager

__all__ = ["Moment", "Sweep"]

#: The environment variable that names a moment: the sweep then runs only that one, `REPEAT` times.
ONLY = "SWEEP_MOMENT"
REPEAT = "SWEEP_REPEAT"

#: How often a moment that did not come is tried.
TRIES = 2


class Moment(NamedTuple):
    """Before or after the n-th step of a task, counted from 1."""

    side: str
    step: int
    task: str

    def __str__(self) -> str:
        return f"{self.side} step {self.step} of {self.task}"

    @classmethod
    def parse(cls, text: str) -> Self:
        match = re.fullmatch(r"(before|after) step (\d+) of (\S+)", text)
        if match is None:
            raise ValueError(f"not a moment: {text!r}")
        return cls(match[1], int(match[2]), match[3])


class CancelAt(trio.abc.Instrument):
    """Follows a task and all tasks below it, and cancels a scope at one of their moments.

    Args:
        scope: is cancelled.
        moment: when; `None` is never.
    """

    def __init__(self, scope: trio.CancelScope, moment: Moment | None) -> None:
        self.seen: list[Moment] = []
        self.fired_at: float | None = None
        self.left_at = 0.0
        self.where = ""
        self.scope = scope
        self.moment = moment
        self._names: dict[trio.lowlevel.Task, str] = {}
        self._steps: Counter[trio.lowlevel.Task] = Counter()
        self._named: Counter[str] = Counter()
        self._root: trio.lowlevel.Task | None = None

    def follow(self, task: trio.lowlevel.Task) -> None:
        self._root = task
        self._names[task] = "session"

    def task_spawned(self, task: trio.lowlevel.Task) -> None:
        nursery = task.parent_nursery
        if nursery is not None and nursery.parent_task in self._names:
            self._named[task.name] += 1
            self._names[task] = f"{task.name}#{self._named[task.name]}"

    def task_exited(self, task: trio.lowlevel.Task) -> None:
        self._names.pop(task, None)

    def before_task_step(self, task: trio.lowlevel.Task) -> None:
        if task in self._names:
            self._steps[task] += 1
            self._note("before", task)

    def after_task_step(self, task: trio.lowlevel.Task) -> None:
        if task in self._names and self._steps[task]:
            self._note("after", task)

    def _note(self, side: str, task: trio.lowlevel.Task) -> None:
        moment = Moment(side, self._steps[task], self._names[task])
        self.seen.append(moment)
        if moment == self.moment and self.fired_at is None:
            self.where = self.position()
            self.fired_at = trio.current_time()
            self.scope.cancel()

    def position(self) -> str:
        """The stack of the session's own task, outermost frame first."""
        if self._root is None:
            return "its beginning"
        return " > ".join(
            f"{os.path.basename(frame.f_code.co_filename)}:{line} {frame.f_code.co_name}"
            for frame, line in self._root.iter_await_frames()
            if "trio_console" in frame.f_code.co_filename or "/tests/" in frame.f_code.co_filename
        )


class Sweep:
    """A session, where it runs, and what must hold after it, however it ended.

    Args:
        surroundings: entered before the session and left after it, out of reach of the cancellation. What it
            gives is handed to the session.
        session: the work. It is cancelled; anything that it raises is a failure.
        afterwards: gets the same, in every ``afterwards_every``-th round that has left nothing behind: that the
            next one works.
        grace: seconds that leaving may take from the cancellation on.
        patience: seconds that what was left may take to go, where a guest lives on that has to do it. Processes
            have no such time: a session is left when the guest has said that they are gone.
        mark, directory: see `Ground`.
        reproduce: the shell command that runs this sweep, for failures.
        hung: called with what is known when a round never ends; must not return.
    """

    def __init__(
        self,
        surroundings: Callable[[], AbstractAsyncContextManager[Any]],
        session: Callable[[Any], Awaitable[object]],
        afterwards: Callable[[Any], Awaitable[object]],
        *,
        afterwards_every: int = 1,
        grace: float = 5.0,
        patience: float = 0.0,
        mark: str,
        directory: str,
        reproduce: str,
        hung: Callable[[str], object],
    ) -> None:
        self._surroundings = surroundings
        self._session = session
        self._afterwards = afterwards
        self._afterwards_every = afterwards_every
        self._grace = grace
        self._patience = patience
        self._mark = mark
        self._directory = directory
        self._reproduce = reproduce
        self._hung = hung
        self.rounds = 0
        self.cancelled = 0
        self.missed: list[Moment] = []

    def __str__(self) -> str:
        return f"{self.rounds} rounds, {self.cancelled} of them cancelled, {len(self.missed)} moments missed"

    def check(self) -> None:
        """Refuse a sweep that has missed more moments than it has hit: it proves nothing."""
        assert self.cancelled >= len(self.missed), f"{self}, among them: {self.missed[:10]}"

    def all(self, part: int = 0, parts: int = 1) -> None:
        """Try every moment that any run shows, or one of so many parts of them."""
        if self._only_one():
            return
        tries: Counter[Moment] = Counter()
        known: set[Moment] = set()
        waiting: deque[Moment] = deque()

        def learn(run: CancelAt) -> None:
            new = [moment for moment in run.seen if moment not in known]
            known.update(new)
            waiting.extend(moment for moment in new if zlib.crc32(str(moment).encode()) % parts == part)

        learn(self._run(None))
        while waiting:
            moment = waiting.popleft()
            run = self._run(moment)
            learn(run)
            if run.fired_at is None:
                tries[moment] += 1
                (waiting if tries[moment] < TRIES else self.missed).append(moment)

    def sample(self, size: int, seed: int = 0) -> None:
        """Try so many moments, evenly spaced over the session's life."""
        if self._only_one():
            return
        seen = self._run(None).seen
        stride = max(1.0, len(seen) / size)
        offset = random.Random(seed).random() * stride
        for index in range(min(size, len(seen))):
            moment = seen[min(int(offset + index * stride), len(seen) - 1)]
            if self._run(moment).fired_at is None:
                self.missed.append(moment)

    def _only_one(self) -> bool:
        text = os.environ.get(ONLY)
        if text is None:
            return False
        for _ in range(int(os.environ.get(REPEAT, "1"))):
            if self._run(Moment.parse(text)).fired_at is None:
                self.missed.append(Moment.parse(text))
        return True

    # One round

    def _run(self, moment: Moment | None) -> CancelAt:
        cancel_at = CancelAt(trio.CancelScope(), moment)
        self.rounds += 1
        try:
            with _nothing_said():
                trio.run(self._round, cancel_at)
        except BaseException as exc:
            exc.add_note(self._story(cancel_at))
            raise
        self.cancelled += cancel_at.fired_at is not None
        return cancel_at

    def _story(self, cancel_at: CancelAt) -> str:
        if cancel_at.moment is None:
            return f"in round {self.rounds}, which is not cancelled"
        command = f"{ONLY}='{cancel_at.moment}' {REPEAT}=20 {self._reproduce}"
        if cancel_at.fired_at is None:
            return f"in round {self.rounds}, in which {cancel_at.moment} has not come. Again: {command}"
        return f"cancelled {cancel_at.moment}, at {cancel_at.where}\nAgain: {command}"

    async def _round(self, cancel_at: CancelAt) -> None:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._watch, cancel_at)
            async with self._surroundings() as place:
                ground = Ground(self._mark, self._directory)
                await self._follow(cancel_at, place)
                self._check_time(cancel_at)
                processes = ground.processes()
                assert not processes, f"left behind: {processes}"
                left = await ground.left(self._patience)
                assert not left, f"left behind: {left}"
                if self.rounds % self._afterwards_every == 0:
                    await self._afterwards(place)
            nursery.cancel_scope.cancel()

    async def _follow(self, cancel_at: CancelAt, place: Any) -> None:
        """Run the session in a task of its own, which the instrument follows."""

        async def work() -> None:
            cancel_at.follow(trio.lowlevel.current_task())
            with cancel_at.scope:
                await self._session(place)
            cancel_at.left_at = trio.current_time()

        trio.lowlevel.add_instrument(cancel_at)
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(work, name="session")
        finally:
            trio.lowlevel.remove_instrument(cancel_at)

    def _check_time(self, cancel_at: CancelAt) -> None:
        if cancel_at.fired_at is not None:
            took = cancel_at.left_at - cancel_at.fired_at
            assert took < self._grace, f"leaving took {took:.1f} s"

    async def _watch(self, cancel_at: CancelAt) -> None:
        """Print where a shielded task stands that waits for ever; it cannot be ended from here.

        What is only left behind is told by the round itself, once its patience is over.
        """
        await trio.sleep(HANG + self._patience)
        self._hung(f"{self._story(cancel_at)}\nstill not left, at {cancel_at.position()}")


@contextmanager
def _nothing_said() -> Iterator[None]:
    """Make failures of warnings, and of errors that could not be raised anywhere."""
    said: list[object] = []
    unraisable, in_thread = sys.unraisablehook, threading.excepthook
    sys.unraisablehook = lambda args: said.append((args.err_msg, args.object, args.exc_value))
    threading.excepthook = lambda args: said.append((args.thread, args.exc_value))
    try:
        with warnings.catch_warnings(record=True) as warned:
            warnings.simplefilter("always")
            yield
            gc.collect(0)
            said += [warning.message for warning in warned]
    finally:
        sys.unraisablehook, threading.excepthook = unraisable, in_thread
    assert not said, f"said: {said}"

"""Runs two threads one line at a time, through every order of their lines up to a number of switches.

The threads run the real code. A trace function stops each thread before every line of the given modules, and only
one thread moves at a time. A schedule says before which lines the other thread gets its turn; all schedules with
at most so many switches are tried. Races need few switches: nearly all known ones show with two.

A thread sleeps in `StepWake.wait`: it hands over to the other thread, and moves on after it was rung. When neither
thread can move, a wake-up was lost, and `LostWakeUp` names the schedule.
"""

from __future__ import annotations

import sys
import threading
from typing import TYPE_CHECKING, Any

from tests.tools.limits import HANG

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from types import FrameType


class LostWakeUp(AssertionError):
    """Both threads sleep, so neither will wake the other."""


class _Stop(BaseException):
    """The other thread has failed: end this one."""


class StepWake:
    """Stands for a `WakePipe` between the stepped threads."""

    def __init__(self, stepper: Stepper) -> None:
        self._stepper = stepper
        self.rung = False

    def wake(self) -> None:
        self.rung = True

    def drain(self) -> None:
        self.rung = False

    def wait(self, _timeout: float | None = None) -> bool:
        self._stepper.block_until(lambda: self.rung)
        return True

    def fileno(self) -> int:
        return -1


class Stepper:
    """One run of two threads under one schedule.

    Args:
        switches: numbers of the lines, counted over both threads, before which the other gets its turn.
        first: the thread that starts, 0 or 1.
        files: only lines of these files are stops.
    """

    def __init__(self, switches: frozenset[int], first: int, files: frozenset[str]) -> None:
        self._switches = switches
        self._files = files
        self._turn = [threading.Semaphore(0), threading.Semaphore(0)]
        self._first = first
        self._current = first
        self._blocked: list[Callable[[], bool] | None] = [None, None]
        self._done = [False, False]
        self.steps = 0
        self.chances: list[int] = []  # lines before which the other thread could have moved
        self.failure: BaseException | None = None

    def run(self, bodies: Sequence[Callable[[], None]]) -> None:
        threads = [threading.Thread(target=self._run_one, args=(i, body)) for i, body in enumerate(bodies)]
        for thread in threads:
            thread.start()
        self._turn[self._first].release()
        for thread in threads:
            thread.join(HANG)
            assert not thread.is_alive(), "the stepper itself is stuck"
        if self.failure is not None:
            raise self.failure

    def _run_one(self, me: int, body: Callable[[], None]) -> None:
        assert self._turn[me].acquire(timeout=HANG)
        self._current = me
        try:
            if self.failure is None:
                sys.settrace(self._trace)
                body()
        except _Stop:
            pass
        except BaseException as exc:
            self.failure = self.failure or exc
        finally:
            sys.settrace(None)
            self._done[me] = True
            self._turn[1 - me].release()

    def _trace(self, frame: FrameType, _event: str, _arg: Any) -> Any:
        return self._line if frame.f_code.co_filename in self._files else None

    def _line(self, _frame: FrameType, event: str, _arg: Any) -> Any:
        if event == "line":
            self.steps += 1
            other = 1 - self._current
            blocked = self._blocked[other]
            if not self._done[other] and (blocked is None or blocked()):
                self.chances.append(self.steps)
                if self.steps in self._switches:
                    self._hand_over()
        return self._line

    def _hand_over(self) -> None:
        me = self._current
        self._turn[1 - me].release()
        assert self._turn[me].acquire(timeout=HANG)
        self._current = me
        if self.failure is not None:
            raise _Stop

    def block_until(self, predicate: Callable[[], bool]) -> None:
        me = self._current
        other = 1 - me
        self._blocked[me] = predicate
        while not predicate():
            blocked = self._blocked[other]
            if self._done[other] or (blocked is not None and not blocked()):
                raise LostWakeUp(f"first={self._first} switches={sorted(self._switches)}")
            self._hand_over()
        self._blocked[me] = None


def run_all(scenario: Any, *, switches: int, files: Sequence[str]) -> int:
    """Run a scenario under every schedule; returns the number of runs.

    Args:
        scenario: gets a `Stepper`, makes fresh state, and returns the two threads' bodies and a check to run
            at the end.
        switches: how many times a running thread is interrupted at most.
        files: the modules whose lines are stops.
    """
    traced = frozenset(files)
    runs = 0
    # A schedule's run tells how many lines it has, and so where one more switch could come.
    pending: list[tuple[int, tuple[int, ...]]] = [(0, ()), (1, ())]
    while pending:
        first, chosen = pending.pop()
        stepper = Stepper(frozenset(chosen), first, traced)
        *bodies, check = scenario(stepper)
        stepper.run(bodies)
        check()
        runs += 1
        if len(chosen) < switches:
            after = chosen[-1] if chosen else 0
            pending.extend((first, (*chosen, line)) for line in stepper.chances if line > after)
    return runs

"""Runs a signal handler inside a call, at each of the call's opcodes in turn.

The interpreter can run a signal handler between any two opcodes of the main thread. A trace function stops before
every opcode of the given modules, and raises a real signal at the chosen one. An exception of the handler is
raised at that opcode, as it would be without the trace function.
"""

from __future__ import annotations

import signal
import sys
from typing import TYPE_CHECKING, Any

from tests.tools.limits import HANG

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from types import FrameType

#: More opcodes than any call here has.
_ENDLESS = 5000


class Interrupt(BaseException):
    """Raised by a handler, as `KeyboardInterrupt` is."""


class Stuck(AssertionError):
    """The call did not come back."""


def _give_up(_number: int, _frame: object) -> None:
    raise Stuck("the call is stuck")


def interrupted(call: Callable[[], Any], handler: Callable[[], Any], at: int, files: Sequence[str]) -> bool:
    """Run ``call``, with ``handler`` as a signal handler at its opcode number ``at``, from 1.

    Returns `False` if the call has fewer opcodes. An `Interrupt` that the handler raises ends the call only.
    """
    seen = 0
    traced = frozenset(files)

    def trace(frame: FrameType, _event: str, _arg: object) -> Any:
        if frame.f_code.co_filename not in traced:
            return None
        frame.f_trace = opcode  # before the next: 3.13 turns the events on only in a frame that has one
        frame.f_trace_opcodes = True
        return opcode

    def opcode(_frame: FrameType, event: str, _arg: object) -> Any:
        nonlocal seen
        if event == "opcode":
            seen += 1
            if seen == at:
                signal.raise_signal(signal.SIGUSR1)
        return opcode

    kept = [
        (number, signal.signal(number, new))
        for number, new in ((signal.SIGUSR1, lambda *_: handler()), (signal.SIGALRM, _give_up))
    ]
    before = sys.gettrace()
    signal.setitimer(signal.ITIMER_REAL, HANG)
    try:
        raise Interrupt
    except Interrupt:
        # In here, because leaving an except clause sets the current exception back to what it was. An exception at
        # one of the opcodes that leave one inside the call, where no real handler can come, keeps that from being
        # done there: the interpreter would hold on to the inner exception, and to the frames it came through.
        try:
            # 3.12 has opcode events only once some frame has asked for them before this call.
            sys._getframe().f_trace_opcodes = True
            sys.settrace(trace)
            call()
        except Interrupt:
            pass
    finally:
        sys.settrace(before)
        signal.setitimer(signal.ITIMER_REAL, 0)
        for number, old in kept:
            signal.signal(number, old)
    return seen >= at


def at_every_opcode(run: Callable[[int], bool]) -> int:
    """Call ``run(1)``, ``run(2)`` … until it says that the call has no such opcode; how many it has."""
    for at in range(1, _ENDLESS):
        try:
            if not run(at):
                return at - 1
        except BaseException as exc:
            exc.add_note(f"interrupted at opcode {at}")
            raise
    raise AssertionError("the call does not end")

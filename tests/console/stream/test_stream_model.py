"""A channel against a model: for any actions of its two ends, in any order, it is two queues of bytes that end.

Each step starts or cancels one task, or closes one end, and then waits until no task moves. The model says which
calls must have ended by then, and which not. Where the channel may choose (how many bytes a receive joins, how
empty the ring must be before a blocked sender goes on), the model accepts any choice that keeps the promise: a
sender sleeps only while bytes are queued, and a receiver only while none are.
"""

from __future__ import annotations

import random
import threading
from functools import partial
from queue import SimpleQueue
from typing import TYPE_CHECKING, Any, Final

import trio
import trio.testing
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from tests.tools.conserved import conserved
from tests.tools.limits import HANG
from trio_console.testing import console_stream_pair

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from trio_console._console.backend import LaneStatistics

PENDING: Final = object()
CANCELLED: Final = object()
HOST, GUEST = 0, 1
ENDS = st.sampled_from([HOST, GUEST])
KINDS = st.sampled_from([bytes, bytearray, memoryview])


class Stage:
    """A trio run in a thread, for a machine whose steps are plain functions."""

    def __init__(self) -> None:
        ready: SimpleQueue[trio.lowlevel.TrioToken] = SimpleQueue()
        self._thread = threading.Thread(target=trio.run, args=(self._main, ready), name="stage")
        self._thread.start()
        self._token = ready.get(timeout=HANG)

    async def _main(self, ready: SimpleQueue[trio.lowlevel.TrioToken]) -> None:
        async with trio.open_nursery() as self.nursery:
            ready.put(trio.lowlevel.current_trio_token())
            await trio.sleep_forever()

    def settle(self, step: Callable[[], object]) -> None:
        """Do something, and wait until nothing moves any more."""

        async def settle() -> None:
            step()
            with trio.fail_after(HANG):
                await trio.testing.wait_all_tasks_blocked()

        trio.from_thread.run(settle, trio_token=self._token)

    def run(self, work: Callable[[], Awaitable[None]]) -> None:
        trio.from_thread.run(work, trio_token=self._token)

    def close(self) -> None:
        self._token.run_sync_soon(self.nursery.cancel_scope.cancel)
        self._thread.join(HANG)
        assert not self._thread.is_alive()


class Call:
    """A call on a stream, in a task of its own."""

    def __init__(self, work: Callable[[], Awaitable[object]]) -> None:
        self.result: Any = PENDING
        self.scope = trio.CancelScope()
        self._work = work

    async def run(self) -> None:
        with self.scope:
            try:
                self.result = await self._work()
            except (trio.ClosedResourceError, trio.BrokenResourceError, trio.BusyResourceError) as exc:
                self.result = type(exc)
        if self.scope.cancelled_caught:
            self.result = CANCELLED


class Lane:
    """One direction, as it should be."""

    def __init__(self) -> None:
        self.data = b""  # ever accepted, or about to be by the sender that is blocked
        self.received = 0
        self.finished = False  # the sender's end
        self.discarded = False  # and with force
        self.abandoned = False  # the receiver's end


class ChannelModel(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.stage = Stage()

    def teardown(self) -> None:
        for stream in getattr(self, "ends", ()):
            self.stage.run(stream.aclose)
        self.stage.close()

    @initialize(capacity=st.integers(1, 6), max_bytes=st.integers(1, 40), open_for=st.sampled_from([0, 20, 60]))
    def make(self, capacity: int, max_bytes: int, open_for: int) -> None:
        self.open_for = open_for  # calls before the first end, or most runs would be over before they have begun
        self.max_bytes = max_bytes
        self.capacity = capacity
        self.ends = console_stream_pair(capacity=capacity, max_bytes=max_bytes)
        self.lanes = (Lane(), Lane())  # what each end sends
        self.closed = [False, False]
        self.sending: list[Call | None] = [None, None]
        self.receiving: list[Call | None] = [None, None]
        self.limits = [0, 0]  # of what is being received
        self.random = random.Random(0)

    def real(self, end: int) -> LaneStatistics:
        """The lane into which an end sends."""
        now = self.ends[HOST].statistics()
        return now.rx if end == HOST else now.tx

    def begin(self, work: Callable[[], Awaitable[object]]) -> Call:
        self.open_for -= 1
        call = Call(work)
        self.stage.settle(lambda: self.stage.nursery.start_soon(call.run))
        return call

    # Sending

    def refusal(self, end: int) -> Any:
        """What a call that sends raises at once, if so."""
        if self.sending[end] is not None:
            return trio.BusyResourceError
        if self.closed[end] or self.lanes[end].finished:
            return trio.ClosedResourceError
        if self.lanes[end].abandoned:
            return trio.BrokenResourceError
        return None

    @rule(end=ENDS, size=st.integers(0, 12) | st.integers(0, 90), kind=KINDS)
    def send(self, end: int, size: int, kind: Any) -> None:
        refusal = self.refusal(end)
        data = self.random.randbytes(size)
        if refusal is None:
            self.lanes[end].data += data
        call = self.begin(partial(self.ends[end].send_all, kind(data)))
        if refusal is not None:
            assert call.result is refusal
            return
        self.sending[end] = call
        self.look()

    @rule(end=ENDS)
    def wait_for_room(self, end: int) -> None:
        refusal = self.refusal(end)
        call = self.begin(self.ends[end].wait_send_all_might_not_block)
        if refusal is not None:
            assert call.result is refusal
            return
        self.sending[end] = call
        self.look()

    @precondition(lambda self: self.open_for <= 0)
    @rule(end=ENDS)
    def send_eof(self, end: int) -> None:
        lane = self.lanes[end]
        if self.sending[end] is not None:
            expected: Any = trio.BusyResourceError
        elif self.closed[end]:
            expected = trio.ClosedResourceError
        else:
            expected, lane.finished = None, True
        assert self.begin(self.ends[end].send_eof).result is expected
        self.look()

    @precondition(lambda self: any(self.sending))
    @rule(end=ENDS)
    def cancel_sending(self, end: int) -> None:
        call = self.sending[end]
        if call is not None:
            self.stage.settle(call.scope.cancel)
            assert call.result is CANCELLED
            self.forget_sender(end)

    def forget_sender(self, end: int) -> None:
        """It has been interrupted: what was accepted of its data stays."""
        self.sending[end] = None
        self.lanes[end].data = self.lanes[end].data[: self.real(end).bytes_in]

    # Receiving

    @rule(end=ENDS, limit=st.integers(1, 40))
    def receive(self, end: int, limit: int) -> None:
        call = self.begin(partial(self.ends[end].receive_some, limit))
        if self.receiving[end] is not None:
            assert call.result is trio.BusyResourceError
        elif self.closed[end]:
            assert call.result is trio.ClosedResourceError
        else:
            self.receiving[end] = call
            self.limits[end] = limit
            self.look()

    @precondition(lambda self: any(self.receiving))
    @rule(end=ENDS)
    def cancel_receiving(self, end: int) -> None:
        call = self.receiving[end]
        if call is not None:
            self.stage.settle(call.scope.cancel)
            assert call.result is CANCELLED
            self.receiving[end] = None
            self.look()

    # Closing

    @precondition(lambda self: self.open_for <= 0)
    @rule(end=ENDS, force=st.booleans())
    def close(self, end: int, force: bool) -> None:
        stream = self.ends[end]
        call = self.begin(partial(trio.aclose_forcefully, stream) if force else stream.aclose)
        assert call.result is None
        ours, theirs = self.lanes[end], self.lanes[1 - end]
        ours.finished = theirs.abandoned = self.closed[end] = True
        ours.discarded |= force
        self.interrupted(self.sending[end], end, trio.ClosedResourceError)
        self.interrupted(self.sending[1 - end], 1 - end, trio.BrokenResourceError)
        waiting = self.receiving[end]
        if waiting is not None:
            assert waiting.result is trio.ClosedResourceError
            self.receiving[end] = None
        self.look()

    def interrupted(self, sender: Call | None, end: int, expected: type[Exception]) -> None:
        if sender is not None:
            assert sender.result is expected
            self.forget_sender(end)

    # What must hold

    def look(self) -> None:
        """Whoever has come to an end may, and whoever has not may not."""
        for end in (HOST, GUEST):
            self.look_at_receiver(end)
            self.look_at_sender(end)

    def look_at_receiver(self, end: int) -> None:
        call, lane = self.receiving[end], self.lanes[1 - end]
        if call is None:
            return
        if call.result is PENDING:
            assert not lane.finished
            assert self.real(1 - end).current_buffer_bytes == 0
            return
        self.receiving[end] = None
        if lane.discarded or (lane.finished and lane.received == len(lane.data)):
            assert call.result == b""
            return
        assert 1 <= len(call.result) <= self.limits[end]
        assert call.result == lane.data[lane.received : lane.received + len(call.result)]
        lane.received += len(call.result)

    def look_at_sender(self, end: int) -> None:
        call, lane = self.sending[end], self.lanes[end]
        if call is None:
            return
        if call.result is PENDING:
            assert self.real(end).current_buffer_bytes > 0
            return
        assert call.result is None
        self.sending[end] = None
        assert self.real(end).bytes_in == len(lane.data)

    @invariant()
    def bytes_are_conserved(self) -> None:
        if not hasattr(self, "ends"):
            return
        for end, lane in enumerate(self.lanes):
            now = self.real(end)
            assert conserved(now)
            assert now.bytes_in <= len(lane.data)
            assert now.bytes_out == lane.received
            assert bool(now.bytes_dropped) <= (lane.discarded or lane.abandoned)
            assert (now.finished, now.abandoned) == (lane.finished, lane.abandoned)

    @invariant()
    def the_bounds_hold(self) -> None:
        if not hasattr(self, "ends"):
            return
        for end in (HOST, GUEST):
            now = self.real(end)
            assert now.current_buffer_used <= self.capacity
            assert now.current_buffer_bytes <= self.max_bytes


ChannelModel.TestCase.settings = settings(max_examples=80, stateful_step_count=80, deadline=None)
TestChannelAgainstItsModel = ChannelModel.TestCase

"""The ring against a model: for any sequence of calls it is a queue of bytes with two bounds."""

from __future__ import annotations

from collections import deque
from typing import Any

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from trio_console._console.ring import LaneRing

KINDS = st.sampled_from([bytes, bytearray, memoryview])


class RingModel(RuleBasedStateMachine):
    @initialize(capacity=st.integers(1, 5) | st.just(40), max_bytes=st.integers(1, 20) | st.just(100))
    def make(self, capacity: int, max_bytes: int) -> None:
        self.ring = LaneRing(capacity, max_bytes)
        self.chunks: deque[bytes] = deque()
        self.bytes_in = 0
        self.bytes_out = 0

    def has_room(self, size: int) -> bool:
        used = sum(map(len, self.chunks))
        return not used or (used + size <= self.ring.max_bytes and len(self.chunks) < self.ring.capacity)

    def taken(self, size: int) -> bytes:
        """Take the first ``size`` bytes out of the model, and return them."""
        parts = []
        while size:
            head = self.chunks.popleft()
            parts.append(head[:size])
            if len(head) > size:
                self.chunks.appendleft(head[size:])
            size -= len(parts[-1])
        data = b"".join(parts)
        self.bytes_out += len(data)
        return data

    @rule(data=st.binary(max_size=25) | st.binary(max_size=4), kind=KINDS)
    def push(self, data: bytes, kind: Any) -> None:
        admitted = not data or self.has_room(len(data))
        assert self.ring.offer(kind(data)) == (len(data) if admitted else 0)
        if admitted and data:
            self.chunks.append(data)
            self.bytes_in += len(data)

    @rule()
    def pop(self) -> None:
        expected = self.taken(len(self.chunks[0])) if self.chunks else None
        assert self.ring.pop() == expected

    @rule(limit=st.integers(1, 30))
    def take(self, limit: int) -> None:
        size = 0
        for chunk in self.chunks:
            if size + len(chunk) > limit:
                break
            size += len(chunk)
        if self.chunks and not size:
            size = limit
        assert self.ring.take(limit) == self.taken(size)

    @rule(limit=st.integers(1, 30))
    def take_filled(self, limit: int) -> None:
        size = min(limit, sum(map(len, self.chunks)))
        assert self.ring.take(limit, fill=True) == self.taken(size)

    @rule(limit=st.integers(1, 30))
    def take_whole(self, limit: int) -> None:
        size = len(self.chunks[0]) if self.chunks else 0
        for chunk in list(self.chunks)[1:]:
            if size + len(chunk) > limit:
                break
            size += len(chunk)
        assert self.ring.take_whole(limit) == self.taken(size)

    @rule(size=st.integers(0, 30))
    def readinto(self, size: int) -> None:
        buffer = bytearray(b"\xee" * size)
        count = self.ring.readinto(memoryview(buffer))
        assert count == min(size, sum(map(len, self.chunks)))
        assert buffer == self.taken(count) + b"\xee" * (size - count)

    @rule(size=st.integers(1, 30))
    def asks_for_room(self, size: int) -> None:
        assert self.ring.fits(size) is self.has_room(size)
        assert self.ring.arm_room(size) is not self.has_room(size)
        self.ring.disarm_room()

    @rule()
    def asks_for_data(self) -> None:
        assert self.ring.arm_data() is not bool(self.chunks)
        self.ring.disarm_data()

    @invariant()
    def nothing_is_lost(self) -> None:
        if not hasattr(self, "ring"):
            return
        assert len(self.ring) == len(self.chunks)
        assert self.ring.nbytes == sum(map(len, self.chunks))
        assert self.ring.total_bytes == self.bytes_in == self.bytes_out + self.ring.nbytes

    @invariant()
    def the_bounds_hold(self) -> None:
        if not hasattr(self, "ring"):
            return
        assert len(self.ring) <= self.ring.capacity
        assert self.ring.nbytes <= self.ring.max_bytes or len(self.ring) == 1


RingModel.TestCase.settings = settings(max_examples=80, stateful_step_count=40, deadline=None)
TestRingAgainstItsModel = RingModel.TestCase

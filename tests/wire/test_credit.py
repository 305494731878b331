"""Credit: both sides alone at their edges, and together against a plain count of where every byte is."""

from __future__ import annotations

from collections import deque

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from trio_console._wire.credit import ReceiveWindow, Refill, SendWindow, is_due

# The sender


def test_a_window_may_be_sent_to_the_last_byte_and_not_beyond() -> None:
    window = SendWindow(10)
    assert (window.may_send(9), window.may_send(10), window.may_send(11)) == (9, 10, 10)
    window.sent(10)
    assert window.may_send(1) == 0


def test_a_part_of_what_is_wanted_may_be_sent() -> None:
    window = SendWindow(10)
    window.sent(8)
    assert window.may_send(5) == 2
    window.granted(1)
    assert window.may_send(5) == 3


def test_without_credit_everything_may_be_sent() -> None:
    window = SendWindow(None)
    window.sent(10**9)
    window.granted(5)
    assert window.may_send(10**9) == 10**9


def test_a_window_of_nothing_lets_nothing_be_sent() -> None:
    window = SendWindow(0)
    window.granted(5)
    assert window.may_send(1) == 0


def test_a_window_does_not_grow_by_what_is_granted_beyond_it() -> None:
    window = SendWindow(10)
    window.sent(3)
    window.granted(4)
    assert window.may_send(100) == 10


def test_sending_more_than_may_be_is_a_mistake_of_ours() -> None:
    window = SendWindow(10)
    window.sent(10)
    with pytest.raises(AssertionError, match="no more is outstanding than the window"):
        window.sent(1)


# The receiver


@pytest.mark.parametrize(
    ("owed", "window", "due"),
    [
        (0, 0, False),
        (1, 0, True),
        (0, 1, False),
        (1, 1, True),
        (4, 9, False),
        (5, 9, True),
        (4, 10, False),
        (5, 10, True),
    ],
)
def test_half_a_window_is_due(owed: int, window: int, *, due: bool) -> None:
    assert is_due(owed, window) is due


def test_what_is_owed_is_granted_from_half_a_window_on_and_once() -> None:
    refill = Refill(10)
    assert [refill.consumed(size) for size in (4, 1, 4, 7, 5)] == [0, 5, 0, 11, 5]
    assert refill.owed == 0


def test_a_window_may_be_filled_to_the_last_byte_and_not_beyond() -> None:
    window = ReceiveWindow(10)
    assert [window.received(size) for size in (4, 7, 6, 1)] == [True, False, True, False]


def test_what_was_refused_does_not_count() -> None:
    window = ReceiveWindow(10)
    assert not window.received(11)
    assert window.received(10)


def test_what_is_owed_is_still_outstanding_until_it_is_granted() -> None:
    window = ReceiveWindow(10)
    assert window.received(10)
    assert window.consumed(4) == 0
    assert not window.received(1)
    assert window.consumed(1) == 5
    assert window.received(5)
    assert not window.received(1)


def test_consuming_what_has_not_come_is_a_mistake_of_ours() -> None:
    window = ReceiveWindow(10)
    assert window.received(3)
    with pytest.raises(AssertionError, match="no more is granted than has come"):
        window.consumed(4)


# Both


class Stream(RuleBasedStateMachine):
    """A sender and a receiver that keep to the rules, with a slow wire between them."""

    @initialize(window=st.one_of(st.integers(1, 20), st.integers(1, 2**32 - 1)))
    def open(self, window: int) -> None:
        self.window = window
        self.sender = SendWindow(window)
        self.receiver = ReceiveWindow(window)
        self.on_the_way: deque[int] = deque()
        self.grants: deque[int] = deque()
        self.kept = 0  # by the receiver, and not consumed yet
        self.owed = 0

    @property
    def left(self) -> int:
        return self.sender.may_send(2**40)

    @rule(wanted=st.one_of(st.integers(1, 20), st.integers(1, 2**32)))
    def send(self, wanted: int) -> None:
        size = self.sender.may_send(wanted)
        assert size == min(wanted, self.left)
        if size:
            self.sender.sent(size)
            self.on_the_way.append(size)

    @precondition(lambda self: self.on_the_way)
    @rule()
    def arrive(self) -> None:
        size = self.on_the_way.popleft()
        assert self.receiver.received(size), "who keeps to the rules is never refused"
        self.kept += size

    @precondition(lambda self: self.kept)
    @rule(part=st.floats(0, 1))
    def consume(self, part: float) -> None:
        size = max(1, int(self.kept * part))
        self.kept -= size
        self.owed += size
        granted = self.receiver.consumed(size)
        assert granted == (self.owed if 2 * self.owed >= self.window else 0)
        self.owed -= granted
        if granted:
            self.grants.append(granted)

    @precondition(lambda self: self.grants)
    @rule()
    def hear(self) -> None:
        self.sender.granted(self.grants.popleft())

    @rule()
    def cheat(self) -> None:
        """One byte more than is free is refused, and changes nothing."""
        free = self.window - self.kept - self.owed
        assert not self.receiver.received(free + 1)

    @invariant()
    def every_byte_of_the_window_is_somewhere(self) -> None:
        if hasattr(self, "window"):
            places = (self.left, sum(self.on_the_way), self.kept, self.owed, sum(self.grants))
            assert sum(places) == self.window, places

    @invariant()
    def nobody_waits_for_nobody(self) -> None:
        """The sender may send, or bytes or grants are on their way that will let it send."""
        if hasattr(self, "window"):
            assert self.left or self.on_the_way or self.kept or self.grants


TestStream = Stream.TestCase
TestStream.settings = settings(max_examples=200, stateful_step_count=40)

"""Credit: both sides alone at their edges, and together against a plain count of where every byte is."""

from __future__ import annotations

import math
from collections import deque

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from trio_console._wire.credit import Admission, Admitted, ReceiveWindow, Refill, SendWindow, Turns, is_due

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


# All that comes over a console

LIMITS = Admitted(control_bytes=100, control_frames=4, bulk_bytes=1000, bulk_frames=64)


@pytest.mark.parametrize("bulk", [False, True])
def test_as_many_bytes_and_frames_are_admitted_as_announced_and_no_more(bulk: bool) -> None:
    most_bytes, most_frames = LIMITS[2 * bulk : 2 * bulk + 2]
    admission = Admission(LIMITS)
    assert admission.admits(most_bytes, bulk=bulk)
    assert not admission.admits(most_bytes + 1, bulk=bulk)
    for _ in range(most_frames):
        assert admission.admits(1, bulk=bulk)
        admission.take(1, bulk=bulk)
    assert not admission.admits(1, bulk=bulk)
    assert admission.admits(1, bulk=not bulk), "each kind has limits of its own"


def test_what_is_given_back_may_be_taken_again() -> None:
    admission = Admission(LIMITS)
    before = admission.used
    admission.take(1000, bulk=True)
    assert not admission.admits(1, bulk=True)
    admission.shrink(10)
    assert admission.admits(10, bulk=True)
    admission.give_back(990)
    assert admission.used == before


@pytest.mark.parametrize("name", LIMITS._fields)
def test_a_limit_may_grow_and_not_shrink(name: str) -> None:
    admission = Admission(LIMITS)
    value = getattr(LIMITS, name)
    assert admission.announce(LIMITS._replace(**{name: value + 1}))
    assert admission.announce(LIMITS._replace(**{name: value + 1}))
    more = Admitted(*(2 * limit for limit in LIMITS))
    assert not admission.announce(more._replace(**{name: value}))
    assert not admission.admits(150, bulk=False), "one that is refused changes nothing"


def test_half_of_the_window_is_for_all_at_once() -> None:
    by_bytes, by_frames = Admission(LIMITS), Admission(LIMITS)
    by_bytes.take(500, bulk=True)
    assert not by_bytes.is_scarce
    by_bytes.take(1, bulk=True)
    assert by_bytes.is_scarce
    for _ in range(32):
        by_frames.take(1, bulk=True)
    assert not by_frames.is_scarce
    by_frames.take(1, bulk=True)
    assert by_frames.is_scarce
    assert by_bytes.announce(LIMITS._replace(bulk_bytes=1001))
    assert not by_bytes.is_scarce, "it was taken in the guest"


def test_the_last_frames_are_for_the_ends_of_streams() -> None:
    admission = Admission(LIMITS)
    for _ in range(60):
        assert admission.has_room(1)
        admission.take(1, bulk=True)
    assert not admission.has_room(1)
    assert admission.admits(1, bulk=True)


def test_limits_that_come_late_count_what_was_sent_before() -> None:
    admission = Admission()
    admission.take(5000, bulk=True)
    assert not admission.is_scarce
    assert admission.announce(LIMITS._replace(bulk_bytes=6000))
    assert (admission.admits(1000, bulk=True), admission.admits(1001, bulk=True)) == (True, False)


# Turns


def test_one_session_at_a_time_has_its_turn_until_something_is_taken() -> None:
    turns = Turns(1.0)
    turns.took("a", 0.0)
    assert (turns.holds_back("b", 0.5), turns.holds_back("a", 0.5)) == (True, True)
    turns.heard(1, 0.5)
    assert (turns.holds_back("b", 0.5), turns.holds_back("a", 0.5)) == (False, False)


def test_a_turn_in_vain_ends_by_itself_and_the_next_comes_after_twice_the_time() -> None:
    turns, now = Turns(1.0), 0.0
    for delay in (1.0, 2.0, 4.0, 8.0):
        turns.took("a", now)
        assert turns.next_change(now) == now + 1.0
        assert turns.holds_back("b", now + 0.9)
        now += 1.0
        assert not turns.holds_back("b", now)
        assert turns.next_change(now) == now + delay
        assert turns.holds_back("a", now + delay - 0.1)
        now += delay
        assert not turns.holds_back("a", now)


def test_what_is_taken_late_is_that_of_the_last_turn() -> None:
    turns = Turns(1.0)
    for key in "ab":
        turns.took(key, 0.0 if key == "a" else 1.0)
        assert turns.holds_back(key, 2.0 if key == "b" else 1.0)
    turns.heard(1, 2.1)
    assert (turns.holds_back("b", 2.1), turns.holds_back("a", 1.9)) == (False, True)


def test_what_is_taken_without_a_turn_lets_all_go_on() -> None:
    turns = Turns(100.0)
    for key, now in (("a", 0.0), ("b", 100.0)):
        turns.took(key, now)
        assert turns.holds_back(key, now + 100.0)
    turns.heard(2, 200.0)
    assert (turns.holds_back("a", 200.0), turns.holds_back("b", 200.0)) == (False, False)
    assert turns.next_change(200.0) == math.inf


def test_an_end_that_is_taken_is_nobodys_turn() -> None:
    turns = Turns(1.0)
    turns.took("a", 0.0)
    assert not turns.holds_back("b", 1.0), "the turn was in vain"
    turns.passed()
    turns.heard(1, 1.0)
    assert turns.holds_back("a", 1.0)
    turns.heard(1, 1.0)
    assert not turns.holds_back("a", 1.0)


def test_a_turn_that_is_given_up_is_over() -> None:
    turns = Turns(1.0)
    turns.took("a", 0.0)
    turns.gave_up("b")
    assert turns.holds_back("a", 0.0)
    turns.gave_up("a")
    assert not turns.holds_back("a", 0.0)

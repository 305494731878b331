"""The state that the two ends share: its bounds, causes, sums and descriptors."""

from __future__ import annotations

import subprocess
import sys

import pytest

from tests.tools.limits import HANG
from trio_console._console import backend as _console
from trio_console._console import wake as _wake
from trio_console._console.backend import AgentConsoleBackend, ConsoleSharedState


def test_the_names_lead_to_the_lanes() -> None:
    shared = ConsoleSharedState()
    assert shared.tx_ring is shared._tx.ring
    assert shared.rx_ring is shared._rx.ring
    assert shared.tx_wake is shared._tx.data_wake
    assert shared.rx_wake is shared._rx.data_wake


def test_the_bounds_hold_for_each_direction() -> None:
    shared = ConsoleSharedState(3, 40)
    for ring in (shared.tx_ring, shared.rx_ring):
        assert (ring.capacity, ring.max_bytes) == (3, 40)


def test_an_end_is_told_once_and_its_first_cause_stays() -> None:
    shared = ConsoleSharedState()
    first = OSError("first")
    shared.guest_gone(first)
    shared.guest_gone(OSError("second"))
    shared.host_gone()
    assert shared._tx.cause is first
    assert shared._rx.cause is first


def test_a_lane_tells_what_it_holds_and_how_it_ended() -> None:
    shared = ConsoleSharedState(8, 100)
    backend = AgentConsoleBackend(shared)
    backend.write(b"abc")
    backend.write(b"de")
    shared.tx_ring.pop()
    shared._tx.finish()
    now = shared._tx.statistics()
    assert (now.bytes_in, now.bytes_out, now.bytes_dropped) == (5, 3, 0)
    assert (now.current_buffer_used, now.max_buffer_size) == (1, 8)
    assert (now.current_buffer_bytes, now.max_buffer_bytes) == (2, 100)
    assert (now.finished, now.abandoned) == (True, False)
    assert now.wakes == 1


def test_a_lane_that_is_busy_meanwhile_never_tells_less_than_nothing() -> None:
    class Busy(_console.Lane):  # type: ignore[misc]
        """A lane to which the device writes each time when its ending is read."""

        __slots__ = ()

        @property
        def discarded(self) -> bool:
            self.swallow(7)
            return False

        @discarded.setter
        def discarded(self, _value: bool) -> None: ...

    lane = Busy(8, 100)
    for _ in range(2):
        now = lane.statistics()
        assert now.bytes_out == 0
        assert now.bytes_in == now.bytes_dropped
    lane.finish()
    lane.close_wakes()


def test_after_its_wakes_were_closed_a_backend_is_still_harmless() -> None:
    shared = ConsoleSharedState()
    backend = AgentConsoleBackend(shared)
    backend.write(b"x")
    shared.host_gone()
    shared.close_wakes()
    assert backend.read_wake_fd() == -1
    assert backend.read(1) == b""
    assert backend.write(b"y") == 1
    assert backend.wait_until_writable()


def test_where_no_descriptor_can_be_had_none_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    made = []
    real = _wake.Bell

    def bell() -> _wake.Bell:
        if len(made) == 3:
            raise OSError(24, "Too many open files")
        made.append(real())
        return made[-1]

    monkeypatch.setattr(_wake, "Bell", bell)
    with pytest.raises(OSError, match="Too many"):
        ConsoleSharedState()


@pytest.mark.parametrize(
    "module",
    [
        "_console.wake",
        "_console.ring",
        "_console.backend",
        "_console.devices",
        "_console.workers",
        "_errors",
        "testing",
        "testing._fake_device",
    ],
)
def test_the_thread_side_does_not_import_trio(module: str) -> None:
    program = f"import sys, trio_console.{module}; sys.exit('trio' in sys.modules)"
    subprocess.run([sys.executable, "-c", program], check=True, timeout=HANG)

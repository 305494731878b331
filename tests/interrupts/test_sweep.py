"""Ctrl-C at every moment of entering and leaving: it is raised once and alone, and nothing hangs or is left."""

from __future__ import annotations

import json
import pathlib
import subprocess
import sys

import pytest

from tests.tools.nights import tonight

ROOT = pathlib.Path(__file__).parents[2]

#: Opcodes from the first Ctrl-C to the second, where there is one.
SECOND = 50

#: Opcodes between two moments that are tried in the gate. Prime to each other and to what loops have in them.
STRIDES = {
    "open_console": 127,
    "open_console_tasks": 199,
    "open_guest": 4999,
    "open_guest_quick": 997,
    "open_guest_quick_tasks": 1999,
    "open_guest_scripted": 997,
    "open_guest_relay": 1999,
    "connect_guest": 127,
    "serve_relay": 1601,
    "serve_relay_nursery": 1999,
}

#: The same for a night with one press, and for one with two. What one night leaves out is tried in those after it.
#:
#: One press is tried at every opcode, in three nights. For a guest in a process of its own that is done with an
#: agent that starts in a millisecond, because what is swept is the host; every hundredth moment has the real one.
#: On an idle machine a moment costs one process 0.3 s with the real agent, else 0.07 s. So a night takes one
#: process 51 minutes, and about half of that with `--jobs=2` on two processors:
#:
#: * one press: 25 for 22 000 moments of the two other guests and the two relays, 12.5 for 10 600 of
#:   `open_guest_quick` with threads and with tasks, 1 for 170 of `open_guest`, 2 for 1 850 of `open_console` with
#:   either, 2.5 for 2 100 of `connect_guest`;
#: * two presses: 8 for 6 400 moments.
NIGHTLY_STRIDES = {
    "open_console": (3, 11),
    "open_console_tasks": (3, 11),
    "open_guest": (101, 997),
    "open_guest_quick": (3, 37),
    "open_guest_quick_tasks": (3, 37),
    "open_guest_scripted": (3, 11),
    "open_guest_relay": (3, 37),
    "connect_guest": (1, 2),
    "serve_relay": (3, 11),
    "serve_relay_nursery": (3, 37),
}


def sweep(context: str, *options: str, seconds: float) -> dict[str, object]:
    """Run one in a process of its own, which has no threads; its summary."""
    command = [
        sys.executable,
        "-m",
        "tests.interrupts._sweep",
        context,
        *options,
        f"--seconds={seconds}",
        "--jobs=2",
    ]
    done = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, text=True, timeout=seconds + 120, check=True)
    *faults, summary = done.stdout.splitlines()
    result: dict[str, object] = json.loads(summary)
    print(result)
    assert not faults, "\n".join(faults)
    assert (result["hangs"], result["faulty"]) == (0, 0)
    assert result["moments"]
    return result


@pytest.mark.parametrize("presses", [1, 2])
@pytest.mark.parametrize("context", STRIDES)
def test_ctrl_c_at_some_moments(context: str, presses: int) -> None:
    options = [f"--stride={STRIDES[context]}", "--second=0"]
    if presses == 2:  # half as many, and others
        options = [f"--stride={2 * STRIDES[context]}", "--first=31", f"--second={SECOND}"]
    sweep(context, *options, seconds=120)


@pytest.mark.nightly
@pytest.mark.parametrize("presses", [1, 2])
@pytest.mark.parametrize("context", NIGHTLY_STRIDES)
def test_ctrl_c_at_every_moment_in_some_nights(context: str, presses: int) -> None:
    stride = NIGHTLY_STRIDES[context][presses - 1]
    first = 1 + tonight(stride)
    options = [f"--stride={stride}", f"--first={first}", f"--second={SECOND if presses == 2 else 0}"]
    assert not sweep(context, *options, seconds=3000)["cut_short"]

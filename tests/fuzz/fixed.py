"""The same inputs every time: the corpus, and a fixed number of others, made of it and of seeded random numbers.

Nothing here depends on time, on coverage or on the order of a set. So a run that has passed once passes again
until trio_console or a target is changed. It needs only Python.
"""

from __future__ import annotations

import hashlib
import pathlib
import random
import signal
import sys
import time
from contextlib import contextmanager
from typing import TYPE_CHECKING, Final

from tests.fuzz.targets import TARGETS

if TYPE_CHECKING:
    from collections.abc import Iterator
    from types import FrameType

__all__ = ["COUNTS", "inputs", "run"]

_HERE: Final = pathlib.Path(__file__).parent
_CORPUS: Final = _HERE / "corpus"
CRASHES: Final = _HERE / "crashes"

#: Inputs that are made for each target, beside the corpus: together a minute of one processor.
COUNTS: Final = {
    "frames": 4000,
    "messages": 15000,
    "relay_clients": 6000,
    "relay_agent": 8000,
    "agent_router": 6000,
    "process_session": 4000,
    "exec_session": 2000,
    "admission": 150,
}

#: Bytes of an input that is made of nothing, at most.
_FRESH: Final = 260

#: What the first byte of such an input may be, where it decides about all that follows. See the targets.
_FIRST: Final = {
    "frames": (0x20, 0x21, 0x23, 0x29, 0x3F),
    "messages": (0xFC, 0xFC, 0xFC, 0xFC, 0xFC, 0xFC, 0xFC, 0xFC, 0xFC, 0xFA),
    "relay_clients": (0x20, 0x21, 0x21, 0x22, 0x23, 0x25, 0x2C, 0x2D, 0x2D, 0x2F, 0x40, 0x41, 0x49),
    "relay_agent": (0x20, 0x21, 0x21, 0x22, 0x23, 0x25, 0x2C, 0x2D, 0x2D, 0x2F, 0x40, 0x41, 0x49),
    "agent_router": (0xFF,),
}

#: Seconds of the processor that one input may take.
_PATIENCE: Final = 20


def inputs(name: str, count: int) -> Iterator[tuple[str, bytes]]:
    """What a target is run with, in order, and what to call it."""
    corpus = [(path.name, path.read_bytes()) for path in sorted((_CORPUS / name).iterdir())]
    yield from corpus
    for number in range(count):
        # A text is a seed that does not depend on how Python hashes.
        rng = random.Random(f"{name} {number}")
        made = _fresh(name, rng) if rng.random() < 0.5 else _changed([data for _, data in corpus], rng)
        yield f"number {number}", made


def _fresh(name: str, rng: random.Random) -> bytes:
    data = rng.randbytes(rng.randrange(8, _FRESH))
    first = _FIRST.get(name)
    return data if first is None else bytes([rng.choice(first)]) + data


def _changed(corpus: list[bytes], rng: random.Random) -> bytes:
    """One of the corpus, with some bytes changed, left out, repeated, put in, or of another one."""
    data = bytearray(rng.choice(corpus))
    for _ in range(rng.randrange(1, 6)):
        at = rng.randrange(len(data) + 1)
        end = min(len(data), at + rng.choice((1, 1, 2, 4, 8, 30)))
        match rng.randrange(6):
            case 0:
                data[at:end] = rng.randbytes(end - at)
            case 1:
                del data[at:end]
            case 2:
                data[at:at] = data[at:end]
            case 3:
                data[at:at] = rng.randbytes(rng.randrange(1, 9))
            case 4:
                other = rng.choice(corpus)
                data[at:] = other[rng.randrange(len(other) + 1) :]
            case _:
                data[at:end] = bytes((byte + rng.choice((-1, 1))) % 256 for byte in data[at:end])
    return bytes(data[:2000])


def run(name: str, count: int | None = None) -> str:
    """Run a target with all of them; returns a digest of what it did.

    Raises:
        Exception: what the target raised. The input is in ``tests/fuzz/crashes`` then.
    """
    digest = hashlib.sha256()
    done = 0
    for title, data in inputs(name, COUNTS[name] if count is None else count):
        try:
            with _bounded():
                outcome = TARGETS[name](data)
        except BaseException as exc:
            CRASHES.mkdir(exist_ok=True)
            file = CRASHES / f"{name}-fixed-{hashlib.sha256(data).hexdigest()[:16]}"
            file.write_bytes(data)
            exc.add_note(f"{name}: FAILED at {title}, after {done} inputs and {_spent()}; to run it again:")
            exc.add_note(f"    {sys.executable} -m tests.fuzz.one --replay {name} {file}")
            raise
        digest.update(f"{len(data)} {outcome}\n".encode())
        done += 1
    told = digest.hexdigest()[:16]
    print(f"{name}: {done} inputs in {_spent()}, digest {told}", flush=True)  # noqa: T201
    return told


def _spent() -> str:
    return f"{time.process_time():.1f} s of the processor"


@contextmanager
def _bounded() -> Iterator[None]:
    """In time of the processor, because the machine may be busy with something else."""

    def too_long(_number: int, _frame: FrameType | None) -> None:
        raise TimeoutError(f"still not done after {_PATIENCE} s of the processor")

    before = signal.signal(signal.SIGPROF, too_long)
    signal.setitimer(signal.ITIMER_PROF, _PATIENCE)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.signal(signal.SIGPROF, before)

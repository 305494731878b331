"""The plan of a round: all of it is drawn from the seed before the round begins."""

from __future__ import annotations

import random
import signal
from dataclasses import dataclass, field
from typing import Any

from tests.faults._session import Operation, choose
from trio_console.testing import (
    Corrupt,
    Disconnect,
    Drop,
    Duplicate,
    Fault,
    Flood,
    Reorder,
    Signal,
    Stall,
    Truncate,
)

#: Faults that only take bytes away and change none: after them, all bytes that arrive are right.
HONEST = (Stall, Disconnect, Signal, Truncate)

#: Faults after which a call may wait for ever for a frame that does not come, and has to be cancelled.
SILENT = (Stall, Signal, Drop, Corrupt, Reorder, Truncate, Flood, Duplicate)

#: The messages of an operation, and how often each comes at least.
EXEC = ("core.exec.request", "core.exec.started", "core.exec.exited")
MESSAGES = {
    "cat": (*EXEC, "core.exec.stdin", "core.exec.stdout", "core.exec.stderr"),
    "stream": (*EXEC, "core.exec.stdout"),
    "file": ("core.fs.request", "core.fs.response", "core.fs.data"),
    "tcp": ("core.tcp.connect", "core.tcp.connected", "core.tcp.data", "core.tcp.eof"),
    "ping": ("core.ping", "core.pong", "core.touch", "core.touched"),
    "missing": ("core.exec.request", "core.exec.failed"),
    "tty": (*EXEC, "core.exec.stdout"),
    "signal": (*EXEC, "core.exec.signal", "core.exec.stdout"),
    "background": (*EXEC, "trio.exec.left", "core.exec.stdout"),
    "daemon": (*EXEC, "trio.exec.kill", "core.exec.stdout"),
    "rest": (*EXEC, "trio.background.kill", "trio.background.killed", "core.exec.stdout"),
}
BOOT = ("core.bootstrap", "core.init.resolved", "core.init.ack", "core.ready")


#: Kinds of rounds, and how many of a hundred are of each.
SHARES = {"console": 44, "agent": 14, "cancel": 12, "device": 8, "descriptors": 9, "disk": 6, "client": 7}


def harms_a_session_only(action: Any) -> bool:
    """Whether each frame stays a whole frame: then only a session is harmed, and never the guest."""
    if isinstance(action, Corrupt):
        return action.offset > 3
    return isinstance(action, Drop | Duplicate | Reorder)


@dataclass(frozen=True)
class Plan:
    """The plan of one round."""

    seed: int
    kind: str
    operations: list[Operation]
    client_operations: list[Operation]  # of a relay's client; none: no relay
    faults: list[Fault]
    grace: float
    agent: str  # "task" or "process"
    details: dict[str, Any] = field(default_factory=dict)

    def __str__(self) -> str:
        lines = [
            f"seed {self.seed}: {self.kind}, agent in a {self.agent}, grace {self.grace} s, {self.details}",
            *(f"  fault      {fault}" for fault in self.faults),
            *(f"  operation  {operation}" for operation in self.operations),
            *(f"  relayed    {operation}" for operation in self.client_operations),
        ]
        return "\n".join(lines)


def draw(seed: int) -> Plan:
    rng = random.Random(seed)
    kind = rng.choices(list(SHARES), list(SHARES.values()))[0]
    operations = choose(rng, rng.randint(1, 5))
    clients = choose(rng, rng.randint(1, 3)) if kind in ("disk", "client") or rng.random() < 0.25 else []
    grace = rng.choice([0.25, 0.25, 0.7])
    faults: list[Fault] = []
    agent = "task"
    details: dict[str, Any] = {}
    match kind:
        case "console":
            faults = [_console_fault(rng, operations) for _ in range(rng.choice([1, 1, 1, 2, 3]))]
            agent = rng.choice(["task", "task", "task", "task", "task", "process"])
        case "agent":
            number = rng.choice([signal.SIGKILL, signal.SIGKILL, signal.SIGSTOP, signal.SIGTERM])
            faults = [_trigger(rng, Signal(number), operations)]
            agent = "process"
        case "cancel":
            faults = [
                _trigger(rng, Duplicate(copies=0), operations)
            ]  # which changes nothing, and marks the moment
        case "device":
            details = {
                "sizes": [rng.choice([1, 37, 5_000, 40_000, 200_000]) for _ in range(rng.randint(1, 6))],
                "fault": rng.choice(["stall", "die", "die in the middle", "die with an error", "nothing"]),
                "after": rng.randrange(300_000),
                "max_bytes": rng.choice([1_000, 33_000, 262_144]),
            }
        case "descriptors":
            # Opening takes some twelve, using a guest a few. With the agent in a task it is the agent's lack too.
            # With just one, a client would be told only after the ten seconds that a relay has to greet it; and
            # the server that echoes is of this program too.
            before = rng.random() < 0.5
            agent = "process" if before else rng.choice(["process", "task"])
            clients = clients or choose(rng, rng.randint(1, 3))
            details = {"when": "before" if before else "after", "how": rng.choice(["eaten", "limit"])}
            details["free"] = rng.randint(0, 16) if before else rng.choice([0, 2, 3, 4, 5, 6, 7])
            operations = [each for each in operations if each.name != "tcp"]
            clients = [each for each in clients if each.name != "tcp"]
        case "disk":
            details = {"room": rng.choice([0, 100, 3_000, 50_000]), "how": rng.choice(["limit", "full", "tmpfs"])}
            details["max_bytes"] = rng.choice([2_000, 60_000, 16 * 1024 * 1024])
        case "client":
            details = {"what": rng.choice(["half a frame", "garbage", "silence", "flood", "gone"])}
    return Plan(seed, kind, operations, clients, faults, grace, agent, details)


def _console_fault(rng: random.Random, operations: list[Operation]) -> Fault:
    actions: list[Any] = [
        Stall(),
        Disconnect(),
        Disconnect(5),
        Drop(),
        Duplicate(rng.choice([1, 1, 5, 500])),
        Corrupt(rng.choice([-1, -2, -9, 0, 1, 2, 3, 4, 7, 8, 9, 12, 20, 40]), 1 << rng.randrange(8)),
        Corrupt(rng.randrange(100), 1 << rng.randrange(8)),
        Reorder(rng.randint(1, 3), across_sessions=rng.random() < 0.5),
        Truncate(rng.choice([None, 0, 1, 4, 5, 9, 30]), rng.choice([Stall(), Disconnect(), Disconnect(5)])),
        Flood(rng.choice([None, rng.randbytes(rng.choice([1, 100, 9_000]))])),
    ]
    return _trigger(rng, rng.choice(actions), operations)


def _trigger(rng: random.Random, action: Any, operations: list[Operation]) -> Fault:
    """A fault at a frame that is likely to come. If the frame never comes, the round has no fault."""
    if rng.random() < 0.6:
        rare = ("trio.credit", "core.shutdown", *BOOT)
        message = rng.choice(rare) if rng.random() < 0.15 else rng.choice(MESSAGES[rng.choice(operations).name])
        return Fault(action, message, nth=rng.choice([1, 1, 1, 1, 2, 3]))
    return Fault(action, nth=rng.randint(1, 4 + 3 * len(operations)), direction=rng.choice(["tx", "tx", "rx"]))

"""A ring whose threads see each other's stores as late as possible on a machine without the interpreter lock.

A thread's store stays in the thread's own buffer, from which the thread itself reads. The other thread sees the
store when the first one passes the ring's mutex, rings or sleeps on a wake, or ends, and never earlier. Run by the
stepper, under every schedule, this is the worst case for two threads of which each stores one thing and then reads
the other's.
"""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING, Any

from tests.console.wake.stepper import StepWake
from trio_console._console.ring import FencedRing

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.console.wake.stepper import Stepper


class Memory:
    """The stores that all threads see, and for each thread those that only it sees."""

    def __init__(self) -> None:
        self.seen: dict[str, Any] = {}
        self.buffers: dict[int, dict[str, Any]] = {}

    def read(self, name: str) -> Any:
        return self.buffers.get(threading.get_ident(), self.seen).get(name, self.seen[name])

    def write(self, name: str, value: Any) -> None:
        self.buffers.setdefault(threading.get_ident(), {})[name] = value

    def publish(self) -> None:
        """Let all threads see the stores of this thread."""
        self.seen.update(self.buffers.pop(threading.get_ident(), {}))

    def runs(self, body: Callable[[], object]) -> Callable[[], None]:
        """The body of a thread; at its end all threads see its stores."""

        def run() -> None:
            body()
            self.publish()

        return run


class WeakDeque:
    """A `collections.deque` as far as a ring uses it: one thread appends, one takes."""

    def __init__(self, memory: Memory) -> None:
        self.memory = memory
        memory.seen.update(appended=(), removed=0)

    def append(self, chunk: bytes) -> None:
        self.memory.write("appended", (*self.memory.read("appended"), chunk))

    def popleft(self) -> bytes:
        chunk: bytes = self[0]
        self.memory.write("removed", self.memory.read("removed") + 1)
        return chunk

    def copy(self) -> list[bytes]:
        return list(self.memory.read("appended")[self.memory.read("removed") :])

    def __getitem__(self, index: int) -> Any:
        return self.memory.read("appended")[self.memory.read("removed") + index]

    def __len__(self) -> int:
        return len(self.memory.read("appended")) - int(self.memory.read("removed"))


class Mutex:
    """The ring's mutex. For one thread it may do ``nothing``, which shows its purpose."""

    def __init__(self, memory: Memory, nothing: Callable[[], bool]) -> None:
        self.memory = memory
        self.nothing = nothing

    def __setitem__(self, _index: int, _value: None) -> None:
        if not self.nothing():
            self.memory.publish()


class WeakWake(StepWake):
    """A wake: its lock and its system call let the other thread see the stores made before."""

    def __init__(self, stepper: Stepper, memory: Memory) -> None:
        super().__init__(stepper)
        self.memory = memory

    def wake(self) -> None:
        self.memory.publish()
        super().wake()

    def drain(self) -> None:
        self.memory.publish()
        super().drain()

    def wait(self, timeout: float | None = None) -> bool:
        self.memory.publish()
        return super().wait(timeout)


def shared(name: str) -> Any:
    """A variable of the ring that both threads read."""
    return property(lambda ring: ring.memory.read(name), lambda ring, value: ring.memory.write(name, value))


class WeakRing(FencedRing):
    """The ring itself, in such a memory.

    Args:
        nothing: tells whether the mutex does nothing for the thread that asks.
    """

    def __init__(
        self, stepper: Stepper, capacity: int, max_bytes: int, nothing: Callable[[], bool] = lambda: False
    ) -> None:
        self.memory = Memory()
        data: Any = WeakWake(stepper, self.memory)
        room: Any = WeakWake(stepper, self.memory)
        super().__init__(capacity, max_bytes, data_wake=data, room_wake=room)
        self._chunks = WeakDeque(self.memory)  # type: ignore[misc, assignment]
        self._fence = Mutex(self.memory, nothing)  # type: ignore[misc, assignment]
        self.memory.publish()

    _pushed = shared("pushed")
    _popped = shared("popped")
    _granted = shared("granted")
    _room_wanted = shared("room_wanted")
    _data_flag = shared("data_flag")
    _room_flag = shared("room_flag")
    _revoked_flag = shared("revoked_flag")


def fences_first(name: str) -> Any:
    """A flag that passes the mutex before its store and after its look: the wrong way round."""

    def look(ring: Any) -> Any:
        value = ring.memory.read(name)
        ring._fence[0] = None
        return value

    def store(ring: Any, value: bool) -> None:
        ring._fence[0] = None
        ring.memory.write(name, value)

    return property(look, store)


class FencesFirst(WeakRing):
    _data_armed = fences_first("data_flag")
    _room_armed = fences_first("room_flag")
    _revoked = fences_first("revoked_flag")

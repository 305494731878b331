"""A small session with a guest, of mixed operations, and the outcome of each.

Every operation must end in one of a few allowed ways, and reports which.
"""

from __future__ import annotations

import subprocess
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any

import trio

from trio_console import GuestLostError, ProtocolError

if TYPE_CHECKING:
    import pathlib
    import random
    from collections.abc import Awaitable, Callable

    from trio_console import Guest, GuestProcess

#: How operations may fail; each says why.
FAILURES = (OSError, ProtocolError, trio.BrokenResourceError)


@dataclass
class Outcome:
    """How one operation ended."""

    name: str
    how: str  # "done", "wrong", "failed", "lost", "cancelled"
    detail: str = ""
    returncode: int | None = None


@dataclass(frozen=True)
class Operation:
    """One operation, and its data."""

    name: str
    size: int
    status: int
    start: int  # what is skipped of the common data

    def data(self, pool: bytes) -> bytes:
        return pool[self.start : self.start + self.size]


KINDS = ("cat", "stream", "file", "tcp", "ping", "missing", "tty", "signal", "background", "daemon", "rest")


def choose(rng: random.Random, count: int) -> list[Operation]:
    sizes = [0, 1, 100, 5_000, 70_000, 300_000]
    return [
        Operation(rng.choice(KINDS), rng.choice(sizes), rng.choice([0, 3, 77]), rng.randrange(1000))
        for _ in range(count)
    ]


class Session:
    """Carries out all operations at the same time."""

    def __init__(self, directory: pathlib.Path, pool: bytes, port: int) -> None:
        self.outcomes: list[Outcome] = []
        self.complaints: list[str] = []
        self.directory = directory
        self._pool = pool
        self._port = port

    async def run(self, guest: Guest, operations: list[Operation], label: str) -> None:
        async with trio.open_nursery() as nursery:
            for number, operation in enumerate(operations):
                call = partial(getattr(self, f"_{operation.name}"), guest, operation, f"{label}{number}")
                nursery.start_soon(self._do, f"{label}{number}:{operation.name}", call)

    async def _do(self, name: str, call: Callable[[], Awaitable[Any]]) -> None:
        outcome = Outcome(name, "cancelled")
        self.outcomes.append(outcome)
        try:
            outcome.returncode = await call()
            outcome.how = "done"
        except AssertionError as exc:
            outcome.how, outcome.detail = "wrong", str(exc)
        except GuestLostError as exc:
            outcome.how, outcome.detail = "lost", exc.reason
        except FAILURES as exc:
            outcome.how, outcome.detail = "failed", repr(exc)

    def note_connection(self, error: Exception) -> None:
        """A client could not connect, or its connection failed."""
        how = "lost" if isinstance(error, GuestLostError) else "failed"
        self.outcomes.append(Outcome("connect", how, repr(error)))

    # The operations. Each checks its results, and returns the return code that it got, or None.

    async def _cat(self, guest: Guest, operation: Operation, _label: str) -> int:
        data = operation.data(self._pool)
        done = await guest.run_process(
            ["sh", "-c", f"cat; echo over >&2; exit {operation.status}"],
            stdin=data,
            capture_stdout=True,
            capture_stderr=True,
            check=False,
            deliver_cancel=kill,
        )
        assert done.returncode == operation.status, f"status {done.returncode} instead of {operation.status}"
        assert done.stdout == data, describe(done.stdout, data)
        assert done.stderr == b"over\n", f"stderr {done.stderr[:80]!r}"
        return done.returncode

    async def _stream(self, guest: Guest, operation: Operation, _label: str) -> int:
        size = operation.size
        got = bytearray()
        async with guest.open_process(
            ["sh", "-c", f"head -c {size} /dev/zero; exit {operation.status}"], stdout=subprocess.PIPE
        ) as process:
            assert process.stdout is not None
            async for chunk in process.stdout:
                got += chunk
            returncode = await process.wait()
        assert returncode == operation.status, f"status {returncode} instead of {operation.status}"
        assert got == bytes(size), describe(bytes(got), bytes(size))
        return returncode

    async def _file(self, guest: Guest, operation: Operation, label: str) -> None:
        data = operation.data(self._pool)
        path = guest.path(self.directory / f"file-{label}")
        await path.write_bytes(data)
        got = await path.read_bytes()
        assert got == data, describe(got, data)

    async def _tcp(self, guest: Guest, operation: Operation, _label: str) -> None:
        data = operation.data(self._pool)
        got = bytearray()
        async with await guest.open_tcp_stream("127.0.0.1", self._port) as stream, trio.open_nursery() as nursery:

            async def send() -> None:
                try:
                    await stream.send_all(data)
                    await stream.send_eof()
                except FAILURES:
                    pass  # the receiving side gets the same error

            nursery.start_soon(send)
            failure = None
            try:
                async for chunk in stream:
                    got += chunk
            except FAILURES as exc:
                failure = exc
            nursery.cancel_scope.cancel()
        if failure is not None:
            raise failure
        assert got == data, describe(bytes(got), data)

    async def _ping(self, guest: Guest, _operation: Operation, _label: str) -> None:
        assert await guest.ping() >= 0
        assert await guest.touch() > 0

    async def _missing(self, guest: Guest, _operation: Operation, _label: str) -> None:
        try:
            await guest.run_process(["no-such-command"])
        except FileNotFoundError as exc:
            assert exc.filename == "no-such-command"  # noqa: PT017
        else:
            raise AssertionError("a command that is not there has run")

    async def _tty(self, guest: Guest, operation: Operation, _label: str) -> int:
        async with guest.open_process(
            ["sh", "-c", f"stty size; exit {operation.status}"], stdout=subprocess.PIPE, tty=True, rows=5, cols=7
        ) as process:
            assert process.stdout is not None
            got = b"".join([chunk async for chunk in process.stdout])
            returncode = await process.wait()
        assert returncode == operation.status, f"status {returncode} instead of {operation.status}"
        assert got == b"5 7\r\n", f"a terminal of {got!r}"
        return returncode

    async def _signal(self, guest: Guest, _operation: Operation, _label: str) -> int:
        async with guest.open_process(["sh", "-c", "echo up; exec sleep 1000"], stdout=subprocess.PIPE) as process:
            assert process.stdout is not None
            assert await process.stdout.receive_some(1) == b"u", "not what was written"
            process.terminate()
            returncode = await process.wait()
        assert returncode == -15, f"status {returncode} instead of -15"
        return returncode

    async def _background(self, guest: Guest, operation: Operation, _label: str) -> int:
        """The command exits, and what it has started goes on writing."""
        background = f"(sleep 0.02; head -c {operation.size} /dev/zero; echo end)"
        done = await guest.run_process(
            ["sh", "-c", f"{background} & exit {operation.status}"],
            capture_stdout=True,
            check=False,
            drain=None,
            deliver_cancel=kill,
        )
        assert done.returncode == operation.status, f"status {done.returncode} instead of {operation.status}"
        expected = bytes(operation.size) + b"end\n"
        assert done.stdout == expected, describe(done.stdout, expected)
        return done.returncode

    async def _daemon(self, guest: Guest, _operation: Operation, _label: str) -> None:
        """The command has a process in a session of its own, which is killed with it."""
        script = "setsid sleep 1000 & setsid sleep 1000 >/dev/null 2>&1 & echo up; sleep 1000"
        async with guest.open_process(["sh", "-c", script], stdout=subprocess.PIPE) as process:
            assert process.stdout is not None
            assert await process.stdout.receive_some(1) == b"u", "not what was written"

    async def _rest(self, guest: Guest, operation: Operation, _label: str) -> None:
        """The command has exited; what it has left is killed by an exception, and holds no stream."""
        script = f"setsid sleep 1000 </dev/null >/dev/null 2>&1 & echo up; exit {operation.status}"
        with suppress(_MineError):
            async with guest.open_process(["sh", "-c", script], stdout=subprocess.PIPE) as process:
                assert process.stdout is not None
                assert await process.stdout.receive_some(1) == b"u", "not what was written"
                assert await process.wait() == operation.status, "another status"
                raise _MineError


class _MineError(Exception):
    pass


async def kill(process: GuestProcess) -> None:
    process.kill()


def describe(got: bytes, expected: bytes) -> str:
    return f"{len(got)} bytes instead of {len(expected)}{'' if len(got) != len(expected) else ', or others'}"


@dataclass
class Verdict:
    """The failures of a round."""

    complaints: list[str] = field(default_factory=list)

    def expect(self, condition: object, text: str) -> None:
        if not condition:
            self.complaints.append(text)

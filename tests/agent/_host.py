"""The host's end of an agent, for tests: it sends frames, and checks the frames that come back."""

from __future__ import annotations

import os
import subprocess
from collections import deque
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, TypeVar

import trio

from tests.tools.limits import HANG
from tests.tools.peer import Peer
from tests.tools.pidfds import pidfd_open
from trio_console import _wire as wire

if TYPE_CHECKING:
    from collections.abc import Iterator

M = TypeVar("M", bound=wire.Message)


@dataclass
class Outcome:
    """All messages of one session from the agent, up to the terminal frame."""

    messages: list[wire.Message] = field(default_factory=list)

    @property
    def last(self) -> Any:
        return self.messages[-1]

    @property
    def stdout(self) -> bytes:
        return b"".join(m.data for m in self.messages if isinstance(m, wire.ExecStdout))

    @property
    def stderr(self) -> bytes:
        return b"".join(m.data for m in self.messages if isinstance(m, wire.ExecStderr))

    def all(self, cls: type[M]) -> list[M]:
        return [m for m in self.messages if isinstance(m, cls)]


class Host:
    """The host of one agent. Frames of other ids are kept until a test asks for them."""

    def __init__(self, stream: trio.abc.Stream) -> None:
        self.stream = stream
        self._peer = Peer(stream)
        self._kept: dict[int, deque[wire.Frame]] = {}
        self._next_id = 1000

    def new_id(self) -> int:
        self._next_id += 1
        return self._next_id

    # Sending

    async def send(self, message: wire.Message, sid: int = 0, *, version: int = 7) -> None:
        await self._peer.send(message, sid, version=version)

    async def send_raw(self, data: bytes) -> None:
        await self._peer.send_raw(data)

    async def boot(self, **fields: Any) -> wire.Ready:
        """Go through the boot exchange; return the agent's ready message."""
        await self.send(wire.Bootstrap(**fields))
        assert isinstance(await self.receive(0), wire.InitResolved)
        await self.send(wire.InitAck())
        ready = await self.receive(0)
        assert isinstance(ready, wire.Ready)
        return ready

    async def start(self, *argv: str, sid: int | None = None, **fields: Any) -> int:
        """Request a command and wait until it has started; return the session's sid."""
        sid = sid or self.new_id()
        await self.request(*argv, sid=sid, **fields)
        assert isinstance(await self.receive(sid), wire.ExecStarted)
        return sid

    async def request(self, *argv: str, sid: int, **fields: Any) -> None:
        await self.send(wire.ExecRequest(argv[0], list(argv[1:]), **fields), sid)

    async def run(self, *argv: str, stdin: bytes | None = None, **fields: Any) -> Outcome:
        """Run a command to its end. If ``stdin`` is given, send it, and then end of file."""
        sid = self.new_id()
        await self.request(*argv, sid=sid, **fields)
        if stdin is not None:
            if stdin:
                await self.send(wire.ExecStdin(stdin), sid)
            await self.send(wire.ExecStdin(b""), sid)
        return await self.collect(sid)

    async def sh(self, script: str, **fields: Any) -> Outcome:
        return await self.run("/bin/sh", "-c", script, **fields)

    # Files

    async def fs(self, op: Any, *, sid: int | None = None, **fields: Any) -> wire.FsResponse:
        """Request a file operation that has one answer, and return that."""
        sid = sid or self.new_id()
        await self.send(wire.FsRequest(op, **fields), sid)
        response = await self.receive(sid)
        assert isinstance(response, wire.FsResponse), response
        return response

    async def ok(self, op: Any, **fields: Any) -> Any:
        """Request a file operation that must succeed; return its result."""
        response = await self.fs(op, **fields)
        assert response.ok, response
        assert response.error is None
        return None if response.data is None else response.data.value

    async def error(self, op: Any, **fields: Any) -> str:
        """Request a file operation that must fail; return its error text."""
        response = await self.fs(op, **fields)
        assert not response.ok
        assert response.data is None
        assert response.error is not None
        return response.error

    async def open_file(self, path: object, how: str, *, mode: int | None = None, **fields: Any) -> int:
        """Open a file with the options in ``how``; return its handle."""
        names = ("read", "write", "append", "create", "truncate", "create_new")
        options = wire.OpenOptions(**{name: name in how.split() for name in names}, mode=mode)
        handle = await self.ok(wire.OpOpenFile(str(path), options), **fields)
        assert isinstance(handle, int)
        return handle

    async def read_file(self, op: wire.OpRead, **fields: Any) -> tuple[bytes, wire.FsResponse]:
        """Read a file to its end. The client must not count credit."""
        sid = self.new_id()
        await self.send(wire.FsRequest(op, **fields), sid)
        *chunks, last = (await self.collect(sid)).messages
        assert isinstance(last, wire.FsResponse)
        assert all(isinstance(chunk, wire.FsData) and chunk.data for chunk in chunks)
        return b"".join(chunk.data for chunk in chunks if isinstance(chunk, wire.FsData)), last

    async def write_file(self, op: wire.OpWrite, *chunks: bytes, **fields: Any) -> wire.FsResponse:
        """A whole write."""
        sid = self.new_id()
        await self.send(wire.FsRequest(op, **fields), sid)
        for chunk in (*chunks, b""):
            await self.send(wire.FsData(chunk), sid)
        response = (await self.collect(sid)).last
        assert isinstance(response, wire.FsResponse)
        return response

    # Receiving

    async def receive_frame(self, sid: int | None = None) -> wire.Frame | None:
        """The next frame of ``sid``, or of any session; ``None`` at the end."""
        while (kept := self._take_kept(sid)) is None:
            frame = await self._peer.receive_frame()
            if frame is None:
                return None
            self._kept.setdefault(frame.id, deque()).append(frame)
        return kept

    def _take_kept(self, sid: int | None) -> wire.Frame | None:
        ids: Iterator[int] = iter([sid] if sid is not None else list(self._kept))
        for candidate in ids:
            if self._kept.get(candidate):
                return self._kept[candidate].popleft()
        return None

    async def receive(self, sid: int) -> Any:
        """The next message of ``sid``."""
        frame = await self.receive_frame(sid)
        assert frame is not None, "the agent closed the console"
        return wire.decode(frame)

    async def collect(self, sid: int) -> Outcome:
        """All messages of ``sid`` up to its terminal frame."""
        outcome = Outcome()
        while True:
            outcome.messages.append(await self.receive(sid))
            if wire.type_of(outcome.last).flags & wire.FLAG_TERMINAL:
                return outcome

    async def read_stdout(self, sid: int, enough: bytes) -> bytes:
        """The output of ``sid``, read until it contains ``enough``."""
        seen = b""
        while enough not in seen:
            message = await self.receive(sid)
            assert isinstance(message, wire.ExecStdout), message
            seen += message.data
        return seen

    async def ping(self) -> None:
        """Wait until the agent has taken all frames that were sent before."""
        sid = self.new_id()
        await self.send(wire.Ping(), sid)
        assert isinstance(await self.receive(sid), wire.Pong)

    async def nothing_for(self, sid: int) -> bool:
        """Whether nothing has come for ``sid`` when the agent has taken all frames sent so far."""
        await self.ping()
        return not self._kept.get(sid)

    async def gone(self) -> list[wire.Frame]:
        """Wait until the agent closes the console; return the frames that came before."""
        frames = []
        while (frame := await self.receive_frame()) is not None:
            frames.append(frame)
        return frames


async def wait_gone(pid: int) -> None:
    """Wait for a process that was killed to be gone."""
    try:
        pidfd = pidfd_open(pid)
    except ProcessLookupError:
        return
    try:
        with trio.fail_after(HANG):
            await trio.lowlevel.wait_readable(pidfd)
    finally:
        os.close(pidfd)


def open_fds(path: object) -> int:
    """How many descriptors of this process are of a file."""
    count = 0
    for fd in os.listdir("/proc/self/fd"):
        try:
            count += os.readlink(f"/proc/self/fd/{fd}") == str(path)
        except OSError:
            continue
    return count


async def closed(path: object) -> None:
    """Wait for the agent to have closed a file."""
    with trio.fail_after(HANG):
        while open_fds(path):
            await trio.sleep(0.001)


def pid_is_taken(pid: int) -> bool:
    """Whether a process exists; a zombie does."""
    return os.path.exists(f"/proc/{pid}")


def popen(*argv: str, **options: Any) -> subprocess.Popen[bytes]:
    """Start a process of the test itself, from async code as well."""
    return subprocess.Popen(argv, **options)

"""An agent that serves the files of this machine; the test controls each step."""

from __future__ import annotations

import os
import stat
from collections import deque
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

import pytest
import trio

from tests.session._fake import WINDOW, FakeAgent, Talk, talking
from tests.tools.limits import HANG
from trio_console import _wire as wire

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

CHUNK = 16 * 1024

#: Runs a test with an agent that counts credit, and with one that does not.
FLOWS = pytest.mark.parametrize("window", [WINDOW, None], ids=["credit", "no-credit"])


class Live:
    """A request that is being served."""

    def __init__(self, window: int | None) -> None:
        self.credit = window
        self.messages: deque[wire.Message] = deque()
        self.cancelled = False
        self.changed = trio.Event()
        self.most_outstanding = 0

    def tell(self, message: wire.Message) -> None:
        if isinstance(message, wire.Credit):
            assert self.credit is not None, "credit for a request that asked for none"
            self.credit += message.bytes
        elif isinstance(message, wire.Cancel):
            self.cancelled = True
        else:
            self.messages.append(message)
        self.changed.set()

    async def wait(self) -> None:
        self.changed = trio.Event()
        await self.changed.wait()


class FilesAgent:
    """Serves file operations.

    Attributes:
        ops: every operation that was asked for.
        open: handles that are open, by number.
        held: operations to hold back until their event is set, by type.
        failing: operations to answer with this error text, by type.
        extra: bytes that are sent in front of the contents of a file, for a client that asks for these.
        lives: requests being served, by id.
    """

    def __init__(self, agent: FakeAgent, window: int | None) -> None:
        self.ops: list[Any] = []
        self.requests: list[wire.FsRequest] = []
        self.open: dict[int, Any] = {}
        self.held: dict[type, trio.Event] = {}
        self.failing: dict[type, str] = {}
        self.extra = b""
        self.lives: dict[int, Live] = {}
        self.cancelled: list[int] = []
        self.credit_granted = 0
        self.late_frames = 0
        self.grant_writes = True
        self.grant_reads = True
        self._agent = agent
        self._window = window
        self._next = 0
        self._locks: dict[int, trio.Lock] = {}

    def count(self, op: type) -> int:
        return sum(isinstance(one, op) for one in self.ops)

    async def run(self) -> None:
        async with trio.open_nursery() as nursery:
            async for id_, message in self._agent:
                if isinstance(message, wire.FsRequest):
                    self.ops.append(message.op)
                    self.requests.append(message)
                    window = None if message.window is wire.UNSET else message.window
                    self.lives[id_] = Live(window)
                    nursery.start_soon(self._serve, id_, message)
                elif id_ in self.lives:
                    if isinstance(message, wire.Cancel):
                        self.cancelled.append(id_)
                    if isinstance(message, wire.Credit):
                        self.credit_granted += message.bytes
                    self.lives[id_].tell(message)
                elif isinstance(message, wire.FsData):
                    self.late_frames += 1
                    text = f"unknown write session: {id_}"
                    await self._agent.tell(wire.FsResponse(ok=False, error=text), id_)
            nursery.cancel_scope.cancel()

    async def _serve(self, id_: int, request: wire.FsRequest) -> None:
        response = await self._respond(id_, request.op)
        if request.contents is True and isinstance(response.data, wire.ResultHandle):
            response = await self._with_contents(id_, response.data.value, response)
        del self.lives[id_]
        await self._agent.tell(response, id_)

    async def _respond(self, id_: int, op: Any) -> wire.FsResponse:
        what = type(op).__name__.removeprefix("Op").lower()
        if type(op) in self.held:
            await self.held[type(op)].wait()
        if type(op) in self.failing:
            return wire.FsResponse(ok=False, error=self.failing[type(op)])
        handle = getattr(op, "handle", None)
        try:
            if handle is None:
                data = self._do(op)
            else:
                async with self._locks.setdefault(handle, trio.Lock()):
                    if handle not in self.open:
                        return wire.FsResponse(ok=False, error=f"invalid handle: {handle}")
                    data = await self._do_with_handle(self.lives[id_], id_, op)
        except OSError as exc:
            if exc.errno is None:
                return wire.FsResponse(ok=False, error=str(exc))
            text = f"{what}: {os.strerror(exc.errno)} (os error {exc.errno})"
            return wire.FsResponse(ok=False, error=text)
        return wire.FsResponse(ok=True, data=data)

    async def _with_contents(self, id_: int, number: int, response: wire.FsResponse) -> wire.FsResponse:
        fd = self.open[number]
        found = os.fstat(fd)
        if not stat.S_ISREG(found.st_mode) or found.st_size > wire.LARGEST_CONTENTS:
            return response
        data = self.extra + os.pread(fd, wire.LARGEST_CONTENTS, 0)
        os.close(self.open.pop(number))
        for start in range(0, len(data), CHUNK):
            await self._agent.tell(wire.FsData(data[start : start + CHUNK]), id_)
        return wire.FsResponse(ok=True)

    def _add(self, thing: Any) -> wire.ResultHandle:
        self._next += 1
        self.open[self._next] = thing
        return wire.ResultHandle(self._next)

    def _do(self, op: Any) -> Any:  # noqa: C901 (a table)
        match op:
            case wire.OpOpenFile(path, options):
                return self._add(os.open(path, _flags(options), 0o666 if options.mode is None else options.mode))
            case wire.OpOpenDir(path):
                return self._add([_entry(f"{path}/{name}", False) for name in os.listdir(path)])
            case wire.OpStat(path, follow):
                return wire.ResultStat(_entry(path, follow))
            case wire.OpRealPath(path):
                try:
                    return wire.ResultPath(os.path.realpath(path, strict=True))
                except FileNotFoundError:
                    parent, name = os.path.split(path)
                    return wire.ResultPath(os.path.join(os.path.realpath(parent, strict=True), name))
            case wire.OpReadLink(path):
                return wire.ResultPath(os.readlink(path))
            case wire.OpSymlink(target, link):
                os.symlink(target, link)
            case wire.OpMkdir(path, mode):
                os.makedirs(path, exist_ok=True)
                if mode is not None:
                    os.chmod(path, mode)
            case wire.OpRemove(path):
                os.unlink(path)
            case wire.OpRemoveDir(path, recursive):
                assert not recursive
                os.rmdir(path)
            case wire.OpRename(src, dst):
                os.rename(src, dst)
            case wire.OpSetStat(path, _, attrs):
                os.stat(path)
                if attrs.mode is not None:
                    os.chmod(path, attrs.mode)
                if attrs.mtime is not None:
                    os.utime(path, (attrs.atime, attrs.mtime))
            case _:
                raise AssertionError(op)
        return None

    async def _do_with_handle(self, live: Live, id_: int, op: Any) -> Any:
        if isinstance(op, wire.OpCloseHandle):
            thing = self.open.pop(op.handle)
            if isinstance(thing, int):
                os.close(thing)
            return None
        thing = self.open[op.handle]
        match op:
            case wire.OpRead(_, offset, size):
                await self._read(live, id_, thing, offset, size)
            case wire.OpWrite(_, offset, size):
                await self._write(live, id_, thing, offset, size)
            case wire.OpFStat():
                return wire.ResultStat(_entry_of(os.fstat(thing), ""))
            case wire.OpFSetStat(_, attrs):
                os.ftruncate(thing, attrs.size)
            case wire.OpReadDir(_, limit):
                page, thing[:] = thing[:limit], thing[limit:]
                return wire.ResultList(page)
        return None

    async def _read(self, live: Live, id_: int, fd: int, offset: int, size: int | None) -> None:
        rest = 1 << 62 if size is None else size
        while rest and not live.cancelled:
            if not self.grant_reads or (live.credit is not None and live.credit <= 0):
                await live.wait()
                continue
            most = min(CHUNK, rest, CHUNK if live.credit is None else live.credit)
            data = os.pread(fd, most, offset)
            if not data:
                return
            await self._agent.tell(wire.FsData(data), id_)
            offset += len(data)
            rest -= len(data)
            if live.credit is not None:
                live.credit -= len(data)
            await trio.lowlevel.checkpoint()
        if live.cancelled:
            raise OSError("cancelled")

    async def _write(self, live: Live, id_: int, fd: int, offset: int, size: int | None) -> None:
        written = taken = 0
        while not live.cancelled:
            if not live.messages or not self.grant_writes:
                outstanding = sum(len(m.data) for m in live.messages if isinstance(m, wire.FsData))
                live.most_outstanding = max(live.most_outstanding, outstanding)
                await live.wait()
                continue
            message = live.messages.popleft()
            assert isinstance(message, wire.FsData)
            if not message.data:
                if size is not None and size != written:
                    raise OSError(f"write length mismatch: expected {size}, wrote {written}")
                return
            os.pwrite(fd, message.data, offset)
            offset += len(message.data)
            written += len(message.data)
            taken += len(message.data)
            if self._window is not None and taken >= self._window // 2:
                await self._agent.tell(wire.Credit(stream="data", bytes=taken), id_)
                taken = 0
        raise OSError("cancelled")


def _flags(options: wire.OpenOptions) -> int:
    flags = {(True, False): os.O_RDONLY, (False, True): os.O_WRONLY, (True, True): os.O_RDWR}[
        options.read, options.write or options.append
    ]
    flags |= os.O_APPEND if options.append else 0
    flags |= os.O_CREAT if options.create or options.create_new else 0
    flags |= os.O_TRUNC if options.truncate else 0
    return flags | (os.O_EXCL if options.create_new else 0)


def _entry(path: str, follow: bool) -> wire.EntryInfo:
    return _entry_of(os.stat(path, follow_symlinks=follow), path)


def _entry_of(info: os.stat_result, path: str) -> wire.EntryInfo:
    kinds = {stat.S_IFREG: "file", stat.S_IFDIR: "dir", stat.S_IFLNK: "symlink"}
    return wire.EntryInfo(
        path=path,
        kind=kinds.get(stat.S_IFMT(info.st_mode), "other"),
        size=info.st_size,
        mode=info.st_mode,
        modified=int(info.st_mtime),
        uid=info.st_uid,
        gid=info.st_gid,
        atime=int(info.st_atime),
        mtime=int(info.st_mtime),
    )


@asynccontextmanager
async def serving_files(*, window: int | None = WINDOW, **options: Any) -> AsyncIterator[tuple[Talk, FilesAgent]]:
    """A guest with files. At the end no handle is open and no session left."""
    async with talking(window=window, **options) as talk:
        files = FilesAgent(talk.agent, window)
        talk.nursery.start_soon(files.run)
        yield talk, files
        for event in files.held.values():
            event.set()
        with trio.fail_after(HANG):
            while talk.connection.active_sessions and talk.connection.lost is None:
                await trio.testing.wait_all_tasks_blocked()
        if talk.connection.lost is None:
            assert not files.open
        for fd in files.open.values():
            if isinstance(fd, int):
                os.close(fd)

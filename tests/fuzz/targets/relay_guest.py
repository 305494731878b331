"""A guest that keeps to the protocol. The fuzzer chooses when it reads and when it sends."""

from __future__ import annotations

from collections import Counter, defaultdict, deque
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

from tests.fuzz.targets.relay_parts import parse
from tests.fuzz.targets.relay_world import AGENT_WINDOW, Peer, World
from trio_console import _wire as wire

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from trio_console._relay.router import RouterLimits

__all__ = ["PoliteGuest"]

_OPENERS: Final = {
    wire.ExecRequest: "exec",
    wire.FsRequest: "fs",
    wire.TcpConnect: "tcp",
    wire.KillBackground: "call",
}

_OUTPUT: Final[Mapping[str, Sequence[tuple[type[wire.DataMessage], str]]]] = {
    "exec": [(wire.ExecStdout, "stdout"), (wire.ExecStderr, "stderr")],
    "fs": [(wire.FsData, "data")],
    "tcp": [(wire.TcpData, "data")],
    "call": [],
}
#: The streams that end by themselves.
_ENDING: Final[Sequence[wire.StreamName]] = ("stdout", "stderr")
_LAST: Final[Mapping[str, wire.Message]] = {
    "exec": wire.ExecExited(0),
    "fs": wire.FsResponse(ok=True),
    "tcp": wire.TcpClosed(),
    "call": wire.BackgroundKilled(0),
}
_INPUT: Final = {wire.ExecStdin: "exec", wire.FsData: "fs", wire.TcpData: "tcp"}


@dataclass
class _Work:
    """A session as the guest sees it."""

    kind: str
    mark: int  # whose it is
    window: int | None
    sent: dict[str, int] = field(default_factory=dict)  # and not granted yet, by stream
    got: int = 0  # of the client's data, and not granted yet
    input: bytes = b""
    killed: bool = False
    brief: bool = False  # ends by itself
    again: bool = False  # its id had a session before
    ends: bool = False  # its client wants to be told of each
    ended: set[str] = field(default_factory=set)  # streams
    total: Counter[str] = field(default_factory=Counter)  # bytes of each
    left: bool = False  # the command has exited
    doomed: bool = False  # to be killed as soon as it has


class PoliteGuest(World):
    """A world whose guest answers each message as an agent does."""

    def __init__(self, credit: bool, limits: RouterLimits, ends: bool = False) -> None:
        super().__init__(credit, limits, ends)
        self.ended_after: defaultdict[int, deque[int]] = defaultdict(deque)  # see `Life`, by id
        self.work: dict[int, _Work] = {}
        self.opened: set[int] = set()
        self.heard: Counter[int] = Counter()  # bytes of data, by id
        self.out: deque[bytes] = deque()  # on their way to the relay

    def connect(self, uid: int = 0) -> Peer | None:
        peer = super().connect(uid)
        if peer is not None:
            under_way = {parse(raw).id for raw in (*self.control, *self.bulk, *self.wire, *self.out)}
            assert not [id_ for id_ in (*under_way, *self.work) if id_ in peer.client.ids], "a slot still in use"
        return peer

    # What the guest hears

    def hear(self) -> bool:
        """Take a frame; returns whether there was one."""
        if not self.wire:
            return False
        frame = parse(self.wire.popleft())
        message = wire.decode(frame)
        cls = type(message)
        work = self.work.get(frame.id)
        if cls in _OPENERS:
            self._open(frame.id, _OPENERS[cls], message)
        elif isinstance(message, wire.Ping):
            self.say(wire.Pong(), frame.id)
        elif isinstance(message, wire.Touch):
            self.say(wire.Touched(1), frame.id)
        elif isinstance(message, wire.ClientDisconnected):
            self._forget(message)
        elif isinstance(message, wire.DataMessage):
            self._input(frame.id, message, work)
        elif isinstance(message, (wire.ExecRelease, wire.ExecKill)):
            assert self.ends, "an agent that does not know the type ends"
            if work is not None and work.kind == "exec":
                self._hear_of_end(message, work)
        elif work is not None:
            self._hear_within(frame.id, message, work)
        return True

    def _open(self, id_: int, kind: str, message: wire.Message) -> None:
        owner = self.work.get(id_)
        if owner is not None:
            assert owner.kind != "exec", "a command's id is used while it runs"
            del self.work[id_]
            self.say(wire.Error("invalid_session", "in use"), id_)
            return
        window: Any = getattr(message, "window", wire.UNSET)
        says_nothing = kind == "call"
        assert says_nothing or not self.credit or window is not wire.UNSET, "what it may say ahead is not bounded"
        mark = next((peer.mark for peer in self.peers if id_ in peer.client.ids), 0)
        again = id_ in self.opened
        self.opened.add(id_)
        ends = self.ends and isinstance(message, wire.ExecRequest) and message.ends is not wire.UNSET
        work = _Work(kind, mark, window if self.credit else None, brief=says_nothing, again=again, ends=ends)
        self.work[id_] = work

    def _hear_within(self, id_: int, message: wire.Message, work: _Work) -> None:
        if isinstance(message, wire.Credit):
            work.sent[message.stream] = max(0, work.sent.get(message.stream, 0) - message.bytes)
        elif isinstance(message, wire.ExecSignal):
            work.killed |= work.kind == "exec" and message.signal == 9
        elif isinstance(message, wire.TcpClose) and work.kind == "tcp":
            del self.work[id_]
        elif isinstance(message, wire.Cancel) and work.kind != "exec":
            self.finish(id_)

    def _hear_of_end(self, message: wire.ExecRelease | wire.ExecKill, work: _Work) -> None:
        if isinstance(message, wire.ExecRelease):
            work.killed |= work.left  # it ends, and what holds its streams lives on
        elif message.after_exit is True and not work.left:
            work.doomed = True
        else:
            work.killed = True

    def _input(self, id_: int, message: wire.DataMessage, work: _Work | None) -> None:
        kind = _INPUT[type(message)]
        self.heard[id_] += len(message.data)
        assert self.heard[id_] <= self.sent[id_], "data that nobody has sent"
        if work is None:
            if kind == "fs":
                self.say(wire.FsResponse(ok=False, error="unknown write session"), id_)
            elif kind == "tcp":
                self.say(wire.TcpFailed("unknown TCP session"), id_)
        elif work.kind == kind:
            work.input += message.data
            work.got += len(message.data)
            # If a client uses an id again at once, old data of its former session counts to the new one.
            assert not self.credit or work.again or work.got <= AGENT_WINDOW, "more than the guest has room for"
        elif kind != "exec":
            del self.work[id_]
            self.say(wire.Error("invalid_session", "of another kind"), id_)

    def _forget(self, message: wire.ClientDisconnected) -> None:
        for id_, work in list(self.work.items()):
            if message.id_start <= id_ < message.id_end_exclusive:
                if work.kind == "exec":
                    work.killed = True
                else:
                    del self.work[id_]
        if message.confirm is not wire.UNSET:
            self.say(wire.ClientForgotten(), message.confirm)

    # What the guest does of itself

    def say(self, message: wire.Message, id_: int) -> None:
        self.out.append(wire.encode(message, id_))

    def deliver(self) -> bool:
        """Send a frame to the relay; returns whether there was one."""
        if not self.out:
            return False
        self.agent_says(parse(self.out.popleft()))
        return True

    def nth(self, number: int) -> int | None:
        """The id of one of its sessions."""
        return list(self.work)[number % len(self.work)] if self.work else None

    def output(self, id_: int, stream: int, size: int) -> None:
        """A session sends output, as far as its credit allows."""
        work = self.work[id_]
        if work.brief:
            return
        cls, name = _OUTPUT[work.kind][stream % len(_OUTPUT[work.kind])]
        if name in work.ended:
            return
        if work.window is not None:
            size = min(size, work.window - work.sent.get(name, 0))
            if size <= 0:
                return
        work.sent[name] = work.sent.get(name, 0) + size
        work.total[name] += size
        self.say(cls(bytes([work.mark]) * size), id_)

    def started(self, id_: int) -> None:
        kind = self.work[id_].kind
        if kind == "exec":
            self.say(wire.ExecStarted(1), id_)
        elif kind == "tcp":
            self.say(wire.TcpConnected(), id_)

    def leave(self, id_: int) -> None:
        """A command exits, and its streams go on."""
        work = self.work[id_]
        if work.ends and not work.left:
            work.left = True
            work.killed |= work.doomed
            self.say(wire.ExecLeft(0), id_)

    def end_stream(self, id_: int, number: int) -> None:
        """A command, or whoever else has it, closes a stream."""
        work, name = self.work[id_], _ENDING[number]
        if work.ends and name not in work.ended:
            work.ended.add(name)
            self.ended_after[id_].append(work.total[name])
            self.say(wire.ExecStreamEnded(name), id_)

    def grant(self, id_: int) -> None:
        """The guest has consumed all data that came for a session."""
        work = self.work[id_]
        if self.credit and work.got:
            self.say(wire.Credit("stdin" if work.kind == "exec" else "data", work.got), id_)
            work.got = 0

    def finish(self, id_: int, last: wire.Message | None = None) -> None:
        self.say(last or _LAST[self.work.pop(id_).kind], id_)
        self.work.pop(id_, None)

    # All at once

    def hear_all(self) -> None:
        self.write_batch(len(self.bulk))
        while self.hear():
            pass

    def deliver_all(self) -> None:
        while self.deliver():
            pass

    def settle(self) -> None:
        """Run until nothing moves: all clients read, the guest reads all frames, and killed commands end."""
        while self._move():
            for id_, work in list(self.work.items()):
                self.grant(id_)
                if work.killed or work.brief:
                    self.finish(id_)
            self.check()

    def _move(self) -> bool:
        moved = [self.client_reads(peer, 1 << 20) for peer in list(self.peers)]
        moved += [self.feed(peer) for peer in list(self.peers)]
        self.write_batch(3)
        moved += [self.hear(), self.deliver()]
        due = [work for work in self.work.values() if work.killed or work.brief or (self.credit and work.got)]
        return any(moved) or bool(due)

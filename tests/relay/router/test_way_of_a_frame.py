"""The way of each kind of client's frame through the relay, from file to file.

A *stop* is a call of a function in another file than the caller's; `sys.setprofile` sees the calls. A *return* is
a stop in a file in which the frame has been before. (Going back to the caller is neither.) What a decorator has
made, such as the ``__init__`` of a dataclass, is in no file. The folder ``_wire`` counts as one file, with two
doors:

* ``wire-in`` is a call of `wire.receive`, with all that it calls in the folder;
* ``wire-out`` is a call of one of the functions that encode a frame.

Any other call from outside into ``_wire`` is a stop of that name, which no frame needs: the catalogue is read when
the modules are loaded, and the row of a message comes with the message.

A frame comes to no place twice: it is decoded, judged, encoded if the agent gets it as it is, and noted in a
session and in the books. A frame that does come twice causes more than one thing, and each is sent or counted for
itself.
"""

from __future__ import annotations

import pathlib
import sys
from typing import TYPE_CHECKING, Any, NamedTuple

import pytest

import trio_console
from tests.relay.router._frames import KIB, Table
from tests.tools.peer import frame
from trio_console import _wire as wire

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import FrameType


PACKAGE = str(pathlib.Path(trio_console.__file__).parent) + "/"

EXEC = wire.ExecRequest(cmd="cat", window=KIB)
CONNECT = wire.TcpConnect("h", 1, window=KIB)
STAT = wire.FsRequest(wire.OpStat(path="/", follow_symlink=True))
WRITE = wire.FsRequest(wire.OpWrite(handle=1, offset=0), window=KIB)


def room_of(frame: FrameType) -> str:
    """The room of a function; empty if it is not in the package."""
    file = frame.f_code.co_filename
    if not file.startswith(PACKAGE):
        return ""
    parts = file.removeprefix(PACKAGE).removesuffix(".py").split("/")
    return parts[0] if parts[0] == "_wire" else parts[-1]


def follow(function: Callable[..., Any], *args: Any) -> tuple[list[str], int]:
    """Call a function; returns the stops, and the number of all calls in the package."""
    stops: list[str] = []
    calls = 0

    def see(frame: FrameType, event: str, _arg: object) -> None:
        nonlocal calls
        room = room_of(frame) if event == "call" else ""
        if room:
            calls += 1
            caller = frame.f_back
            if caller is None or room_of(caller) != room:
                name = frame.f_code.co_name
                if room == "_wire":
                    room = "wire-in" if name == "receive" else "wire-out" if name.startswith("encode") else room
                stops.append(room)

    before = sys.getprofile()
    sys.setprofile(see)
    try:
        function(*args)
    finally:
        sys.setprofile(before)
    return stops, calls


class Kind(NamedTuple):
    """A kind of frame, the messages that come before it, and its way.

    Attributes:
        calls: at most so many calls in the package. (From Python 3.12 on a comprehension is not one.)
        was: the calls, stops and returns before the way was made short.
        before: the messages in the same session; those in brackets are the agent's.
        why: why it comes to a room twice.
    """

    message: wire.Message
    way: str
    calls: int
    was: tuple[int, int, int]
    before: tuple[wire.Message | list[wire.Message], ...] = ()
    window: int | None = 64 * KIB
    why: str = ""


OPENS = "mind wire-in gate wire-out clients session books"
PENDS = "mind wire-in gate session books"
AT_ONCE = "mind wire-in gate wire-out"
CLOSES = "mind wire-in gate wire-out session _states books"
REFUSED = "mind wire-in gate _errors wire-out clients books"
INPUT, TEXT = wire.ExecStdin(bytes(100)), wire.TcpData(bytes(100))

KINDS = {
    "exec request": Kind(EXEC, OPENS, 44, (50, 19, 10)),
    "exec request without credit": Kind(EXEC, OPENS, 27, (27, 11, 3), window=None),
    "fs request": Kind(STAT, OPENS, 52, (56, 17, 8)),
    "tcp connect": Kind(CONNECT, OPENS, 42, (46, 17, 8)),
    "ping": Kind(wire.Ping(), OPENS, 26, (26, 11, 3)),
    "touch": Kind(wire.Touch(), OPENS, 26, (26, 11, 3)),
    "stdin": Kind(INPUT, PENDS, 9, (9, 6, 0), (EXEC,)),
    "stdin behind stdin": Kind(INPUT, PENDS, 7, (7, 4, 0), (EXEC, INPUT)),
    "data of a file": Kind(wire.FsData(bytes(100)), PENDS, 9, (9, 6, 0), (WRITE,)),
    "data of a connection": Kind(TEXT, PENDS, 9, (9, 6, 0), (CONNECT,)),
    "exec resize": Kind(wire.ExecResize(24, 80), AT_ONCE, 16, (19, 7, 2), (EXEC,)),
    "exec signal": Kind(wire.ExecSignal(9), AT_ONCE, 16, (19, 7, 2), (EXEC,)),
    "tcp eof": Kind(wire.TcpEof(), "mind wire-in gate wire-out session books", 20, (22, 9, 2), (CONNECT,)),
    "tcp close": Kind(
        wire.TcpClose(), "mind wire-in gate wire-out session _states books", 26, (28, 12, 4), (CONNECT,)
    ),
    "cancel": Kind(wire.Cancel(), "mind wire-in gate wire-out session _states", 23, (26, 10, 3), (STAT,)),
    "cancel of a command": Kind(wire.Cancel(), "mind wire-in gate wire-out session", 19, (21, 7, 2), (EXEC,)),
    "credit": Kind(wire.Credit("stdout", 100), "mind wire-in gate session", 18, (22, 7, 2), (EXEC,)),
    "credit that lets a frame go": Kind(
        wire.Credit("data", 9 * KIB),
        "mind wire-in gate session clients books",
        23,
        (28, 10, 3),
        (CONNECT, [wire.TcpData(bytes(8 * KIB))], [TEXT]),
    ),
    "shutdown": Kind(wire.Shutdown(), AT_ONCE, 18, (18, 5, 0)),
    "stdin for an unknown id": Kind(INPUT, "mind wire-in gate", 6, (7, 4, 0)),
    "data for an unknown connection": Kind(TEXT, "mind wire-in gate wire-out clients books", 23, (24, 8, 1)),
    "a message of the agent": Kind(
        wire.Pong(), "mind wire-in gate _errors wire-out clients books", 36, (40, 12, 4)
    ),
    "a frame for a session that was refused": Kind(
        INPUT, "mind wire-in gate books", 8, (8, 5, 0), (EXEC, wire.TcpClose())
    ),
}

WITH_RETURNS = {
    "credit that lets the last frames go": Kind(
        wire.Credit("data", 9 * KIB),
        "mind wire-in gate session _states clients books clients books books",
        33,
        (37, 16, 8),
        (CONNECT, [wire.TcpData(bytes(8 * KIB))], [TEXT], [wire.TcpClosed()]),
        why="each frame that is let go is queued and counted for itself; then the session is counted no more",
    ),
    "a message for another kind of session": Kind(
        wire.TcpClose(),
        "mind wire-in gate _errors session _states books wire-out wire-out clients books",
        56,
        (64, 21, 11),
        (EXEC,),
        why="two frames are sent, one kills the command and one answers; its end is counted, and the answer",
    ),
    "tcp close with output held": Kind(
        wire.TcpClose(),
        "mind wire-in gate wire-out session _states books books",
        31,
        (32, 13, 5),
        (CONNECT, [wire.TcpData(bytes(8 * KIB))], [TEXT]),
        why="held data is dropped, and the close is kept: two numbers of the ledger",
    ),
    "cancel with input pending and output held": Kind(
        wire.Cancel(),
        "mind wire-in gate wire-out session books _states books",
        32,
        (35, 13, 5),
        (CONNECT, wire.TcpData(bytes(90 * KIB)), [wire.TcpData(bytes(8 * KIB))], [TEXT]),
        why="data is dropped in both directions: two numbers of the ledger",
    ),
    "tcp close of a connection that has ended": Kind(
        wire.TcpClose(),
        "mind wire-in gate books clients session books books _states books",
        30,
        (31, 11, 4),
        (CONNECT, [wire.TcpData(bytes(8 * KIB))], [TEXT], [wire.TcpClosed()]),
        why="the frame is dropped, and held data, and then the windows are free, and the id: four entries",
    ),
    "cancel of a connection that has ended": Kind(
        wire.Cancel(),
        "mind wire-in gate books session books session _states clients books books",
        35,
        (35, 14, 6),
        (CONNECT, [wire.TcpData(bytes(8 * KIB))], [TEXT], [wire.TcpClosed()]),
        why="the frame is dropped, and held data; the terminal frame is queued, and the id is free: four entries",
    ),
}


def trace(kind: Kind) -> tuple[list[str], int]:
    """Bring a router to where the frame comes next, and follow the frame."""
    table = Table(window=kind.window)
    client = table.connect()
    id_ = client.ids[5]
    for message in kind.before:
        if isinstance(message, list):
            table.agent_says(message[0], id_)
        else:
            table.client_says(client, message, id_)
    return follow(table.router.from_client, client, frame(kind.message, id_))


@pytest.mark.parametrize("kind", KINDS.values(), ids=KINDS)
def test_a_frame_comes_to_no_room_twice(kind: Kind) -> None:
    stops, calls = trace(kind)
    assert " ".join(stops) == kind.way
    assert len(stops) == len(set(stops)) <= (5 if kind.way == PENDS else 7)
    assert calls <= kind.calls <= kind.was[0]


@pytest.mark.parametrize("kind", WITH_RETURNS.values(), ids=WITH_RETURNS)
def test_a_frame_that_causes_more_than_one_thing_goes_on_for_each(kind: Kind) -> None:
    stops, calls = trace(kind)
    assert " ".join(stops) == kind.way
    assert calls <= kind.calls <= kind.was[0]
    assert kind.why
    assert 0 < len(stops) - len(set(stops)) < kind.was[2]


def test_a_call_into_the_wire_that_neither_decodes_nor_encodes_would_be_seen() -> None:
    assert follow(wire.type_of, wire.Ping()) == (["_wire"], 1)
    assert follow(wire.encode, wire.Ping())[0] == ["wire-out"]

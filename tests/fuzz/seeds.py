"""Write the first inputs of the corpus: recorded frames, bad frames, and sequences that failed once.

    python -m tests.fuzz.seeds

The names of these files begin with ``seed-``. Inputs that fuzzing has found stay in the corpus.
"""

from __future__ import annotations

import json
import pathlib
import random
from typing import TYPE_CHECKING, Any, Final

from tests.fuzz.targets import TARGETS, relay
from trio_console import _wire as wire
from trio_console._errors import ProtocolError

if TYPE_CHECKING:
    from collections.abc import Iterator

_HERE: Final = pathlib.Path(__file__).parent
_RECORDED: Final = _HERE.parent / "wire" / "data"

_TYPES: Final = list(wire.MESSAGE_TYPES)


def main() -> None:
    for name in TARGETS:
        folder = _HERE / "corpus" / name
        folder.mkdir(parents=True, exist_ok=True)
        for old in folder.glob("seed-*"):
            old.unlink()
        for title, data in _SEEDS[name]():
            (folder / f"seed-{title}").write_bytes(data)


def _recorded() -> Iterator[tuple[str, bytes]]:
    """Names and frames."""
    for file in ("vectors.json", "malformed.json"):
        for record in json.loads((_RECORDED / file).read_text()):
            raw = bytes.fromhex(record["frame_hex"])
            yield record["name"], raw[8:] if "handshake_prefix" in record else raw


def _frames() -> Iterator[tuple[str, bytes]]:
    several = b""
    for name, raw in _recorded():
        if len(raw) < 150:
            several += raw
            if len(several) > 600:
                yield name, bytes([4, 1, 30, 3, 200]) + several
                several = b""
    yield "too_short", bytes([1, 2]) + wire.encode(wire.Ping(), 1) + b"\0\0\0\4\0\0\0\1"
    yield "too_long", bytes([1, 40]) + wire.encode(wire.Ping(), 1) + b"\0\x40\0\1\0\0\0\1"
    yield "cut", bytes([2, 3, 1]) + wire.encode(wire.Ping(), 1)[:-1]
    # By the first byte lengths are picked, as `frames` has them: the largest, which is all there, and one more.
    yield "largest", bytes([0x20, 10, 0]) + bytes(6) + bytes([12])


def _messages() -> Iterator[tuple[str, bytes]]:
    yield "most_items", b"most items"
    yield "most_items_plain", b"most items, plain"
    yield "most_items_costly", b"most items, costly"
    for name, raw in _recorded():
        row = _row_of(raw)
        if row is None or raw[8] != row.flags:
            yield name, b"\0" + raw[8:]
        else:
            # As a payload, because mutations of that leave the envelope as it is.
            payload = wire.decode_envelope(raw[9:]).payload
            yield f"payload_{name}", bytes([1 + 4 * _TYPES.index(row.name)]) + payload
    for number, message in enumerate(_OUR_OWN):
        name = wire.type_of(message).name
        payload = wire.decode_envelope(wire.encode(message, 1)[9:]).payload
        yield f"payload_own_{number}_{name}", bytes([1 + 4 * _TYPES.index(name)]) + payload


#: One of each type that no recorded frame has, with each of its keys.
_OUR_OWN: Final = (
    wire.ExecRequest("c", stdio=wire.ExecStdio("null", "pipe", "stdout"), ends=wire.ExecEnds(2**32 - 1)),
    wire.ExecStreamEnded("stderr"),
    wire.ExecLeft(-1, 9),
    wire.ExecRelease(),
    wire.ExecKill(2**32 - 1, after_exit=True),
    wire.ExecExited(0, signal=1, held=["stdout", "stderr"], alive=2**32 - 1),
    wire.ExecFailed(kind="other", message="m", filename="f"),
    wire.ExecRequest("\xff", ["\xfe"], octets=True),
    wire.FsRequest(wire.OpTouch("\xff", 0o644, exist_ok=True), octets=True),
    wire.FsRequest(wire.OpAccount("home", "")),
    wire.FsResponse(ok=True, opened=wire.Opened(mode=1, seekable=False, terminal=True)),
    wire.FsRequest(wire.OpHardLink("a", "b")),
    wire.FsResponse(
        ok=True,
        more=wire.StatMore(
            dev=1, ino=2, nlink=3, rdev=4, blksize=5, blocks=6, atime_ns=-1, mtime_ns=2**63 - 1, ctime_ns=0
        ),
    ),
    wire.TcpConnect("h", 1, breaks=True),
    wire.TcpBroken("m"),
    wire.ExecStarted(1, 2**64 - 1),
    wire.KillBackground(2**64 - 1, 2**32 - 1),
    wire.BackgroundKilled(2**32 - 1),
    wire.Reset(2**32 - 1),
    wire.ResetDone(),
    wire.FsRequest(
        wire.OpOpenFile(
            "f",
            wire.OpenOptions(read=True, write=False, append=False, create=False, truncate=False, create_new=False),
        ),
        window=2**32 - 1,
        contents=True,
    ),
)


def _row_of(raw: bytes) -> wire.MessageType | None:
    try:
        return wire.MESSAGE_TYPES.get(wire.decode_envelope(raw[9:]).type)
    except ProtocolError:
        return None


def _told(steps: Any, *story: tuple[Any, ...]) -> bytes:
    """A story as the bytes of a script: each step, and what it picks."""
    return b"".join(bytes([steps.index(step), *picks]) for step, *picks in story)


# What the first bytes of a relay's script choose: whether the guest counts credit, and the limits.
_CREDIT_SMALL: Final = b"\1"
_PLAIN_SMALL: Final = b"\0"
_CREDIT_LARGE: Final = b"\3"

# Picks, by their place in the tables of `relay`.
_EXEC, _READ, _WRITE, _TCP, _PING = 0, 1, 2, 3, 4
_STDIN, _FS_DATA, _TCP_DATA, _GRANT, _EOF, _CLOSE = 6, 7, 8, 9, 12, 13
_FIRST_ID, _LAST_ID = 0, 7
_ONE_BYTE, _300_BYTES, _40000_BYTES = 1, 8, 12
_NO_WINDOW, _WINDOW_OF_1, _WINDOW_OF_100 = 0, 2, 3
_FINISH, _GRANTS = 2, 1


def _users(*numbers: int) -> Iterator[tuple[str, bytes]]:
    """Any steps of clients with rights and limits. These numbers are known to reach the bounds, and refusals."""
    for number in numbers:
        # The guest counts credit or not, and tells the ends of commands or not.
        how = (0x41, 0x49, 0x40, 0x48)[number % 4]
        yield f"users-{number}", bytes([how]) + random.Random(number).randbytes(600)


def _relay_clients() -> Iterator[tuple[str, bytes]]:
    yield from _users(0, 1, 16, 23, 101, 164)
    asks, feed, reads = relay._client_asks, relay._feed, relay._client_reads
    connects, leaves = relay._client_connects, relay._client_leaves
    writes, hears, heard = relay._relay_writes, relay._guest_hears, relay._guest_is_heard
    does, speaks = relay._guest_does, relay._guest_speaks

    def too_late(id_: int, opener: int, data: int) -> list[tuple[Any, ...]]:
        """The guest ends a session while data for it is on its way, and answers that as data of nobody."""
        return [
            (asks, 0, id_, opener, _NO_WINDOW),
            (writes, 0),
            (hears, 0),
            (asks, 0, id_, data, 120, _ONE_BYTE),
            (feed, 0),
            (does, 0, _FINISH),
            (heard, 0),
            (writes, 1),
            (hears, 0),
        ]

    steps = relay._CLIENTS_STEPS
    yield (
        "late_data_under_the_id_of_the_question",
        _CREDIT_SMALL + _told(steps, *too_late(_LAST_ID, _WRITE, _FS_DATA), (leaves, 0), (heard, 0), (connects,)),
    )
    yield (
        "late_data_under_the_id_of_a_command",
        _CREDIT_SMALL
        + _told(
            steps,
            *too_late(_FIRST_ID, _TCP, _TCP_DATA),
            (asks, 0, _FIRST_ID, _EXEC, _NO_WINDOW),
            (writes, 0),
            (hears, 0),
            (heard, 0),
            (leaves, 0),
            (writes, 1),
            (hears, 3),
            (does, 1, _FINISH),
            (heard, 0),
            (connects,),
        ),
    )
    talk = _told(
        steps,
        (asks, 0, _FIRST_ID, _EXEC, _WINDOW_OF_100),
        (asks, 0, 3, _TCP, _NO_WINDOW),
        (asks, 0, _FIRST_ID, _STDIN, 120, _300_BYTES),
        (asks, 0, 3, _TCP_DATA, 120, _40000_BYTES),
        (asks, 0, 3, _CLOSE),
        *[(feed, 0)] * 8,
        (writes, 3),
        (hears, 3),
        (does, 0, _GRANTS),
        (speaks, 0, 0, _300_BYTES),
        (speaks, 0, 1, _300_BYTES),
        (heard, 3),
        (reads, 0, _300_BYTES),
        (asks, 0, _FIRST_ID, _GRANT, 1, _300_BYTES),
        (writes, 3),
        (hears, 3),
        (does, 0, _FINISH),
        (heard, 3),
    )
    for title, how in (("credit", _CREDIT_SMALL), ("plain", _PLAIN_SMALL), ("large", _CREDIT_LARGE)):
        yield f"talk_{title}", how + talk

    yield from _ends()


# The same, where the guest tells the ends of commands.
_ENDS_SMALL: Final = b"\x2d"
_UNANNOUNCED: Final = b"\x25"
_ENDS_PLAIN: Final = b"\x2c"

_RELEASE, _KILL = 0, 1
_REST = 3  # of the requests
_STDOUT, _STDERR = 0, 1  # of a command
_FOREVER, _NO_GRACE, _LONGEST_GRACE, _AFTER_EXIT = 0, 0, 2, 1
_SAME_ID = 1


def _ends() -> Iterator[tuple[str, bytes]]:
    asks, tells, ends = relay._client_asks_for_ends, relay._client_ends, relay._guest_ends
    writes, hears, heard = relay._relay_writes, relay._guest_hears, relay._guest_is_heard
    fills, does, grants, reads = relay._guest_fills, relay._guest_does, relay._client_asks, relay._client_reads
    lies = relay._client_says_what_a_guest_says_of_ends
    begin = [(asks, 0, _FIRST_ID, 0, _WINDOW_OF_100, 0, _FOREVER), (writes, 0), (hears, 0)]
    talk = [
        *begin,
        (fills, 0, _STDOUT, *[_300_BYTES] * 4),
        (ends, 0, 1 + _STDERR),
        (ends, 0, 0),
        (heard, 3),
        (grants, 0, _FIRST_ID, _GRANT, 1, _300_BYTES),
        (reads, 0, _40000_BYTES),
        (ends, 0, 1 + _STDOUT),
        (does, 0, _FINISH),
        (heard, 3),
        (grants, 0, _FIRST_ID, _GRANT, 2, _300_BYTES),
        (reads, 0, _40000_BYTES),
    ]
    kills = [
        (tells, 0, _SAME_ID, 0, what, *picks)
        for what, *picks in (
            (_KILL, _NO_GRACE, _AFTER_EXIT),
            (_RELEASE,),
            (_KILL, _LONGEST_GRACE, 0),
            (_KILL, _NO_GRACE, 2),
        )
    ]
    steps = relay._ENDS_CLIENTS_STEPS
    for title, how in (("credit", _ENDS_SMALL), ("plain", _ENDS_PLAIN), ("unannounced", _UNANNOUNCED)):
        yield f"ends_{title}", how + _told(steps, *talk)
        yield (
            f"kills_{title}",
            how + _told(steps, *kills, *begin, *kills, (writes, 3), (hears, 3), (ends, 0, 0), *kills),
        )
    rest = [(asks, 0, _FIRST_ID, _REST, 5, _NO_GRACE), (asks, 0, _FIRST_ID, _REST, 5, _NO_GRACE)]
    for title, how in (("known", _ENDS_SMALL), ("unannounced", _UNANNOUNCED)):
        yield (
            f"rest_{title}",
            how + _told(steps, *rest, (writes, 1), (hears, 0), *rest, (does, 0, _FINISH), (heard, 0)),
        )
    yield (
        "a_client_tells_ends",
        _ENDS_SMALL + _told(steps, *begin, *[(lies, 0, _FIRST_ID, what) for what in range(5)]),
    )


def _ends_of_a_rude_guest() -> Iterator[tuple[str, bytes]]:
    asks, says, ends = relay._client_asks_for_ends, relay._guest_says, relay._guest_says_of_ends
    grants, stdout, stderr, twice = relay._client_asks, 0, 1, 3
    begin = [(asks, 0, _FIRST_ID, 0, _WINDOW_OF_1, 0, _FOREVER)]
    held = [(says, 0, _FIRST_ID, stream, 120, _300_BYTES) for stream in (stdout, stderr) for _ in range(2)]
    end = {what: (ends, 0, _FIRST_ID, 0, _SAME_ID, what) for what in range(8)}
    steps = relay._ENDS_AGENT_STEPS
    for title, how in (("credit", _ENDS_SMALL), ("plain", _ENDS_PLAIN), ("unannounced", _UNANNOUNCED)):
        stderr_ends, left, exited = end[1], end[3], end[5]
        yield (
            f"ends_{title}",
            how
            + _told(
                steps,
                *begin,
                *held,
                (*stderr_ends, twice),
                (*left, 0, twice),
                (grants, 0, _FIRST_ID, _GRANT, 1, _300_BYTES),
                (*exited, 0, 0, twice),
                (*left, 0, 0),
                (*stderr_ends, 0),
                (grants, 0, _FIRST_ID, _GRANT, 2, _300_BYTES),
                (*stderr_ends, 0),
            ),
        )


def _relay_agent() -> Iterator[tuple[str, bytes]]:
    yield from _users(18, 55, 66, 92)
    opens, says, repeats = relay._client_opens, relay._guest_says, relay._guest_repeats
    reads, leaves, connects = relay._client_reads, relay._client_leaves, relay._client_connects
    stdout, stdin_error, exited, response = 0, 7, 8, 9
    steps = relay._AGENT_STEPS
    held = [
        (opens, 0, _FIRST_ID, _EXEC, _WINDOW_OF_1),
        (says, 0, _FIRST_ID, stdout, 120, _300_BYTES),
        (says, 0, _FIRST_ID, stdout, 120, _ONE_BYTE),
    ]
    yield "held_without_data", _CREDIT_SMALL + _told(steps, *held, (repeats, 0, _FIRST_ID, stdout, 120, 0, 250))
    yield "held_errors", _CREDIT_SMALL + _told(steps, *held, (repeats, 0, _FIRST_ID, stdin_error, 250))
    for title, how in (("credit", _CREDIT_SMALL), ("plain", _PLAIN_SMALL), ("large", _CREDIT_LARGE)):
        yield (
            f"flood_{title}",
            how + _told(steps, *held, (repeats, 0, _FIRST_ID, stdout, 120, _40000_BYTES, 40), (reads, 0, 12)),
        )
    yield (
        "ends_and_slots",
        _CREDIT_SMALL
        + _told(
            steps,
            *held,
            (leaves, 0),
            (says, 0, _FIRST_ID, response),
            (says, 0, _LAST_ID, response),
            (says, 0, _FIRST_ID, exited),
            (connects,),
        ),
    )
    yield from _ends_of_a_rude_guest()


def _agent_router() -> Iterator[tuple[str, bytes]]:
    """Step 3 sends one of the messages; see there."""
    waits, quits, breaks, refused, stdin, tcp_data, signal, gone, ping = 0, 1, 2, 3, 5, 6, 9, 15, 12
    sent = {
        "life": [waits, stdin, signal, quits],
        "twice": [waits, waits, quits],
        "wrong_kind": [waits, tcp_data, quits],
        "mistake": [breaks, ping],
        "refused": [refused, stdin],
        "left": [waits, gone, waits, signal],
    }
    for title, messages in sent.items():
        yield title, b"".join(bytes([3, 0, message]) for message in messages)
        yield f"{title}_in_pieces", b"".join(bytes([3, 0, message, 0]) for message in messages)
    about_ends = {  # step 0xFC sends one of these messages; see there
        "kill": [3, 0, 3],
        "kill_after_exit": [5, 5, 3],
        "release": [2, 0, 2, 2, 4],
        "lies": [0, 6, 8, 7, 3],
        "at_once": [1, 2, 3],
        "rest": [10, 10, 9, 3, 11, 9, 10],
    }
    for title, messages in about_ends.items():
        yield f"ends_{title}", b"".join(bytes([0xFC, 0, message]) for message in messages)
        yield f"ends_{title}_in_pieces", b"".join(bytes([0xFC, 0, message, 0]) for message in messages)
    yield "rest_of_one_who_left", bytes([0xFC, 0, 9, 0, 3, 0, gone, 0, 0xFC, 0, 10, 0])
    yield "rest_and_a_bad_frame", bytes([0xFC, 0, 9, 0, 3, 0, tcp_data, 0xFC, 0, 9, 0])
    for name, raw in _recorded():
        row = _row_of(raw)
        if row is None or raw[8] != row.flags:
            yield name, bytes([3, 0, waits, 0, 1, len(raw)]) + raw


def _process_session() -> Iterator[tuple[str, bytes]]:
    """The first byte says what the agent has announced, and whether the outputs are two pipes, or joined."""
    stdout, stderr, started, left, ended, credit = range(6)
    exited, failed, error, stranger = 6, 8, 10, 12
    one, hundred, window, status, killed = 1, 3, 7, 1, 2
    stories = {
        "ends": [
            [started],
            [stdout, 65, hundred],
            [left, status, 0],
            [ended, 1],
            [stdout, 66, hundred],
            [exited, 0, 0],
        ],
        "left_twice": [[left, status, 0], [left, 0, 0], [exited, 0, 0]],
        "left_by_a_signal": [[left, 3, killed], [exited, 3, killed], [left, 0, 0]],
        "ended_twice": [[ended, 0], [ended, 0], [stdout, 65, one], [ended, 4]],
        "left_before_the_start": [[left, status, 0], [started], [exited, status, 0]],
        "cut": [[stdout, 65, hundred], [left, status, 0], [failed, 0, 0], [exited, 0, 0]],
        "cut_by_an_error": [[left, status, 0], [error, 1], [stdout, 65, one]],
        "late": [[stranger], [left, status, 0], [exited, status, 0]],
        "windows": [[stdout, 65, window], [stderr, 66, window], [stdout, 67, window], [exited, 0, 0]],
        "credit": [[credit, 4, window], [credit, 0, window]],
    }
    for title, said in stories.items():
        for how, name in (
            (0b11, "ends"),
            (0b01, "credit"),
            (0b01011, "joined"),
            (0b01001, "merged"),
            (0b11, "read"),
        ):
            reads = [4, window, 7, 12, window] if name == "read" else []
            yield (
                f"{title}_{name}",
                bytes([how, 0, *(byte for message in said for byte in (3, *message, 7, *reads))]),
            )
    number, killed_whole, kills_rest, gives_up = [3, 19, 5], [3, 20, 0, 0], [6, 129], [6, 7]
    for title, steps in {
        "over": [number, [3, exited, 0, 0], kills_rest, kills_rest],
        "killed_whole": [number, killed_whole, kills_rest],
        "given_up": [number, gives_up, kills_rest],
    }.items():
        yield f"rest_{title}", bytes([0b11, 0, *(byte for step in steps for byte in step)])
    for what in range(10):
        yield (
            f"user_{what}",
            bytes([0b11, 0, 0, started, 6, what, 0, stdout, 65, hundred, 6, what, 3, exited, 0, 0]),
        )


def _exec_session() -> Iterator[tuple[str, bytes]]:
    """The first bytes say how the ends are asked for, the window, and how many processes cannot be killed."""
    out, err, big = [0, 2], [0, 3], [0, 8]
    close_out, close_err, leaves = [2, 0], [2, 1], [3, 5]
    credit_out, tick, medium, long = [4, 6], [6, 0], [6, 151], [6, 201]
    terminate, release, kill, kill_after = [8, 2], [8, 4], [8, 5], [8, 6]
    stories = {
        "ends": [out, close_out, tick, err, leaves, tick, close_err],
        "exit_with_all": [out, err, close_out, close_err, leaves],
        "held": [out, leaves, tick, err, long, long],
        "held_without_credit": [big, big, leaves, tick, long, long, credit_out, credit_out, long, long],
        "written_on": [leaves, medium, out, medium, err, medium, medium],
        "one_held": [leaves, out, close_out, tick, err, tick, long, long],
        "release": [out, leaves, tick, release, err],
        "release_twice": [out, big, leaves, tick, release, close_err, release, credit_out, credit_out, release],
        "release_before": [err, release, out, close_out, close_err, leaves],
        "kill": [out, kill, tick],
        "kill_after": [out, kill_after, err, terminate, tick, close_out, close_err],
        "kill_behind_the_exit": [out, leaves, tick, kill_after],
        "left": [out, [10, 201], err],
        "shut_down": [big, [9, 201], tick, leaves, tick],
        "shut_down_behind_the_exit": [big, leaves, tick, [9, 201], tick],
        "bad_frame": [out, [11, 221], err],
    }
    for title, steps in stories.items():
        for number, how in enumerate(((0, 0, 0), (1, 2, 0), (2, 2, 1), (3, 3, 0))):
            yield f"{title}_{number}", bytes([*how, *(byte for step in steps for byte in step)])


def _admission() -> Iterator[tuple[str, bytes]]:
    """The first byte is the window; 64 more writes frames at once, 128 more makes limits come late. Then steps."""
    ping, end, send, take, cancel, wait, shrink = (32 * what for what in (0, 1, 2, 4, 5, 6, 7))
    large, much = 7, 79
    stories = {
        "stuck_and_flowing": [send + large, much, wait + 3, take + 1, send + 1, much, wait + 4, take, take + 2],
        "ends": [*range(end, end + 20), wait, take, take + 1],
        "control": [*range(ping, ping + 20), send, 3, take],
        "cancelled": [send + large, much, wait + 2, cancel, send + 1, 5, wait + 4, send + large, 9],
        "shrinks": [send, 9, shrink, shrink + 1, shrink + 2, shrink + 3, send + 3, much],
        "all_stuck": [
            *(step for which in range(5) for step in (send + which, much)),
            wait + 4,
            wait + 4,
            take + 2,
        ],
    }
    for name, steps in stories.items():
        for window in (0, 1, 2, 3, 4, 66, 68, 129):
            yield f"{name}_{window}", bytes([window, *steps])


_SEEDS: Final = {
    "frames": _frames,
    "messages": _messages,
    "relay_clients": _relay_clients,
    "relay_agent": _relay_agent,
    "agent_router": _agent_router,
    "process_session": _process_session,
    "exec_session": _exec_session,
    "admission": _admission,
}


if __name__ == "__main__":
    main()

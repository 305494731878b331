"""The catalogue: its columns match the protocol, and no other module repeats them."""

from __future__ import annotations

import ast
import pathlib
from typing import TYPE_CHECKING, Final, get_args

import pytest

import trio_console
from trio_console import _wire as wire

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

DOWN, UP = wire.Direction.HOST_TO_AGENT, wire.Direction.AGENT_TO_HOST
ROWS: Final = list(wire.MESSAGE_TYPES.values())
KINDS: Final[tuple[wire.SessionKind, ...]] = get_args(wire.SessionKind)


def classes(having: Callable[[wire.MessageType], bool]) -> set[type[wire.Message]]:
    return {row.cls for row in ROWS if having(row)}


# What the columns say


def test_who_opens_a_session_says_of_which_kind() -> None:
    opened = {row.cls: row.kind for row in ROWS if row.place is wire.Place.OPENS}
    assert opened == {
        wire.ExecRequest: "exec",
        wire.FsRequest: "fs",
        wire.TcpConnect: "tcp",
        wire.Ping: "call",
        wire.Touch: "call",
        wire.KillBackground: "call",
    }


def test_who_opens_no_session_is_of_no_kind_that_is_opened() -> None:
    assert wire.opened_by(wire.Touch()) == "call"
    with pytest.raises(ValueError, match=r"core\.exec\.signal opens no session"):
        wire.opened_by(wire.ExecSignal(9))
    with pytest.raises(ValueError, match=r"core\.shutdown opens no session"):
        wire.opened_by(wire.Shutdown())


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.name)
def test_the_columns_of_a_row_agree(row: wire.MessageType) -> None:
    assert (row.place is None) == (row.kind is None) == row.control
    # The client's close of a connection is the one last word without the flag, and the one that is not answered.
    ends = row.place is wire.Place.ENDS
    assert ends == bool(row.flags & wire.FLAG_TERMINAL) or row.cls is wire.TcpClose
    if row.flags & wire.FLAG_SESSION_START:
        assert row.place is wire.Place.OPENS
    assert (row.stream is not None) == issubclass(row.cls, wire.DataMessage)
    assert not (row.overtakes and row.stream), "data does not overtake data"
    if row.host_only:
        assert row.direction is DOWN
        assert row.control
    if row.orphan is not None:
        answer = wire.type_of(row.orphan(7))
        assert answer.place is wire.Place.ENDS
        assert answer.fits(row.kind)  # type: ignore[arg-type]


@pytest.mark.parametrize("kind", KINDS)
def test_a_session_of_any_kind_can_be_opened_and_ended_by_the_agent(kind: wire.SessionKind) -> None:
    rows = [row for row in ROWS if row.kind == kind]
    assert [row for row in rows if row.place is wire.Place.OPENS]
    assert [row for row in rows if row.place is wire.Place.ENDS and row.direction is UP]


def test_a_last_word_fits_sessions_of_its_kind_and_an_error_fits_all() -> None:
    assert [kind for kind in KINDS if wire.type_of(wire.ExecFailed).fits(kind)] == ["exec"]
    assert [kind for kind in KINDS if wire.type_of(wire.Error).fits(kind)] == [*KINDS]
    assert not any(wire.type_of(wire.Shutdown).fits(kind) for kind in KINDS)


def test_only_a_relay_sends_what_sets_up_the_guest() -> None:
    assert classes(lambda row: row.host_only) == {
        wire.Bootstrap,
        wire.InitAck,
        wire.ClientDisconnected,
        wire.ClockSync,
        wire.Reset,
    }


def test_everything_is_activity_but_what_only_looks_whether_there_is_some() -> None:
    uncounted = {wire.Ping, wire.Pong, wire.Touched, wire.ClockSync, wire.Error, wire.TransportCredit}
    assert classes(lambda row: not row.activity) == uncounted


def test_within_a_session_these_stay_behind_data() -> None:
    behind = classes(lambda row: row.place is wire.Place.WITHIN and not (row.overtakes or row.stream))
    assert behind == {wire.TcpEof, wire.ExecStreamEnded, wire.ExecDropped}


def test_last_words_stay_behind_data_but_answers_to_calls() -> None:
    ends = classes(lambda row: row.place is wire.Place.ENDS and row.overtakes)
    assert ends == {wire.Pong, wire.Touched, wire.BackgroundKilled}


def test_data_for_an_unknown_id_is_answered_where_somebody_waits_for_the_end() -> None:
    answers = {row.cls: row.orphan(7) for row in ROWS if row.orphan is not None}
    assert answers == {
        wire.FsData: wire.FsResponse(ok=False, error="unknown write session: 7"),
        wire.TcpData: wire.TcpFailed("unknown TCP session: 7"),
    }


@pytest.mark.parametrize(
    ("kind", "down", "up"),
    [
        ("exec", {wire.ExecStdin: "stdin"}, {wire.ExecStdout: "stdout", wire.ExecStderr: "stderr"}),
        ("fs", {wire.FsData: "data"}, {wire.FsData: "data"}),
        ("tcp", {wire.TcpData: "data"}, {wire.TcpData: "data"}),
        ("call", {}, {}),
    ],
)
def test_streams_have_a_name_and_a_direction(
    kind: wire.SessionKind, down: dict[object, str], up: dict[object, str]
) -> None:
    assert list(wire.streams_of(kind, DOWN).items()) == list(down.items())
    assert list(wire.streams_of(kind, UP).items()) == list(up.items()), "in the order of descriptors"


def test_every_stream_has_a_name_that_credit_can_be_given_for() -> None:
    names = {name for kind in KINDS for way in wire.Direction for name in wire.streams_of(kind, way).values()}
    assert names == set(get_args(wire.StreamName))


def test_requests_with_a_window_are_those_that_open_streams() -> None:
    with_streams = classes(
        lambda row: row.place is wire.Place.OPENS and bool(wire.streams_of(wire.opened_by(row.cls), UP))
    )
    assert with_streams == set(get_args(wire.StreamRequest))
    assert with_streams == classes(lambda row: "window" in row.cls.__struct_fields__)


def test_an_agent_takes_what_a_client_says_within_a_session_of_the_kind() -> None:
    common = {wire.Credit, wire.Cancel}
    ours = {wire.ExecRelease, wire.ExecKill}
    assert wire.accepted_in("exec") == {wire.ExecStdin, wire.ExecResize, wire.ExecSignal} | ours | common
    assert wire.accepted_in("tcp") == {wire.TcpData, wire.TcpEof, wire.TcpClose} | common
    assert wire.accepted_in("fs") == {wire.FsData} | common
    assert wire.accepted_in("fs", data=False) == common


@pytest.mark.parametrize(("generation", "known"), [(4, False), (5, True), (7, True)])
def test_a_peer_knows_what_its_generation_had(generation: int, *, known: bool) -> None:
    assert wire.knows(generation, wire.Error) is known


# No other module repeats the catalogue

PACKAGE: Final = pathlib.Path(trio_console.__file__).parent

#: What an agent does for a message: functions by class, in the two places where the agent is put together.
HANDLERS: Final = {("agent/_router.py", "_controls"), ("agent/_serve.py", "_openers")}


def message_classes(nodes: list[ast.expr]) -> list[str]:
    """The message classes among these expressions, as ``wire.Name``."""
    names = {row.cls.__name__ for row in ROWS}
    found = (node.attr for node in nodes if isinstance(node, ast.Attribute) and ast.unparse(node.value) == "wire")
    return [name for name in found if name in names]


def owner_of(tree: ast.Module, node: ast.AST) -> str:
    """The name of the attribute or of the function that a table is in."""
    for outer in ast.walk(tree):
        if node in ast.walk(outer) and outer is not node:
            if isinstance(outer, ast.AnnAssign) and isinstance(outer.target, ast.Attribute):
                return outer.target.attr
            if isinstance(outer, ast.FunctionDef) and outer.name != "__init__":
                return outer.name
    return ""


def tables(source: str) -> Iterator[tuple[str, list[str]]]:
    """The lists in a source that name two message classes or more, and where each is."""
    tree = ast.parse(source)
    types = {
        id(inner) for node in ast.walk(tree) if isinstance(node, ast.Subscript) for inner in ast.walk(node.slice)
    }
    for node in ast.walk(tree):
        if isinstance(node, ast.Dict):
            listed = message_classes([key for key in node.keys if key is not None])
        elif isinstance(node, (ast.Set, ast.List, ast.Tuple)):
            listed = message_classes(node.elts)
        elif isinstance(node, ast.BinOp):
            listed = message_classes([node.left, node.right])
        else:
            continue
        if len(listed) > 1 and id(node) not in types:
            yield owner_of(tree, node), listed


@pytest.mark.parametrize(
    "source",
    [
        "_HURRIED = (wire.ExecStarted, wire.Credit)",
        "kinds = {wire.ExecStdin: 'exec', wire.FsData: 'fs'}",
        "accepts = frozenset({wire.Credit, wire.Cancel})",
        "if isinstance(message, (wire.TcpEof, wire.TcpClose)): pass",
        "if isinstance(message, wire.TcpEof | wire.TcpClose): pass",
    ],
)
def test_a_table_of_message_classes_is_seen(source: str) -> None:
    assert list(tables(source))


@pytest.mark.parametrize(
    "source", ["def f(message: wire.Credit, session: wire.Session): wire.Credit", "x: dict[wire.Ping, wire.Pong]"]
)
def test_what_is_no_table_is_not_taken_for_one(source: str) -> None:
    assert not list(tables(source))


def test_no_other_module_lists_message_types() -> None:
    """A module that lists message classes repeats a column of the catalogue."""
    found = {
        (path.relative_to(PACKAGE).as_posix(), owner): listed
        for path in sorted(PACKAGE.rglob("*.py"))
        if path.parent != PACKAGE / "_wire"
        for owner, listed in tables(path.read_text(encoding="utf-8"))
    }
    assert found.keys() == HANDLERS

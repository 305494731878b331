"""Rights: what is forwarded for a user's clients, and the answers to everything else."""

from __future__ import annotations

import errno
import pathlib
import re

import pytest

from tests.relay.router._frames import Table
from trio_console import Rights
from trio_console import _wire as wire
from trio_console._relay.router.rights import FILE_DEMANDS, NEEDS
from trio_console._session.files.operations import guest_error
from trio_console._session.net.tcp import _tcp_error

LIMITED, FREE = 1000, 0  # users

EXEC = wire.ExecRequest(cmd="true")
CONNECT = wire.TcpConnect(host="h", port=1)
ATTRS = wire.SetAttrs()


def options(**wanted: bool) -> wire.OpenOptions:
    flags = dict.fromkeys(("read", "write", "append", "create", "truncate", "create_new"), False)
    return wire.OpenOptions(**{**flags, **wanted})


READS: list[wire.FsOp] = [
    wire.OpRealPath("/a"),
    wire.OpStat("/a", True),
    wire.OpList("/a"),
    wire.OpReadLink("/a"),
    wire.OpOpenFile("/a", options(read=True)),
    wire.OpOpenDir("/a"),
    wire.OpCloseHandle(1),
    wire.OpRead(1, 0),
    wire.OpReadDir(1),
    wire.OpFStat(1),
    wire.OpSeek(1, 0, "data"),
    wire.OpAccount("home", ""),
]
WRITES: list[wire.FsOp] = [
    wire.OpSetStat("/a", True, ATTRS),
    wire.OpSymlink("/a", "/b"),
    wire.OpMkdir("/a"),
    wire.OpRemove("/a"),
    wire.OpRemoveDir("/a", True),
    wire.OpCopy("/a", "/b"),
    wire.OpRename("/a", "/b"),
    wire.OpWrite(1, 0),
    wire.OpFSetStat(1, ATTRS),
    wire.OpTouch("/a", 0o644, True),
    wire.OpHardLink("/a", "/b"),
    *(wire.OpOpenFile("/a", options(read=True, **{name: True})) for name in ("write", "append", "create")),
    *(wire.OpOpenFile("/a", options(read=True, **{name: True})) for name in ("truncate", "create_new")),
]


def said_of(op: wire.FsOp) -> str:
    name = type(op).__name__
    if isinstance(op, wire.OpOpenFile):
        name += "-" + "-".join(
            word for word in ("write", "append", "create", "truncate", "create_new") if getattr(op.options, word)
        )
    return name


def is_forwarded(rights: Rights, request: wire.Message) -> bool:
    """Whether a request is forwarded for a client with these rights; it always is for the other one."""
    table = Table(rights={LIMITED: rights, FREE: Rights()})
    limited, free = table.connect(LIMITED), table.connect(FREE)
    orders = table.client_says(limited, request, limited.ids[3])
    other = table.client_says(free, request, free.ids[3])
    assert [id_ for id_, _ in table.to_agent(free, other)] == [free.ids[3]]
    assert table.to_client(free) == []
    got = table.to_agent(limited, orders)
    answers = table.to_client(limited)
    assert bool(got) != bool(answers)
    assert table.router.refused_frames == len(answers)
    assert len(limited.sessions) == len(got)
    assert (orders.busy is limited) is bool(answers)
    table.router.books.check()
    return bool(got)


# The table of rights


def test_each_operation_and_each_request_has_its_demand() -> None:
    assert set(FILE_DEMANDS) == set(wire.FS_OPS.values())
    asked = [row for row in wire.MESSAGE_TYPES.values() if row.place is wire.Place.OPENS]
    assert {*NEEDS, "fs"} == {row.kind for row in asked}
    rights = {row.name: row.right for row in wire.MESSAGE_TYPES.values() if row.right}
    assert rights == {"core.exec.request": "run", "core.tcp.connect": "tcp", "core.shutdown": "shutdown"}
    assert {type(op) for op in READS + WRITES} == set(wire.FS_OPS.values())


def test_the_documentation_has_the_same_table() -> None:
    text = (pathlib.Path(__file__).parents[3] / "docs" / "relay.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| `(\w+)`.*\| (read|write) \|", text, re.MULTILINE)
    wanted = {name: FILE_DEMANDS[op].right for name, op in wire.FS_OPS.items()}
    assert dict(rows) == wanted


@pytest.mark.parametrize("op", READS, ids=said_of)
def test_who_may_only_read_files_may_do_this(op: wire.FsOp) -> None:
    assert is_forwarded(Rights(files="read"), wire.FsRequest(op))
    assert is_forwarded(Rights(files="write"), wire.FsRequest(op))
    assert not is_forwarded(Rights(files=None), wire.FsRequest(op))


@pytest.mark.parametrize("op", WRITES, ids=said_of)
def test_who_may_only_read_files_may_not_do_this(op: wire.FsOp) -> None:
    assert not is_forwarded(Rights(files="read"), wire.FsRequest(op))
    assert not is_forwarded(Rights(files=None), wire.FsRequest(op))
    assert is_forwarded(Rights(files="write"), wire.FsRequest(op))


def test_the_contents_of_a_file_need_the_rights_of_its_open() -> None:
    reading, changing = (
        wire.OpOpenFile("/a", options(read=True, truncate=truncate)) for truncate in (False, True)
    )
    for rights, op, passes in (
        (Rights(files=None), reading, False),
        (Rights(files="read"), reading, True),
        (Rights(files="read"), changing, False),
    ):
        assert is_forwarded(rights, wire.FsRequest(op, window=10, contents=True)) == passes


@pytest.mark.parametrize("allowed", [True, False])
def test_commands_need_the_right_to_run(allowed: bool) -> None:
    assert is_forwarded(Rights(run=allowed), EXEC) is allowed
    assert is_forwarded(Rights(run=allowed, files=None, tcp=False, shutdown=False), EXEC) is allowed


@pytest.mark.parametrize("allowed", [True, False])
def test_connections_need_the_right_to_them(allowed: bool) -> None:
    assert is_forwarded(Rights(tcp=allowed), CONNECT) is allowed
    assert is_forwarded(Rights(run=False, files=None, tcp=allowed, shutdown=False), CONNECT) is allowed


@pytest.mark.parametrize("request_", [wire.Ping(), wire.Touch()])
def test_a_ping_needs_no_right(request_: wire.Message) -> None:
    assert is_forwarded(Rights(run=False, files=None, tcp=False, shutdown=False), request_)


def test_this_programs_own_client_has_every_right() -> None:
    table = Table(rights={LIMITED: Rights(run=False)})
    own = table.connect(None)
    for offset, request in enumerate((EXEC, CONNECT, *map(wire.FsRequest, READS + WRITES))):
        assert table.client_says(own, request, own.ids[offset]).to_agent
    assert table.client_says(own, wire.Shutdown(), 0).shutdown


# The answers


def answer_to(rights: Rights, request: wire.Message) -> wire.Message:
    table = Table(rights={LIMITED: rights})
    client = table.connect(LIMITED)
    table.client_says(client, request, client.ids[0])
    [(id_, answer)] = table.to_client(client)
    assert id_ == client.ids[0]
    return answer


def test_a_command_that_is_not_allowed_has_failed_to_start() -> None:
    failed = answer_to(Rights(run=False), EXEC)
    assert isinstance(failed, wire.ExecFailed)
    assert (failed.kind, failed.errno, failed.errno_name) == ("permission_denied", errno.EACCES, "EACCES")
    assert "does not let this user run commands" in failed.message


@pytest.mark.parametrize(("rights", "what"), [(Rights(files="read"), "change"), (Rights(files=None), "change")])
def test_a_file_operation_that_is_not_allowed_is_a_permission_error(rights: Rights, what: str) -> None:
    response = answer_to(rights, wire.FsRequest(wire.OpMkdir("/a")))
    assert isinstance(response, wire.FsResponse)
    assert not response.ok
    error = guest_error(response.error, "/a")
    assert isinstance(error, PermissionError)
    assert error.errno == errno.EACCES
    assert f"does not let this user {what} files" in (response.error or "")


def test_a_connection_that_is_not_allowed_has_failed() -> None:
    failed = answer_to(Rights(tcp=False), CONNECT)
    assert isinstance(failed, wire.TcpFailed)
    assert failed.error.startswith("connect h:1: ")
    assert "(os error 13)" in failed.error
    assert isinstance(_tcp_error(failed.error), PermissionError)


def test_the_id_of_a_request_that_was_refused_is_free() -> None:
    table = Table(rights={LIMITED: Rights(run=False)})
    client = table.connect(LIMITED)
    table.client_says(client, EXEC, client.ids[0])
    assert table.client_says(client, CONNECT, client.ids[0]).to_agent


def test_input_for_a_request_that_was_refused_is_answered_as_for_no_session() -> None:
    table = Table(rights={LIMITED: Rights(run=False, files="read", tcp=False)})
    client = table.connect(LIMITED)
    said = [
        (EXEC, wire.ExecStdin(b"x")),
        (wire.FsRequest(wire.OpWrite(1, 0)), wire.FsData(b"x")),
        (CONNECT, wire.TcpData(b"x")),
    ]
    for offset, (request, data) in enumerate(said):
        orders = [table.client_says(client, one, client.ids[offset]) for one in (request, data)]
        assert all(table.to_agent(client, order) == [] for order in orders)
    answers = [type(message) for _, message in table.to_client(client)]
    assert answers == [wire.ExecFailed, *[wire.FsResponse] * 2, *[wire.TcpFailed] * 2]


def test_an_id_in_use_is_a_mistake_before_it_is_a_matter_of_rights() -> None:
    table = Table(rights={LIMITED: Rights(run=False)})
    client = table.connect(LIMITED)
    table.client_says(client, CONNECT, client.ids[0])
    table.client_says(client, EXEC, client.ids[0])
    [(_, error)] = table.to_client(client)
    assert isinstance(error, wire.Error)
    assert error.kind == "invalid_session"


# Shutdown


def test_a_shutdown_with_id_0_that_is_not_allowed_is_counted_and_logged_and_told_to_nobody() -> None:
    table = Table(rights={LIMITED: Rights(shutdown=False)})
    client = table.connect(LIMITED)
    orders = table.client_says(client, wire.Shutdown(), 0)
    assert not orders.shutdown
    assert orders.to_agent == []
    assert table.to_client(client) == []
    assert orders.refused == (
        "the client in slot 0 has tried to shut the guest down: "
        "the relay does not let this user shut the guest down"
    )
    assert table.router.refused_frames == 1


def test_a_shutdown_with_an_id_of_the_client_that_is_not_allowed_is_answered() -> None:
    table = Table(rights={LIMITED: Rights(shutdown=False)})
    client = table.connect(LIMITED)
    orders = table.client_says(client, wire.Shutdown(), client.ids[7])
    assert not orders.shutdown
    assert orders.to_agent == []
    assert orders.refused is not None
    [(id_, error)] = table.to_client(client)
    assert id_ == client.ids[7]
    assert isinstance(error, wire.Error)
    assert (error.kind, error.offending_type) == ("not_permitted", "core.shutdown")


def test_each_client_is_named_once_in_the_log_however_often_it_tries() -> None:
    table = Table(rights={LIMITED: Rights(shutdown=False)})
    clients = [table.connect(LIMITED) for _ in range(2)]
    logged = [table.client_says(client, wire.Shutdown(), 0).refused for client in clients * 3]
    assert [text is not None for text in logged] == [True, True, False, False, False, False]
    assert table.router.refused_frames == 6


def test_others_may_shut_down_beside_a_client_that_may_not() -> None:
    table = Table(rights={LIMITED: Rights(shutdown=False), FREE: Rights()})
    limited, free = table.connect(LIMITED), table.connect(FREE)
    assert not table.client_says(limited, wire.Shutdown(), 0).shutdown
    assert table.client_says(free, wire.Shutdown(), 0).shutdown

"""Open files and directories: their operations, the sessions that own them, and when they are closed."""

from __future__ import annotations

import os
import stat
import threading
from typing import TYPE_CHECKING

import pytest
import trio

from tests.agent._host import closed, open_fds
from tests.tools.limits import HANG, HELD
from trio_console import _wire as wire
from trio_console.agent._files.handles import HANDLES_PER_CLIENT, Turns

if TYPE_CHECKING:
    from pathlib import Path

    from tests.agent._host import Host
    from tests.agent.conftest import AgentFactory

STEP = (2**32 - 1) // 128
EMFILE = "Too many open files (os error 24)"


# --- opening --------------------------------------------------------------------------------------


async def test_handles_count_from_1_and_are_never_used_again(host: Host, tmp_path: Path) -> None:
    path = tmp_path / "f"
    assert await host.open_file(path, "write create") == 1
    assert await host.ok(wire.OpOpenDir(str(tmp_path))) == 2
    await host.ok(wire.OpCloseHandle(2))
    assert await host.open_file(path, "read") == 3


async def test_a_new_file_has_the_mode_asked_for_without_what_is_masked(host: Host, tmp_path: Path) -> None:
    mask = os.umask(0o027)
    try:
        await host.open_file(tmp_path / "plain", "write create")
        await host.open_file(tmp_path / "own", "write create", mode=0o100755)
    finally:
        os.umask(mask)
    assert stat.S_IMODE((tmp_path / "plain").stat().st_mode) == 0o640
    assert stat.S_IMODE((tmp_path / "own").stat().st_mode) == 0o750


@pytest.mark.parametrize(
    ("how", "there", "result"),
    [
        ("read", True, b"old"),
        ("read", False, "open: No such file or directory (os error 2)"),
        ("write", False, "open: No such file or directory (os error 2)"),
        ("write", True, b"old"),
        ("write create", False, b""),
        ("write create", True, b"old"),
        ("write create truncate", True, b""),
        ("write truncate", True, b""),
        ("append create", False, b""),
        ("append truncate", True, b""),
        ("write create_new", False, b""),
        ("write create_new", True, "open: File exists (os error 17)"),
        ("read create", False, b""),
        ("", True, "open: Invalid argument (os error 22)"),
        ("create", False, "open: Invalid argument (os error 22)"),
        ("read truncate", True, "open: Invalid argument (os error 22)"),
    ],
)
async def test_options_mean_what_open_means_by_them(
    host: Host, tmp_path: Path, how: str, there: bool, result: bytes | str
) -> None:
    path = tmp_path / "f"
    if there:
        path.write_bytes(b"old")
    names = ("read", "write", "append", "create", "truncate", "create_new")
    options = wire.OpenOptions(**{name: name in how.split() for name in names})
    response = await host.fs(wire.OpOpenFile(str(path), options))
    if isinstance(result, bytes):
        assert response.ok
        assert path.read_bytes() == result
    else:
        assert response.error == result
        assert path.exists() == there
        assert not there or path.read_bytes() == b"old"


async def test_a_directory_can_be_opened_as_a_file_but_not_read(host: Host, tmp_path: Path) -> None:
    handle = await host.open_file(tmp_path, "read")
    _, last = await host.read_file(wire.OpRead(handle, 0))
    assert last.error == "read: Is a directory (os error 21)"


async def test_children_do_not_inherit_open_files(host: Host, tmp_path: Path) -> None:
    path = tmp_path / "f"
    await host.open_file(path, "write create")
    await host.ok(wire.OpOpenDir(str(tmp_path)))
    listed = (await host.sh("ls -l /proc/self/fd")).stdout
    assert os.fsencode(path) not in listed
    assert os.fsencode(tmp_path) not in listed


# --- what they are good for -----------------------------------------------------------------------


async def test_fstat_is_of_the_file_and_not_of_its_name(host: Host, tmp_path: Path) -> None:
    path = tmp_path / "f"
    path.write_bytes(b"hello")
    handle = await host.open_file(path, "read")
    before = await host.ok(wire.OpStat(str(path), True))
    path.rename(tmp_path / "g")
    assert await host.ok(wire.OpFStat(handle)) == before


async def test_fsetstat_changes_size_mode_and_times(host: Host, tmp_path: Path) -> None:
    path = tmp_path / "f"
    path.write_bytes(b"hello")
    handle = await host.open_file(path, "write")
    await host.ok(wire.OpFSetStat(handle, wire.SetAttrs(size=2, mode=0o600, atime=1, mtime=2)))
    found = path.stat()
    assert (found.st_size, stat.S_IMODE(found.st_mode), found.st_atime, found.st_mtime) == (2, 0o600, 1, 2)


async def test_fsetstat_of_the_size_needs_a_file_open_for_writing(host: Host, tmp_path: Path) -> None:
    (tmp_path / "f").touch()
    handle = await host.open_file(tmp_path / "f", "read")
    error = await host.error(wire.OpFSetStat(handle, wire.SetAttrs(size=2)))
    assert error == "fsetstat: Invalid argument (os error 22)"


async def test_a_handle_is_good_for_what_it_was_opened_for(host: Host, tmp_path: Path) -> None:
    reader = await host.open_file(tmp_path / "f", "read create")
    writer = await host.open_file(tmp_path / "f", "append")
    folder = await host.ok(wire.OpOpenDir(str(tmp_path)))
    assert await host.error(wire.OpRead(writer, 0)) == f"handle {writer} is not open for reading"
    assert await host.error(wire.OpWrite(reader, 0)) == f"handle {reader} is not open for writing"
    assert await host.error(wire.OpReadDir(reader)) == f"handle {reader} is a file"
    for op in (
        wire.OpRead(folder, 0),
        wire.OpWrite(folder, 0),
        wire.OpFStat(folder),
        wire.OpSeek(folder, 0, "data"),
        wire.OpFSetStat(folder, wire.SetAttrs()),
    ):
        assert await host.error(op) == f"handle {folder} is a directory"


@pytest.mark.parametrize("number", [0, 1, 2**64 - 1])
async def test_an_unknown_handle_is_invalid(host: Host, number: int) -> None:
    for op in (
        wire.OpCloseHandle(number),
        wire.OpRead(number, 0),
        wire.OpWrite(number, 0),
        wire.OpReadDir(number),
        wire.OpFStat(number),
        wire.OpSeek(number, 0, "hole"),
        wire.OpFSetStat(number, wire.SetAttrs()),
    ):
        assert await host.error(op) == f"invalid handle: {number}"


async def test_a_closed_handle_is_invalid_and_its_file_closed(host: Host, tmp_path: Path) -> None:
    path = tmp_path / "f"
    file = await host.open_file(path, "read create")
    folder = await host.ok(wire.OpOpenDir(str(tmp_path)))
    assert (open_fds(path), open_fds(tmp_path)) == (1, 2)
    for handle in (file, folder):
        assert await host.ok(wire.OpCloseHandle(handle)) is None
        assert await host.error(wire.OpCloseHandle(handle)) == f"invalid handle: {handle}"
    assert (open_fds(path), open_fds(tmp_path)) == (0, 0)


async def test_an_error_of_closing_is_told(host: Host, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plain = os.close
    handle = await host.open_file(tmp_path / "f", "write create")

    def failing(fd: int) -> None:
        plain(fd)
        raise OSError(5, "the disk is gone")

    with monkeypatch.context() as patch:
        patch.setattr("trio_console.agent._files.handles.os.close", failing)
        assert await host.error(wire.OpCloseHandle(handle)) == "close: Input/output error (os error 5)"
    assert await host.error(wire.OpCloseHandle(handle)) == f"invalid handle: {handle}"


# --- directories ----------------------------------------------------------------------------------


async def test_a_directory_is_read_page_by_page_until_one_is_empty(host: Host, tmp_path: Path) -> None:
    names = {f"{tmp_path}/{number}" for number in range(300)}
    for name in names:
        os.close(os.open(name, os.O_CREAT))
    handle = await host.ok(wire.OpOpenDir(str(tmp_path)))
    pages = [await host.ok(wire.OpReadDir(handle, limit)) for limit in (None, 0, 1, 3, 2**32 - 1, None, None)]
    assert [len(page) for page in pages] == [128, 1, 1, 3, 167, 0, 0]
    assert {entry.path for page in pages for entry in page} == names


async def test_a_page_is_cut_before_it_gets_in_everybodys_way(
    host: Host, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("trio_console.agent._files.paths._PAGE", 1000)
    for number in range(30):
        (tmp_path / f"{number}").touch()
    handle = await host.ok(wire.OpOpenDir(str(tmp_path)))
    sizes = []
    while page := await host.ok(wire.OpReadDir(handle, 1000)):
        sizes.append(len(page))
    assert sum(sizes) == 30
    assert max(sizes) < 9


async def test_the_estimate_of_an_entry_is_never_too_small() -> None:
    large = wire.EntryInfo(
        path="x" * 5000,
        kind="symlink",
        size=2**64 - 1,
        mode=2**32 - 1,
        modified=-(2**63),
        uid=2**32 - 1,
        gid=2**32 - 1,
        atime=-(2**63),
        mtime=-(2**63),
    )
    small = wire.EntryInfo(path="x", kind="dir", size=0, mode=0, uid=0, gid=0)
    empty = len(wire.encode(wire.FsResponse(True, None, wire.ResultList([]))))
    for entry, count, least, most in ((large, 23, 62, 114), (small, 23, 62, 114)):
        size = (len(wire.encode(wire.FsResponse(True, None, wire.ResultList([entry] * count)))) - empty) / count
        assert least <= size - len(entry.path) <= most + 1


# --- limits ---------------------------------------------------------------------------------------


async def test_a_client_has_only_so_many_handles(agent: AgentFactory, tmp_path: Path) -> None:
    async with agent(handles_per_client=3) as host:
        (tmp_path / "f").touch()
        handles = [
            await host.open_file(tmp_path / "f", "read"),
            await host.ok(wire.OpOpenDir(str(tmp_path))),
            await host.open_file(tmp_path / "f", "read"),
        ]
        options = wire.OpenOptions(
            read=True, write=False, append=False, create=False, truncate=False, create_new=False
        )
        more = wire.OpOpenFile(str(tmp_path / "f"), options)
        assert await host.error(more) == f"open: {EMFILE}"
        assert await host.error(wire.OpOpenDir(str(tmp_path))) == f"opendir: {EMFILE}"
        # Another client has its own.
        assert await host.ok(more, sid=STEP + 1) == 4
        await host.ok(wire.OpCloseHandle(handles[1]))
        await host.ok(more)
        assert await host.error(more) == f"open: {EMFILE}"


async def test_failed_opens_do_not_count(agent: AgentFactory, tmp_path: Path) -> None:
    async with agent(handles_per_client=1) as host:
        for _ in range(3):
            assert "os error 2" in await host.error(wire.OpOpenDir("/no/such"))
        await host.ok(wire.OpOpenDir(str(tmp_path)))


async def test_opens_under_way_count(agent: AgentFactory, tmp_path: Path) -> None:
    async with agent(handles_per_client=10) as host:
        sids = range(1, 31)
        for sid in sids:
            await host.send(wire.FsRequest(wire.OpOpenDir(str(tmp_path))), sid)
        responses = [await host.receive(sid) for sid in sids]
        assert [response.ok for response in responses].count(True) == 10


async def test_1024_handles_leave_room_for_commands(host: Host, tmp_path: Path) -> None:
    (tmp_path / "f").touch()
    handles = [await host.open_file(tmp_path / "f", "read") for _ in range(1024)]
    assert len(set(handles)) == 1024
    assert (await host.run("echo", "hi")).stdout == b"hi\n"
    await host.send(wire.ClientDisconnected(1, STEP))
    await closed(tmp_path / "f")


async def test_open_files_never_take_all_descriptors(
    host: Host, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        "trio_console.agent._process.limits.FdHeadroom.takes_handles", lambda _self, count: count <= 2
    )
    await host.ok(wire.OpOpenDir(str(tmp_path)))
    await host.ok(wire.OpOpenDir(str(tmp_path)))
    assert await host.error(wire.OpOpenDir(str(tmp_path))) == f"opendir: {EMFILE}"


# --- owners ---------------------------------------------------------------------------------------


async def test_a_handle_belongs_to_its_client(host: Host, tmp_path: Path) -> None:
    handle = await host.open_file(tmp_path / "f", "read write create")
    theirs = STEP + 1
    for op in (
        wire.OpCloseHandle(handle),
        wire.OpRead(handle, 0),
        wire.OpWrite(handle, 0),
        wire.OpReadDir(handle),
        wire.OpFStat(handle),
        wire.OpSeek(handle, 0, "data"),
        wire.OpFSetStat(handle, wire.SetAttrs(size=0)),
    ):
        error = await host.error(op, sid=theirs)
        assert error == f"handle {handle} is owned by a different relay client"
    await host.ok(wire.OpFStat(handle), sid=STEP - 1)  # another session of the owner


async def test_a_client_that_left_has_its_handles_closed_and_no_one_elses(host: Host, tmp_path: Path) -> None:
    (tmp_path / "mine").touch()
    (tmp_path / "theirs").touch()
    mine = await host.open_file(tmp_path / "mine", "read", sid=STEP + 1)
    await host.ok(wire.OpOpenDir(str(tmp_path)), sid=STEP + 1)
    theirs = [
        await host.open_file(tmp_path / "theirs", "read", sid=1),
        await host.open_file(tmp_path / "theirs", "read", sid=2 * STEP + 1),
    ]
    await host.send(wire.ClientDisconnected(STEP + 1, 2 * STEP))
    assert await host.error(wire.OpFStat(mine), sid=STEP + 1) == f"invalid handle: {mine}"
    await host.ok(wire.OpFStat(theirs[0]), sid=1)
    await host.ok(wire.OpFStat(theirs[1]), sid=2 * STEP + 1)
    await closed(tmp_path / "mine")
    await closed(tmp_path)


async def test_a_client_that_left_is_told_nothing(host: Host, tmp_path: Path) -> None:
    await host.send_raw(
        b"".join(wire.encode(wire.FsRequest(wire.OpOpenDir(str(tmp_path))), sid) for sid in range(1, 20))
        + wire.encode(wire.ClientDisconnected(1, STEP))
    )
    # A relay sends this request to learn that all earlier frames have come.
    last_id = STEP - 1
    await host.ok(wire.OpRealPath("/"), sid=last_id)
    said = {sid for sid in range(1, 20) if host._kept.get(sid)}
    for sid in range(1, 20):
        assert (sid in said) or await host.nothing_for(sid)
    assert said == {sid for sid in range(1, 20) if host._kept.get(sid)}
    await closed(tmp_path)


async def test_what_a_client_that_left_was_opening_is_closed(
    host: Host, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for ending in (wire.ClientDisconnected(1, STEP), wire.Cancel()):
        begun, release = slow_opens(monkeypatch)
        await host.send(wire.FsRequest(wire.OpOpenDir(str(tmp_path))), 5)
        with trio.fail_after(HANG):
            await trio.to_thread.run_sync(begun.wait)
        await host.send(ending, 0 if isinstance(ending, wire.ClientDisconnected) else 5)
        await host.ping()
        release.set()
        if isinstance(ending, wire.Cancel):
            assert await host.receive(5) == wire.FsResponse(ok=False, error="cancelled")
        await closed(tmp_path)
        assert await host.nothing_for(5)
        monkeypatch.undo()
    # The client never got usable numbers of these two handles.
    number = await host.ok(wire.OpOpenDir(str(tmp_path)))
    for handle in range(1, number):
        assert await host.error(wire.OpReadDir(handle)) == f"invalid handle: {handle}"


async def test_opens_called_off_before_they_began_count_for_nothing(host: Host, tmp_path: Path) -> None:
    (tmp_path / "f").touch()
    names = ("read", "write", "append", "create", "truncate", "create_new")
    op = wire.OpOpenFile(str(tmp_path / "f"), wire.OpenOptions(**{name: name == "read" for name in names}))
    sids = range(1, HANDLES_PER_CLIENT + 100)
    # The agent reads all frames at once, as if it had fallen behind.
    await host.send_raw(
        b"".join(wire.encode(wire.FsRequest(op), sid) + wire.encode(wire.Cancel(), sid) for sid in sids)
    )
    await host.ok(op, sid=sids.stop)


def slow_opens(monkeypatch: pytest.MonkeyPatch) -> tuple[threading.Event, threading.Event]:
    """Opens of directories last until the second event is set. The first is set when one has begun."""
    begun, release = threading.Event(), threading.Event()
    plain = os.scandir

    def slow(fd: int) -> object:
        begun.set()
        assert release.wait(HELD)
        return plain(fd)

    monkeypatch.setattr("trio_console.agent._files.paths.os.scandir", slow)
    return begun, release


# --- taking turns, and not ------------------------------------------------------------------------


async def test_operations_on_one_handle_take_turns(host: Host, tmp_path: Path) -> None:
    (tmp_path / "f").write_bytes(bytes(100))
    handle = await host.open_file(tmp_path / "f", "read")
    reader, closer = host.new_id(), host.new_id()
    await host.send(wire.FsRequest(wire.OpRead(handle, 0), window=10), reader)
    await host.send(wire.FsRequest(wire.OpCloseHandle(handle)), closer)
    await host.ok(wire.OpRealPath("/"))  # others overtake
    assert await host.nothing_for(closer)
    await host.send(wire.Credit("data", 10), reader)
    got = 0
    while isinstance(message := await host.receive(reader), wire.FsData):
        got += len(message.data)
        await host.send(wire.Credit("data", len(message.data)), reader)
    assert (got, message.ok) == (100, True)
    assert (await host.receive(closer)).ok


def test_the_turn_is_that_of_the_first_in_the_queue_alone() -> None:
    turns = Turns()
    first, second, third = turns.join(), turns.join(), turns.join()
    assert not turns.leave(second)
    assert not third.is_set()
    assert turns.leave(first)
    assert turns.leave(third)
    assert turns.idle


async def test_what_waits_behind_a_close_finds_the_handle_gone(host: Host, tmp_path: Path) -> None:
    (tmp_path / "f").write_bytes(bytes(100))
    handle = await host.open_file(tmp_path / "f", "read")
    for sid, request in (
        (1, wire.FsRequest(wire.OpRead(handle, 0), window=10)),
        (2, wire.FsRequest(wire.OpCloseHandle(handle))),
        (3, wire.FsRequest(wire.OpFStat(handle))),
        (4, wire.FsRequest(wire.OpCloseHandle(handle))),
    ):
        await host.send(request, sid)
    await host.send(wire.Cancel(), 1)
    assert (await host.collect(1)).last.error == "cancelled"
    assert (await host.receive(2)).ok
    for sid in (3, 4):
        assert await host.receive(sid) == wire.FsResponse(ok=False, error=f"invalid handle: {handle}")


async def test_a_handle_stays_open_as_long_as_a_call_uses_it(
    host: Host, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # If it were closed earlier, the call could use the descriptor of another file.
    path = tmp_path / "f"
    handle = await host.open_file(path, "write create")
    begun, release = threading.Event(), threading.Event()
    plain = os.pwritev

    def slow(*args: object) -> int:
        begun.set()
        assert release.wait(HELD)
        return plain(*args)  # type: ignore[arg-type]

    monkeypatch.setattr("trio_console.agent._files.handles.os.pwritev", slow)
    await host.send(wire.FsRequest(wire.OpWrite(handle, 0)), 5)
    await host.send(wire.FsData(b"hello"), 5)
    with trio.fail_after(HANG):
        await trio.to_thread.run_sync(begun.wait)
    await host.send(wire.FsRequest(wire.OpFStat(handle)), 6)  # waits for its turn
    await host.send(wire.ClientDisconnected(1, STEP))
    assert await host.error(wire.OpFStat(handle)) == f"invalid handle: {handle}"
    assert await host.nothing_for(6)
    handles = [await host.ok(wire.OpOpenDir("/")) for _ in range(3)]
    for other in handles:
        await host.ok(wire.OpCloseHandle(other))
    assert open_fds(path) == 1
    release.set()
    await closed(path)
    assert path.read_bytes() == b"hello"
    assert await host.nothing_for(5)


# --- the end --------------------------------------------------------------------------------------


@pytest.mark.parametrize("ending", ["console", "shutdown"])
async def test_the_agents_end_closes_all_handles(agent: AgentFactory, tmp_path: Path, ending: str) -> None:
    path = tmp_path / "f"
    async with agent() as host:
        await host.open_file(path, "write create")
        await host.ok(wire.OpOpenDir(str(tmp_path)))
        if ending == "shutdown":
            await host.send(wire.Shutdown())
            assert await host.gone() == []
    assert (open_fds(path), open_fds(tmp_path)) == (0, 0)


@pytest.mark.parametrize("call", ["pwritev", "preadv", "fstat", "ftruncate"])
async def test_a_call_that_hangs_does_not_hold_the_agents_end_for_long(
    agent: AgentFactory, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: str
) -> None:
    path = tmp_path / "f"
    monkeypatch.setattr("trio_console.agent._files.disk._LAST_GRACE", 0.05)
    monkeypatch.setattr("trio_console.agent._files.handles.FileHandle.read_cached", lambda *_, **__: None)
    begun, release, returned = threading.Event(), threading.Event(), threading.Event()

    name = call.replace("ftr", "tr")
    plain = getattr(os, name)

    def hang(fd: int, *args: object) -> object:
        if os.readlink(f"/proc/self/fd/{fd}") != str(path):
            return plain(fd, *args)
        begun.set()
        release.wait(HELD)
        os.close(fd)  # no other code may have closed it
        returned.set()
        raise OSError(5, "whatever")

    ops = {
        "pwritev": lambda handle: wire.OpWrite(handle, 0),
        "preadv": lambda handle: wire.OpRead(handle, 0),
        "fstat": wire.OpFStat,
        "ftruncate": lambda handle: wire.OpFSetStat(handle, wire.SetAttrs(size=0)),
    }
    async with agent() as host:
        handle = await host.open_file(path, "read write create")
        monkeypatch.setattr(os, name, hang)
        await host.send(wire.FsRequest(ops[call](handle)), 5)
        if call == "pwritev":
            await host.send(wire.FsData(b"x"), 5)
        with trio.fail_after(HANG):
            await trio.to_thread.run_sync(begun.wait)
    assert open_fds(path) == 1
    release.set()
    assert returned.wait(HANG)


async def test_an_open_that_hangs_beyond_the_agents_end_leaves_nothing_open(
    agent: AgentFactory, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("trio_console.agent._files.disk._LAST_GRACE", 0.05)
    begun, release = slow_opens(monkeypatch)
    async with agent() as host:
        await host.send(wire.FsRequest(wire.OpOpenDir(str(tmp_path))), 5)
        with trio.fail_after(HANG):
            await trio.to_thread.run_sync(begun.wait)
    release.set()
    await closed(tmp_path)

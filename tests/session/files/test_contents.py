"""A file that is read whole: in one exchange if the agent announces that, and it is small; or else as any file."""

from __future__ import annotations

import errno
import os
from typing import TYPE_CHECKING, Any

import pytest
import trio
from trio.testing import wait_all_tasks_blocked

import trio_console
from tests.session._fake import begin
from tests.session.files._fake_files import FLOWS, serving_files
from trio_console import _wire as wire

if TYPE_CHECKING:
    from pathlib import Path

MOST = wire.LARGEST_CONTENTS
ANNOUNCED: Any = (wire.CONTENTS,)
ONCE = [wire.OpOpenFile]
USUAL = [wire.OpOpenFile, wire.OpRead, wire.OpCloseHandle]
#: The agents of all kinds: those that announce it, and those that do not.
FEATURES = pytest.mark.parametrize("features", [ANNOUNCED, ()], ids=["announced", "not announced"])


def asked(files: Any) -> list[type]:
    """The classes of the operations, but for the looks at what was opened, for agents that do not tell that."""
    return [type(op) for op in files.ops if not isinstance(op, wire.OpFStat)]


@FLOWS
@FEATURES
@pytest.mark.parametrize("size", [0, 1, MOST - 1, MOST, MOST + 1])
async def test_a_file_is_read_whole(
    tmp_path: Path, window: int | None, features: tuple[str, ...], size: int
) -> None:
    (tmp_path / "f").write_bytes(data := os.urandom(size))
    async with serving_files(window=window, features=features) as (talk, files):
        assert await talk.guest.path(tmp_path / "f").read_bytes() == data
        assert asked(files) == (ONCE if features and size <= MOST else USUAL)


@FEATURES
@pytest.mark.parametrize(
    ("data", "fields"),
    [
        (b"a\r\nb\rc\n", {}),
        ("\xe4\u20ac".encode(), {}),
        (b"\xe4\r\n", {"encoding": "latin-1"}),
        ("\ufeffbom".encode("utf-16"), {"encoding": "utf-16"}),
        (b"\xff", {"errors": "replace"}),
        (b"\xff", {"encoding": "locale", "errors": "surrogateescape"}),
        (b"cut \xe2\x82", {"errors": "ignore"}),
    ],
)
async def test_text_is_what_it_is_here(
    tmp_path: Path, features: tuple[str, ...], data: bytes, fields: dict[str, str]
) -> None:
    (tmp_path / "f").write_bytes(data)
    async with serving_files(features=features) as (talk, files):
        there = await talk.guest.path(tmp_path / "f").read_text(**fields)
        assert there == (tmp_path / "f").read_text(**({"encoding": "utf-8"} | fields))
        assert asked(files) == (ONCE if features else USUAL)


@FEATURES
async def test_bytes_that_are_no_text_are_an_error_as_here(tmp_path: Path, features: tuple[str, ...]) -> None:
    (tmp_path / "f").write_bytes(b"good \xff")
    async with serving_files(features=features) as (talk, _):
        with pytest.raises(UnicodeDecodeError) as there:
            await talk.guest.path(tmp_path / "f").read_text()
    with pytest.raises(UnicodeDecodeError) as here:
        (tmp_path / "f").read_text(encoding="utf-8")
    assert there.value.args == here.value.args


@FEATURES
@pytest.mark.parametrize("fields", [{"encoding": "no such"}, {"encoding": "hex"}, {"encoding": 1}, {"errors": 1}])
async def test_wrong_arguments_are_refused_before_anything_is_asked(
    tmp_path: Path, features: tuple[str, ...], fields: dict[str, Any]
) -> None:
    async with serving_files(features=features) as (talk, files):
        with pytest.raises((LookupError, TypeError)):
            await talk.guest.path(tmp_path / "f").read_text(**fields)
        assert not files.ops


@FEATURES
@pytest.mark.parametrize("name", ["read_bytes", "read_text"])
async def test_errors_have_the_number_and_the_path(tmp_path: Path, features: tuple[str, ...], name: str) -> None:
    async with serving_files(features=features) as (talk, _):
        for path, number in ((tmp_path / "none", errno.ENOENT), (tmp_path, errno.EISDIR)):
            with pytest.raises(OSError) as caught:
                await getattr(talk.guest.path(path), name)()
            assert (caught.value.errno, caught.value.filename) == (number, str(path))
            assert caught.value.strerror == os.strerror(number)


async def test_a_client_asks_for_no_more_than_it_takes(tmp_path: Path) -> None:
    (tmp_path / "f").write_bytes(b"x")
    async with serving_files(features=ANNOUNCED) as (talk, files):
        await talk.guest.path(tmp_path / "f").read_bytes()
        (request,) = files.requests
        assert (request.window, request.contents) == (MOST, True)
        assert files.credit_granted == 0


async def test_opened_files_are_not_read_at_once(tmp_path: Path) -> None:
    (tmp_path / "f").write_bytes(b"x")
    async with serving_files(features=ANNOUNCED) as (talk, files):
        async with await talk.guest.open_file(tmp_path / "f", "rb") as file:
            assert files.requests[0].contents is wire.UNSET
            assert await file.read() == b"x"


async def test_more_than_was_asked_for_is_an_error_and_the_guest_goes_on(tmp_path: Path) -> None:
    (tmp_path / "f").write_bytes(bytes(MOST))
    async with serving_files(features=ANNOUNCED) as (talk, files):
        files.extra = b"x"
        with pytest.raises(trio_console.ProtocolError, match=r"core\.fs\.data"):
            await talk.guest.path(tmp_path / "f").read_bytes()
        files.extra = b""
        assert len(await talk.guest.path(tmp_path / "f").read_bytes()) == MOST


@FLOWS
@pytest.mark.parametrize("size", [1, MOST + 1])
async def test_one_that_is_cancelled_leaves_nothing_open(tmp_path: Path, window: int | None, size: int) -> None:
    (tmp_path / "f").write_bytes(bytes(size))
    async with serving_files(window=window, features=ANNOUNCED) as (talk, files):
        files.held[wire.OpOpenFile] = trio.Event()
        async with trio.open_nursery() as nursery:
            reading = begin(nursery, talk.guest.path(tmp_path / "f").read_bytes)
            await wait_all_tasks_blocked()
            reading.scope.cancel()
        assert reading.scope.cancelled_caught
        await wait_all_tasks_blocked()
        assert len(files.cancelled) == (window is not None)
        files.held.pop(wire.OpOpenFile).set()
        await wait_all_tasks_blocked()
        assert asked(files) == (ONCE if size == 1 else [wire.OpOpenFile, wire.OpCloseHandle])
        assert talk.connection.active_sessions == 0

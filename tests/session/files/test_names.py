"""Names that are not UTF-8, and paths of the guest as words of its commands."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

import pytest
import trio

from tests.session._fake import begin, talking
from tests.tools.limits import HANG
from trio_console import _wire as wire
from trio_console._errors import ProtocolError

if TYPE_CHECKING:
    from pathlib import Path

    from trio_console import Guest

ODD = b"odd \xff\xc3\xa4"  # a byte that is no UTF-8, and then two that are


@pytest.fixture
def odd(tmp_path: Path) -> bytes:
    """A directory of such a name, with a file and a link of such names."""
    path = os.fsencode(tmp_path) + b"/" + ODD
    os.mkdir(path)
    with open(path + b"/file\xfe", "wb") as file:
        file.write(b"contents")
    os.symlink(b"file\xfe", path + b"/link\xfd")
    return path


def here(path: bytes) -> trio.Path:
    return trio.Path(os.fsdecode(path))


async def test_such_names_are_listed_and_opened_as_on_this_machine(guest: Guest, odd: bytes) -> None:
    there = guest.path(odd)
    assert bytes(there) == odd
    for path in await there.iterdir():
        assert await path.read_bytes() == b"contents"
    names = {bytes(path) for path in await there.iterdir()}
    assert names == {os.fsencode(path) for path in await here(odd).iterdir()}
    assert bytes(await (there / os.fsdecode(b"link\xfd")).readlink()) == b"file\xfe"
    assert bytes(await (there / os.fsdecode(b"link\xfd")).resolve()) == odd + b"/file\xfe"
    assert {bytes(path) for path in await there.glob("f*")} == {odd + b"/file\xfe"}
    assert there.as_uri() == here(odd).as_uri()


async def test_such_a_name_is_that_of_the_error(guest: Guest, odd: bytes) -> None:
    missing = odd + b"/missing\xfc"
    with pytest.raises(FileNotFoundError) as caught:
        await guest.open_file(missing)
    assert os.fsencode(caught.value.filename) == missing


async def test_files_of_such_names_are_made_and_changed(guest: Guest, odd: bytes) -> None:
    there = guest.path(odd) / os.fsdecode(b"new\xfb")
    assert await there.write_text("text") == 4
    moved = await there.rename(guest.path(odd + b"/moved\xfa"))
    await moved.chmod(0o600)
    assert os.stat(odd + b"/moved\xfa").st_mode & 0o777 == 0o600
    await moved.unlink()
    await there.mkdir()
    await there.rmdir()


async def test_words_of_a_command_need_not_be_utf8(guest: Guest, odd: bytes) -> None:
    async def run(run_process: Any) -> Any:
        result = await run_process(
            ["sh", "-c", 'printf "%s|%s|%s" "$1" "$X" "$(pwd)"', "sh", b"arg\xff"],
            env={"X": b"value\xfe", "PATH": os.environ["PATH"]},
            cwd=odd,
            capture_stdout=True,
        )
        return result.stdout

    assert await run(guest.run_process) == await run(trio.run_process) == b"arg\xff|value\xfe|" + odd


async def test_a_program_of_such_a_name_is_run_or_named(guest: Guest, odd: bytes) -> None:
    os.symlink("/bin/echo", odd + b"/prog\xff")
    result = await guest.run_process([odd + b"/prog\xff", "x"], capture_stdout=True)
    assert result.stdout == b"x\n"
    for command, cwd, blamed in (
        ([odd + b"/none\xff"], None, odd + b"/none\xff"),
        (["true"], b"/no\xff", b"/no\xff"),
    ):
        with pytest.raises(FileNotFoundError) as caught:
            await guest.run_process(command, cwd=cwd)
        assert os.fsencode(caught.value.filename) == blamed


async def test_octets_are_sent_only_where_they_are_needed() -> None:
    async with talking(features=[wire.OCTETS]) as talk:
        for path, octets, sent in (("/a", wire.UNSET, "/a"), ("/ä", wire.UNSET, "/ä"), (b"/\xff", True, "/\xff")):
            asked = begin(talk.nursery, talk.guest.path(path).stat)
            id_, request = await talk.agent.expect(wire.FsRequest)
            assert (request.octets, request.op.path) == (octets, sent)
            await talk.agent.send(wire.FsResponse(ok=False, error="no"), id_)
            with pytest.raises(OSError):
                await asked.wait()


async def test_a_name_that_is_no_octets_is_the_agents_mistake() -> None:
    async with talking(features=[wire.OCTETS]) as talk:
        read = begin(talk.nursery, talk.guest.path("/link").readlink)
        id_, _ = await talk.agent.expect(wire.FsRequest)
        await talk.agent.send(wire.FsResponse(ok=True, data=wire.ResultPath("\u0100")), id_)
        with pytest.raises(ProtocolError, match="name"):
            await read.wait()


# --- paths of the guest in commands ---------------------------------------------------------------


async def test_a_path_of_the_guest_is_a_word_of_its_commands(guest: Guest, tmp_path: Path) -> None:
    path = guest.path(tmp_path)
    command = ["sh", "-c", 'printf "%s|%s|%s" "$1" "$X" "$(pwd)"', "sh", path / "a"]
    result = await guest.run_process(command, env={"X": path / "b"}, cwd=path, capture_stdout=True)
    assert result.stdout == f"{tmp_path}/a|{tmp_path}/b|{tmp_path}".encode()
    assert result.args is command
    async with guest.open_process([guest.path("/bin/true")], cwd=path) as process:
        assert await process.wait() == 0
    async with await guest.open_file(await path.joinpath("f").absolute(), "w") as file:
        await file.write("x")


@pytest.mark.parametrize("where", ["command", "cwd", "env", "open_file", "path"])
async def test_a_path_of_another_guest_is_refused(where: str) -> None:
    async with talking() as talk, talking() as other:
        path = other.guest.path("/x")
        with trio.fail_after(HANG), pytest.raises(ValueError, match="another guest"):
            match where:
                case "command":
                    await talk.guest.run_process(["ls", path])
                case "cwd":
                    await talk.guest.run_process(["ls"], cwd=path)
                case "env":
                    await talk.guest.run_process(["ls"], env={"A": path})
                case "open_file":
                    await talk.guest.open_file(path)
                case _:
                    talk.guest.path(path)
        await talk.agent.nothing_more()


@pytest.mark.parametrize("value", [3, True, 1.5, None])
async def test_a_number_is_no_path(value: Any) -> None:
    async with talking() as talk:
        with pytest.raises(TypeError, match="path"):
            await talk.guest.open_file(value)
        with pytest.raises(TypeError, match="path"):
            talk.guest.path(value)
        await talk.agent.nothing_more()

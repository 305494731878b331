"""Arguments are refused as by trio, and with the same errors; and so are hosts and ports."""

from __future__ import annotations

import subprocess
from pathlib import PurePosixPath
from typing import TYPE_CHECKING, Any

import pytest
import trio

from tests.session._fake import talking

if TYPE_CHECKING:
    from pathlib import Path

    from trio_console import Guest


async def refusal(call: Any, *args: Any, **options: Any) -> type[Exception]:
    with pytest.raises((TypeError, ValueError)) as caught:
        await call(*args, **options)
    return caught.type


@pytest.mark.parametrize(
    "options",
    [
        {"stdin": "str"},
        {"capture_stdout": True, "stdout": None},
        {"capture_stdout": True, "stdout": subprocess.DEVNULL},
        {"capture_stderr": True, "stderr": None},
        {"capture_stderr": True, "stderr": subprocess.STDOUT},
        {"stdout": subprocess.PIPE},
        {"stderr": subprocess.PIPE},
        {"stdin": subprocess.PIPE},
        {"cwd": "a\0b"},
        {"env": {"A": "\0"}},
        {"env": {"A=": "x"}},
    ],
    ids=str,
)
async def test_an_argument_is_refused_with_the_error_of_trio(options: dict[str, Any]) -> None:
    async with talking() as talk:
        expected = await refusal(trio.run_process, ["true"], **options)
        assert await refusal(talk.guest.run_process, ["true"], **options) is expected
        await talk.agent.nothing_more()


@pytest.mark.parametrize("command", ["true", b"true"])
async def test_a_line_without_a_shell_is_refused_with_the_error_of_trio(command: Any) -> None:
    async with talking() as talk:
        expected = await refusal(trio.run_process, command)
        assert await refusal(talk.guest.run_process, command) is expected
        await talk.agent.nothing_more()


@pytest.mark.parametrize("command", [["true"], PurePosixPath("/bin/true")], ids=str)
async def test_no_line_for_a_shell_is_refused_with_the_error_of_trio(command: Any) -> None:
    async with talking() as talk:
        expected = await refusal(trio.run_process, command, shell=True)
        for one in (command, talk.guest.path("/bin/true")):
            assert await refusal(talk.guest.run_process, one, shell=True) is expected
        await talk.agent.nothing_more()


async def test_a_command_may_be_a_path_alone(guest: Guest, tmp_path: Path) -> None:
    program = tmp_path / "two words"
    program.write_text("#!/bin/sh\necho $#\n")
    program.chmod(0o700)
    outcome = await trio.run_process(program, capture_stdout=True)
    for command in (program, guest.path(program)):
        result = await guest.run_process(command, capture_stdout=True)
        assert result.stdout == outcome.stdout == b"0\n"
        assert result.args == command


@pytest.mark.parametrize(("host", "port"), [(None, 80), (3, 80), ("h", "80"), ("h", None)])
async def test_a_host_and_a_port_are_refused_with_the_error_of_trio(host: Any, port: Any) -> None:
    async with talking() as talk:
        expected = await refusal(trio.open_tcp_stream, host, port)
        assert await refusal(talk.guest.open_tcp_stream, host, port) is expected
        await talk.agent.nothing_more()


@pytest.mark.parametrize("host", [b"127.0.0.1", "127.0.0.1"])
async def test_a_host_may_be_bytes(guest: Guest, host: str | bytes) -> None:
    [listener] = await trio.open_tcp_listeners(0, host="127.0.0.1")
    async with listener:
        port = listener.socket.getsockname()[1]
        for connect in (trio.open_tcp_stream, guest.open_tcp_stream):
            async with await connect(host, port), await listener.accept():
                pass


async def test_a_start_error_has_the_systems_words_and_a_note_with_the_agents(guest: Guest) -> None:
    with pytest.raises(FileNotFoundError) as expected:
        await trio.run_process(["/no/such/program"])
    with pytest.raises(FileNotFoundError) as caught:
        await guest.run_process(["/no/such/program"])
    assert str(caught.value) == str(expected.value)
    assert caught.value.strerror == expected.value.strerror
    assert "in the guest: spawn" in caught.value.__notes__[0]

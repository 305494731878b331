"""Arguments that are refused before anything is sent."""

from __future__ import annotations

import pathlib
import subprocess
from typing import Any

import pytest
import trio

from tests.session._fake import at_once, begin, talking
from trio_console import UnsupportedByPeer
from trio_console import _wire as wire

PIPE = subprocess.PIPE

BAD_COMMANDS = [
    pytest.param("ls -l", {}, TypeError, "shell=True", id="a string without shell"),
    pytest.param(b"ls", {}, TypeError, "sequence", id="bytes"),
    pytest.param(pathlib.Path("ls"), {"shell": True}, TypeError, "path", id="a path with shell"),
    pytest.param(["ls"], {"shell": True}, TypeError, "one string", id="a sequence with shell"),
    pytest.param([], {}, ValueError, "empty", id="no command"),
    pytest.param([""], {}, ValueError, "empty", id="an empty name"),
    pytest.param(["ls", 3], {}, TypeError, "string", id="a number as an argument"),
    pytest.param(["a\0b"], {}, ValueError, "null", id="a null byte in the command"),
    pytest.param(["ls", "\ud800"], {}, ValueError, "no byte", id="a surrogate that is no byte"),
    pytest.param(["ls", "\udc80"], {}, UnsupportedByPeer, "UTF-8", id="a surrogate for an agent of UTF-8"),
    pytest.param(["ls", b"\xff"], {}, UnsupportedByPeer, "UTF-8", id="bytes for an agent of UTF-8"),
    pytest.param(["ls"], {"env": {"A": b"\xff"}}, UnsupportedByPeer, "UTF-8", id="env for an agent of UTF-8"),
    pytest.param(["ls"], {"cwd": b"\xff"}, UnsupportedByPeer, "UTF-8", id="cwd for an agent of UTF-8"),
    pytest.param(["ls"], {"env": {"A=B": "c"}}, ValueError, "environment", id="an equals sign in a name"),
    pytest.param(["ls"], {"env": {"": "c"}}, ValueError, "environment", id="an empty name in env"),
    pytest.param(["ls"], {"env": {"A": "\0"}}, ValueError, "null", id="a null byte in env"),
    pytest.param(["ls"], {"env": {"A": 3}}, TypeError, "environment", id="a number in env"),
    pytest.param(["ls"], {"cwd": "\0"}, ValueError, "null", id="a null byte in cwd"),
    pytest.param(["ls"], {"user": "\0"}, ValueError, "null", id="a null byte in user"),
    pytest.param(["ls"], {"user": b"root"}, TypeError, "user", id="bytes as user"),
    pytest.param(["ls"], {"rlimits": {"nofiles": 3}}, ValueError, "nofiles", id="an unknown resource"),
    pytest.param(["ls"], {"rlimits": {"nofile": -2}}, ValueError, "soft", id="a negative limit"),
    pytest.param(["ls"], {"rlimits": {"nofile": 2**64}}, ValueError, "soft", id="a limit too large"),
    pytest.param(["ls"], {"rlimits": {"nofile": "many"}}, (TypeError, ValueError), None, id="a text as limit"),
    pytest.param(["ls"], {"tty": True, "rows": -1}, ValueError, "rows", id="negative rows"),
    pytest.param(["ls"], {"tty": True, "cols": 65536}, ValueError, "cols", id="too many columns"),
    pytest.param(["ls"], {"stdin": "text"}, UnicodeError, "stdin", id="text as stdin"),
    pytest.param(["ls"], {"stdin": 3}, TypeError, "descriptors", id="a descriptor as stdin"),
    pytest.param(["ls"], {"stdin": subprocess.STDOUT}, TypeError, "stdin", id="STDOUT as stdin"),
    pytest.param(["ls"], {"stdout": 3}, TypeError, "descriptors", id="a descriptor as stdout"),
    pytest.param(["ls"], {"stdout": subprocess.STDOUT}, TypeError, "stdout", id="STDOUT as stdout"),
    pytest.param(["ls"], {"stderr": b""}, TypeError, "stderr", id="bytes as stderr"),
]


@pytest.mark.parametrize("method", ["run_process", "open_process"])
@pytest.mark.parametrize(("command", "options", "error", "match"), BAD_COMMANDS)
async def test_nonsense_is_refused_and_nothing_is_sent(
    method: str, command: Any, options: dict[str, Any], error: Any, match: str | None
) -> None:
    async def call() -> None:
        if method == "run_process":
            await talk.guest.run_process(command, **options)
        else:
            async with talk.guest.open_process(command, **options):
                raise AssertionError

    async with talking() as talk:
        with pytest.raises(error, match=match):
            await at_once(talk, call)
        await talk.agent.nothing_more()
        assert talk.guest.statistics().active_sessions == 0


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"stdin": PIPE}, "nursery.start"),
        ({"stdout": PIPE}, "nursery.start"),
        ({"stderr": PIPE}, "nursery.start"),
        ({"capture_stdout": True, "stdout": subprocess.DEVNULL}, "capture_stdout"),
        ({"capture_stderr": True, "stderr": subprocess.STDOUT}, "capture_stderr"),
    ],
)
async def test_run_process_refuses_what_trio_refuses(options: dict[str, Any], match: str) -> None:
    async with talking() as talk:
        with pytest.raises(ValueError, match=match):
            await at_once(talk, lambda: talk.guest.run_process(["ls"], **options))
        with pytest.raises(ValueError):
            await trio.run_process(["ls"], **options)
        await talk.agent.nothing_more()


async def test_paths_and_bytes_are_fine_wherever_they_are_utf_8() -> None:
    async with talking() as talk:
        result = begin(
            talk.nursery,
            lambda: talk.guest.run_process(
                [pathlib.Path("/bin/ls"), b"-l", "\N{SNOWMAN}".encode()],
                cwd=pathlib.Path("/tmp"),
                capture_stdout=True,
                capture_stderr=True,
            ),
        )
        id_, request = await talk.agent.expect(wire.ExecRequest)
        assert (request.cmd, request.args, request.cwd) == ("/bin/ls", ["-l", "\N{SNOWMAN}"], "/tmp")
        await talk.agent.send(wire.ExecFailed(kind="not_found", errno=2, message="m"), id_)
        with pytest.raises(FileNotFoundError) as caught:
            await result.wait()
        assert caught.value.filename == "/bin/ls"

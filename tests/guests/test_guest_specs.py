"""Guests that cannot be opened, objects that are not a console, and arguments that are not valid."""

from __future__ import annotations

import errno
import os
import socket
import sys
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

import pytest
import trio

from tests.tools.limits import HANG
from trio_console import CommandGuest, GuestLostError, ProcessGuest, ProtocolError, SocketGuest, open_guest
from trio_console.agent import serve_agent
from trio_console.testing import nothing_left_behind

if TYPE_CHECKING:
    from collections.abc import Callable
    from contextlib import AbstractAsyncContextManager

    from trio_console import Guest
    from trio_console._guests.spec import GuestSpec

    OpenGuest = Callable[..., AbstractAsyncContextManager[Guest]]

pytestmark = pytest.mark.usefixtures("no_process_is_left")


async def fails_to_open(
    spec: GuestSpec, error: type[Exception] | tuple[type[Exception], ...], **options: Any
) -> Any:
    with pytest.raises(error) as caught, trio.fail_after(HANG):
        async with open_guest(spec, **options):
            raise AssertionError
    return caught.value


async def test_a_command_that_exits_before_it_is_ready_says_why() -> None:
    spec = CommandGuest(["sh", "-c", "echo no such machine >&2; exit 3"])
    error = await fails_to_open(spec, GuestLostError)
    assert "exited with status 3" in error.reason
    assert "no such machine" in error.reason


async def test_a_command_that_is_killed_before_it_is_ready_says_so() -> None:
    error = await fails_to_open(CommandGuest(["sh", "-c", "kill -9 $$"]), GuestLostError)
    assert "killed by SIGKILL" in error.reason


@pytest.mark.parametrize(
    "command",
    [
        "echo some words that are garbage",
        "printf '\\377\\376\\375\\374\\373\\372\\371\\370'",
        "printf '\\0\\0\\0\\1garbage'",
        "yes Welcome to the machine | head -c 1000000; exec sleep 1000",
        "printf '\\0\\0\\0\\10\\0\\0\\0\\0\\0abc'; exec sleep 1000",
    ],
)
async def test_garbage_on_the_console_is_an_error_at_once(command: str) -> None:
    began = trio.current_time()
    await fails_to_open(CommandGuest(["sh", "-c", command]), (ProtocolError, GuestLostError))
    assert trio.current_time() - began < 20  # of the 60 seconds a guest has to become ready


async def test_a_guest_that_says_nothing_is_given_up_after_the_ready_timeout() -> None:
    error = await fails_to_open(CommandGuest(["sleep", "1000"]), GuestLostError, ready_timeout=0.1)
    assert "not ready within 0.1 seconds" in error.reason


async def test_opening_can_be_cancelled() -> None:
    with trio.fail_after(HANG), trio.move_on_after(0.1) as scope:
        async with open_guest(CommandGuest(["sleep", "1000"])):
            raise AssertionError
    assert scope.cancelled_caught


async def test_a_command_that_does_not_exist_is_a_file_not_found_error() -> None:
    error = await fails_to_open(CommandGuest(["/no/such/command"]), FileNotFoundError)
    assert error.filename == "/no/such/command"


async def test_a_socket_that_does_not_exist_is_a_file_not_found_error() -> None:
    error = await fails_to_open(SocketGuest("/no/such/socket"), FileNotFoundError)
    assert error.filename == "/no/such/socket"


async def test_a_socket_nobody_listens_on_is_a_connection_refused_error(tmp_path: Any) -> None:
    path = str(tmp_path / "dead")
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(path)
    error = await fails_to_open(SocketGuest(path), ConnectionRefusedError)
    assert error.filename == path


@pytest.mark.parametrize("size", [95, 200])
async def test_a_name_that_is_too_long_for_an_address_is_a_clear_error(size: int) -> None:
    path = "/tmp/" + "x" * size
    error = await fails_to_open(SocketGuest(path), OSError)
    assert error.filename == path
    assert "too long" in str(error) if size > 100 else "No such file" in str(error)
    assert error.errno == (errno.ENAMETOOLONG if size > 100 else errno.ENOENT)


@pytest.mark.parametrize("size", [99, 100, 101, 107, 108, 200, 1000])
@pytest.mark.parametrize("kind", [str, bytes])
async def test_the_path_of_a_console_may_be_longer_than_an_address(kind: Any, size: int) -> None:
    with TemporaryDirectory(dir="/tmp") as place:
        rest = size - len(place) - len("/console")
        parts = ["d" * 80] * (rest // 81) + ["e" * (rest % 81 - 1)]
        deep = os.path.join(place, *filter(None, parts))
        os.makedirs(deep)
        path = os.path.join(deep, "console")
        assert abs(len(path) - size) <= 1
        directory = os.open(deep, os.O_PATH)
        with trio.socket.socket(socket.AF_UNIX) as listener:
            await listener.bind(f"/proc/self/fd/{directory}/console")
            os.close(directory)
            listener.listen()
            async with trio.open_nursery() as nursery:

                async def serve() -> None:
                    console, _ = await listener.accept()
                    await serve_agent(trio.SocketStream(console))

                nursery.start_soon(serve)
                with trio.fail_after(HANG):
                    async with open_guest(SocketGuest(os.fsencode(path) if kind is bytes else path)) as guest:
                        await guest.ping()


async def test_a_socket_whose_owner_hangs_up_is_a_lost_guest(tmp_path: Any) -> None:
    path = str(tmp_path / "console")
    with trio.socket.socket(socket.AF_UNIX) as listener:
        await listener.bind(path)
        listener.listen()

        async def hang_up() -> None:
            console, _ = await listener.accept()
            console.close()

        async with trio.open_nursery() as nursery:
            nursery.start_soon(hang_up)
            await fails_to_open(SocketGuest(path), GuestLostError)


async def test_a_greeting_before_the_console_is_shown() -> None:
    command = ["sh", "-c", "echo Welcome to machine-7; exec cat >/dev/null"]
    error = await fails_to_open(CommandGuest(command), ProtocolError)
    assert "text: 'Welcome to machine-7" in str(error)


SPEAKS_GARBAGE_LATER = """
import os, sys
from trio_console import _wire as wire
os.write(1, wire.encode(wire.Ready(boot_time_ns=1, init_time_ns=1, ready_time_ns=1)))
decoder = wire.FrameDecoder()
while not any(wire.peek_type(frame.body) == "core.ping" for frame in decoder):
    decoder.feed(os.read(0, 1 << 16))
os.write(1, b"\\xff" * 100)
while os.read(0, 1 << 16): pass
"""


async def test_a_guest_that_is_out_of_step_ends_when_its_console_is_closed() -> None:
    with trio.fail_after(HANG):
        async with open_guest(CommandGuest([sys.executable, "-c", SPEAKS_GARBAGE_LATER]), grace=HANG) as guest:
            with pytest.raises(GuestLostError, match="out of step") as caught:
                await guest.ping()
            assert isinstance(caught.value.__cause__, ProtocolError)


@pytest.mark.parametrize(
    ("make", "error"),
    [
        (lambda: CommandGuest("ssh host"), TypeError),  # type: ignore[arg-type]
        (lambda: CommandGuest([]), ValueError),
        (lambda: SocketGuest(3), TypeError),  # type: ignore[arg-type]
        (lambda: ProcessGuest(workers="fibers"), ValueError),  # type: ignore[arg-type]
        (lambda: CommandGuest(["cat"], workers="thread"), ValueError),  # type: ignore[arg-type]
        (lambda: SocketGuest("console", workers=True), ValueError),  # type: ignore[arg-type]
    ],
)
def test_a_guest_that_makes_no_sense_is_refused(make: Callable[[], object], error: type[Exception]) -> None:
    with pytest.raises(error):
        make()


async def test_what_is_no_guest_is_refused() -> None:
    with pytest.raises(TypeError, match="ProcessGuest"):
        async with open_guest("agent.sock"):  # type: ignore[arg-type]
            raise AssertionError
    with pytest.raises(ValueError, match="unknown bootstrap field"):
        async with open_guest(bootstrap={"usr": "root"}):
            raise AssertionError


@pytest.mark.parametrize("spec", [ProcessGuest(), CommandGuest(["cat"])])
async def test_a_console_that_cannot_be_opened_leaves_no_descriptor(
    spec: GuestSpec, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail() -> None:
        raise OSError(24, "Too many open files")

    monkeypatch.setattr("trio_console._console.devices.Bell", fail)
    error = await fails_to_open(spec, OSError)
    assert error.errno == 24


@pytest.mark.parametrize(("spec", "pipes"), [(ProcessGuest(), 1), (CommandGuest(["cat"]), 3)])
async def test_a_guest_whose_pipes_cannot_all_be_made_leaves_none(
    spec: GuestSpec, pipes: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    pipe = os.pipe
    left = 0

    def few() -> tuple[int, int]:
        nonlocal left
        if not left:
            raise OSError(24, "Too many open files")
        left -= 1
        return pipe()

    monkeypatch.setattr(os, "pipe", few)
    for number in range(pipes):
        left = number
        with nothing_left_behind():
            error = await fails_to_open(spec, OSError)
        assert error.errno == 24
        assert left == 0

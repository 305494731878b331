"""An agent that waits for its host, on a Unix socket or on the socket of a virtual machine."""

from __future__ import annotations

import socket
import stat
import subprocess
import sys
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, Self

import pytest
import trio

from tests.tools.limits import HANG
from trio_console import SocketGuest, open_guest
from trio_console.agent import _main
from trio_console.agent._system import console

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

AGENT = [sys.executable, "-P", "-m", "trio_console.agent"]


@pytest.fixture
async def agent(tmp_path: Path) -> AsyncIterator[subprocess.Popen[bytes]]:
    with subprocess.Popen([*AGENT, "--listen", str(tmp_path / "socket")]) as process:  # noqa: ASYNC220
        try:
            yield process
        finally:
            process.kill()


async def appears(path: Path) -> None:
    with trio.fail_after(HANG):
        while not path.exists():
            await trio.sleep(0.001)


async def test_a_host_that_comes_later_is_served_and_nothing_is_left(
    agent: subprocess.Popen[bytes], tmp_path: Path
) -> None:
    path = tmp_path / "socket"
    await appears(path)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    with trio.fail_after(HANG):
        async with open_guest(SocketGuest(path)) as guest:
            assert list(tmp_path.iterdir()) == []
            done = await guest.run_process(["echo", "served"], capture_stdout=True)
            assert done.stdout == b"served\n"
    assert agent.wait(HANG) == 0


async def test_the_socket_of_an_agent_that_was_killed_is_replaced(tmp_path: Path) -> None:
    path = tmp_path / "socket"
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(path))
    with subprocess.Popen([*AGENT, "--listen", str(path)]) as process:  # noqa: ASYNC220
        try:
            with trio.fail_after(HANG):
                with socket.socket(socket.AF_UNIX) as host:
                    while host.connect_ex(str(path)):
                        await trio.sleep(0.001)
        finally:
            process.kill()


@pytest.mark.parametrize("what", ["listener", "file"])
def test_what_another_has_there_is_left(tmp_path: Path, what: str) -> None:
    path = tmp_path / "socket"
    with socket.socket(socket.AF_UNIX) as other:
        if what == "file":
            path.write_text("theirs")
        else:
            other.bind(str(path))
            other.listen()
        done = subprocess.run(
            [*AGENT, "--listen", str(path)], capture_output=True, text=True, timeout=HANG, check=False
        )
    assert done.returncode == 1
    assert "Address already in use" in done.stderr
    assert [entry.name for entry in tmp_path.iterdir()] == ["socket"]


def test_a_path_may_be_long(tmp_path: Path) -> None:
    directory = tmp_path / ("long" * 20) / ("longer" * 20)
    directory.mkdir(parents=True)
    with subprocess.Popen([*AGENT, "--listen", str(directory / "socket")]) as process:
        while not (directory / "socket").exists():
            assert process.poll() is None
        process.kill()


class VirtualSocket:
    """Stands in for a socket of the family AF_VSOCK, which only a virtual machine with the device has.

    It is a double at the call that makes the socket: what the kernel does with such an address is not tested here.
    """

    def __init__(self, said: list[Any], host: socket.socket, family: int) -> None:
        said.append(("socket", family))
        self._said = said
        self._host = host

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._said.append("close")

    def bind(self, address: object) -> None:
        self._said.append(("bind", address))

    def listen(self, number: int) -> None:
        self._said.append(("listen", number))

    def accept(self) -> tuple[socket.socket, tuple[int, int]]:
        return self._host, (2, 4711)


async def test_the_host_of_a_virtual_machine_comes_to_a_port(monkeypatch: pytest.MonkeyPatch) -> None:
    said: list[Any] = []
    host, ours = socket.socketpair()
    double = SimpleNamespace(
        AF_VSOCK=40, VMADDR_CID_ANY=2**32 - 1, socket=lambda family: VirtualSocket(said, ours, family)
    )
    monkeypatch.setattr(console, "socket", double)
    with host:
        stream = console.accept_vsock(1024)
        assert said == [("socket", 40), ("bind", (2**32 - 1, 1024)), ("listen", 1), "close"]
        await stream.send_all(b"ready")
        assert host.recv(5) == b"ready"
        await stream.aclose()


@pytest.mark.parametrize(
    ("arguments", "off"), [(["--vsock", "1024"], True), (["--port", "/dev/x"], True), (["--listen", "/x"], False)]
)
def test_the_first_process_of_a_machine_turns_it_off(
    arguments: list[str], off: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    # (In a program of its own, because it takes over signals.)
    program = f"""
import os, sys
from trio_console.agent import _main
os.getpid = lambda: 1
_main._open_console = lambda arguments: None
async def serve(*_args): return 0
async def flush(): print("flushed")
_main._serve, _main.flush_disks, _main.power_off = serve, flush, lambda: print("off")
sys.exit(_main.main({arguments!r}))
"""
    assert _main.power_off
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=HANG, check=True
    )
    assert done.stdout.split() == (["flushed", "off"] if off else [])

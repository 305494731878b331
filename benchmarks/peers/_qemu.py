"""qemu-ga, the guest agent of QEMU: JSON over a Unix socket here, in a machine over a virtio port."""

from __future__ import annotations

import base64
import contextlib
import json
import pathlib
import socket
import subprocess
import tempfile
import time
from typing import TYPE_CHECKING, Any, Final, final

from benchmarks.peers._system import MIB, file_in_memory, needed, rate, writer

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

__all__ = ["QEMU_GA", "qemu_ga"]

#: Bytes of output of one command. The agent keeps them until they are asked for, and drops what is over 16 MiB.
_OUTPUT: Final = 8 * MIB

#: Bytes of a file in one request. (The agent allows 48 MiB, and becomes slower.)
_PIECE: Final = MIB

_START: Final = 20


@final
class _Agent:
    """A connection to one; it answers requests one after the other."""

    def __init__(self, connection: socket.socket) -> None:
        self._connection: Final = connection
        self._lines: Final = connection.makefile("rb")

    def __call__(self, request: str, /, **arguments: object) -> Any:
        message = {"execute": request, "arguments": {name.replace("_", "-"): of for name, of in arguments.items()}}
        self._connection.sendall(json.dumps(message).encode() + b"\n")
        answer = json.loads(self._lines.readline())
        if "return" not in answer:
            raise RuntimeError(f"{request}: {answer}")
        return answer["return"]

    def run(self, *command: str, data: bytes = b"") -> bytes:
        """Run a command to its end, of which the agent does not tell: it has to be asked again and again."""
        given = {"input_data": base64.b64encode(data).decode()} if data else {}
        pid = self("guest-exec", path=command[0], arg=command[1:], capture_output=True, **given)["pid"]
        while not (status := self("guest-exec-status", pid=pid))["exited"]:
            pass
        return base64.b64decode(status.get("out-data", ""))


@contextlib.contextmanager
def _agent() -> Iterator[_Agent]:
    with tempfile.TemporaryDirectory() as folder:
        path = str(pathlib.Path(folder) / "agent.sock")
        command = [needed("qemu-ga", "qemu-guest-agent"), "-m", "unix-listen", "-p", path, "-t", folder]
        with subprocess.Popen(command, stdin=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
            try:
                with socket.socket(socket.AF_UNIX) as connection:
                    _connect(connection, path, process)
                    yield _Agent(connection)
            finally:
                process.terminate()


def _connect(connection: socket.socket, path: str, process: subprocess.Popen[bytes]) -> None:
    end = time.monotonic() + _START
    while True:
        try:
            connection.connect(path)
        except OSError:
            if process.poll() is not None or time.monotonic() > end:
                raise
            time.sleep(0.01)
        else:
            return


def _repeated(n: int, call: Callable[[], object]) -> Sequence[float]:
    call()
    seconds = []
    for _ in range(n):
        start = time.perf_counter()
        call()
        seconds.append(time.perf_counter() - start)
    return seconds


def _no_op(agent: _Agent, n: int) -> Sequence[float]:
    return _repeated(n, lambda: agent("guest-ping"))


def _true(agent: _Agent, n: int) -> Sequence[float]:
    return _repeated(n, lambda: agent.run("true"))


def _stdout(agent: _Agent, nbytes: int) -> Sequence[float]:
    def some() -> int:
        return len(agent.run(*writer(_OUTPUT).split()))

    return _moved(nbytes, _OUTPUT, some)


def _through_cat(agent: _Agent, nbytes: int) -> Sequence[float]:
    data = bytes(_PIECE)
    return _moved(nbytes, _PIECE, lambda: len(agent.run("cat", data=data)))


def _moved(nbytes: int, piece: int, some: Callable[[], int]) -> Sequence[float]:
    start = time.perf_counter()
    total = sum(some() for _ in range(nbytes // piece))
    return [rate(total, nbytes // piece * piece, start)]


def _file_read(agent: _Agent, nbytes: int) -> Sequence[float]:
    with file_in_memory(nbytes) as path:
        handle = agent("guest-file-open", path=path, mode="r")

        def some() -> int:
            return len(base64.b64decode(agent("guest-file-read", handle=handle, count=_PIECE)["buf-b64"]))

        speed = _moved(nbytes, _PIECE, some)
        agent("guest-file-close", handle=handle)
        return speed


def _file_write(agent: _Agent, nbytes: int) -> Sequence[float]:
    data = bytes(_PIECE)
    with file_in_memory(0) as path:
        handle = agent("guest-file-open", path=path, mode="w")

        def some() -> int:
            written = agent("guest-file-write", handle=handle, buf_b64=base64.b64encode(data).decode())
            return int(written["count"])

        speed = _moved(nbytes, _PIECE, some)
        agent("guest-file-close", handle=handle)
        return speed


#: What is measured with it, by the name of the row. (It has no streams, so there is no `cat` that stays.)
QEMU_GA: Final[dict[str, Callable[[_Agent, int], Sequence[float]]]] = {
    "no-op": _no_op,
    "true": _true,
    "stdout": _stdout,
    "through-cat": _through_cat,
    "file-read": _file_read,
    "file-write": _file_write,
}


def qemu_ga(what: str, size: int) -> Sequence[float]:
    """One turn of a row with qemu-ga."""
    with _agent() as agent:
        return QEMU_GA[what](agent, size)

"""Commands and files over ssh: asyncssh at both ends, asyncssh to OpenSSH's sshd, and OpenSSH at both ends.

All of it on this machine's loopback, with keys and a configuration of its own in a temporary folder. ssh encrypts
what it carries, and a guest's console does not: the results say so.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import pathlib
import socket
import subprocess
import sys
import tempfile
import time
from typing import TYPE_CHECKING, Any, Final

import asyncssh

from benchmarks.peers._system import MIB, PIECE, file_in_memory, needed, rate, writer

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence

__all__ = ["OPENSSH", "OVER_ASYNCSSH", "both_asyncssh", "both_openssh", "to_sshd"]

#: Seconds for a server to listen.
_START: Final = 20

#: An ssh server of asyncssh, in a process of its own, as the agent is one: it runs commands and serves files. (It
#: moves the bytes itself: what asyncssh redirects loses some at the end now and then.)
_SERVER: Final = """
import asyncio, sys
import asyncssh

async def pump(reader, writer):
    while data := await reader.read(262144):
        writer.write(data)
        await writer.drain()

async def feed(reader, writer):
    await pump(reader, writer)
    writer.close()

async def run(process):
    child = await asyncio.create_subprocess_shell(process.command, limit=262144, stdin=-1, stdout=-1, stderr=-1)
    feeding = asyncio.create_task(feed(process.stdin, child.stdin))
    await asyncio.gather(pump(child.stdout, process.stdout), pump(child.stderr, process.stderr))
    process.exit(await child.wait())
    feeding.cancel()

async def main(folder):
    server = await asyncssh.listen(
        "127.0.0.1", 0, server_host_keys=[f"{folder}/host"], authorized_client_keys=f"{folder}/user.pub",
        process_factory=run, sftp_factory=True, encoding=None,
    )
    print(server.get_port(), flush=True)
    await asyncio.get_running_loop().create_future()

asyncio.run(main(sys.argv[1]))
"""

_SSHD_CONFIG: Final = """
ListenAddress 127.0.0.1
Port {port}
HostKey {folder}/host
AuthorizedKeysFile {folder}/user.pub
PidFile none
StrictModes no
UsePAM no
PasswordAuthentication no
KbdInteractiveAuthentication no
PermitRootLogin yes
MaxSessions 100
Subsystem sftp internal-sftp
"""

_SSH_CONFIG: Final = """
Host guest
    HostName 127.0.0.1
    Port {port}
    IdentityFile {folder}/user
    IdentitiesOnly yes
    UserKnownHostsFile {folder}/known
    StrictHostKeyChecking yes
    ControlPath {folder}/control
    BatchMode yes
    LogLevel ERROR
"""


# --- servers --------------------------------------------------------------------------------------


@contextlib.contextmanager
def _folder() -> Iterator[pathlib.Path]:
    """A folder with the keys of a host and of a user."""
    with tempfile.TemporaryDirectory() as name:
        folder = pathlib.Path(name)
        for key in ("host", "user"):
            made = asyncssh.generate_private_key("ssh-ed25519")
            made.write_private_key(str(folder / key))
            made.write_public_key(str(folder / f"{key}.pub"))
            (folder / key).chmod(0o600)
        yield folder


@contextlib.contextmanager
def _ended(process: subprocess.Popen[bytes]) -> Iterator[None]:
    with process:
        try:
            yield
        finally:
            process.terminate()
            try:
                process.wait(_START)
            except subprocess.TimeoutExpired:
                process.kill()


@contextlib.contextmanager
def _asyncssh_server(folder: pathlib.Path) -> Iterator[int]:
    command = [sys.executable, "-c", _SERVER, str(folder)]
    process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE)
    with _ended(process):
        assert process.stdout is not None
        yield int(process.stdout.readline())


@contextlib.contextmanager
def _sshd(folder: pathlib.Path) -> Iterator[int]:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    (folder / "sshd_config").write_text(_SSHD_CONFIG.format(port=port, folder=folder))
    if os.geteuid() == 0:
        os.makedirs("/run/sshd", mode=0o755, exist_ok=True)  # it changes its root to this empty folder
    sshd = needed("sshd", "openssh-server")
    process = subprocess.Popen([sshd, "-D", "-e", "-q", "-f", str(folder / "sshd_config")])
    with _ended(process):
        end = time.monotonic() + _START
        while True:
            try:
                socket.create_connection(("127.0.0.1", port)).close()
            except ConnectionRefusedError:
                if process.poll() is not None or time.monotonic() > end:
                    raise RuntimeError(f"{sshd} does not listen (status {process.returncode})") from None
                time.sleep(0.01)
            else:
                yield port
                return


@contextlib.asynccontextmanager
async def _connected(server: Callable[[pathlib.Path], Any]) -> AsyncIterator[asyncssh.SSHClientConnection]:
    with _folder() as folder, server(folder) as port:
        host_key = asyncssh.import_known_hosts(f"[127.0.0.1]:{port} {(folder / 'host.pub').read_text()}")
        async with asyncssh.connect(
            "127.0.0.1",
            port,
            username="root",
            client_keys=[str(folder / "user")],
            known_hosts=host_key,
            config=None,
        ) as connection:
            yield connection


# --- asyncssh -------------------------------------------------------------------------------------


async def _repeated(n: int, call: Callable[[], Awaitable[object]]) -> list[float]:
    await call()
    seconds = []
    for _ in range(n):
        start = time.perf_counter()
        await call()
        seconds.append(time.perf_counter() - start)
    return seconds


async def _no_op(connection: asyncssh.SSHClientConnection, n: int) -> list[float]:
    async def request() -> None:
        # What its keep-alive sends; every server answers it. (There is no public call for it.)
        await connection._make_global_request(b"keepalive@openssh.com")

    return await _repeated(n, request)


async def _true(connection: asyncssh.SSHClientConnection, n: int) -> list[float]:
    return await _repeated(n, lambda: connection.run("true", check=True))


async def _cat(connection: asyncssh.SSHClientConnection, n: int) -> list[float]:
    data = bytes(64)
    async with connection.create_process("cat", encoding=None) as process:

        async def echo() -> None:
            process.stdin.write(data)
            await process.stdout.readexactly(len(data))

        seconds = await _repeated(n, echo)
        process.stdin.write_eof()
    return seconds


async def _stdout(connection: asyncssh.SSHClientConnection, nbytes: int) -> list[float]:
    async with connection.create_process(writer(nbytes), encoding=None) as process:
        start = time.perf_counter()
        total = 0
        while data := await process.stdout.read(PIECE):
            total += len(data)
        return [rate(total, nbytes, start)]


async def _through_cat(connection: asyncssh.SSHClientConnection, nbytes: int) -> list[float]:
    async with connection.create_process("cat", encoding=None) as process:
        start = time.perf_counter()
        sending = asyncio.create_task(_send(process.stdin, nbytes))
        total = 0
        while data := await process.stdout.read(PIECE):
            total += len(data)
        await sending
        return [rate(total, nbytes, start)]


async def _send(stdin: asyncssh.SSHWriter[bytes], nbytes: int) -> None:
    data = bytes(PIECE)
    for _ in range(nbytes // PIECE):
        stdin.write(data)
        await stdin.drain()
    stdin.write_eof()


async def _file_read(connection: asyncssh.SSHClientConnection, nbytes: int) -> list[float]:
    with file_in_memory(nbytes) as path:
        async with connection.start_sftp_client() as sftp, sftp.open(path, "rb") as file:
            start = time.perf_counter()
            total = 0
            while data := await file.read(MIB):
                total += len(data)
            return [rate(total, nbytes, start)]


async def _file_write(connection: asyncssh.SSHClientConnection, nbytes: int) -> list[float]:
    data = bytes(MIB)
    with file_in_memory(0) as path:
        async with connection.start_sftp_client() as sftp, sftp.open(path, "wb") as file:
            start = time.perf_counter()
            for _ in range(nbytes // MIB):
                await file.write(data)
            return [rate(await file.tell(), nbytes, start)]


#: What is measured over a connection of asyncssh, by the name of the row.
OVER_ASYNCSSH: Final[dict[str, Callable[[asyncssh.SSHClientConnection, int], Awaitable[Sequence[float]]]]] = {
    "no-op": _no_op,
    "true": _true,
    "cat": _cat,
    "stdout": _stdout,
    "through-cat": _through_cat,
    "file-read": _file_read,
    "file-write": _file_write,
}


def _over_asyncssh(server: Callable[[pathlib.Path], Any], what: str, size: int) -> Sequence[float]:
    async def main() -> Sequence[float]:
        async with _connected(server) as connection:
            return await OVER_ASYNCSSH[what](connection, size)

    return asyncio.run(main())


def both_asyncssh(what: str, size: int) -> Sequence[float]:
    """One turn of a row with asyncssh at both ends."""
    return _over_asyncssh(_asyncssh_server, what, size)


def to_sshd(what: str, size: int) -> Sequence[float]:
    """One turn of a row with asyncssh here and OpenSSH's sshd there."""
    return _over_asyncssh(_sshd, what, size)


# --- OpenSSH --------------------------------------------------------------------------------------


@contextlib.contextmanager
def _openssh() -> Iterator[list[str]]:
    """One connection of OpenSSH's client, which all commands share; how a command is begun."""
    with _folder() as folder, _sshd(folder) as port:
        (folder / "known").write_text(f"[127.0.0.1]:{port} {(folder / 'host.pub').read_text()}")
        (folder / "config").write_text(_SSH_CONFIG.format(port=port, folder=folder))
        ssh = [needed("ssh", "openssh-client"), "-F", str(folder / "config")]
        master = subprocess.Popen([*ssh, "-M", "-N", "guest"], stdin=subprocess.DEVNULL)
        with _ended(master):
            end = time.monotonic() + _START
            while subprocess.run([*ssh, "-O", "check", "guest"], capture_output=True, check=False).returncode:
                if master.poll() is not None or time.monotonic() > end:
                    raise RuntimeError("ssh does not connect to its own sshd")
                time.sleep(0.01)
            yield ssh


def _ssh_true(ssh: list[str], n: int) -> Sequence[float]:
    seconds = []
    for _ in range(n):
        start = time.perf_counter()
        subprocess.run([*ssh, "guest", "true"], stdin=subprocess.DEVNULL, check=True)
        seconds.append(time.perf_counter() - start)
    return seconds


def _ssh_cat(ssh: list[str], n: int) -> Sequence[float]:
    data = bytes(64)
    seconds = []
    with _command(ssh, "cat") as process:
        assert process.stdin is not None
        assert process.stdout is not None
        for _ in range(n + 1):
            start = time.perf_counter()
            process.stdin.write(data)
            got = 0
            while got < len(data):
                got += len(process.stdout.read(len(data) - got))
            seconds.append(time.perf_counter() - start)
    return seconds[1:]


def _ssh_stdout(ssh: list[str], nbytes: int) -> Sequence[float]:
    with _command(ssh, writer(nbytes)) as process:
        return [_received(process, nbytes)]


def _ssh_through_cat(ssh: list[str], nbytes: int) -> Sequence[float]:
    with file_in_memory(nbytes) as path, open(path, "rb") as file:
        with subprocess.Popen([*ssh, "guest", "cat"], stdin=file, stdout=subprocess.PIPE, bufsize=0) as process:
            return [_received(process, nbytes)]


@contextlib.contextmanager
def _command(ssh: list[str], command: str) -> Iterator[subprocess.Popen[bytes]]:
    with subprocess.Popen(
        [*ssh, "guest", command], stdin=subprocess.PIPE, stdout=subprocess.PIPE, bufsize=0
    ) as process:
        yield process


def _received(process: subprocess.Popen[bytes], nbytes: int) -> float:
    assert process.stdout is not None
    start = time.perf_counter()
    total = 0
    while data := process.stdout.read(PIECE):
        total += len(data)
    return rate(total, nbytes, start)


def _sftp_read(ssh: list[str], nbytes: int) -> Sequence[float]:
    with file_in_memory(nbytes) as there, file_in_memory(0) as here:
        return [_sftp(ssh, f"get {there} {here}", here, nbytes)]


def _sftp_write(ssh: list[str], nbytes: int) -> Sequence[float]:
    with file_in_memory(nbytes) as here, file_in_memory(0) as there:
        return [_sftp(ssh, f"put {here} {there}", there, nbytes)]


def _sftp(ssh: list[str], command: str, target: str, nbytes: int) -> float:
    """One command of sftp, which shares the connection; its start is a part of the time, as for its users."""
    sftp = needed("sftp", "openssh-client")
    start = time.perf_counter()
    subprocess.run(
        [sftp, *ssh[1:], "-q", "-b", "-", "guest"], input=command.encode(), check=True, stdout=subprocess.DEVNULL
    )
    return rate(os.path.getsize(target), nbytes, start)


#: What is measured with OpenSSH's programs, by the name of the row.
OPENSSH: Final[dict[str, Callable[[list[str], int], Sequence[float]]]] = {
    "true": _ssh_true,
    "cat": _ssh_cat,
    "stdout": _ssh_stdout,
    "through-cat": _ssh_through_cat,
    "file-read": _sftp_read,
    "file-write": _sftp_write,
}


def both_openssh(what: str, size: int) -> Sequence[float]:
    """One turn of a row with OpenSSH at both ends, over one connection."""
    with _openssh() as ssh:
        return OPENSSH[what](ssh, size)

"""Machines with microsandbox's own agent: QEMU, without KVM, boots the kernel and the agent out of its wheels.

The wheels come from the package index when a test first needs them, and nothing of them is kept in the repository.
What is made of them stays in the user's cache, by version. QEMU, its file daemon and a static busybox are
installed where they are missing, which needs root, as does the daemon.
"""

from __future__ import annotations

import ctypes
import fcntl
import os
import pathlib
import struct
import subprocess
import sys
import tempfile
import zipfile
from contextlib import asynccontextmanager, contextmanager
from typing import IO, TYPE_CHECKING, Final, NamedTuple

import trio

from tests.tools.installing import install
from tests.tools.limits import HANG

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator

__all__ = ["VERSIONS", "machine"]

VERSIONS: Final = ("0.6.14", "0.7.11")

#: Raised by hand when the files are made in another way, so that those in the cache are made again.
_FORM: Final = 1

#: Seconds for a download or an installation.
_FETCH_TIME: Final = 300

_QEMU: Final = "qemu-system-x86_64"
_VIRTIOFSD: Final = "/usr/lib/qemu/virtiofsd"  # the old one, of Debian 12
_BUSYBOX: Final = "/bin/busybox"

#: Runs a program until its stdin ends, which it does also when the tests are killed: then the program is, too.
_WITH_US: Final = 'exec 3<&0; "$@" & program=$!; { read _ <&3; kill $program; } & wait $program'

#: The commands of the guest: what agentd has no need of, and tests do.
_APPLETS: Final = (
    *(
        "sh",
        "cat",
        "sleep",
        "echo",
        "true",
        "false",
        "env",
        "pwd",
        "id",
        "head",
        "wc",
        "tty",
        "stty",
        "kill",
        "uname",
    ),
    *("nc", "mount", "ifconfig", "grep", "mkdir", "dd", "yes", "seq"),
)

#: PID 1, until the agent takes its place. The agent ends if no host is connected to its port, so QEMU starts the
#: machine only then.
_INIT: Final = """#!/bin/sh
mount -t devtmpfs dev /dev
mount -t proc proc /proc
mount -t sysfs sys /sys
until grep -qx agent /sys/class/virtio-ports/*/name 2>/dev/null; do sleep 0.05; done
ifconfig lo 127.0.0.1 up
export PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin HOME=/root
exec /sbin/agentd
"""


class _Files(NamedTuple):
    kernel: pathlib.Path
    initrd: pathlib.Path


# What a machine is made of


def _files(version: str) -> _Files:
    """The kernel and the initial file system of a version, made if they are not in the cache.

    What else a machine needs is installed first.
    """
    cache = pathlib.Path(os.environ.get("XDG_CACHE_HOME") or pathlib.Path.home() / ".cache", "trio_console-tests")
    cache.mkdir(parents=True, exist_ok=True)
    made = cache / f"agentd-{version}-{_FORM}"
    with _locked(cache / "lock"):
        install(_QEMU, "qemu-system-x86")
        install(_VIRTIOFSD, "qemu-system-common")
        install(_BUSYBOX, "busybox-static")
        if not made.exists():
            with tempfile.TemporaryDirectory(dir=cache) as directory:
                _make(version, pathlib.Path(directory))
                pathlib.Path(directory, "made").rename(made)
    return _Files(made / "kernel", made / "initrd")


@contextmanager
def _locked(path: pathlib.Path) -> Iterator[None]:
    """Let one process at a time install and make things."""
    with path.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _make(version: str, directory: pathlib.Path) -> None:
    (directory / "made").mkdir()
    wheel = _download(version, directory)
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
        [program] = [name for name in names if name.endswith("/bin/msb")]
        [library] = [name for name in names if "/lib/libkrunfw.so" in name]
        agent = _agent_in(archive.read(program))
        unpacked = archive.extract(library, directory)
    # In a process of its own, because the library stays loaded where it is used.
    code = "import sys; from tests.tools.agentd import write_kernel; write_kernel(*sys.argv[1:])"
    _call([sys.executable, "-c", code, unpacked, str(directory / "made" / "kernel")])
    (directory / "made" / "initrd").write_bytes(_file_system(agent, pathlib.Path(_BUSYBOX).read_bytes()))


def _download(version: str, directory: pathlib.Path) -> pathlib.Path:
    wanted = f"microsandbox=={version}"
    _call(
        [
            sys.executable,
            "-m",
            "pip",
            "download",
            "-q",
            "--no-deps",
            "--only-binary=:all:",
            "-d",
            directory,
            wanted,
        ]
    )
    [wheel] = directory.glob("*.whl")
    return wheel


def _call(command: list[str | pathlib.Path]) -> None:
    """Run a command; an error shows what it has said."""
    root = pathlib.Path(__file__).parents[2]
    done = subprocess.run(command, capture_output=True, text=True, timeout=_FETCH_TIME, cwd=root, check=False)
    if done.returncode:
        raise RuntimeError(f"{command} failed with status {done.returncode}:\n{done.stdout}{done.stderr}")


def _agent_in(program: bytes) -> bytes:
    """The agent, which is a whole ELF file inside of the program of the host."""
    at = 0
    while (at := program.find(b"\x7fELF\x02\x01\x01", at + 1)) >= 0:
        sections_at = int.from_bytes(program[at + 40 : at + 48], "little")
        section_size, sections = struct.unpack_from("<HH", program, at + 58)
        whole = program[at : at + sections_at + section_size * sections]  # the table of sections is last in it
        if b"core.bootstrap" in whole or b"agentd/bin/main.rs" in whole:
            return whole
    raise RuntimeError("there is no agent in msb")


def write_kernel(library: str, path: str) -> None:
    """Write the kernel in libkrunfw as a file that QEMU boots.

    The library has an image of memory. QEMU wants an ELF file with a note of the address at which to begin, which
    the image has as a note of Xen's (18).
    """
    get = ctypes.CDLL(library).krunfw_get_kernel
    get.restype = ctypes.c_void_p
    load, entry, size = ctypes.c_uint64(), ctypes.c_uint64(), ctypes.c_size_t()
    image = ctypes.string_at(get(ctypes.byref(load), ctypes.byref(entry), ctypes.byref(size)), size.value)
    at = image.index(struct.pack("<I", 18) + b"Xen\0") + 8
    note = struct.pack("<III4sQ", 4, 8, 18, b"Xen\0", *struct.unpack_from("<I", image, at))
    ident = b"\x7fELF\x02\x01\x01".ljust(16, b"\0")
    header = struct.pack("<HHIQQQIHHHHHH", 2, 62, 1, load.value, 64, 0, 0, 64, 56, 2, 64, 0, 0)
    page = 4096
    segments = struct.pack("<IIQQQQQQ", 1, 7, page, load.value, load.value, len(image), len(image), page)
    segments += struct.pack("<IIQQQQQQ", 4, 4, 64 + 2 * 56, 0, 0, len(note), len(note), 4)
    pathlib.Path(path).write_bytes((ident + header + segments + note).ljust(page, b"\0") + image)


def _file_system(agent: bytes, busybox: bytes) -> bytes:
    """An archive of the first files of the guest, in the form that the kernel unpacks (newc)."""
    folders = ("dev", "proc", "sys", "bin", "sbin", "usr", "usr/bin", "etc", "root", "tmp", "run", "var", ".msb")
    entries = [(name, 0o040755, b"") for name in folders]
    entries += [("init", 0o100755, _INIT.encode()), ("sbin/agentd", 0o100755, agent)]
    entries += [("bin/busybox", 0o100755, busybox), *((f"bin/{name}", 0o120777, b"busybox") for name in _APPLETS)]
    entries += [
        ("etc/passwd", 0o100644, b"root:x:0:0:root:/root:/bin/sh\n"),
        ("etc/group", 0o100644, b"root:x:0:\n"),
    ]
    archive = bytearray()
    devices = {"dev/console": (5, 1), "dev/null": (1, 3)}
    entries += [(name, 0o020600, b"") for name in devices]
    for number, (name, mode, data) in enumerate([*entries, ("TRAILER!!!", 0, b"")]):
        fields = (number, mode, 0, 0, 1, 0, len(data), 0, 0, *devices.get(name, (0, 0)), len(name) + 1, 0)
        archive += b"070701" + b"".join(b"%08x" % field for field in fields) + name.encode() + b"\0"
        archive += bytes(-len(archive) % 4) + data
        archive += bytes(-len(archive) % 4)
    return bytes(archive)


# The machine


@asynccontextmanager
async def machine(version: str, directory: pathlib.Path) -> AsyncIterator[pathlib.Path]:
    """A machine whose agent waits for its host; yields the path of its console's socket.

    Args:
        version: of microsandbox.
        directory: for its sockets and files. Its path is short, as it has to be for sockets.
    """
    files = await trio.to_thread.run_sync(_files, version)
    console, shared = directory / "console", directory / "shared"
    (directory / "runtime").mkdir()
    log = directory / "log"
    with log.open("w") as out:
        # The agent does not start without this directory of its host.
        share = [
            _VIRTIOFSD,
            f"--socket-path={shared}",
            "-o",
            f"source={directory / 'runtime'}",
            "-o",
            "cache=none",
        ]
        async with (
            _process(share, shared, out),
            _process(_qemu(files, console, shared, directory), console, out),
        ):
            yield console


def _qemu(
    files: _Files, console: pathlib.Path, shared: pathlib.Path, directory: pathlib.Path
) -> list[str | pathlib.Path]:
    # The kernel has no PCI, no ACPI and no serial port. On a busy machine it could not find out how fast its clock
    # goes, so that is not asked of it.
    told = f"tsc_early_khz={_clock_khz()} tsc=reliable no_timer_check"
    return [
        *(_QEMU, "-nodefaults", "-no-user-config", "-display", "none", "-no-reboot", "-accel", "tcg,thread=multi"),
        *("-machine", "microvm,rtc=on,acpi=off,memory-backend=mem", "-global", "virtio-mmio.force-legacy=false"),
        *("-cpu", "max,-cx16", "-m", "256M", "-object", "memory-backend-memfd,id=mem,size=256M,share=on"),
        *("-kernel", files.kernel, "-initrd", files.initrd, "-append", f"console=hvc0 quiet panic=-1 {told}"),
        *("-device", "virtio-serial-device,id=ports", "-chardev", f"file,id=serial,path={directory / 'serial'}"),
        *("-device", "virtconsole,bus=ports.0,chardev=serial"),
        *("-chardev", f"socket,id=agent,path={console},server=on,wait=on"),
        *("-device", "virtserialport,bus=ports.0,chardev=agent,name=agent"),
        *("-chardev", f"socket,id=shared,path={shared}"),
        *("-device", "vhost-user-fs-device,chardev=shared,tag=msb_runtime"),
    ]


def _clock_khz() -> int:
    for line in pathlib.Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("bogomips"):
            return int(500 * float(line.partition(":")[2]))
    raise RuntimeError("this processor does not say how fast its clock goes")


@asynccontextmanager
async def _process(command: list[str | pathlib.Path], socket: pathlib.Path, out: IO[str]) -> AsyncIterator[None]:
    """Run a program that listens at a socket, and end it."""
    kept = ["sh", "-c", _WITH_US, "sh", *command]
    process = await trio.lowlevel.open_process(kept, stdin=subprocess.PIPE, stdout=out, stderr=out)
    assert process.stdin is not None
    try:
        with trio.fail_after(HANG):
            while not socket.exists():
                if process.poll() is not None:
                    said = socket.with_name("log").read_text()
                    raise RuntimeError(f"{command[0]} ended with status {process.returncode}:\n{said}")
                await trio.sleep(0.01)
        yield
    finally:
        with trio.CancelScope(shield=True):
            await process.stdin.aclose()
            await process.wait()

"""The first program of a virtual machine: it makes a system of a bare kernel, and is then the agent.

It runs as process 1 of a machine that `MicroVMGuest` has started, from the machine's initramfs. What it needs it
imports before it greets its host: from then on the root directory may be another one, without a Python in it.

Everything that goes wrong is said on the serial console, which the host keeps for its error. This program never
returns, because the kernel panics when process 1 ends.
"""

from __future__ import annotations

import contextlib
import ctypes
import fcntl
import importlib
import os
import pkgutil
import random
import signal
import socket
import struct
import sys
import time
import traceback
from functools import partial
from typing import TYPE_CHECKING, Final, NoReturn, final

from trio_console._machine.welcome import GREETING, ON_DISK, PORT, Layout, unpack
from trio_console.agent._system.boot import BootTimes

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from trio_console._machine.welcome import Mount, Welcome
    from trio_console.agent._serve import AgentOptions, Lasting, Settled

__all__ = ["main", "modules_of_agent"]

#: Where the initramfs has the kernel's modules, named in the order in which they are loaded.
MODULES: Final = "/lib/modules"

#: What the agent may import later, beside modules of its own packages.
_LATER: Final = ("encodings.idna", "encodings.latin_1", "grp", "pwd", "stringprep", "tty", "unicodedata")
_PACKAGES: Final = ("trio_console.agent", "trio_console._wire", "trio_console._trio")

_PATH: Final = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"

#: Directories of a root directory without which programs do not work, and their modes; parents come first.
_DIRECTORIES: Final = {
    **dict.fromkeys(("dev", "etc", "home", "proc", "run", "sys", "usr", "var", "var/log"), 0o755),
    "root": 0o700,
    **dict.fromkeys(("tmp", "var/tmp"), 0o1777),
}

#: Seconds for a device to appear, and between two looks. The kernel makes some while this program already runs.
_DEVICE_TIME: Final = 20.0
_DEVICE_PAUSE: Final = 0.002

#: Seconds for which the console is closed between two hosts, so that the next one sees it: it looks every two
#: milliseconds. If it looks too late, it is told all the same, after a second.
_CLOSED_TIME: Final = 0.02

#: Seconds for the agent to serve its first host. It takes one where the processor is emulated.
_REHEARSAL_TIME: Final = 20.0

#: Bytes that are read of a file at once.
_PART: Final = 64 * 1024

#: Where another root directory is made, and the layers of which its parts consist.
_NEW_ROOT: Final = "/newroot"
_LAYERS: Final = "/layers"

#: Whole seconds without a host after which the machine ends. (The agent's program ends then, as when it hangs.) A
#: host comes within moments; and one that was killed, together with the warden that would have ended QEMU, does
#: not come again. The time passes only while the machine runs: one that is saved does not.
_HOSTLESS_TIME: Final = 60

#: The disk with the root directory, if the machine has one: it has no other.
_DISK: Final = "/dev/vda"

#: Bytes of input that are on their way to one session of an emulated machine. It takes some 5 MiB in a second, so
#: the agent's usual window would be a fifth of a second of data, behind which each question would have to wait.
#: With this one a ping beside an upload took 1.4 to 2 times as long as alone at p95, with twice as much 2.6 to 3.8
#: times, and with the usual one 40 times; the upload itself 3.6, 4.4 and 5.3 MiB/s.
_EMULATED_WINDOW: Final = 32 * 1024

#: What a processor is called that QEMU emulates.
_EMULATED: Final = "QEMU TCG CPU"

# Of <sys/mount.h>, <linux/random.h>, <linux/sockios.h>, <sys/reboot.h>, and the number of a system call on x86-64.
_MS_RDONLY: Final = 1
_MS_NOSUID: Final = 2
_MS_NODEV: Final = 4
_MS_MOVE: Final = 8192
_RNDADDENTROPY: Final = 0x40085203
_RNDRESEEDCRNG: Final = 0x5207
_SIOCSIFFLAGS: Final = 0x8914
_IFF_UP_RUNNING: Final = 0x41
_RB_AUTOBOOT: Final = 0x01234567
_FINIT_MODULE: Final = 313

_libc: Final = ctypes.CDLL(None, use_errno=True)


def main() -> NoReturn:
    """Be the machine's first program, until the guest ends; then end the machine."""
    began = BootTimes.now()
    try:
        _run(began)
    except BaseException:  # noqa: ASYNC103, BLE001  (there is nobody else to tell)
        traceback.print_exc()
    finally:
        # Not the call for turning off: without a driver for that, the kernel would halt, and QEMU go on. QEMU is
        # told to end when the machine restarts.
        os.sync()
        while True:
            _libc.reboot(_RB_AUTOBOOT)
            time.sleep(1)


def _run(began: int) -> None:
    _mount_kernel_systems()
    _take_console()
    _load_modules()
    _set_up_loopback()
    for name in modules_of_agent():
        importlib.import_module(name)
    _serve(began)


def _serve(began: int) -> None:
    """Be the agent of one host, and of the next ones, if the machine stays."""
    # Imported late, although long since loaded: what comes before must be able to say what is wrong.
    import trio

    from trio_console._wire import Direction, learn_messages
    from trio_console.agent._main import prepare
    from trio_console.agent._serve import AgentOptions

    learn_messages(Direction.HOST_TO_AGENT)
    prepare()
    options = partial(AgentOptions, owns_process=True)
    if _is_emulated():
        options = partial(options, stdin_window=_EMULATED_WINDOW, first_input=_EMULATED_WINDOW)
    # One loop for all hosts: to begin another would be code that an emulated processor has to translate first.
    trio.run(_serve_hosts, _device_of(PORT), options, began)


async def _serve_hosts(device: str, options: Callable[..., AgentOptions], began: int) -> None:
    import trio

    from trio_console.agent._router import log
    from trio_console.agent._serve import serve_agent
    from trio_console.agent._system.boot import BootError
    from trio_console.agent._system.console import open_fd

    # Before the root directory is another: a command of somebody else's image is run for nobody but a host.
    lasting = await _rehearsed(options())
    if on_disk := _is_on_disk():
        _change_to_disk()  # so it is in every clone, and need not be done there
    settling = _Settling(on_disk=on_disk)
    while True:
        # What the last host has sent, or was to get, is not the next one's: its console was closed.
        port = os.open(device, os.O_RDWR | os.O_CLOEXEC | os.O_NOCTTY)
        settle = partial(settling.settle, port)
        try:
            await serve_agent(open_fd(port), options=options(settle=settle), boot_time_ns=began, lasting=lasting)
        except BootError as exc:
            log(str(exc))
        if not lasting.goes_on:
            return
        await trio.sleep_until(lasting.closed_at + _CLOSED_TIME)


async def _rehearsed(options: AgentOptions) -> Lasting:
    """Serve a first host, which is this program itself; returns what outlives it.

    The machine can do without, so an error is only told.
    """
    import trio

    from trio_console.agent._serve import Lasting, serve_agent
    from trio_console.agent._system.console import open_fd
    from trio_console.agent._system.rehearsal import rehearse

    lasting = Lasting()
    host, agent = socket.socketpair()
    try:
        with trio.move_on_after(_REHEARSAL_TIME):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(rehearse, trio.lowlevel.FdStream(host.detach()))
                await serve_agent(open_fd(agent.detach()), options=options, lasting=lasting)
    except Exception:  # noqa: BLE001
        traceback.print_exc()
    if lasting.births is None or not lasting.goes_on:
        return Lasting()
    await lasting.births.wait_prepared()  # a thread may be on its way to a cgroup, which the root directory has
    return lasting


def _is_emulated() -> bool:
    with open("/proc/cpuinfo") as file:
        return _EMULATED in file.read()


@final
class _Settling:
    """What becomes of the machine when a host comes.

    It waits for that in the agent, whose loop runs already: a machine is saved while it waits, and what was done
    before need not be done, nor translated, in any of its clones.
    """

    def __init__(self, *, on_disk: bool) -> None:
        self._on_disk: Final = on_disk  # whether the root directory is the disk's already
        self._layout: Layout | None = None  # of the root directory that is to be entered
        self._former: str | None = None  # the name that the last host gave it

    def settle(self, port: int) -> Settled:
        """Wait for a host, and become the machine that it wants. (The loop has nothing else to do.)"""
        from trio_console.agent._serve import Settled

        os.set_blocking(port, True)
        signal.alarm(_HOSTLESS_TIME)
        while isinstance(welcome := _wait_for_host(port), Layout):
            _lay_out(welcome)
            self._layout = welcome
        signal.alarm(0)
        os.set_blocking(port, False)
        _be_unlike_others(welcome)
        if self._former is None:
            # (The kernel was not told of the disk if the caller of QEMU has replaced its command line.)
            if welcome.disk and not self._on_disk:
                _change_to_disk()
            if self._layout is not None:
                _change_root(self._layout, welcome.changes)
            _furnish(welcome)
        else:
            _rename(welcome, self._former)
        self._former = welcome.hostname
        os.environ.clear()
        os.environ.update({"PATH": _PATH, **welcome.env})
        return Settled(welcome.user, welcome.stays)


def _furnish(welcome: Welcome) -> None:
    """Give the machine its names, and what is mounted on its root directory."""
    _name(welcome)
    _link_ports(welcome.ports)
    for mount in welcome.mounts:
        os.makedirs(mount.path, exist_ok=True)
        _mount_share(mount, mount.path)


def modules_of_agent() -> Iterator[str]:
    """The names of all modules that the agent imports, now or later, beside those that they import themselves."""
    for package in _PACKAGES:
        yield package
        places = importlib.import_module(package).__path__
        for module in pkgutil.walk_packages(places, f"{package}."):
            if not module.name.endswith("__main__"):  # which is another program
                yield module.name
    yield from _LATER


# --- the system -----------------------------------------------------------------------------------


def _mount(source: str, target: str, kind: str | None, flags: int = 0, data: str = "") -> None:
    if _libc.mount(source.encode(), target.encode(), kind and kind.encode(), flags, data.encode()):
        code = ctypes.get_errno()
        raise OSError(code, f"mounting {source} ({kind}): {os.strerror(code)}", target)


def _mount_kernel_systems() -> None:
    safe = _MS_NOSUID
    _mount("proc", "/proc", "proc", safe | _MS_NODEV)
    _mount("sys", "/sys", "sysfs", safe | _MS_NODEV)
    _mount("dev", "/dev", "devtmpfs", safe, "mode=755")
    for name in ("pts", "shm"):
        os.mkdir(f"/dev/{name}")
    _mount("devpts", "/dev/pts", "devpts", safe, "ptmxmode=666,mode=620,gid=5")
    _mount("shm", "/dev/shm", "tmpfs", safe | _MS_NODEV, "mode=1777")
    for link, target in (
        ("fd", "self/fd"),
        ("stdin", "self/fd/0"),
        ("stdout", "self/fd/1"),
        ("stderr", "self/fd/2"),
    ):
        os.symlink(f"/proc/{target}", f"/dev/{link}")
    with contextlib.suppress(OSError):  # without it commands are found by their marks
        _mount("cgroup2", "/sys/fs/cgroup", "cgroup2", safe | _MS_NODEV)
        with open("/sys/fs/cgroup/cgroup.subtree_control", "wb", buffering=0) as control:
            control.write(b"+cpu +pids")  # so that no command takes all of the machine: see `_cgroups`


def _take_console() -> None:
    """Let standard descriptors be the serial console, where errors are heard."""
    console = os.open("/dev/console", os.O_RDWR | os.O_NOCTTY)
    for number in range(3):
        os.dup2(console, number)
    if console > 2:
        os.close(console)


def _load_modules() -> None:
    for name in sorted(os.listdir(MODULES)) if os.path.isdir(MODULES) else ():
        with open(f"{MODULES}/{name}", "rb") as file:
            if _libc.syscall(_FINIT_MODULE, file.fileno(), b"", 0):
                sys.stderr.write(f"the kernel does not load {name}: {os.strerror(ctypes.get_errno())}\n")


def _set_up_loopback() -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        fcntl.ioctl(sock, _SIOCSIFFLAGS, struct.pack("16sH14x", b"lo", _IFF_UP_RUNNING))


# --- the host -------------------------------------------------------------------------------------


def _device_of(name: str) -> str:
    """The path of a virtio port, once the kernel has it."""
    deadline = time.monotonic() + _DEVICE_TIME
    ports = "/sys/class/virtio-ports"
    while True:
        for device in os.listdir(ports) if os.path.isdir(ports) else ():
            with contextlib.suppress(OSError), open(f"{ports}/{device}/name") as file:
                if file.read().strip() == name:
                    return f"/dev/{device}"
        if time.monotonic() > deadline:
            raise FileNotFoundError(
                f"this kernel shows no virtio port {name!r}: it needs the drivers virtio_console, and virtio_mmio "
                "or virtio_pci, built in or as modules"
            )
        time.sleep(_DEVICE_PAUSE)


def _link_ports(names: Sequence[str]) -> None:
    """Let programs find ports by their names, as udev does elsewhere."""
    if names:
        os.mkdir("/dev/virtio-ports")
    for name in names:
        os.symlink(f"../{os.path.basename(_device_of(name))}", f"/dev/virtio-ports/{name}")


def _wait_for_host(port: int) -> Layout | Welcome:
    """Wait for a host, as long as it takes; returns what it says next.

    A virtio port without a host reads as if it were at end of file, and a write waits for a host. So this waits
    for the next one also if a host goes before it has said all, and while the machine is being saved.
    """
    while True:
        _write_all(port, GREETING)
        said = unpack(partial(os.read, port))
        if said is not None:
            return said


def _write_all(fd: int, data: bytes) -> None:
    while data:
        data = data[os.write(fd, data) :]


def _be_unlike_others(welcome: Welcome) -> None:
    """Take what no other machine may have, before anything runs here that could notice."""
    with _opened("/dev/urandom", os.O_WRONLY) as pool:
        seed = welcome.seed
        fcntl.ioctl(pool, _RNDADDENTROPY, struct.pack("ii", 8 * len(seed), len(seed)) + seed)
        fcntl.ioctl(pool, _RNDRESEEDCRNG)
    random.seed()
    time.clock_settime_ns(time.CLOCK_REALTIME, welcome.time_ns)
    socket.sethostname(welcome.hostname)


def _name(welcome: Welcome) -> None:
    """Write the machine's names into its root directory, and through no link that an image has there."""
    for path in ("/etc/hostname", "/etc/hosts", "/etc/machine-id"):
        with contextlib.suppress(FileNotFoundError):
            os.unlink(path)
    _write("/etc/hostname", f"{welcome.hostname}\n".encode())
    _write("/etc/hosts", f"127.0.0.1 localhost {welcome.hostname}\n::1 localhost\n".encode())
    _write("/etc/machine-id", f"{welcome.machine_id}\n".encode())


def _rename(welcome: Welcome, former: str) -> None:
    """Change the machine's names, and nothing else that programs may have written beside them.

    These may have left no room for it, or no directory. The machine goes on then.
    """
    try:
        _write("/etc/hostname", f"{welcome.hostname}\n".encode())
        _write("/etc/machine-id", f"{welcome.machine_id}\n".encode())
        text = _read("/etc/hosts")
        _write("/etc/hosts", text.replace(former.encode(), welcome.hostname.encode()))
    except OSError as exc:
        sys.stderr.write(f"not all names of the one it was copied from could be changed in /etc: {exc}\n")


def _read(path: str) -> bytes:
    with _opened(path, os.O_RDONLY) as fd:
        parts = list(iter(partial(os.read, fd, _PART), b""))
    return b"".join(parts)


def _write(path: str, data: bytes) -> None:
    with _opened(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC) as fd:
        _write_all(fd, data)


@contextlib.contextmanager
def _opened(path: str, flags: int) -> Iterator[int]:
    """A descriptor. (A file object would be code that an emulated processor has to translate in each clone.)"""
    fd = os.open(path, flags | os.O_CLOEXEC, 0o644)
    try:
        yield fd
    finally:
        os.close(fd)


# --- the root directory ---------------------------------------------------------------------------


def _mount_share(mount: Mount, target: str) -> None:
    """Mount a directory of the host. One that may change here is asked about every time it is looked at."""
    flags = _MS_NODEV | _MS_NOSUID if mount.writable else _MS_NODEV | _MS_RDONLY
    cache = "none" if mount.writable else "loose"
    _mount(mount.tag, target, "9p", flags, f"trans=virtio,version=9p2000.L,msize=262144,cache={cache}")


def _is_on_disk() -> bool:
    with open("/proc/cmdline") as file:
        return ON_DISK in file.read().split()


def _change_to_disk() -> None:
    """Take for our root directory what the disk has, under a layer of memory."""
    deadline = time.monotonic() + _DEVICE_TIME
    while not os.path.exists(_DISK):
        if time.monotonic() > deadline:
            raise FileNotFoundError(f"this kernel shows no disk {_DISK}: it needs the driver virtio_blk")
        time.sleep(_DEVICE_PAUSE)
    for name in (_NEW_ROOT, _LAYERS):
        os.mkdir(name)
    _mount("layers", _LAYERS, "tmpfs", 0, "mode=700")
    for layer in ("lower", "upper", "work"):
        os.mkdir(f"{_LAYERS}/{layer}")
    _mount(_DISK, f"{_LAYERS}/lower", "ext4", _MS_RDONLY)
    data = f"lowerdir={_LAYERS}/lower,upperdir={_LAYERS}/upper,workdir={_LAYERS}/work"
    _mount("overlay", _NEW_ROOT, "overlay", 0, data)
    _make_missing_directories(_NEW_ROOT)
    _enter(_NEW_ROOT)


def _make_missing_directories(root: str) -> None:
    # (A link in the place of one leads nowhere that matters, because the agent is alone here. Where it leads
    # nowhere at all, nothing is made in it.)
    for name, mode in _DIRECTORIES.items():
        path = f"{root}/{name}"
        if not os.path.lexists(path):
            with contextlib.suppress(FileNotFoundError, NotADirectoryError):
                os.mkdir(path)
                os.chmod(path, mode)


def _enter(new: str) -> None:
    """Take a directory for our root directory, with the kernel's file systems."""
    for name in ("dev", "proc", "sys"):
        _mount(f"/{name}", f"{new}/{name}", None, _MS_MOVE)
    os.chdir(new)
    _mount(".", "/", None, _MS_MOVE)
    os.chroot(".")
    os.chdir("/")


def _lay_out(layout: Layout) -> None:
    """Make a root directory for directories of the host. (A machine that has mounted them cannot be saved.)"""
    os.mkdir(_NEW_ROOT)
    _mount("root", _NEW_ROOT, "tmpfs", 0, "mode=755")
    _make_missing_directories(_NEW_ROOT)
    os.mkdir(_LAYERS)
    _mount("layers", _LAYERS, "tmpfs", 0, "mode=700")
    for number, mount in enumerate(layout.lower):
        for layer in ("lower", "upper", "work"):
            os.makedirs(f"{_LAYERS}/{number}/{layer}")
        os.makedirs(_NEW_ROOT + mount.path, exist_ok=True)
    for name in os.listdir("/etc"):
        _write(f"{_NEW_ROOT}/etc/{name}", _read(f"/etc/{name}"))
    _put(layout)


def _put(layout: Layout) -> None:
    """Put links and files into the new root directory."""
    for path in layout.gone:
        os.unlink(_NEW_ROOT + path)
    # There are hundreds of links, most of them in one directory.
    for directory in {path.rpartition("/")[0] for path in (*layout.files, *layout.links)}:
        os.makedirs(_NEW_ROOT + directory, exist_ok=True)
    for path, data in layout.files.items():
        _write(_NEW_ROOT + path, data)
    for path, target in layout.links.items():
        os.symlink(target, _NEW_ROOT + path)


def _change_root(layout: Layout, changes: Layout | None) -> None:
    """Mount directories of the host in the new root directory, under layers of memory, and take it for ours."""
    for number, mount in enumerate(layout.lower):
        layers = f"{_LAYERS}/{number}"
        _mount_share(mount, f"{layers}/lower")
        data = f"lowerdir={layers}/lower,upperdir={layers}/upper,workdir={layers}/work"
        _mount("overlay", _NEW_ROOT + mount.path, "overlay", 0, data)
    if changes is not None:
        _put(changes)
    _enter(_NEW_ROOT)

"""Attributes that the kernel has in memory: what is answered without a thread, and what is not."""

from __future__ import annotations

import errno
import os
import re
import socket
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import pytest

from tests.tools.leftovers import descriptors
from tests.tools.users import as_root
from trio_console import _wire as wire
from trio_console._wire.outbox import Outbox
from trio_console.agent._files import cached as _cached
from trio_console.agent._files import session as _session
from trio_console.agent._files.cached import Cached, Kernel, Mounts, read_mounts
from trio_console.agent._files.disk import Disk
from trio_console.agent._process.limits import FdHeadroom

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from tests.agent._host import Host
    from tests.agent.conftest import AgentFactory

TRIES: Final = 20

CACHED: Final = 0x20
SAME_MOUNT: Final = 0x01

#: Errors by which a system says that it does not have a call, or does not allow it.
UNKNOWN: Final = [errno.ENOSYS, errno.EPERM, errno.EINVAL]

#: Errors of a path, or of the moment.
PASSING: Final = [errno.EAGAIN, errno.ENOENT, errno.EMFILE, errno.EINTR, errno.ELOOP, errno.EXDEV, errno.EACCES]


def _kernel_has_it() -> bool:
    version = re.match(r"(\d+)\.(\d+)", os.uname().release)
    assert version is not None
    known = os.uname().machine in ("x86_64", "aarch64") and sys.maxsize > 2**32
    return known and (int(version[1]), int(version[2])) >= (5, 12)


def _is_in_memory(path: Path) -> bool:
    """Whether ``df`` knows the path's file system as one of a disk or of memory."""
    done = subprocess.run(["stat", "--file-system", "--format=%T", path], check=True, capture_output=True)
    return done.stdout.strip() in (b"ext2/ext3", b"xfs", b"btrfs", b"tmpfs")


@pytest.fixture
def look(tmp_path: Path) -> Iterator[Cached]:
    """Has read the list of mounts, on a machine where files below ``tmp_path`` can be answered."""
    if not (_kernel_has_it() and _is_in_memory(tmp_path)):
        pytest.skip("this kernel or file system has no such answers")
    cached = Cached()
    cached.refresh()
    yield cached
    cached.close()


def answer(look: Cached, path: Path | str, *, follow: bool = True) -> os.stat_result | None:
    """An answer that must come, but not each time.

    The kernel gives up when something else changes its caches, and where the time of a link's last access must be
    set first. That is so again when the clock ticks after a new link was followed: a thread follows it then.
    """
    for _ in range(TRIES):
        found = look.look(os.fsencode(path), follow=follow)
        if found is not None:
            return found
        os.stat(path, follow_symlinks=follow)
    return None


# --- the list of mounts ---------------------------------------------------------------------------

ROOT: Final = b"27 1 254:0 / / rw,relatime - ext4 /dev/vda rw"
SHM: Final = b"30 27 0:27 / /dev/shm rw,nosuid shared:3 master:1 - tmpfs tmpfs rw,size=1k"
PROC: Final = b"22 27 0:21 / /proc rw,relatime - proc proc rw"
SSHFS: Final = b"50 27 0:44 / /far rw,nosuid - fuse.sshfs me@far:/ rw,user_id=1000"
FUSE: Final = b"50 27 0:44 / /far rw,nosuid - fuse server rw,user_id=1000"
NFS: Final = b"51 27 0:45 / /net rw - nfs4 server:/ rw,vers=4.2"
OVERLAY: Final = b"52 27 0:46 / /o rw - overlay overlay rw,lowerdir=/a,upperdir=/b"


def test_mounts_of_disks_and_memory_have_attributes_in_memory() -> None:
    assert read_mounts([ROOT, SHM, PROC]) == Mounts(frozenset({27, 30}), CACHED)


@pytest.mark.parametrize("mount", [NFS, OVERLAY, SSHFS, FUSE])
def test_no_mount_is_crossed_where_one_of_them_may_ask_a_server(mount: bytes) -> None:
    assert read_mounts([ROOT, mount, SHM]) == Mounts(frozenset({27, 30}), CACHED | SAME_MOUNT)


@pytest.mark.parametrize("mount", [NFS, OVERLAY])
@pytest.mark.parametrize("roots", [1, 2])
def test_nothing_is_looked_at_below_a_root_that_may_ask_a_server(mount: bytes, roots: int) -> None:
    number, parent, device, root, _, *more = mount.split(b" ")
    at_root = b" ".join([number, parent, device, root, b"/", *more])
    assert read_mounts([ROOT, SHM, at_root][-roots - 1 :]) == Mounts(frozenset(), CACHED | SAME_MOUNT)


def test_nothing_is_looked_at_below_a_root_that_is_not_in_the_list() -> None:
    assert read_mounts([SHM, PROC]) == Mounts(frozenset(), CACHED | SAME_MOUNT)


def test_disks_and_memory_below_a_root_that_the_host_serves_are_looked_at() -> None:
    root = b"27 1 0:30 / / rw - virtiofs root rw"
    assert read_mounts([root, SHM]) == Mounts(frozenset({30}), CACHED)


def test_without_a_file_system_in_memory_no_path_is_looked_up(
    look: Cached, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[int] = []
    monkeypatch.setattr(look, "_mounts", (0, Mounts(frozenset(), CACHED | SAME_MOUNT)))
    monkeypatch.setattr(Kernel, "open_cached", _refuse(errno.EAGAIN, calls))
    assert look.look(os.fsencode(tmp_path), follow=True) is None
    assert calls == []


@pytest.mark.parametrize("line", [b"27 1 254:0 / / rw", b"x 1 254:0 / / rw - ext4 a rw", b" - ext4"])
def test_a_list_that_makes_no_sense_has_nothing_in_memory(line: bytes) -> None:
    assert read_mounts([ROOT, line]) == Mounts(frozenset(), CACHED | SAME_MOUNT)


def test_a_list_that_is_too_long_is_not_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    line = ROOT + b"\n"
    monkeypatch.setattr(_cached, "_MOST_MOUNTS", len(line))  # so that what is read of it ends with a line
    (tmp_path / "mounts").write_bytes(3 * line)
    cached = Cached(str(tmp_path / "mounts"))
    cached.refresh()
    assert cached._mounts == (0, Mounts(frozenset(), CACHED | SAME_MOUNT))
    cached.close()


def test_a_carriage_return_in_a_name_ends_no_line(tmp_path: Path) -> None:
    odd = SHM.replace(b"/dev/shm", b"/dev/s\rhm")
    (tmp_path / "mounts").write_bytes(ROOT + b"\n" + odd + b"\n")
    cached = Cached(str(tmp_path / "mounts"))
    cached.refresh()
    assert cached._mounts == (0, Mounts(frozenset({27, 30}), CACHED))
    cached.close()


# --- what is answered -----------------------------------------------------------------------------


def _file(path: Path) -> None:
    path.write_bytes(b"12345")
    path.chmod(0o4640)
    os.utime(path, ns=(5_900_000_001, -5_100_000_003))


def _hole(path: Path) -> None:
    with path.open("wb") as file:
        file.truncate(2**40)


def _socket(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as sock:
        sock.bind(str(path))


KINDS: Final[dict[str, Callable[[Path], object]]] = {
    "file": _file,
    "hole": _hole,
    "directory": Path.mkdir,
    "link": lambda path: path.symlink_to(path.parent),
    "dangling": lambda path: path.symlink_to("nowhere"),
    "circle": lambda path: path.symlink_to(path.name),
    "fifo": os.mkfifo,
    "socket": _socket,
    "missing": lambda _path: None,
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("follow", [True, False])
def test_attributes_are_those_of_the_system(look: Cached, tmp_path: Path, kind: str, follow: bool) -> None:
    path = tmp_path / kind
    KINDS[kind](path)
    try:
        expected = os.stat(path, follow_symlinks=follow)
    except OSError:
        assert look.look(os.fsencode(path), follow=follow) is None
    else:
        found = answer(look, path, follow=follow)
        assert found == expected
        assert found is not None
        assert (found.st_mtime_ns, found.st_blocks) == (expected.st_mtime_ns, expected.st_blocks)


def test_a_new_link_is_answered_after_a_thread_has_followed_it(look: Cached, tmp_path: Path) -> None:
    link = tmp_path / "link"
    link.symlink_to(".")
    changed = os.lstat(link).st_mtime_ns
    os.utime(link, ns=(changed - 1, changed), follow_symlinks=False)  # not accessed since it was made
    assert answer(look, link) == os.stat(tmp_path)


def test_a_link_with_a_slash_behind_it_is_followed(look: Cached, tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(".")
    path = f"{tmp_path}/link/"
    assert answer(look, path, follow=False) == os.lstat(path)


@pytest.mark.parametrize("path", ["etc", "", "/etc\0", "/proc/self/status", "/proc/self/fd/0", "/sys"])
def test_other_paths_are_left_to_a_thread(look: Cached, path: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir("/")
    assert look.look(path.encode(), follow=True) is None


def test_no_descriptor_is_kept(look: Cached, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = len(os.listdir("/proc/self/fd"))
    for path in (tmp_path, Path("/proc"), Path("/no/such")):
        look.look(os.fsencode(path), follow=True)
    monkeypatch.setattr(Kernel, "mount_of", _refuse(errno.EIO))
    assert look.look(os.fsencode(tmp_path), follow=True) is None
    assert len(os.listdir("/proc/self/fd")) == before


def test_no_attributes_are_asked_for_of_a_file_system_that_may_wait(
    look: Cached, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[int] = []
    monkeypatch.setattr(Kernel, "mount_of", lambda *_: 1_000_000_000)
    with monkeypatch.context() as patch:
        patch.setattr(os, "fstat", asked.append)
        assert look.look(os.fsencode(tmp_path), follow=True) is None
    assert asked == []


def test_a_file_that_is_removed_while_it_is_looked_at_is_closed_in_a_thread(
    look: Cached, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, plain = tmp_path / "file", Kernel.mount_of

    def mount_of(kernel: Kernel, fd: int) -> int:
        path.unlink()
        return plain(kernel, fd)

    def is_open() -> bool:
        return any("file (deleted)" in name for name in descriptors())

    for end in (look.refresh, look.close):
        path.touch()
        with monkeypatch.context() as patch:
            patch.setattr(Kernel, "mount_of", mount_of)
            assert look.look(os.fsencode(path), follow=True) is None
        assert is_open()
        assert look.look(os.fsencode(tmp_path), follow=True) is None  # there is never more than one
        end()
        assert not is_open()
        assert (answer(look, tmp_path) is None) is (end == look.close)


# --- what the system refuses ----------------------------------------------------------------------


def _refuse(code: int, calls: list[int] | None = None) -> Callable[..., Any]:
    def refuse(*_: object) -> Any:
        if calls is not None:
            calls.append(code)
        raise OSError(code, os.strerror(code))

    return refuse


@pytest.mark.parametrize("call", ["open_cached", "mount_of"])
@pytest.mark.parametrize("code", [*UNKNOWN, *PASSING])
def test_a_refused_call_leaves_the_answer_to_a_thread(
    look: Cached, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: str, code: int
) -> None:
    calls: list[int] = []
    monkeypatch.setattr(Kernel, call, _refuse(code, calls))
    for _ in range(3):
        assert look.look(os.fsencode(tmp_path), follow=True) is None
    # What the system does not know it is not asked again.
    assert len(calls) == (1 if code in UNKNOWN else 3)


def test_the_kernels_errors_are_told(tmp_path: Path) -> None:
    kernel = Kernel()
    with pytest.raises(OSError, match="openat2") as opened:
        kernel.open_cached(os.fsencode(tmp_path), os.O_PATH, 1 << 40)
    assert opened.value.errno in (errno.EINVAL, errno.ENOSYS, errno.EPERM)
    with pytest.raises(OSError, match="statx"):
        kernel.mount_of(-1)


def test_a_machine_whose_calls_have_unknown_numbers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_cached, "_NUMBERS", {})
    with pytest.raises(LookupError):
        Kernel()
    cached = Cached()
    cached.refresh()
    assert cached.look(os.fsencode(tmp_path), follow=True) is None
    cached.close()


def test_without_a_list_of_mounts_nothing_is_answered(tmp_path: Path) -> None:
    cached = Cached(str(tmp_path / "missing"))
    cached.refresh()
    assert cached.look(os.fsencode(tmp_path), follow=True) is None
    cached.close()


def test_after_the_close_nothing_is_answered(look: Cached, tmp_path: Path) -> None:
    look.close()
    look.refresh()
    assert look.look(os.fsencode(tmp_path), follow=True) is None


# --- changes of the list --------------------------------------------------------------------------


class Watch:
    """Tells of a change when the test says so."""

    def __init__(self) -> None:
        self.changed = False

    def poll(self, _timeout: int) -> list[tuple[int, int]]:
        changed, self.changed = self.changed, False
        return [(0, 0)] if changed else []


def test_nothing_is_answered_before_the_list_was_read(look: Cached, tmp_path: Path) -> None:
    cached = Cached()
    assert cached.look(os.fsencode(tmp_path), follow=True) is None
    cached.refresh()
    assert answer(cached, tmp_path) is not None
    cached.close()


def test_a_list_that_has_changed_is_read_again(
    look: Cached, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    watch = Watch()
    monkeypatch.setattr(look, "_watch", watch)
    watch.changed = True
    for _ in range(2):
        assert look.look(os.fsencode(tmp_path), follow=True) is None
    look.refresh()
    assert answer(look, tmp_path) is not None


def test_a_list_that_changes_while_it_is_read_is_read_again(
    look: Cached, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    watch = Watch()
    monkeypatch.setattr(look, "_watch", watch)
    watch.changed = True
    look.look(os.fsencode(tmp_path), follow=True)

    def open_(*arguments: Any, **options: Any) -> Any:
        watch.changed = True
        look.look(os.fsencode(tmp_path), follow=True)
        return open(*arguments, **options)

    with monkeypatch.context() as patch:
        patch.setattr(_cached, "open", open_, raising=False)
        look.refresh()
    assert look.look(os.fsencode(tmp_path), follow=True) is None
    look.refresh()
    assert answer(look, tmp_path) is not None


def test_a_list_that_has_not_changed_is_read_once(look: Cached, monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[object] = []
    monkeypatch.setattr(_cached, "open", lambda *names, **_: read.append(names), raising=False)
    look.refresh()
    assert read == []


def _in_mounts_of_its_own(script: str, *arguments: object) -> list[str]:
    """Run a script where it may mount what it likes; returns what it prints."""
    lead = ["unshare", "--mount", "--propagation", "private"]
    if subprocess.run(
        [*lead, "mount", "-t", "tmpfs", "none", "/mnt"], check=False, capture_output=True
    ).returncode:
        pytest.skip("no mounts can be made here")
    command = [*lead, sys.executable, "-P", "-c", script, *map(str, arguments)]
    done = subprocess.run(command, check=True, capture_output=True, text=True, cwd=Path(__file__).parents[3])
    return done.stdout.splitlines()


MOUNTED: Final = """
import os, subprocess, sys
sys.path.insert(0, os.getcwd())
from trio_console.agent._files.cached import Cached
path = sys.argv[1].encode()
def found():
    tries = (cached.look(path, follow=True) for _ in range(20))
    attributes = next((each for each in tries if each), None)
    print(attributes and attributes == os.stat(path))
cached = Cached()
cached.refresh()
found()
for change in (["mount", "-t", "tmpfs", "none", path], ["umount", path]):
    subprocess.run(change, check=True)
    found()
    cached.refresh()
    found()
"""


@as_root
@pytest.mark.usefixtures("look")
def test_the_kernel_tells_that_mounts_have_changed(tmp_path: Path) -> None:
    assert _in_mounts_of_its_own(MOUNTED, tmp_path) == ["True", "None", "True", "None", "True"]


CROSSED: Final = """
import os, subprocess, sys
sys.path.insert(0, os.getcwd())
from trio_console.agent._files import cached as module
folder = sys.argv[1]
subprocess.run(["mount", "-t", "tmpfs", "none", folder], check=True)
module._PROMPT = module._PROMPT - {b"proc"}
cached = module.Cached()
cached.refresh()
tries = [{cached.look(path, follow=True) for _ in range(20)} for path in (os.fsencode(folder), b"/")]
print(tries[0], tries[1] - {None} == {os.stat("/")})
"""


@as_root
@pytest.mark.usefixtures("look")
def test_beside_a_mount_that_may_wait_only_the_first_is_looked_at(tmp_path: Path) -> None:
    if not _is_in_memory(Path("/")):
        pytest.skip("the root has no attributes in memory")
    assert _in_mounts_of_its_own(CROSSED, tmp_path) == ["{None} True"]


#: Mounts a FUSE whose server answers the first request, and no other; then looks at it.
HUNG: Final = """
import ctypes, os, struct, sys, threading
sys.path.insert(0, os.getcwd())
from trio_console.agent._files.cached import Cached
path = os.fsencode(sys.argv[1])
server = os.open("/dev/fuse", os.O_RDWR)
options = f"fd={server},rootmode=40000,user_id=0,group_id=0".encode()
if ctypes.CDLL(None, use_errno=True).mount(b"hung", path, b"fuse", 0, options):
    sys.exit(0)
unique = struct.unpack_from("=IIQ", os.read(server, 1 << 20))[2]
hello = struct.pack("=IIIIHHIIHHI7I", 7, 31, 65536, 0, 10, 10, 65536, 1, 1, 0, 0, *[0] * 7)
os.write(server, struct.pack("=IiQ", 16 + len(hello), 0, unique) + hello)
cached = Cached()
cached.refresh()
answers = []
def look():
    answers.extend({cached.look(each, follow=True) for _ in range(20)} for each in (path, path + b"/x", b"/"))
thread = threading.Thread(target=look, daemon=True)  # which a request to the server would hang for ever
thread.start()
thread.join(10)
os.set_blocking(server, False)
try:
    print("asked", os.read(server, 1 << 20))
except BlockingIOError:
    print(answers[:2], answers[2] - {None} == {os.stat("/")})
os.close(server)
"""


@as_root
@pytest.mark.usefixtures("look")
def test_a_share_that_hangs_is_not_waited_for(tmp_path: Path) -> None:
    if not os.path.exists("/dev/fuse") or not _is_in_memory(Path("/")):
        pytest.skip("no FUSE can be mounted here")
    said = _in_mounts_of_its_own(HUNG, tmp_path)
    if not said:
        pytest.skip("no FUSE can be mounted here")
    assert said == ["[{None}, {None}] True"]


# --- the agent ------------------------------------------------------------------------------------


@pytest.fixture
async def ready(look: Cached, host: Host, tmp_path: Path) -> Host:
    """An agent that has read the list of mounts."""
    await host.ok(wire.OpStat(str(tmp_path), True))
    return host


def _no_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    async def run(*_: object) -> Any:
        raise OSError(errno.EAGAIN, "no thread")

    monkeypatch.setattr(Disk, "run", run)


@pytest.mark.parametrize("octets", [True, False])
@pytest.mark.parametrize("follow", [True, False])
@pytest.mark.parametrize("kind", KINDS)
async def test_the_answer_has_the_same_bytes_with_and_without_a_thread(
    ready: Host, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str, follow: bool, octets: bool
) -> None:
    path = tmp_path / (os.fsdecode(b"\xff") + kind if octets else "ä" + kind)
    KINDS[kind](path)
    name = os.fsencode(path).decode("latin-1") if octets else str(path)
    frames = []
    for look in (Cached.look, lambda *_, **__: None):
        monkeypatch.setattr(Cached, "look", look)
        fields = {"octets": True} if octets else {}
        await ready.send(wire.FsRequest(wire.OpStat(name, follow), **fields), 2000)
        frames.append(await ready.receive_frame(2000))
    assert frames[0] == frames[1]


async def test_attributes_in_memory_need_no_thread(
    ready: Host, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _no_threads(monkeypatch)
    assert any([(await ready.fs(wire.OpStat(str(tmp_path), True))).ok for _ in range(TRIES)])
    assert "os error 11" in await ready.error(wire.OpStat("/proc", True))


async def test_the_id_of_an_answer_is_free(ready: Host, tmp_path: Path) -> None:
    for _ in range(3):
        assert (await ready.ok(wire.OpStat(str(tmp_path), True), sid=3000)).kind == "dir"


async def test_a_cancellation_behind_the_answer_changes_nothing(ready: Host, tmp_path: Path) -> None:
    await ready.send(wire.FsRequest(wire.OpStat(str(tmp_path), True)), 3000)
    await ready.send(wire.Cancel(), 3000)
    assert (await ready.receive(3000)).ok
    assert await ready.nothing_for(3000)


async def test_an_answer_that_finds_no_room_waits_for_it(
    ready: Host, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Outbox, "reserve_nowait", lambda *_: False)
    _no_threads(monkeypatch)
    # (The session that waits in its place is seen by its error.)
    assert "os error 11" in await ready.error(wire.OpStat(str(tmp_path), True))


async def test_a_client_with_too_many_operations_gets_no_attributes(
    ready: Host, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_session, "_SESSIONS_PER_CLIENT", 0)
    assert (
        await ready.error(wire.OpStat(str(tmp_path), True))
        == "stat: Resource temporarily unavailable (os error 11)"
    )


async def test_a_client_without_descriptors_gets_no_attributes(
    ready: Host, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(FdHeadroom, "claim", lambda *_: False)
    assert "os error 24" in await ready.error(wire.OpStat(str(tmp_path), True))


async def test_the_agent_closes_the_list_of_mounts(agent: AgentFactory) -> None:
    def lists() -> int:
        return sum("mountinfo" in name for name in descriptors())

    before = lists()
    async with agent():
        assert lists() == before + 1
    assert lists() == before

"""Each system call that the agent makes beyond those of ``import trio``, refused in turn by a seccomp filter.

The agent works, or says before it is ready what it needs, or answers with the error of the one operation that is
this call. docs/sandbox.md shows the table to users.
"""

from __future__ import annotations

import errno
import os
import platform
import signal
import subprocess
import sys
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Final, NamedTuple

import pytest
import trio

from tests.hostile._refusing import AGENT, STEPS, calls_in, outcome, refusing
from tests.tools.installing import install
from tests.tools.leftovers import marked, marking
from tests.tools.limits import HANG
from tests.tools.users import as_root, shared_directory

if TYPE_CHECKING:
    from collections.abc import Iterator

ROOT: Final = Path(__file__).parents[2]

WORKS: Final = "works"
NAMED: Final = "named at the start"


class Row(NamedTuple):
    """A call's number on x86-64, and what becomes of the guest; otherwise the step that fails with an error."""

    number: int
    eperm: str = WORKS
    enosys: str | None = None  # `None`: the same

    def expected(self, code: int) -> str:
        found = self.eperm if code == errno.EPERM or self.enosys is None else self.enosys
        return WORKS if found == "user" and os.getuid() else found  # which only root tries


TABLE: Final = {
    "alarm": Row(37),
    "chdir": Row(80, "working directory"),
    "chmod": Row(90, "chmod"),
    "clone": Row(56, NAMED),
    "clone3": Row(435, NAMED, WORKS),  # the C library takes clone, but only where the kernel does not know clone3
    "connect": Row(42, "connect"),
    "copy_file_range": Row(326),
    "epoll_ctl": Row(233, NAMED),
    "epoll_wait": Row(232, NAMED),
    "exit": Row(60, NAMED),
    "fchown": Row(93),
    "flock": Row(73),
    "fsync": Row(74),
    "ftruncate": Row(77, "truncate"),
    "getegid": Row(108, NAMED),
    "geteuid": Row(107, NAMED),
    "getpid": Row(39, NAMED),
    "getppid": Row(110),
    "getpriority": Row(140),
    "getsid": Row(124),
    "getsockname": Row(51),
    "getsockopt": Row(55, "connect"),
    "getxattr": Row(191),
    "kill": Row(62, NAMED),
    "madvise": Row(28),
    "mkdir": Row(83, "mkdir"),
    "openat2": Row(437),
    "pidfd_open": Row(434),
    "pidfd_send_signal": Row(424),
    "poll": Row(7, NAMED),
    "prctl": Row(157),
    "preadv2": Row(327),
    "pwritev2": Row(328),
    "recvfrom": Row(45, NAMED),
    "rename": Row(82, "rename"),
    "rmdir": Row(84, "mkdir"),
    "rt_sigreturn": Row(15, NAMED),
    "sched_getscheduler": Row(145),
    "sched_setattr": Row(314),
    "sched_setscheduler": Row(144),
    "sendto": Row(44, NAMED),
    "setgroups": Row(116, "user"),
    "setpriority": Row(141),
    "setregid": Row(114, "user"),
    "setreuid": Row(113, "user"),
    "setsid": Row(112, NAMED),
    "setsockopt": Row(54, NAMED),
    "shutdown": Row(48, "connect"),
    "socket": Row(41, "connect"),
    "socketpair": Row(53, NAMED),
    "statx": Row(332),
    "symlink": Row(88, "symlink"),
    "tgkill": Row(234),
    "unlink": Row(87, "unlink"),
    "utimensat": Row(280),
    "vfork": Row(58),  # with Python 3.13, which starts programs by fork where it is refused
    "waitid": Row(247, NAMED),
    "write": Row(1, NAMED),
    "writev": Row(20, NAMED),
}

#: The kernel's own: it is made for a call that a signal has interrupted, and never by a program.
OF_THE_KERNEL: Final = {"restart_syscall"}

filters = pytest.mark.skipif(
    platform.machine() != "x86_64" or sys.platform != "linux", reason="the filter is for x86-64"
)


@pytest.fixture
def directory() -> Iterator[Path]:
    with shared_directory() as path, marking() as name:
        path.chmod(0o777)
        yield path
        for pid in marked(name):  # which an agent cannot always find that is refused something
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)


def _cases() -> Iterator[object]:
    for name, row in TABLE.items():
        yield pytest.param(name, errno.EPERM, id=f"{name}-EPERM")
        # (The second error takes as long, and is in most rows the same code.)
        marks = [pytest.mark.nightly] if row.enosys is None else []
        yield pytest.param(name, errno.ENOSYS, id=f"{name}-ENOSYS", marks=marks)


@filters
@pytest.mark.parametrize(("name", "code"), list(_cases()))
async def test_a_refused_call(name: str, code: int, directory: Path) -> None:
    row = TABLE[name]
    reason, failed = await outcome(refusing(row.number, code), directory, HANG / 2)
    expected = row.expected(code)
    if expected == NAMED:
        assert f"this system refuses what the agent needs: {name}" in reason
        assert "Traceback" not in reason
        return
    assert reason == ""
    assert set(failed) == (set() if expected == WORKS else {expected})
    if expected not in (WORKS, "connect"):
        assert os.strerror(code) in failed[expected]
    assert "internal error" not in str(failed)
    assert "TooSlowError" not in str(failed)


@filters
async def test_the_table_has_all_calls(directory: Path) -> None:
    install("strace", "strace")
    before, trace = directory / "before", directory / "trace"
    command = ["strace", "-f", "-o", str(before), sys.executable, "-P", "-c", "import trio"]
    done = await trio.run_process(command, check=False, capture_stderr=True)
    if done.returncode:
        pytest.skip(f"nothing can be traced here: {done.stderr.decode()}")
    reason, failed = await outcome(["strace", "-f", "-o", str(trace), *AGENT], directory, HANG)
    assert (reason, failed) == ("", {})
    found = calls_in(trace.read_bytes()) - calls_in(before.read_bytes())
    print(f"{len(found)} calls: {', '.join(sorted(found))}")  # noqa: T201
    assert found - OF_THE_KERNEL - set(TABLE) == set()
    assert len(found) > 30


def _documented(name: str, row: Row) -> str:
    def text(result: str) -> str:
        return result if result in (WORKS, NAMED) else f"an error of: {result}"

    return f"| `{name}` | {text(row.eperm)} | {text(row.eperm if row.enosys is None else row.enosys)} |"


def test_the_documentation_has_this_table() -> None:
    text = (ROOT / "docs" / "sandbox.md").read_text(encoding="utf-8")
    shown = [line for line in text.splitlines() if line.startswith("| `")]
    assert shown == [_documented(name, row) for name, row in sorted(TABLE.items())]


@as_root
async def test_there_is_no_proc(directory: Path) -> None:
    script = 'mount -t tmpfs none /proc && exec "$@"'
    command = ["unshare", "--mount", "sh", "-c", script, "sh", *AGENT]
    if subprocess.run([*command[:6], "true"], check=False, capture_output=True).returncode:  # noqa: ASYNC221
        pytest.skip("no mounts can be made here")
    reason, failed = await outcome(command, directory, HANG / 2)
    assert reason == ""
    # What has left its session is found through /proc only.
    assert set(failed) == {"kill"}


def test_every_step_is_of_use() -> None:
    steps = {row.eperm for row in TABLE.values()} - {WORKS, NAMED}
    assert steps < set(STEPS)

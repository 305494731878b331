"""The rank of our programs on a busy machine: theirs, and that of what they start."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest

from tests.tools.limits import HANG
from trio_console import _rank

PROGRAM = """\
import json, os, resource, subprocess, sys, threading
from trio_console import _rank
from trio_console._rank import go_first

def rank():
    return os.getpriority(os.PRIO_PROCESS, 0), *open("/proc/self/autogroup").read().split()[-1:]

if "old" in sys.argv:
    _rank._SCHED_SETATTR.clear()
if "given" in sys.argv:
    os.nice(3)
if "refused" in sys.argv and os.geteuid() == 0:
    resource.setrlimit(resource.RLIMIT_NICE, (0, 0))
    os.setuid(65534)
go_first()
found = {"own": rank()}
thread = threading.Thread(target=lambda: found.update(thread=rank()))
thread.start(); thread.join()

def along():
    found.update(along=rank())
    child = [sys.executable, "-c", "import os; print(os.nice(0))"]
    found.update(childs=int(subprocess.run(child, capture_output=True, check=True).stdout))

def there_and_back():
    _rank.going_along(along)
    found.update(back=rank())

thread = threading.Thread(target=there_and_back)
thread.start(); thread.join()
code = "import os; print(os.getpriority(os.PRIO_PROCESS, 0), *open('/proc/self/autogroup').read().split()[-1:])"
for name, session in (("child", False), ("command", True)) * ("refused" not in sys.argv):
    child = subprocess.run([sys.executable, "-c", code], start_new_session=session, capture_output=True, text=True)
    found[name] = child.stdout.split()
print(json.dumps(found))
"""

needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root may raise a rank")
needs_groups = pytest.mark.skipif(
    not os.path.exists("/proc/self/autogroup"), reason="this kernel does not group by sessions"
)


def group() -> list[str]:
    """The niceness of this program's group, or nothing: a program whose session nobody has made since the kernel
    began is in none."""
    with open("/proc/self/autogroup") as file:
        return file.read().split()[-1:]


def ranks(*arguments: str, leads: bool = True) -> dict[str, list[object]]:
    command = [sys.executable, "-c", PROGRAM, *arguments]
    done = subprocess.run(command, capture_output=True, check=True, timeout=HANG, start_new_session=leads)
    found: dict[str, list[object]] = json.loads(done.stdout)
    return found


@needs_root
@needs_groups
def test_a_program_goes_before_others_and_what_it_starts_does_not() -> None:
    found = ranks()
    assert found["own"] == [-19, "-19"]
    assert found["thread"] == [0, "-19"]
    assert found["child"] == ["0", "-19"]
    assert found["command"] == ["0", "0"]


@needs_root
@needs_groups
def test_a_thread_that_goes_along_has_the_programs_rank_and_what_it_starts_has_not() -> None:
    found = ranks()
    assert (found["along"], found["childs"]) == ([-19, "-19"], 0)


@needs_root
@needs_groups
def test_a_thread_has_its_rank_again_when_it_goes_along_no_more() -> None:
    assert ranks()["back"] == [0, "-19"]


@needs_root
@needs_groups
def test_what_a_program_starts_has_the_usual_rank_also_on_an_older_kernel() -> None:
    found = ranks("old")
    assert (found["own"], found["child"], found["command"]) == ([-19, "-19"], ["0", "-19"], ["0", "0"])
    assert found["childs"] == 0


@needs_root
@needs_groups
def test_a_program_that_shares_its_session_leaves_that_alone() -> None:
    before = group()
    assert ranks(leads=False)["own"] == [-19, *before]


PARENT = '''\
import subprocess, sys
from trio_console._rank import go_first
if "first" in sys.argv:
    go_first()
code = """
import os, threading
from trio_console._rank import go_first, going_along
go_first(for_parent=True)
print(os.nice(0), flush=True)
threading.Thread(target=lambda: print(going_along(lambda: os.nice(0)))).start()
"""
subprocess.run([sys.executable, "-c", code], check=True)
'''


@needs_root
@pytest.mark.parametrize(("parent", "own", "threads"), [("usual", -5, 0), ("first", -19, -19)])
def test_a_program_that_works_for_its_parent_goes_a_little_first_or_as_far_as_that_one(
    parent: str, own: int, threads: int
) -> None:
    """Its threads do not go before a parent of the usual rank."""
    assert [int(word) for word in _output([sys.executable, "-c", PARENT, parent]).split()] == [own, threads]


@needs_groups
def test_a_rank_that_was_given_is_kept() -> None:
    found = ranks("given")
    assert found["own"] == found["along"] == [3, "0"]


@needs_groups
def test_what_is_refused_is_passed_over() -> None:
    found = ranks("refused")
    assert found["own"] == found["along"] == [0, "0"]


SLICES = """\
import ctypes, os, struct, subprocess, sys
from trio_console._rank import go_first

def own_slice():
    found = ctypes.create_string_buffer(48)
    assert ctypes.CDLL(None).syscall(315, 0, found, 48, 0) == 0  # sched_getattr(2)
    return struct.unpack("=IIQiIQQQ", found)[5]

who = sys.argv[1]
if who == "nobody" and os.geteuid() == 0:
    os.setuid(65534)
if who != "child":
    go_first()
print(own_slice(), flush=True)
if who == "parent":
    subprocess.run([sys.executable, "-c", sys.argv[2], "child"], check=True)
"""


def _output(command: list[str]) -> bytes:
    return subprocess.run(command, capture_output=True, check=True, timeout=HANG).stdout


def slices(who: str) -> list[int]:
    command = [sys.executable, "-c", SLICES, who, SLICES]
    return [int(word) for word in _output(command).split()]


def knows_slices() -> bool:
    system = os.uname()
    release = tuple(int(part) for part in system.release.split(".")[:2])
    return system.machine == "x86_64" and release >= (6, 12)


needs_slices = pytest.mark.skipif(not knows_slices(), reason="the kernel has slices of one length")


@needs_slices
def test_a_program_that_goes_first_has_short_slices_and_what_it_starts_has_not() -> None:
    own, childs = slices("parent")
    assert own == 100_000
    assert childs > own


@needs_slices
def test_short_slices_need_no_rights() -> None:
    assert slices("nobody") == [100_000]


@pytest.mark.parametrize("machine", ["riscv64", "x86_64"])
def test_a_program_goes_first_also_where_it_cannot_ask_for_short_slices(
    monkeypatch: pytest.MonkeyPatch, machine: str
) -> None:
    monkeypatch.setattr(_rank, "_SCHED_SETATTR", {"x86_64": -1})  # no such call
    monkeypatch.setattr(os, "uname", lambda: os.uname_result(("Linux", "", "", "", machine)))
    before = os.sched_getscheduler(0), os.getpriority(os.PRIO_PROCESS, 0)
    _rank._ask_for_short_slices()
    assert (os.sched_getscheduler(0), os.getpriority(os.PRIO_PROCESS, 0)) == before

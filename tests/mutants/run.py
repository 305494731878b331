"""Makes one mutant after another in a copy of the tree, runs its finder, and reports the outcome.

A finder that fails, is killed by a signal, or does not end has found the mutant. Before that, all finders must
pass on the unchanged copy, because a finder that fails anyway proves nothing.

Only processes that were started here are ended: each process that a finder starts has a token in its environment,
and processes that are left when the finder has ended are identified by it.
"""

from __future__ import annotations

import compileall
import contextlib
import os
import pathlib
import py_compile
import queue
import re
import resource
import secrets
import shutil
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Final, NamedTuple, TypeVar

from tests.mutants.table import ROOT, path_of

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence

    from tests.mutants.table import Mutant

__all__ = [
    "BOUND",
    "ELSEWHERE",
    "EQUIVALENT",
    "FOUND",
    "HUNG",
    "INVALID",
    "SURVIVED",
    "Outcome",
    "Tree",
    "Verdict",
    "spread",
]

_T = TypeVar("_T")
_R = TypeVar("_R")

#: Seconds a finder may take; one that takes longer counts as hung. Finders take seconds, so this is for machines
#: with much else to do.
BOUND: Final = 90.0

#: The same for those that are known to hang, whose finders take a second or two otherwise.
HANG_BOUND: Final = 25.0

#: Seconds after which a wait in the finder of a mutant has hung: the wait fails, and says where.
#: (Without a mutant it is a minute; see `tests.tools.limits`.)
_HANG: Final = 15

#: Bytes of address space a process of a finder may take: a mutant that allocates for ever is to end by itself.
_MEMORY: Final = 6 * 2**30

#: Seconds for processes to be gone after SIGKILL; on the busiest machine they take a part of one.
_GONE: Final = 30.0

#: The files that a finder may need.
_COPIED: Final = ("trio_console", "tests", "examples", "benchmarks", "docs")

_TOKEN: Final = "TRIO_CONSOLE_MUTANT"


class Verdict(NamedTuple):
    """The words for an outcome, and whether it is the expected one."""

    word: str
    good: bool


FOUND: Final = Verdict("found", True)
HUNG: Final = Verdict("hung", True)
SURVIVED: Final = Verdict("SURVIVED", False)
INVALID: Final = Verdict("INVALID", False)
ELSEWHERE: Final = Verdict("ELSEWHERE", False)
EQUIVALENT: Final = Verdict("equivalent", True)


class Outcome(NamedTuple):
    """The outcome of a mutant or of a finder."""

    verdict: Verdict
    seconds: float
    by: str
    output: str = ""


class _Ended(NamedTuple):
    status: int | None  # `None`: it did not end in time
    seconds: float
    output: str


class Tree:
    """A copy of the repository, in a folder of its own, where modules are changed and finders run."""

    def __init__(self, folder: pathlib.Path, *, source: pathlib.Path = ROOT, bound: float = BOUND) -> None:
        self._root = folder / "tree"
        self._temporary = folder / "t"
        self.bound = bound
        self._root.mkdir(parents=True)
        ignored = shutil.ignore_patterns("__pycache__", "results", "crashes")
        for name in _COPIED:
            if (source / name).exists():
                shutil.copytree(source / name, self._root / name, ignore=ignored)
        for file in source.iterdir():
            if file.is_file() and not file.name.startswith("."):
                shutil.copy(file, self._root)
        # Every finder imports the package, and so do its guests: its bytecode is kept. It is checked by a hash of
        # the source, because a time would not show a second's change that leaves the size as it was.
        compileall.compile_dir(
            self._root / "trio_console", quiet=2, invalidation_mode=py_compile.PycInvalidationMode.CHECKED_HASH
        )

    # Mutants

    def run(self, mutant: Mutant, finder: Sequence[str]) -> Outcome:
        """Make the mutant, run the finder, and put things back."""
        path = path_of(mutant.module, self._root)
        source = path.read_bytes()
        mutated = mutant.apply(source)
        try:
            compile(mutated, str(path), "exec")
        except (SyntaxError, ValueError) as exc:
            return Outcome(INVALID, 0.0, f"it is no Python: {exc}")
        path.write_bytes(mutated)
        try:
            imported = self._start([sys.executable, "-c", f"import trio_console.{mutant.module}"])
            if imported.status != 0:
                return Outcome(INVALID, imported.seconds, "it cannot be imported", imported.output)
            bound = min(self.bound, HANG_BOUND) if mutant.hangs else self.bound
            outcome = self.find(finder, bound=bound, hang=_HANG)
            if outcome.verdict is FOUND and mutant.breaks not in outcome.output:
                return outcome._replace(verdict=ELSEWHERE)
            return outcome
        finally:
            path.write_bytes(source)

    def find(self, finder: Sequence[str], *, bound: float | None = None, hang: int | None = None) -> Outcome:
        """Run a finder on the tree as it is now; after ``hang`` seconds each wait in it has hung."""
        ended = self._start(_command(finder, self._root, self._temporary), bound=bound, hang=hang)
        if ended.status is None:
            begun = re.findall(r"^(tests/.*::.*?)(?: [A-Z]{5,7} .*)? *$", ended.output, re.MULTILINE)
            return Outcome(HUNG, ended.seconds, begun[-1] if begun else finder[0], ended.output)
        if ended.status == 0:
            return Outcome(SURVIVED, ended.seconds, "", ended.output)
        failed = re.findall(r"^(?:FAILED|ERROR) (tests/.+?)(?: - .*)?$", ended.output, re.MULTILINE)
        if failed:
            return Outcome(FOUND, ended.seconds, failed[0], ended.output)
        if ended.status < 0:
            return Outcome(FOUND, ended.seconds, f"died of signal {-ended.status}", ended.output)
        if _is_pytest(finder) and ended.status not in (1, 2):  # 2: an exception that ended pytest itself
            return Outcome(INVALID, ended.seconds, f"pytest ended with {ended.status}", ended.output)
        return Outcome(FOUND, ended.seconds, finder[0], ended.output)

    def failing(self, finders: Sequence[Sequence[str]]) -> list[str]:
        """The finders that do not pass on the unchanged tree, with their output."""
        nodes = sorted({node for finder in finders if _is_pytest(finder) for node in finder})
        others = sorted({tuple(finder) for finder in finders if not _is_pytest(finder)})
        bad: list[str] = []
        if nodes:
            # Nothing is changed now, so pytest may keep the bytecode of the tests.
            ended = self._start(_pytest(nodes, self._temporary, "-q"), bound=10 * self.bound, keep_bytecode=True)
            if ended.status != 0:
                named = re.findall(r"^(?:FAILED|ERROR:?) .*", ended.output, re.MULTILINE)
                bad += named or [f"pytest ended with {ended.status}:\n{ended.output[-2000:]}"]
        for finder in others:
            outcome = self.find(finder)
            if outcome.verdict is not SURVIVED:
                bad.append(f"{finder[0]} fails:\n{outcome.output[-2000:]}")
        return bad

    # Processes

    def _start(
        self,
        command: list[str],
        *,
        bound: float | None = None,
        hang: int | None = None,
        keep_bytecode: bool = False,
    ) -> _Ended:
        """Run a command until it ends or its time is over; no process of it is left."""
        token = secrets.token_hex(8)
        shutil.rmtree(self._temporary, ignore_errors=True)
        self._temporary.mkdir()
        env = {
            **os.environ,
            "PYTHONPATH": str(self._root),
            "PYTHONDONTWRITEBYTECODE": "" if keep_bytecode else "1",
            "PYTHONHASHSEED": "0",
            "TMPDIR": str(self._temporary),
            _TOKEN: token,
            **({} if hang is None else {"TRIO_CONSOLE_TEST_HANG": str(hang)}),
        }
        log = self._temporary.with_suffix(".log")
        begin = time.monotonic()
        with log.open("wb") as out:
            process = subprocess.Popen(
                command, cwd=self._root, env=env, stdin=subprocess.DEVNULL, stdout=out, stderr=out,
                start_new_session=True,
            )  # fmt: skip
            with contextlib.suppress(AttributeError, ProcessLookupError):
                resource.prlimit(process.pid, resource.RLIMIT_AS, (_MEMORY, _MEMORY))
            status: int | None
            try:
                status = process.wait(self.bound if bound is None else bound)
            except subprocess.TimeoutExpired:
                status = None
            finally:
                if process.returncode is None:
                    os.killpg(process.pid, signal.SIGKILL)
                    process.wait()
                _kill_marked(token)
        return _Ended(status, time.monotonic() - begin, log.read_text(errors="replace"))


def _kill_marked(token: str) -> None:
    """Kill what carries the token in its environment: also what has left the session it was started in.

    Until nothing carries it any more: a process is killed a while before it is gone, longer on a busy machine.
    """
    mark = f"{_TOKEN}={token}".encode()
    deadline = time.monotonic() + _GONE
    while pids := [pid for pid in _processes() if mark in _environment(pid)]:
        for pid in pids:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        if time.monotonic() > deadline:
            raise RuntimeError(
                f"the processes {pids} of a finder were killed and have not ended in {_GONE:g} seconds"
            )
        time.sleep(0.01)


def _processes() -> list[int]:
    return [int(name) for name in os.listdir("/proc") if name.isdigit()]


def _environment(pid: int) -> list[bytes]:
    try:
        return pathlib.Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
    except OSError:
        return []  # it has ended, or is of another user


# Finders


def _is_pytest(finder: Sequence[str]) -> bool:
    return ":" not in finder[0].partition("::")[0]


def _command(finder: Sequence[str], root: pathlib.Path, temporary: pathlib.Path) -> list[str]:
    if _is_pytest(finder):
        return _pytest(finder, temporary, "-v", "-x")  # so that the name of a test that hangs is there
    kind, _, target = finder[0].partition(":")
    if kind == "fuzz":
        return [sys.executable, "-m", "tests.fuzz", "--fixed", target]
    if kind == "corpus":
        files = sorted(str(path) for path in (root / "tests" / "fuzz" / "corpus" / target).iterdir())
        return [sys.executable, "-m", "tests.fuzz.one", "--replay", target, *files]
    raise ValueError(f"no such finder: {finder[0]}")


def _pytest(nodes: Sequence[str], temporary: pathlib.Path, *options: str) -> list[str]:
    plain = ("-p", "no:cacheprovider", "--tb=short", "--hypothesis-seed=0", f"--basetemp={temporary}/b")
    plain += ("-m", "not nightly")  # also what starts machines, which other runs leave out
    return [sys.executable, "-m", "pytest", *plain, *options, *nodes]


def spread(trees: Sequence[Tree], items: Iterable[_T], work: Callable[[Tree, _T], _R]) -> Iterator[_R]:
    """Work on each item with a tree that is free; results in the order of the items."""
    free: queue.SimpleQueue[Tree] = queue.SimpleQueue()
    for tree in trees:
        free.put(tree)

    def one(item: _T) -> _R:
        tree = free.get()
        try:
            return work(tree, item)
        finally:
            free.put(tree)

    with ThreadPoolExecutor(len(trees)) as pool:
        yield from pool.map(one, items)

"""The threads that start commands in cgroups: each has its own, and no thread of the agent stays in one."""

from __future__ import annotations

import errno
import os
import threading
from typing import TYPE_CHECKING, Any, cast

import pytest
import trio
import trio.testing

from tests.tools.limits import HANG, HELD
from trio_console._processes import COMMAND_MARK, Wanted
from trio_console._trio.threads import NoThreadError
from trio_console.agent._cgroups import Cgroup, Cgroups, Stay
from trio_console.agent._process import births as module
from trio_console.agent._process.births import Births
from trio_console.agent._process.hunt import Hunt, _Quarry

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable
    from pathlib import Path


class FakeCgroup:
    """A cgroup that knows which threads are in it."""

    def __init__(self, owner: FakeCgroups, number: int) -> None:
        self.owner = owner
        self.number = number
        self.stay = Stay.THREAD_IN
        self.mark = ""
        self.populated = False
        self.over = False
        self.frozen = 0

    def enter(self) -> None:
        self.owner.fail("enter")
        self.owner.where[threading.get_ident()] = self.number

    def freeze(self) -> None:
        assert self.stay is Stay.THREAD_OUT
        assert self.number not in self.owner.where.values()
        self.frozen += 1

    def thaw(self) -> None:
        self.frozen = 0

    def kill(self) -> None:
        self.freeze()
        self.populated = False

    def members(self) -> frozenset[int]:
        return frozenset()

    def is_populated(self) -> bool:
        return self.populated

    def end(self) -> bool:
        self.over = self.over or not self.populated
        return self.over


class FakeCgroups:
    """A directory whose operations fail on demand. The number 0 stands for the agent's own cgroup."""

    def __init__(self) -> None:
        self.made: list[FakeCgroup] = []
        self.where: dict[int, int] = {}
        self.errors: dict[str, int] = {}
        self.gate = threading.Event()
        self.gate.set()
        self.closed = False

    def fail(self, what: str) -> None:
        if what in self.errors:
            raise OSError(self.errors[what], what)

    def new(self) -> FakeCgroup:
        assert self.gate.wait(HELD)
        self.fail("new")
        self.made.append(FakeCgroup(self, len(self.made) + 1))
        return self.made[-1]

    def take_back(self, cgroup: FakeCgroup) -> bool:
        return cgroup.end()

    def leave(self) -> None:
        self.fail("leave")
        self.where[threading.get_ident()] = 0

    def close(self) -> None:
        self.closed = True

    def here(self) -> int:
        """The cgroup in which the calling thread is."""
        return self.where.get(threading.get_ident(), 0)


@pytest.fixture
def cgroups() -> FakeCgroups:
    return FakeCgroups()


@pytest.fixture
async def births(cgroups: FakeCgroups) -> AsyncIterator[Births]:
    births = Births(cast("Cgroups", cgroups))
    yield births
    cgroups.gate.set()
    await births.end()
    assert cgroups.closed
    assert births._threads == 0


async def becomes(condition: Callable[[], object]) -> None:
    with trio.fail_after(HANG):
        while not condition():
            await trio.sleep(0.001)


async def test_each_command_is_started_in_a_cgroup_of_its_own(cgroups: FakeCgroups, births: Births) -> None:
    seen = [await births.run(f"a.{number}.", cgroups.here) for number in range(5)]
    assert 0 not in seen
    assert len(set(seen)) == 5
    for number, where in enumerate(seen):
        [cgroup] = cast("list[Any]", births.of(f"a.{number}."))
        assert (cgroup.number, cgroup.mark) == (where, f"a.{number}.")


async def test_commands_that_are_started_at_once_have_cgroups_of_their_own(
    cgroups: FakeCgroups, births: Births
) -> None:
    together = threading.Barrier(5)
    seen: list[int] = []

    def start() -> int:
        together.wait(HANG)
        return cgroups.here()

    async def run(number: int) -> None:
        seen.append(await births.run(f"a.{number}.", start))

    async with trio.open_nursery() as nursery:
        for number in range(5):
            nursery.start_soon(run, number)
    assert 0 not in seen
    assert len(set(seen)) == 5
    await becomes(lambda: births._threads == len(births._ready) == module._READY)


async def test_a_thread_is_ready_before_the_first_command(cgroups: FakeCgroups, births: Births) -> None:
    births.prepare()
    await becomes(lambda: births._ready)
    assert cgroups.where == {next(iter(cgroups.where)): 1}
    assert await births.run("a.1.", cgroups.here) == 1
    await becomes(lambda: births._ready)
    assert await births.run("a.2.", cgroups.here) == 2
    assert len(cgroups.where) == 1


async def test_a_thread_that_is_ready_is_not_disturbed(births: Births, monkeypatch: pytest.MonkeyPatch) -> None:
    births.prepare()
    await becomes(lambda: births._ready)
    given: list[object] = []
    with monkeypatch.context() as patched:
        patched.setattr(births, "_give", lambda *order: given.append(order))
        births.prepare()
    assert not given


async def test_a_thread_that_gets_ready_can_be_waited_for(cgroups: FakeCgroups, births: Births) -> None:
    cgroups.gate.clear()
    births.prepare()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(births.wait_prepared)
        await trio.testing.wait_all_tasks_blocked()
        assert not births._ready
        cgroups.gate.set()
    assert len(births._ready) == 1


async def test_the_command_goes_on_while_its_thread_moves_on(cgroups: FakeCgroups, births: Births) -> None:
    def start() -> int:
        cgroups.gate.clear()
        return cgroups.here()

    with trio.fail_after(HANG):
        assert await births.run("a.1.", start) == 1
    assert cgroups.made[0].stay is Stay.THREAD_IN
    cgroups.gate.set()
    await becomes(lambda: cgroups.made[0].stay is Stay.THREAD_OUT)


async def test_the_cgroups_of_a_client_are_those_of_its_commands(births: Births) -> None:
    for mark in ("x.1-0.1.", "x.1-0.2.", "x.11-0.3."):
        await births.run(mark, int)
    assert {cgroup.mark for cgroup in births.of("x.1-0.")} == {"x.1-0.1.", "x.1-0.2."}
    assert births.of("x.2-0.") == []


async def test_a_start_that_fails_leaves_no_cgroup(cgroups: FakeCgroups, births: Births) -> None:
    def fail() -> None:
        raise ValueError("a start")

    with pytest.raises(ValueError, match="a start"):
        await births.run("a.1.", fail)
    assert births.of("a.1.") == []
    await becomes(lambda: cgroups.made[0].stay is Stay.THREAD_OUT)
    await births.run("a.2.", int)
    await becomes(lambda: cgroups.made[0].over)


async def test_a_start_is_not_made_when_it_is_cancelled_before(births: Births) -> None:
    called: list[int] = []
    with trio.CancelScope() as scope:
        scope.cancel()
        await births.run("a.1.", lambda: called.append(1))
    assert not called


async def test_a_start_that_is_cancelled_is_waited_for(births: Births) -> None:
    gate = threading.Event()
    with trio.CancelScope() as scope:

        def start() -> str:
            trio.from_thread.run_sync(scope.cancel, trio_token=token)
            assert gate.wait(HELD)
            return "started"

        token = trio.lowlevel.current_trio_token()
        async with trio.open_nursery() as nursery:

            @nursery.start_soon
            async def _open_the_gate() -> None:
                with trio.CancelScope(shield=True):
                    await becomes(lambda: scope.cancel_called)
                    await trio.testing.wait_all_tasks_blocked()
                gate.set()

            assert await births.run("a.1.", start) == "started"
            assert scope.cancel_called


async def test_without_a_thread_it_says_so(births: Births, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_thread(*_: object) -> None:
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(trio.lowlevel, "start_thread_soon", no_thread)
    births.prepare()
    with pytest.raises(NoThreadError, match="for a command"):
        await births.run("a.1.", int)


# --- what cannot be done --------------------------------------------------------------------------


@pytest.mark.parametrize("what", ["new", "enter"])
@pytest.mark.parametrize("code", [errno.EMFILE, errno.EAGAIN, errno.ENOENT])
async def test_a_lack_costs_a_command_its_cgroup_and_no_more(
    cgroups: FakeCgroups, births: Births, what: str, code: int
) -> None:
    cgroups.errors[what] = code
    assert await births.run("a.1.", cgroups.here) == 0
    assert births.of("a.1.") == []
    await becomes(lambda: not births._threads)
    cgroups.errors.clear()
    assert await births.run("a.2.", cgroups.here) != 0


@pytest.mark.parametrize("what", ["new", "enter"])
async def test_what_is_refused_is_not_tried_again(cgroups: FakeCgroups, births: Births, what: str) -> None:
    cgroups.errors[what] = errno.EPERM
    assert await births.run("a.1.", cgroups.here) == 0
    await becomes(lambda: not births._threads)
    cgroups.errors.clear()
    assert await births.run("a.2.", cgroups.here) == 0
    assert births.of("a.2.") == []


async def test_a_thread_leaves_its_cgroup_when_there_is_no_next_one(cgroups: FakeCgroups, births: Births) -> None:
    def start() -> int:
        cgroups.errors["new"] = errno.EMFILE
        return cgroups.here()

    assert await births.run("a.1.", start) == 1
    await becomes(lambda: not births._threads)
    assert cgroups.made[0].stay is Stay.THREAD_OUT
    assert set(cgroups.where.values()) == {0}


async def stick(cgroups: FakeCgroups, births: Births) -> None:
    """Start a command whose thread cannot leave the cgroup."""

    def start() -> None:
        cgroups.errors.update(new=errno.EMFILE, leave=errno.EPERM)

    await births.run("a.1.", start)
    await becomes(lambda: not births._threads)


async def test_a_cgroup_that_a_thread_cannot_leave_is_left_alone(cgroups: FakeCgroups, births: Births) -> None:
    await stick(cgroups, births)
    assert cgroups.made[0].stay is Stay.THREAD_STUCK
    cgroups.made[0].populated = True
    hunt = Hunt("a.", births, print)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(hunt.run)
        with trio.fail_after(HANG):
            assert await hunt.kill(Wanted(COMMAND_MARK, "a.1."), HANG) == 0
            # (A process of this machine that is in an exec cannot be judged, and counts until it can.)
            assert not all([await hunt.any_left(Wanted(COMMAND_MARK, "a.1.")) for _ in range(20)])
        nursery.cancel_scope.cancel()
    births.note_over("a.1.")
    cgroups.errors.clear()
    births._tidy(cast("Cgroups", cgroups))
    assert not cgroups.made[0].over
    assert cgroups.made[0].frozen == 0


async def test_after_a_thread_was_stuck_commands_are_started_without_cgroups(
    cgroups: FakeCgroups, births: Births
) -> None:
    await stick(cgroups, births)
    cgroups.errors.clear()
    await births.run("a.2.", int)
    assert births.of("a.2.") == []
    assert len(cgroups.made) == 1


async def test_a_cgroup_is_not_frozen_before_its_thread_has_left(cgroups: FakeCgroups, births: Births) -> None:
    await births.run("a.1.", cgroups.gate.clear)
    [cgroup] = cgroups.made
    hunt = Hunt("a.", births, print)
    ended: list[int] = []
    async with trio.open_nursery() as nursery:
        nursery.start_soon(hunt.run)

        @nursery.start_soon
        async def _kill() -> None:
            ended.append(await hunt.kill(Wanted(COMMAND_MARK, "a.1."), HANG))

        cgroup.populated = True  # by the thread
        await becomes(lambda: hunt._quarries and hunt._quarries[0].is_populated)
        assert (cgroup.frozen, ended) == (0, [])
        cgroups.gate.set()
        await becomes(lambda: cgroup.frozen > 3 or ended)
        assert not ended
        cgroup.populated = False
        await becomes(lambda: ended)
        assert ended == [0]
        nursery.cancel_scope.cancel()


async def test_a_hunt_does_not_freeze_a_thread_of_the_agent(tmp_path: Path) -> None:
    (tmp_path / "cgroup.events").write_text("populated 1\nfrozen 0\n")
    births = Births(None)
    births._born["a.1."] = Cgroup(str(tmp_path))  # which a thread has entered, and not left
    hunt = Hunt("a.", births, print)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(hunt.run)
        assert await hunt.kill(Wanted(COMMAND_MARK, "a.1."), 0.2) == 1
        nursery.cancel_scope.cancel()


async def test_what_does_not_die_is_told_and_goes_on(cgroups: FakeCgroups, births: Births) -> None:
    await births.run("a.1.", int)
    [cgroup, *_] = cgroups.made
    cgroup.populated = True
    hunt = Hunt("a.", births, print)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(hunt.run)
        assert await hunt.kill(Wanted(COMMAND_MARK, "a.1."), 0.3) == 1
        nursery.cancel_scope.cancel()
    assert cgroup.frozen == 0


async def test_a_scan_that_is_late_freezes_nothing_that_was_let_go(cgroups: FakeCgroups, births: Births) -> None:
    await births.run("a.1.", int)
    [cgroup, *_] = cgroups.made
    await becomes(lambda: cgroup.stay is Stay.THREAD_OUT)
    quarry = _Quarry(Wanted(COMMAND_MARK, "a.1."), births.of("a.1."))
    quarry.freeze()
    assert cgroup.frozen == 1
    quarry.thaw()
    quarry.freeze()
    assert cgroup.frozen == 0


# --- when commands are over -----------------------------------------------------------------------


async def started(births: Births, mark: str) -> FakeCgroup:
    """The cgroup of a new command, which its thread has left."""
    await births.run(mark, int)
    [cgroup] = births.of(mark)
    await becomes(lambda: cgroup.stay is Stay.THREAD_OUT)
    return cast("FakeCgroup", cgroup)


async def test_a_cgroup_in_which_something_lives_is_kept(
    cgroups: FakeCgroups, births: Births, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_FEW", 3)
    births._many = 3
    for number in range(3):
        cgroup = await started(births, f"a.{number}.")
        cgroup.populated = True
        births.note_over(f"a.{number}.")
    await becomes(lambda: births._threads == len(births._ready))
    births._tidy(cast("Cgroups", cgroups))
    assert len(births.of("a.")) == 3
    for cgroup in cgroups.made:
        cgroup.populated = False
    births._many = 3
    births._tidy(cast("Cgroups", cgroups))
    assert births.of("a.") == []


async def test_many_that_are_over_wake_up_a_thread(cgroups: FakeCgroups, births: Births) -> None:
    marks = [f"a.{number}." for number in range(module._MANY_OVER)]
    used = [await started(births, mark) for mark in marks]
    await becomes(lambda: births._threads == len(births._ready))
    for mark in marks:
        births.note_over(mark)
        births.note_over(f"{mark}unknown")
    await becomes(lambda: not births.of("a."))
    assert all(cgroup.over for cgroup in used)


async def test_what_lives_in_the_end_is_killed(cgroups: FakeCgroups) -> None:
    births = Births(cast("Cgroups", cgroups))
    await births.run("a.1.", int)
    cgroups.made[0].populated = True
    await becomes(lambda: births._ready)
    await births.end()
    assert cgroups.made[0].over
    assert set(cgroups.where.values()) == {0}
    assert cgroups.closed


async def test_without_cgroups_commands_are_started_all_the_same() -> None:
    births = Births(None)
    births.prepare()
    assert await births.run("a.1.", os.getpid) == os.getpid()
    births.note_over("a.1.")
    assert births.of("a.1.") == []
    await births.end()

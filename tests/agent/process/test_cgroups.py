"""Commands that have cgroups are found whole, and nothing but them is touched."""

from __future__ import annotations

import os
import signal
import sys
from typing import TYPE_CHECKING

import pytest
import trio

from tests.agent.conftest import running_agent
from tests.tools.cgroups import cgroup_of, members, needs_cgroups
from tests.tools.leftovers import becomes, runs
from tests.tools.limits import HANG
from tests.tools.users import as_root
from trio_console import _wire as wire
from trio_console._wire.ids import slot_ids
from trio_console.agent import _serve
from trio_console.agent._cgroups import open_cgroups
from trio_console.agent._process.births import Births

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator

    from tests.agent._host import Host

pytestmark = needs_cgroups

TO_THE_END = wire.ExecEnds(None)
IDS = slot_ids(1)

#: A daemon that has no mark and no stream, is in a session of its own, and has lost its parent. It tells its id.
DAEMON = "env -i setsid sh -c 'sh -c \"echo \\$\\$; exec sleep 1000 </dev/null >/dev/null 2>&1\" & exit 0'"


@pytest.fixture
def pids() -> Iterator[list[int]]:
    """Processes to be killed when the test is over."""
    pids: list[int] = []
    yield pids
    for pid in filter(runs, pids):
        os.kill(pid, signal.SIGKILL)


@pytest.fixture
async def host(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Host]:
    """The host of an agent that has cgroups, although it is a part of this program."""
    cgroups = open_cgroups()
    assert cgroups is not None
    monkeypatch.setattr(_serve, "_births", lambda _: Births(cgroups))
    async with running_agent() as host:
        yield host
    assert not await trio.Path(cgroups.path).exists()


async def said(host: Host, sid: int, pids: list[int]) -> int:
    """The id that a daemon tells when it has lost its parent."""
    message = await host.receive(sid)
    assert isinstance(message, wire.ExecStdout)
    pids.append(int(message.data))
    await becomes(pids[-1], b"sleep")
    return pids[-1]


async def has_lost_its_parent(pid: int) -> None:
    with trio.fail_after(HANG):
        while (await trio.Path(f"/proc/{pid}/stat").read_text()).rpartition(")")[2].split()[1] not in (
            "1",
            str(os.getpid()),
        ):
            await trio.sleep(0.001)


async def test_a_daemon_that_has_got_rid_of_everything_dies_with_its_command(host: Host, pids: list[int]) -> None:
    sid = await host.start("sh", "-c", f"{DAEMON}; exec sleep 1000", ends=TO_THE_END)
    pid = await said(host, sid, pids)
    await has_lost_its_parent(pid)
    await host.send(wire.ExecKill(10_000), sid)
    assert (await host.collect(sid)).last == wire.ExecExited(-1, 9, alive=0)
    assert not runs(pid)


async def test_a_daemon_that_outlives_its_command_lives_on_and_can_be_killed(host: Host, pids: list[int]) -> None:
    outcome = await host.sh(DAEMON, ends=TO_THE_END)
    [started] = outcome.all(wire.ExecStarted)
    assert isinstance(started.command, int)
    pids.append(int(outcome.stdout))
    await becomes(pids[0], b"sleep")
    cgroup = cgroup_of(pids[0])
    for _ in range(40):  # these are enough for a look for cgroups that are empty
        assert (await host.run("true")).last == wire.ExecExited(0)
    assert runs(pids[0])
    assert members(cgroup) == pids
    sid = host.new_id()
    await host.send(wire.KillBackground(started.command, 10_000), sid)
    assert await host.receive(sid) == wire.BackgroundKilled(0)
    assert not runs(pids[0])


async def test_a_daemon_dies_when_its_client_disconnects(host: Host, pids: list[int]) -> None:
    sid = await host.start("sh", "-c", f"{DAEMON}; exec sleep 1000", sid=IDS[0], ends=TO_THE_END)
    other = await host.start("sh", "-c", f"{DAEMON}; exec sleep 1000", ends=TO_THE_END)
    pid, spared = await said(host, sid, pids), await said(host, other, pids)
    await host.send(wire.ClientDisconnected(IDS.start, IDS.stop))
    with trio.fail_after(HANG):
        while runs(pid):
            await trio.sleep(0.001)
    assert runs(spared)


@as_root
async def test_a_daemon_of_another_user_dies_with_its_command(host: Host, pids: list[int]) -> None:
    sid = await host.start("sh", "-c", f"{DAEMON}; exec sleep 1000", user="nobody", ends=TO_THE_END)
    pid = await said(host, sid, pids)
    await host.send(wire.ExecKill(10_000), sid)
    assert (await host.collect(sid)).last == wire.ExecExited(-1, 9, alive=0)
    assert not runs(pid)


async def test_a_daemon_of_a_terminal_dies_with_its_command(host: Host, pids: list[int]) -> None:
    sid = await host.start("sh", "-c", f"{DAEMON}; exec sleep 1000", tty=True, ends=TO_THE_END)
    pid = await said(host, sid, pids)
    await host.send(wire.ExecKill(10_000), sid)
    assert (await host.collect(sid)).last.alive == 0
    assert not runs(pid)


async def test_a_terminal_outlives_its_command_while_a_daemon_lives(host: Host, pids: list[int]) -> None:
    # The daemon opens the terminal again, when no process has it open.
    inner = "exec 1>/dev/null; echo $$ >&2; exec 2>/dev/null; sleep 0.2; echo more >$0"
    script = f"env -i setsid sh -c 'sh -c \"{inner.replace('$', chr(92) + '$')}\" $0 & exit 0' $(tty) </dev/null"
    sid = await host.start("sh", "-c", script, tty=True, ends=TO_THE_END)
    with trio.fail_after(HANG):
        assert b"more" in (await host.collect(sid)).stdout


#: A process that is always another one: each starts the next, and ends.
HOPPER = "import os\nos.setsid()\nos.write(1, b'hops')\nos.close(1)\nwhile True:\n if os.fork(): os._exit(0)"

#: Processes that start processes, with a byte from a pipe for each; one that ends puts its byte back.
BOMB = """
import os
os.setsid()
reader, writer = os.pipe()
os.write(writer, bytes(50))
os.write(1, b"hops")
os.close(1)
while os.read(reader, 1):
    if not os.fork() and os.fork():
        os.write(writer, b"x")
        os._exit(0)
"""


@pytest.mark.parametrize("script", [HOPPER, BOMB], ids=["hopper", "bomb"])
async def test_what_forks_faster_than_it_is_found_dies(host: Host, script: str) -> None:
    command = f'echo $$; env -i {sys.executable} -I -S -c "$0" & exec sleep 1000'
    sid = await host.start("sh", "-c", command, script, ends=TO_THE_END)
    text = b""
    with trio.fail_after(HANG):
        while b"hops" not in text:
            text += (await host.receive(sid)).data
        cgroup = cgroup_of(int(text.split()[0]))
        await host.send(wire.ExecKill(10_000), sid)
        last = (await host.collect(sid)).last
    assert (last.signal, last.alive) == (9, 0)
    assert members(cgroup) == []


async def test_a_program_of_many_threads_counts_once_and_dies(host: Host, pids: list[int]) -> None:
    code = (
        "import os, threading, time\nfor _ in range(9): threading.Thread(target=time.sleep, args=(1000,)).start()"
    )
    script = f"env -i setsid {sys.executable} -c '{code}\nprint(os.getpid(), flush=True)' & sleep 1000"
    sid = await host.start("sh", "-c", script, ends=TO_THE_END)
    message = await host.receive(sid)
    pids.append(int(message.data))
    assert len(members(cgroup_of(pids[0]))) > 10
    await host.send(wire.ExecKill(10_000), sid)
    assert (await host.collect(sid)).last == wire.ExecExited(-1, 9, alive=0)
    assert not runs(pids[0])


@as_root
async def test_what_root_has_moved_out_of_its_cgroup_is_found_by_its_mark(host: Host, pids: list[int]) -> None:
    sid = await host.start("sh", "-c", "setsid sh -c 'echo $$; exec sleep 1000' & wait", ends=TO_THE_END)
    pid = await said(host, sid, pids)
    top = cgroup_of(pid).parent.parent
    (top / "cgroup.procs").write_text(str(pid))
    await host.send(wire.ExecKill(10_000), sid)
    assert (await host.collect(sid)).last == wire.ExecExited(-1, 9, alive=0)
    assert not runs(pid)


async def test_what_is_in_a_cgroup_that_a_command_has_made_dies_with_it(host: Host, pids: list[int]) -> None:
    sid = await host.start("sh", "-c", f"{DAEMON}; exec sleep 1000", ends=TO_THE_END)
    pid = await said(host, sid, pids)
    own = cgroup_of(pid)
    inner = own / "inner"
    inner.mkdir()
    (inner / "cgroup.type").write_text("threaded")
    (inner / "cgroup.threads").write_text(str(pid))
    await host.send(wire.ExecKill(10_000), sid)
    assert (await host.collect(sid)).last == wire.ExecExited(-1, 9, alive=0)
    assert not runs(pid)
    await used_again(host)
    assert not inner.exists()


# --- cgroups are used again -----------------------------------------------------------------------


async def where(host: Host) -> str:
    """The cgroup of a command that ends at once."""
    outcome = await host.run("cat", "/proc/self/cgroup")
    [own] = [line for line in outcome.stdout.decode().splitlines() if line.startswith("0::")]
    return own.rpartition("/")[2]


async def used_again(host: Host) -> set[str]:
    """The names of the cgroups of some commands, one after the other."""
    return {await where(host) for _ in range(30)}


async def test_each_command_has_an_empty_cgroup_and_it_is_used_again(host: Host) -> None:
    sid = await host.start("sh", "-c", "echo $$; cat; exit 0")
    message = await host.receive(sid)
    held = cgroup_of(int(message.data))
    seen = await used_again(host)
    assert len(seen) < 15
    assert held.name not in seen
    assert len(members(held)) == 2
    await host.send(wire.ExecStdin(b""), sid)
    await host.collect(sid)


async def test_a_cgroup_that_was_frozen_is_not_used_again(host: Host, pids: list[int]) -> None:
    sid = await host.start("sh", "-c", "echo $$; exec sleep 1000", ends=TO_THE_END)
    cgroup = cgroup_of(await said(host, sid, pids))
    await host.send(wire.ExecKill(10_000), sid)
    await host.collect(sid)
    assert cgroup.name not in await used_again(host)
    assert not cgroup.exists()


async def test_the_cgroups_of_many_commands_are_removed_when_these_are_over(host: Host) -> None:
    sids = [await host.start("sh", "-c", "echo $$; cat") for _ in range(60)]
    [top] = {cgroup_of(int((await host.receive(sid)).data)).parent for sid in sids}
    assert len([path for path in top.iterdir() if path.is_dir()]) >= 60
    for sid in sids:
        await host.send(wire.ExecStdin(b""), sid)
        await host.collect(sid)
    with trio.fail_after(HANG):
        while len([path for path in top.iterdir() if path.is_dir()]) > 50:
            await trio.sleep(0.001)

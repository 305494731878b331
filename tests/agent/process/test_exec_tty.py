"""A command on a terminal."""

from __future__ import annotations

import os
import pwd
from typing import TYPE_CHECKING

from trio_console import _wire as wire
from trio_console.agent._process import session as _exec

if TYPE_CHECKING:
    import pytest

    from tests.agent._host import Host


async def test_the_terminal_has_the_size_asked_for(host: Host) -> None:
    outcome = await host.run("stty", "size", tty=True, rows=33, cols=132)
    assert outcome.stdout == b"33 132\r\n"


async def test_all_three_streams_are_the_controlling_terminal(host: Host) -> None:
    outcome = await host.sh("test -t 0 && test -t 1 && test -t 2 && echo ok >/dev/tty", tty=True)
    assert outcome.stdout == b"ok\r\n"


async def test_error_output_arrives_as_stdout(host: Host) -> None:
    outcome = await host.sh("echo oops >&2", tty=True)
    assert (outcome.stdout, outcome.stderr) == (b"oops\r\n", b"")


async def test_resize_is_seen_and_signalled(host: Host) -> None:
    script = "trap 'stty size; exit' WINCH; echo ready; while :; do sleep 0.01; done"
    sid = await host.start("/bin/sh", "-c", script, tty=True)
    await host.read_stdout(sid, b"ready\r\n")
    await host.send(wire.ExecResize(rows=50, cols=100), sid)
    assert (await host.collect(sid)).stdout == b"50 100\r\n"


async def test_a_resize_before_the_start_is_not_lost(host: Host) -> None:
    await host.request("/bin/sh", "-c", "read x; stty size", sid=5, tty=True)
    await host.send(wire.ExecResize(rows=11, cols=22), 5)
    await host.send(wire.ExecStdin(b"\n"), 5)
    assert (await host.collect(5)).stdout.endswith(b"11 22\r\n")


async def test_resize_without_a_terminal_is_ignored(host: Host) -> None:
    sid = await host.start("cat")
    await host.send(wire.ExecResize(rows=50, cols=100), sid)
    await host.send(wire.ExecStdin(b""), sid)
    assert (await host.collect(sid)).messages == [wire.ExecExited(code=0)]


async def test_an_empty_chunk_is_not_end_of_file(host: Host) -> None:
    sid = await host.start("cat", tty=True)
    await host.send(wire.ExecStdin(b""), sid)
    await host.send(wire.ExecStdin(b"still here\n"), sid)
    await host.read_stdout(sid, b"still here\r\nstill here\r\n")
    await host.send(wire.ExecStdin(b"\x04"), sid)  # this is
    assert (await host.collect(sid)).last == wire.ExecExited(code=0)


async def test_control_c_interrupts(host: Host) -> None:
    sid = await host.start("/bin/sh", "-c", "echo ready; exec cat", tty=True)
    await host.read_stdout(sid, b"ready\r\n")
    await host.send(wire.ExecStdin(b"\x03"), sid)
    assert (await host.collect(sid)).last == wire.ExecExited(code=-1, signal=2)


async def test_output_before_an_immediate_exit_is_not_lost(host: Host) -> None:
    for _ in range(5):
        outcome = await host.run("seq", "20000", tty=True)
        assert outcome.stdout == b"".join(b"%d\r\n" % n for n in range(1, 20001))


async def test_a_slow_reader_gets_all_that_was_there_at_the_exit(
    host: Host, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_exec, "DRAIN_GRACE", 0.0)
    # Fewer bytes than a terminal holds, so that the leader can exit at once. A child keeps the terminal open.
    script = "trap '' HUP; sleep 60 & echo $!; head -c 3000 /dev/zero"
    sid = await host.start("/bin/sh", "-c", script, tty=True, window=100)
    received = b""
    while not isinstance(message := await host.receive(sid), wire.ExecExited):
        received += message.data
        await host.send(wire.Credit("stdout", len(message.data)), sid)
    pid, zeros = received.split(b"\r\n")
    assert len(zeros) == 3000
    os.kill(int(pid), 9)


async def test_writing_to_a_terminal_nobody_has_open_fails_like_any_write(host: Host) -> None:
    sid = await host.start("/bin/sh", "-c", "exec <&- >&- 2>&-; sleep 60", tty=True, window=2**20)
    # The end of the output is no exit. The terminal is hung up now.
    await host.send(wire.ExecSignal(9), sid)
    assert (await host.collect(sid)).last == wire.ExecExited(code=-1, signal=9)


async def test_the_terminal_belongs_to_the_user(host: Host) -> None:
    user = "daemon" if os.getuid() == 0 else pwd.getpwuid(os.getuid()).pw_name
    outcome = await host.sh('stat -c %U "$(tty)"', tty=True, user=user)
    assert outcome.stdout.strip().decode() == user


async def test_hanging_up_ends_what_is_left_in_the_foreground(host: Host) -> None:
    sid = await host.start("/bin/sh", "-c", "echo $$; exec cat", tty=True)
    await host.read_stdout(sid, b"\r\n")
    await host.send_raw(wire.encode_frame(sid, 0, b"\xff"))
    assert isinstance((await host.collect(sid)).last, wire.Error)

"""A terminal is one, and lasts until its last process is over; closed descriptors of this program do no harm."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from subprocess import PIPE
from typing import TYPE_CHECKING

import trio

from tests.at_home.cases.streams import read_all, read_line
from tests.at_home.table import case

if TYPE_CHECKING:
    from tests.at_home.places import Here


async def on_terminal(here: Here, script: str, **options: object) -> object:
    done = await here.run_process(
        ["bash", "-c", script], tty=True, capture_stdout=True, check=False, drain=None, **options
    )
    return done.returncode, done.stdout


@case("terminal")
async def all_three_descriptors_are_a_terminal(here: Here) -> object:
    return await on_terminal(here, "test -t 0 && test -t 1 && test -t 2 && echo yes")


@case("terminal")
async def a_terminal_that_everybody_lets_go_for_a_while_lives_on(here: Here) -> object:
    script = "tty=$(tty); echo one; exec 0<&- 1>&- 2>&-; sleep 0.4; exec >$tty; echo two"
    return await on_terminal(here, script)


@case("terminal")
async def a_terminal_that_is_let_go_again_and_again_lives_on(here: Here) -> object:
    script = "tty=$(tty); exec 0<&- 1>&- 2>&-; for i in 1 2 3 4 5; do echo $i >$tty; sleep 0.05; done"
    return await on_terminal(here, script)


@case("terminal")
async def a_terminal_has_a_type(here: Here) -> object:
    return await on_terminal(here, 'test -n "$TERM" && echo yes')


@case("terminal")
async def a_type_that_was_given_is_kept(here: Here) -> object:
    return await on_terminal(here, "echo $TERM", env={"TERM": "vt100"})


@case("terminal")
async def a_terminal_has_the_size_that_was_given(here: Here) -> object:
    return await on_terminal(here, "stty size", rows=10, cols=33)


@case("terminal")
async def the_terminal_is_the_controlling_one(here: Here) -> object:
    return await on_terminal(here, "echo by name >/dev/tty; ps -o tty= -p $$ | grep -q pts && echo ours")


@case("terminal")
async def typed_characters_are_echoed_and_read(here: Here) -> object:
    async with here.open_process(
        ["bash", "-c", "read line; echo got $line"], tty=True, stdin=PIPE, stdout=PIPE
    ) as process:
        await process.stdin.send_all(b"abc\n")
        return await read_all(process.stdout), await process.wait()


@case("terminal")
async def an_interrupt_that_is_typed_ends_the_foreground(here: Here) -> object:
    async with here.open_process(
        ["sh", "-c", "echo ready; exec sleep 1000"], tty=True, stdin=PIPE, stdout=PIPE
    ) as process:
        await read_line(process.stdout)
        await process.stdin.send_all(b"\x03")
        return await process.wait()


@case("terminal")
async def a_resize_is_told_to_the_foreground(here: Here) -> object:
    script = "trap 'stty size; exit 6' WINCH; echo ready; while :; do sleep 0.02; done"
    async with here.open_process(["bash", "-c", script], tty=True, stdin=PIPE, stdout=PIPE) as process:
        await read_line(process.stdout)
        process.resize(11, 44)
        return await read_all(process.stdout), await process.wait()


@case("terminal")
async def what_the_background_writes_after_the_exit_is_read(here: Here) -> object:
    script = "trap '' HUP; set -m; (sleep 0.4; echo late) & echo first; exit 2"
    return await on_terminal(here, script)


# Closed descriptors: programs of their own


def holding(here: Here) -> int:
    """Open a file, which gets a number of a closed standard descriptor if one is free."""
    return os.open(here.file("number"), os.O_RDWR | os.O_CREAT)


async def by_closed_descriptors(here: Here) -> object:
    fd = holding(here)
    captured = await here.ran(["sh", "-c", "echo captured; cat"], stdin=b"input")
    uncaptured = await here.result(lambda: here.run_process(["sh", "-c", "echo uncaptured; :"], check=False))
    os.close(fd)
    return captured, type(uncaptured).__name__, Path(here.file("number")).read_bytes()


@case("closed descriptors", alone=(1,))
async def with_a_closed_stdout_commands_run_and_write_into_no_other_file(here: Here) -> object:
    return await by_closed_descriptors(here)


@case("closed descriptors", alone=(2,))
async def with_a_closed_stderr_commands_run_and_write_into_no_other_file(here: Here) -> object:
    return await by_closed_descriptors(here)


@case("closed descriptors", alone=(0, 1))
async def with_a_closed_stdin_and_stdout_commands_run(here: Here) -> object:
    return await by_closed_descriptors(here)


@case("closed descriptors", alone=(0, 1, 2))
async def with_all_standard_descriptors_closed_commands_run(here: Here) -> object:
    return await by_closed_descriptors(here)


@case("closed descriptors", alone=(0, 1, 2))
async def with_all_standard_descriptors_closed_streams_work(here: Here) -> object:
    async with here.open_process(["cat"], stdin=PIPE, stdout=PIPE) as process:
        await process.stdin.send_all(b"through")
        await process.stdin.aclose()
        return await read_all(process.stdout), await process.wait()


@case("closed descriptors", alone=(1, 2))
async def with_closed_outputs_a_cancelled_command_ends(here: Here) -> object:
    with trio.CancelScope() as scope:
        async with here.open_process(["sh", "-c", "echo $$; exec sleep 1000"], stdout=PIPE) as process:
            pid = int(await read_line(process.stdout))
            scope.cancel()
            await trio.lowlevel.checkpoint()
    return await here.ended(pid), process.returncode == -signal.SIGKILL

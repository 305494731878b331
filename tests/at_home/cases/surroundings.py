"""What a command finds: its user, its directory, its environment, its program."""

from __future__ import annotations

import os
import sys
from subprocess import PIPE
from typing import TYPE_CHECKING

import trio

from tests.at_home.cases.streams import read_all
from tests.at_home.places import InGuest
from tests.at_home.table import case

if TYPE_CHECKING:
    from tests.at_home.places import Here

# Users and working directories


@case("users and cwd", differs="own streams", in_guest=(0, b"out\nin", b"err\n"))
async def another_user_can_open_its_own_streams(here: Here) -> object:
    script = "echo out >/dev/stdout; echo err >/dev/stderr; cat /dev/stdin"
    return await here.ran(["sh", "-c", script], user="nobody", stdin=b"in")


@case("users and cwd", differs="own streams", in_guest=(0, b"out\nin", b"err\n"))
async def another_user_can_open_its_streams_by_other_names(here: Here) -> object:
    script = "echo out >/dev/fd/1; echo err >/proc/self/fd/2; cat /proc/self/fd/0"
    return await here.ran(["sh", "-c", script], user="nobody", stdin=b"in")


@case("users and cwd")
async def another_user_can_open_its_terminal(here: Here) -> object:
    command = ["sh", "-c", "echo out >/dev/tty; echo again >$(tty)"]
    done = await here.run_process(command, user="nobody", tty=True, capture_stdout=True)
    return done.returncode, done.stdout


@case("users and cwd")
async def a_command_has_the_ids_and_groups_of_its_user(here: Here) -> object:
    command = ["id"]
    return [await here.ran(command, user=user) for user in ("nobody", "daemon", "nobody:daemon", "1234", "1:1234")]


def owned_by_nobody(here: Here) -> str:
    path = here.file("private")
    os.mkdir(path, 0o700)
    os.chown(path, 65534, 65534)
    return path


@case("users and cwd")
async def a_directory_that_only_root_may_enter_is_refused_to_another_user(here: Here) -> object:
    path = here.file("roots")
    os.mkdir(path, 0o700)
    return await here.ran(["sh", "-c", "ls ."], cwd=path, user="nobody")


@case("users and cwd")
async def a_command_works_in_its_users_own_directory(here: Here) -> object:
    return await here.ran(
        ["sh", "-c", "pwd; touch file; stat -c %U file"], cwd=owned_by_nobody(here), user="nobody"
    )


@case("users and cwd")
async def a_name_of_a_program_is_looked_up_on_the_path_of_its_environment(here: Here) -> object:
    os.mkdir(here.file("bin"))
    here.file("bin/tool", b"#!/bin/sh\necho mine\n", mode=0o755)
    env = {"PATH": f"{here.dir}/bin:{os.environ['PATH']}"}
    return await here.ran(["tool"], env=env), await here.ran(["./bin/tool"], cwd=here.dir)


@case("users and cwd")
async def a_relative_program_is_looked_up_in_the_working_directory(here: Here) -> object:
    here.file("tool", b"#!/bin/sh\npwd\n", mode=0o755)
    return await here.ran(["./tool"], cwd=here.dir), await here.ran(["./no-tool"], cwd=here.dir)


@case("users and cwd")
async def variables_come_as_they_were_given(here: Here) -> object:
    env = {"ONE": "a b\tc\nd", "TWO": "ä€", "EMPTY": "", "equals": "x=y"}
    code = f"import os; print([os.environ.get(name) for name in {list(env)}])"
    return await here.ran([sys.executable, "-c", code], env={**env, "PYTHONIOENCODING": "utf-8"})


@case("users and cwd")
async def arguments_come_as_they_were_given(here: Here) -> object:
    args = ["", " ", "a b", "ä€", "\n", "'", '"', "$HOME", "*", "-n", "--"]
    return await here.ran(["printf", "<%s>", *args])


@case("users and cwd")
async def arguments_and_variables_need_not_be_text(here: Here) -> object:
    code = "import os, sys; print(os.fsencode(sys.argv[1]), os.environb[b'ODD'])"
    odd = b"caf\xe9"
    return await here.ran([sys.executable, "-c", code, odd], env={"ODD": os.fsdecode(odd)})


@case("users and cwd")
async def a_long_argument_and_a_long_variable_arrive(here: Here) -> object:
    long = "x" * 100_000
    return await here.ran(["sh", "-c", "echo ${#1} ${#LONG}", "sh", long], env={"LONG": long})


@case("users and cwd")
async def an_argument_that_is_too_long_is_an_error(here: Here) -> object:
    return await here.ran(["true", "x" * 200_000])


@case("users and cwd", differs="environment", in_guest=(True, True))
async def an_environment_is_the_one_that_is_given(here: Here) -> object:
    # At home the environment is replaced, if the options go to trio as they are.
    env = {"ONLY": "this"}
    if isinstance(here, InGuest):
        done = await here.run_process(["env"], env=env, capture_stdout=True)
    else:
        done = await trio.run_process(["/usr/bin/env"], env=env, capture_stdout=True)
    return b"ONLY=this\n" in done.stdout, b"PATH=" in done.stdout


# Text file busy


@case("text file busy")
async def a_program_that_was_just_written_can_be_run(here: Here) -> object:
    path = here.path(here.file("tool"))
    outcomes = set()
    for number in range(20):
        await path.write_bytes(b"#!/bin/sh\necho %d\n" % (number % 2))
        await path.chmod(0o755)
        outcomes.add((await here.ran([str(path)]))[1])
    return sorted(outcomes)


@case("text file busy")
async def a_binary_that_was_just_copied_can_be_run_while_others_start(here: Here) -> object:
    binary = await here.path("/bin/true").read_bytes()
    statuses = []

    async def start_others(task_status: trio.TaskStatus[None]) -> None:
        task_status.started()
        while True:
            await here.run_process(["true"])

    async with trio.open_nursery() as nursery:
        for _ in range(2):
            await nursery.start(start_others)
        for number in range(10):
            path = here.path(here.file(f"true{number}"))
            await path.write_bytes(binary)
            await path.chmod(0o755)
            # At home another thread's fork may hold the writer's descriptor: the known flaw of every program.
            while (outcome := await here.ran([str(path)])) and outcome[0] == "OSError" and here.name == "home":
                pass
            statuses.append(outcome)
        nursery.cancel_scope.cancel()
    return statuses


@case("text file busy")
async def a_program_that_stays_open_for_writing_is_busy(here: Here) -> object:
    path = here.file("tool", b"#!/bin/sh\necho hi\n", mode=0o755)
    writer = os.open(path, os.O_WRONLY)
    busy = await here.ran([path])
    os.close(writer)
    return busy[:3], await here.ran([path])


@case("text file busy", differs="text file busy", in_guest=(0, b"hi\n", b""))
async def a_program_that_is_closed_soon_is_waited_for(here: Here) -> object:
    path = here.file("tool", b"#!/bin/sh\necho hi\n", mode=0o755)
    writer = os.open(path, os.O_WRONLY)

    async def close_soon() -> None:
        await trio.sleep(0.05)
        os.close(writer)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(close_soon)
        outcome = await here.ran([path])
    return outcome  # noqa: RET504  (as in other nurseries)


@case("text file busy")
async def a_running_program_cannot_be_written(here: Here) -> object:
    path = here.file("sleep")
    await here.path(path).write_bytes(await here.path("/bin/sleep").read_bytes())
    await here.path(path).chmod(0o755)
    async with here.open_process([path, "1000"], stdout=PIPE) as process:
        busy = await here.result(here.path(path).write_bytes, b"new")
        process.kill()
        await read_all(process.stdout)
        await process.wait()
    return busy, await here.result(here.path(path).write_bytes, b"new")

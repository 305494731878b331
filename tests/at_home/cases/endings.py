"""What a command leaves in the background lives on; a cancelled one is dead; a failure says what has failed."""

from __future__ import annotations

import fcntl
import signal
import socket
import subprocess
import sys
from subprocess import DEVNULL, PIPE
from typing import TYPE_CHECKING, Any

import trio

from tests.at_home.cases.streams import read_all
from tests.at_home.table import case
from tests.tools.leftovers import runs

if TYPE_CHECKING:
    from tests.at_home.places import Here

# Background


SERVER = """
import socket, sys
listener = socket.create_server(("127.0.0.1", 0))
open(sys.argv[1], "w").write(f"{listener.getsockname()[1]}\\n")
for _ in range(3):
    connection, _ = listener.accept()
    print("a line of the log", flush=True)
    print("another", file=sys.stderr, flush=True)
    connection.sendall(connection.recv(100).upper())
    connection.close()
"""


async def asked_three_times(here: Here, port: bytes) -> list[bytes]:
    answers = []
    for _ in range(3):
        stream = await trio.open_tcp_stream("127.0.0.1", int(port))
        async with stream:
            await stream.send_all(b"hello")
            answers.append(await read_all(stream))
    return answers


async def served(here: Here, how: str, **options: Any) -> object:
    here.file("server.py", SERVER.encode())
    script = (
        how.format(f"{sys.executable} {here.file('server.py')} {here.file('port')}")
        + f" echo $! >{here.file('pid')}"
    )
    done = await here.run_process(["sh", "-c", script], drain=0.1, **options)
    here.kill_later(int(await here.appears(here.file("pid"))))
    return done.returncode, await asked_three_times(here, await here.appears(here.file("port")))


@case("background")
async def a_server_in_the_background_lives_on_with_output_to_null(here: Here) -> object:
    return await served(here, "{} &", stdout=DEVNULL, stderr=DEVNULL)


@case("background")
async def a_server_in_the_background_lives_on_with_output_that_is_not_captured(here: Here) -> object:
    return await served(here, "{} &")


@case("background")
async def a_server_under_nohup_lives_on(here: Here) -> object:
    return await served(here, "nohup {} &")


@case("background")
async def a_server_in_a_session_of_its_own_lives_on(here: Here) -> object:
    return await served(here, "setsid {} &", stdout=DEVNULL, stderr=DEVNULL)


@case("background")
async def null_is_null(here: Here) -> object:
    code = "import os; print([os.readlink(f'/proc/self/fd/{fd}') for fd in (0, 2)])"
    return await here.ran([sys.executable, "-c", code], stdin=DEVNULL, stderr=DEVNULL, capture_stderr=False)


@case("background")
async def what_is_left_goes_on_writing_after_the_block(here: Here) -> object:
    script = (
        f"(read go <{here.file('gate')}; head -c 300000 /dev/zero && echo done >{here.file('done')}) & echo $!"
    )
    await here.run_process(["mkfifo", here.file("gate")])
    async with here.open_process(["sh", "-c", script], stdout=PIPE) as process:
        pid = here.kill_later(int(await process.stdout.receive_some()))
        status = await process.wait()
        if here.name == "home":  # takes what is written, as the agent does
            await here.run_process(["sh", "-c", f"echo >{here.file('gate')}"])
            await read_all(process.stdout)
    if here.name != "home":
        await here.run_process(["sh", "-c", f"echo >{here.file('gate')}"])
    return status, await here.appears(here.file("done")), await here.ended(pid)


@case("background")
async def a_megabyte_to_null_does_not_wait_for_anybody(here: Here) -> object:
    return await here.ran(
        ["sh", "-c", "head -c 100000000 /dev/zero; echo done >&2"], stdout=DEVNULL, capture_stdout=False
    )


@case("background", differs="drain", in_guest=("returned", b"first\n", True))
async def a_captured_output_that_is_held_is_waited_for(here: Here) -> object:
    script = f"sleep 1000 & echo $! >{here.file('pid')}; echo first"
    outcome: object = "waits"
    with trio.move_on_after(here.patience):
        done: Any = await here.run_process(["sh", "-c", script], capture_stdout=True, drain=0.1)
        outcome = ("returned", done.stdout, done.output_open)
    here.kill_later(int(await here.appears(here.file("pid"))))
    return outcome


# Whole commands killed


async def cancelled(here: Here, script: str) -> object:
    """Whether the leader and the process whose number it writes have ended when a cancellation has returned."""
    pids: list[int] = []
    async with trio.open_nursery() as nursery:
        command = ["bash", "-c", script.format(here.file("pid"))]
        await nursery.start(
            lambda task_status: here.run_process(command, stdout=DEVNULL, stderr=DEVNULL, task_status=task_status)
        )
        pids += map(int, (await here.appears(here.file("pid"))).split())
        nursery.cancel_scope.cancel()
    left = [runs(here.kill_later(pid)) for pid in pids]
    return ["lives" if one else "dead" for one in left]


@case("whole commands killed")
async def a_cancelled_command_is_dead_when_the_call_returns(here: Here) -> object:
    return await cancelled(here, "echo $$ >{}; sleep 1000")


@case("whole commands killed")
async def a_cancelled_command_that_handles_sigterm_may_do_its_last_work(here: Here) -> object:
    script = "trap 'echo last >{}.done; exit' TERM; echo $$ >{}; while :; do sleep 0.02; done"
    return await cancelled(here, script.replace("{}.done", here.file("done"))), await here.appears(
        here.file("done")
    )


DEAD = {"differs": "whole command", "in_guest": ["dead", "dead"]}


@case("whole commands killed", **DEAD)
async def a_child_is_killed_with_a_cancelled_command(here: Here) -> object:
    return await cancelled(here, "sleep 1000 & echo $$ $! >{}; wait")


@case("whole commands killed", **DEAD)
async def a_job_of_an_interactive_shell_is_killed_with_it(here: Here) -> object:
    return await cancelled(here, "set -m; sleep 1000 & echo $$ $! >{}; wait")


@case("whole commands killed", **DEAD)
async def a_session_of_its_own_is_killed_with_a_cancelled_command(here: Here) -> object:
    return await cancelled(here, "setsid sleep 1000 & echo $$ $! >{}; wait")


@case("whole commands killed", **DEAD)
async def what_timeout_has_started_is_killed_with_a_cancelled_command(here: Here) -> object:
    return await cancelled(here, "timeout 1000 sh -c 'echo '$$' $$ >{}; exec sleep 1000'; :")


@case("whole commands killed", **DEAD)
async def a_daemon_is_killed_with_a_cancelled_command(here: Here) -> object:
    return await cancelled(
        here, "(setsid sh -c '(echo '$$' $(sh -c \"echo \\$PPID\") >{}; exec sleep 1000) & :'); sleep 1000"
    )


def is_free(lock: str) -> bool:
    with open(lock) as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        return True


@case("whole commands killed", differs="whole command", in_guest=(["dead"], "free"))
async def the_lock_of_a_large_child_is_free_when_the_call_returns(here: Here) -> object:
    code = "import fcntl, os, sys; f = open(sys.argv[1], 'a'); fcntl.flock(f, 2); b = bytearray(2**27); "
    code += "open(sys.argv[2], 'w').write(f'{os.getpid()}\\n'); __import__('time').sleep(1000)"
    here.file("code.py", code.encode())
    lock = here.file("lock", b"")
    dead = await cancelled(here, f"{sys.executable} {here.file('code.py')} {lock} {{}} & wait")
    return dead, "free" if is_free(lock) else "held"


@case("whole commands killed")
async def a_block_that_is_left_kills_its_command(here: Here) -> object:
    async with here.open_process(["sh", "-c", "echo $$; exec sleep 1000"], stdout=PIPE) as process:
        pid = int(await process.stdout.receive_some())
    return runs(pid), process.returncode


@case("whole commands killed")
async def a_stopped_command_is_killed_as_well(here: Here) -> object:
    async with here.open_process(["sh", "-c", "echo $$; kill -STOP $$; sleep 1000"], stdout=PIPE) as process:
        pid = int(await process.stdout.receive_some())
    return runs(pid), process.returncode


@case("whole commands killed")
async def a_status_is_that_of_the_signal(here: Here) -> object:
    statuses = []
    for number in (signal.SIGHUP, signal.SIGINT, signal.SIGKILL, signal.SIGUSR1, signal.SIGTERM, signal.SIGSEGV):
        async with here.open_process(["sleep", "1000"]) as process:
            process.send_signal(number)
            statuses.append(await process.wait())
    return statuses


# Errors of lookups


@case("errors of lookups")
async def a_command_that_is_not_found(here: Here) -> object:
    return await here.ran(["no-such-command-anywhere"]), await here.ran([here.file("no-such-file")])


@case("errors of lookups")
async def a_command_that_is_no_program(here: Here) -> object:
    return [
        await here.ran([here.file("plain", b"text")]),
        await here.ran([here.dir]),
        await here.ran([here.file("garbage", b"\x7fELFgarbage", mode=0o755)]),
        await here.ran([here.file("script", b"#!/no/such/interpreter\n", mode=0o755)]),
        await here.ran([here.file("plain") + "/below"]),
    ]


@case("errors of lookups")
async def a_working_directory_that_is_none_is_blamed_itself(here: Here) -> object:
    return [
        await here.ran(["true"], cwd=here.file("nowhere")),
        await here.ran(["true"], cwd=here.file("file", b"")),
        await here.ran(["true"], cwd=""),
    ]


@case("errors of lookups")
async def a_user_that_is_not_known_is_a_lookup_error(here: Here) -> object:
    try:
        await here.run_process(["true"], user="no-such-user")
    except LookupError:
        return "LookupError"
    return "no error"


@case("errors of lookups")
async def a_group_that_is_not_known_is_a_lookup_error(here: Here) -> object:
    try:
        await here.run_process(["true"], user="nobody:no-such-group")
    except LookupError:
        return "LookupError"
    return "no error"


@case("errors of lookups")
async def a_host_that_is_not_known_is_a_gaierror(here: Here) -> object:
    try:
        await here.open_tcp_stream("no-such-host.invalid", 80)
    except socket.gaierror as exc:
        return "gaierror", exc.errno, exc.strerror
    return "no error"


@case("errors of lookups", differs="own children", in_guest=("status", 3), alone=())
async def a_status_that_the_kernel_has_dropped_is_unknown(here: Here) -> object:
    # At home this program's children are dropped; in the guest those of the agent, which inherits it, must not be.
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    async with here.open_process(["sh", "-c", "exit 3"], stdout=PIPE) as process:
        try:
            return "status", await process.wait()
        except ChildProcessError:
            return "ChildProcessError", process.returncode


@case("errors of lookups")
async def a_failure_has_the_command_its_status_and_its_output(here: Here) -> object:
    try:
        await here.run_process(
            ["sh", "-c", "echo out; echo err >&2; exit 41"], capture_stdout=True, capture_stderr=True
        )
    except subprocess.CalledProcessError as exc:
        return exc.cmd, exc.returncode, exc.stdout, exc.stderr, str(exc)
    return "no error"


@case("errors of lookups")
async def a_failure_by_a_signal_names_it(here: Here) -> object:
    try:
        await here.run_process(["sh", "-c", "kill -TERM $$"])
    except subprocess.CalledProcessError as exc:
        return exc.returncode, str(exc)
    return "no error"

"""``trio-console exec -- COMMAND`` beside COMMAND itself: signals, outputs, statuses."""

from __future__ import annotations

import os
import signal
from functools import partial
from typing import TYPE_CHECKING, Any

import trio

from tests.at_home.cases.streams import digest, read_all
from tests.at_home.table import COMMAND_LINE, case
from tests.tools.leftovers import state_of

if TYPE_CHECKING:
    from tests.at_home.places import Home

EXEC = {"places": COMMAND_LINE}


async def finished(
    here: Home, *command: str | bytes, stdin: bytes = b"", **options: Any
) -> tuple[int, bytes, bytes]:
    """Status, output and error output of a program."""
    outputs: dict[str, bytes] = {"stdout": b"", "stderr": b""}
    async with here.program(*command, **options) as process, trio.open_nursery() as nursery:

        async def read(name: str) -> None:
            outputs[name] = await read_all(getattr(process, name))

        for name in outputs:
            if getattr(process, name) is not None:
                nursery.start_soon(read, name)
        async with process.stdin:
            if stdin:
                await here.result(process.stdin.send_all, stdin)
        status = await process.wait()
    return status, outputs["stdout"], outputs["stderr"]


# Signals


@case("signals to exec", **EXEC)
async def a_command_whose_output_nobody_reads_is_ended_by_a_signal(here: Home) -> object:
    statuses: dict[int, int] = {}

    async def end(number: int) -> None:
        async with here.program("yes") as process:
            await process.stdout.receive_some(1)
            process.send_signal(number)
            statuses[number] = await process.wait()

    async with trio.open_nursery() as nursery:
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            nursery.start_soon(end, int(number))
    return statuses


@case("signals to exec", **EXEC)
async def a_command_handles_its_signals(here: Home) -> object:
    outcomes = []
    for name in ("TERM", "INT", "HUP"):
        script = f"trap 'echo got; exit 7' {name}; echo ready; while :; do sleep 0.02; done"
        async with here.program("bash", "-c", script) as process:
            await process.stdout.receive_some()
            process.send_signal(getattr(signal, f"SIG{name}"))
            outcomes.append((await read_all(process.stdout), await process.wait()))
    return outcomes


@case("signals to exec", **EXEC)
async def a_signal_that_the_command_ignores_ends_nothing(here: Home) -> object:
    async with here.program("sh", "-c", "trap '' INT; echo ready; read line; echo $line") as process:
        await process.stdout.receive_some()
        process.send_signal(signal.SIGINT)
        await process.stdin.send_all(b"still here\n")
        return await read_all(process.stdout), await process.wait()


@case("signals to exec", **EXEC)
async def a_command_that_a_signal_has_ended_looks_so(here: Home) -> object:
    return [(await finished(here, "sh", "-c", f"kill -{name} $$"))[0] for name in ("TERM", "KILL", "SEGV", "HUP")]


@case("signals to exec", differs="third signal", in_guest="ended", **EXEC)
async def a_stopped_command_keeps_its_signals_for_later(here: Home) -> object:
    async with here.program("sh", "-c", "echo $$; kill -STOP $$; echo on") as process:
        pid = here.kill_later(int(await process.stdout.receive_some()))
        while state_of(pid) != "T":
            await trio.sleep(0.002)
        with trio.move_on_after(here.patience if here.name == "home" else 60):
            while process.returncode is None:
                process.send_signal(signal.SIGTERM)
                await trio.sleep(0.05)
            return "ended"
        return "stopped"


# Output


@case("exec output", **EXEC)
async def megabytes_pass_through(here: Home) -> object:
    data = os.urandom(1) * 3_000_000
    status, out, err = await finished(here, "sh", "-c", "cat; echo done >&2; exit 9", stdin=data)
    return status, out == data, err


@case("exec output", **EXEC)
async def what_was_written_before_a_kill_arrives(here: Home) -> object:
    status, out, _ = await finished(here, "sh", "-c", "head -c 50000 /dev/zero; echo last; kill -9 $$")
    return status, digest(out)


@case("exec output", **EXEC)
async def an_output_that_is_full_is_an_error(here: Home) -> object:
    with open("/dev/full", "wb") as full:  # noqa: ASYNC230
        status, _, err = await finished(here, "cat", stdin=b"contents", stdout=full)
    return status, b"No space left on device" in err


@case("exec output", **EXEC)
async def a_reader_that_has_gone_is_a_sigpipe(here: Home) -> object:
    async with here.program("yes") as process:
        await process.stdout.receive_some(1)
        await process.stdout.aclose()
        return await process.wait()


@case("exec output", **EXEC)
async def a_slow_reader_gets_everything(here: Home) -> object:
    async with here.program("sh", "-c", "head -c 2000000 /dev/zero; exit 3") as process:
        data = []
        while chunk := await process.stdout.receive_some(100_000):
            data.append(bytes(chunk))
            await trio.sleep(0.005)
        return digest(b"".join(data)), await process.wait()


@case("exec output", **EXEC)
async def a_command_that_is_not_found_is_127_as_in_a_shell(here: Home) -> object:
    # At home a shell stands for the program, because without one there is no status.
    shell = ("sh", "-c", '"$0"') if here.name == "home" else ()
    return [(await finished(here, *shell, name))[0] for name in ("no-such-command", here.file("plain", b""))]


# Signals that are ignored at the start


def ignoring(*numbers: int) -> Any:
    return partial(_ignore, numbers)


def _ignore(numbers: tuple[int, ...]) -> None:
    for number in numbers:
        signal.signal(number, signal.SIG_IGN)


async def survives(here: Home, number: int) -> object:
    script = "echo ready; read line; echo got $line"
    async with here.program("sh", "-c", script, preexec_fn=ignoring(number)) as process:
        await process.stdout.receive_some()
        process.send_signal(number)
        await process.stdin.send_all(b"a line\n")
        return await read_all(process.stdout), await process.wait()


@case("ignored signals", **EXEC)
async def a_hangup_that_was_ignored_stays_ignored(here: Home) -> object:
    return await survives(here, signal.SIGHUP)


@case("ignored signals", **EXEC)
async def an_interrupt_that_was_ignored_stays_ignored(here: Home) -> object:
    return await survives(here, signal.SIGINT)


@case("ignored signals", **EXEC)
async def a_command_in_the_background_of_a_shell_is_not_interrupted(here: Home) -> object:
    words = " ".join(f"'{word}'" for word in here.prefix)
    script = f"{words} sh -c 'sleep 0.3; echo done' & pid=$!; sleep 0.1; kill -INT $pid; wait $pid; echo $?"
    done = await trio.run_process(["sh", "-c", script], capture_stdout=True)
    return done.stdout


@case("ignored signals", **EXEC)
async def arguments_in_an_ascii_locale_are_passed_on(here: Home) -> object:
    env = {**os.environ, "LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    words = ["ä€".encode(), b"caf\xe9", b"plain", b""]
    return await finished(here, "printf", "<%s>", *words, env=env)


@case("ignored signals", **EXEC)
async def a_termination_that_was_ignored_stays_ignored(here: Home) -> object:
    return await survives(here, signal.SIGTERM)

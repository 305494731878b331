"""Output arrives whole and in order, each stream ends when it ends, and nobody has to read."""

from __future__ import annotations

import hashlib
import signal
import sys
from subprocess import DEVNULL, PIPE, STDOUT
from typing import TYPE_CHECKING, Any

import trio

from tests.at_home.table import case

if TYPE_CHECKING:
    from tests.at_home.places import Here


async def read_all(stream: Any) -> bytes:
    return b"".join([bytes(chunk) async for chunk in stream])


async def read_line(stream: Any) -> bytes:
    """The first line, behind which nothing comes yet. A terminal may pass it on in pieces."""
    line = b""
    while not line.endswith(b"\n") and (chunk := await stream.receive_some()):
        line += chunk
    return line


def digest(data: bytes) -> tuple[int, str]:
    return len(data), hashlib.sha256(data).hexdigest()


# Cut off


@case("cut off")
async def a_filter_behind_the_command_writes_all_of_its_output(here: Here) -> object:
    script = "shuf -i 1-200000 > >(sort -n)"
    return digest((await here.run_process(["bash", "-c", script], capture_stdout=True, drain=None)).stdout)


@case("cut off")
async def a_reader_that_pauses_loses_nothing(here: Here) -> object:
    script = "exec > >(cat); head -c 2150000 /dev/zero"
    async with here.open_process(["bash", "-c", script], stdout=PIPE) as process:
        first = await process.stdout.receive_some(1)
        await trio.sleep(0.4)  # is more than the grace that a paused reader once had
        return digest(first + await read_all(process.stdout)), await process.wait()


@case("cut off")
async def what_comes_with_pauses_after_the_exit_is_captured(here: Here) -> object:
    script = "(for i in 1 2 3; do sleep 0.3; echo $i; done) & echo first"
    return await here.ran(["sh", "-c", script], drain=None)


@case("cut off")
async def a_filter_of_the_error_output_writes_all_of_its_output(here: Here) -> object:
    script = "exec 2> >(cat >&2); head -c 300000 /dev/zero >&2"
    _, out, err = await here.ran(["bash", "-c", script], drain=None)
    return out, digest(err)


@case("cut off")
async def a_failed_command_has_its_filters_whole_output(here: Here) -> object:
    script = "seq 1 100000 > >(sleep 0.3; cat); exit 3"
    status, out, _ = await here.ran(["bash", "-c", script], drain=None)
    return status, digest(out)


@case("cut off")
async def a_filter_in_a_session_of_its_own_is_waited_for(here: Here) -> object:
    script = "seq 1 50000 | setsid sort -n & exit 0"
    status, out, _ = await here.ran(["bash", "-c", script], drain=None)
    return status, digest(out)


@case("cut off")
async def a_flood_that_ends_with_the_command_is_whole(here: Here) -> object:
    status, out, err = await here.ran(["sh", "-c", "yes | head -n 1000000; yes err | head -n 1000 >&2; exit 7"])
    return status, digest(out), digest(err)


# Ends of streams


@case("ends of streams")
async def stdout_ends_when_the_command_closes_it(here: Here) -> object:
    script = "echo question; exec 1>&-; read answer; exit $answer"
    async with here.open_process(["sh", "-c", script], stdin=PIPE, stdout=PIPE) as process:
        asked = await read_all(process.stdout)
        await process.stdin.send_all(b"7\n")
        return asked, await process.wait()


@case("ends of streams")
async def stderr_ends_while_stdout_goes_on(here: Here) -> object:
    script = "echo oops >&2; exec 2>&-; read answer; echo $answer"
    async with here.open_process(["sh", "-c", script], stdin=PIPE, stdout=PIPE, stderr=PIPE) as process:
        said = await read_all(process.stderr)
        await process.stdin.send_all(b"go on\n")
        return said, await read_all(process.stdout), await process.wait()


@case("ends of streams")
async def an_end_of_input_is_seen_by_the_command(here: Here) -> object:
    async with here.open_process(["cat"], stdin=PIPE, stdout=PIPE) as process:
        await process.stdin.send_all(b"abc")
        await process.stdin.aclose()
        return await read_all(process.stdout), await process.wait()


@case("ends of streams")
async def input_that_the_command_has_closed_breaks(here: Here) -> object:
    async with here.open_process(
        ["sh", "-c", "exec 0<&-; echo closed; sleep 1000"], stdin=PIPE, stdout=PIPE
    ) as process:
        await process.stdout.receive_some()
        while True:
            sent = await here.result(process.stdin.send_all, bytes(65536))
            if sent is not None:
                return sent


@case("ends of streams")
async def a_stream_that_another_process_holds_goes_on_after_the_exit(here: Here) -> object:
    script = f"mkfifo {here.file('gate')}; cat {here.file('gate')} & echo first"
    async with here.open_process(["sh", "-c", script], stdout=PIPE) as process:
        status = await process.wait()
        first = await process.stdout.receive_some()
        await here.run_process(["sh", "-c", f"echo second >{here.file('gate')}"])
        return status, first, await read_all(process.stdout)


@case("ends of streams")
async def a_stream_at_its_end_stays_there(here: Here) -> object:
    async with here.open_process(["echo", "hi"], stdout=PIPE) as process:
        return [bytes(await process.stdout.receive_some()) for _ in range(3)]


@case("ends of streams")
async def a_closed_stream_is_closed_for_its_reader(here: Here) -> object:
    async with here.open_process(["cat"], stdin=PIPE, stdout=PIPE) as process:
        await process.stdout.aclose()
        await process.stdin.aclose()
        return await here.result(process.stdout.receive_some), await here.result(process.stdin.send_all, b"x")


@case("ends of streams", differs="closed output", in_guest="lives")
async def a_command_whose_reader_has_closed_gets_sigpipe(here: Here) -> object:
    async with here.open_process(["yes"], stdout=PIPE) as process:
        await process.stdout.receive_some(1)
        await process.stdout.aclose()
        with trio.move_on_after(60 if here.name == "home" else 0.5):
            return await process.wait()
        return "lives"


# Order


@case("order")
async def both_outputs_in_one_pipe_keep_their_order(here: Here) -> object:
    script = "for i in 1 2 3 4 5 6 7 8; do echo out $i; echo err $i >&2; done"
    return await here.ran(["sh", "-c", script], stderr=STDOUT)


@case("order")
async def thousands_of_lines_of_both_keep_their_order(here: Here) -> object:
    code = "import os\nfor i in range(10000): os.write(1 + i % 2, b'%d\\n' % i)"
    status, out, _ = await here.ran([sys.executable, "-c", code], stderr=STDOUT)
    return status, digest(out)


@case("order")
async def one_pipe_is_one_stream(here: Here) -> object:
    command = ["sh", "-c", "echo out; echo err >&2; echo out"]
    async with here.open_process(command, stdout=PIPE, stderr=STDOUT) as process:
        return process.stderr, await read_all(process.stdout), await process.wait()


@case("order")
async def both_descriptors_lead_to_one_pipe(here: Here) -> object:
    script = 'test "$(readlink /proc/$$/fd/1)" = "$(readlink /proc/$$/fd/2)" && echo same'
    script = f"a=$(readlink /proc/$$/fd/1); {script.replace('$(readlink /proc/$$/fd/1)', '$a')}"
    return await here.ran(["sh", "-c", script], stderr=STDOUT)


@case("order")
async def stderr_goes_where_stdout_goes_also_to_null(here: Here) -> object:
    script = f"readlink /proc/$$/fd/2 >{here.file('where')}"
    await here.run_process(["sh", "-c", script], stdout=DEVNULL, stderr=STDOUT)
    return await here.appears(here.file("where"))


@case("order")
async def a_failure_has_both_outputs_in_their_order(here: Here) -> object:
    script = "echo 1; echo 2 >&2; echo 3; exit 9"
    return await here.result(lambda: here.run_process(["sh", "-c", script], capture_stdout=True, stderr=STDOUT))


# Unread output


@case("unread output")
async def a_killed_process_is_waited_for_without_reading(here: Here) -> object:
    async with here.open_process(["yes"], stdout=PIPE) as process:
        await process.stdout.receive_some(1)
        process.kill()
        return await process.wait(), process.returncode, process.poll()


@case("unread output")
async def a_terminated_process_is_waited_for_without_reading(here: Here) -> object:
    async with here.open_process(["yes"], stdout=PIPE, stderr=PIPE) as process:
        await process.stdout.receive_some(1)
        process.terminate()
        return await process.wait()


@case("unread output")
async def what_was_written_can_be_read_after_the_exit(here: Here) -> object:
    async with here.open_process(
        ["sh", "-c", "echo out; echo err >&2; exit 4"], stdout=PIPE, stderr=PIPE
    ) as process:
        return await process.wait(), await read_all(process.stdout), await read_all(process.stderr)


@case("unread output")
async def deliver_cancel_kills_and_waits_without_reading(here: Here) -> object:
    statuses = []

    async def deliver(process: Any) -> None:
        process.kill()
        with trio.CancelScope(shield=True):
            statuses.append(await process.wait())

    async with trio.open_nursery() as nursery:
        process = await nursery.start(
            lambda task_status: here.run_process(
                ["yes"], stdout=PIPE, deliver_cancel=deliver, task_status=task_status
            )
        )
        await process.stdout.receive_some(1)
        nursery.cancel_scope.cancel()
    return statuses, process.returncode


@case("unread output")
async def a_wait_beside_unread_output_can_be_cancelled(here: Here) -> object:
    async with here.open_process(["yes"], stdout=PIPE) as process:
        await process.stdout.receive_some(1)
        with trio.move_on_after(0.01) as scope:
            await process.wait()
        return scope.cancelled_caught, process.returncode


@case("unread output")
async def input_that_is_not_read_is_no_error(here: Here) -> object:
    done = await here.run_process(["true"], stdin=bytes(1_000_000))
    return done.returncode


@case("unread output")
async def signals_are_for_the_process_also_when_its_output_is_full(here: Here) -> object:
    script = "trap 'exit 5' USR1; head -c 3000000 /dev/zero & wait"
    async with here.open_process(["bash", "-c", script], stdout=PIPE) as process:
        await process.stdout.receive_some(1)
        process.send_signal(signal.SIGUSR1)
        return await process.wait()

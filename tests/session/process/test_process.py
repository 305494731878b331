"""A process's session, with a scripted agent: its start, streams and end, and its errors."""

from __future__ import annotations

import signal
import subprocess
from typing import Any

import pytest
import trio
import trio.testing

from tests.session._fake import begin, talking
from tests.session.process._processes import Opened, opened, run
from tests.tools.limits import HANG
from trio_console import GuestLostError, ProtocolError
from trio_console import _wire as wire
from trio_console._states import IllegalStepError

PIPE = subprocess.PIPE
DEVNULL = subprocess.DEVNULL
STDOUT = subprocess.STDOUT


# The start


async def test_the_request_says_what_the_user_said() -> None:
    async with talking() as talk:
        run(
            talk, "ls", "-l", env={"A": "1"}, cwd="/tmp", user=1000, tty=True, rows=3, cols=4,
            rlimits={"NOFILE": (10, -1), "core": 0},
        )  # fmt: skip
        _, request = await talk.agent.expect(wire.ExecRequest)
        assert (request.cmd, request.args) == ("ls", ["-l"])
        assert (request.env, request.cwd, request.user) == (["A=1"], "/tmp", "1000")
        assert (request.tty, request.rows, request.cols) == (True, 3, 4)
        assert request.rlimits == [wire.Rlimit("nofile", 10, 2**64 - 1), wire.Rlimit("core", 0, 0)]


async def test_a_shell_command_is_one_string_and_stays_the_users_in_args() -> None:
    async with talking() as talk:
        result = begin(
            talk.nursery, lambda: talk.guest.run_process("exit 3", shell=True, check=False, capture_stdout=True)
        )
        id_, request = await talk.agent.expect(wire.ExecRequest)
        assert (request.cmd, request.args) == ("/bin/sh", ["-c", "exit 3"])
        await talk.agent.send(wire.ExecStarted(7), id_)
        await talk.agent.send(wire.ExecExited(3), id_)
        completed = await result.wait()
        assert (completed.args, completed.returncode) == ("exit 3", 3)


async def test_a_process_knows_its_pid_and_shows_it() -> None:
    async with talking() as talk:
        process, _, _ = await opened(talk)
        assert process.pid == 7
        assert "guest pid 7" in repr(process)


@pytest.mark.parametrize(
    ("failed", "error", "filename"),
    [
        (wire.ExecFailed(kind="not_found", errno=2, message="m"), FileNotFoundError, "cmd"),
        (wire.ExecFailed(kind="not_found", errno=2, message="m", filename="/cwd"), FileNotFoundError, "/cwd"),
        (wire.ExecFailed(kind="permission_denied", errno=13, message="m"), PermissionError, "cmd"),
        (wire.ExecFailed(kind="bad_cwd", errno=20, message="m"), NotADirectoryError, "cmd"),
        (wire.ExecFailed(kind="not_found", message="m"), FileNotFoundError, "cmd"),
        (wire.ExecFailed(kind="permission_denied", message="m"), PermissionError, "cmd"),
        (wire.ExecFailed(kind="other", message="no such thing"), OSError, "cmd"),
    ],
)
async def test_a_failed_start_is_the_os_error_of_its_errno(
    failed: wire.ExecFailed, error: type[OSError], filename: str
) -> None:
    async with talking() as talk:
        result = run(talk)
        id_, _ = await talk.agent.expect(wire.ExecRequest)
        await talk.agent.expect(wire.ExecStdin)
        await talk.agent.send(failed, id_)
        with pytest.raises(error, match=failed.message) as caught:
            await result.wait()
        assert type(caught.value) is error
        assert caught.value.filename == filename
        assert talk.guest.statistics().active_sessions == 0
        await talk.agent.nothing_more()


@pytest.mark.parametrize("stdin", [DEVNULL, b""])
async def test_on_a_terminal_the_end_of_no_input_is_typed_when_the_command_has_started(stdin: Any) -> None:
    async with talking() as talk:
        run(talk, tty=True, stdin=stdin)
        id_, _ = await talk.agent.expect(wire.ExecRequest)
        await talk.agent.nothing_more()
        await talk.agent.send(wire.ExecStarted(7), id_)
        assert await talk.agent.expect(wire.ExecStdin) == (id_, wire.ExecStdin(b"\4"))


async def test_a_command_without_input_is_told_so_before_it_has_started() -> None:
    async with talking() as talk:
        run(talk)
        id_, _ = await talk.agent.expect(wire.ExecRequest)
        assert await talk.agent.expect(wire.ExecStdin) == (id_, wire.ExecStdin(b""))


async def test_input_is_fed_once_the_command_has_started() -> None:
    async with talking() as talk:
        run(talk, stdin=b"data")
        id_, _ = await talk.agent.expect(wire.ExecRequest)
        await talk.agent.nothing_more()
        await talk.agent.send(wire.ExecStarted(7), id_)
        assert await talk.agent.expect(wire.ExecStdin) == (id_, wire.ExecStdin(b"data"))
        assert await talk.agent.expect(wire.ExecStdin) == (id_, wire.ExecStdin(b""))


async def test_a_failed_start_with_captured_output_is_its_own_error_alone() -> None:
    async with talking() as talk:
        result = run(talk, capture_stdout=True, capture_stderr=True)
        id_, _ = await talk.agent.expect(wire.ExecRequest)
        await talk.agent.send(wire.ExecFailed(kind="not_found", errno=2, message="m"), id_)
        with pytest.raises(FileNotFoundError):
            await result.wait()


async def test_a_failed_start_comes_out_of_nursery_start_unwrapped() -> None:
    async with talking() as talk:

        async def start() -> None:
            await talk.nursery.start(talk.guest.run_process, ["cmd"])

        result = begin(talk.nursery, start)
        id_, _ = await talk.agent.expect(wire.ExecRequest)
        await talk.agent.send(wire.ExecFailed(kind="not_found", errno=2, message="m"), id_)
        with pytest.raises(FileNotFoundError):
            await result.wait()


async def test_a_command_longer_than_a_frame_is_refused_as_the_system_refuses_it() -> None:
    async with talking() as talk:
        with pytest.raises(OSError, match="too long") as caught:
            await talk.guest.run_process(["cmd", "x" * 5_000_000])
        assert (caught.value.errno, caught.value.filename) == (7, "cmd")
        await talk.agent.nothing_more()
        assert talk.guest.statistics().active_sessions == 0


async def test_a_cancelled_start_is_carried_through_and_then_the_command_is_terminated() -> None:
    async with talking() as talk:
        result = run(talk)
        id_, _ = await talk.agent.expect(wire.ExecRequest)
        await talk.agent.expect(wire.ExecStdin)
        result.scope.cancel()
        await talk.agent.nothing_more()
        assert not result.done.is_set()
        await talk.agent.send(wire.ExecStarted(7), id_)
        assert await talk.agent.expect(wire.ExecSignal) == (id_, wire.ExecSignal(15))
        await talk.agent.send(wire.ExecExited(-1, signal=15), id_)
        await result.wait()
        assert talk.guest.statistics().active_sessions == 0


# The end


@pytest.mark.parametrize(
    ("exited", "returncode"),
    [
        (wire.ExecExited(0), 0),
        (wire.ExecExited(3), 3),
        (wire.ExecExited(-1), -1),
        (wire.ExecExited(-1, signal=15), -15),
        (wire.ExecExited(-1, signal=0), -1),
    ],
)
async def test_the_returncode_is_pythons(exited: wire.ExecExited, returncode: int) -> None:
    async with talking() as talk:
        process, id_, _ = await opened(talk)
        assert process.poll() is None
        await talk.agent.send(exited, id_)
        assert await process.wait() == returncode
        assert process.poll() == process.returncode == returncode
        assert str(returncode) in repr(process)


async def test_any_number_of_tasks_can_wait_for_one_process() -> None:
    async with talking() as talk:
        process, id_, _ = await opened(talk)
        waiters = [begin(talk.nursery, process.wait) for _ in range(3)]
        waiters[0].scope.cancel()
        await talk.agent.send(wire.ExecExited(5), id_)
        assert [await waiter.wait() for waiter in waiters[1:]] == [5, 5]
        assert await process.wait() == 5


async def test_a_result_has_what_was_captured() -> None:
    async with talking() as talk:
        result = run(talk, "a", "b")
        id_ = await talk.agent.expect_start()
        await talk.agent.send(wire.ExecStdout(b"out"), id_)
        await talk.agent.send(wire.ExecStderr(b"err"), id_)
        await talk.agent.send(wire.ExecStdout(b"put"), id_)
        await talk.agent.send(wire.ExecExited(0), id_)
        completed = await result.wait()
        assert isinstance(completed, subprocess.CompletedProcess)
        assert (completed.args, completed.returncode) == (["a", "b"], 0)
        assert (completed.stdout, completed.stderr) == (b"output", b"err")


async def test_a_failed_check_has_what_was_captured() -> None:
    async with talking() as talk:
        result = run(talk, "a", "b")
        id_ = await talk.agent.expect_start()
        await talk.agent.send(wire.ExecStdout(b"out"), id_)
        await talk.agent.send(wire.ExecStderr(b"err"), id_)
        await talk.agent.send(wire.ExecExited(4), id_)
        with pytest.raises(subprocess.CalledProcessError) as caught:
            await result.wait()
        error = caught.value
        assert (error.returncode, error.cmd, error.output, error.stderr) == (4, ["a", "b"], b"out", b"err")


async def test_leaving_the_block_kills_and_waits_for_the_confirmation() -> None:
    async with talking() as talk:
        process, id_, block = await opened(talk)
        await talk.agent.expect(wire.ExecStdin)  # the end of file of stdin=None
        block.leave.set()
        assert await talk.agent.expect(wire.ExecSignal) == (id_, wire.ExecSignal(9))
        await trio.testing.wait_all_tasks_blocked()
        assert not block.result.done.is_set()
        await talk.agent.send(wire.ExecExited(-1, signal=9), id_)
        await block.result.wait()
        assert process.returncode == -9


async def test_leaving_the_block_of_an_ended_process_sends_nothing() -> None:
    async with talking() as talk:
        _, id_, block = await opened(talk, stdin=PIPE)
        await talk.agent.send(wire.ExecExited(0), id_)
        await trio.testing.wait_all_tasks_blocked()
        block.leave.set()
        await block.result.wait()
        await talk.agent.nothing_more()


async def test_a_block_that_raises_kills_too_and_its_exception_comes_out_as_it_is() -> None:
    async with talking() as talk:

        async def body() -> None:
            async with talk.guest.open_process(["cmd"], stdin=PIPE, stdout=PIPE):
                raise LookupError("mine")

        result = begin(talk.nursery, body)
        id_ = await talk.agent.expect_start()
        await talk.agent.expect(wire.ExecSignal)
        await talk.agent.send(wire.ExecExited(-1, signal=9), id_)
        with pytest.raises(LookupError, match="mine"):
            await result.wait()


async def test_a_guest_that_never_confirms_is_given_up_with_a_warning(
    autojump_clock: trio.testing.MockClock,
) -> None:
    async with talking(grace=3) as talk:
        # Around the start of the task that warns: with `context_aware_warnings` a task has its starter's filters.
        with pytest.warns(RuntimeWarning, match="did not confirm within 3 seconds"):
            process, _, block = await opened(talk)
            began = trio.current_time()
            block.leave.set()
            await block.result.wait()
        assert trio.current_time() - began == 3
        with pytest.raises(GuestLostError, match="did not confirm"):
            await process.wait()
        assert process.returncode is None


async def test_what_a_given_up_process_still_says_is_heard_by_nobody(
    autojump_clock: trio.testing.MockClock,
) -> None:
    async with talking(grace=3) as talk:
        with pytest.warns(RuntimeWarning, match="did not confirm"):  # around the start of the task that warns
            process, id_, block = await opened(talk)
            block.leave.set()
            await block.result.wait()
        assert talk.guest.statistics().active_sessions == 1
        await talk.agent.send(wire.ExecStdout(b"late"), id_)
        await talk.agent.send(wire.ExecExited(0), id_)
        await trio.testing.wait_all_tasks_blocked()
        assert talk.guest.statistics().active_sessions == 0
        with pytest.raises(GuestLostError):
            await process.wait()


async def test_signals_go_to_the_process_and_after_its_end_to_nobody() -> None:
    async with talking() as talk:
        process, id_, _ = await opened(talk, stdin=PIPE)
        process.terminate()
        process.kill()
        process.send_signal(signal.SIGUSR1)
        got = [(await talk.agent.expect(wire.ExecSignal))[1].signal for _ in range(3)]
        assert got == [15, 9, int(signal.SIGUSR1)]
        await talk.agent.send(wire.ExecExited(0), id_)
        await process.wait()
        process.terminate()
        await talk.agent.nothing_more()


@pytest.mark.parametrize("number", [-1, 32, 64, 2**40])
async def test_a_signal_that_no_guest_takes_is_refused(number: int) -> None:
    async with talking() as talk:
        process, _, _ = await opened(talk, stdin=PIPE)
        with pytest.raises(ValueError, match="only 1 to 31"):
            process.send_signal(number)
        await talk.agent.nothing_more()


async def test_signal_0_sends_nothing() -> None:
    async with talking() as talk:
        process, _, _ = await opened(talk, stdin=PIPE)
        process.send_signal(0)
        await talk.agent.nothing_more()


async def test_a_terminal_is_resized() -> None:
    async with talking() as talk:
        process, id_, _ = await opened(talk, stdin=PIPE, tty=True)
        process.resize(50, 132)
        assert await talk.agent.expect(wire.ExecResize) == (id_, wire.ExecResize(50, 132))
        with pytest.raises(ValueError, match="rows"):
            process.resize(65536, 1)
        with pytest.raises(ValueError, match="cols"):
            process.resize(1, -1)
        await talk.agent.nothing_more()


async def test_without_a_terminal_there_is_nothing_to_resize() -> None:
    async with talking() as talk:
        process, _, _ = await opened(talk, stdin=PIPE)
        with pytest.raises(ValueError, match="tty=True"):
            process.resize(1, 1)


# Protocol errors


async def test_a_refused_frame_ends_the_session_with_its_kind_and_kills_the_process() -> None:
    async with talking() as talk:
        process, id_, _ = await opened(talk, stdin=PIPE)
        error = wire.Error(kind="invalid_payload", message="bad stdin", offending_type="core.exec.stdin")
        await talk.agent.send(error, id_)
        with pytest.raises(ProtocolError, match="bad stdin") as caught:
            await process.wait()
        assert caught.value.kind == "invalid_payload"
        assert caught.value.message_type == "core.exec.stdin"
        assert caught.value.frame_id == id_
        assert await talk.agent.expect(wire.ExecSignal) == (id_, wire.ExecSignal(9))


async def test_a_bad_frame_ends_the_session_and_kills_the_process() -> None:
    async with talking() as talk:
        process, id_, _ = await opened(talk, stdin=PIPE)
        await talk.agent.send(wire.ExecStdout(b"before"), id_)
        await talk.agent.send_raw(wire.encode_frame(id_, 0, b"\xff"))
        with pytest.raises(ProtocolError) as caught:
            await process.wait()
        assert caught.value.frame_id == id_
        assert await talk.agent.expect(wire.ExecSignal) == (id_, wire.ExecSignal(9))
        assert await process.stdout.receive_some() == b"before"
        with pytest.raises(ProtocolError):
            await process.stdout.receive_some()


async def test_a_message_that_has_no_place_in_a_session_ends_it() -> None:
    async with talking() as talk:
        process, id_, _ = await opened(talk, stdin=PIPE)
        await talk.agent.send(wire.TcpEof(), id_)
        with pytest.raises(ProtocolError, match=r"core\.tcp\.eof") as caught:
            await process.wait()
        assert caught.value.kind == "invalid_session"
        assert await talk.agent.expect(wire.ExecSignal) == (id_, wire.ExecSignal(9))


# A guest that is lost in the middle


async def test_all_that_came_is_delivered_before_the_loss_is_told() -> None:
    async with talking() as talk:
        process, id_, block = await opened(talk, stdin=PIPE)
        await talk.agent.send(wire.ExecStdout(b"one "), id_)
        await talk.agent.send(wire.ExecStdout(b"two"), id_)
        await talk.agent.send(wire.ExecStderr(b"three"), id_)
        await talk.agent.close()
        with pytest.raises(GuestLostError, match="nobody knows why"):
            await process.wait()
        assert await process.stdout.receive_some() == b"one two"
        assert await process.stderr.receive_some() == b"three"
        for stream in (process.stdout, process.stderr):
            with pytest.raises(GuestLostError, match="nobody knows why"):
                await stream.receive_some()
        with pytest.raises(GuestLostError, match="nobody knows why"):
            await process.stdin.send_all(b"x")
        assert process.returncode is None
        block.leave.set()
        await block.result.wait()


async def test_a_process_that_was_given_up_is_not_lost_for_another_reason_later() -> None:
    async with talking() as talk:
        process, _, block = await opened(talk)
        process._session.give_up(lambda: None)
        talk.connection.lose("power cut")
        with pytest.raises(GuestLostError, match="did not confirm the end"):
            await process.wait()
        block.leave.set()
        await block.result.done.wait()


async def test_how_a_process_ended_that_was_given_up_is_told_nevertheless() -> None:
    heard = trio.Event()
    async with talking() as talk:
        process, id_, block = await opened(talk)
        process._session.give_up(heard.set)
        assert process.returncode is None
        await talk.agent.send(wire.ExecExited(3), id_)
        with trio.fail_after(HANG):
            await heard.wait()
        assert process.returncode == 3
        with pytest.raises(GuestLostError, match="did not confirm the end"):
            await process.wait()
        block.leave.set()
        await block.result.wait()


@pytest.mark.parametrize(
    "answer",
    [wire.ExecFailed(kind="not_found", message="gone"), wire.Error("internal", "no", "core.exec.request")],
    ids=["failed", "error"],
)
async def test_an_answer_that_a_given_up_process_failed_is_told_as_well(answer: wire.Message) -> None:
    heard = trio.Event()
    async with talking() as talk:
        process, id_, block = await opened(talk)
        process._session.give_up(heard.set)
        await talk.agent.send(answer, id_)
        await trio.testing.wait_all_tasks_blocked()
        assert heard.is_set()
        with pytest.raises(GuestLostError, match="did not confirm the end"):
            await process.wait()
        block.leave.set()
        await block.result.wait()


async def test_the_loss_of_the_guest_is_no_answer_for_a_given_up_process() -> None:
    heard = trio.Event()
    async with talking() as talk:
        process, _, block = await opened(talk)
        process._session.give_up(heard.set)
        talk.connection.lose("power cut")
        assert not heard.is_set()
        block.leave.set()
        await block.result.done.wait()


async def test_a_process_ends_once() -> None:
    async with talking() as talk:
        process, id_, _ = await opened(talk)
        await talk.agent.send(wire.ExecExited(0), id_)
        assert await process.wait() == 0
        with pytest.raises(IllegalStepError, match="FAILED may not follow EXITED"):
            process._session.on_error(GuestLostError("power cut"))
        assert await process.wait() == 0


async def test_a_lost_guest_ends_run_process() -> None:
    async with talking() as talk:
        result = run(talk)
        id_ = await talk.agent.expect_start()
        await talk.agent.send(wire.ExecStdout(b"one "), id_)
        await talk.agent.close()
        with pytest.raises(GuestLostError, match="nobody knows why"):
            await result.wait()


async def test_a_lost_guest_wakes_whoever_waits_for_credit() -> None:
    async with talking(window=10) as talk:
        process, _, _ = await opened(talk, stdin=PIPE)
        sending = begin(talk.nursery, lambda: process.stdin.send_all(bytes(100)))
        await trio.testing.wait_all_tasks_blocked()
        await talk.agent.close()
        with pytest.raises(GuestLostError, match="nobody knows why"):
            await sending.wait()


async def test_a_lost_guest_wakes_whoever_waits_for_the_console() -> None:
    async with talking(window=2**24, streams=trio.testing.lockstep_stream_pair) as talk:
        process, _, _ = await opened(talk, stdin=PIPE)
        sending = begin(talk.nursery, lambda: process.stdin.send_all(bytes(2**24)))
        await trio.testing.wait_all_tasks_blocked()
        talk.connection.lose("it was ended by force")
        with pytest.raises(GuestLostError, match="by force"):
            await sending.wait()


async def test_a_console_that_breaks_under_a_sender_is_a_lost_guest() -> None:
    async with talking(window=2**24, streams=trio.testing.lockstep_stream_pair) as talk:
        process, _, _ = await opened(talk, stdin=PIPE)
        sending = begin(talk.nursery, lambda: process.stdin.send_all(bytes(2**24)))
        await trio.testing.wait_all_tasks_blocked()
        await talk.agent.close()
        with pytest.raises(GuestLostError, match="nobody knows why"):
            await sending.wait()


async def test_a_start_that_was_not_answered_is_a_lost_guest() -> None:
    async with talking() as talk:
        result = run(talk)
        await talk.agent.expect(wire.ExecRequest)
        await talk.agent.close()
        with pytest.raises(GuestLostError):
            await result.wait()


async def test_output_of_a_process_that_failed_as_soon_as_it_ran_can_be_read() -> None:
    async with talking() as talk:
        block = Opened(talk)
        id_, _ = await talk.agent.expect(wire.ExecRequest)
        messages = (wire.ExecStarted(7), wire.ExecStdout(b"last words"), wire.Error("invalid_session", "no more"))
        await talk.agent.send_raw(b"".join(wire.encode(message, id_) for message in messages))
        process = await block.ready()
        assert await process.stdout.receive_some() == b"last words"
        with pytest.raises(ProtocolError, match="no more"):
            await process.stdout.receive_some()
        with pytest.raises(ProtocolError, match="no more"):
            await process.wait()

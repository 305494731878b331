"""A guest belongs to the trio run that opened it: which calls other threads and other runs may make."""

from __future__ import annotations

import ast
import inspect
import pathlib
import subprocess
import threading
from contextlib import AsyncExitStack
from typing import TYPE_CHECKING, Any

import pytest
import trio

import trio_console
from tests.session._fake import begin, talking
from tests.tools.limits import HANG
from trio_console import _wire as wire

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

PIPE = subprocess.PIPE

#: Arguments for the public methods that need some.
ARGUMENTS: dict[str, tuple[Any, ...]] = {
    "run_process": (["true"],),
    "open_process": (["true"],),
    "open_file": ("/etc/hosts",),
    "open_tcp_stream": ("localhost", 1),
    "send_all": (b"x",),
    "resize": (1, 2),
    "readinto": (bytearray(5),),
    "seek": (0,),
    "write": (b"x",),
    "writelines": ([b"x"],),
    "read_text": (),
    "write_bytes": (b"x",),
    "write_text": ("x",),
    "rename": ("/x",),
    "replace": ("/x",),
    "symlink_to": ("/x",),
    "chmod": (0o600,),
    "samefile": ("/x",),
    "hardlink_to": ("/x",),
    "glob": ("*",),
    "rglob": ("*",),
    "lchmod": (0o600,),
    "readinto1": (bytearray(5),),
}

#: Public methods that change something and are no coroutine functions.
CHANGING = {"open_process", "resize"}


def _calls(thing: object) -> Iterator[tuple[str, Callable[[], Any]]]:
    """Every public method that waits or changes something."""
    for name in dir(thing):
        if name.startswith("_") or not callable(method := getattr(thing, name)):
            continue
        args = ARGUMENTS.get(name, ())
        if name in {"write", "writelines"} and getattr(thing, "encoding", None):
            args = ("x",) if name == "write" else (["x"],)
        if inspect.iscoroutinefunction(method) or name in CHANGING:
            yield f"{type(thing).__name__}.{name}", lambda method=method, args=args: method(*args)


def _without_trio(call: Callable[[], Any]) -> None:
    coroutine = call()
    try:
        coroutine.send(None)
    finally:
        coroutine.close()


def _in_a_run_of_its_own(call: Callable[[], Any]) -> None:
    async def main() -> None:
        with trio.fail_after(HANG):
            result = call()
            if inspect.isawaitable(result):
                await result

    trio.run(main)


ELSEWHERE = [_without_trio, _in_a_run_of_its_own]


@pytest.mark.parametrize("run", ELSEWHERE)
async def test_whatever_is_called_from_elsewhere_is_refused_before_anything_has_changed(
    run: Callable[[Callable[[], Any]], None], tmp_path: Any
) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"abc")
    refused = []

    def call_all(things: list[Any]) -> None:
        for thing in things:
            for name, call in _calls(thing):
                refused.append(name)
                with pytest.raises(RuntimeError, match="belongs to"):
                    run(call)

    with trio.fail_after(HANG):
        async with AsyncExitStack() as stack:
            guest = await stack.enter_async_context(trio_console.open_guest())
            cat = await stack.enter_async_context(
                guest.open_process(["cat"], stdin=PIPE, stdout=PIPE, stderr=PIPE, tty=True)
            )
            listener = (await trio.open_tcp_listeners(0, host="127.0.0.1"))[0]
            await stack.enter_async_context(listener)
            tcp = await guest.open_tcp_stream("127.0.0.1", listener.socket.getsockname()[1])
            await stack.enter_async_context(tcp)
            theirs = await stack.enter_async_context(await listener.accept())
            binary = await stack.enter_async_context(await guest.open_file(path, "r+b"))
            text = await stack.enter_async_context(await guest.open_file(path, "r+"))
            assert await binary.read(1) == b"a"
            things = [guest, cat, cat.stdin, cat.stdout, tcp, binary, text, guest.path("/x")]
            before = guest.statistics()
            await trio.to_thread.run_sync(call_all, things)

            assert len(refused) >= 68, refused
            assert guest.statistics().frames_received == before.frames_received
            # All of it still works.
            await cat.stdin.send_all(b"\n")
            assert (await cat.stdout.receive_some()).startswith(b"\r\n")
            await tcp.send_all(b"there")
            assert await theirs.receive_some() == b"there"
            await theirs.send_all(b"back")
            assert await tcp.receive_some() == b"back"
            assert await binary.read() == b"bc"
            assert await text.read() == "abc"
            assert await guest.ping() >= 0


def test_a_method_that_says_it_checks_its_owner_does_so_first() -> None:
    found = []
    for path in sorted((pathlib.Path(trio_console.__file__).parent / "_session").rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.AsyncFunctionDef) and "checks_owner" in map(ast.unparse, node.decorator_list):
                found.append(f"{path.stem}.{node.name}")
                first = node.body[1 if ast.get_docstring(node) else 0]
                assert ast.unparse(first) == "self._owner.check()", found[-1]
    assert {"receiving.receive_some", "input.send_all", "text.write"} <= set(found)


async def test_attributes_and_statistics_are_for_everyone() -> None:
    looked = trio.Event()
    async with talking() as talk:

        async def body() -> None:
            async with talk.guest.open_process(["cmd"], stdin=PIPE, stdout=PIPE, stderr=PIPE) as process:
                await trio.to_thread.run_sync(look, process)
                looked.set()
                await process.wait()

        def look(process: Any) -> None:
            assert process.pid == 7
            assert process.poll() is None
            assert process.returncode is None
            assert process.args == ["cmd"]
            assert talk.guest.statistics().active_sessions == 1
            assert talk.guest.ready.generation == 7
            assert str(talk.guest.path("/a") / "b") == "/a/b"

        result = begin(talk.nursery, body)
        id_ = await talk.agent.expect_start()
        await looked.wait()
        await talk.agent.send(wire.ExecExited(0), id_)
        await result.wait()


@pytest.mark.parametrize(("name", "number"), [("kill", 9), ("terminate", 15)])
async def test_signals_may_be_sent_from_any_thread(name: str, number: int) -> None:
    async with talking() as talk:

        async def body() -> None:
            async with talk.guest.open_process(["cmd"], stdin=PIPE, stdout=PIPE, stderr=PIPE) as process:
                threading.Thread(target=getattr(process, name)).start()
                await process.wait()

        result = begin(talk.nursery, body)
        id_ = await talk.agent.expect_start()
        # Nothing else wakes the writer.
        assert await talk.agent.expect(wire.ExecSignal) == (id_, wire.ExecSignal(number))
        await talk.agent.send(wire.ExecExited(-1, signal=number), id_)
        await result.wait()


async def test_a_signal_may_be_sent_in_the_middle_of_whatever_the_run_does() -> None:
    # As from a signal handler of this program, which runs between any two opcodes of its main thread.
    async with talking() as talk:

        async def body() -> None:
            async with talk.guest.open_process(["cmd"], stdin=PIPE, stdout=PIPE, stderr=PIPE) as process:
                outbox = talk.connection.outbox
                before = outbox.control_queued
                process.kill()
                assert outbox.control_queued == before  # the call has touched no state that was half changed
                await process.wait()

        result = begin(talk.nursery, body)
        id_ = await talk.agent.expect_start()
        assert await talk.agent.expect(wire.ExecSignal) == (id_, wire.ExecSignal(9))
        await talk.agent.send(wire.ExecExited(-1, signal=9), id_)
        await result.wait()


async def test_a_signal_from_another_thread_that_cannot_be_sent_is_refused_there() -> None:
    async with talking() as talk:

        async def body() -> None:
            async with talk.guest.open_process(["cmd"], stdin=PIPE, stdout=PIPE, stderr=PIPE) as process:
                with pytest.raises(ValueError, match="only 1 to 31"):
                    await trio.to_thread.run_sync(process.send_signal, 64)
                await process.wait()

        result = begin(talk.nursery, body)
        id_ = await talk.agent.expect_start()
        await talk.agent.send(wire.ExecExited(0), id_)
        await result.wait()


def test_a_signal_does_nothing_once_the_run_is_over() -> None:
    processes = []

    async def main() -> None:
        async with talking() as talk:

            async def body() -> None:
                async with talk.guest.open_process(["cmd"], stdin=PIPE, stdout=PIPE, stderr=PIPE) as process:
                    processes.append(process)
                    await process.wait()

            result = begin(talk.nursery, body)
            await talk.agent.expect_start()
            await talk.agent.close()
            with pytest.raises(trio_console.GuestLostError):
                await result.wait()

    trio.run(main)
    (process,) = processes
    process.kill()
    thread = threading.Thread(target=process.terminate)
    thread.start()
    thread.join()

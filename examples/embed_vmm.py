"""Embed the channel in a virtual machine monitor, and hold a whole session over it: a complete program.

The two threads here play a VMM's console device. They call `AgentConsoleBackend` directly, as libkrun's device
threads would, and know nothing of trio. In the first half a trio task talks to a "guest" that answers each line in
capitals. In the second half the guest is an agent in a child process, and the trio side is a `Guest`.

Run it with ``python examples/embed_vmm.py``.
"""

from __future__ import annotations

import contextlib
import queue
import select
import socket
import subprocess
import sys
import threading

import trio

import trio_console


def receive_thread(backend: trio_console.AgentConsoleBackend, guest_input: queue.Queue[bytes]) -> None:
    """The device's rx side: host to guest. Reads into the guest's pages until end of file."""
    page = bytearray(4096)
    while True:
        try:
            size = backend.readinto(page)
        except BlockingIOError:
            select.select([backend.read_wake_fd()], [], [])  # sleep until the host has sent something
            continue
        guest_input.put(bytes(page[:size]))
        if not size:
            return


def transmit_thread(backend: trio_console.AgentConsoleBackend, guest_input: queue.Queue[bytes]) -> None:
    """The guest, and the device's tx side: guest to host."""
    while received := guest_input.get():
        answer = received.upper()
        while True:
            try:
                backend.write(answer)
            except BlockingIOError:
                backend.wait_until_writable()
            else:
                break


def carry_in(backend: trio_console.AgentConsoleBackend, guest: socket.socket) -> None:
    """The device's rx side again, with a socket to the guest in place of its pages."""
    page = bytearray(4096)
    while True:
        try:
            size = backend.readinto(page)
        except BlockingIOError:
            select.select([backend.read_wake_fd()], [], [])
            continue
        if not size:
            guest.shutdown(socket.SHUT_WR)  # the host has gone
            return
        with contextlib.suppress(BrokenPipeError):  # the guest has gone: the other thread says so
            guest.sendall(page[:size])


def carry_out(
    backend: trio_console.AgentConsoleBackend, shared: trio_console.ConsoleSharedState, guest: socket.socket
) -> None:
    """The device's tx side."""
    while said := guest.recv(32768):
        while True:
            try:
                backend.write(said)
            except BlockingIOError:
                backend.wait_until_writable()
            else:
                break
    shared.guest_gone()


async def talk() -> None:
    """The first half: bytes."""
    shared = trio_console.ConsoleSharedState()
    backend = trio_console.AgentConsoleBackend(shared)
    guest_input: queue.Queue[bytes] = queue.Queue()
    threads = [
        threading.Thread(target=receive_thread, args=(backend, guest_input), name="console rx"),
        threading.Thread(target=transmit_thread, args=(backend, guest_input), name="console tx"),
    ]
    for thread in threads:
        thread.start()

    with trio.fail_after(30):
        async with trio_console.ConsoleStream(shared) as channel:
            for line in (b"hello, guest\n", b"how are you?\n"):
                await channel.send_all(line)
                answer = b""
                while not answer.endswith(b"\n"):
                    answer += await channel.receive_some()
                print(f"{line.decode().strip()!r} -> {answer.decode().strip()!r}")
                assert answer == line.upper()
            statistics = channel.statistics()
        # Leaving the block closed the host's end: the device has read end of file, and its threads return.
        for thread in threads:
            await trio.to_thread.run_sync(thread.join)

    print(f"{statistics.rx.bytes_out} bytes to the guest, {statistics.tx.bytes_out} bytes back")
    assert statistics.tx.bytes_out == statistics.rx.bytes_out


async def hold_session() -> None:
    """The second half: a guest with an agent."""
    shared = trio_console.ConsoleSharedState()
    backend = trio_console.AgentConsoleBackend(shared)
    ours, theirs = socket.socketpair()
    with ours:
        with theirs:
            command = [sys.executable, "-P", "-m", "trio_console.agent", "--fd", str(theirs.fileno())]
            agent = subprocess.Popen(command, pass_fds=[theirs.fileno()])  # noqa: ASYNC220  (plays the machine)
        threads = [
            threading.Thread(target=carry_in, args=(backend, ours), name="console rx"),
            threading.Thread(target=carry_out, args=(backend, shared, ours), name="console tx"),
        ]
        for thread in threads:
            thread.start()
        with trio.fail_after(30):
            async with trio_console.open_guest(trio_console.ConsoleStream(shared)) as guest:
                done = await guest.run_process(["echo", "hello from a process"], capture_stdout=True)
                print(done.stdout.decode().strip())
            # The order of an end: leave the block, join the threads, then close the wakes.
            for thread in threads:
                await trio.to_thread.run_sync(thread.join)
            shared.close_wakes()
            await trio.to_thread.run_sync(agent.wait)
    assert done.stdout == b"hello from a process\n"
    assert agent.returncode == 0


async def main() -> None:
    await talk()
    await hold_session()


if __name__ == "__main__":
    trio.run(main)

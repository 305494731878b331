"""Embed the channel in a virtual machine monitor: the smallest complete program.

The two threads here play a VMM's console device. They call `AgentConsoleBackend` directly, as libkrun's device
threads would, and know nothing of trio. On the other side a trio task talks to the "guest", which answers each
line in capitals.

Run it with ``python examples/embed_vmm.py``.
"""

from __future__ import annotations

import queue
import select
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


async def main() -> None:
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


if __name__ == "__main__":
    trio.run(main)

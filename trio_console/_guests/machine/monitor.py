"""QEMU's monitor: commands to a machine as a whole, such as to stop it, to save it, or to go on (QMP).

This module must not know what the commands are for.
"""

from __future__ import annotations

import array
import json
import socket
from typing import Any, Final, final

import trio

__all__ = ["Monitor", "MonitorError"]

_READ_SIZE: Final = 65536

#: Seconds between two questions for something that QEMU does meanwhile; it takes some milliseconds.
_PAUSE: Final = 0.002


class MonitorError(Exception):
    """QEMU has refused a command, or has ended."""


@final
class Monitor:
    """The conversation over a connected socket, which the caller closes. For one task at a time.

    A call that is cancelled leaves it unusable.
    """

    def __init__(self, sock: trio.socket.SocketType) -> None:
        self._socket: Final = sock
        self._read = b""

    async def begin(self) -> None:
        """Exchange what comes before commands."""
        await self._receive()
        await self.execute("qmp_capabilities")

    async def execute(self, command: str, **arguments: Any) -> Any:
        """Have a command carried out, and return what it returns.

        Raises:
            MonitorError: it was refused.
        """
        return await self._execute(command, arguments, [])

    async def give(self, name: str, fd: int) -> None:
        """Give QEMU a copy of a descriptor, under a name; it has it until it uses it up."""
        rights = array.array("i", [fd])
        await self._execute("getfd", {"fdname": name}, [(socket.SOL_SOCKET, socket.SCM_RIGHTS, rights)])

    async def wait_until(self, command: str, *answers: str) -> str:
        """Ask until ``status`` of the answer is one of these; returns which."""
        while True:
            status: str | None = (await self.execute(command)).get("status")
            if status in answers:
                return status
            await trio.sleep(_PAUSE)

    async def _execute(self, command: str, arguments: dict[str, Any], ancillary: list[Any]) -> Any:
        line = json.dumps({"execute": command, "arguments": arguments}).encode() + b"\n"
        try:
            sent = await self._socket.sendmsg([line], ancillary)
        except OSError as exc:
            raise MonitorError(f"QEMU has ended before {command}") from exc
        if sent != len(line):  # it reads a line before it answers the one before, so there is room for one
            raise MonitorError(f"QEMU does not listen to {command}")
        while True:
            answer = await self._receive()
            if "error" in answer:
                raise MonitorError(f"QEMU has refused {command}: {answer['error'].get('desc')}")
            if "return" in answer:
                return answer["return"]  # and not an event, which may come at any time

    async def _receive(self) -> dict[str, Any]:
        while b"\n" not in self._read:
            try:
                data = await self._socket.recv(_READ_SIZE)
            except OSError:
                data = b""
            if not data:
                raise MonitorError("QEMU has ended")
            self._read += data
        line, _, self._read = self._read.partition(b"\n")
        answer: dict[str, Any] = json.loads(line)
        return answer

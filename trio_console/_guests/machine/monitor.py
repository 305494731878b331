"""QEMU's monitor: commands to a machine as a whole, such as to stop it, to save it, or to go on (QMP).

This module must not know what the commands are for.
"""

from __future__ import annotations

import array
import json
import socket
from collections import deque
from typing import Any, Final, final

import trio

__all__ = ["Monitor", "MonitorError", "field"]

_READ_SIZE: Final = 65536

#: Seconds between two questions for something that QEMU does meanwhile; it takes some milliseconds.
_PAUSE: Final = 0.002

#: Seconds for an answer, and for what is waited for by asking: many times what they take on a busy machine.
_PATIENCE: Final = 120.0

#: The most bytes in a line that QEMU says: it says some KiB, unless its machine has taken it over.
_LONGEST: Final = 1024 * 1024

#: Events that are kept. They are few, and not asked for.
_EVENTS: Final = 100


class MonitorError(Exception):
    """QEMU has refused a command, or has ended."""


@final
class Monitor:
    """The conversation over a connected socket, which the caller closes.

    Any task may call it; they get their turns one after the other. A call that is cancelled may have been carried
    out or not; the next one is not disturbed by it.

    Attributes:
        events: the last that QEMU has told without being asked, as far as that was read by a call.
    """

    def __init__(self, sock: trio.socket.SocketType) -> None:
        self._socket: Final = sock
        self._read = b""
        self._turn: Final = trio.Lock()
        self._begun = False
        self._calls = 0
        self.events: Final[deque[dict[str, Any]]] = deque(maxlen=_EVENTS)

    async def begin(self) -> None:
        """Exchange what comes before commands, unless that was done. If cancelled, it is of no use."""
        if not self._begun:
            with trio.move_on_after(_PATIENCE) as patience:
                await self._receive()
            if patience.cancelled_caught:
                raise MonitorError(f"QEMU has said nothing within {_PATIENCE:g} seconds")
            await self.execute("qmp_capabilities")
            self._begun = True

    async def execute(self, command: str, **arguments: Any) -> Any:
        """Have a command carried out, and return what it returns.

        Raises:
            MonitorError: it was refused, or is not answered within two minutes.
        """
        return await self._execute(command, arguments, [])

    async def give(self, name: str, fd: int) -> None:
        """Give QEMU a copy of a descriptor, under a name; it has it until it uses it up."""
        rights = array.array("i", [fd])
        await self._execute("getfd", {"fdname": name}, [(socket.SOL_SOCKET, socket.SCM_RIGHTS, rights)])

    async def lend(self, fd: int) -> int:
        """Give QEMU a copy of a descriptor, which it opens as ``/dev/fdset/NUMBER``; returns the number."""
        rights = array.array("i", [fd])
        answer = await self._execute("add-fd", {}, [(socket.SOL_SOCKET, socket.SCM_RIGHTS, rights)])
        if not isinstance(number := field(answer, "fdset-id"), int):
            raise MonitorError(f"QEMU's answer to add-fd is {answer!r:.100}")
        return number

    async def wait_until(self, command: str, *answers: str) -> str:
        """Ask until ``status`` of the answer is one of these; returns which.

        Raises:
            MonitorError: as for `execute`, or it is none of them within two minutes.
        """
        status: object = None
        with trio.move_on_after(_PATIENCE):
            while True:
                status = field(await self.execute(command), "status")
                if isinstance(status, str) and status in answers:
                    return status
                await trio.sleep(_PAUSE)
        raise MonitorError(f"QEMU's answer to {command} is {status!r} after {_PATIENCE:g} seconds")

    async def _execute(self, command: str, arguments: dict[str, Any], ancillary: list[Any]) -> Any:
        async with self._turn:
            answer: dict[str, Any] | None = None
            with trio.move_on_after(_PATIENCE):
                answer = await self._ask(command, arguments, ancillary)
        if answer is None:
            raise MonitorError(f"QEMU has not answered {command} within {_PATIENCE:g} seconds")
        if "return" not in answer:
            raise MonitorError(f"QEMU has refused {command}: {answer.get('error')!r:.300}")
        return answer["return"]

    async def _ask(self, command: str, arguments: dict[str, Any], ancillary: list[Any]) -> dict[str, Any]:
        self._calls += 1
        number = self._calls
        asked = {"execute": command, "arguments": arguments, "id": number}
        line = json.dumps(asked).encode() + b"\n"
        try:
            sent = await self._socket.sendmsg([line], ancillary)
        except (OSError, trio.ClosedResourceError) as exc:
            raise MonitorError(f"QEMU has ended before {command}") from exc
        if sent != len(line):  # it reads a line before it answers the one before, so there is room for one
            raise MonitorError(f"QEMU does not listen to {command}")
        answer: dict[str, Any] = {}
        while answer.get("id") != number:  # an event, or the answer to a call that was cancelled
            answer = await self._receive()
            if "event" in answer:
                self.events.append(answer)
        return answer

    async def _receive(self) -> dict[str, Any]:
        while b"\n" not in self._read:
            try:
                data = await self._socket.recv(_READ_SIZE)
            except (OSError, trio.ClosedResourceError):
                data = b""
            if not data:
                raise MonitorError("QEMU has ended")
            self._read += data
            if len(self._read) > _LONGEST:
                raise MonitorError("QEMU says what is no answer")
        line, _, self._read = self._read.partition(b"\n")
        try:
            answer = json.loads(line)
        except ValueError:
            answer = None
        if not isinstance(answer, dict):
            raise MonitorError(f"QEMU says what is no answer: {line!r:.100}")
        return answer


def field(answer: object, *names: str) -> object:
    """A field of what QEMU says, or of a field of it; `None` if there is none.

    What QEMU says may be anything, if its machine has taken it over.
    """
    for name in names:
        answer = answer.get(name) if isinstance(answer, dict) else None
    return answer

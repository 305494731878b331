"""A guest whose console is a Unix socket."""

from __future__ import annotations

import os
import socket
from typing import TYPE_CHECKING, final

import trio

from trio_console._addresses import named_by_descriptor
from trio_console._forked import let_go_in_child, no_fork
from trio_console._guests.spec import GuestHost, GuestSpec
from trio_console._guests.supervisor import Ours, check_workers
from trio_console._trio.sockets import connect_unix

if TYPE_CHECKING:
    from trio_console._guests.supervisor import Workers

__all__ = ["SocketGuest"]


@final
class SocketGuest(GuestSpec):
    """A guest whose console is a Unix stream socket, such as a QEMU chardev.

    An agent can be booted only once, so the program that opens its console owns the guest: leaving `open_guest`
    shuts the guest down. To share a guest, serve it with a relay.

    Args:
        path: the path of the socket.
        workers: what moves the console's bytes in this program: ``"tasks"``, the default, or ``"threads"``. Tasks
            need no threads and less processor time; docs/embedding.md says when to take which.

    Raises:
        ValueError: ``workers`` is none of the two.
    """

    def __init__(
        self, path: str | bytes | os.PathLike[str] | os.PathLike[bytes], *, workers: Workers = "tasks"
    ) -> None:
        self._workers = check_workers(workers)
        self._path = os.fspath(path)

    def __repr__(self) -> str:
        return f"SocketGuest({self._path!r})"

    @trio.lowlevel.enable_ki_protection
    async def run(self, *, task_status: trio.TaskStatus[GuestHost]) -> None:
        """See `GuestSpec.run`. If cancelled, the guest is ended by force."""
        try:
            with named_by_descriptor(self._path) as name:
                stream = await connect_unix(name)
        except OSError as exc:
            # (The error for a path that is too long has no errno.)
            error = type(exc)(exc.errno, exc.strerror or str(exc), self._path)
            error.add_note("(connecting to the guest's console)")
            raise error from exc
        with stream.socket as sock:
            with no_fork():
                console = let_go_in_child(socket.socket(fileno=sock.detach()))
            with Ours(lambda: console, self._workers) as ours:
                ours.hand_over(GuestHost(ours.device, explain=_explain), task_status)
        await trio.sleep_forever()  # whoever has started the guest ends it


async def _explain() -> str:
    await trio.lowlevel.checkpoint()
    return "the other end of the socket is gone"

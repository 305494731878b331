"""A guest whose console is a Unix socket."""

from __future__ import annotations

import os
import socket
from typing import final

import trio

from trio_console._addresses import named_by_descriptor
from trio_console._forked import let_go_in_child, no_fork
from trio_console._guests.spec import GuestHost, GuestSpec
from trio_console._guests.supervisor import Ours
from trio_console._trio.sockets import connect_unix

__all__ = ["SocketGuest"]


@final
class SocketGuest(GuestSpec):
    """A guest whose console is a Unix stream socket, such as a QEMU chardev.

    An agent can be booted only once, so the program that opens its console owns the guest: leaving `open_guest`
    shuts the guest down. To share a guest, serve it with a relay.

    Args:
        path: the path of the socket.
    """

    def __init__(self, path: str | bytes | os.PathLike[str] | os.PathLike[bytes]) -> None:
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
            with Ours(lambda: console) as ours:
                ours.hand_over(GuestHost(ours.device, explain=_explain), task_status)
        await trio.sleep_forever()  # whoever has started the guest ends it


async def _explain() -> str:
    await trio.lowlevel.checkpoint()
    return "the other end of the socket is gone"

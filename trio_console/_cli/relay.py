"""``relay``: boots a guest, and serves it on a Unix socket until a signal or the guest's end."""

from __future__ import annotations

import os
from contextlib import suppress
from typing import TYPE_CHECKING, final

import trio

import trio_console
from trio_console._cli.failures import OutputError, first_of
from trio_console._cli.options import relay_options
from trio_console._cli.reports import reporting
from trio_console._cli.signals import act_by_default, caught, die_of
from trio_console._cli.standard import Output, say
from trio_console._errors import in_words
from trio_console._rank import go_first
from trio_console._trio.threads import NoThreadError
from trio_console._trio.turns import keep_collections_short

if TYPE_CHECKING:
    import argparse

__all__ = ["relay"]


def relay(args: argparse.Namespace) -> int:
    """Run the command; returns the exit status."""
    status = 0
    act_by_default()
    with reporting():
        try:
            trio.run(_serve, args)
        except* (
            OSError,
            ValueError,
            NoThreadError,
            trio_console.UnsupportedByPeer,
            trio_console.GuestLostError,
            trio_console.ProtocolError,
            OutputError,
        ) as group:
            status = 1
            say(in_words(first_of(group)))
    return status


async def _serve(args: argparse.Namespace) -> None:
    options = relay_options(args)
    # (Tasks for both: nothing in this program computes for long, and so a frame needs no change between threads.)
    spec = (
        trio_console.ProcessGuest(workers="tasks")
        if args.console is None
        else trio_console.SocketGuest(args.console)
    )
    token = trio.lowlevel.current_trio_token()
    socket = _SocketFile()
    with (
        trio.CancelScope() as scope,
        caught(lambda _number: token.run_sync_soon(scope.cancel), socket.remove_and_die),
    ):
        async with trio.open_nursery() as nursery:
            go_first()  # before the agent is started, which goes as far

            async def serve(task_status: trio.TaskStatus[trio_console.Relay]) -> None:
                await trio_console.serve_relay(
                    spec,
                    args.listen,
                    grace=args.grace,
                    ready_timeout=args.ready_timeout,
                    options=options,
                    task_status=task_status,
                )
                scope.cancel()  # a client has shut the guest down

            relay = await nursery.start(serve)
            socket.note(relay.path)
            keep_collections_short()
            await Output(1).write(b"ready %s\n" % os.fsencode(relay.path))


@final
class _SocketFile:
    """The file of the relay's socket, for the ending that waits for nothing."""

    def __init__(self) -> None:
        self._path = ""
        self._identity: tuple[int, int] | None = None

    def note(self, path: str) -> None:
        """Note the file, which is there and the relay's own."""
        found = os.lstat(path)
        self._path, self._identity = path, (found.st_dev, found.st_ino)

    def remove_and_die(self, number: int) -> None:
        """Remove the file, unless another relay's is there, and end this program by a signal."""
        if self._identity is not None:
            with suppress(OSError):
                found = os.lstat(self._path)
                if (found.st_dev, found.st_ino) == self._identity:
                    os.unlink(self._path)
        die_of(number)

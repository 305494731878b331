"""The look into a guest from beside it: things of the machine are made that it should not reach.

As a program it prints what was found: ``python -m tests.guests.namespaces._looks OPTIONS``, which are those of
`BubblewrapGuest` as JSON.
"""

from __future__ import annotations

import json
import os
import secrets
import socket
import sys
import tempfile
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import trio

from trio_console import BubblewrapGuest, open_guest
from trio_console._guests.namespaces.runtime import find_runtime

__all__ = ["look"]

INSIDE = Path(__file__).with_name("_inside.py")


async def look(**options: Any) -> dict[str, Any]:
    """What can be seen and done in a guest with these options."""
    with ExitStack() as stack:
        directory = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        directory.chmod(0o755)
        secret = directory / "secret"
        secret.write_text("secret")
        secret.chmod(0o644)
        abstract = secrets.token_hex(8)
        listeners = [
            stack.enter_context(socket.socket(family)) for family in (socket.AF_INET, *[socket.AF_UNIX] * 2)
        ]
        for listener, address in zip(
            listeners, [("127.0.0.1", 0), "\0" + abstract, str(directory / "socket")], strict=True
        ):
            listener.bind(address)
            listener.listen()
        given = {
            "secret": str(secret),
            "port": listeners[0].getsockname()[1],
            "abstract": abstract,
            "unix": str(directory / "socket"),
            "pid": os.getpid(),
        }
        async with open_guest(BubblewrapGuest(**options)) as guest:
            # (The agent's Python, because the guest's root may have none.)
            command = [*find_runtime().command, "-", json.dumps(given)]
            done = await guest.run_process(command, stdin=INSIDE.read_bytes(), capture_stdout=True)
        found: dict[str, Any] = json.loads(done.stdout)
        return found


if __name__ == "__main__":
    print(json.dumps(trio.run(lambda: look(**json.loads(sys.argv[1])))))  # noqa: T201

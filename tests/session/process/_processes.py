"""Commands that tests start in a guest that talks to a scripted agent."""

from __future__ import annotations

import subprocess
from typing import Any

import trio

from tests.session._fake import Talk, begin
from tests.tools.limits import HANG

PIPE = subprocess.PIPE


def run(talk: Talk, *command: str, **options: Any) -> Any:
    options.setdefault("capture_stdout", "stdout" not in options)
    options.setdefault("capture_stderr", "stderr" not in options)
    return begin(talk.nursery, lambda: talk.guest.run_process(list(command) or ["cmd"], **options))


class Opened:
    """A process opened in the background, until `leave`."""

    def __init__(self, talk: Talk, **options: Any) -> None:
        self.talk = talk
        self.process: Any = None
        self.leave = trio.Event()
        options.setdefault("stdout", PIPE)
        options.setdefault("stderr", PIPE)
        self._options = options
        self._opened = trio.Event()
        self.result = begin(talk.nursery, self._run)

    async def _run(self) -> None:
        async with self.talk.guest.open_process(["cmd"], **self._options) as self.process:
            self._opened.set()
            await self.leave.wait()

    async def ready(self) -> Any:
        with trio.fail_after(HANG):
            await self._opened.wait()
        return self.process


async def opened(talk: Talk, **options: Any) -> tuple[Any, int, Opened]:
    """A started process, its id, and its block. The frames of the start have been received."""
    block = Opened(talk, **options)
    id_ = await talk.agent.expect_start()
    return await block.ready(), id_, block

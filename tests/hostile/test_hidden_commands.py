"""A command that nobody can look at keeps no other command's end from being told."""

from __future__ import annotations

import sys
import warnings
from typing import TYPE_CHECKING

import trio

from tests.hostile._soak import a_relay
from tests.tools.hiding import HIDING, check_hidden
from tests.tools.leftovers import marking
from trio_console import connect_guest

if TYPE_CHECKING:
    from pathlib import Path


async def test_a_cancellation_is_confirmed_beside_a_command_that_hides_what_it_is(tmp_path: Path) -> None:
    with marking(), warnings.catch_warnings():
        warnings.simplefilter("error")
        async with (
            a_relay(tmp_path) as (path, _),
            connect_guest(path) as honest,
            connect_guest(path) as hostile,
            hostile.open_process([sys.executable, "-c", HIDING], stdout=-1) as hiding,
        ):
            with trio.CancelScope() as scope:
                async with (
                    honest.open_process(["sleep", "1000"]),
                    hostile.open_process([sys.executable, "-c", HIDING], stdout=-1) as younger,
                ):
                    for process in (hiding, younger):
                        assert process.stdout is not None
                        check_hidden(bytes(await process.stdout.receive_some()))
                    scope.cancel()
                    await trio.lowlevel.checkpoint()
            assert scope.cancelled_caught
            assert hiding.returncode is None
            hiding.kill()

"""What is fuzzed. A target takes any bytes, and raises only if trio_console has done something wrong.

It does the same for the same bytes, whatever ran before and in which process, and returns a number that is made of
all that came out, so that two runs can be compared.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from tests.fuzz.targets.agent_router import fuzz_agent_router
from tests.fuzz.targets.frames import fuzz_frames
from tests.fuzz.targets.messages import fuzz_messages
from tests.fuzz.targets.relay import fuzz_relay_agent, fuzz_relay_clients

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

__all__ = ["TARGETS"]

TARGETS: Final[Mapping[str, Callable[[bytes], int]]] = {
    "frames": fuzz_frames,
    "messages": fuzz_messages,
    "relay_clients": fuzz_relay_clients,
    "relay_agent": fuzz_relay_agent,
    "agent_router": fuzz_agent_router,
}
"""By the name of their corpus."""

"""The fuzz targets. A target takes any bytes, and raises only if trio_console has a fault.

For the same bytes it always does the same, whatever ran before, and in any process. It returns a number computed
from all results, so that two runs can be compared.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from tests.fuzz.targets.admission import fuzz_admission
from tests.fuzz.targets.agent_router import fuzz_agent_router
from tests.fuzz.targets.exec_session import fuzz_exec_session
from tests.fuzz.targets.frames import fuzz_frames
from tests.fuzz.targets.messages import fuzz_messages
from tests.fuzz.targets.process_session import fuzz_process_session
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
    "process_session": fuzz_process_session,
    "exec_session": fuzz_exec_session,
    "admission": fuzz_admission,
}
"""By the name of their corpus."""

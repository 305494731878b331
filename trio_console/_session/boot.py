"""The frames that boot an agent: bootstrap, resolved, acknowledged, ready.

They are exchanged once in the life of an agent, by the owner of its console.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, final

import msgspec

from trio_console import _wire as wire
from trio_console._trio.lost import GuestLostError
from trio_console._wire.credit import Admission, Admitted

if TYPE_CHECKING:
    import trio

__all__ = ["Booted", "boot", "make_bootstrap"]

#: The messages that are read during the boot: all messages of an agent that belong to no session.
_AWAITED: Final = frozenset(
    row.name
    for row in wire.MESSAGE_TYPES.values()
    if row.control and wire.Direction.AGENT_TO_HOST in row.direction
)

#: The generation whose agents may count all that comes over their console.
_COUNTS: Final = wire.type_of(wire.TransportCredit).generation

#: The limits with which such an agent begins. It does not say them: it says the version of this contract, 2, and
#: announces limits when it has taken something. By then a host that knows none may have sent too much.
_VERSION: Final = 2
_FIRST_LIMITS: Final = Admitted(
    control_bytes=8 * 1024 * 1024, control_frames=256, bulk_bytes=32 * 1024 * 1024, bulk_frames=256
)

_FIELDS: Final = frozenset(field.name for field in msgspec.structs.fields(wire.Bootstrap))


@final
@dataclass(frozen=True)
class Booted:
    """A guest that is ready.

    Attributes:
        ready: the agent's ready message.
        frame: the frame of that message, to be sent to a relay's clients.
        generation: the protocol generation in that frame.
        decoder: the decoder, which may hold bytes that came after it.
    """

    ready: wire.Ready
    frame: wire.Frame
    generation: int
    decoder: wire.FrameDecoder

    def admission(self) -> Admission | None:
        """What this agent admits of all that comes over its console; `None` if it is too old to count that.

        It counts from its ready message on. One that is new enough, and has not said that it counts, may still
        announce limits.
        """
        if self.generation < _COUNTS:
            return None
        knows = self.ready.workload_transport_barrier_version == _VERSION
        return Admission(_FIRST_LIMITS if knows else None)


def make_bootstrap(values: Mapping[str, Any]) -> wire.Bootstrap:
    """Check a user's bootstrap mapping.

    Raises:
        TypeError: ``values`` is not a mapping.
        ValueError: a key is unknown, or a value does not fit; the message names it.
    """
    if not isinstance(values, Mapping):
        raise TypeError(f"bootstrap must be a mapping, not {type(values).__name__}")
    unknown = sorted(set(values) - _FIELDS)
    if unknown:
        raise ValueError(f"unknown bootstrap field {unknown[0]!r}; known: {', '.join(sorted(_FIELDS))}")
    fields = dict(values)
    if isinstance(env := fields.get("default_env"), Mapping):
        fields["default_env"] = [{"key": key, "value": value} for key, value in env.items()]
    try:
        bootstrap = msgspec.convert(fields, wire.Bootstrap)
    except msgspec.ValidationError as exc:
        raise ValueError(f"bootstrap: {exc}") from None
    wire.encode(bootstrap)
    return bootstrap


async def boot(stream: trio.abc.Stream, bootstrap: wire.Bootstrap) -> Booted:
    """Boot the agent at the other end of ``stream``.

    If cancelled, the console is in an unknown state, and a new guest must be started.

    Raises:
        trio_console.ProtocolError: the bytes that came violate the agent protocol.
        trio_console.GuestLostError: the console ended before the agent was ready.
        trio.BrokenResourceError: the console broke.
    """
    await stream.send_all(wire.encode(bootstrap))
    decoder = wire.FrameDecoder()
    while True:
        for frame in decoder:
            # All other frames of an agent that is not ready are ignored.
            if frame.id != 0 or wire.peek_type(frame.body) not in _AWAITED:
                continue
            message = wire.decode(frame)
            if isinstance(message, wire.InitResolved):
                await stream.send_all(wire.encode(wire.InitAck()))
            elif isinstance(message, wire.Ready):
                return Booted(message, frame, wire.decode_envelope(frame.body).version, decoder)
        data = await stream.receive_some()
        if not data:
            where = ", in the middle of a frame" if decoder.pending else ""
            raise GuestLostError(f"the guest closed its console before it was ready{where}")
        decoder.feed(bytes(data))

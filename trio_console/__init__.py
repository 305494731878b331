"""A guest's console as a trio stream, and a session with the guest over it.

The thread side (`WakePipe`, `ChunkRing`, `ConsoleSharedState`, `AgentConsoleBackend`) needs no event loop:
each name is imported when it is first used, and only those that need trio import it. So an agent, or a VMM's
process, pays for no more than it uses.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Final

from ._version import __version__ as __version__

if TYPE_CHECKING:
    from . import testing as testing
    from ._channel import open_console as open_console
    from ._client._file import GuestFile as GuestFile
    from ._client._guest import Guest as Guest
    from ._client._guest import GuestReady as GuestReady
    from ._client._guest import GuestStatistics as GuestStatistics
    from ._client._path import GuestPath as GuestPath
    from ._client._process import GuestProcess as GuestProcess
    from ._console import AgentConsoleBackend as AgentConsoleBackend
    from ._console import ConsoleSharedState as ConsoleSharedState
    from ._console import LaneStatistics as LaneStatistics
    from ._devices import GuestDevice as GuestDevice
    from ._errors import ProtocolError as ProtocolError
    from ._errors import UnsupportedByPeer as UnsupportedByPeer
    from ._guests import CommandGuest as CommandGuest
    from ._guests import GuestSpec as GuestSpec
    from ._guests import ProcessGuest as ProcessGuest
    from ._guests import SocketGuest as SocketGuest
    from ._lost import GuestLostError as GuestLostError
    from ._open import connect_guest as connect_guest
    from ._open import open_guest as open_guest
    from ._open import serve_relay as serve_relay
    from ._relay._serve import Relay as Relay
    from ._relay._server import RelayStatistics as RelayStatistics
    from ._ring import ChunkRing as ChunkRing
    from ._stream import ConsoleStatistics as ConsoleStatistics
    from ._stream import ConsoleStream as ConsoleStream
    from ._wake import WakePipe as WakePipe

__all__ = [
    "AgentConsoleBackend",
    "ChunkRing",
    "CommandGuest",
    "ConsoleSharedState",
    "ConsoleStatistics",
    "ConsoleStream",
    "Guest",
    "GuestDevice",
    "GuestFile",
    "GuestLostError",
    "GuestPath",
    "GuestProcess",
    "GuestReady",
    "GuestSpec",
    "GuestStatistics",
    "LaneStatistics",
    "ProcessGuest",
    "ProtocolError",
    "Relay",
    "RelayStatistics",
    "SocketGuest",
    "UnsupportedByPeer",
    "WakePipe",
    "connect_guest",
    "open_console",
    "open_guest",
    "serve_relay",
]

#: Where each name lives. The block above says the same to type checkers; a test compares.
_LAZY: Final = {
    "AgentConsoleBackend": "_console",
    "ChunkRing": "_ring",
    "CommandGuest": "_guests",
    "ConsoleSharedState": "_console",
    "ConsoleStatistics": "_stream",
    "ConsoleStream": "_stream",
    "Guest": "_client._guest",
    "GuestDevice": "_devices",
    "GuestFile": "_client._file",
    "GuestLostError": "_lost",
    "GuestPath": "_client._path",
    "GuestProcess": "_client._process",
    "GuestReady": "_client._guest",
    "GuestSpec": "_guests",
    "GuestStatistics": "_client._guest",
    "LaneStatistics": "_console",
    "ProcessGuest": "_guests",
    "ProtocolError": "_errors",
    "Relay": "_relay._serve",
    "RelayStatistics": "_relay._server",
    "SocketGuest": "_guests",
    "UnsupportedByPeer": "_errors",
    "WakePipe": "_wake",
    "connect_guest": "_open",
    "open_console": "_channel",
    "open_guest": "_open",
    "serve_relay": "_open",
}


def __getattr__(name: str) -> object:
    if name == "testing":
        return import_module(f"{__name__}.testing")
    module = _LAZY.get(name)
    if module is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value: object = getattr(import_module(f"{__name__}.{module}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})

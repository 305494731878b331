"""A guest's console as a trio stream, and a session with the guest over it.

The thread side (`WakePipe`, `ChunkRing`, `ConsoleSharedState`, `AgentConsoleBackend`) needs no event loop. Each
name is imported when it is first used, and only the names that need trio import trio. So an agent, or a VMM's
process, does not load code that it does not use.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Final

from trio_console._version import __version__ as __version__

if TYPE_CHECKING:
    from trio_console import testing as testing
    from trio_console._console.backend import AgentConsoleBackend as AgentConsoleBackend
    from trio_console._console.backend import ConsoleSharedState as ConsoleSharedState
    from trio_console._console.backend import LaneStatistics as LaneStatistics
    from trio_console._console.channel import open_console as open_console
    from trio_console._console.devices import GuestDevice as GuestDevice
    from trio_console._console.ring import ChunkRing as ChunkRing
    from trio_console._console.stream import ConsoleStatistics as ConsoleStatistics
    from trio_console._console.stream import ConsoleStream as ConsoleStream
    from trio_console._console.wake import WakePipe as WakePipe
    from trio_console._errors import ProtocolError as ProtocolError
    from trio_console._errors import UnsupportedByPeer as UnsupportedByPeer
    from trio_console._guests.command import CommandGuest as CommandGuest
    from trio_console._guests.machine.guest import MicroVMGuest as MicroVMGuest
    from trio_console._guests.machine.guest import Template as Template
    from trio_console._guests.namespaces.bubblewrap import BubblewrapGuest as BubblewrapGuest
    from trio_console._guests.process import ProcessGuest as ProcessGuest
    from trio_console._guests.roots import Limits as Limits
    from trio_console._guests.roots import Root as Root
    from trio_console._guests.roots import Share as Share
    from trio_console._guests.socket import SocketGuest as SocketGuest
    from trio_console._guests.spec import GuestHost as GuestHost
    from trio_console._guests.spec import GuestSpec as GuestSpec
    from trio_console._machine.described import Machine as Machine
    from trio_console._open.client import connect_guest as connect_guest
    from trio_console._open.guest import open_guest as open_guest
    from trio_console._open.guest import run_guest as run_guest
    from trio_console._open.relay import serve_relay as serve_relay
    from trio_console._open.template import make_template as make_template
    from trio_console._relay.options import ClientLimits as ClientLimits
    from trio_console._relay.options import Log as Log
    from trio_console._relay.options import RelayOptions as RelayOptions
    from trio_console._relay.options import Rights as Rights
    from trio_console._relay.serve import Relay as Relay
    from trio_console._relay.server import RelayStatistics as RelayStatistics
    from trio_console._session.files.file import GuestFile as GuestFile
    from trio_console._session.files.path import GuestPath as GuestPath
    from trio_console._session.guest import Guest as Guest
    from trio_console._session.guest import GuestReady as GuestReady
    from trio_console._session.process.process import GuestProcess as GuestProcess
    from trio_console._session.statistics import GuestStatistics as GuestStatistics
    from trio_console._session.statistics import SessionStatistics as SessionStatistics
    from trio_console._session.statistics import StreamStatistics as StreamStatistics
    from trio_console._trio.lost import GuestLostError as GuestLostError

__all__ = [
    "AgentConsoleBackend",
    "BubblewrapGuest",
    "ChunkRing",
    "ClientLimits",
    "CommandGuest",
    "ConsoleSharedState",
    "ConsoleStatistics",
    "ConsoleStream",
    "Guest",
    "GuestDevice",
    "GuestFile",
    "GuestHost",
    "GuestLostError",
    "GuestPath",
    "GuestProcess",
    "GuestReady",
    "GuestSpec",
    "GuestStatistics",
    "LaneStatistics",
    "Limits",
    "Log",
    "Machine",
    "MicroVMGuest",
    "ProcessGuest",
    "ProtocolError",
    "Relay",
    "RelayOptions",
    "RelayStatistics",
    "Rights",
    "Root",
    "SessionStatistics",
    "Share",
    "SocketGuest",
    "StreamStatistics",
    "Template",
    "UnsupportedByPeer",
    "WakePipe",
    "connect_guest",
    "make_template",
    "open_console",
    "open_guest",
    "run_guest",
    "serve_relay",
]

#: The module of each public name. The block above says the same for type checkers; a test compares the two.
_LAZY: Final = {
    "AgentConsoleBackend": "_console.backend",
    "BubblewrapGuest": "_guests.namespaces.bubblewrap",
    "ChunkRing": "_console.ring",
    "ClientLimits": "_relay.options",
    "CommandGuest": "_guests.command",
    "ConsoleSharedState": "_console.backend",
    "ConsoleStatistics": "_console.stream",
    "ConsoleStream": "_console.stream",
    "Guest": "_session.guest",
    "GuestDevice": "_console.devices",
    "GuestFile": "_session.files.file",
    "GuestHost": "_guests.spec",
    "GuestLostError": "_trio.lost",
    "GuestPath": "_session.files.path",
    "GuestProcess": "_session.process.process",
    "GuestReady": "_session.guest",
    "GuestSpec": "_guests.spec",
    "GuestStatistics": "_session.statistics",
    "LaneStatistics": "_console.backend",
    "Limits": "_guests.roots",
    "Log": "_relay.options",
    "Machine": "_machine.described",
    "MicroVMGuest": "_guests.machine.guest",
    "Template": "_guests.machine.guest",
    "make_template": "_open.template",
    "ProcessGuest": "_guests.process",
    "ProtocolError": "_errors",
    "Relay": "_relay.serve",
    "RelayOptions": "_relay.options",
    "RelayStatistics": "_relay.server",
    "Rights": "_relay.options",
    "Root": "_guests.roots",
    "SessionStatistics": "_session.statistics",
    "Share": "_guests.roots",
    "SocketGuest": "_guests.socket",
    "StreamStatistics": "_session.statistics",
    "UnsupportedByPeer": "_errors",
    "WakePipe": "_console.wake",
    "connect_guest": "_open.client",
    "open_console": "_console.channel",
    "open_guest": "_open.guest",
    "run_guest": "_open.guest",
    "serve_relay": "_open.relay",
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

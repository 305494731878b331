"""The guest's side of the agent protocol: ``trio-console-agent --stdio | --fd N | --port PATH``.

It waits for the host's bootstrap on its console, and then carries out the clients' requests. It can be process 1
of a virtual machine, the command inside a container, or a child process. It runs on Linux only, and needs this
package and its required dependencies.

The parts: ``_main`` is the program, and ``_serve`` puts the other parts together. ``_router`` reads frames and
gives each to its session; ``_session`` has the base class of sessions and the sender of their messages,
``_inflow`` is the queue of a session's input. ``_process.session`` is the session of one command; the other
modules of ``_process`` are its input, its start, its end, its user and its limits. ``_files.session`` makes a
session of each file request: a call (``calls``) or a stream of data (``streams``). Both use the open files
(``shared``, ``handles``) and the threads of ``disk``, which run the functions of ``paths`` and ``trees``.
``_net.tcp`` is the session of one connection. ``_system.boot`` boots the agent, ``console`` opens its console, and
``machine`` acts on the machine. No part imports the host's side.

Each name is imported when it is first used: the program puts its descriptors in order before trio is imported.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from trio_console.agent._main import main as main
    from trio_console.agent._router import Ending as Ending
    from trio_console.agent._serve import AgentOptions as AgentOptions
    from trio_console.agent._serve import serve_agent as serve_agent
    from trio_console.agent._system.boot import BootError as BootError

__all__ = ["AgentOptions", "BootError", "Ending", "main", "serve_agent"]

#: The module of each public name. The block above says the same for type checkers; a test compares the two.
_LAZY: Final = {
    "AgentOptions": "_serve",
    "BootError": "_system.boot",
    "Ending": "_router",
    "main": "_main",
    "serve_agent": "_serve",
}


def __getattr__(name: str) -> object:
    module = _LAZY.get(name)
    if module is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value: object = getattr(import_module(f"{__name__}.{module}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})

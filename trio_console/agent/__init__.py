"""The guest's side of the agent protocol: ``trio-console-agent --stdio | --fd N | --port PATH``.

It waits for the host's bootstrap on the console it was given and then runs what clients ask for. It is
as good as process 1 of a virtual machine, the command inside a container, or a child process. Linux only;
it needs this package and its required dependencies.

The rooms: ``_serve`` puts things together, ``_boot`` is the exchange before anybody is served, ``_router``
reads frames and hands them to sessions (``_link`` is their contract, ``_inflow`` their queue, ``_ids`` whose
they are), ``_exec`` is the session of one command, with ``_stdin``, ``_spawn``, ``_exits``, ``_plan``, ``_users``
and ``_limits`` below it. ``_fs`` makes sessions of file requests: ``_fs_calls`` and ``_fs_streams``, which share
``_files``, that is ``_handles`` and the threads of ``_disk``; ``_paths`` and ``_trees`` are what those threads
do. ``_tcp`` is the session of one connection. ``_system`` is what is done to the machine, ``_console`` opens
the console, ``_main`` is the program. None imports the client.
"""

from __future__ import annotations

from trio_console.agent._main import main
from trio_console.agent._router import Ending
from trio_console.agent._serve import AgentOptions, serve_agent
from trio_console.agent._system.boot import BootError

__all__ = ["AgentOptions", "BootError", "Ending", "main", "serve_agent"]

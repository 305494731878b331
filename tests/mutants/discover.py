"""What finds a mutant that is not in the table yet: the tests of its module, one after the other, until one fails.

    python -m mutants --discover agent._router --operator guard --where Router --every 3 --add

tries each third place of these; with ``--add`` the mutants that were found go into the table. A survivor is a test
that is missing, a test that the list below does not name, or no fault.
"""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Final

from mutants import table
from mutants.operators import OPERATORS, sites
from mutants.run import FOUND, HUNG, INVALID, SURVIVED, Outcome, spread
from mutants.table import Mutant, path_of

if TYPE_CHECKING:
    import argparse

    from mutants.run import Tree

__all__ = ["add_arguments", "candidates", "discover", "refind"]

#: The tests of each module, the narrowest first; of several that fit, the longest prefix counts.
_CANDIDATES: Final = {
    "": ("test_guests.py",),
    "_open": ("interrupts/test_ctrl_c.py", "test_guests.py", "relay/test_serve.py", "relay/test_relay.py"),
    "_ending": (
        "interrupts/test_ctrl_c.py",
        "channel/test_ending.py",
        "channel/test_leaving.py",
        "test_guests.py",
    ),
    "_guests": (
        "test_guests.py",
        "test_guest_specs.py",
        "test_guest_endings.py",
        "test_leftovers.py",
        "interrupts/test_ctrl_c.py",
    ),
    "_ring": (
        "console/test_ring.py",
        "console/test_wake_protocol.py",
        "console/test_ring_model.py",
        "console/test_weak_memory.py",
    ),
    "_wake": ("console/test_wake.py", "console/test_wake_signals.py", "console/test_wake_protocol.py"),
    "_descriptor": ("console/test_wake_signals.py", "console/test_wake.py"),
    "_console": (
        "console/test_lane.py",
        "console/test_last_bytes.py",
        "console/test_backend.py",
        "console/test_state.py",
        "console/test_console_stream_endings.py",
        "console/test_schedules.py",
    ),
    "_workers": (
        "console/test_workers.py",
        "console/test_last_bytes.py",
        "channel/test_device_teardown.py",
        "channel/test_open_console.py",
    ),
    "_devices": ("channel/test_open_console.py", "channel/test_device_teardown.py"),
    "_channel": (
        "channel/test_no_threads.py",
        "channel/test_refusals.py",
        "channel/test_leaving.py",
        "channel/test_device_teardown.py",
        "interrupts/test_ctrl_c.py",
    ),
    "_stream": (
        "console/test_console_stream.py",
        "console/test_console_stream_endings.py",
        "console/test_last_bytes.py",
    ),
    "_outbox": ("test_outbox.py", "test_outbox_pieces.py"),
    "_protocol._frames": ("protocol/test_frames.py", "protocol/test_frames_model.py", "corpus:frames"),
    "_protocol._cbor": ("protocol/test_cbor.py", "protocol/test_codec.py", "corpus:messages"),
    "_protocol": ("protocol/test_codec.py", "protocol/test_messages.py", "corpus:messages"),
    "_client": (
        "client/test_credit.py",
        "client/test_process.py",
        "client/test_cancel.py",
        "client/test_endings.py",
    ),
    "_client._guest": (
        "client/test_process.py",
        "client/test_process_streams.py",
        "client/test_cancel.py",
        "client/test_endings.py",
    ),
    "_client._connection": ("client/test_connection.py", "client/test_endings.py", "client/test_process.py"),
    "_client._heartbeat": ("client/test_heartbeat.py",),
    "_client._confirmations": ("client/test_confirmations.py",),
    "_client._owner": ("client/test_owner.py",),
    "_forked": ("test_forked.py",),
    "_clocks": ("test_guest_liveness.py", "test_guest_endings.py", "client/test_confirmations.py"),
    "_conflict": ("console/test_console_stream.py", "client/test_process.py"),
    "_relay": (
        "relay/test_router_endings.py",
        "relay/test_router_credit.py",
        "relay/test_router_gate.py",
        "relay/test_router_model.py",
        "corpus:relay_clients",
        "corpus:relay_agent",
    ),
    "_relay._server": (
        "relay/test_server.py",
        "relay/test_clocks.py",
        "relay/test_slow_clients.py",
        "relay/test_relay.py",
    ),
    "_relay._serve": ("relay/test_serve.py", "relay/test_socket.py", "relay/test_relay.py"),
    "_relay._log": ("relay/test_log.py",),
    "_relay._socket": ("relay/test_socket.py",),
    "agent": ("agent/test_boot.py", "agent/test_ending.py", "agent/test_program.py"),
    "agent._router": (
        "agent/test_router.py",
        "agent/test_ending.py",
        "agent/test_fs_handles.py",
        "agent/test_program.py",
        "corpus:agent_router",
    ),
    "agent._link": (
        "agent/test_exec_output.py",
        "agent/test_router.py",
        "agent/test_fs_read.py",
        "agent/test_ending.py",
        "agent/test_ending_races.py",
    ),
    "agent._inflow": (
        "agent/test_inflow.py",
        "agent/test_exec_stdin.py",
        "agent/test_fs_write.py",
        "agent/test_tcp.py",
    ),
    "agent._exec": (
        "agent/test_exec_output.py",
        "agent/test_exec_start.py",
        "agent/test_exec_stdin.py",
        "agent/test_exec_signals.py",
        "agent/test_ending.py",
    ),
    "agent._stdin": ("agent/test_exec_stdin.py",),
    "agent._handles": ("agent/test_fs_handles.py", "agent/test_fs_read.py"),
    "agent._fs": ("agent/test_fs_handles.py", "agent/test_fs_write.py", "agent/test_fs_read.py"),
    "agent._tcp": ("agent/test_tcp.py",),
    "agent._limits": ("agent/test_system.py", "agent/test_exec_start.py"),
    "agent._spawn": ("agent/test_exec_start.py", "agent/test_system.py"),
    "agent._trees": ("agent/test_program.py", "agent/test_ending.py", "agent/test_system.py"),
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("discovering what finds new ones")
    group.add_argument("--discover", metavar="MODULE", help="make new mutants of a module")
    group.add_argument("--refind", action="store_true", help="look for new finders of those in the table")
    group.add_argument("--operator", action="append", choices=sorted(OPERATORS), help="these only")
    group.add_argument("--where", default="", help="only in functions with this in their name")
    group.add_argument("--every", type=int, default=1, help="each n-th place only")
    group.add_argument("--add", action="store_true", help="put those that are found into the table")
    group.add_argument("--list", action="store_true", help="list the places, and run nothing")


def candidates(module: str) -> tuple[str, ...]:
    prefix = max((prefix for prefix in _CANDIDATES if module.startswith(prefix)), key=len)
    return _CANDIDATES[prefix]


def discover(arguments: argparse.Namespace, trees: list[Tree], known: list[Mutant]) -> int:
    """Look for finders of new mutants of a module; returns 0 if all were found."""
    ids = {mutant.id for mutant in known}
    fresh = [mutant for mutant in _made(arguments) if mutant.id not in ids]
    if arguments.list:
        print(*(mutant.id for mutant in fresh), sep="\n")
        return 0
    return refind(fresh, trees, add=arguments.add)


def _made(arguments: argparse.Namespace) -> list[Mutant]:
    module = arguments.discover
    everywhere = sites(path_of(module).read_bytes())
    wanted = [
        site
        for site in everywhere
        if arguments.where in site.qualname and site.operator in (arguments.operator or OPERATORS)
    ]
    return [Mutant.of_site(module, site, everywhere) for site in wanted[:: arguments.every]]


def refind(mutants: list[Mutant], trees: list[Tree], *, add: bool) -> int:
    """Look for a finder of each mutant; returns 0 if all were found."""
    missed = 0
    for mutant, outcome in zip(mutants, spread(trees, mutants, _search), strict=True):
        print(f"{outcome.verdict.word:10} {outcome.seconds:5.1f} s  {mutant.id}  {outcome.by}", flush=True)
        if outcome.verdict not in (FOUND, HUNG):
            missed += 1
        elif add:
            done = dataclasses.replace(
                mutant,
                finder=(outcome.by,),
                seconds=round(outcome.seconds, 1),
                hangs=outcome.verdict is HUNG,
            )
            # Read again: the table may have been edited meanwhile, and what was found so far is not to be lost.
            table.save([*(each for each in table.load() if each.id != mutant.id), done])
    return 1 if missed else 0


def _search(tree: Tree, mutant: Mutant) -> Outcome:
    """The tests in one go, so that the first that fails is the narrowest; then the corpora."""
    everything = candidates(mutant.module)
    tests = [f"tests/{each}" for each in everything if not each.startswith("corpus:")]
    outcome = tree.run(mutant, tests)
    for corpus in everything:
        if outcome.verdict is SURVIVED and corpus.startswith("corpus:"):
            outcome = tree.run(mutant, [corpus])
    if outcome.verdict in (FOUND, HUNG) and tree.find([outcome.by]).verdict is not SURVIVED:
        return outcome._replace(verdict=INVALID, by=f"{outcome.by} fails without it as well")
    return outcome

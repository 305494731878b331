"""Finds the test for a mutant that is not in the table yet: it runs the tests of the module until one fails.

    python -m tests.mutants --discover agent._router --operator guard --where Router --every 3 --add

tries each third place of these; with ``--add`` the mutants that were found go into the table. If a mutant
survives, a test is missing, or the list below does not name it, or the change is not a fault.
"""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Final

from tests.mutants import table
from tests.mutants.operators import OPERATORS, sites
from tests.mutants.run import FOUND, HUNG, INVALID, SURVIVED, Outcome, spread
from tests.mutants.table import Mutant, path_of

if TYPE_CHECKING:
    import argparse

    from tests.mutants.run import Tree

__all__ = ["add_arguments", "candidates", "discover", "refind"]

#: The tests of each module, the narrowest first; of several that fit, the longest prefix counts.
_CANDIDATES: Final = {
    "": ("guests/test_guests.py",),
    "_open": ("interrupts/test_ctrl_c.py", "guests/test_guests.py", "relay/test_serve.py", "relay/test_relay.py"),
    "_trio.ending": (
        "interrupts/test_ctrl_c.py",
        "console/channel/test_ending.py",
        "console/channel/test_leaving.py",
        "guests/test_guests.py",
    ),
    "_guests": (
        "guests/test_guests.py",
        "guests/test_guest_specs.py",
        "guests/test_guest_endings.py",
        "interrupts/test_ctrl_c.py",
    ),
    "_console.ring": (
        "console/test_ring.py",
        "console/wake/test_wake_protocol.py",
        "console/test_ring_model.py",
        "console/wake/test_weak_memory.py",
    ),
    "_console.wake": (
        "console/wake/test_wake.py",
        "console/wake/test_wake_signals.py",
        "console/wake/test_wake_protocol.py",
    ),
    "_console.descriptor": ("console/wake/test_wake_signals.py", "console/wake/test_wake.py"),
    "_console.backend": (
        "console/test_lane.py",
        "console/test_last_bytes.py",
        "console/test_backend.py",
        "console/test_state.py",
        "console/stream/test_console_stream_endings.py",
        "console/wake/test_schedules.py",
    ),
    "_console.workers": (
        "console/test_workers.py",
        "console/test_last_bytes.py",
        "console/channel/test_device_teardown.py",
        "console/channel/test_open_console.py",
    ),
    "_console.devices": ("console/channel/test_open_console.py", "console/channel/test_device_teardown.py"),
    "_console.channel": (
        "console/channel/test_no_threads.py",
        "console/channel/test_refusals.py",
        "console/channel/test_leaving.py",
        "console/channel/test_device_teardown.py",
        "interrupts/test_ctrl_c.py",
    ),
    "_console.stream": (
        "console/stream/test_console_stream.py",
        "console/stream/test_console_stream_endings.py",
        "console/test_last_bytes.py",
    ),
    "_wire.outbox": ("wire/outbox/test_outbox.py", "wire/test_outbox_pieces.py"),
    "_wire.frames": ("wire/test_frames.py", "wire/test_frames_model.py", "corpus:frames"),
    "_wire.cbor": ("wire/test_cbor.py", "wire/test_codec.py", "corpus:messages"),
    "_wire": ("wire/test_codec.py", "wire/test_messages.py", "corpus:messages"),
    "_session": (
        "session/test_credit.py",
        "session/process/test_process.py",
        "session/process/test_cancel.py",
        "session/test_endings.py",
    ),
    "_session.guest": (
        "session/process/test_process.py",
        "session/process/test_process_streams.py",
        "session/process/test_cancel.py",
        "session/test_endings.py",
    ),
    "_session.connection": (
        "session/test_connection.py",
        "session/test_endings.py",
        "session/process/test_process.py",
    ),
    "_session.process.session": (
        "session/process/test_process.py",
        "session/process/test_ends.py",
        "session/process/test_cancel.py",
        "corpus:process_session",
    ),
    "_session.heartbeat": ("session/test_heartbeat.py",),
    "_session.confirmations": ("session/test_confirmations.py",),
    "_session.owner": ("session/test_owner.py",),
    "_forked": ("guests/test_forked.py",),
    "_states": ("test_states.py",),
    "_trio.clocks": (
        "guests/test_guest_liveness.py",
        "guests/test_guest_endings.py",
        "session/test_confirmations.py",
    ),
    "_trio.conflict": ("console/stream/test_console_stream.py", "session/process/test_process.py"),
    "_relay": (
        "relay/router/test_router_endings.py",
        "relay/router/test_router_credit.py",
        "relay/router/test_router_budgets.py",
        "relay/router/test_router_gate.py",
        "relay/router/test_router_model.py",
        "corpus:relay_clients",
        "corpus:relay_agent",
    ),
    "_relay.server": (
        "relay/test_server.py",
        "relay/test_clocks.py",
        "relay/test_slow_clients.py",
        "relay/test_relay.py",
    ),
    "_relay.client": ("relay/test_at_once.py", "relay/test_promises.py", "relay/test_slow_clients.py"),
    "_relay.serve": ("relay/test_serve.py", "relay/test_socket.py", "relay/test_relay.py"),
    "_relay.log": ("relay/test_log.py",),
    "_relay.log_writer": ("relay/test_log.py", "relay/test_audit.py"),
    "_relay.log_files": ("relay/test_log_files.py", "relay/test_log.py"),
    "_relay.audit": ("relay/test_audit.py",),
    "_relay.socket": ("relay/test_socket.py",),
    "_relay.door": ("relay/test_door.py",),
    "_relay.router.gate": (
        "relay/router/test_router_gate.py",
        "relay/router/test_router_rights.py",
        "relay/router/test_router_limits.py",
        "relay/router/test_router_budgets.py",
    ),
    "_relay.router.rights": ("relay/router/test_router_rights.py", "relay/router/test_router_limits.py"),
    "_relay.router.heard": ("relay/router/test_router_limits.py", "relay/router/test_router_credit.py"),
    "_relay.trust": ("relay/test_trust.py", "relay/test_socket.py"),
    "_relay.options": ("relay/test_options.py", "relay/test_trust.py"),
    "_addresses": ("guests/test_guest_specs.py", "relay/test_socket.py"),
    "agent": ("agent/system/test_boot.py", "agent/test_ending.py", "agent/test_program.py"),
    "agent._router": (
        "agent/test_router.py",
        "agent/test_ending.py",
        "agent/files/test_fs_handles.py",
        "agent/test_program.py",
        "corpus:agent_router",
    ),
    "agent._session": (
        "agent/process/test_exec_output.py",
        "agent/test_router.py",
        "agent/files/test_fs_read.py",
        "agent/test_ending.py",
        "agent/test_ending_races.py",
    ),
    "agent._inflow": (
        "agent/test_inflow.py",
        "agent/process/test_exec_stdin.py",
        "agent/files/test_fs_write.py",
        "agent/net/test_tcp.py",
    ),
    "agent._process.session": (
        "agent/process/test_exec_output.py",
        "agent/process/test_exec_start.py",
        "agent/process/test_exec_stdin.py",
        "agent/process/test_exec_signals.py",
        "agent/test_ending.py",
    ),
    "agent._process.stdin": ("agent/process/test_exec_stdin.py",),
    "agent._files.handles": ("agent/files/test_fs_handles.py", "agent/files/test_fs_read.py"),
    "agent._files.session": (
        "agent/files/test_fs_handles.py",
        "agent/files/test_fs_write.py",
        "agent/files/test_fs_read.py",
    ),
    "agent._net.tcp": ("agent/net/test_tcp.py",),
    "agent._process.limits": ("agent/system/test_system.py", "agent/process/test_exec_start.py"),
    "agent._process.spawn": ("agent/process/test_exec_start.py", "agent/system/test_system.py"),
    "agent._files.trees": ("agent/test_program.py", "agent/test_ending.py", "agent/system/test_system.py"),
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

"""The table of message types, and how absent fields appear in messages."""

from __future__ import annotations

import msgspec
import pytest

from tests.wire.wire_data import VECTORS
from trio_console import _wire as wire

DOWN, UP = wire.Direction.HOST_TO_AGENT, wire.Direction.AGENT_TO_HOST

FLAGS = {
    wire.FLAG_SHUTDOWN: {"core.shutdown"},
    wire.FLAG_SESSION_START: {"core.exec.request", "core.fs.request", "core.tcp.connect"},
    wire.FLAG_TERMINAL: {
        *("core.pong", "core.touched", "core.error", "core.exec.exited", "core.exec.failed"),
        *("core.fs.response", "core.tcp.closed", "core.tcp.failed"),
        *("trio.relay.forgotten", "trio.background.killed", "trio.reset.done"),
    },
}
GENERATIONS = {
    2: {"core.fs.request", "core.fs.response", "core.fs.data"},
    4: {name for name in wire.MESSAGE_TYPES if name.startswith("core.tcp.")},
    5: {"core.error"},
    6: {"core.ping", "core.pong", "core.touch", "core.touched"},
    7: {
        *("core.bootstrap", "trio.credit", "trio.cancel", "trio.tcp.broken"),
        *("trio.exec.ended", "trio.exec.left", "trio.exec.release", "trio.exec.kill", "trio.relay.lost"),
        *("trio.exec.dropped", "trio.relay.forgotten", "trio.background.kill", "trio.background.killed"),
        *("trio.reset", "trio.reset.done"),
    },
    9: {"core.workload.transport.credit"},
}
CONTROL = {
    *("core.bootstrap", "core.init.resolved", "core.init.ack", "core.ready", "core.shutdown"),
    *("core.relay.client.disconnected", "core.clock.sync", "trio.relay.lost", "trio.reset"),
    "core.workload.transport.credit",
}
BOTH_WAYS = {"core.fs.data", "core.tcp.data", "core.tcp.eof", "trio.credit"}
AGENT_SENDS = {
    *("core.init.resolved", "core.ready", "core.pong", "core.touched", "core.error"),
    *("core.exec.started", "core.exec.stdin.error", "core.exec.stdout", "core.exec.stderr"),
    *("core.exec.exited", "core.exec.failed", "core.fs.response", "core.tcp.connected"),
    *("core.tcp.closed", "core.tcp.failed", "trio.exec.ended", "trio.exec.left", "trio.relay.lost"),
    *("trio.tcp.broken", "trio.exec.dropped", "trio.relay.forgotten", "trio.background.killed"),
    *("trio.reset.done",),
    "core.workload.transport.credit",
}


def test_there_are_the_32_types_of_generation_7_one_of_a_newer_and_fourteen_of_our_own() -> None:
    core = [row for row in wire.MESSAGE_TYPES.values() if row.name.startswith("core.")]
    assert len([row for row in core if row.generation <= wire.GENERATION]) == 32
    assert (len(core), len(wire.MESSAGE_TYPES)) == (33, 47)


@pytest.mark.parametrize("row", wire.MESSAGE_TYPES.values(), ids=lambda row: row.name)
def test_a_row_says_what_the_protocol_says(row: wire.MessageType) -> None:
    flags = [value for value, names in FLAGS.items() if row.name in names] or [0]
    generation = [value for value, names in GENERATIONS.items() if row.name in names] or [1]
    direction = DOWN | UP if row.name in BOTH_WAYS else UP if row.name in AGENT_SENDS else DOWN
    assert ([row.flags], [row.generation]) == (flags, generation)
    assert row.direction == direction
    assert row.control == (row.name in CONTROL)


def test_the_table_cannot_be_changed() -> None:
    with pytest.raises(TypeError):
        wire.MESSAGE_TYPES["x"] = wire.type_of(wire.Ping)  # type: ignore[index]


def test_a_message_and_its_class_have_the_same_row() -> None:
    assert wire.type_of(wire.Ping()) is wire.type_of(wire.Ping) is wire.MESSAGE_TYPES["core.ping"]


def test_each_class_has_one_row() -> None:
    assert len({row.cls for row in wire.MESSAGE_TYPES.values()}) == len(wire.MESSAGE_TYPES)


def test_all_data_types_have_no_flags() -> None:
    data = [row for row in wire.MESSAGE_TYPES.values() if issubclass(row.cls, wire.DataMessage)]
    assert [row.flags for row in data] == [0] * 5


def test_recorded_frames_have_the_flags_of_their_type() -> None:
    assert all(wire.MESSAGE_TYPES[v["message_type"]].flags == v["flags"] for v in VECTORS)


def test_there_are_23_file_operations_and_4_results() -> None:
    assert (len(wire.FS_OPS), len(wire.FS_RESULTS)) == (23, 4)


def test_none_for_a_field_that_is_left_out_gives_unset() -> None:
    assert wire.Error("x", "y", None).offending_type is wire.UNSET  # type: ignore[arg-type]


def test_messages_cannot_be_changed() -> None:
    with pytest.raises(AttributeError):
        wire.ExecExited(0).code = 1  # type: ignore[misc]


def test_octets_may_be_given_as_bytes() -> None:
    network = wire.Network(interface="eth0", mac=b"\2\1\0\0\0\xff", mtu=1500)
    assert network.mac == [2, 1, 0, 0, 0, 255]


@pytest.mark.parametrize("mac", [b"12345", b"1234567", [0, 0, 0, 0, 0, 256], [True] * 6, "123456", 6])
def test_the_wrong_octets_are_refused(mac: object) -> None:
    with pytest.raises(ValueError, match="6 octets in `mac`"):
        wire.Network(interface="eth0", mac=mac, mtu=1500)  # type: ignore[arg-type]


def test_every_public_name_exists_once() -> None:
    assert len(set(wire.__all__)) == len(wire.__all__)
    assert all(hasattr(wire, name) for name in wire.__all__)


def test_every_message_class_is_exported() -> None:
    classes = {row.cls for row in wire.MESSAGE_TYPES.values()}
    classes |= set(wire.FS_OPS.values()) | set(wire.FS_RESULTS.values())
    assert all(getattr(wire, cls.__name__) is cls for cls in classes)


def test_every_struct_can_be_inspected() -> None:
    for row in wire.MESSAGE_TYPES.values():
        msgspec.inspect.type_info(row.cls)

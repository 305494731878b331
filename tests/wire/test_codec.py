"""Messages to frames and back: what is written, what is accepted, and how the rest is refused."""

from __future__ import annotations

import signal
import tracemalloc

import cbor2
import pytest

from tests.wire.wire_data import frame_of
from trio_console import _wire as wire
from trio_console._errors import ProtocolError
from trio_console._wire import UNSET, Frame
from trio_console._wire.cbor import MAX_COSTLY_ITEMS, MAX_ITEMS

ENTRY = wire.EntryInfo(path="/é", kind="file", size=2**64 - 1, mode=0o100644, uid=0, gid=1, mtime=-(2**63))

MORE = wire.StatMore(
    dev=2**64 - 1,
    ino=1,
    nlink=2,
    rdev=3,
    blksize=4096,
    blocks=8,
    atime_ns=-1,
    mtime_ns=2**63 - 1,
    ctime_ns=-(2**63),
)

MESSAGES: list[wire.Message] = [
    wire.Bootstrap(),
    wire.Bootstrap(
        block_root=wire.OciErofsRoot("a", wire.TmpfsUpper(64)),
        dir_mounts=[wire.DirMount("t", "/p")],
        file_mounts=[wire.FileMount("t", "f", "/p", wire.MountFlags(readonly=True))],
        disk_mounts=[wire.DiskMount(id="d", guest_path="/d")],
        tmpfs_mounts=[wire.TmpfsMount(path="/t", mode=0o1777)],
        hostname="h",
        network=wire.Network(
            interface="eth0",
            mac=[0, 1, 2, 3, 4, 255],
            mtu=1500,
            ipv4=wire.Ipv4(address=[10, 0, 0, 2], prefix_len=24, gateway=[10, 0, 0, 1]),
            ipv6=wire.Ipv6(address=[0] * 16, prefix_len=64, gateway=[1] * 16, dns=[2] * 16),
        ),
        rlimits=[wire.Rlimit("nofile", 1, 2)],
        default_env=[wire.EnvVar("A", "b")],
        security_profile="restricted",
        handoff_init=wire.HandoffInit("/sbin/init", ["-x"], env=[wire.EnvVar("C", "")]),
    ),
    wire.Bootstrap(block_root=wire.DiskImageRoot("/dev/vda", "ext4")),
    wire.Bootstrap(block_root=wire.OciErofsRoot("a", wire.DeviceUpper("b", "ext4"))),
    wire.InitResolved(wire.DefaultUser(1000, 2**32 - 1)),
    wire.InitAck(),
    wire.Ready(1, 2, 3),
    wire.Ready(2**64 - 1, 2, 3, "0.1", wire.Flow(262144)),
    wire.Ready(1, 2, 3, features=["exec_ends", "a_word_from_the_future_3"]),
    wire.Shutdown(),
    wire.Shutdown(2**32 - 1),
    wire.ClientDisconnected(1, 2**32 - 1),
    wire.ClientDisconnected(1, 2, 2**32 - 1),
    wire.ClientForgotten(),
    wire.ClockSync(1_700_000_000_123_456_789),
    wire.Ping(),
    wire.Pong(),
    wire.Touch(),
    wire.Touched(7),
    wire.TransportCredit(2**64 - 1, 0, 1, 2),
    wire.Error("invalid_session", "m"),
    wire.Error("a_word_from_the_future_2", "m", "core.ping"),
    wire.ExecRequest("sh"),
    wire.ExecRequest(
        "sh", ["-c", "x"], ["A=é"], "/", "u:g", True, 1, 65535, [wire.Rlimit("core", 0, 2**64 - 1)], 2**32 - 1
    ),
    wire.ExecRequest("sh", stdio=wire.ExecStdio("null", "null", "stdout"), ends=wire.ExecEnds(2000)),
    wire.ExecRequest("sh", stdio=wire.ExecStdio(), ends=wire.ExecEnds()),
    wire.ExecRequest("s\xff", octets=True),
    wire.ExecStarted(2**32 - 1),
    wire.ExecStarted(1, 2**64 - 1),
    wire.KillBackground(2**64 - 1, 2**32 - 1),
    wire.BackgroundKilled(2**32 - 1),
    wire.Reset(2**32 - 1),
    wire.ResetDone(),
    wire.ExecStdin(b""),
    wire.ExecStdinError(errno=32, errno_name="EPIPE", message="m"),
    wire.ExecStdinError(message=""),
    wire.ExecStdout(b"\0" * 300),
    wire.ExecStderr(b"e"),
    wire.ExecExited(255),
    wire.ExecExited(-1, 9),
    wire.ExecExited(0, held=["stdout", "stderr"], alive=2**32 - 1),
    wire.ExecStreamEnded("stderr"),
    wire.ExecDropped("stdout"),
    wire.ExecLeft(255),
    wire.ExecLeft(-1, 15),
    wire.ExecRelease(),
    wire.TcpBroken("write: Broken pipe (os error 32)"),
    wire.TcpConnect("h", 1, 1000, breaks=True),
    wire.ExecKill(2**32 - 1),
    wire.RelayLost("the guest closed its console"),
    wire.ExecKill(0, after_exit=True),
    wire.ExecFailed(kind="not_found", message="m"),
    wire.ExecFailed(kind="bad_cwd", errno=20, errno_name="ENOTDIR", message="m", stage="chdir", filename="/x"),
    wire.ExecResize(0, 65535),
    wire.ExecSignal(-(2**31)),
    wire.FsRequest(wire.OpRealPath("/")),
    wire.FsRequest(wire.OpStat("/", True)),
    wire.FsRequest(wire.OpSetStat("/", False, wire.SetAttrs(mode=0o600, atime=-1))),
    wire.FsRequest(wire.OpList("/")),
    wire.FsRequest(wire.OpReadLink("/")),
    wire.FsRequest(wire.OpSymlink("a", "b")),
    wire.FsRequest(wire.OpMkdir("/", 0o755)),
    wire.FsRequest(wire.OpRemove("/")),
    wire.FsRequest(wire.OpRemoveDir("/", True)),
    wire.FsRequest(wire.OpCopy("a", "b")),
    wire.FsRequest(wire.OpRename("a", "b")),
    wire.FsRequest(
        wire.OpOpenFile(
            "/",
            wire.OpenOptions(read=True, write=False, append=False, create=True, truncate=False, create_new=False),
        )
    ),
    wire.FsRequest(wire.OpOpenDir("/")),
    wire.FsRequest(wire.OpCloseHandle(2**64 - 1)),
    wire.FsRequest(wire.OpRead(1, 2)),
    wire.FsRequest(wire.OpWrite(1, 2, 3)),
    wire.FsRequest(wire.OpReadDir(1, 128)),
    wire.FsRequest(wire.OpFStat(1)),
    wire.FsRequest(wire.OpFSetStat(1, wire.SetAttrs())),
    wire.FsRequest(wire.OpTouch("/n\xff", 0o666, True), octets=True),
    wire.FsRequest(wire.OpHardLink("a", "b"), octets=False),
    wire.FsRequest(wire.OpRealPath("a"), window=1, contents=True),
    wire.FsRequest(wire.OpAccount("user", "0")),
    wire.FsRequest(wire.OpSeek(1, 2**64 - 1, "hole")),
    wire.FsResponse(True),
    wire.FsResponse(False, "stat: No such file or directory (os error 2)"),
    wire.FsResponse(True, data=wire.ResultStat(ENTRY)),
    wire.FsResponse(True, data=wire.ResultStat(ENTRY), more=MORE),
    wire.FsResponse(
        True, data=wire.ResultHandle(1), opened=wire.Opened(mode=0o10644, seekable=False, terminal=True)
    ),
    wire.FsResponse(True, data=wire.ResultList([ENTRY, ENTRY])),
    wire.FsResponse(True, data=wire.ResultHandle(2**64 - 1)),
    wire.FsResponse(True, data=wire.ResultPath("/")),
    wire.FsResponse(True, position=2**64 - 1),
    wire.FsData(b"x"),
    wire.TcpConnect("localhost", 65535),
    wire.TcpConnected(),
    wire.TcpData(b"x"),
    wire.TcpEof(),
    wire.TcpClose(),
    wire.TcpClosed(),
    wire.TcpFailed("no"),
    wire.Credit("stdout", 2**32 - 1),
    wire.Credit("data", 1),
    wire.Cancel(),
    wire.TcpConnect("localhost", 80, window=4096),
    wire.FsRequest(wire.OpRead(handle=1, offset=0), window=4096),
]


def frame_with(type_: str, payload: object, *, flags: int | None = None, v: object = 7) -> Frame:
    """A frame whose payload is any value; bytes are taken as the payload's own encoding."""
    if flags is None:
        flags = wire.MESSAGE_TYPES[type_].flags
    encoded = payload if isinstance(payload, bytes) else cbor2.dumps(payload)
    return Frame(5, flags, cbor2.dumps({"v": v, "t": type_, "p": encoded}))


def refusal(type_: str, payload: object) -> ProtocolError:
    with pytest.raises(ProtocolError) as caught:
        wire.decode(frame_with(type_, payload))
    error = caught.value
    assert (error.kind, error.frame_id, error.message_type) == ("invalid_payload", 5, type_)
    assert error.version == 7
    return error


# --- both ways ----------------------------------------------------------------------------------


@pytest.mark.parametrize("message", MESSAGES, ids=lambda m: type(m).__name__)
def test_a_message_survives_the_wire(message: wire.Message) -> None:
    frame = frame_of(wire.encode(message, 77))
    assert (frame.id, frame.flags) == (77, wire.type_of(message).flags)
    assert wire.decode(frame) == message
    assert wire.decode_envelope(frame.body)[:2] == (7, wire.type_of(message).name)


def test_every_class_survives_the_wire() -> None:
    assert {type(m) for m in MESSAGES} == {row.cls for row in wire.MESSAGE_TYPES.values()}
    ops = {type(m.op) for m in MESSAGES if isinstance(m, wire.FsRequest)}
    assert ops == set(wire.FS_OPS.values())
    results = {type(m.data) for m in MESSAGES if isinstance(m, wire.FsResponse)} - {type(None)}
    assert results == set(wire.FS_RESULTS.values())


@pytest.mark.parametrize("message", MESSAGES, ids=lambda m: type(m).__name__)
def test_what_is_written_is_what_a_plain_encoder_writes(message: wire.Message) -> None:
    raw = wire.encode(message, 3)
    outer = cbor2.loads(raw[9:])
    assert list(outer) == ["v", "t", "p"]
    outer["p"] = cbor2.dumps(cbor2.loads(outer["p"]))
    assert wire.encode_frame(3, raw[8], cbor2.dumps(outer)) == raw


@pytest.mark.parametrize("version", [0, 1, 5, 7, 10, 23, 24, 255])
@pytest.mark.parametrize("message", [wire.Ping(), wire.ExecStdin(b"abc")], ids=["ping", "stdin"])
def test_any_version_can_be_stamped_and_is_accepted(message: wire.Message, version: int) -> None:
    frame = frame_of(wire.encode(message, 1, version=version))
    assert wire.decode_envelope(frame.body).version == version
    assert wire.decode(frame) == message


@pytest.mark.parametrize("version", [-1, 256])
def test_a_version_out_of_range_is_not_stamped(version: int) -> None:
    with pytest.raises(ValueError, match="version"):
        wire.encode(wire.Ping(), version=version)


def test_fields_that_are_left_out_are_not_written() -> None:
    body = wire.encode(wire.ExecExited(0))[9:]
    assert cbor2.loads(wire.decode_envelope(body).payload) == {"code": 0}


def test_the_exec_request_always_has_its_nine_keys() -> None:
    body = wire.encode(wire.ExecRequest("x"))[9:]
    keys = ["cmd", "args", "env", "cwd", "user", "tty", "rows", "cols", "rlimits"]
    assert list(cbor2.loads(wire.decode_envelope(body).payload)) == keys


def test_enums_and_tuples_are_written_as_what_they_stand_for() -> None:
    assert wire.decode(frame_of(wire.encode(wire.ExecSignal(signal.SIGKILL)))) == wire.ExecSignal(9)
    sent = wire.ExecRequest("x", ("a", "b"))
    assert wire.decode(frame_of(wire.encode(sent))) == wire.ExecRequest("x", ["a", "b"])


# --- nothing wrong is sent ----------------------------------------------------------------------


@pytest.mark.parametrize(
    "message",
    [
        wire.ExecResize(65536, 1),
        wire.ExecResize(-1, 1),
        wire.ExecSignal(2**31),
        wire.Touched(2**64),
        wire.Touched(-1),
        wire.FsRequest(wire.OpCloseHandle(2**64)),
        wire.FsResponse(True, data=wire.ResultHandle(2**64)),
        wire.ExecRequest(b"x"),  # type: ignore[arg-type]
        wire.ExecRequest("x", "abc"),
        wire.ExecRequest("\udc80"),
        wire.ExecRequest("x", None),  # type: ignore[arg-type]
        wire.ExecFailed(kind="Not_Found", message=""),
        wire.Credit("out", 1),  # type: ignore[arg-type]
        wire.Credit("stdin", 2**32),
    ],
    ids=repr,
)
def test_a_value_that_does_not_fit_is_not_sent(message: wire.Message) -> None:
    with pytest.raises(ValueError) as caught:
        wire.encode(message)
    assert not isinstance(caught.value, ProtocolError)


def test_a_message_too_long_for_a_frame_is_refused() -> None:
    with pytest.raises(ProtocolError) as caught:
        wire.encode(wire.TcpFailed("x" * wire.MAX_FRAME_LENGTH), 9)
    assert (caught.value.kind, caught.value.frame_id) == ("bad_frame", 9)


# --- accepted -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "payload",
    [
        {"data": [104, 105]},
        {"zz": {"deep": [1, {2: 3}]}, "data": b"hi"},
        bytes.fromhex("bf6464617461426869ff"),
        bytes.fromhex("a164646174615f41684169ff"),
        bytes.fromhex("a16464617461d840426869"),
        bytes.fromhex("a16464617461d9d9f7d840426869"),
        bytes.fromhex("d9d9f7a144646174619f18681869ff"),
        bytes.fromhex("a1646461746142686900ff"),
        bytes.fromhex("a1d8206464617461426869"),
    ],
    ids=lambda p: p.hex() if isinstance(p, bytes) else repr(p),
)
def test_data_is_accepted_in_every_spelling(payload: object) -> None:
    assert wire.decode(frame_with("core.exec.stdin", payload)) == wire.ExecStdin(b"hi")


def test_the_payload_itself_may_be_an_array_of_octets() -> None:
    body = cbor2.dumps({"v": 7, "t": "core.ping", "p": [0xA0]})
    assert wire.decode(Frame(1, 0, body)) == wire.Ping()


def test_unknown_keys_are_ignored_whatever_is_in_them() -> None:
    strange = {1: 2, None: [1.5, {b"\xff": -1}]}
    payload = cbor2.dumps({"cmd": "x", "later": strange})
    assert wire.decode(frame_with("core.exec.request", payload)) == wire.ExecRequest("x")
    body = cbor2.dumps({"v": 7, "t": "core.ping", "later": strange, "p": b"\xa0"})
    assert wire.decode(Frame(1, 0, body)) == wire.Ping()


def test_no_message_with_a_required_field_is_read_out_of_an_empty_payload() -> None:
    assert refusal("core.tcp.data", b"\xa0").field == "data"
    assert refusal("core.tcp.connect", b"\xa0").field == "host"


def test_a_message_without_fields_with_a_payload_that_is_no_map_is_refused() -> None:
    for payload in (5, None, [], b""):
        refusal("core.ping", payload)


def test_missing_and_null_are_the_same_for_optional_fields() -> None:
    absent = {"cwd": None, "user": None, "window": None}
    message = wire.decode(frame_with("core.exec.request", {"cmd": "x", **absent}))
    assert message == wire.ExecRequest("x")
    assert message.window is UNSET  # type: ignore[attr-defined]
    network = {"interface": "e", "mac": [0] * 6, "mtu": 1, "ipv4": None, "ipv6": None}
    boot = {"block_root": None, "hostname": None, "network": network, "handoff_init": None}
    assert wire.decode(frame_with("core.bootstrap", boot)) == wire.Bootstrap(
        network=wire.Network(interface="e", mac=[0] * 6, mtu=1)
    )


def test_addresses_may_be_byte_strings() -> None:
    ipv4 = {"address": b"\x0a\0\0\2", "prefix_len": 8, "gateway": b"\x0a\0\0\1", "dns": b"\1\1\1\1"}
    network = {"interface": "e", "mac": b"123456", "mtu": 1, "ipv4": ipv4}
    message = wire.decode(frame_with("core.bootstrap", {"network": network}))
    assert isinstance(message, wire.Bootstrap)
    assert message.network.ipv4.dns == [1, 1, 1, 1]  # type: ignore[union-attr]


@pytest.mark.parametrize("payload", [None, {}, {"x": 1}, b"", b"\xff\xff", 5])
def test_a_shutdown_is_one_whatever_comes_with_it(payload: object) -> None:
    assert wire.decode(frame_with("core.shutdown", payload)) == wire.Shutdown()


def test_the_largest_unsigned_and_both_ends_of_signed_are_accepted() -> None:
    attrs = {"size": 2**64 - 1, "atime": -(2**63), "mtime": 2**63 - 1}
    message = wire.decode(frame_with("core.fs.request", {"op": {"FSetStat": {"handle": 0, "attrs": attrs}}}))
    assert message == wire.FsRequest(wire.OpFSetStat(0, wire.SetAttrs(**attrs)))


def test_an_unknown_word_of_a_newer_peer_is_accepted() -> None:
    message = wire.decode(frame_with("core.error", {"kind": "capability_unavailable", "message": ""}))
    assert message == wire.Error("capability_unavailable", "")


# --- refused ------------------------------------------------------------------------------------

EXEC, FS = "core.exec.request", "core.fs.request"
OPTIONS = dict.fromkeys(("read", "write", "append", "create", "truncate", "create_new"), True)


@pytest.mark.parametrize(
    ("type_", "payload", "field"),
    [
        ("core.exec.stdin", {"data": "text"}, "data"),
        ("core.exec.stdin", {"data": None}, "data"),
        ("core.exec.stdin", {}, "data"),
        ("core.exec.stdin", {"data": [256]}, "data"),
        ("core.exec.stdin", {"data": [-1]}, "data"),
        ("core.exec.stdin", {"data": [True]}, "data"),
        ("core.exec.stdin", [b"data"], None),
        ("core.exec.stdin", {"data": b"", 1: 2}, None),
        (EXEC, {"cmd": b"x"}, "cmd"),
        (EXEC, {"args": []}, "cmd"),
        (EXEC, {"cmd": "x", "args": None}, "args"),
        (EXEC, {"cmd": "x", "args": "x"}, "args"),
        (EXEC, {"cmd": "x", "args": ["a", b"b"]}, "args[1]"),
        (EXEC, {"cmd": "x", "tty": 1}, "tty"),
        (EXEC, {"cmd": "x", "tty": None}, "tty"),
        (EXEC, {"cmd": "x", "rows": True}, "rows"),
        (EXEC, {"cmd": "x", "rows": 24.0}, "rows"),
        (EXEC, {"cmd": "x", "rows": -1}, "rows"),
        (EXEC, {"cmd": "x", "cols": None}, "cols"),
        (EXEC, {"cmd": "x", "rlimits": [{"resource": "a", "soft": 0, "hard": -1}]}, "rlimits[0].hard"),
        (EXEC, {"cmd": "x", "rlimits": [{"resource": "a", "soft": 0}]}, "rlimits[0].hard"),
        (EXEC, {"cmd": "x", 1: 2}, None),
        (EXEC, bytes.fromhex("a163636d64c249010000000000000000"), "cmd"),
        ("core.touched", bytes.fromhex("a16c61637469766974795f736571c249010000000000000000"), "activity_seq"),
        ("core.touched", {"activity_seq": -1}, "activity_seq"),
        ("core.exec.signal", {"signal": 2**31}, "signal"),
        ("core.exec.signal", {"signal": -(2**31) - 1}, "signal"),
        ("core.ping", None, None),
        ("core.ping", [], None),
        ("core.ping", b"", None),
        ("core.ping", {1: 2}, None),
        ("core.init.ack", None, None),
        (FS, {}, "op"),
        (FS, {"op": None}, "op"),
        (FS, {"op": "RealPath"}, "op"),
        (FS, {"op": {}}, "op"),
        (FS, {"op": ["Stat", {}]}, "op"),
        (FS, {"op": {"stat": {"path": "/", "follow_symlink": True}}}, "op"),
        (FS, {"op": {1: 2}}, "op"),
        (FS, bytes.fromhex("a1626f70bf685265616c50617468a16470617468612fff"), "op"),
        (FS, {"op": {"Stat": {"path": "/"}}}, "op.Stat.follow_symlink"),
        (FS, {"op": {"Stat": ["/", True]}}, "op.Stat"),
        (FS, {"op": {"Stat": None}}, "op.Stat"),
        (FS, {"op": {"RealPath": {"path": b"/"}}}, "op.RealPath.path"),
        (FS, {"op": {"OpenFile": {"path": "/", "options": OPTIONS | {"read": None}}}},
         "op.OpenFile.options.read"),
        (FS, {"op": {"SetStat": {"path": "/", "follow_symlink": True, "attrs": {"atime": 2**63}}}},
         "op.SetStat.attrs.atime"),
        (FS, {"op": {"FSetStat": {"handle": 1, "attrs": {"mtime": -(2**63) - 1}}}},
         "op.FSetStat.attrs.mtime"),
        ("core.fs.response", {"ok": True, "data": {"Handle": "1"}}, "data.Handle"),
        ("core.fs.response", {"ok": True, "data": {"List": None}}, "data.List"),
        ("core.fs.response", {"ok": True, "data": {"List": [3]}}, "data.List[0]"),
        ("core.fs.response", {"ok": True, "data": {"Handle": 1, "Path": "/"}}, "data"),
        ("core.fs.response", {"data": None}, "ok"),
        ("core.error", {"kind": "Invalid_Flags", "message": ""}, "kind"),
        ("core.bootstrap", {"security_profile": "Default"}, "security_profile"),
        ("core.bootstrap", {"security_profile": None}, "security_profile"),
        ("core.bootstrap", {"dir_mounts": None}, "dir_mounts"),
        ("core.bootstrap", {"block_root": {"device": "x"}}, "block_root.kind"),
        ("core.bootstrap", {"network": {"interface": "e", "mac": [0] * 5, "mtu": 1}}, "network"),
        ("trio.credit", {"stream": "stdout", "bytes": 2**32}, "bytes"),
        ("trio.credit", {"stream": "output", "bytes": 1}, "stream"),
    ],
)  # fmt: skip
def test_a_bad_payload_is_refused_and_its_field_named(type_: str, payload: object, field: str | None) -> None:
    assert refusal(type_, payload).field == field


def test_an_unknown_type_is_refused_by_its_own_kind() -> None:
    with pytest.raises(ProtocolError, match=r"core\.nope \(id 5\)") as caught:
        wire.decode(frame_with("core.nope", {}, flags=0, v=9))
    error = caught.value
    assert (error.kind, error.message_type, error.version) == ("unsupported_message_type", "core.nope", 9)


@pytest.mark.parametrize("row", wire.MESSAGE_TYPES.values(), ids=lambda row: row.name)
def test_only_the_one_flags_value_of_a_type_is_accepted(row: wire.MessageType) -> None:
    [sent] = [m for m in MESSAGES if type(m) is row.cls][:1]
    body = wire.encode(sent)[9:]
    for flags in set(range(16)) - {row.flags}:
        with pytest.raises(ProtocolError) as caught:
            wire.decode(Frame(5, flags, body))
        assert caught.value.kind == "invalid_flags"


@pytest.mark.parametrize(
    ("body", "field", "version"),
    [
        (cbor2.dumps({"v": 7, "t": "core.ping"}), "p", 7),
        (cbor2.dumps({"v": 7, "t": "core.ping", "p": {}}), "p", 7),
        (cbor2.dumps({"v": 7, "t": "core.ping", "p": "x"}), "p", 7),
        (cbor2.dumps({"v": 7, "t": 1, "p": b""}), "t", 7),
        (cbor2.dumps({"v": True, "t": "core.ping", "p": b"\xa0"}), "v", None),
        (cbor2.dumps({"v": -1, "t": "core.ping", "p": b"\xa0"}), "v", None),
        (cbor2.dumps({"v": 7, "t": "core.ping", "p": b"\xa0", 1: 2}), None, None),
        (wire.encode(wire.Ping())[9:-1], None, None),
        (wire.encode(wire.Ping())[9:-2], None, None),
        (b"\xa3", None, None),
        (b"\xf6", None, None),
    ],
)
def test_a_bad_envelope_is_malformed(body: bytes, field: str | None, version: int | None) -> None:
    for read in (wire.decode_envelope, wire.peek_type, lambda body: wire.decode(Frame(5, 0, body))):
        with pytest.raises(ProtocolError) as caught:
            read(body)
        error = caught.value
        assert (error.kind, error.field, error.version) == ("malformed_message", field, version)
        assert error.frame_id in (5, None)


def test_an_error_about_a_long_name_still_fits_a_frame() -> None:
    name = "x" * 1_000_000
    with pytest.raises(ProtocolError) as caught:
        wire.decode(frame_with(name, {}, flags=0))
    error = caught.value
    assert len(wire.encode(wire.Error(error.kind, str(error), error.message_type or UNSET))) < 1000
    for payload in ({name: 1}, {"op": {name: {}}}, b"\xa2" + cbor2.dumps(name) * 2):
        assert len(str(refusal(FS, payload))) < 500
    quoted = refusal("core.bootstrap", {"security_profile": "y - at `$.hostname" + name})
    assert (quoted.field, len(str(quoted)) < 500) == ("security_profile", True)


def test_an_error_says_nothing_of_where_things_are_in_memory() -> None:
    body = cbor2.dumps({"v": 7, "t": "core.fs.request", "p": cbor2.dumps({"op": {1: 2}})})
    with pytest.raises(ProtocolError, match="unknown variant a key that is no text"):
        wire.decode(Frame(7, 2, body))


def with_more(message: wire.Message, *, in_payload: bool, version: int = 7) -> wire.Frame:
    """A message with a simple value under a key that nobody knows, in its payload or beside it."""
    sent = frame_of(wire.encode(message, 5, version=version))
    envelope = cbor2.loads(sent.body)
    more = {"later": [{"x": cbor2.CBORSimpleValue(255)}]}
    if in_payload:
        envelope["p"] = cbor2.dumps(cbor2.loads(envelope["p"]) | more)
    else:
        envelope |= more
    return wire.Frame(5, sent.flags, cbor2.dumps(envelope))


@pytest.mark.parametrize("in_payload", [True, False])
def test_a_relay_does_not_pass_on_what_not_every_agent_can_decode(in_payload: bool) -> None:
    frame = with_more(wire.ExecSignal(9), in_payload=in_payload)
    assert wire.decode(frame) == wire.ExecSignal(9)
    with pytest.raises(ProtocolError, match="not every agent can decode") as caught:
        wire.receive(frame)
    told = (caught.value.kind, caught.value.frame_id, caught.value.message_type, caught.value.version)
    assert told == ("invalid_payload", 5, *(("core.exec.signal", 7) if in_payload else (None, None)))


def test_a_relay_does_not_look_at_the_payload_of_a_shutdown() -> None:
    sent = cbor2.dumps({"v": 7, "t": "core.shutdown", "p": b"\xf8\xff"})
    assert wire.receive(wire.Frame(0, 4, sent))[0] == wire.Shutdown()


def test_a_command_with_more_words_than_a_message_may_have_is_too_large() -> None:
    command = ["x"] * (MAX_ITEMS - 100)
    assert wire.decode(frame_of(wire.encode(wire.ExecRequest("true", command), 1))) == wire.ExecRequest(
        "true", command
    )
    with pytest.raises(ProtocolError, match=r"core\.exec\.request has more than") as caught:
        wire.encode(wire.ExecRequest("true", ["x"] * MAX_ITEMS), 1)
    assert caught.value.kind == "bad_frame"


def test_a_frame_with_too_many_items_is_refused_without_a_copy_of_it() -> None:
    payload = b"\xa1\x61k\x9a\x00\x3f\xff\x00" + bytes(2**22 - 100)
    frame = frame_of(wire.encode_frame(5, 0, cbor2.dumps({"v": 7, "t": "core.ping", "p": payload})))
    tracemalloc.start()
    try:
        with pytest.raises(ProtocolError, match="more than"):
            wire.receive(frame)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 100_000


def test_an_agent_may_answer_with_more_names_than_others_may_send() -> None:
    raw = wire.encode(wire.FsResponse(True, data=wire.ResultList([ENTRY] * (MAX_COSTLY_ITEMS + 1))), 1)
    with pytest.raises(ProtocolError, match="more than"):
        wire.decode(frame_of(raw))


def test_a_listing_of_thirteen_thousand_names_is_decoded() -> None:
    listing = wire.FsResponse(True, data=wire.ResultList([ENTRY] * 13_000))
    assert wire.decode(frame_of(wire.encode(listing, 1))) == listing

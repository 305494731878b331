"""Frames to messages and back.

A body is an envelope, a CBOR map of ``v`` (the sender's generation), ``t`` (the type's name) and ``p`` (a byte
string that holds the payload as a second CBOR item). Frames that are sent are canonical: shortest heads, definite
lengths, keys in declared order. More forms are accepted; all other input raises one exception type,
`ProtocolError`.

Bulk data does not pass through CBOR: a canonical ``{data}`` message is a constant prefix, three lengths and the
bytes. So it is written from a template, and recognised by comparison with one. Both agree with the general path,
which handles every form that the short path does not recognise.

This module must not know sessions: it does not decide which message may come when.
"""

from __future__ import annotations

import contextlib
import re
from struct import Struct
from typing import TYPE_CHECKING, Any, Final, NamedTuple, TypeAlias, TypeVar

import msgspec

from trio_console._errors import ProtocolError
from trio_console._wire import cbor
from trio_console._wire.catalogue import GENERATION, MESSAGE_TYPES, Direction, MessageType, type_of
from trio_console._wire.cbor import (
    BYTES,
    TEXT,
    CBORError,
    IndefiniteMap,
    TooManyItemsError,
    UnportableError,
    head,
)
from trio_console._wire.frames import HEADER_SIZE, Frame, encode_header
from trio_console._wire.messages import (
    DataMessage,
    Error,
    FsRequest,
    FsResponse,
    Message,
    Shutdown,
    StreamRequest,
)
from trio_console._wire.payloads import FS_OPS, FS_RESULTS

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

__all__ = [
    "Envelope",
    "Received",
    "decode",
    "decode_envelope",
    "encode",
    "encode_data",
    "encode_data_lead",
    "encode_error",
    "encode_orphan",
    "encode_with_window",
    "is_bulk",
    "is_costly",
    "learn_messages",
    "measure_data",
    "peek_type",
    "receive",
]

_MAX_VERSION: Final = 255

_MAX_QUOTED: Final = 200
"""Characters of one thing said by a peer that an error message repeats; enough to recognise it."""

_BEFORE_VERSION: Final = b"\xa3\x61v"
_BEFORE_DATA: Final = b"\xa1\x64data"


class Envelope(NamedTuple):
    """The fields of an envelope; ``payload`` is still encoded, and may be a view of the body if that is one."""

    version: int
    type: str
    payload: bytes | memoryview


Received: TypeAlias = tuple[Message, MessageType, int]
"""All that a frame says: its message, the row of the message's type, and the sender's generation."""


# --- encoding -----------------------------------------------------------------------------------


def _after_version(name: str) -> bytes:
    """Return the bytes between the version and the head of the payload."""
    text = name.encode()
    return b"\x61t" + head(TEXT, len(text)) + text + b"\x61p"


_AFTER_VERSION: Final[Mapping[type[Message], bytes]] = {
    row.cls: _after_version(row.name) for row in MESSAGE_TYPES.values()
}
_PREFIX: Final[Mapping[type[Message], bytes]] = {
    cls: _BEFORE_VERSION + head(0, GENERATION) + after for cls, after in _AFTER_VERSION.items()
}
_OP_NAMES: Final = {cls: name for name, cls in FS_OPS.items()}
_RESULT_NAMES: Final = {cls: name for name, cls in FS_RESULTS.items()}


def encode(message: Message, frame_id: int = 0, *, version: int = GENERATION) -> bytes:
    """Return the message as one whole frame.

    Args:
        message: the message; its values are checked as a receiver would check them.
        frame_id: correlation id, ``0 ..= 2**32 - 1``.
        version: the protocol generation to write into it, ``0 ..= 255``.

    Raises:
        ProtocolError: (kind ``bad_frame``) the frame would be too long, or have too many items.
        ValueError: a value does not fit its field.
        TypeError: a value has a type that no field accepts.
    """
    cls = type(message)
    if version == GENERATION:
        prefix = _PREFIX[cls]
    elif 0 <= version <= _MAX_VERSION:
        prefix = _BEFORE_VERSION + head(0, version) + _AFTER_VERSION[cls]
    else:
        raise ValueError(f"version must be 0 to {_MAX_VERSION}, not {version}")
    if isinstance(message, DataMessage):
        return _data_frame(prefix, frame_id, message.data)
    payload = _encode_payload(message)
    lead = prefix + head(BYTES, len(payload))
    frame_head = encode_header(frame_id, type_of(cls).flags, len(lead) + len(payload))
    return b"".join((frame_head, lead, payload))


def encode_data(
    cls: type[DataMessage],
    frame_id: int,
    data: bytes | bytearray | memoryview,
) -> bytes:
    """Return one whole frame of a `DataMessage` class; the data is copied once.

    Raises:
        ProtocolError: (kind ``bad_frame``) the frame would be too long.
        ValueError: ``frame_id`` does not fit its field.
    """
    return _data_frame(_PREFIX[cls], frame_id, data)


def encode_with_window(request: StreamRequest, window: int, frame_id: int, *, version: int) -> bytes:
    """Return a request with another window as one whole frame; raises as `encode`."""
    return encode(msgspec.structs.replace(request, window=window), frame_id, version=version)


def encode_error(exc: ProtocolError, frame_id: int) -> bytes:
    """Return the `Error` that tells a peer of its mistake, as one whole frame."""
    type_ = msgspec.UNSET if exc.message_type is None else exc.message_type
    return encode(Error(exc.kind, str(exc), type_), frame_id)


def encode_orphan(orphan: Callable[[int], Message], frame_id: int) -> bytes:
    """Return an agent's answer to a message for an unknown id, which its row makes, as one whole frame."""
    return encode(orphan(frame_id), frame_id)


def encode_data_lead(cls: type[DataMessage], frame_id: int, size: int) -> bytes:
    """Return all of such a frame that comes before its ``size`` bytes of data; raises as `encode_data`."""
    return _data_frame_lead(_PREFIX[cls], frame_id, size)


def _data_frame(prefix: bytes, frame_id: int, data: bytes | bytearray | memoryview) -> bytes:
    size = data.nbytes if isinstance(data, memoryview) else len(data)
    return b"".join((_data_frame_lead(prefix, frame_id, size), data))


def _data_frame_lead(prefix: bytes, frame_id: int, size: int) -> bytes:
    lead = _data_lead(size)
    # All data types have flags 0.
    return encode_header(frame_id, 0, len(prefix) + len(lead) + size) + prefix + lead


def _data_lead(size: int) -> bytes:
    """Return the bytes in front of the data in a canonical ``{data}`` payload, including its head."""
    # For nearly all sizes both lengths have heads of the same size, so that one call of pack is enough.
    if 256 <= size <= 65526:
        return _DATA_LEAD_2.pack(0x59, size + 9, _BEFORE_DATA, 0x59, size)
    if size >= 65536:
        return _DATA_LEAD_4.pack(0x5A, size + 11, _BEFORE_DATA, 0x5A, size)
    if 24 <= size <= 247:
        return _DATA_LEAD_1.pack(0x58, size + 8, _BEFORE_DATA, 0x58, size)
    inner = _BEFORE_DATA + head(BYTES, size)
    return head(BYTES, len(inner) + size) + inner


# Payload head, key, data head.
_DATA_LEAD_1: Final = Struct(">BB6sBB")
_DATA_LEAD_2: Final = Struct(">BH6sBH")
_DATA_LEAD_4: Final = Struct(">BI6sBI")


def _encode_payload(message: Message) -> bytes:
    if not message.__struct_fields__:
        return _NO_FIELDS
    try:
        payload = cbor.dump(_to_plain(message))
        # Structs do not check their values, so a message is read as the peer will read it before it is sent.
        # (A whole listing may be as long as a frame: only clients of another make ask for one.)
        _read_payload(type(message), payload, counted=not isinstance(message, FsResponse))
    except TooManyItemsError as exc:
        name = type_of(message).name
        raise ProtocolError(f"frame too large: {name} has {exc}", kind="bad_frame", message_type=name) from None
    except (_FieldError, CBORError) as exc:
        raise ValueError(f"{type_of(message).name}: {exc}") from exc
    return payload


def _to_plain(message: Message) -> object:
    match message:
        case Shutdown(grace):
            return None if grace is msgspec.UNSET else {"grace": grace}
        case FsRequest():
            plain: dict[str, object] = {"op": {_OP_NAMES[type(message.op)]: _builtins(message.op)}}
            if message.window is not msgspec.UNSET:
                plain["window"] = message.window
            if message.octets is not msgspec.UNSET:
                plain["octets"] = message.octets
            if message.contents is not msgspec.UNSET:
                plain["contents"] = message.contents
            return plain
        case FsResponse():
            data = message.data
            entry = None if data is None else {_RESULT_NAMES[type(data)]: _builtins(data.value)}
            plain = {"ok": message.ok, "error": message.error, "data": entry}
            if message.more is not msgspec.UNSET:
                plain["more"] = _builtins(message.more)
            if message.opened is not msgspec.UNSET:
                plain["opened"] = _builtins(message.opened)
            if message.position is not msgspec.UNSET:
                plain["position"] = message.position
            return plain
        case _:
            return _builtins(message)


def _builtins(value: object) -> object:
    return msgspec.to_builtins(value, builtin_types=(bytes,))


# --- decoding -----------------------------------------------------------------------------------

_M = TypeVar("_M", bound=msgspec.Struct)

_CANONICAL_NAME_SIZE: Final = 24
"""A name shorter than this has its size in the first byte of its head."""

_VERSION_AT: Final = len(_BEFORE_VERSION)
"""Where a version below 24 is, which is one byte."""

_NAME_HEAD_AT: Final = _VERSION_AT + 1 + len(b"\x61t")

_LONGEST_LEAD: Final = 64
"""Bytes of a body in its usual form from which its type can be told."""

_LONGEST_DATA_LEAD: Final = 16
"""Bytes of what `_data_lead` returns, at most."""

_BY_LEAD: Final[Mapping[bytes, MessageType]] = {
    _AFTER_VERSION[row.cls]: row for row in MESSAGE_TYPES.values() if len(row.name) < _CANONICAL_NAME_SIZE
}
_DATA_BY_PREFIX: Final[Mapping[bytes, type[DataMessage]]] = {
    _BEFORE_VERSION + head(0, version) + lead: row.cls
    for lead, row in _BY_LEAD.items()
    for version in range(24)  # those with a head of one byte; there are ten so far
    if issubclass(row.cls, DataMessage)
}
_DATA_ROWS: Final[Mapping[type[DataMessage], MessageType]] = {
    row.cls: row for row in MESSAGE_TYPES.values() if issubclass(row.cls, DataMessage)
}


def decode(frame: Frame) -> Message:
    """Decode a frame, which is untrusted, into the message it carries.

    Raises:
        ProtocolError: with ``frame_id``, ``message_type``, ``field`` and ``version`` as far as known,
            and the kind ``malformed_message`` (no envelope), ``unsupported_message_type``,
            ``invalid_flags`` (not the flags of its type) or ``invalid_payload``. Nothing else is raised.
    """
    found = _find_data(frame)
    if found is not None:
        cls, start = found
        return cls(bytes(frame.body[start:]))
    return _receive_any(frame)[0]


def receive(frame: Frame) -> Received:
    """Decode a frame as `decode` does, for a relay, which passes it on as it is.

    Raises:
        ProtocolError: as `decode`; also (kind ``invalid_payload``) if there is a form in it that agents of another
            make cannot decode.
    """
    found = _find_data(frame)
    if found is not None:
        cls, start = found
        return cls(bytes(frame.body[start:])), _DATA_ROWS[cls], frame.body[_VERSION_AT]
    return _receive_any(frame, portable=True)


def measure_data(frame: Frame) -> tuple[type[DataMessage], int] | None:
    """Return the class of a canonical data message and how many bytes it carries, without copying them.

    Returns ``None`` for all other frames, also for data in another form, which only `decode` recognises.
    """
    found = _find_data(frame)
    return None if found is None else (found[0], len(frame.body) - found[1])


def is_bulk(frame: bytes) -> bool:
    """Whether a whole frame, of a known type and about to be sent, counts as `MessageType.bulk`."""
    lead = frame[HEADER_SIZE : HEADER_SIZE + _LONGEST_LEAD]
    if lead.startswith(_BEFORE_VERSION) and lead[_VERSION_AT] < 24:
        at = _NAME_HEAD_AT + 3 + (lead[_NAME_HEAD_AT] & 31)
        row = _BY_LEAD.get(lead[_VERSION_AT + 1 : at])
        if row is not None:
            return row.bulk
    return MESSAGE_TYPES[decode_envelope(frame[HEADER_SIZE:]).type].bulk  # written in an unusual form by a client


def is_costly(frame: Frame) -> bool:
    """Whether decoding a frame may take milliseconds: it is large, and not data in its usual form."""
    return isinstance(frame.body, memoryview) and _find_data(frame) is None


def _find_data(frame: Frame) -> tuple[type[DataMessage], int] | None:
    """Return the class of a canonical data message and where its data begins; it reaches to the end."""
    _, flags, body = frame
    if flags == 0 and len(body) > _NAME_HEAD_AT:
        at = _NAME_HEAD_AT + 3 + (body[_NAME_HEAD_AT] & 31)
        front = bytes(body[: at + _LONGEST_DATA_LEAD])
        cls = _DATA_BY_PREFIX.get(front[:at])
        if cls is not None:
            # The data reaches to the end of the body, so its size follows from the size of the part before it; for
            # each number of bytes only one such size is possible.
            rest = len(body) - at
            if rest > 266:
                lead_size = 16 if rest > 65549 else 14 if rest > 65538 else 12
            else:
                lead_size = 11 if rest > 257 else 10 if rest > 32 else 9 if rest > 24 else 8
            if rest >= lead_size and front.startswith(_data_lead(rest - lead_size), at):
                return cls, at + lead_size
    return None


def _receive_any(frame: Frame, *, portable: bool = False) -> Received:
    try:
        envelope = decode_envelope(frame.body, portable=portable)
    except ProtocolError as exc:
        exc.frame_id = frame.id
        raise
    row = MESSAGE_TYPES.get(envelope.type)
    if row is None:
        raise _error(frame, envelope, "unsupported_message_type", "unknown message type")
    if frame.flags != row.flags:
        reason = f"invalid flags: got {frame.flags}, expected {row.flags}"
        raise _error(frame, envelope, "invalid_flags", reason)
    try:
        return _read_payload(row.cls, envelope.payload, portable=portable), row, envelope.version
    except CBORError as exc:
        raise _error(frame, envelope, "invalid_payload", f"payload: {exc}") from None
    except _FieldError as exc:
        raise _error(frame, envelope, "invalid_payload", str(exc), exc.field) from None


def decode_envelope(body: bytes | memoryview, *, portable: bool = False) -> Envelope:
    """Decode the envelope of a body, which is untrusted.

    Raises:
        ProtocolError: (kind ``malformed_message``) the body is not an envelope; ``version`` is set if that could
            still be read. With ``portable`` also (kind ``invalid_payload``) for what `receive` says. This is the
            only error.
    """
    found = _canonical_payload_at(body)
    if found is not None:
        row, start = found
        return Envelope(body[3], row.name, body[start:])  # of 4 MiB each copy takes a millisecond
    try:
        value = cbor.load(body, portable=portable)
    except UnportableError as exc:
        raise ProtocolError(f"envelope: {exc}", kind="invalid_payload") from None
    except CBORError as exc:
        raise ProtocolError(f"malformed envelope: {_short(str(exc))}") from None
    if not isinstance(value, dict) or not all(isinstance(key, str) for key in value):
        raise ProtocolError("malformed envelope: not a map with text keys")
    version, type_, payload = value.get("v"), value.get("t"), _octets(value.get("p"))
    if type(version) is not int or not 0 <= version <= _MAX_VERSION:
        raise ProtocolError("malformed envelope: `v` is not an integer 0-255", field="v")
    if not isinstance(type_, str):
        raise ProtocolError("malformed envelope: `t` is not text", field="t", version=version)
    if payload is None:
        reason = "malformed envelope: `p` is not a byte string"
        raise ProtocolError(reason, field="p", message_type=_short(type_), version=version)
    return Envelope(version, type_, payload)


def peek_type(body: bytes | memoryview) -> str:
    """Return the type a body, which is untrusted, says it has; raises as `decode_envelope`."""
    found = _canonical_payload_at(body)
    return decode_envelope(body).type if found is None else found[0].name


def _canonical_payload_at(body: bytes | memoryview) -> tuple[MessageType, int] | None:
    """Return the type and where the payload starts, or ``None`` to leave it to the general path.

    Found only if the payload is a byte string that ends where the body ends; nothing else is promised.
    """
    if len(body) <= _NAME_HEAD_AT or body[3] >= 24 or body[:3] != _BEFORE_VERSION:
        return None
    at = _NAME_HEAD_AT + 3 + (body[_NAME_HEAD_AT] & 31)
    row = _BY_LEAD.get(bytes(body[4:at]))
    if row is None or at == len(body):
        return None
    first = body[at]
    start = at + 1
    size = first - BYTES
    if 0x58 <= first <= 0x5A:
        start += 1 << first - 0x58
        size = int.from_bytes(body[at + 1 : start], "big")
    elif not 0 <= size < 24:
        return None
    return (row, start) if start + size == len(body) else None


class _FieldError(Exception):
    """A value does not fit its field."""

    def __init__(self, field: str, reason: str) -> None:
        super().__init__(f"{field}: {reason}" if field else reason)
        self.field = field or None


def _short(text: str) -> str:
    """Cut a text of a peer, because an error about a frame must fit into a frame."""
    return text if len(text) <= _MAX_QUOTED else text[:_MAX_QUOTED] + "..."


def _error(frame: Frame, envelope: Envelope, kind: str, reason: str, field: str | None = None) -> ProtocolError:
    type_ = _short(envelope.type)
    return ProtocolError(
        f"{type_} (id {frame.id}): {_short(reason)}",
        kind=kind,
        frame_id=frame.id,
        message_type=type_,
        field=field,
        version=envelope.version,
    )


#: A shutdown that says nothing, and its payload.
_PLAIN_SHUTDOWN: Final = Shutdown()
_NULL: Final = b"\xf6"

#: The payload of a message without fields.
_NO_FIELDS: Final = b"\xa0"


def _read_shutdown(payload: bytes | memoryview) -> Message:
    """Whatever its payload is, the guest must shut down."""
    with contextlib.suppress(CBORError, _FieldError):
        value = cbor.load(payload)
        if isinstance(value, dict):
            return _convert(value, Shutdown)
    return _PLAIN_SHUTDOWN


def _read_payload(
    cls: type[Message], payload: bytes | memoryview, *, portable: bool = False, counted: bool = True
) -> Message:
    """Decode a payload; raises `CBORError` or `_FieldError`."""
    if cls is Shutdown:
        return _PLAIN_SHUTDOWN if payload == _NULL else _read_shutdown(payload)
    if payload == _NO_FIELDS and not cls.__struct_fields__:
        return cls()
    value = cbor.load(payload, portable=portable, counted=counted)
    if cls is FsRequest:
        op = _variant(_entry(value, "op"), FS_OPS, "op")
        return _convert(value | {"op": op}, FsRequest)
    if cls is FsResponse:
        entry = _entry(value, "data")
        result = None if entry is None else _variant(entry, FS_RESULTS, "data")
        return _convert(value | {"data": result}, FsResponse)
    if issubclass(cls, DataMessage):
        data = _octets(_entry(value, "data"))
        if data is None:
            raise _FieldError("data", "Expected `bytes`")
        return _convert(value | {"data": data}, cls)
    return _convert(value, cls)


def _entry(value: Any, key: str) -> Any:
    if not isinstance(value, dict):
        raise _FieldError("", f"Expected `object`, got `{type(value).__name__}`")
    return value.get(key)


def _octets(value: Any) -> bytes | None:
    """Return a byte string, or an array of octets as one; ``None`` if it is neither."""
    if isinstance(value, bytes):
        return value
    # bytes() would take True for 1.
    if isinstance(value, list) and all(type(octet) is int for octet in value):
        try:
            return bytes(value)
        except ValueError:
            return None
    return None


def _variant(value: Any, variants: Mapping[str, type[msgspec.Struct]], path: str) -> msgspec.Struct:
    """Decode a choice: a map of known length with one entry, the name of a variant and its value."""
    if not isinstance(value, dict) or isinstance(value, IndefiniteMap) or len(value) != 1:
        raise _FieldError(path, "Expected a map with one entry")
    [(name, fields)] = value.items()
    cls = variants.get(name)
    if cls is None:
        raise _FieldError(path, f"unknown variant {name!r}")
    if variants is FS_RESULTS:  # the value itself stands in for the one field
        return cls(_convert(fields, _RESULT_TYPES[name], f"{path}.{name}"))
    return _convert(fields, cls, f"{path}.{name}")


_RESULT_TYPES: Final[Mapping[str, Any]] = {
    name: msgspec.structs.fields(cls)[0].type for name, cls in FS_RESULTS.items()
}
_MISSING: Final = re.compile(r"Object missing required field `(.*)`")


def learn_messages(direction: Direction) -> None:
    """Let msgspec look at the fields of all messages of a direction now, and not when one is decoded first."""
    for row in MESSAGE_TYPES.values():
        if direction in row.direction:
            msgspec.json.Decoder(row.cls)


def _convert(value: Any, cls: type[_M], path: str = "") -> _M:
    try:
        return msgspec.convert(value, cls)
    except msgspec.ValidationError as exc:
        # "Reason - at `$.path[0].field`". From the right: a reason may quote what the peer sent.
        reason, _, where = str(exc).rpartition(" - at `")
        if not reason:
            reason, where = where, ""
        missing = _MISSING.fullmatch(reason)
        steps = (path, where.rpartition("$")[2].strip(".`"), missing and missing[1])
        field = ".".join(step for step in steps if step).replace(".[", "[")
        raise _FieldError(field, reason) from None

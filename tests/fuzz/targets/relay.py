"""The relay, between clients and a guest which may send anything."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from tests.fuzz.targets.relay_guest import PoliteGuest
from tests.fuzz.targets.relay_messages import (
    ANSWERING,
    CONTROL,
    ENDING,
    ENDS_OF,
    ENDS_REQUESTS,
    FILES,
    FITTING,
    FROM_AGENT,
    HANDLES,
    REQUESTS,
    SIZES,
    TO_AGENT,
)
from tests.fuzz.targets.relay_parts import STEP, ids_of, parse
from tests.fuzz.targets.relay_world import LARGE, LIMITED, MOST_CLIENTS, SMALL, Peer, World
from tests.fuzz.targets.script import Script
from trio_console import _wire as wire
from trio_console._errors import ProtocolError

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from trio_console._relay.router import RouterLimits

__all__ = ["fuzz_relay_agent", "fuzz_relay_clients"]

_ROWS: Final = list(wire.MESSAGE_TYPES.values())

#: A script picks an id by its place in the client's range, counted from the beginning or from the end.
_OFFSETS: Final = (0, 0, 0, 1, 1, 2, 3, -1)


def _any_id(script: Script) -> int:
    """An id at an edge of any client's range, inside or outside of it."""
    ids = ids_of(script.byte() % 4)
    return script.pick((ids[0], ids[-1], ids[0] - 1, ids[-1] + 1, ids[-1] + 2, 0, 2**32 - 1, 128 * STEP))


def _envelope(script: Script) -> tuple[int, bytes]:
    """Flags and body of a message of any type with any payload. The flags and the version are mostly right."""
    row = script.pick(_ROWS)
    how = script.byte()
    if how in _WITH_MORE:
        return _message_with_more(script, in_payload=how % 2 == 0)
    payload = script.take(script.byte())
    body = b"".join(
        (
            b"\xa3\x61v\x18" + bytes([how if how >= 24 else wire.GENERATION]),
            b"\x61t\x78" + bytes([len(row.name)]) + row.name.encode(),
            b"\x61p\x58" + bytes([len(payload)]) + payload,
        )
    )
    return row.flags if how != 255 else script.byte(), body


#: An unknown key's values: first those that every agent can decode, and then those that not every one can.
_UNKNOWN: Final = (
    *(b"\x00", b"\x1b" + b"\xff" * 8, b"\x3b" + b"\xff" * 8, b"\x5f\x41a\xff", b"\x9f\xf4\xff", b"\xd8\x40\x40"),
    *(b"\xd9\xd9\xf7\xd8\x40\x40", b"\xc2\x50" + b"\xff" * 16, b"\xc3\x50\x7f" + b"\xff" * 15, b"\xa1\x41k\xf6"),
    *(b"\xa1\x79\x10\x00" + b"k" * 4096 + b"\x00", b"\xa1\x79\x10\x01" + b"k" * 4097 + b"\x00"),
    *(
        b"\xf8\xff",
        b"\xe0",
        b"\xf7",
        b"\xf9\x3c\x00",
        b"\x7f\x61a\xff",
        b"\xa1\x5f\x41k\xff\x00",
        b"\xd8\x40" * 3 + b"\x40",
    ),
    *(b"\xc2\x51\x01" + b"\xff" * 16, b"\xc3\x50\x80" + b"\xff" * 15, b"\xc2\x61k", b"\x81\xa1\x61k\x81\xf7"),
)
_WITH_MORE: Final = range(220, 236)


def _message_with_more(script: Script, *, in_payload: bool) -> tuple[int, bytes]:
    """Flags and body of a message of a client that has an unknown key, in its payload or beside it."""
    body = wire.encode(script.pick(TO_AGENT)(script), 1)
    flags, body = body[8], body[9:]
    more = b"\x61x" + script.pick(_UNKNOWN)
    if in_payload:
        envelope = wire.decode_envelope(body)
        payload = bytes([envelope.payload[0] + 1]) + envelope.payload[1:] + more
        lead = b"\xa3\x61v\x07\x61t\x78" + bytes([len(envelope.type)]) + envelope.type.encode() + b"\x61p\x5a"
        return flags, lead + len(payload).to_bytes(4, "big") + payload
    return flags, b"\xa4" + body[1:] + more


# What a client may do


def _client_connects(world: World, _script: Script) -> None:
    world.connect(0 if world.users is None else 1)  # the slots of user 0 are for the witness


def _client_leaves(world: World, script: Script) -> None:
    if world.peers:
        world.disconnect(script.pick(world.peers))


def _client_asks(world: World, script: Script) -> None:
    if world.peers:
        peer, offset = script.pick(world.peers), script.pick(_OFFSETS)
        world.client_sends(peer, script.pick(TO_AGENT)(script), offset)


def _client_writes_bytes(world: World, script: Script) -> None:
    if world.peers:
        world.client_writes(script.pick(world.peers), script.take(script.byte()))


def _client_writes_envelope(world: World, script: Script) -> None:
    if world.peers:
        peer, offset = script.pick(world.peers), script.pick(_OFFSETS)
        world.client_writes(peer, wire.encode_frame(peer.client.ids[offset], *_envelope(script)))


def _client_says_what_a_guest_says(world: World, script: Script) -> None:
    if world.peers:
        peer, offset = script.pick(world.peers), script.pick(_OFFSETS)
        world.client_sends(peer, script.pick(FROM_AGENT)(script), offset)


def _client_reads(world: World, script: Script) -> None:
    if world.peers:
        world.client_reads(script.pick(world.peers), script.pick(SIZES))


def _feed(world: World, script: Script) -> None:
    if world.peers:
        world.feed(script.pick(world.peers))


def _time_passes(world: World, script: Script) -> None:
    world.pass_time(script.pick((1.0, 30.0)))


def _client_asks_under_any_id(world: World, script: Script) -> None:
    if world.peers:
        peer, id_ = script.pick(world.peers), _any_id(script)
        world.client_writes(peer, wire.encode(script.pick(TO_AGENT)(script), id_))


def _client_asks_under_an_id_in_use(world: World, script: Script) -> None:
    if world.peers and (peer := script.pick(world.peers)).party.sessions:
        id_ = script.pick(list(peer.party.sessions))
        world.client_writes(peer, wire.encode(script.pick(TO_AGENT)(script), id_))


def _client_goes_on(world: World, script: Script) -> None:
    if world.peers and (peer := script.pick(world.peers)).party.sessions:
        session = script.pick(list(peer.party.sessions.values()))
        world.client_writes(peer, wire.encode(script.pick(FITTING[session.kind])(script), session.id))


def _client_opens_many(world: World, script: Script) -> None:
    """Open sessions up to the limit of a client, and more."""
    if world.peers:
        peer, request = script.pick(world.peers), script.pick(REQUESTS)
        for offset in range(script.byte() % 10):
            if peer.connected:
                world.client_sends(peer, request(script), offset)


def _feed_all(world: World, script: Script) -> None:
    if world.peers:
        peer = script.pick(world.peers)
        while world.feed(peer):
            pass


def _client_controls(world: World, script: Script) -> None:
    if world.peers:
        peer = script.pick(world.peers)
        id_ = script.pick((0, peer.client.ids[0], peer.client.ids[-1]))
        world.client_writes(peer, wire.encode(script.pick(CONTROL), id_))


def _client_writes_wrong_flags(world: World, script: Script) -> None:
    if world.peers:
        peer, id_ = script.pick(world.peers), _any_id(script)
        version = script.pick((7, 7, 3, 4, 5, 6))
        frame = parse(wire.encode(script.pick(TO_AGENT)(script), id_, version=version))
        world.client_writes(peer, wire.encode_frame(id_, frame.flags ^ (1 << script.byte() % 8), frame.body))


def _client_takes(world: World, script: Script) -> None:
    if world.peers:
        world.client_takes(script.pick(world.peers), script.pick(SIZES))


def _client_took(world: World, script: Script) -> None:
    if world.peers:
        world.client_took(script.pick(world.peers))


def _client_asks_for_ends(world: World, script: Script) -> None:
    if world.peers:
        peer, offset = script.pick(world.peers), script.pick(_OFFSETS)
        world.client_sends(peer, script.pick(ENDS_REQUESTS)(script), offset)


def _client_ends(world: World, script: Script) -> None:
    """Release or kill a command, or something else."""
    if world.peers:
        peer = script.pick(world.peers)
        ids = list(peer.party.sessions) or [peer.client.ids[0]]
        id_ = script.pick(ids) if script.byte() % 4 else peer.client.ids[script.pick(_OFFSETS)]
        world.client_writes(peer, wire.encode(script.pick(ENDING)(script), id_))


def _client_says_what_a_guest_says_of_ends(world: World, script: Script) -> None:
    if world.peers:
        peer, offset = script.pick(world.peers), script.pick(_OFFSETS)
        world.client_sends(peer, script.pick(ENDS_OF)(script), offset)


def _client_of_a_user_connects(world: World, script: Script) -> None:
    world.connect(script.pick((1, 1, 2, 3)) if world.users is not None else 0)


def _client_asks_for_files(world: World, script: Script) -> None:
    if world.peers:
        peer, offset = script.pick(world.peers), script.byte() % 8
        world.client_sends(peer, script.pick(FILES)(script), offset)


# What a polite guest may do


def _guest_answers_with_a_handle(world: PoliteGuest, script: Script) -> None:
    ids = [id_ for id_, work in world.work.items() if work.kind == "fs"]
    if ids:
        world.finish(script.pick(ids), script.pick(HANDLES)(script))


def _guest_opens_much(world: PoliteGuest, script: Script) -> None:
    """Clients open files, the guest does so, and they close some."""
    for _ in range(script.byte() % 4 + 1):
        _client_asks_for_files(world, script)
        world.hear_all()
        _guest_answers_with_a_handle(world, script)
        world.deliver_all()


def _relay_writes(world: PoliteGuest, script: Script) -> None:
    world.write_batch(script.byte() % 4)


def _guest_hears(world: PoliteGuest, script: Script) -> None:
    for _ in range(script.byte() % 4 + 1):
        world.hear()


def _guest_speaks(world: PoliteGuest, script: Script) -> None:
    id_ = world.nth(script.byte())
    if id_ is not None:
        world.output(id_, script.byte(), script.pick(SIZES))


def _guest_does(world: PoliteGuest, script: Script) -> None:
    id_ = world.nth(script.byte())
    if id_ is not None:
        script.pick((world.started, world.grant, world.finish))(id_)


def _guest_ends(world: PoliteGuest, script: Script) -> None:
    """A command exits, or a stream of it ends."""
    id_ = world.nth(script.byte())
    if id_ is not None:
        how = script.byte() % 3
        if how:
            world.end_stream(id_, how - 1)
        else:
            world.leave(id_)


def _guest_fills(world: PoliteGuest, script: Script) -> None:
    """A session says more of each stream than its client accepts, so that the relay holds some."""
    number, stream = script.byte(), script.byte()
    world.hear_all()
    for side in (stream, stream + 1, stream, stream + 1):
        id_ = world.nth(number)
        if id_ is not None:
            world.output(id_, side, script.pick(SIZES))
        world.deliver_all()
        for peer in world.peers:
            world.client_reads(peer, 1000)
        world.hear_all()


def _guest_is_heard(world: PoliteGuest, script: Script) -> None:
    for _ in range(script.byte() % 4 + 1):
        world.deliver()


_CLIENTS_STEPS: Final[Sequence[Callable[[PoliteGuest, Script], None]]] = (
    _client_asks,
    _client_asks,
    _client_asks,
    _client_connects,
    _client_leaves,
    _client_reads,
    _client_writes_bytes,
    _client_writes_envelope,
    _client_says_what_a_guest_says,
    _feed,
    _relay_writes,
    _guest_hears,
    _guest_speaks,
    _guest_does,
    _guest_is_heard,
    _time_passes,
)

#: Where a script's first byte says so (and not always: older scripts are to mean what they meant), there are more.
_WIDE_CLIENTS_STEPS: Final[Sequence[Callable[[PoliteGuest, Script], None]]] = (
    *_CLIENTS_STEPS,
    _client_asks_under_any_id,
    _client_asks_under_an_id_in_use,
    _client_goes_on,
    _client_goes_on,
    _client_opens_many,
    _feed_all,
    _client_controls,
    _client_writes_wrong_flags,
    _client_takes,
    _client_took,
    _guest_is_heard,
    _guest_speaks,
)


_ENDS_CLIENTS_STEPS: Final[Sequence[Callable[[PoliteGuest, Script], None]]] = (
    *_WIDE_CLIENTS_STEPS,
    _client_asks_for_ends,
    _client_asks_for_ends,
    _client_asks_for_ends,
    _client_ends,
    _client_ends,
    _client_says_what_a_guest_says_of_ends,
    _guest_fills,
    _guest_fills,
    _guest_fills,
    _guest_ends,
    _guest_ends,
    _guest_ends,
    _guest_ends,
)


_USERS_CLIENTS_STEPS: Final[Sequence[Callable[[PoliteGuest, Script], None]]] = (
    *_WIDE_CLIENTS_STEPS,
    _client_of_a_user_connects,
    _client_of_a_user_connects,
    _client_asks_for_files,
    _client_asks_for_files,
    _client_controls,
    _guest_answers_with_a_handle,
    _guest_opens_much,
    _guest_opens_much,
)


def _has_users(how: int) -> bool:
    """Whether the relay has users with rights and limits."""
    return how & ~9 == 0x40


def _is_wide(how: int) -> bool:
    return how >> 5 == 1


def _is_about_ends(how: int) -> bool:
    """Whether the steps are still more."""
    return _is_wide(how) and bool(how & 4)


def _tells_ends(how: int) -> bool:
    """Whether the guest announces that it tells the ends of commands."""
    return _is_about_ends(how) and bool(how & 8)


class _Marked(PoliteGuest):
    """Checks what clients get: the guest puts the mark of the owner into every byte, and ends each stream once."""

    def on_received(self, peer: Peer, frame: wire.Frame) -> None:
        message = wire.decode(frame)
        peer.received.append((frame.id, message))
        if isinstance(message, wire.DataMessage):
            assert not message.data.strip(bytes([peer.mark])), "somebody else's data"
        if self.credit:  # otherwise data is dropped for a client that does not read
            peer.life(frame.id).note(message, self.ended_after[frame.id])


def fuzz_relay_clients(data: bytes) -> int:
    """Any clients, and a guest that keeps to the protocol: no client disturbs another, and nothing is left."""
    script = Script(data)
    how = script.byte()
    limits = LIMITED if _has_users(how) else LARGE if how & 2 else SMALL
    world = _Marked(bool(how & 1), limits, _tells_ends(how) or (_has_users(how) and bool(how & 8)))
    world.connect(1 if _has_users(how) else 0)
    steps = _WIDE_CLIENTS_STEPS if _is_wide(how) else _CLIENTS_STEPS
    steps = _ENDS_CLIENTS_STEPS if _is_about_ends(how) else steps
    steps = _USERS_CLIENTS_STEPS if _has_users(how) else steps
    while script:
        script.pick(steps)(world, script)
        world.check()
    _check_witness(world)
    for peer in list(world.peers):
        world.drain(peer)
        world.check()
        if peer.connected:
            world.disconnect(peer)
        world.check()
    world.settle()
    assert not world.work, "left running in the guest"
    assert not world.router.slots.quarantined
    world.check_end()
    return world.trace


def _check_witness(world: _Marked) -> None:
    """Another client's command runs as if it were alone."""
    if len(world.peers) >= MOST_CLIENTS:
        world.disconnect(world.peers[0])
    peer = world.connect()
    assert peer is not None
    id_ = peer.client.ids[0]
    stdin = b"i" * 300
    world.client_sends(peer, wire.ExecRequest("witness", window=100), 0)
    world.client_sends(peer, wire.ExecStdin(stdin), 0)
    world.hear_all()
    work = world.work[id_]
    while len(work.input) < len(stdin):
        assert world.feed(peer)
        world.hear_all()
        world.grant(id_)
        world.deliver_all()
    assert work.input == stdin
    said = 0
    while said < 250:
        before = work.sent.get("stdout", 0)
        world.output(id_, 0, 250 - said)
        size = work.sent["stdout"] - before
        assert size
        said += size
        world.deliver_all()
        while world.client_reads(peer, 1000):
            pass
        world.client_sends(peer, wire.Credit("stdout", size), 0)
        world.hear_all()
    world.finish(id_)
    world.deliver_all()
    while world.client_reads(peer, 1000):
        pass
    messages = [message for _, message in peer.received]
    assert b"".join(m.data for m in messages if isinstance(m, wire.ExecStdout)) == bytes([peer.mark]) * 250
    assert messages[-1] == wire.ExecExited(0)


# What a guest may do that does not keep to the protocol


class _RudeGuest(World):
    """A guest that sends any frames."""

    def __init__(self, credit: bool, limits: RouterLimits, ends: bool) -> None:
        super().__init__(credit, limits, ends)
        self.decoder = wire.FrameDecoder()
        self.lost = False

    def guest_writes(self, data: bytes) -> None:
        try:
            self.decoder.feed(data)
            for frame in self.decoder:
                self.agent_says(frame)
        except ProtocolError:
            self.lost = True
            self.lose_agent()


def _guest_writes_bytes(world: _RudeGuest, script: Script) -> None:
    world.guest_writes(script.take(script.byte()))


def _id_to_speak_of(script: Script) -> int:
    return ids_of(script.byte() % 4)[script.pick(_OFFSETS)]


def _guest_writes_envelope(world: _RudeGuest, script: Script) -> None:
    id_ = _id_to_speak_of(script)
    world.guest_writes(wire.encode_frame(id_, *_envelope(script)))


def _guest_says(world: _RudeGuest, script: Script) -> None:
    id_ = _id_to_speak_of(script)
    world.guest_writes(wire.encode(script.pick(FROM_AGENT)(script), id_))


def _guest_says_of_ends(world: _RudeGuest, script: Script) -> None:
    id_ = _id_to_speak_of(script)
    if sessions := [session for peer in world.peers for session in peer.party.sessions.values()]:
        id_ = script.pick(sessions).id if script.byte() % 4 else id_
    raw = wire.encode(script.pick(ENDS_OF)(script), id_)
    for _ in range(script.pick((1, 1, 1, 2, 100))):
        if not world.lost:
            world.guest_writes(raw)


def _guest_repeats(world: _RudeGuest, script: Script) -> None:
    id_ = _id_to_speak_of(script)
    raw = wire.encode(script.pick(FROM_AGENT)(script), id_)
    for _ in range(script.byte()):
        world.guest_writes(raw)
        if world.lost:
            return


def _guest_says_under_any_id(world: _RudeGuest, script: Script) -> None:
    id_ = _any_id(script)
    world.guest_writes(wire.encode(script.pick(FROM_AGENT)(script), id_))


def _guest_goes_on(world: _RudeGuest, script: Script) -> None:
    if sessions := [session for peer in world.peers for session in peer.party.sessions.values()]:
        session = script.pick(sessions)
        world.guest_writes(wire.encode(script.pick(ANSWERING[session.kind])(script), session.id))


def _guest_says_a_last_word(world: _RudeGuest, script: Script) -> None:
    """A last message for a session whose client has gone, or for the question behind it: the right one, or any."""
    awaited = [*(words for _, words in world.model.awaited.values()), *world.model.late.values()]
    if ids := [id_ for words in awaited for id_ in words.items()]:
        id_, kind = script.pick(ids)
        right = (lambda _: wire.ClientForgotten()) if kind == "call" else ANSWERING[kind][-1]
        last = right if script.byte() % 4 else script.pick(FROM_AGENT)
        world.guest_writes(wire.encode(last(script), id_ + script.pick((0, 0, 0, 1, -1))))


def _guest_takes(world: _RudeGuest, _script: Script) -> None:
    world.write_batch(1 << 20)
    world.wire.clear()


def _client_opens(world: _RudeGuest, script: Script) -> None:
    if world.peers:
        peer, offset = script.pick(world.peers), script.pick(_OFFSETS)
        world.client_sends(peer, script.pick(REQUESTS)(script), offset)


_AGENT_STEPS: Final[Sequence[Callable[[_RudeGuest, Script], None]]] = (
    _guest_says,
    _guest_says,
    _guest_says,
    _guest_repeats,
    _guest_writes_bytes,
    _guest_writes_envelope,
    _guest_takes,
    _client_opens,
    _client_opens,
    _client_asks,
    _client_connects,
    _client_leaves,
    _client_reads,
    _feed,
    _time_passes,
)

_WIDE_AGENT_STEPS: Final[Sequence[Callable[[_RudeGuest, Script], None]]] = (
    *_AGENT_STEPS,
    _guest_says_under_any_id,
    _guest_goes_on,
    _guest_goes_on,
    _guest_goes_on,
    _guest_says_a_last_word,
    _guest_says_a_last_word,
    _client_asks_under_any_id,
    _client_asks_under_an_id_in_use,
    _client_goes_on,
    _client_goes_on,
    _client_opens_many,
    _feed_all,
    _client_takes,
    _client_took,
)


_ENDS_AGENT_STEPS: Final[Sequence[Callable[[_RudeGuest, Script], None]]] = (
    *_WIDE_AGENT_STEPS,
    _client_asks_for_ends,
    _client_asks_for_ends,
    _client_ends,
    _guest_says_of_ends,
    _guest_says_of_ends,
    _guest_says_of_ends,
    _guest_goes_on,
)


def _guest_says_of_handles(world: _RudeGuest, script: Script) -> None:
    files = [s.id for peer in world.peers for s in peer.party.sessions.values() if s.kind == "fs"]
    if files:
        world.guest_writes(wire.encode(script.pick(HANDLES)(script), script.pick(files)))


_USERS_AGENT_STEPS: Final[Sequence[Callable[[_RudeGuest, Script], None]]] = (
    *_WIDE_AGENT_STEPS,
    _client_of_a_user_connects,
    _client_of_a_user_connects,
    _client_asks_for_files,
    _client_asks_for_files,
    _client_asks_for_files,
    _client_controls,
    _guest_says_of_handles,
    _guest_says_of_handles,
    _guest_says_of_handles,
)


def fuzz_relay_agent(data: bytes) -> int:
    """Clients, and any guest: each client gets only frames under its own ids, within its bounds."""
    script = Script(data)
    how = script.byte()
    limits = LIMITED if _has_users(how) else LARGE if how & 2 else SMALL
    world = _RudeGuest(bool(how & 1), limits, _tells_ends(how) or (_has_users(how) and bool(how & 8)))
    world.connect(1 if _has_users(how) else 0)
    steps = _WIDE_AGENT_STEPS if _is_wide(how) else _AGENT_STEPS
    steps = _ENDS_AGENT_STEPS if _is_about_ends(how) else steps
    steps = _USERS_AGENT_STEPS if _has_users(how) else steps
    while script and not world.lost:
        script.pick(steps)(world, script)
        world.check()
    for peer in list(world.peers):
        world.drain(peer)
        world.check()
        if peer.connected:
            world.disconnect(peer)
        world.check()
    world.check_end()
    return world.trace

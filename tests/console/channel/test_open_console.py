"""`open_console`: a device as a stream."""

from __future__ import annotations

import contextlib
import errno
import os
import socket
from typing import TYPE_CHECKING, Any

import pytest
import trio
import trio.testing

from tests.console.channel.consoles import KINDS, OPENERS, Kind, ScriptedDevice, by_socket, clog, serve
from tests.tools.conserved import check_conserved
from tests.tools.leftovers import descriptors
from tests.tools.limits import HANG
from trio_console._console import channel as _channel
from trio_console._console import devices as _devices
from trio_console._console.channel import open_console
from trio_console._guests.host import own_console, spec_of

if TYPE_CHECKING:
    from collections.abc import Callable


@pytest.mark.parametrize("kind", KINDS, ids=str)
async def test_it_keeps_trios_contract_for_half_closeable_streams(kind: Kind) -> None:
    async with trio.open_nursery() as nursery:

        async def maker(**options: Any) -> tuple[Any, Any]:
            device, guest = kind.make()

            async def served(*, task_status: Any) -> None:
                await serve(kind, device, task_status, grace=HANG, **options)

            return await nursery.start(served), guest

        async def clogged_maker() -> tuple[Any, Any]:
            channel, guest = await maker(max_bytes=2048)
            await clog(channel, guest)
            return channel, guest

        await trio.testing.check_half_closeable_stream(maker, clogged_maker)


# Bytes


@pytest.mark.parametrize("kind", KINDS, ids=str)
@pytest.mark.parametrize("limits", [{}, {"max_bytes": 1000, "capacity": 3}])
async def test_large_data_arrives_whole_both_ways_at_once(kind: Kind, limits: dict[str, int]) -> None:
    data = bytes(range(256)) * 4096
    device, guest = kind.make()
    received: dict[str, bytes] = {}

    async def sends(stream: trio.abc.HalfCloseableStream) -> None:
        await stream.send_all(data)
        await stream.send_eof()

    async def receives(name: str, stream: trio.abc.ReceiveStream) -> None:
        received[name] = b"".join([chunk async for chunk in stream])

    async with kind.open(device, **limits) as channel, guest:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(sends, channel)
            nursery.start_soon(sends, guest)
            nursery.start_soon(receives, "host", channel)
            nursery.start_soon(receives, "guest", guest)
    assert received == {"host": data, "guest": data}
    now = channel.statistics()
    assert now.rx.bytes_in == now.rx.bytes_out == now.tx.bytes_in == now.tx.bytes_out == len(data)
    assert now.rx.bytes_dropped == now.tx.bytes_dropped == 0


@pytest.mark.parametrize("kind", KINDS, ids=str)
async def test_the_end_is_told_to_the_device_and_the_other_direction_goes_on(kind: Kind) -> None:
    device, guest = kind.make()
    async with kind.open(device) as channel, guest:
        await channel.send_all(b"all there is")
        await channel.send_eof()
        assert b"".join([chunk async for chunk in guest]) == b"all there is"
        await guest.send_all(b"answer")
        assert await channel.receive_some() == b"answer"


@pytest.mark.parametrize("kind", KINDS, ids=str)
async def test_what_the_guest_sent_before_it_left_is_received(kind: Kind) -> None:
    device, guest = kind.make()
    async with kind.open(device) as channel:
        await guest.send_all(b"last words")
        await guest.aclose()
        assert b"".join([chunk async for chunk in channel]) == b"last words"


@pytest.mark.parametrize("opener", OPENERS)
async def test_a_reset_by_the_guest_is_a_broken_stream_with_its_cause(opener: Any) -> None:
    device, guest = by_socket()
    async with opener(device) as channel:
        await channel.send_all(b"never read")
        while not channel.statistics().rx.bytes_out or channel.statistics().rx.current_buffer_bytes:
            await trio.lowlevel.checkpoint()
        await trio.lowlevel.wait_readable(guest.socket)  # type: ignore[attr-defined]
        await guest.aclose()  # with unread bytes: a reset
        with pytest.raises(trio.BrokenResourceError) as caught:
            await channel.receive_some()
        assert isinstance(caught.value.__cause__, ConnectionResetError)


async def test_everything_read_is_delivered_before_the_devices_error() -> None:
    error = OSError(errno.EIO, "the machine is gone")
    async with open_console(ScriptedDevice(b"one", b"two", error)) as channel:
        received = bytearray()
        with pytest.raises(trio.BrokenResourceError) as caught:
            while True:
                received += await channel.receive_some()
        assert received == b"onetwo"
        assert caught.value.__cause__ is error


async def test_a_device_that_takes_no_more_breaks_sending_only() -> None:
    error = OSError(errno.EIO, "no")
    async with open_console(ScriptedDevice(b"hello", write_error=error)) as channel:
        with pytest.raises(trio.BrokenResourceError) as caught:
            while True:
                await channel.send_all(b"x")
        assert caught.value.__cause__ is error
        assert await channel.receive_some() == b"hello"
    assert channel.statistics().rx.bytes_out == 0
    check_conserved(channel)


async def test_a_device_that_takes_little_at_a_time_gets_everything() -> None:
    device = ScriptedDevice()
    async with open_console(device) as channel:
        await channel.send_all(b"0123456789")
    assert device.written == b"0123456789"
    assert channel.statistics().rx.bytes_out == 10


async def test_a_device_that_returns_more_than_it_was_asked_for_loses_nothing() -> None:
    async with open_console(ScriptedDevice(bytes(5000), b"more"), max_bytes=100) as channel:
        received = 0
        while received < 5004:
            received += len(await channel.receive_some())


async def test_a_devices_failing_close_does_not_stop_the_ending() -> None:
    device = ScriptedDevice()
    device.close_error = OSError(errno.EIO, "even that")
    async with open_console(device) as channel:
        await channel.send_all(b"abc")
    assert device.written == b"abc"


async def test_a_failing_close_hides_no_error_that_came_before(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def no_descriptor(*_bounds: int) -> None:
        raise OSError(errno.EMFILE, "Too many open files")

    device = ScriptedDevice()
    device.close_error = OSError(errno.EIO, "even that")
    monkeypatch.setattr(_channel, "ConsoleSharedState", no_descriptor)
    with pytest.raises(OSError, match="Too many open files"):
        async with open_console(device):
            pass
    assert "even that" in caplog.text


async def test_a_failing_close_of_an_attached_device_does_not_take_the_place_of_an_ending(
    caplog: pytest.LogCaptureFixture,
) -> None:
    device = ScriptedDevice()
    device.close_error = OSError(errno.EIO, "even that")
    with trio.CancelScope() as scope:
        async with own_console(spec_of(device)):
            scope.cancel()
            await trio.sleep_forever()
    assert scope.cancelled_caught
    with pytest.raises(ZeroDivisionError):
        async with own_console(spec_of(device)):
            raise ZeroDivisionError
    async with own_console(spec_of(device)):
        pass
    assert caplog.text.count("even that") == 3


@pytest.mark.parametrize("opener", OPENERS)
async def test_a_descriptor_closed_by_somebody_else_is_an_error_and_no_silence(
    opener: Any,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    read_fd, other = os.pipe()

    def closed_under_it(fd: int, _size: int) -> bytes:
        os.close(fd)
        raise BlockingIOError

    monkeypatch.setattr(_devices, "os", OsWith(read=closed_under_it))
    async with opener((read_fd, other)) as channel:
        with pytest.raises(trio.BrokenResourceError) as caught:
            await channel.receive_some()
        assert isinstance(caught.value.__cause__, OSError)
        assert caught.value.__cause__.errno == errno.EBADF


class OsWith:
    """`os` with something else in its place."""

    def __init__(self, **instead: Any) -> None:
        self.__dict__.update(instead)

    def __getattr__(self, name: str) -> Any:
        return getattr(os, name)


# Many


async def test_many_consoles_leave_trios_default_limiter_alone() -> None:
    limiter = trio.to_thread.current_default_thread_limiter()
    async with contextlib.AsyncExitStack() as stack:
        channels = []
        for _ in range(25):
            device, guest = by_socket()
            await stack.enter_async_context(guest)
            channels.append((await stack.enter_async_context(open_console(device)), guest))
        for channel, guest in channels:
            await channel.send_all(b"x")
            assert await guest.receive_some() == b"x"
        assert limiter.borrowed_tokens == 0
        assert await trio.to_thread.run_sync(int) == 0


# What cannot be a console


@pytest.mark.parametrize("wrong", ["text", None, 1.5, (1,), (1, 2, 3), object()])
async def test_what_cannot_be_a_console_is_refused(wrong: Any) -> None:
    with pytest.raises(TypeError, match="console device"):
        async with open_console(wrong):
            pass


@pytest.mark.parametrize("kind", [socket.SOCK_DGRAM, socket.SOCK_SEQPACKET])
async def test_a_socket_that_is_no_stream_is_refused_and_left_alone(kind: socket.SocketKind) -> None:
    ours, theirs = socket.socketpair(socket.AF_UNIX, kind)
    with ours, theirs:
        with pytest.raises(ValueError, match="stream socket"):
            async with open_console(ours):
                pass
        ours.send(b"x")
        assert theirs.recv(1) == b"x"


async def test_a_closed_socket_or_descriptor_is_refused() -> None:
    ours, theirs = socket.socketpair()
    fd = ours.fileno()
    ours.close()
    theirs.close()
    for gone in (ours, fd):
        with pytest.raises(OSError, match="Bad file descriptor"):
            async with open_console(gone):
                pass


@pytest.mark.parametrize("left", [0, 1, 4])
async def test_without_descriptors_a_console_is_refused_and_its_device_closed_and_no_descriptor_kept(
    left: int, no_more_descriptors: Callable[..., None]
) -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        (device,) = (one for one in descriptors() if one.startswith(f"descriptor {ours.fileno()} of "))
        before = descriptors()
        no_more_descriptors(left)
        with pytest.raises(OSError, match="Too many open files"):
            async with open_console(ours):
                pass
        assert ours.fileno() < 0
        assert theirs.recv(1) == b""
        assert descriptors() == before - {device}


@pytest.mark.parametrize("kind", KINDS, ids=str)
async def test_telling_the_end_needs_no_descriptor(kind: Kind, no_more_descriptors: Callable[..., None]) -> None:
    device, guest = kind.make()
    async with guest, kind.open(device) as channel:
        await channel.send_all(b"x")
        no_more_descriptors()
        await channel.send_eof()
        assert b"".join([chunk async for chunk in guest]) == b"x"

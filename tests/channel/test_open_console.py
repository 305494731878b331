"""`open_console`: a device as a stream, and an ending that is orderly, bounded and leaves nothing."""

from __future__ import annotations

import contextlib
import errno
import os
import resource
import select
import socket
import threading
import weakref
from typing import TYPE_CHECKING, Any

import pytest
import trio
import trio.testing

from trio_console import _channel, _devices
from trio_console._channel import open_console

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from trio_console._console import ConsoleSharedState
    from trio_console._stream import ConsoleStream

TIMEOUT = 30.0


def check_conserved(channel: ConsoleStream) -> None:
    now = channel.statistics()
    for lane in (now.tx, now.rx):
        assert lane.bytes_in == lane.bytes_out + lane.current_buffer_bytes + lane.bytes_dropped
        assert min(lane.bytes_in, lane.bytes_out, lane.bytes_dropped, lane.current_buffer_bytes) >= 0


class SocketDevice:
    """A device of a user's: an object with the blocking methods, around a socket that blocks."""

    def __init__(self, sock: socket.socket) -> None:
        self.sock = sock
        self.blocked_writing = False
        self.closed = threading.Event()

    def read(self, max_bytes: int) -> bytes:
        return self.sock.recv(max_bytes)

    def write(self, data: memoryview, /) -> int:
        try:
            return self.sock.send(data, socket.MSG_DONTWAIT)
        except BlockingIOError:
            self.blocked_writing = True
        try:
            return self.sock.send(data)
        finally:
            self.blocked_writing = False

    def close_write(self) -> None:
        self.sock.shutdown(socket.SHUT_WR)

    def close(self) -> None:
        self.closed.set()
        with contextlib.suppress(OSError):
            self.sock.shutdown(socket.SHUT_RDWR)
        self.sock.close()


#: The device behind each console's state, and on it whether its writer sleeps.
DEVICES: weakref.WeakKeyDictionary[ConsoleSharedState, Any] = weakref.WeakKeyDictionary()


@pytest.fixture(autouse=True)
def _watched_devices(monkeypatch: pytest.MonkeyPatch) -> None:
    real_init = _channel._Workers.__init__
    real_sleep = _devices._FdDevice._sleep

    def init(self: Any, device: Any, shared: ConsoleSharedState) -> None:
        DEVICES[shared] = device
        real_init(self, device, shared)

    def sleep(self: Any, fd: int, events: int) -> bool:
        if events == select.POLLOUT:
            self.blocked_writing = True
        try:
            return real_sleep(self, fd, events)
        finally:
            if events == select.POLLOUT:
                self.blocked_writing = False

    monkeypatch.setattr(_channel._Workers, "__init__", init)
    monkeypatch.setattr(_devices._FdDevice, "_sleep", sleep)


def by_socket() -> tuple[Any, trio.abc.HalfCloseableStream]:
    ours, theirs = socket.socketpair()
    return ours, trio.SocketStream(trio.socket.from_stdlib_socket(theirs))


def by_descriptor() -> tuple[Any, trio.abc.HalfCloseableStream]:
    ours, guest = by_socket()
    return ours.detach(), guest


def by_object() -> tuple[Any, trio.abc.HalfCloseableStream]:
    ours, guest = by_socket()
    return SocketDevice(ours), guest


def by_pipes() -> tuple[Any, trio.abc.HalfCloseableStream]:
    to_guest, to_host = os.pipe(), os.pipe()
    guest = trio.StapledStream(trio.lowlevel.FdStream(to_host[1]), trio.lowlevel.FdStream(to_guest[0]))
    return (to_host[0], to_guest[1]), guest


MAKERS = [by_socket, by_descriptor, by_object, by_pipes]


async def serve(device: Any, task_status: Any, **options: Any) -> None:
    """Hold a console open until it is closed."""
    async with open_console(device, **options) as channel:
        task_status.started(channel)
        await channel.wait_closed()


async def fill(stream: trio.abc.SendStream) -> None:
    """Send until it would block."""
    with trio.CancelScope() as scope:
        async with trio.open_nursery() as nursery:

            @nursery.start_soon
            async def _cancel_when_blocked() -> None:
                await trio.testing.wait_all_tasks_blocked()
                scope.cancel()

            while True:
                await stream.send_all(bytes(1024))


async def clog_out(channel: ConsoleStream) -> None:
    """Send until nothing moves any more: the ring, the worker's hand and the kernel's buffer are full."""
    device = DEVICES[channel._shared]
    while not getattr(device, "blocked_writing", False):
        await fill(channel)
    # From here on the worker sleeps until the guest reads.
    await fill(channel)


async def clog(channel: ConsoleStream, guest: trio.abc.SendStream) -> None:
    """The same, both ways."""
    await clog_out(channel)
    ring = channel._shared.tx.ring
    while ring.fits(ring.max_bytes) or not ring._room_armed:
        await fill(guest)
    # From here on the worker sleeps until the host receives.
    await fill(guest)


@pytest.mark.parametrize("make", MAKERS)
async def test_it_keeps_trios_contract_for_half_closeable_streams(make: Any) -> None:
    async with trio.open_nursery() as nursery:

        async def maker(**options: Any) -> tuple[Any, Any]:
            device, guest = make()

            async def served(*, task_status: Any) -> None:
                await serve(device, task_status, grace=TIMEOUT, **options)

            return await nursery.start(served), guest

        async def clogged_maker() -> tuple[Any, Any]:
            channel, guest = await maker(max_bytes=2048)
            await clog(channel, guest)
            return channel, guest

        await trio.testing.check_half_closeable_stream(maker, clogged_maker)


# Bytes


@pytest.mark.parametrize("make", MAKERS)
@pytest.mark.parametrize("limits", [{}, {"max_bytes": 1000, "capacity": 3}])
async def test_large_data_arrives_whole_both_ways_at_once(make: Any, limits: dict[str, int]) -> None:
    data = bytes(range(256)) * 4096
    device, guest = make()
    received: dict[str, bytes] = {}

    async def sends(stream: trio.abc.HalfCloseableStream) -> None:
        await stream.send_all(data)
        await stream.send_eof()

    async def receives(name: str, stream: trio.abc.ReceiveStream) -> None:
        received[name] = b"".join([chunk async for chunk in stream])

    async with open_console(device, **limits) as channel, guest:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(sends, channel)
            nursery.start_soon(sends, guest)
            nursery.start_soon(receives, "host", channel)
            nursery.start_soon(receives, "guest", guest)
    assert received == {"host": data, "guest": data}
    now = channel.statistics()
    assert now.rx.bytes_in == now.rx.bytes_out == now.tx.bytes_in == now.tx.bytes_out == len(data)
    assert now.rx.bytes_dropped == now.tx.bytes_dropped == 0


@pytest.mark.parametrize("make", MAKERS)
async def test_the_end_is_told_to_the_device_and_the_other_direction_goes_on(make: Any) -> None:
    device, guest = make()
    async with open_console(device) as channel, guest:
        await channel.send_all(b"all there is")
        await channel.send_eof()
        assert b"".join([chunk async for chunk in guest]) == b"all there is"
        await guest.send_all(b"answer")
        assert await channel.receive_some() == b"answer"


@pytest.mark.parametrize("make", MAKERS)
async def test_what_the_guest_sent_before_it_left_is_received(make: Any) -> None:
    device, guest = make()
    async with open_console(device) as channel:
        await guest.send_all(b"last words")
        await guest.aclose()
        assert b"".join([chunk async for chunk in channel]) == b"last words"


async def test_a_reset_by_the_guest_is_a_broken_stream_with_its_cause() -> None:
    device, guest = by_socket()
    async with open_console(device) as channel:
        await channel.send_all(b"never read")
        while not channel.statistics().rx.bytes_out or channel.statistics().rx.current_buffer_bytes:
            await trio.lowlevel.checkpoint()
        await trio.lowlevel.wait_readable(guest.socket)  # type: ignore[attr-defined]
        await guest.aclose()  # with unread bytes: a reset
        with pytest.raises(trio.BrokenResourceError) as caught:
            await channel.receive_some()
        assert isinstance(caught.value.__cause__, ConnectionResetError)


class ScriptedDevice:
    """Returns or raises what it was given, then blocks until it is closed."""

    def __init__(self, *reads: bytes | Exception, write_error: Exception | None = None) -> None:
        self._reads = list(reads)
        self._write_error = write_error
        self.written = b""
        self.closed = threading.Event()
        self.close_error: Exception | None = None

    def read(self, max_bytes: int) -> bytes:
        if self._reads:
            answer = self._reads.pop(0)
            if isinstance(answer, Exception):
                raise answer
            return answer
        self.closed.wait(TIMEOUT)
        return b""

    def write(self, data: memoryview, /) -> int:
        if self._write_error is not None:
            raise self._write_error
        self.written += data[:3]
        return min(3, len(data))

    def close_write(self) -> None:
        pass

    def close(self) -> None:
        self.closed.set()
        if self.close_error is not None:
            raise self.close_error


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


async def test_a_descriptor_closed_by_somebody_else_is_an_error_and_no_silence(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    read_fd, other = os.pipe()

    def closed_under_it(fd: int, _size: int) -> bytes:
        os.close(fd)
        raise BlockingIOError

    monkeypatch.setattr(_devices, "os", OsWith(read=closed_under_it))
    async with open_console((read_fd, other)) as channel:
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


# Leaving


@pytest.mark.parametrize("make", MAKERS)
async def test_leaving_delivers_what_was_sent_and_closes_the_device(make: Any) -> None:
    device, guest = make()
    async with guest:
        async with open_console(device) as channel:
            await channel.send_all(b"goodbye")
        assert b"".join([chunk async for chunk in guest]) == b"goodbye"
    assert channel.statistics().closed


@pytest.mark.parametrize("make", MAKERS)
async def test_a_guest_that_never_reads_holds_leaving_up_for_the_grace_only(make: Any) -> None:
    device, guest = make()
    async with guest:
        async with open_console(device, max_bytes=4096, grace=0.02) as channel:
            await clog_out(channel)
    now = channel.statistics()
    assert now.rx.bytes_dropped > 0
    assert now.rx.current_buffer_bytes == 0
    check_conserved(channel)


@pytest.mark.parametrize("make", MAKERS)
async def test_bytes_that_the_guest_got_are_those_counted_as_out(make: Any) -> None:
    device, guest = make()
    async with guest:
        async with open_console(device, max_bytes=4096, grace=0.02) as channel:
            await clog_out(channel)
        received = 0
        with contextlib.suppress(trio.BrokenResourceError):
            async for chunk in guest:
                received += len(chunk)
    now = channel.statistics().rx
    assert received == now.bytes_out
    assert now.bytes_in == received + now.bytes_dropped


async def test_a_guest_that_writes_for_ever_does_not_hold_leaving_up() -> None:
    device, guest = by_socket()
    async with trio.open_nursery() as nursery:

        @nursery.start_soon
        async def _floods() -> None:
            with contextlib.suppress(trio.BrokenResourceError):
                while True:
                    await guest.send_all(bytes(4096))
            await guest.aclose()

        async with open_console(device, max_bytes=4096) as channel:
            await channel.receive_some()
    check_conserved(channel)


@pytest.mark.parametrize("make", MAKERS)
async def test_closing_inside_the_block_delivers_and_closes_the_device(make: Any) -> None:
    device, guest = make()
    async with open_console(device) as channel, guest:
        await channel.send_all(b"goodbye")
        await channel.aclose()
        assert b"".join([chunk async for chunk in guest]) == b"goodbye"
        with pytest.raises(trio.BrokenResourceError):
            while True:
                await guest.send_all(bytes(4096))


async def test_a_forceful_close_inside_the_block_closes_the_device_though_the_guest_does_not_read() -> None:
    device, guest = by_socket()
    async with open_console(device, max_bytes=4096, grace=TIMEOUT * 10) as channel, guest:
        await clog(channel, guest)
        await trio.aclose_forcefully(channel)
        with contextlib.suppress(trio.BrokenResourceError):
            async for _ in guest:
                pass
        with pytest.raises(trio.BrokenResourceError):
            while True:
                await guest.send_all(bytes(4096))
    check_conserved(channel)


async def test_after_a_forceful_close_leaving_does_not_wait_for_the_grace() -> None:
    device, guest = by_socket()
    async with guest:
        async with open_console(device, max_bytes=4096, grace=TIMEOUT * 10) as channel:
            await clog(channel, guest)
            await trio.aclose_forcefully(channel)
    check_conserved(channel)


async def test_a_task_outside_the_block_learns_that_the_channel_is_closed() -> None:
    device, guest = by_socket()

    async def expect_closed(use: Any, *args: object) -> None:
        with pytest.raises(trio.ClosedResourceError):
            await use(*args)

    async with guest, trio.open_nursery() as nursery:
        async with open_console(device, capacity=1, max_bytes=1, grace=0.02) as channel:
            nursery.start_soon(expect_closed, channel.receive_some)
            await clog_out(channel)
            nursery.start_soon(expect_closed, channel.send_all, b"x")
            await trio.testing.wait_all_tasks_blocked()


class StuckDevice(ScriptedDevice):
    """Does not come back from a read, although it was closed."""

    def __init__(self) -> None:
        super().__init__()
        self.release = threading.Event()

    def read(self, max_bytes: int) -> bytes:
        if self.release.is_set():
            return b""
        self.release.wait(TIMEOUT)
        return b"too late"


async def test_a_device_that_does_not_come_back_is_abandoned_with_a_warning(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(_channel, "JOIN_TIME", 0.01)
    device = StuckDevice()

    async def deliver_and_leave() -> ConsoleStream:
        async with open_console(device, grace=0.01) as channel:
            await channel.send_all(b"abc")
            while device.written != b"abc":  # a busy machine may take longer for it than the grace
                await trio.lowlevel.checkpoint()
        return channel

    with pytest.warns(RuntimeWarning, match="abandoned"):
        channel = await deliver_and_leave()
    assert device.closed.is_set()
    device.release.set()
    while channel.statistics().tx.bytes_dropped < len(b"too late"):
        await trio.lowlevel.checkpoint()  # the thread found the wakes still open, and ends
    check_conserved(channel)


async def test_a_worker_that_a_busy_machine_keeps_from_coming_back_is_waited_for(
    mock_clock: trio.testing.MockClock,
) -> None:
    device = StuckDevice()

    async def leave() -> None:
        async with open_console(device):
            pass

    async with trio.open_nursery() as nursery:
        nursery.start_soon(leave)
        assert await trio.to_thread.run_sync(device.closed.wait, TIMEOUT)
        await trio.testing.wait_all_tasks_blocked()
        mock_clock.jump(0.9)
        await trio.testing.wait_all_tasks_blocked()
        device.release.set()


# What comes out of the block


async def test_the_bodys_exception_comes_out_as_it_is() -> None:
    device, guest = by_socket()
    error = ValueError("mine")
    async with guest:
        with pytest.raises(ValueError, match="mine") as caught:
            async with open_console(device):
                raise error
    assert caught.value is error
    assert error.__context__ is None


async def test_a_group_that_the_body_raised_comes_out_as_it_is() -> None:
    device, guest = by_socket()
    group = ExceptionGroup("mine", [ValueError(1)])
    async with guest:
        with pytest.raises(ExceptionGroup) as caught:
            async with open_console(device):
                raise group
    assert caught.value is group


async def test_the_bodys_exception_comes_out_as_it_is_while_everything_is_cancelled() -> None:
    device, guest = by_socket()
    async with guest:
        with pytest.raises(ValueError, match="cleanup"):
            with trio.CancelScope() as scope:
                async with open_console(device):
                    scope.cancel()
                    try:
                        await trio.sleep_forever()
                    finally:
                        raise ValueError("cleanup")


async def test_a_cancellation_comes_out_as_one() -> None:
    device, guest = by_socket()
    async with guest:
        with trio.CancelScope() as scope:
            async with open_console(device):
                scope.cancel()
                await trio.sleep_forever()
    assert scope.cancelled_caught


@pytest.mark.parametrize("make", MAKERS)
async def test_a_cancelled_leaving_with_everything_full_is_bounded(
    make: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_channel, "SHORT_GRACE", 0.1)
    device, guest = make()
    async with guest:
        with trio.CancelScope() as scope:
            async with open_console(device, max_bytes=2048, grace=TIMEOUT * 10) as channel:
                await clog(channel, guest)
                scope.cancel()
        check_conserved(channel)
        assert channel.statistics().rx.bytes_dropped > 0


class CountedCancel(trio.abc.Instrument):
    """Cancels a scope when the task it watches has had so many turns."""

    def __init__(self, scope: trio.CancelScope, after: int) -> None:
        self._scope = scope
        self._left = after
        self._task = trio.lowlevel.current_task()

    def after_task_step(self, task: trio.lowlevel.Task) -> None:
        if task is self._task:
            self._left -= 1
            if not self._left:
                self._scope.cancel()


@pytest.mark.parametrize("make", MAKERS)
async def test_cancelled_at_any_turn_it_leaves_nothing(make: Any) -> None:
    turn = 0
    finished = False
    while not finished:
        turn += 1
        device, guest = make()
        opened: list[ConsoleStream] = []  # none, if entering was cancelled
        with trio.CancelScope() as scope:
            instrument = CountedCancel(scope, turn)
            trio.lowlevel.add_instrument(instrument)
            try:
                async with guest:
                    async with open_console(device, max_bytes=100) as channel:
                        opened.append(channel)
                        await channel.send_all(bytes(300))
                        assert await guest.receive_some(50)
                        await guest.send_all(bytes(300))
                        assert await channel.receive_some(50)
                        await channel.send_eof()
                    finished = True
            finally:
                trio.lowlevel.remove_instrument(instrument)
        for channel in opened:
            check_conserved(channel)
    assert turn > 5


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
        with pytest.raises(ValueError, match="byte stream"):
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


@pytest.fixture
def no_more_descriptors() -> Iterator[Callable[..., None]]:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)

    def leave(count: int = 0) -> None:
        held = [os.dup(0) for _ in range(count + 1)]
        resource.setrlimit(resource.RLIMIT_NOFILE, (held[-1], hard))
        for fd in held:
            os.close(fd)

    yield leave
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


@pytest.mark.parametrize("left", [0, 1, 4])
async def test_without_descriptors_a_console_is_refused_and_nothing_kept(
    left: int, no_more_descriptors: Callable[..., None]
) -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        no_more_descriptors(left)
        with pytest.raises(OSError, match="Too many open files"):
            async with open_console(ours):
                pass
        if ours.fileno() < 0:
            assert theirs.recv(1) == b""


async def test_telling_the_end_needs_no_descriptor(no_more_descriptors: Callable[..., None]) -> None:
    device, guest = by_socket()
    async with guest, open_console(device) as channel:
        await channel.send_all(b"x")
        no_more_descriptors()
        await channel.send_eof()
        assert b"".join([chunk async for chunk in guest]) == b"x"

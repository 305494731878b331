"""Which objects can be a console device, how they are changed, and that they are set back."""

from __future__ import annotations

import contextlib
import errno
import gc
import os
import pty
import resource
import select
import socket
import ssl
import tty
from typing import TYPE_CHECKING, Any

import pytest
import trio

from tests.console.channel.consoles import OPENERS
from tests.tools.descriptors import is_open
from tests.tools.limits import HANG
from trio_console._console import devices as _devices
from trio_console._console.channel import open_console
from trio_console._console.descriptor import Descriptors

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator


@contextlib.contextmanager
def no_descriptor_free() -> Iterator[None]:
    """Only descriptors that exist by now can be used."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    free = os.dup(0)
    os.close(free)
    resource.setrlimit(resource.RLIMIT_NOFILE, (free, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


async def refused(device: Any, error: type[Exception], match: str, **limits: int) -> None:
    with pytest.raises(error, match=match):
        async with open_console(device, **limits):
            pass


# What is refused, and left alone


async def test_a_tls_socket_is_refused_and_nothing_is_sent_on_it() -> None:
    ours, theirs = socket.socketpair()
    with theirs:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.check_hostname = False
        with context.wrap_socket(ours, do_handshake_on_connect=False) as tls:
            await refused(tls, TypeError, r"SSLSocket cannot be a console device.*GuestDevice")
            assert tls.fileno() >= 0
            assert os.get_blocking(tls.fileno())
        assert theirs.recv(100) == b""


async def test_a_socket_with_methods_of_its_own_is_refused() -> None:
    class Logged(socket.socket):
        def recv(self, *args: Any) -> bytes:
            return super().recv(*args)

    ours, theirs = socket.socketpair()
    with theirs, Logged(fileno=ours.detach()) as logged:
        await refused(logged, TypeError, "Logged cannot be a console device")


@pytest.mark.parametrize("as_number", [False, True])
async def test_a_listening_socket_is_refused(as_number: bool) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listening:
        await refused(listening.fileno() if as_number else listening, ValueError, "not a listening one")
        assert os.get_blocking(listening.fileno())


@pytest.mark.parametrize("as_number", [False, True])
@pytest.mark.parametrize("family", [socket.AF_INET, socket.AF_UNIX])
async def test_a_socket_that_is_not_connected_is_refused(as_number: bool, family: socket.AddressFamily) -> None:
    with socket.socket(family) as lonely:
        await refused(lonely.fileno() if as_number else lonely, ValueError, "connect it first")
        assert os.get_blocking(lonely.fileno())


@pytest.mark.parametrize("opener", OPENERS)
async def test_a_socket_whose_other_end_has_been_closed_is_a_console_at_its_end(opener: Any) -> None:
    ours, theirs = socket.socketpair()
    theirs.sendall(b"last words")
    theirs.close()
    async with opener(ours) as channel:
        assert b"".join([chunk async for chunk in channel]) == b"last words"


@pytest.mark.parametrize("kind", [socket.SOCK_DGRAM, socket.SOCK_SEQPACKET])
async def test_the_number_of_a_socket_that_is_no_stream_is_refused(kind: socket.SocketKind) -> None:
    ours, theirs = socket.socketpair(socket.AF_UNIX, kind)
    with ours, theirs:
        await refused(ours.fileno(), ValueError, "stream socket")
        assert os.get_blocking(ours.fileno())


@pytest.mark.parametrize("wrong", [True, False, (True, 1), (0, "1"), (0, 1.0), [0, 1]])
async def test_what_only_looks_like_a_number_is_refused(wrong: Any) -> None:
    await refused(wrong, TypeError, "a console device is")


@pytest.mark.parametrize("wrong", [-1, -2, (-1, 0), (0, -1)])
async def test_a_negative_number_is_refused(wrong: Any) -> None:
    blocking = os.get_blocking(0)
    await refused(wrong, ValueError, "descriptor must be 0 or more")
    assert os.get_blocking(0) == blocking


@pytest.mark.parametrize("limits", [{"capacity": 0}, {"max_bytes": -1}])
@pytest.mark.parametrize("as_number", [False, True])
async def test_a_device_given_with_a_wrong_bound_is_left_alone(as_number: bool, limits: dict[str, int]) -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        await refused(ours.fileno() if as_number else ours, ValueError, "at least 1", **limits)
        assert os.get_blocking(ours.fileno())
        ours.sendall(b"still there")
        assert theirs.recv(100) == b"still there"


async def test_a_default_timeout_of_sockets_changes_nothing_about_one_that_is_refused() -> None:
    with socket.socket() as lonely:
        socket.setdefaulttimeout(1)
        try:
            await refused(lonely.fileno(), ValueError, "connect it first")
        finally:
            socket.setdefaulttimeout(None)
        assert os.get_blocking(lonely.fileno())


@pytest.mark.parametrize("as_pair", [False, True])
async def test_a_device_that_no_bell_could_be_made_for_is_closed(as_pair: bool) -> None:
    ours, theirs = socket.socketpair()
    read_fd, write_fd = os.pipe()
    with ours, theirs:
        with no_descriptor_free():
            await refused((read_fd, write_fd) if as_pair else ours, OSError, "Too many open files")
        if as_pair:
            assert not is_open(read_fd)
            assert not is_open(write_fd)
        else:
            os.close(read_fd)
            os.close(write_fd)
            assert theirs.recv(1) == b""


@pytest.mark.parametrize("closed", [0, 1])
def test_the_open_end_of_a_pair_whose_other_is_not_open_is_closed(closed: int) -> None:
    pair = os.pipe()
    os.close(pair[closed])
    with pytest.raises(OSError, match="Bad file descriptor") as caught:
        _devices.as_device(pair)
    assert not is_open(pair[1 - closed])
    del caught  # until here somebody has kept the traceback


def test_a_number_that_is_not_open_is_not_closed_for_the_thread_that_gets_it_next(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    read_fd, write_fd = os.pipe()
    os.close(write_fd)
    others: list[int] = []
    real = _devices._check

    def check(fd: int) -> None:
        if fd == write_fd:
            try:
                real(fd)
            finally:
                others.append(os.open(os.devnull, os.O_RDONLY))
        real(fd)

    monkeypatch.setattr(_devices, "_check", check)
    with pytest.raises(OSError, match="Bad file descriptor"):
        _devices.as_device((read_fd, write_fd))
    assert others == [write_fd]
    assert is_open(write_fd)
    os.close(write_fd)


def test_a_closed_socket_is_an_error_and_closes_nothing_else() -> None:
    ours, theirs = socket.socketpair()
    ours.close()
    with theirs:
        with pytest.raises(OSError, match="Bad file descriptor"):
            _devices.as_device(ours)
        assert is_open(theirs.fileno())


class BrokenSocket(socket.socket):
    """What is borrowed to look at a socket, where the network has failed."""

    def getpeername(self) -> Any:
        raise OSError(errno.ENOBUFS, os.strerror(errno.ENOBUFS))


@pytest.mark.parametrize("as_number", [False, True])
def test_a_socket_that_could_not_be_looked_at_is_closed(monkeypatch: pytest.MonkeyPatch, as_number: bool) -> None:
    ours, theirs = socket.socketpair()
    number = ours.fileno()
    with theirs:
        monkeypatch.setattr(BrokenSocket, "recv", socket.socket.recv)
        monkeypatch.setattr(BrokenSocket, "send", socket.socket.send)
        broken = BrokenSocket(fileno=ours.detach())
        device = broken.detach() if as_number else broken
        monkeypatch.setattr(_devices.socket, "socket", BrokenSocket)
        with pytest.raises(OSError, match="No buffer space") as caught:
            _devices.as_device(device)
        monkeypatch.undo()
        theirs.setblocking(False)
        assert theirs.recv(1) == b""
        assert not is_open(number)
        assert broken.fileno() == -1
        del caught


def test_a_descriptor_that_nothing_can_be_done_with_is_an_error_and_closed(tmp_path: Any) -> None:
    fd = os.open(tmp_path, os.O_PATH)
    with pytest.raises(OSError, match="Bad file descriptor") as caught:
        _devices.as_device(fd)
    assert not is_open(fd)
    del caught


@pytest.mark.parametrize("as_pair", [False, True])
def test_what_no_bell_could_be_made_for_is_closed_although_the_error_is_kept(as_pair: bool) -> None:
    read_fd, write_fd = os.pipe()
    with no_descriptor_free(), pytest.raises(OSError, match="Too many open files") as caught:
        _devices.as_device((read_fd, write_fd) if as_pair else read_fd)
    assert not is_open(read_fd)
    assert is_open(write_fd) != as_pair
    del caught
    if not as_pair:
        os.close(write_fd)


# The flag, which others see


@pytest.mark.parametrize("blocking", [True, False])
@pytest.mark.parametrize("opener", OPENERS)
async def test_a_descriptor_is_blocking_afterwards_for_those_who_share_it_if_it_was(
    opener: Any, blocking: bool
) -> None:
    read_fd, write_fd = os.pipe()
    shared_read, shared_write = os.dup(read_fd), os.dup(write_fd)
    for fd in (read_fd, write_fd):
        os.set_blocking(fd, blocking)
    async with opener((read_fd, write_fd)) as channel:
        assert not os.get_blocking(shared_read)
        await channel.send_all(b"x")
        await channel.send_eof()
    assert (os.get_blocking(shared_read), os.get_blocking(shared_write)) == (blocking, blocking)
    os.close(shared_read)
    os.close(shared_write)


@pytest.mark.parametrize("opener", OPENERS)
async def test_two_numbers_for_one_terminal_keep_it_non_blocking_until_both_are_done(opener: Any) -> None:
    master, slave = pty.openpty()
    tty.setraw(slave)
    other = os.dup(slave)
    kept = os.dup(slave)
    async with opener((slave, other)) as channel:
        await channel.send_all(b"hello")
        assert await trio.to_thread.run_sync(os.read, master, 5) == b"hello"
        await channel.send_eof()
        while is_open(other):
            await trio.lowlevel.checkpoint()
        assert not os.get_blocking(kept)
        os.write(master, b"answer")
        assert await channel.receive_some() == b"answer"
    assert os.get_blocking(kept)
    os.close(kept)
    os.close(master)


def test_a_terminal_stays_non_blocking_while_a_call_of_a_closed_device_has_its_end() -> None:
    master, slave = pty.openpty()
    tty.setraw(slave)
    other, kept = os.dup(slave), os.dup(slave)
    device = _devices.as_device((slave, other))
    assert isinstance(device, _devices.FdDevice)
    end = device._write_end  # as a thread in a write has it
    device.close()
    assert not os.get_blocking(kept)
    del end
    assert os.get_blocking(kept)
    os.close(kept)
    os.close(master)


@pytest.mark.parametrize("opener", OPENERS)
async def test_the_flag_is_put_back_although_a_call_failed_and_its_error_is_kept(opener: Any) -> None:
    ours, theirs = socket.socketpair()
    shared, fd = ours.dup(), ours.fileno()
    shared.setblocking(True)
    with shared, theirs:
        theirs.send(b"never read")
        shared.shutdown(socket.SHUT_WR)
        async with opener(ours) as channel:
            with pytest.raises(trio.BrokenResourceError) as caught:
                while True:
                    await channel.send_all(b"x")
        assert isinstance(caught.value.__cause__, BrokenPipeError)
        assert os.get_blocking(shared.fileno())
        assert not is_open(fd)


# One number twice


@pytest.mark.parametrize("opener", OPENERS)
async def test_one_number_twice_is_that_descriptor_both_ways_and_closed_once(opener: Any) -> None:
    ours, theirs = socket.socketpair()
    fd = ours.detach()
    with theirs:
        async with opener((fd, fd)) as channel:
            await channel.send_all(b"hello")
            await channel.send_eof()
            assert theirs.recv(5) == b"hello"
            assert theirs.recv(5) == b""
            theirs.sendall(b"answer")
            assert await channel.receive_some() == b"answer"
        assert not is_open(fd)


# Telling the end without a descriptor to be had


def socket_pair_device() -> tuple[Any, Callable[[], bytes]]:
    ours, theirs = socket.socketpair()
    return ours, closing(theirs.recv, theirs.close)


def pipes_device() -> tuple[Any, Callable[[], bytes]]:
    to_guest, to_host = os.pipe(), os.pipe()

    def close() -> None:
        os.close(to_guest[0])
        os.close(to_host[1])

    return (to_host[0], to_guest[1]), closing(lambda size: os.read(to_guest[0], size), close)


def closing(read: Callable[[int], bytes], close: Callable[[], None]) -> Callable[[], bytes]:
    def read_all() -> bytes:
        data = b""
        while piece := read(100):
            data += piece
        close()
        return data

    return read_all


@pytest.mark.parametrize("make", [socket_pair_device, pipes_device])
@pytest.mark.parametrize("opener", OPENERS)
async def test_the_end_is_told_without_a_descriptor_to_be_had(opener: Any, make: Any) -> None:
    device, read_all = make()
    async with opener(device) as channel:
        await channel.send_all(b"all there is")
        with no_descriptor_free():
            await channel.send_eof()
            assert await trio.to_thread.run_sync(read_all) == b"all there is"


@pytest.mark.parametrize("opener", OPENERS)
async def test_the_number_of_a_pair_that_was_half_closed_is_closed_once(opener: Any) -> None:
    to_guest, to_host = os.pipe(), os.pipe()
    async with opener((to_host[0], to_guest[1])) as channel:
        await channel.send_eof()
        assert await trio.to_thread.run_sync(os.read, to_guest[0], 1) == b""
        other = os.open(os.devnull, os.O_RDONLY)
        assert other == to_guest[1]
    assert is_open(other)
    for fd in (other, to_guest[0], to_host[1]):
        os.close(fd)


# Terminals


@pytest.mark.parametrize("opener", OPENERS)
async def test_the_end_of_a_terminal_is_end_of_file_for_its_master(opener: Any) -> None:
    master, slave = pty.openpty()
    tty.setraw(slave)
    async with opener(master) as channel:
        os.write(slave, b"last words")
        os.close(slave)
        assert b"".join([chunk async for chunk in channel]) == b"last words"


@pytest.mark.parametrize("opener", OPENERS)
async def test_sending_to_a_terminal_that_is_not_open_is_a_broken_pipe(
    opener: Any,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def no_terminal(_fd: int, _data: object) -> int:
        raise OSError(errno.EIO, "Input/output error")  # not from every kernel: some take the bytes

    master, slave = pty.openpty()
    tty.setraw(slave)
    async with opener(master) as channel:
        monkeypatch.setattr(_devices.os, "write", no_terminal)
        with pytest.raises(trio.BrokenResourceError) as caught:
            while True:
                await channel.send_all(b"x")
        monkeypatch.undo()
        assert isinstance(caught.value.__cause__, BrokenPipeError)
        assert "terminal" in str(caught.value.__cause__)
    os.close(slave)


@pytest.mark.parametrize("opener", OPENERS)
async def test_sending_to_a_terminal_that_is_full_and_was_closed_is_a_broken_pipe(opener: Any) -> None:
    master, slave = pty.openpty()
    tty.setraw(slave)
    with trio.fail_after(HANG):  # a hang, at full speed
        async with opener(master) as channel:
            os.close(slave)
            with pytest.raises(trio.BrokenResourceError) as caught:
                while True:
                    await channel.send_all(bytes(65536))
    assert isinstance(caught.value.__cause__, BrokenPipeError)


class Polls:
    """Stands for `select.poll`: it gives these answers for one descriptor, one after the other."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, fd: int, *answers: int) -> None:
        self.fd = fd
        self.left = list(answers)
        monkeypatch.setattr(_devices.select, "poll", lambda: self)

    def register(self, _fd: int, _events: int) -> None: ...

    def poll(self) -> list[tuple[int, int]]:
        return [(self.fd, self.left.pop(0))]


def test_a_terminal_that_was_opened_again_takes_what_is_written(monkeypatch: pytest.MonkeyPatch) -> None:
    tries = [b"", b"", b"", b"", b"done"]

    def write(_fd: int, data: memoryview) -> int:
        if taken := tries.pop(0):
            return len(taken)
        raise BlockingIOError(errno.EAGAIN, "full")

    read_fd, write_fd = os.pipe()
    device = _devices.as_device((read_fd, write_fd))
    with monkeypatch.context() as patch:
        hup, out = select.POLLHUP, select.POLLOUT
        polls = Polls(patch, write_fd, hup, out, hup, hup | out)
        patch.setattr(_devices.os, "write", write)
        assert device.write(memoryview(b"data")) == 4
    assert polls.left == []
    device.close()


def test_nobody_at_the_other_end_is_end_of_file_for_a_read_that_would_block(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    read_fd, write_fd = os.pipe()
    device = _devices.as_device((read_fd, write_fd))
    with monkeypatch.context() as patch:
        Polls(patch, read_fd, select.POLLHUP, select.POLLHUP)
        assert device.read(100) == b""
    device.close()


@pytest.mark.parametrize("opener", OPENERS)
async def test_an_input_output_error_of_anything_else_stays_one(
    opener: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    read_fd, write_fd = os.pipe()
    real = os.read

    def broken(fd: int, size: int) -> bytes:
        if fd == read_fd:
            raise OSError(errno.EIO, "Input/output error")
        return real(fd, size)

    monkeypatch.setattr(_devices.os, "read", broken)
    async with opener((read_fd, write_fd)) as channel:
        with pytest.raises(trio.BrokenResourceError):
            await channel.receive_some()


def test_an_end_that_is_collected_in_a_cycle_changes_nobody_elses_descriptor() -> None:
    ours, theirs = socket.socketpair()
    other, another = os.pipe()
    os.set_blocking(other, False)
    number = ours.detach()

    class Opens:
        """An object whose finalizer runs between that of the descriptor's owner and that of its end."""

        def __del__(self) -> None:
            os.dup2(other, number)

    parts: list[Any] = [Descriptors((number,)), Opens()]
    parts += [_devices._End(parts[0]), parts]
    with theirs:
        del parts
        gc.collect()
        assert not os.get_blocking(number)
    for fd in (number, other, another):
        os.close(fd)

"""`help` of a public class shows what its user may use, all of it and nothing else, and says what it is."""

from __future__ import annotations

import dataclasses
import inspect
import subprocess
from typing import Any

import pytest
import trio

import trio_console
import trio_console.testing
from tests.tools.limits import HANG
from trio_console._session.net.tcp import GuestTcpStream
from trio_console._session.process.input import StdinStream
from trio_console._session.receiving import IncomingStream

PIPE = subprocess.PIPE

LANE = "abandoned bytes_dropped bytes_in bytes_out current_buffer_bytes current_buffer_used finished"
SERVED = "clients clients_cut clients_refused clients_served sessions session_log slots_quarantined slots_retired"
STATE = "closed encoding errors isatty line_buffering mode name newlines readable seekable writable"
TESTS = "exists is_block_device is_char_device is_dir is_fifo is_file is_mount is_socket is_symlink"
PURE = (
    "anchor as_posix drive is_absolute is_relative_to is_reserved joinpath match name parent parents parts "
    "relative_to root"
)

#: What each public class has beyond what it inherits from other packages.
DOCUMENTED: dict[type, str] = {
    trio_console.AgentConsoleBackend: "read read_wake_fd readinto readv wait_until_writable write writev",
    trio_console.BubblewrapGuest: "run",
    trio_console.ChunkRing: "capacity max_bytes nbytes pop push",
    trio_console.BubblewrapGuest: "run",
    trio_console.CommandGuest: "run",
    trio_console.ConsoleSharedState: "close_wakes guest_gone host_gone rx_ring rx_wake tx_ring tx_wake",
    trio_console.ConsoleStatistics: "closed rx tasks_waiting_receive tasks_waiting_send tx",
    trio_console.ConsoleStream: "send_nowait send_pieces statistics",
    trio_console.Guest: "fork machine open_file open_port open_process open_tcp_stream path ping ready "
    "run_process shutdown statistics touch wait_lost",
    trio_console.GuestDevice: "close close_write read write",
    trio_console.GuestFile: f"{STATE} detach fileno flush peek read read1 readall readinto readinto1 readline "
    "readlines seek tell truncate write writelines",
    trio_console.GuestLostError: "",
    trio_console.GuestPath: f"{PURE} {TESTS} absolute as_uri chmod cwd expanduser glob group hardlink_to home "
    "iterdir lchmod lstat mkdir open owner read_bytes read_text readlink rename replace resolve rglob rmdir "
    "samefile stat stem suffix suffixes symlink_to touch unlink with_name with_stem with_suffix "
    "write_bytes write_text",
    trio_console.GuestProcess: "args kill pid poll resize returncode send_signal stderr stdin stdio stdout "
    "terminate wait",
    trio_console.GuestReady: "agent_version boot_time_ns generation init_time_ns ready_time_ns",
    trio_console.GuestHost: "explain fork kill machine open_port",
    trio_console.GuestSpec: "run",
    trio_console.GuestStatistics: "active_sessions bytes_discarded console frames_dropped frames_received "
    "sessions",
    trio_console.SessionStatistics: "kind name streams",
    trio_console.StreamStatistics: "moved name stalled stalls waiting",
    trio_console.LaneStatistics: f"{LANE} max_buffer_bytes max_buffer_size wakes",
    trio_console.MicroVMGuest: "run",
    trio_console.ProcessGuest: "run",
    trio_console.ProtocolError: "",
    trio_console.Relay: "console_statistics path statistics",
    trio_console.RelayStatistics: f"{SERVED} audit_log bytes_dropped bytes_queued frames_dropped "
    "frames_from_agent frames_refused stalled stalls",
    trio_console.Root: "HOST MINIMAL",
    trio_console.SocketGuest: "run",
    trio_console.Template: "guest load",
    trio_console.UnsupportedByPeer: "",
    trio_console.WakePipe: "close drain fileno wait wake",
    trio_console.testing.DeviceBackend: "read_wake_fd readinto wait_until_writable write",
    trio_console.testing.FakeConsoleDevice: "die guest_eof guest_flush guest_read guest_write resume shutdown "
    "stall statistics violations",
    trio_console.testing.FaultyGuest: "disconnect fired inject resume run send_signal stall statistics wait_fired",
    trio_console.testing.ScriptedGuest: "run",
    trio_console.testing.ScriptedProcess: "signals start",
    # What the methods of a guest give.
    GuestTcpStream: "",
    IncomingStream: "",
    StdinStream: "",
}

CLASSES = [
    thing
    for door in (trio_console, trio_console.testing)
    for name in door.__all__
    if inspect.isclass(thing := getattr(door, name))
]


def shown(cls: type) -> set[str]:
    """The names that `help` shows, beyond those of classes of other packages."""
    foreign = {
        name for base in cls.__mro__ if not base.__module__.startswith("trio_console") for name in dir(base)
    }
    return {name for name in dir(cls) if not name.startswith("_")} - foreign


@pytest.mark.parametrize("cls", DOCUMENTED, ids=lambda cls: cls.__name__)
def test_help_shows_what_a_user_may_use_and_only_that(cls: type) -> None:
    assert shown(cls) == set(DOCUMENTED[cls].split())


def test_every_public_class_is_held_to_its_list() -> None:
    # Faults and counts are data: their fields are their arguments.
    data = {cls for cls in CLASSES if dataclasses.is_dataclass(cls)}
    assert set(CLASSES) - data <= set(DOCUMENTED)


CLASSES_BY_NAME = sorted({*DOCUMENTED, *CLASSES}, key=lambda cls: cls.__name__)


@pytest.mark.parametrize("cls", CLASSES_BY_NAME, ids=lambda cls: cls.__name__)
def test_all_that_help_shows_is_explained(cls: type) -> None:
    text = inspect.getdoc(cls) or ""
    assert text
    for name in shown(cls):
        assert inspect.getdoc(inspect.getattr_static(cls, name)) or name in text, name


async def test_what_a_guest_gives_has_no_other_public_attributes() -> None:
    def check(thing: Any) -> None:
        extra = {name for name in getattr(thing, "__dict__", {}) if not name.startswith("_")}
        assert not extra, (thing, extra)

    with trio.fail_after(HANG):
        async with (
            trio_console.open_guest() as guest,
            guest.open_process(["cat"], stdin=PIPE, stdout=PIPE, stderr=PIPE) as process,
        ):
            for thing in (guest, process, process.stdin, process.stdout, guest.path("/")):
                check(thing)
            for mode in ("r", "rb"):
                async with await guest.open_file("/etc/passwd", mode) as file:
                    check(file)

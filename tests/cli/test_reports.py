"""Log records and warnings on a stderr that nobody reads: they stop nothing, and what was dropped is counted."""

from __future__ import annotations

import logging
import os
import re
import threading
import warnings
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING

from tests.tools.limits import HANG
from trio_console._cli import reports

if TYPE_CHECKING:
    from collections.abc import Iterator

    import pytest

log = logging.getLogger("trio_console.relay")


@contextmanager
def stderr_to(fd: int) -> Iterator[None]:
    saved = os.dup(2)
    os.dup2(fd, 2)
    try:
        yield
    finally:
        os.dup2(saved, 2)
        os.close(saved)


def test_records_and_warnings_are_written(capfd: pytest.CaptureFixture[str]) -> None:
    with reports.reporting():
        log.warning("cut the client in slot %d", 7)
        log.info("not this")
        with warnings.catch_warnings():
            warnings.simplefilter("always")
            warnings.warn("it may still run", RuntimeWarning, stacklevel=1)
    said = capfd.readouterr().err
    assert "trio_console: cut the client in slot 7\n" in said
    assert "it may still run" in said
    assert "not this" not in said


@contextmanager
def full_pipe() -> Iterator[int]:
    """The reading end of a pipe that is full, and stderr's."""
    reader, writer = os.pipe()
    for end in (reader, writer):
        os.set_blocking(end, False)
    with suppress(BlockingIOError):
        while True:
            os.write(writer, bytes(65536))
    os.set_blocking(writer, True)
    try:
        with stderr_to(writer):
            yield reader
    finally:
        os.close(writer)
        os.close(reader)


def read(fd: int) -> bytes:
    try:
        return os.read(fd, 1 << 20)
    except BlockingIOError:
        return b""


def test_a_stderr_that_nobody_reads_stops_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reports, "_LAST_TIME", 0.01)
    with full_pipe() as reader:
        with reports.reporting():
            for number in range(5000):
                log.warning("record %d", number)
        # The thread is still there, and goes on once somebody reads.
        said = b""
        while any(thread.name == "reports on stderr" for thread in threading.enumerate()):
            said += read(reader)
        said += read(reader)  # what it has written since the last look, before it ended
    assert b"trio_console: record 0\n" in said


def test_what_was_dropped_is_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reports, "_ROOM", 1)
    monkeypatch.setattr(reports, "_LAST_TIME", HANG)
    said = b""
    with full_pipe() as reader:
        with reports.reporting():
            for number in range(5):
                log.warning("record %d", number)
            while b"record 0" not in said:
                said += read(reader)
            while b"last" not in said:
                log.warning("last")
                said += read(reader)
        said += read(reader)
    # (It is said once or more, as the thread gets the processor between the records.)
    dropped = sum(map(int, re.findall(rb"(\d+) messages were dropped", said)))
    assert said.count(b"record ") + dropped >= 5

"""Reports of what went wrong: none blocks, and none is left out without being counted."""

from __future__ import annotations

import logging
import os
import sys
from typing import TYPE_CHECKING

import pytest

from trio_console._trio.reports import Limit, LoggedReports, StderrReports

if TYPE_CHECKING:
    from collections.abc import Iterator


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


class Pipe:
    """A pipe, and a stream that writes to it; an error tells where it would block."""

    def __init__(self) -> None:
        self.reading, self.writing = os.pipe()
        self.stream = os.fdopen(self.writing, "w")
        os.set_blocking(self.reading, False)
        os.set_blocking(self.writing, False)

    def fill(self) -> None:
        try:
            while True:
                os.write(self.writing, bytes(4096))
        except BlockingIOError:
            pass

    def read(self) -> str:
        """All that is in it."""
        got = b""
        try:
            while data := os.read(self.reading, 65536):
                got += data
        except BlockingIOError:
            pass
        return got.decode().replace("\0", "")

    def close(self) -> None:
        os.close(self.reading)
        self.stream.close()


@pytest.fixture
def pipe() -> Iterator[Pipe]:
    pipe = Pipe()
    yield pipe
    pipe.close()


@pytest.fixture
def logger(pipe: Pipe) -> Iterator[logging.Logger]:
    """A logger that writes to the pipe alone."""
    logger = logging.getLogger("trio_console.tests")
    handler = logging.StreamHandler(pipe.stream)
    logger.addHandler(handler)
    logger.propagate = False
    yield logger
    logger.removeHandler(handler)
    logger.propagate = True


# Limits


@pytest.mark.parametrize("most", [1, 2, 50])
def test_so_many_reports_may_come_at_once(most: int) -> None:
    limit = Limit(most, 2.0, Clock())
    assert [limit.take() for _ in range(most + 1)] == [True] * most + [False]


def test_more_may_come_with_time_but_never_more_at_once() -> None:
    clock = Clock()
    limit = Limit(3, 2.0, clock)
    while limit.take():
        pass
    clock.now += 0.49
    assert not limit.take()
    clock.now += 0.02
    assert [limit.take() for _ in range(2)] == [True, False]
    clock.now += 3600
    assert [limit.take() for _ in range(4)] == [True, True, True, False]


# By means of logging


def test_a_report_is_logged(pipe: Pipe, logger: logging.Logger) -> None:
    LoggedReports(logger.name).warning("slot %d is %s", 3, "gone")
    assert pipe.read() == "slot 3 is gone\n"


def test_a_report_for_a_pipe_that_is_full_is_left_out_and_told_later(pipe: Pipe, logger: logging.Logger) -> None:
    reports = LoggedReports(logger.name)
    pipe.fill()
    for number in range(7):
        reports.warning("number %d", number)
    reports.tell()
    assert pipe.read() == ""
    reports.warning("the last")
    told = pipe.read().splitlines()
    assert told == ["7 reports were left out: there were too many, or nobody reads them", "the last"]


def test_the_number_is_told_also_if_nothing_more_is_reported(pipe: Pipe, logger: logging.Logger) -> None:
    reports = LoggedReports(logger.name)
    pipe.fill()
    reports.warning("lost")
    pipe.read()
    reports.tell()
    reports.tell()
    assert pipe.read().splitlines() == ["1 reports were left out: there were too many, or nobody reads them"]


def test_too_many_reports_are_left_out_and_told_later(pipe: Pipe, logger: logging.Logger) -> None:
    clock = Clock()
    reports = LoggedReports(logger.name, Limit(5, 1.0, clock))
    for number in range(20):
        reports.warning("%d", number)
    reports.tell()
    assert pipe.read().split() == ["0", "1", "2", "3", "4"]
    clock.now += 1.1
    reports.warning("more")
    assert pipe.read().splitlines() == [
        "15 reports were left out: there were too many, or nobody reads them",
        "more",
    ]


def test_a_report_is_cut_so_that_a_pipe_that_is_writable_takes_it(pipe: Pipe, logger: logging.Logger) -> None:
    LoggedReports(logger.name).warning("%s", "\N{SNOWMAN}" * 10_000)
    assert len(pipe.read().encode()) < 4096


def test_without_a_handler_a_report_waits_for_no_reader_of_stderr(
    pipe: Pipe, logger: logging.Logger, monkeypatch: pytest.MonkeyPatch
) -> None:
    logger.handlers.clear()
    monkeypatch.setattr(sys, "stderr", pipe.stream)
    reports = LoggedReports(logger.name)
    pipe.fill()
    reports.warning("lost")
    pipe.read()
    reports.warning("told")
    assert "1 reports were left out" in pipe.read()


def test_an_exception_is_reported_with_its_traceback(pipe: Pipe, logger: logging.Logger) -> None:
    try:
        raise LookupError("not there")
    except LookupError:
        LoggedReports(logger.name).exception("what %s", "happened")
    told = pipe.read()
    assert told.startswith("what happened\nTraceback")
    assert told.endswith("LookupError: not there\n")


def test_what_nobody_wants_to_hear_does_not_count(pipe: Pipe, logger: logging.Logger) -> None:
    logger.setLevel(logging.CRITICAL)
    try:
        reports = LoggedReports(logger.name, Limit(1, 0.0, Clock()))
        reports.warning("not wanted")
    finally:
        logger.setLevel(logging.NOTSET)
    reports.warning("wanted")
    assert pipe.read() == "wanted\n"


# On stderr


def test_a_report_on_stderr_waits_for_no_reader(pipe: Pipe, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stderr", pipe.stream)
    report = StderrReports("agent")
    report("first")
    assert pipe.read() == "agent: first\n"
    pipe.fill()
    for _ in range(3):
        report("lost")
    assert pipe.read() == ""
    report("last")
    assert pipe.read().splitlines() == [
        "agent: 3 reports were left out: there were too many, or nobody reads them",
        "agent: last",
    ]


def test_too_many_reports_on_stderr_are_left_out(pipe: Pipe, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stderr", pipe.stream)
    report = StderrReports("agent", Limit(2, 1.0, Clock()))
    for _ in range(5):
        report("x")
    assert pipe.read() == "agent: x\n" * 2


def test_a_long_report_on_stderr_is_written_as_far_as_the_pipe_takes_it(
    pipe: Pipe, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "stderr", pipe.stream)
    report = StderrReports("agent")
    for _ in range(20):
        report("x" * 15_000)
    assert 20_000 < len(pipe.read()) < 15_100 * 20


def test_a_program_without_stderr_reports_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stderr", None)
    StderrReports("agent")("lost")

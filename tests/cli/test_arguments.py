"""The arguments of the command line, and its help."""

from __future__ import annotations

import subprocess
import sys

import pytest

import trio_console
from tests.tools.limits import HANG
from trio_console import __main__ as cli


@pytest.mark.parametrize("arguments", [[], ["relay"], ["exec", "--relay", "x"], ["dance"]])
def test_a_command_line_that_makes_no_sense_is_2(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        cli.main(arguments)
    assert caught.value.code == 2
    assert "usage:" in capsys.readouterr().err


@pytest.mark.parametrize("module", ["trio_console", "trio_console.agent"])
def test_both_command_lines_tell_the_version(module: str) -> None:
    done = subprocess.run(
        [sys.executable, "-m", module, "--version"], check=True, capture_output=True, text=True, timeout=HANG
    )
    assert done.stdout == f"trio_console {trio_console.__version__}\n"


def test_the_help_names_both_commands(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        cli.main(["--help"])
    assert caught.value.code == 0
    said = capsys.readouterr().out
    assert "relay" in said
    assert "exec" in said

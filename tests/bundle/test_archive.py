"""The agent in one file: what is in it, which Pythons run it, and how it is written."""

from __future__ import annotations

import glob
import os
import shutil
import stat
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import trio

from tests.tools.limits import HANG
from trio_console import CommandGuest, SocketGuest, open_guest
from trio_console import __main__ as cli
from trio_console._bundle import archive
from trio_console._bundle.archive import BundleError, write_bundle

if TYPE_CHECKING:
    from collections.abc import Iterator

VERSIONS = ("3.11", "3.12", "3.13")
OWN = "{}.{}".format(*sys.version_info[:2])


def interpreter(version: str) -> str:
    """As tests/pythons finds it: on PATH, or the newest that pyenv has. One that is missing is an error."""
    root = os.environ.get("PYENV_ROOT", os.path.expanduser("~/.pyenv"))
    for path in (
        shutil.which(f"python{version}"),
        *sorted(glob.glob(f"{root}/versions/{version}.*/bin/python"))[::-1],
    ):
        if path and subprocess.run([path, "-c", ""], capture_output=True, check=False).returncode == 0:
            return path
    raise FileNotFoundError(f"Python {version} is needed, on PATH or of pyenv")


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("bundle") / "agent.pyz"
    write_bundle(path, VERSIONS)
    return path


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """For this Python only, which needs no pip."""
    path = tmp_path_factory.mktemp("small") / "agent.pyz"
    write_bundle(path, [OWN])
    return path


@pytest.fixture
def empty(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working directory, and in it nothing."""
    directory = tmp_path / "empty"
    directory.mkdir()
    monkeypatch.chdir(directory)
    return directory


@pytest.mark.parametrize("version", VERSIONS)
async def test_a_python_without_packages_runs_it(bundle: Path, version: str, empty: Path) -> None:
    command = [interpreter(version), "-I", "-S", str(bundle), "--stdio"]
    with trio.fail_after(HANG):
        async with open_guest(CommandGuest(command, env={"PATH": os.environ["PATH"]})) as guest:
            done = await guest.run_process(["cat"], stdin=b"through", capture_stdout=True)
            assert done.stdout == b"through"
            await guest.path("made").write_text("here")
    assert [entry.name for entry in empty.iterdir()] == ["made"]


@pytest.mark.parametrize("version", VERSIONS)
async def test_it_waits_for_a_host_on_a_socket(bundle: Path, version: str, empty: Path) -> None:
    command = [interpreter(version), "-I", "-S", str(bundle), "--listen", "socket"]
    with subprocess.Popen(command) as process, trio.fail_after(HANG):  # noqa: ASYNC220
        while not Path("socket").exists():
            assert process.poll() is None
            await trio.sleep(0.001)
        async with open_guest(SocketGuest("socket")) as guest:
            await guest.run_process(["true"])
        assert process.wait(HANG) == 0


def test_it_is_a_program(small: Path, empty: Path) -> None:
    assert stat.S_IMODE(small.stat().st_mode) & 0o111
    assert small.read_bytes().startswith(b"#!/usr/bin/env python3\n")
    env = {"PATH": f"{os.path.dirname(os.path.realpath(sys.executable))}:{os.environ['PATH']}"}
    done = subprocess.run(
        [str(small), "--version"], env=env, capture_output=True, text=True, timeout=HANG, check=True
    )
    assert done.stdout.startswith("trio_console ")


def test_the_same_inputs_make_the_same_bytes(small: Path, tmp_path: Path) -> None:
    again = tmp_path / "elsewhere.pyz"
    program = f"from trio_console._bundle.archive import write_bundle; write_bundle({str(again)!r}, [{OWN!r}])"
    subprocess.run(
        [sys.executable, "-c", program],
        env={**os.environ, "PYTHONHASHSEED": "7", "TZ": "Asia/Tokyo"},
        timeout=HANG,
        check=True,
    )
    assert again.read_bytes() == small.read_bytes()


def test_the_hosts_half_and_tests_are_not_in_it(small: Path) -> None:
    with zipfile.ZipFile(small) as bundle:
        names = bundle.namelist()
    tops = {name.split("/")[0] for name in names}
    assert tops >= {"__main__.py", "trio", "trio_console", "cbor2", "msgspec"}
    assert {"pip", "setuptools", "pytest", "hypothesis", "numpy"} & tops == set()
    assert not [name for name in names if name.startswith("trio_console/_guests/") or "/_tests/" in name]
    assert not [name for name in names if not name.endswith((".py", ".so"))]


def test_a_python_for_which_nothing_was_compiled_is_told_so(small: Path, empty: Path) -> None:
    other = "3.12" if OWN != "3.12" else "3.13"
    command = [interpreter(other), "-I", "-S", str(small), "--stdio"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=HANG, check=False)
    assert done.returncode == 1
    assert f"--python {other} FILE" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    "lack", ["del os.memfd_create", "os.path.exists = lambda path: not path.startswith('/proc/')"]
)
def test_without_files_in_memory_temporary_ones_do(small: Path, tmp_path: Path, lack: str) -> None:
    run = f"runpy.run_path({str(small)!r}, run_name='__main__')"
    program = f"import os, runpy, sys; {lack}; sys.argv[1:] = ['--version']; {run}"
    done = subprocess.run(
        [sys.executable, "-I", "-S", "-c", program],
        env={"TMPDIR": str(tmp_path)},
        capture_output=True,
        text=True,
        timeout=HANG,
        check=True,
    )
    assert done.stdout.startswith("trio_console ")
    assert list(tmp_path.iterdir()) == []


# How it is written


def test_a_bundle_that_cannot_be_finished_leaves_the_old_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "agent.pyz"
    path.write_text("old")

    def fail(*_args: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(archive, "_zip", fail)
    with pytest.raises(OSError, match="No space"):
        write_bundle(path, [OWN])
    assert [(entry.name, entry.read_text()) for entry in tmp_path.iterdir()] == [("agent.pyz", "old")]


def test_wheels_of_other_versions_may_lie_in_a_directory(tmp_path: Path) -> None:
    other = "3.12" if OWN != "3.12" else "3.13"
    with pytest.raises(BundleError, match=r"--wheels.*needs no pip"):
        write_bundle(tmp_path / "agent.pyz", [OWN, other], wheels=str(tmp_path))
    assert list(tmp_path.iterdir()) == []


def test_what_is_no_version_is_refused(tmp_path: Path) -> None:
    with pytest.raises(BundleError, match="'three' is no version of Python"):
        write_bundle(tmp_path / "agent.pyz", ["three"])


# The command


def test_the_command_says_what_it_has_written(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "agent.pyz"
    assert cli.main(["agent-bundle", str(path), "--python", OWN]) == 0
    assert capsys.readouterr().out.startswith(f"{path}: the agent for Python {OWN} on ")


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["no/such/directory/agent.pyz", "--python", OWN], "cannot write 'no/such/directory/agent.pyz'"),
        (["agent.pyz", "--python", "three"], "'three' is no version"),
    ],
)
def test_the_command_says_what_went_wrong(
    arguments: list[str], said: str, empty: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["agent-bundle", *arguments]) == 1
    assert said in capsys.readouterr().err


@pytest.fixture(autouse=True)
def _umask() -> Iterator[None]:
    former = os.umask(0o022)
    yield
    os.umask(former)

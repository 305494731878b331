"""The interpreter that runs an agent: which, with which flags, and where it finds its modules."""

from __future__ import annotations

import json
import os
import pathlib
import shutil
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest
import trio

import trio_console
from tests.tools.limits import HANG
from trio_console import CommandGuest, ProcessGuest, open_guest
from trio_console._guests import interpreter

if TYPE_CHECKING:
    from collections.abc import Mapping

HERE = pathlib.Path(trio_console.__file__).parents[1]

#: Prints what is asked of the agent's own process, by a command of it.
LOOK = """
import sys
sys.path.insert(0, HERE)
import trio
from trio_console import ProcessGuest, open_guest

async def main():
    async with open_guest(ProcessGuest()) as guest:
        done = await guest.run_process("tr '\\\\0' '\\\\n' </proc/$PPID/cmdline", shell=True, capture_stdout=True)
        print(done.stdout.decode(), end="")

trio.run(main)
""".replace("HERE", repr(str(HERE)), 1)


def run(*arguments: str, cwd: pathlib.Path, env: Mapping[str, str] = os.environ) -> str:
    done = subprocess.run(
        [sys.executable, *arguments], cwd=cwd, env=env, capture_output=True, timeout=HANG, check=False
    )
    assert done.stderr == b""
    assert done.returncode == 0
    return done.stdout.decode()


def bait(directory: pathlib.Path, *names: str) -> None:
    """Modules that tell that they were imported, in a directory."""
    for name in names or ("random", "trio", "msgspec", "cbor2", "outcome", "sitecustomize", "trio_console"):
        (directory / f"{name}.py").write_text(f"open({str(directory / 'bitten')!r}, 'w')\n")


# The working directory


async def test_no_module_of_the_agents_working_directory_is_imported(tmp_path: pathlib.Path) -> None:
    bait(tmp_path)
    with trio.fail_after(HANG):
        async with open_guest(ProcessGuest(cwd=tmp_path)) as guest:
            assert (await guest.run_process(["pwd"], capture_stdout=True)).stdout == f"{tmp_path}\n".encode()
    assert not (tmp_path / "bitten").exists()


@pytest.mark.parametrize("entry", ["", ".", "here"])
async def test_a_path_that_is_relative_is_not_handed_on(
    entry: str, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "here").mkdir()
    for directory in (tmp_path, tmp_path / "here"):
        bait(directory)
    monkeypatch.setattr(sys, "path", [entry, *sys.path])
    with trio.fail_after(HANG):
        async with open_guest(ProcessGuest(cwd=tmp_path)):
            pass
    assert not list(tmp_path.rglob("bitten"))


@pytest.mark.parametrize("flags", [(), ("-P",)])
@pytest.mark.parametrize("what", ["trio_console.agent", "trio_console"])
def test_a_program_of_ours_imports_nothing_from_its_working_directory(
    what: str, flags: tuple[str, ...], tmp_path: pathlib.Path
) -> None:
    bait(tmp_path, "random", "trio", "msgspec", "cbor2", "outcome", "argparse")
    assert "trio_console" in run(*flags, "-m", what, "--version", cwd=tmp_path)
    assert not (tmp_path / "bitten").exists()


async def test_the_place_of_this_package_is_handed_on_in_any_case(monkeypatch: pytest.MonkeyPatch) -> None:
    # It may have been found by a relative path.
    monkeypatch.setattr(sys, "path", ["", *(path for path in sys.path if path != str(HERE))])
    exec(interpreter.find_modules(), {})
    assert sys.path[-1] == str(HERE)
    assert "" not in sys.path


@pytest.mark.parametrize("paths", [".", ":/nowhere", "/nowhere:", "here:.:/nowhere"])
async def test_relative_parts_of_pythonpath_are_for_the_commands_only(paths: str, tmp_path: pathlib.Path) -> None:
    (tmp_path / "here").mkdir()
    for directory in (tmp_path, tmp_path / "here"):
        bait(directory)
    env = {**os.environ, "PYTHONPATH": f"{HERE}:{paths}"}
    with trio.fail_after(HANG):
        async with open_guest(ProcessGuest(env=env, cwd=tmp_path)) as guest:
            shown = await guest.run_process(["printenv", "PYTHONPATH"], capture_stdout=True)
    assert shown.stdout.decode() == f"{HERE}:{paths}\n"
    assert not list(tmp_path.rglob("bitten"))


# What sys.path may hold


async def test_an_entry_of_the_path_that_is_no_string_is_passed_over(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bait(tmp_path)
    monkeypatch.setattr(sys, "path", [tmp_path, *sys.path, None, b"/bytes", "/lone\udcff", "/new\nline"])
    with trio.fail_after(HANG):
        async with open_guest() as guest:
            await guest.ping()
    assert not (tmp_path / "bitten").exists()


async def test_a_path_that_is_longer_than_any_argument_is_handed_on(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "path", [*sys.path, *(f"/nowhere/{number:080}" for number in range(4000))])
    with trio.fail_after(HANG):
        async with open_guest() as guest:
            await guest.ping()


async def test_what_the_agent_reads_first_is_not_what_its_commands_read() -> None:
    with trio.fail_after(HANG):
        async with open_guest() as guest:
            where = await guest.run_process("readlink /proc/$PPID/fd/0", shell=True, capture_stdout=True)
    assert where.stdout == b"/dev/null\n"


async def test_an_agent_that_never_reads_its_program_is_given_up(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    deaf = tmp_path / "python"
    # (And another process holds the pipe, so that its end comes with neither's death.)
    deaf.write_text("#!/bin/sh\nexec 3<&0; setsid sleep 1000 <&3 &\nexec sleep 1000 </dev/null\n")
    deaf.chmod(0o755)
    monkeypatch.setattr(sys, "path", [*sys.path, *(f"/nowhere/{number:080}" for number in range(4000))])
    with trio.fail_after(HANG), pytest.raises(trio_console.GuestLostError, match="was not ready within"):
        async with open_guest(ProcessGuest(python=deaf), ready_timeout=0.05):
            pass


# Flags


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ((), ["-P"]),
        (("-P",), ["-P"]),
        (("-I",), ["-I"]),
        (("-E",), ["-P", "-E"]),
        (("-s", "-OO", "-B"), ["-B", "-OO", "-P", "-s"]),
        (("-bb",), ["-bb", "-P"]),
        (
            ("-W", "error", "-X", "utf8", "-X", "faulthandler"),
            ["-P", "-Werror", "-X", "utf8", "-X", "faulthandler"],
        ),
    ],
)
def test_the_agent_has_the_flags_of_the_program(
    given: tuple[str, ...], expected: list[str], tmp_path: pathlib.Path
) -> None:
    env = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
    words = run(*given, "-c", LOOK, cwd=tmp_path, env=env).splitlines()
    begin, end = words[: len(expected) + 1], words[len(expected) + 1 :]
    if "-bb" in given:  # which Python counts as a warning option as well
        end = [word for word in end if not word.startswith("-W")]
    assert (begin, end[:2]) == ([sys.executable, *expected], ["-", "--fd"])


def test_an_isolated_program_has_nothing_of_its_environment_run_in_its_agent(tmp_path: pathlib.Path) -> None:
    bait(tmp_path, "sitecustomize", "usercustomize")
    run("-I", "-c", LOOK, cwd=tmp_path, env={**os.environ, "PYTHONPATH": str(tmp_path)})
    assert not (tmp_path / "bitten").exists()


# Which


async def test_a_frozen_application_is_not_started_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "frozen", True, raising=False)
    with pytest.raises(RuntimeError, match=r"would start itself again .* ProcessGuest\(python="):
        async with open_guest():
            pass


@pytest.mark.parametrize("value", ["", None])
async def test_a_program_without_an_interpreter_is_told_to_name_one(
    value: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "executable", value)
    with pytest.raises(RuntimeError, match=rf"sys\.executable is {value!r}.* ProcessGuest\(python="):
        async with open_guest():
            pass


@pytest.mark.parametrize("lack", ["frozen", "none"])
async def test_the_interpreter_can_be_named(lack: str, monkeypatch: pytest.MonkeyPatch) -> None:
    python = pathlib.Path(sys.executable)
    if lack == "frozen":
        monkeypatch.setattr(sys, "frozen", True, raising=False)
    else:
        monkeypatch.setattr(sys, "executable", None)
    with trio.fail_after(HANG):
        async with open_guest(ProcessGuest(python=python)) as guest:
            shown = await guest.run_process("readlink /proc/$PPID/exe", shell=True, capture_stdout=True)
    assert shown.stdout.decode().strip() == str(python.resolve())


async def test_a_named_interpreter_has_its_own_modules_first(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bait(tmp_path, "random", "contextlib")  # as if they were the standard library of another version
    monkeypatch.setattr(sys, "path", [str(tmp_path), *sys.path])
    with trio.fail_after(HANG):
        async with open_guest(ProcessGuest(python=sys.executable)) as guest:
            await guest.ping()
    assert not (tmp_path / "bitten").exists()


async def test_an_interpreter_with_a_relative_path_is_one_of_this_programs_directory(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(pathlib.Path(sys.executable).parent)
    with trio.fail_after(HANG):
        async with open_guest(
            ProcessGuest(python=f"./{pathlib.Path(sys.executable).name}", cwd=tmp_path)
        ) as guest:
            await guest.ping()


def test_a_bare_name_is_looked_for_in_the_path() -> None:
    assert interpreter.executable("python3") == "python3"


async def test_an_interpreter_that_is_not_there_is_a_file_not_found_error() -> None:
    with pytest.raises(FileNotFoundError) as caught:
        async with open_guest(ProcessGuest(python="/nowhere/python")):
            pass
    assert caught.value.filename == "/nowhere/python"


# The environment


@pytest.mark.skipif(shutil.which("env") is None, reason="prints the environment")
@pytest.mark.parametrize("given", [{"LC_ALL": "C"}, {"LANG": "C"}, {}, {"LC_CTYPE": "C"}, {"LC_CTYPE": "POSIX"}])
@pytest.mark.parametrize("kind", [ProcessGuest, CommandGuest])
async def test_commands_have_the_environment_that_was_given(kind: type, given: dict[str, str]) -> None:
    env = {name: value for name, value in os.environ.items() if not name.startswith(("LC_", "LANG", "PYTHON"))}
    env = {**env, **given, "HOME": "/", "PYTHONPATH": str(HERE)}
    with trio.fail_after(HANG):
        command = [sys.executable, "-P", "-m", "trio_console.agent", "--stdio"]
        spec = ProcessGuest(env=env) if kind is ProcessGuest else CommandGuest(command, env=env)
        async with open_guest(spec) as guest:
            program = "import json, os, sys; json.dump(dict(os.environ), sys.stdout)"
            # (The interpreter that looks must not change what it looks at.)
            look = [sys.executable, "-c", f"import os; os.environ.pop('PYTHONCOERCECLOCALE'); {program}"]
            done = await guest.run_process(look, env={"PYTHONCOERCECLOCALE": "0"}, capture_stdout=True)
    seen = json.loads(done.stdout)
    ours = {name for name in seen if name.startswith("TRIO_CONSOLE_")}
    names = {"HOME", "PATH", *ours}
    assert {name: value for name, value in seen.items() if name not in names} == {
        name: value for name, value in env.items() if name not in names
    }

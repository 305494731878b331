"""The examples do what they say. (`make demo` runs those that a new user sees first.)"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import trio

from tests.guests.machine.conftest import machines as machines  # a fixture
from tests.tools.installing import install
from tests.tools.limits import HANG
from trio_console import CommandGuest, open_guest
from trio_console._bundle.archive import VERSIONS, write_bundle

EXAMPLES = Path(__file__).parents[1] / "examples"


#: Seconds for an example that makes a machine, beside other tests that do.
PATIENCE = 110.0


def run(name: str, *, seconds: float = HANG, **env: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, str(EXAMPLES / name)],
        env={**os.environ, **env},
        capture_output=True,
        text=True,
        timeout=seconds,
        check=False,
    )


def test_an_untrusted_program_is_run_in_namespaces() -> None:
    install("bwrap", "bubblewrap")
    done = run("bubblewrap.py")
    assert done.returncode == 0, done.stderr
    assert done.stdout.endswith("network: lo\nit wrote: sum: 3\n")


def test_without_bubblewrap_the_example_says_what_to_install(tmp_path: Path) -> None:
    done = run("bubblewrap.py", PATH=str(tmp_path))
    assert done.returncode == 1
    assert "install the package bubblewrap" in done.stderr
    assert "Traceback" not in done.stderr


def test_an_untrusted_program_is_run_in_a_machine(machines: None) -> None:
    done = run("microvm.py", seconds=PATIENCE)
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert lines[1].startswith("I am root on Linux ")
    assert {"I have removed /bin/sort", "ended after 5 s", "it has found: 3"} <= set(lines)


def test_without_qemu_the_example_says_what_gets_it(tmp_path: Path) -> None:
    done = run("microvm.py", PATH=str(tmp_path))
    assert done.returncode == 1
    assert "trio-console vm setup" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_service_is_kept_running() -> None:
    done = run("supervised.py")
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert [line.partition(":")[0] for line in lines] == ["done", "lost", "done", "lost", "done"]


def _instructions() -> dict[str, str]:
    lines = (EXAMPLES / "Dockerfile").read_text().splitlines()
    return dict(line.split(" ", 1) for line in lines if re.match("[A-Z]+ ", line))


async def test_a_containers_command_is_a_guest(tmp_path: Path) -> None:
    # The command alone: the container is not built here, which needs a daemon and a registry.
    said = _instructions()
    source, target = said["COPY"].split()
    bundle = tmp_path / source
    await trio.to_thread.run_sync(write_bundle, bundle, ["{}.{}".format(*sys.version_info[:2])])
    python, *options = json.loads(said["ENTRYPOINT"])
    assert python == "python3"
    command = [sys.executable, *(str(bundle) if option == target else option for option in options)]
    with trio.fail_after(HANG):
        async with open_guest(CommandGuest(command, cwd=tmp_path)) as guest:
            done = await guest.run_process(["echo", "here"], capture_stdout=True)
            assert done.stdout == b"here\n"


def test_a_container_has_a_python_that_runs_the_bundle() -> None:
    match = re.fullmatch(r"python:(3\.\d+)-slim", _instructions()["FROM"])
    assert match
    assert match[1] in VERSIONS


@pytest.mark.parametrize("name", sorted(path.name for path in EXAMPLES.glob("*.py")))
def test_an_example_says_how_it_is_run(name: str) -> None:
    assert f"``python examples/{name}``" in (EXAMPLES / name).read_text()

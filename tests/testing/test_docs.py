"""The documentation's examples are run: each page is a project with a conftest and a module of tests."""

from __future__ import annotations

import pathlib
import re
import subprocess
import sys

import pytest

from tests.tools.limits import HANG

DOCS = pathlib.Path(__file__).parents[2] / "docs"
PAGE = DOCS / "testing.md"

BLOCK = re.compile(r"^```python(?: (\w+))?\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def blocks() -> dict[str, str]:
    """The page's blocks of Python, joined, by what their fence says they belong to."""
    found: dict[str, str] = {}
    for name, code in BLOCK.findall(PAGE.read_text(encoding="utf-8")):
        found[name or "test_page"] = found.get(name or "test_page", "") + code + "\n\n"
    return found


def run_pytest(directory: pathlib.Path, *options: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-W", "error", *options, str(directory)],
        cwd=directory,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=HANG,
        check=False,
    )


def test_the_examples_on_testing_pass(tmp_path: pathlib.Path) -> None:
    for name, code in blocks().items():
        (tmp_path / f"{name}.py").write_text(code, encoding="utf-8")
    (tmp_path / "pytest.ini").write_text("[pytest]\ntrio_mode = true\n", encoding="utf-8")
    done = run_pytest(tmp_path)
    tests = blocks()["test_page"].count("def test_")
    assert tests >= 8
    assert done.returncode == 0, done.stdout
    assert f"{tests} passed" in done.stdout


def test_the_example_on_embedding_runs() -> None:
    [code] = [
        code for name, code in BLOCK.findall((DOCS / "embedding.md").read_text(encoding="utf-8")) if not name
    ]
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", code],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=HANG,
        check=False,
    )
    assert (done.returncode, done.stdout) == (0, "")


@pytest.mark.parametrize("name", ["guest", "console_pair"])
def test_an_asynchronous_fixture_says_what_it_needs(tmp_path: pathlib.Path, name: str) -> None:
    (tmp_path / "conftest.py").write_text(
        "import importlib.util\n"
        "find_spec = importlib.util.find_spec\n"
        "importlib.util.find_spec = lambda name: None if name == 'pytest_trio' else find_spec(name)\n"
        "pytest_plugins = ['trio_console.testing.pytest_plugin']\n",
        encoding="utf-8",
    )
    (tmp_path / "test_it.py").write_text(f"def test_it({name}): pass\n", encoding="utf-8")
    done = run_pytest(tmp_path, "-p", "no:trio")
    assert "1 error" in done.stdout
    assert "need pytest-trio, and test_it uses one: pip install pytest-trio" in done.stdout


@pytest.mark.parametrize("name", ["guest", "console_pair"])
def test_an_asynchronous_fixture_is_not_for_other_tests(tmp_path: pathlib.Path, name: str) -> None:
    (tmp_path / "conftest.py").write_text("pytest_plugins = ['trio_console.testing.pytest_plugin']\n")
    (tmp_path / "test_it.py").write_text(
        f"import pytest\ndef test_it({name}): pass\n@pytest.mark.trio\nasync def test_other({name}): pass\n"
    )
    done = run_pytest(tmp_path)
    assert "are for trio tests, and test_it is not one" in done.stdout
    assert "1 passed, 1 error" in done.stdout


def test_no_fixture_leaves_a_descriptor_behind(tmp_path: pathlib.Path) -> None:
    (tmp_path / "conftest.py").write_text("pytest_plugins = ['trio_console.testing.pytest_plugin']\n")
    (tmp_path / "pytest.ini").write_text("[pytest]\ntrio_mode = true\n")
    (tmp_path / "test_it.py").write_text(
        "async def test_it(nothing_left_behind, console_pair, guest, fake_console_device, faulty_guest):\n"
        "    host, other = console_pair\n"
        "    await host.send_all(b'x')\n"
        "    await guest.ping()\n"
    )
    done = run_pytest(tmp_path)
    assert "1 passed" in done.stdout, done.stdout
    assert done.returncode == 0, done.stdout


def test_the_other_fixtures_need_no_pytest_trio(tmp_path: pathlib.Path) -> None:
    (tmp_path / "conftest.py").write_text("pytest_plugins = ['trio_console.testing.pytest_plugin']\n")
    (tmp_path / "test_it.py").write_text(
        "def test_it(console_state, fake_console_device, faulty_guest, nothing_left_behind):\n"
        "    fake_console_device.guest_write(b'x')\n"
    )
    done = run_pytest(tmp_path, "-p", "no:trio")
    assert done.returncode == 0, done.stdout


def test_a_test_that_leaves_something_fails(tmp_path: pathlib.Path) -> None:
    (tmp_path / "conftest.py").write_text("pytest_plugins = ['trio_console.testing.pytest_plugin']\n")
    (tmp_path / "test_it.py").write_text(
        "import os\nimport trio_console.testing._left_behind as module\nmodule._GRACE = 0.0\n"
        "def test_it(nothing_left_behind):\n    os.open(os.devnull, os.O_RDONLY)\n"
    )
    done = run_pytest(tmp_path)
    assert done.returncode == 1, done.stdout
    assert "left behind: descriptor" in done.stdout

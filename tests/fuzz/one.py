"""Run one target: under atheris, guided by the coverage of trio_console; or on given files, as they are.

python -m tests.fuzz.one TARGET [libFuzzer's arguments and corpus folders]
python -m tests.fuzz.one --replay TARGET FILE...    (needs no atheris)
python -m tests.fuzz.one --fixed TARGET             (the same inputs every time; needs no atheris either)
"""

from __future__ import annotations

import importlib
import pathlib
import sys


def main(arguments: list[str]) -> None:
    if arguments[:1] == ["--replay"]:
        replay(arguments[1], arguments[2:])
    elif arguments[:1] == ["--fixed"]:
        from tests.fuzz import fixed

        fixed.run(arguments[1])
    else:
        fuzz(arguments[0], arguments[1:])


def replay(name: str, files: list[str]) -> None:
    from tests.fuzz.targets import TARGETS

    for file in files:
        print(f"{name}: {file}", flush=True)  # noqa: T201
        TARGETS[name](pathlib.Path(file).read_bytes())


def fuzz(name: str, arguments: list[str]) -> None:
    import atheris

    if name not in ("frames", "messages"):
        # The decoder has targets of its own. Imported before, it is not instrumented, which is quicker.
        importlib.import_module("trio_console._wire")
    with atheris.instrument_imports(include=["trio_console"]):
        from tests.fuzz.targets import TARGETS

    # libFuzzer merges in a process of its own, which it starts as it was started: through a shell, by this.
    command = f"{sys.executable} -m tests.fuzz.one {name}"
    atheris.Setup([command, *arguments], TARGETS[name])
    atheris.Fuzz()


if __name__ == "__main__":
    main(sys.argv[1:])

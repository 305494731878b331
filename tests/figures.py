"""Figures of the project's own code, for its maintainers: sizes, depths, lengths and repeated blocks.

    python -m tests.figures [ROOT] [--blocks]

ROOT is another checkout, for comparison; `--blocks` prints the places of every repeated block.
"""

from __future__ import annotations

import argparse
import ast
import json
import pathlib
import re
import statistics
import subprocess
import sys
from collections import defaultdict
from typing import TYPE_CHECKING

from tests.test_imports import floors, modules

if TYPE_CHECKING:
    from collections.abc import Iterator

#: Lines from which on a block that stands twice is counted.
BLOCK = 6

#: Prints, for each public coroutine, whether its docstring or its class's says what cancellation does.
COROUTINES = """
import importlib, inspect, json

def is_coroutine(thing):
    thing = inspect.unwrap(thing)
    return inspect.iscoroutinefunction(thing) or inspect.isasyncgenfunction(thing)

told = {}
for name in ("trio_console", "trio_console.testing", "trio_console.agent"):
    module = importlib.import_module(name)
    for public in module.__all__:
        thing = getattr(module, public)
        if not inspect.isclass(thing):
            if callable(thing) and is_coroutine(thing):
                told[f"{name}.{public}"] = inspect.getdoc(thing) or ""
            continue
        if not thing.__module__.startswith("trio_console"):
            continue
        for method, call in inspect.getmembers(thing, inspect.isfunction):
            own = (call.__module__ or "").startswith("trio_console")
            if own and is_coroutine(call) and (not method.startswith("_") or method == "__anext__"):
                told[f"{name}.{public}.{method}"] = (inspect.getdoc(call) or "") + (inspect.getdoc(thing) or "")
print(json.dumps({name: "cancel" in text.lower() for name, text in told.items()}))
"""


def sources(root: pathlib.Path) -> dict[pathlib.Path, list[str]]:
    return {path: path.read_text(encoding="utf-8").splitlines() for _, path in modules(root)}


def folders(root: pathlib.Path) -> list[pathlib.Path]:
    return sorted({path.parent for _, path in modules(root)})


def count_asserts(lines: list[str]) -> int:
    return sum(isinstance(node, ast.Assert) for node in ast.walk(ast.parse("\n".join(lines))))


def function_lengths(files: dict[pathlib.Path, list[str]]) -> list[int]:
    kinds = (ast.FunctionDef, ast.AsyncFunctionDef)
    trees = (ast.parse("\n".join(lines)) for lines in files.values())
    functions = (node for tree in trees for node in ast.walk(tree) if isinstance(node, kinds))
    return sorted((node.end_lineno or node.lineno) - node.lineno + 1 for node in functions)


def public_coroutines(root: pathlib.Path) -> dict[str, bool]:
    done = subprocess.run([sys.executable, "-c", COROUTINES], cwd=root, capture_output=True, text=True, check=True)
    told: dict[str, bool] = json.loads(done.stdout)
    return told


def _meaningful(lines: list[str]) -> Iterator[tuple[int, str]]:
    """Lines with their numbers and without indentation; no comments, no imports, no closing brackets."""
    for number, line in enumerate(lines, 1):
        text = line.strip()
        if re.search(r"\w", text) and not text.startswith(("#", "import ", "from ")):
            yield number, text


def repeated_blocks(files: dict[pathlib.Path, list[str]]) -> list[list[str]]:
    """The places of every block that stands more than once: a file and the lines, for the longest that repeats."""
    places: dict[tuple[str, ...], list[tuple[pathlib.Path, int]]] = defaultdict(list)
    kept = {path: list(_meaningful(lines)) for path, lines in files.items()}
    for path, lines in kept.items():
        for start in range(len(lines) - BLOCK + 1):
            places[tuple(text for _, text in lines[start : start + BLOCK])].append((path, start))

    def alike(window: list[tuple[pathlib.Path, int]], offset: int) -> bool:
        """Whether a line is the same in all places of a window, counted from its first one."""
        texts = {_text_at(kept[path], start + offset) for path, start in window}
        return len(texts) == 1 and None not in texts

    found = []
    for window in places.values():
        # Where the lines before are the same as well, this window is inside of a longer block.
        if len(window) > 1 and not alike(window, -1):
            length = BLOCK
            while alike(window, length):
                length += 1
            found.append([f"{path}:{kept[path][s][0]}-{kept[path][s + length - 1][0]}" for path, s in window])
    return found


def _text_at(lines: list[tuple[int, str]], index: int) -> str | None:
    return lines[index][1] if 0 <= index < len(lines) else None


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.figures")
    parser.add_argument("root", nargs="?", type=pathlib.Path, default=pathlib.Path(__file__).parents[1])
    parser.add_argument("--blocks", action="store_true")
    args = parser.parse_args()
    root = args.root.resolve()
    package, tests = root / "trio_console", root / "tests"
    code = sources(package)

    print(f"{'folder':32} files floors lines asserts per 1000")
    for folder in folders(package):
        own = {path: lines for path, lines in code.items() if path.parent == folder}
        size, asserts = sum(map(len, own.values())), sum(map(count_asserts, own.values()))
        depth = max(floors(folder, package).values(), default=1)
        name = str(folder.relative_to(root))
        print(f"{name:32} {len(own):5} {depth:6} {size:5} {asserts:7} {1000 * asserts / max(size, 1):8.1f}")
    size, asserts = sum(map(len, code.values())), sum(map(count_asserts, code.values()))
    print(f"{'all':32} {len(code):5} {'':6} {size:5} {asserts:7} {1000 * asserts / size:8.1f}")

    most = max(folders(tests), key=lambda folder: len(list(folder.glob("*.py"))))
    print(f"tests: {len(list(most.glob('*.py')))} files in the fullest folder, {most.relative_to(root)}")
    lengths = function_lengths(code)
    p90 = statistics.quantiles(lengths, n=10)[-1]
    print(
        f"functions: {len(lengths)}, lines: median {statistics.median(lengths):g}, p90 {p90:g}, most {lengths[-1]}"
    )
    told = public_coroutines(root)
    print(f"public coroutines: {len(told)}; with a word on cancellation: {sum(told.values())}")
    for name, files in (("package", code), ("tests", sources(tests))):
        blocks = repeated_blocks(files)
        print(f"blocks of {BLOCK} lines and more that stand more than once in the {name}: {len(blocks)}")
        if args.blocks:
            for block in sorted(blocks):
                print("  " + ", ".join(place.removeprefix(f"{root}/") for place in block))


if __name__ == "__main__":
    main()

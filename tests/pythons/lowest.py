"""Print constraints for pip: each requirement with a lower bound in pyproject.toml, at its lowest version."""

from __future__ import annotations

import pathlib
import re
import sys
import tomllib

_BOUND = re.compile(r"(?P<name>[A-Za-z0-9_.-]+)>=(?P<version>[0-9.]+)(?P<marker>\s*;.*)?")


def constraints(pyproject: str, extras: tuple[str, ...] = ("bench", "test")) -> list[str]:
    """One line for each requirement of the package and of these extras.

    Raises:
        ValueError: a requirement is neither ``name>=version`` nor ``name==version`` nor the package's own extra.
    """
    project = tomllib.loads(pyproject)["project"]
    requirements = [*project["dependencies"]]
    for extra in extras:
        requirements += project["optional-dependencies"][extra]
    lines = []
    for requirement in requirements:
        if requirement.startswith(f"{project['name']}[") or "==" in requirement:
            continue
        bound = _BOUND.fullmatch(requirement)
        if bound is None:
            raise ValueError(f"no lowest version in {requirement!r}")
        lines.append(f"{bound['name']}=={bound['version']}{bound['marker'] or ''}")
    return lines


if __name__ == "__main__":
    text = (pathlib.Path(__file__).parents[2] / "pyproject.toml").read_text(encoding="utf-8")
    sys.stdout.write("\n".join(constraints(text)) + "\n")

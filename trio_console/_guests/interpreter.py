"""The Python that runs our own programs beside this one, such as the agent: which, with which flags and modules.

It is this program's interpreter, with the flags that this program was started with, and it finds its modules where
this program finds its own. So what a user has turned off here (``-I``, ``-s``, ``-S``) is off there, too.

This module must not know what is run.
"""

from __future__ import annotations

import os
import sys
from typing import Final

__all__ = ["absolute_only", "command", "executable", "find_modules", "letters", "place_of_this_package"]

#: The flags without a word of their own: the name in `sys.flags`, and the letter, which is repeated.
_LETTERS: Final = (
    ("debug", "d"),
    ("dont_write_bytecode", "B"),
    ("no_site", "S"),
    ("verbose", "v"),
    ("bytes_warning", "b"),
    ("optimize", "O"),
)


def executable(python: str | None = None) -> str:
    """The path or name of the interpreter: ``python`` if it is given, or else this program's.

    Raises:
        RuntimeError: this program has none that could be started.
    """
    if python is not None:
        # (A relative path would be looked for in the directory of the new process.)
        return os.path.abspath(python) if os.sep in python else python
    if getattr(sys, "frozen", False):
        why = f"it is an application of its own, and would start itself again ({sys.executable})"
    elif not sys.executable:
        why = f"sys.executable is {sys.executable!r}"
    else:
        return sys.executable
    raise RuntimeError(
        f"this program has no Python interpreter that it could start: {why}. Name a Python 3.11 or later, such "
        "as ProcessGuest(python='/usr/bin/python3')"
    )


def command(python: str | None = None) -> list[str]:
    """The interpreter with its flags.

    Raises:
        RuntimeError: as of `executable`.
    """
    options = [name if value is True else f"{name}={value}" for name, value in sys._xoptions.items()]
    return [
        executable(python),
        *letters(),
        *_isolation(),
        *(f"-W{option}" for option in sys.warnoptions),
        *(part for option in options for part in ("-X", option)),
    ]


def letters() -> list[str]:
    """The flags without a word of their own that this program was started with."""
    return [f"-{letter * count}" for name, letter in _LETTERS if (count := int(getattr(sys.flags, name)))]


def _isolation() -> list[str]:
    """The flags against what comes from outside. A working directory is never searched for modules."""
    if sys.flags.isolated:
        return ["-I"]
    flags = ["-P"]
    if sys.flags.ignore_environment:
        flags.append("-E")
    if sys.flags.no_user_site:
        flags.append("-s")
    return flags


def find_modules(*, also: bool = False) -> str:
    """A line of Python that lets a new interpreter find its modules where this program finds its own.

    Only absolute paths are handed over: the others name another place in another working directory. An entry that
    is no string is passed over by the import system here, and so there.

    Args:
        also: only add these places behind the interpreter's own, because it may be of another version.
    """
    paths = [path for path in sys.path if isinstance(path, str) and os.path.isabs(path)]
    # This package may have been found by a path that is left out. Last, so that nothing beside it hides a module.
    if (ours := place_of_this_package()) not in paths:
        paths.append(ours)
    if also:
        return f"import sys; sys.path += [path for path in {paths!a} if path not in sys.path]\n"
    return f"import sys; sys.path[:] = {paths!a}\n"


def absolute_only(paths: str) -> str:
    """A value of ``PYTHONPATH`` without its relative and empty parts.

    These name another place in another working directory, where a new interpreter would look for ``sitecustomize``
    before it runs a line of its program.
    """
    return os.pathsep.join(path for path in paths.split(os.pathsep) if os.path.isabs(path))


def place_of_this_package() -> str:
    """The directory (or archive) in which this package is."""
    return os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))

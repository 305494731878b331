"""The docstrings of the public interface say what a caller has to know.

Public are the names in ``__all__`` of the three doors, the public methods of these classes, and the classes of the
objects that they return, such as a process's streams.
"""

from __future__ import annotations

import functools
import importlib
import inspect
import pkgutil
import re
import types
from typing import TYPE_CHECKING, Any, NamedTuple

import pytest

import trio_console
import trio_console.agent
import trio_console.testing
from trio_console._session.net.tcp import GuestTcpStream
from trio_console._session.process.input import StdinStream
from trio_console._session.receiving import IncomingStream
from trio_console.testing._scripted_process import _Input, _Output

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

DOORS = [trio_console, trio_console.agent, trio_console.testing]

#: Classes of objects that are returned as one of trio's abstract classes, so that no annotation names them.
BEHIND_ABSTRACT = [GuestTcpStream, StdinStream, IncomingStream, _Input, _Output]

#: Public classes whose objects the package makes, so that their constructors are not public.
MADE_BY_THE_PACKAGE = {"Guest", "GuestFile", "GuestPath", "GuestProcess", "Relay", "ScriptedProcess"}

#: Public methods of public classes that the package itself calls, and no user.
CALLED_BY_THE_PACKAGE = {"on_message", "on_error"}


class Thing(NamedTuple):
    """A public class, function or method."""

    name: str
    value: Any
    owner: type | None


@functools.cache
def own_classes() -> dict[str, list[type]]:
    """All classes of the package by their names."""
    found: dict[str, list[type]] = {}
    for module in pkgutil.walk_packages(trio_console.__path__, "trio_console."):
        if not module.name.endswith("__main__"):
            for value in vars(importlib.import_module(module.name)).values():
                if inspect.isclass(value) and value.__module__ == module.name:
                    found.setdefault(value.__name__, []).append(value)
    return found


def unwrapped(member: object) -> Callable[..., Any] | None:
    """The function below a method, a property or a decorator."""
    if isinstance(member, property):
        member = member.fget
    if isinstance(member, staticmethod | classmethod):
        member = member.__func__
    return inspect.unwrap(member) if isinstance(member, types.FunctionType) else None


def is_ours(value: type) -> bool:
    return value.__module__.partition(".")[0] == "trio_console"


def members(cls: type) -> Iterator[tuple[str, object]]:
    """The public members that a class of the package defines or inherits from another one."""
    seen = set()
    for base in cls.__mro__:
        for name, member in vars(base).items():
            if is_ours(base) and name not in seen and not name.startswith("_"):
                seen.add(name)
                yield name, member


def returned(function: Callable[..., Any]) -> set[type]:
    """The public classes of the package that a function's annotation says it returns."""
    annotation = str(function.__annotations__.get("return", ""))
    words = set(re.findall(r"\w+", annotation))
    return {cls for word in words if not word.startswith("_") for cls in own_classes().get(word, [])}


def reachable() -> list[type]:
    """The public classes, and those of the objects that their users get from them."""
    todo: list[type] = [*BEHIND_ABSTRACT]
    for door in DOORS:
        for name in door.__all__:
            value = getattr(door, name)
            if inspect.isclass(value):
                todo.append(value)
            elif inspect.isfunction(value):
                todo += returned(inspect.unwrap(value))
    found: list[type] = []
    while todo:
        cls = todo.pop()
        if cls not in found:
            found.append(cls)
            for _, member in members(cls):
                function = unwrapped(member)
                if function is not None:
                    todo += returned(function)
    return sorted(found, key=lambda cls: f"{cls.__module__}.{cls.__qualname__}")


def things() -> Iterator[Thing]:
    for door in DOORS:
        for name in door.__all__:
            value = getattr(door, name)
            if inspect.isroutine(value):
                yield Thing(f"{door.__name__}.{name}", value, None)
    for cls in reachable():
        yield Thing(f"{cls.__module__}.{cls.__qualname__}", cls, None)
        for name, member in members(cls):
            if name not in CALLED_BY_THE_PACKAGE and (
                unwrapped(member) is not None or isinstance(member, property)
            ):
                yield Thing(f"{cls.__module__}.{cls.__qualname__}.{name}", member, cls)


THINGS = list(things())

every_thing = pytest.mark.parametrize("thing", THINGS, ids=lambda thing: thing.name.removeprefix("trio_console."))


def docstring(thing: Thing) -> str:
    """The docstring of a thing, or that of the same method of a base class, if it is one of this package."""
    if thing.owner is not None:
        name = thing.name.rpartition(".")[2]
        for base in thing.owner.__mro__:
            # (`None` has a docstring from Python 3.13 on.)
            text = vars(base)[name].__doc__ if name in vars(base) else None
            if is_ours(base) and text:
                return str(text)
        return ""
    return thing.value.__doc__ or ""


def is_waited_for(value: object) -> bool:
    """Whether a function is a coroutine, or gives an async context manager."""
    function = unwrapped(value)
    if function is None:
        return False
    return inspect.iscoroutinefunction(function) or inspect.isasyncgenfunction(function)


def arguments(thing: Thing) -> list[str]:
    """The names of the arguments that a caller gives."""
    if inspect.isclass(thing.value):
        maker: object = vars(thing.value).get("__init__")
        public = thing.value.__name__ in {name for door in DOORS for name in door.__all__} - MADE_BY_THE_PACKAGE
        if not public or issubclass(thing.value, BaseException):
            return []
    else:
        maker = thing.value
    function = None if isinstance(maker, property) else unwrapped(maker)
    if function is None:
        return []
    return [name for name in inspect.signature(function).parameters if name not in ("self", "cls")]


def entries(doc: str) -> set[str]:
    """The names under ``Args:`` and ``Attributes:`` of a docstring."""
    found: set[str] = set()
    heading = ""
    for line in inspect.cleandoc(doc).splitlines():
        if re.match(r"\S.*:$", line):
            heading = line
        elif heading in ("Args:", "Attributes:") and (match := re.match(r" {4}(\w+(?:, \w+)*):", line)):
            found.update(match.group(1).split(", "))
    return found


@every_thing
def test_every_public_thing_has_a_docstring(thing: Thing) -> None:
    assert docstring(thing).strip(), f"{thing.name} has no docstring"


@every_thing
def test_every_public_coroutine_says_what_cancellation_leaves_behind(thing: Thing) -> None:
    if is_waited_for(thing.value):
        said = docstring(thing) + ("" if thing.owner is None else thing.owner.__doc__ or "")
        assert "cancel" in said.lower(), f"{thing.name} does not say what a cancellation leaves behind"


@every_thing
def test_every_argument_of_a_function_with_three_or_more_is_told(thing: Thing) -> None:
    names = arguments(thing)
    if len(names) >= 3:
        missing = set(names) - entries(docstring(thing))
        assert not missing, f"{thing.name} does not say what these arguments are: {sorted(missing)}"


def test_the_search_reaches_the_streams_files_and_paths() -> None:
    found = {cls.__name__ for cls in reachable()}
    assert {"StdinStream", "IncomingStream", "GuestTcpStream", "GuestFile", "GuestPath", "Relay"} <= found
    assert sum(is_waited_for(thing.value) for thing in THINGS) > 70

"""The mutants that are kept.

A mutant is an operator at a place, or a change by hand. Both are identified by the text that they change, so a
mutant stays the same when lines move. If its text is gone (or, for a change by hand, is there more than once) the
mutant is *stale*, which is an error until its entry is put right.
"""

from __future__ import annotations

import dataclasses
import json
import pathlib
import tomllib
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from tests.mutants.operators import OPERATORS, sites, squeeze

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from tests.mutants.operators import Site

__all__ = ["ROOT", "TABLE", "Mutant", "StaleError", "check", "load", "path_of", "room_of", "save"]

ROOT: Final = pathlib.Path(__file__).parents[2]
TABLE: Final = pathlib.Path(__file__).parent / "table"

#: Which file of the table a module's mutants are in, by the first name that fits.
_ROOMS: Final = (
    ("_console.devices", "channel"),
    ("_console.workers", "channel"),
    ("_console.stream", "channel"),
    ("_console.channel", "channel"),
    ("_console.", "console"),
    ("_wire.outbox", "outbox"),
    ("_wire.", "wire"),
    ("_session.", "session"),
    ("_relay.", "relay"),
    ("agent.", "agent"),
    ("", "open"),
)


class StaleError(Exception):
    """The text that a mutant changes is not in the source, not as often as the table says, or indented deeper."""


@dataclass(frozen=True, kw_only=True)
class Mutant:
    """One mutant.

    Attributes:
        module: of the package, without the package's name.
        operator, where, text, nth: the operator, the function or class, the text of the site, and which of
            several with the same text (from 0).
        name, old, new: of one by hand: what is wrong with it, the text that is replaced (it is in the file once),
            and its replacement.
        finder: what finds it: node ids of pytest, ``corpus:TARGET`` (the inputs that are kept, played again), or
            ``fuzz:TARGET`` (those, and a fixed number of others).
        seconds: the time that took.
        hangs: the finder does not end with this one, so it is not waited for as long as others.
        machines: the finder starts virtual machines, so this one is not in the sample.
        breaks: the message of the assert by which the finder finds it, if it is found by one: the fact that does
            not hold any more.
        equivalent: why it is no fault. A finder of such a one has to pass.
    """

    module: str
    operator: str = ""
    where: str = ""
    text: str = ""
    nth: int = 0
    name: str = ""
    old: str = ""
    new: str = ""
    finder: tuple[str, ...] = ()
    seconds: float = 0.0
    hangs: bool = False
    machines: bool = False
    breaks: str = ""
    equivalent: str = ""

    @property
    def id(self) -> str:
        if self.operator:
            place = f"{self.module}:{self.where}:{self.operator}:{self.text}"
            return f"{place}:{self.nth}" if self.nth else place
        return f"{self.module}:{self.name}"

    @classmethod
    def of_site(cls, module: str, site: Site, all_sites: Iterable[Site]) -> Mutant:
        alike = [other for other in all_sites if _key(other) == _key(site)]
        return cls(
            module=module,
            operator=site.operator,
            where=site.qualname,
            text=site.text,
            nth=alike.index(site),
        )

    def check(self) -> None:
        """Raise `ValueError` for an entry that is not valid in itself."""
        if bool(self.operator) == bool(self.name):
            raise ValueError(f"{self.id}: a mutant has an operator or a name")
        if self.operator and self.operator not in OPERATORS:
            raise ValueError(f"{self.id}: no such operator; there are {', '.join(OPERATORS)}")
        if self.name and not self.old:
            raise ValueError(f"{self.id}: say what is changed by hand, with `old` and `new`")
        if not self.finder and not self.equivalent:
            raise ValueError(f"{self.id}: say what finds it, or why it is no fault")

    def apply(self, source: bytes) -> bytes:
        """The mutated source. Raises `StaleError`."""
        if self.operator:
            wanted = (self.where, self.operator, self.text)
            alike = [site for site in sites(source) if _key(site) == wanted]
            if len(alike) <= self.nth:
                raise StaleError(f"stale: {self.id}\n    there are {len(alike)} such places in {self.where} now")
            return alike[self.nth].apply(source)
        text = source.decode()
        if text.count(self.old) != 1:
            raise StaleError(f"stale: {self.id}\n    its text is {text.count(self.old)} times in the module now")
        if self.old.startswith(" ") and text.partition(self.old)[0].endswith(" "):
            raise StaleError(f"stale: {self.id}\n    its text is indented deeper in the module now")
        return text.replace(self.old, self.new).encode()


def _key(site: Site) -> tuple[str, str, str]:
    return site.qualname, site.operator, site.text


def path_of(module: str, root: pathlib.Path = ROOT) -> pathlib.Path:
    """The file of a module."""
    path = root.joinpath("trio_console", *module.split("."))
    return path / "__init__.py" if path.is_dir() else path.with_suffix(".py")


def room_of(module: str) -> str:
    return next(room for prefix, room in _ROOMS if module.startswith(prefix))


def load(folder: pathlib.Path = TABLE) -> list[Mutant]:
    """All mutants, in the order of the files and in them."""
    return list(_load(folder))


def _load(folder: pathlib.Path) -> Iterator[Mutant]:
    for file in sorted(folder.glob("*.toml")):
        for entry in tomllib.loads(file.read_text(encoding="utf-8"))["mutant"]:
            mutant = Mutant(**{**entry, "finder": tuple(entry.get("finder", ()))})
            mutant.check()
            yield mutant


def check(mutants: Iterable[Mutant], root: pathlib.Path = ROOT) -> list[str]:
    """What is wrong with the table: mutants that are stale, twice in it, or change nothing."""
    wrong: list[str] = []
    seen: set[str] = set()
    for mutant in mutants:
        if mutant.id in seen:
            wrong.append(f"twice: {mutant.id}")
        seen.add(mutant.id)
        path = path_of(mutant.module, root)
        if not path.exists():
            wrong.append(f"stale: {mutant.id}\n    there is no such module")
            continue
        source = path.read_bytes()
        try:
            mutated = mutant.apply(source)
        except StaleError as exc:
            wrong.append(str(exc))
            continue
        if squeeze(mutated.decode()) == squeeze(source.decode()):
            wrong.append(f"the same: {mutant.id}\n    it changes nothing")
    return wrong


# Writing it back


def save(mutants: Iterable[Mutant], folder: pathlib.Path = TABLE) -> None:
    """Write the files anew, each with its room's mutants."""
    rooms: dict[str, list[Mutant]] = {}
    for mutant in mutants:
        rooms.setdefault(room_of(mutant.module), []).append(mutant)
    for room, members in rooms.items():
        members.sort(key=lambda mutant: mutant.module)
        text = "\n".join(map(_entry, members))
        (folder / f"{room}.toml").write_text(text, encoding="utf-8")


def _entry(mutant: Mutant) -> str:
    lines = ["[[mutant]]"]
    for field in dataclasses.fields(mutant):
        value = getattr(mutant, field.name)
        if value != field.default or field.name in ("module", "new" if mutant.name else "module"):
            lines.append(f"{field.name} = {_value(value)}")
    return "\n".join(lines) + "\n"


def _value(value: Any) -> str:
    if isinstance(value, str) and "\n" in value and "'''" not in value:
        return f"'''\n{value}'''"
    if isinstance(value, tuple):
        if len(value) == 1:
            return f"[{_value(value[0])}]"
        return "[\n" + "".join(f"    {_value(item)},\n" for item in value) + "]"
    if isinstance(value, str) and "'" not in value and "\n" not in value and ('"' in value or "\\" in value):
        return f"'{value}'"
    return json.dumps(value, ensure_ascii=False)

"""The mutants that each operator makes of a piece of source."""

from __future__ import annotations

import textwrap

import pytest

from tests.mutants.operators import OPERATORS, sites, squeeze


def made(operator: str, source: str) -> list[str]:
    raw = textwrap.dedent(source).encode()
    return [squeeze(site.apply(raw).decode()) for site in sites(raw) if site.operator == operator]


@pytest.mark.parametrize(
    ("operator", "source", "mutants"),
    [
        ("compare", "x = 0 <= a < b", ["x = 0 < a < b", "x = 0 <= a <= b"]),
        ("compare", "x = a is not  None", ["x = a is None"]),
        ("compare", "x = (a) == (b)", ["x = (a) != (b)"]),
        ("compare", "x = a not in b", ["x = a in b"]),
        ("negate", "while a or b: pass", ["while not (a or b): pass"]),
        ("operand", "x = a and b", ["x = True and b", "x = a and True"]),
        ("operand", "x = a or b", ["x = False or b", "x = a or False"]),
        ("bound", "x = f(1, y - 2)", ["x = f(2, y - 2)", "x = f(1, y - 3)"]),
        ("arithmetic", "x = a - b", ["x = a + b"]),
        ("least", "x = min(a, b)", ["x = max(a, b)"]),
        ("drop", "x.y = 1\nx = 1\nf()\nx += 1\ndel x", [
            "pass x = 1 f() x += 1 del x",
            "x.y = 1 x = 1 pass x += 1 del x",
            "x.y = 1 x = 1 f() pass del x",
            "x.y = 1 x = 1 f() x += 1 pass",
        ]),
        ("drop", "async def f(): await trio.lowlevel.checkpoint()", []),
        ("checkpoint", "async def f(): await trio.lowlevel.checkpoint()", ["async def f(): pass"]),
        ("count", "x += 1\ny -= 2", ["x = 1 y -= 2", "x += 1 y = 2"]),
        ("flag", "x = True\nf(a, shield=True)", ["x = False f(a, shield=True)", "x = True f(a, shield=False)"]),
        ("guard", "def f():\n if a:\n  return\n g()", ["def f(): pass g()"]),
        ("guard", "def f():\n if a:\n  return\n else:\n  b()\n g()", []),
        ("hollow", "def f() -> None:\n 'text'\n a()\n b()", ["def f() -> None: 'text' return"]),
        ("hollow", "def f() -> int:\n return 1", []),
        ("finally", "try: a()\nfinally:\n b()\n c()", ["try: a() finally: pass"]),
        ("reraise", "try: a()\nexcept E: b()", ["try: a() except E: raise"]),
        ("unlocked", "with a.lock: b()", ["if True: b()"]),
        ("unlocked", "with a as b: c()", []),
        ("deadline", "with trio.move_on_after(f(1)): a()", ['with trio.move_on_after(float("inf")): a()']),
    ],
)  # fmt: skip
def test_an_operator_turns_what_it_is_for(operator: str, source: str, mutants: list[str]) -> None:
    assert made(operator, source) == mutants


def test_every_operator_says_what_it_does() -> None:
    assert all(operator.__doc__ for operator in OPERATORS.values())


def test_what_only_type_checkers_read_is_left_alone() -> None:
    assert made("drop", "if TYPE_CHECKING:\n    f()\n") == []


def test_text_that_is_not_ascii_moves_nothing() -> None:
    assert made("compare", "x = 'ä⟦'; y = a < b") == ["x = 'ä⟦'; y = a <= b"]


def test_a_site_is_known_by_its_function_and_text_and_not_by_its_line() -> None:
    source = b"class A:\n    def f(self):\n        return self.a < 1\n"
    [site] = [site for site in sites(source) if site.operator == "compare"]
    [moved] = [site for site in sites(b"\n\n" + source) if site.operator == "compare"]
    assert (site.qualname, site.text) == (moved.qualname, moved.text) == ("A.f", "self.a ⟦<⟧ 1")

"""Files of the guest behave like those of `trio.open_file`: the same script runs on both."""

from __future__ import annotations

import io
from functools import partial
from typing import TYPE_CHECKING, Any

import pytest
import trio
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.session.files._fake_files import serving_files
from tests.tools.limits import HANG

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

CONTENTS = b"first\nsecond line\r\nthird\rfourth, \xc3\xa4\xe2\x82\xac\n\nlast without end"


async def outcome(call: Callable[[], Any]) -> Any:
    """The result of a step, in a form that can be compared."""
    try:
        value = await call()
    except Exception as exc:
        return type(exc), getattr(exc, "errno", None)
    return value if isinstance(value, (bytes, str, int, list, type(None))) else type(value)


async def play(open_file: Callable[[], Any], steps: list[Any]) -> list[Any]:
    """Run steps on a file: method name and arguments. Positions are remembered by number."""
    results: list[Any] = []
    try:
        file = await open_file()
    except Exception as exc:
        return [(type(exc), getattr(exc, "errno", None))]
    marks: list[int] = []
    is_text = isinstance(getattr(file, "encoding", None), str)
    async with file:
        for name, *args in steps:
            if name == "mark":
                got = await outcome(file.tell)
                if isinstance(got, int):
                    marks.append(got)
                    got = "a position"
                results.append(got)
            elif name == "back":
                if marks:
                    got = await outcome(partial(file.seek, marks[args[0] % len(marks)]))
                    results.append("a position" if isinstance(got, int) else got)
            else:
                got = await outcome(partial(getattr(file, name), *args))
                if isinstance(got, int) and (got >> 64 or (name == "seek" and args == [0, 1] and is_text)):
                    got = "a position"  # a position that is more than an offset differs between implementations
                results.append((name, args, got))
        results += [file.closed]
        for name in ("readable", "writable", "seekable", "isatty"):
            results.append((name, getattr(file, name)()))
    results.append(file.closed)
    results.append(await outcome(file.flush))
    return results


async def same(tmp_path: Path, contents: bytes | None, mode: str, steps: list[Any], **options: Any) -> list[Any]:
    here, there = tmp_path / "here", tmp_path / "there"
    for path in (here, there):
        path.unlink(missing_ok=True)
        if contents is not None:
            path.write_bytes(contents)
    if "b" not in mode:
        options.setdefault("encoding", "utf-8")
    expected = await play(partial(trio.open_file, here, mode, **options), steps)
    async with serving_files() as (talk, _):
        with trio.fail_after(HANG):
            got = await play(lambda: talk.guest.open_file(there, mode, **options), steps)
    assert got == expected
    assert here.exists() == there.exists()
    if here.exists():
        assert there.read_bytes() == here.read_bytes()
    return got


MODES = ["r", "r+", "w", "w+", "a", "a+", "x", "x+"]

READS: list[Any] = [
    ("read", 3), ("readline",), ("read", 0), ("readline", 2), ("mark",), ("readline", 0),
    ("read", -1), ("read",), ("back", 0), ("readlines",), ("back", 0), ("readlines", 4),
    ("seek", 0), ("read", None), ("seek", 0, 2), ("read",), ("seek", 0), ("readline",),
    ("seek", 0, 1), ("readline",),
]  # fmt: skip


@pytest.mark.parametrize("mode", ["r", "rb", "r+", "rb+"])
@pytest.mark.parametrize("contents", [CONTENTS, b"", b"\n", b"\r", b"\r\n", b"x" * 70_000 + b"\n" + b"y" * 70_000])
async def test_reading_is_as_in_io(tmp_path: Path, mode: str, contents: bytes) -> None:
    await same(tmp_path, contents, mode, READS)


@pytest.mark.parametrize("newline", [None, "", "\n", "\r", "\r\n"])
async def test_line_ends_are_as_in_io(tmp_path: Path, newline: str | None) -> None:
    await same(tmp_path, CONTENTS, "r", READS, newline=newline)
    contents = b"a\r\nb\rc\n" * 5000
    await same(tmp_path, contents, "r", [("readline",)] * 12 + [("read",)], newline=newline)
    await same(tmp_path, None, "w+", [("write", "a\nb\r\nc\rd"), ("seek", 0), ("readlines",)], newline=newline)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("binary", [False, True])
@pytest.mark.parametrize("contents", [CONTENTS, None])
async def test_every_mode_allows_what_it_allows_in_io(
    tmp_path: Path, mode: str, binary: bool, contents: bytes | None
) -> None:
    data: Any = b"new\xff\n" if binary else "neü\n"
    steps = [
        *[("tell",), ("write", data), ("tell",), ("flush",), ("seek", 0), ("read", 4)],
        # io reads from its buffer, as if the write had been made in the middle; in truth it was appended.
        ("seek", 0, 2) if "a" in mode else ("seek", 2),
        *[("tell",), ("write", data), ("seek", 0), ("read",), ("truncate", 3), ("seek", 0), ("read",)],
        *[("seek", 0, 2), ("tell",), ("writelines", [data, data]), ("truncate",), ("seek", 0), ("readlines",)],
    ]
    await same(tmp_path, contents, mode + ("b" if binary else ""), steps)


@pytest.mark.parametrize(
    "steps",
    [
        [("seek", -1)],
        [("seek", 1, 1)],
        [("seek", -3, 2), ("read",)],
        [("seek", 3, 2), ("read",), ("tell",)],
        [("seek", 0, 7)],
        [("seek", "x")],
        [("write", 3)],
        [("read", "x")],
        [("truncate", -1)],
    ],
)
@pytest.mark.parametrize("mode", ["r+", "rb+"])
async def test_nonsense_is_refused_as_in_io(tmp_path: Path, mode: str, steps: list[Any]) -> None:
    await same(tmp_path, CONTENTS, mode, [("read", 1), *steps] if steps[0][0] != "seek" else steps)


ODD: list[Any] = [-5, -2, 2**63, -(2**63) - 1, 2**70, 1.5, "1", b"1", True, [], None]


@pytest.mark.parametrize("mode", ["rb", "rb+", "r", "r+"])
@pytest.mark.parametrize("buffering", [-1, 0])
@pytest.mark.parametrize("number", ODD, ids=repr)
async def test_odd_sizes_are_as_in_io(tmp_path: Path, mode: str, buffering: int, number: Any) -> None:
    methods = ["read", "readline", "readlines", *(["read1", "peek"] if mode == "rb" and buffering else [])]
    steps: list[Any] = [("read", 2)]
    for name in methods:
        steps += [(name, number), ("read", 3), ("seek", 2)]
    if mode.endswith("+"):
        steps += [("truncate", number), ("read", 3)]
    await same(tmp_path, CONTENTS, mode, steps, buffering=buffering if "b" in mode else -1)


# (Of a ``whence`` that is none an unbuffered file of io asks the system, and has no positions any more then.)
@pytest.mark.parametrize(
    ("buffering", "whence"),
    [(size, how) for size in (-1, 0) for how in (0, 1, 2, None, 1.5)] + [(-1, -1), (-1, 5)],
)
async def test_odd_positions_are_as_in_io(tmp_path: Path, buffering: int, whence: Any) -> None:
    targets = [0, -5, 2**63, -(2**63) - 1, *([] if whence == 0 else [2**63 - 1])]
    steps: list[Any] = [
        step for target in targets for step in (("read", 2), ("seek", target, whence), ("read", 2))
    ]
    steps += [("seek", target, 0) for target in ("1", None, 1.5, [])]
    await same(tmp_path, CONTENTS, "rb", steps, buffering=buffering)


@pytest.mark.parametrize("whence", [0, 1, 2, -1, 5, None, 1.5], ids=repr)
async def test_odd_positions_of_text_are_as_in_io(tmp_path: Path, whence: Any) -> None:
    await same(tmp_path, CONTENTS, "r", [("read", 2), ("seek", 0, whence), ("seek", -5, whence), ("read", 2)])


@pytest.mark.parametrize("name", ["readinto", "readinto1"])
async def test_what_cannot_be_read_into_takes_no_bytes(tmp_path: Path, name: str) -> None:
    steps: list[Any] = []
    for buffer in (b"const", memoryview(b"const"), "text", 5, None):
        steps += [(name, buffer), ("read", 2)]
    await same(tmp_path, CONTENTS, "rb", steps)


@pytest.mark.parametrize("encoding", ["utf-8", "latin-1", "utf-16", "utf-8-sig", "ascii", "cp1252"])
@pytest.mark.parametrize("mode", ["w", "a", "r+", "w+"])
async def test_encodings_write_their_marks_as_in_io(tmp_path: Path, encoding: str, mode: str) -> None:
    steps = [("write", "one\n"), ("write", "two"), ("seek", 0), ("readline",), ("mark",), ("read",), ("back", 0)]
    contents = "zero\nnull\n".encode(encoding)
    await same(tmp_path, contents, mode, [*steps, ("read",)], encoding=encoding)


@pytest.mark.parametrize("errors", ["strict", "replace", "ignore", "surrogateescape"])
async def test_bytes_that_are_no_text_are_dealt_with_as_in_io(tmp_path: Path, errors: str) -> None:
    await same(tmp_path, b"ab\xffcd\n\xe2\x82", "r", [("readline",), ("read",)], errors=errors)


TEXT_ONLY = ("encoding", "errors", "newline")


@pytest.mark.parametrize(
    ("mode", "options"),
    [
        *[(mode, {}) for mode in ("", "q", "rw", "rr", "bt", "rbt", "b", "+", "wa", "r++", "U")],
        ("rb", {"encoding": "utf-8"}),
        ("rb", {"errors": "strict"}),
        ("rb", {"newline": ""}),
        ("r", {"newline": "x"}),
        ("r", {"encoding": "no such"}),
        ("r", {"encoding": "hex"}),
        ("r", {"buffering": 0}),
        ("rb", {"encoding": "locale"}),
        ("r", {"closefd": False}),
        *[(mode, {}) for mode in ("r\0", "\udcfe")],
        *[
            ("r", {name: odd})
            for name in ("encoding", "errors", "newline")
            for odd in (42, b"x", "\udcfe", "\n\0")
        ],
        *[("rb", {name: 42}) for name in ("encoding", "errors", "newline")],
        *[(mode, {"buffering": odd}) for mode in ("r", "rb") for odd in ("x", None, 2.5, 2**31, -(2**31) - 1)],
    ],
)
async def test_what_open_refuses_is_refused(tmp_path: Path, mode: str, options: dict[str, Any]) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"contents")
    with pytest.raises((ValueError, LookupError, TypeError, OverflowError)) as expected:
        await trio.open_file(path, mode, **options)
    async with serving_files() as (talk, files):
        with pytest.raises(expected.type):
            await talk.guest.open_file(path, mode, **options)
        assert not files.ops


@pytest.mark.parametrize("mode", [f"{kind}{plus}{text}" for kind in "rwax" for plus in ("", "+") for text in "bt"])
@pytest.mark.parametrize("buffering", [-1, 0])
async def test_the_mode_is_written_as_in_io(tmp_path: Path, mode: str, buffering: int) -> None:
    if "t" in mode and not buffering:
        return
    here, there = tmp_path / "here", tmp_path / "there"
    for path in (here, there):
        if "x" not in mode:
            path.touch()
    async with await trio.open_file(here, mode, buffering) as file:
        expected = file.mode
    async with serving_files() as (talk, _), await talk.guest.open_file(there, mode, buffering) as opened:
        assert opened.mode == expected


@pytest.mark.parametrize("mode", ["rb", "rb+", "r"])
async def test_further_methods_are_as_in_io(tmp_path: Path, mode: str) -> None:
    steps: list[Any] = [("readline", None), ("readlines", None), ("seek", 0), ("readline", 3)]
    await same(tmp_path, CONTENTS, mode, steps)
    if mode == "r":
        return

    async def run(open_file: Callable[[], Any]) -> list[Any]:
        results: list[Any] = []
        file = await open_file()
        buffer = bytearray(9)
        results += [await outcome(partial(file.readinto1, buffer)), bytes(buffer)]
        results.append(await outcome(partial(file.readinto, memoryview(buffer)[:3])))
        raw = await file.detach()
        results += [await outcome(file.flush), await outcome(file.detach), await outcome(file.aclose)]
        results.append(type(await outcome(raw.readall)))
        async with raw:
            results += [await outcome(partial(raw.seek, 4)), await outcome(raw.readall), raw.mode]
        return results

    path = tmp_path / "file"
    path.write_bytes(CONTENTS)
    expected = await run(partial(trio.open_file, path, mode))
    path.write_bytes(CONTENTS)
    async with serving_files() as (talk, _):
        assert await run(partial(talk.guest.open_file, path, mode)) == expected


async def test_a_text_file_is_detached_as_in_io(tmp_path: Path) -> None:
    path = tmp_path / "file"

    async def run(open_file: Callable[[], Any]) -> list[Any]:
        text = await open_file()
        await text.write("text\n")
        binary = await text.detach()
        results = [
            await outcome(partial(text.write, "more")),
            await outcome(text.flush),
            await outcome(text.aclose),
        ]
        async with binary:
            results += [await binary.tell(), await binary.write(b"bytes"), binary.mode]
        return [*results, path.read_bytes()]

    expected = await run(partial(trio.open_file, path, "w", encoding="utf-8"))
    async with serving_files() as (talk, _):
        assert await run(partial(talk.guest.open_file, path, "w")) == expected


async def test_the_arguments_of_open_have_its_names(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_text("text")
    async with serving_files() as (talk, _):
        async with await talk.guest.open_file(file=path, encoding="locale", closefd=True, opener=None) as file:
            assert (await file.read(), file.encoding) == ("text", "utf-8")


@pytest.mark.parametrize("buffering", [0, 2, 7, 100])
async def test_any_buffer_size_gives_the_same_bytes(tmp_path: Path, buffering: int) -> None:
    steps = [("write", b"0123456"), ("write", b"7"), ("seek", 2), ("read", 3), ("write", b"xyz"), ("readline",),
             ("seek", 0), ("readlines",)]  # fmt: skip
    await same(tmp_path, CONTENTS, "rb+", steps, buffering=buffering)


BINARY_STEP = st.one_of(
    st.tuples(st.just("read"), st.integers(-1, 40)),
    st.tuples(st.just("readline"), st.integers(-1, 40)),
    st.tuples(st.just("write"), st.binary(max_size=30)),
    st.tuples(st.just("seek"), st.integers(0, 60)),
    st.tuples(st.just("seek"), st.integers(-20, 20), st.integers(0, 2)),
    st.tuples(st.just("truncate"), st.integers(0, 60)),
    st.sampled_from([("tell",), ("flush",), ("truncate",), ("readlines",)]),
)

TEXT_STEP = st.one_of(
    st.tuples(st.just("read"), st.integers(-1, 40)),
    st.tuples(st.just("readline"), st.integers(-1, 40)),
    st.tuples(st.just("write"), st.text("ab\n\r\u00e4\u20ac\U0001f600", max_size=12)),
    st.tuples(st.just("back"), st.integers(0, 9)),
    st.sampled_from([("mark",), ("mark",), ("seek", 0), ("seek", 0, 1), ("seek", 0, 2), ("flush",)]),
)

ANYTHING = settings(
    max_examples=60,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)


@ANYTHING
@given(
    mode=st.sampled_from(["rb", "rb+", "wb+"]),
    buffering=st.sampled_from([-1, 5, 16]),
    steps=st.lists(BINARY_STEP, max_size=14),
)
def test_any_script_on_a_binary_file_is_as_in_io(
    tmp_path: Path, mode: str, buffering: int, steps: list[Any]
) -> None:
    trio.run(partial(same, tmp_path, CONTENTS, mode, steps, buffering=buffering))


@ANYTHING
@given(
    mode=st.sampled_from(["r", "r+", "w+", "a+"]),
    newline=st.sampled_from([None, "", "\n", "\r\n"]),
    steps=st.lists(TEXT_STEP, max_size=14),
)
def test_any_script_on_a_text_file_is_as_in_io(
    tmp_path: Path, mode: str, newline: str | None, steps: list[Any]
) -> None:
    # Without a seek in between, io writes behind the bytes that it has read ahead, and reads before it writes out.
    parted = [[("seek", 0, 1), step, ("flush",)] if step[0] == "write" else [step] for step in steps]
    steps = [one for part in parted for one in part]
    trio.run(partial(same, tmp_path, CONTENTS, mode, steps, newline=newline))


async def test_lines_come_by_iteration(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(CONTENTS)
    async with serving_files() as (talk, _):
        async with await talk.guest.open_file(path) as file:
            assert [line async for line in file] == io.StringIO(CONTENTS.decode(), newline=None).readlines()
        async with await talk.guest.open_file(path, "rb") as binary:
            assert [line async for line in binary] == io.BytesIO(CONTENTS).readlines()

"""Paths and signatures: those of `trio.Path`, `trio.open_file`, `trio.Process`."""

from __future__ import annotations

import os
import pathlib
import signal
import socket
import subprocess
from subprocess import PIPE
from typing import TYPE_CHECKING, Any

from tests.at_home.places import failed
from tests.at_home.table import case

if TYPE_CHECKING:
    from tests.at_home.places import Here


def plain(value: Any) -> Any:
    """A value made of literals, whatever the class of a path is."""
    if isinstance(value, (list, tuple)):
        return type(value)(map(plain, value))
    if value is None or isinstance(value, (bool, int, float, bytes, str)):
        return value
    return str(value)


async def asked(here: Here, path: Any, *calls: tuple[Any, ...]) -> list[Any]:
    """The results of calls of a path's methods. Some are coroutines, and some return an iterator."""
    results = []
    for name, *args in calls:
        try:
            value = getattr(path, name)(*args)
            if hasattr(value, "__await__"):
                value = await value
            if hasattr(value, "__next__"):
                value = sorted(map(str, value))
            results.append(plain(value))
        except Exception as exc:
            results.append(failed(exc))
    return results


@case("twin signatures")
async def a_path_tells_what_it_is(here: Here) -> object:
    here.file("file", b"x")
    os.mkfifo(here.file("fifo"))
    os.symlink("file", here.file("link"))
    os.symlink("nowhere", here.file("dangling"))
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(here.file("socket"))
    names = ("exists", "is_file", "is_dir", "is_symlink", "is_fifo", "is_socket", "is_mount", "is_block_device")
    calls = [(name,) for name in (*names, "is_char_device")]
    paths = [here.file(name) for name in ("file", "fifo", "link", "dangling", "socket", "none", "")]
    return [await asked(here, here.path(path), *calls) for path in (*paths, "/dev/null", "/", "/proc")]


@case("twin signatures")
async def a_path_with_a_null_character_is_no_file(here: Here) -> object:
    return await asked(here, here.path("a\0b"), ("exists",), ("is_file",), ("is_dir",), ("is_symlink",), ("stat",))


@case("twin signatures")
async def a_path_has_its_owner_and_group(here: Here) -> object:
    path = here.file("file", b"x")
    os.chown(path, 65534, 1)
    here.file("unknown", b"x")
    os.chown(here.file("unknown"), 4321, 4321)
    calls = [("owner",), ("group",)]
    unknown = await asked(here, here.path(here.file("unknown")), *calls)
    return await asked(here, here.path(path), *calls), unknown


@case("twin signatures")
async def a_tree_is_globbed(here: Here) -> object:
    for name in ("a", "a/b", "a/b/c", "d"):
        os.mkdir(here.file(name))
    for name in ("x.py", "a/y.py", "a/b/z.py", "a/b/c/.hidden.py", "d/other.txt"):
        here.file(name, b"")
    os.symlink("..", here.file("a/up"))
    patterns = ("*.py", "*/*.py", "**/*.py", "**", "a/*", "[xy].py", "no*", "*/")
    root = here.path(here.dir)
    return await asked(here, root, *(("glob", one) for one in patterns), ("rglob", "*.py"), ("rglob", "*"))


@case("twin signatures")
async def a_bad_pattern_is_refused(here: Here) -> object:
    return await asked(here, here.path(here.dir), ("glob", ""), ("glob", "/abs"), ("rglob", "/abs"))


@case("twin signatures")
async def a_path_is_resolved(here: Here) -> object:
    os.mkdir(here.file("dir"))
    os.symlink("dir", here.file("link"))
    os.symlink("loop", here.file("loop"))
    root = str(pathlib.Path(here.dir).resolve())
    paths = ("link", "link/..", "link/none/../x", "none", "dir/../link", "loop", "loop/x")
    results = [await asked(here, here.path(f"{root}/{one}"), ("resolve",), ("resolve", True)) for one in paths]
    # (In a guest an error names the path that was asked for, and not the part of it that is missing.)
    return [[one.replace(root, "ROOT") if isinstance(one, str) else one[:2] for one in pair] for pair in results]


@case("twin signatures")
async def a_path_becomes_absolute_and_a_uri(here: Here) -> object:
    path = here.path("/a b/c")
    relative = [type(value).__name__ for value in await asked(here, here.path("x"), ("absolute",))]
    return await asked(here, path, ("absolute",), ("as_uri",), ("as_posix",), ("__bytes__",)), relative


@case("twin signatures")
async def a_relative_path_has_no_uri(here: Here) -> object:
    return await asked(here, here.path("a"), ("as_uri",))


@case("twin signatures")
async def a_home_is_expanded(here: Here) -> object:
    paths = ("~/x", "~root/y", "~no-such-user/z", "plain", "a/~/b")
    return [await asked(here, here.path(path), ("expanduser",)) for path in paths]


@case("twin signatures")
async def links_are_made_and_compared(here: Here) -> object:
    here.file("file", b"x")
    results = await asked(here, here.path(here.file("hard")), ("hardlink_to", here.file("file")))
    results += await asked(
        here, here.path(here.file("soft")), ("symlink_to", "file"), ("readlink",), ("readlink",)
    )
    path = here.path(here.file("file"))
    same = [("samefile", here.file(name)) for name in ("hard", "soft", "none")]
    again = ("hardlink_to", here.file("none"))
    return results, await asked(here, path, *same, again), os.stat(here.file("hard")).st_nlink


@case("twin signatures")
async def directories_are_made_and_removed(here: Here) -> object:
    deep = here.path(here.file("a/b/c"))
    calls = [("mkdir",), ("mkdir", 0o700, True), ("mkdir",), ("mkdir", 0o777, False, True), ("rmdir",), ("rmdir",)]
    results = await asked(here, deep, *calls)
    here.file("a/b/file", b"")
    results += await asked(here, here.path(here.file("a/b")), ("rmdir",), ("unlink",))
    return results, await asked(here, here.path(here.file("a/b/file/below")), ("mkdir",), ("mkdir", 0o777, True))


@case("twin signatures")
async def modes_of_new_directories_are_those_that_were_asked_for(here: Here) -> object:
    found = []
    for mode in (0o755, 0o750, 0o700):
        path = here.file(f"d{mode}")
        await here.path(path).mkdir(mode)
        found.append(oct(os.stat(path).st_mode))
    return found


@case("twin signatures")
async def files_are_renamed_and_removed(here: Here) -> object:
    here.file("a", b"a")
    here.file("b", b"b")
    os.mkdir(here.file("dir"))
    results = await asked(here, here.path(here.file("a")), ("rename", here.file("b")), ("rename", here.file("c")))
    results += await asked(
        here, here.path(here.file("b")), ("replace", here.file("dir")), ("replace", here.file("e"))
    )
    results += await asked(here, here.path(here.file("e")), ("unlink",), ("unlink",), ("unlink", True))
    return results, sorted(os.listdir(here.dir))


@case("twin signatures")
async def permissions_are_changed(here: Here) -> object:
    here.file("file", b"")
    os.symlink("file", here.file("link"))
    results = await asked(here, here.path(here.file("link")), ("chmod", 0o4711), ("lchmod", 0o600))
    results[1] = isinstance(results[1], tuple)  # Linux has no permissions of links, and each side says so
    results += await asked(here, here.path(here.file("none")), ("chmod", 0o600))
    return results, oct(os.stat(here.file("file")).st_mode)


@case("twin signatures")
async def errors_of_files_say_what_has_failed(here: Here) -> object:
    here.file("file", b"")
    calls = [
        ("read_bytes",),
        ("write_bytes", b""),
        ("stat",),
        ("iterdir",),
        ("unlink",),
        ("readlink",),
        ("rename", "/x"),
    ]
    paths = [here.file("none"), here.file("file/below"), here.file("x" * 300), here.file("none/below")]
    results = [await asked(here, here.path(path), *calls) for path in paths[1:]]
    return results, await asked(here, here.path(paths[0]), ("read_bytes",), ("stat",), ("readlink",))


@case("twin signatures")
async def modes_of_open_are_checked_alike(here: Here) -> object:
    path = here.file("file", b"text")
    modes = ("", "z", "rw", "rbt", "rr", "r+b", "b+r", "rb", "rt", "U", "x", 7)
    results = []
    for mode in modes:
        file = await here.result(here.open_file, path, mode)
        if isinstance(file, tuple):
            results.append(file)
        else:
            results.append((file.mode, type(file.name).__name__))
            await file.aclose()
    return results


@case("twin signatures")
async def names_of_arguments_of_open_are_the_same(here: Here) -> object:
    path = here.file("file", b"text")
    async with await here.open_file(
        file=path, mode="r", buffering=-1, encoding="ascii", errors=None, newline=None
    ) as f:
        text = await f.read()
    async with await here.open_file(path, closefd=True) as f:
        return text, await f.read()


@case("twin signatures")
async def encodings_are_checked_alike(here: Here) -> object:
    path = here.file("file", "ä".encode())
    options: list[dict[str, Any]] = [
        {"encoding": "no-such"},
        {"errors": "no-such"},
        {"newline": "x"},
        {"buffering": 0},
    ]
    results = []
    for one in options:
        try:
            file = await here.open_file(path, **one)
            results.append(await here.result(file.read))
            await file.aclose()
        except Exception as exc:
            results.append(failed(exc))
    async with await here.open_file(path, encoding="locale") as file:
        return results, type(await file.read()).__name__


@case("twin signatures", differs="methods of files", in_guest=[True] * 6)
async def files_have_the_methods_of_their_kind(here: Here) -> object:
    path = here.file("file", b"0123456789")
    names = (
        "read",
        "read1",
        "readall",
        "readinto",
        "readinto1",
        "readline",
        "readlines",
        "peek",
        "detach",
    )
    names += ("write", "truncate", "seek", "tell", "flush", "fileno", "isatty")
    found: list[object] = []
    for mode, buffering in (("r", -1), ("rb", -1), ("rb", 0), ("r+b", -1), ("wb", -1), ("w", 1)):
        async with await here.open_file(path, mode, buffering) as file:
            found.append(all(hasattr(file, name) for name in names))
    return found


@case("twin signatures")
async def sizes_of_reads_are_checked_alike(here: Here) -> object:
    path = here.file("file", b"one\ntwo\nthree\n")
    results = []
    for mode in ("r", "rb"):
        async with await here.open_file(path, mode) as file:
            calls: list[tuple[Any, ...]] = [
                ("readline", None),
                ("readline", 2),
                ("read", None),
                ("seek", 0),
                ("readlines", None),
            ]
            calls += [("seek", 0), ("seek", -1), ("seek", 0, 9), ("read", "x")]
            found = [await here.result(getattr(file, name), *args) for name, *args in calls]
            results.append([one[:2] if isinstance(one, tuple) else one for one in found])
    return results


@case("twin signatures")
async def an_input_is_checked_alike(here: Here) -> object:
    inputs: tuple[Any, ...] = ("text", b"bytes", bytearray(b"more"), memoryview(b"view"))
    return [await here.ran(["cat"], stdin=stdin) for stdin in inputs]


@case("twin signatures")
async def commands_are_checked_alike(here: Here) -> object:
    commands: tuple[Any, ...] = (("ls", False), (["ls"], True), (["a\0b"], False), ([7], False), (None, False))
    return [(await here.ran(command, shell=shell))[0] for command, shell in commands]


@case("twin signatures", differs="refused first", in_guest=["ValueError", "ValueError"])
async def an_empty_command_is_refused(here: Here) -> object:
    return [(await here.ran(command))[0] for command in ([], [""])]


@case("twin signatures")
async def captures_are_checked_alike(here: Here) -> object:
    options: list[dict[str, Any]] = [
        {"capture_stdout": True, "stdout": PIPE},
        {"capture_stderr": True, "stderr": PIPE},
        {"stdout": PIPE},
        {"stderr": PIPE},
        {"stdin": PIPE},
    ]
    return [(await here.result(lambda one=one: here.run_process(["true"], **one)))[0] for one in options]


@case("twin signatures")
async def a_capture_of_stderr_beside_a_target_is_refused(here: Here) -> object:
    call = lambda: here.run_process(["true"], capture_stderr=True, stderr=subprocess.STDOUT)  # noqa: E731
    return await here.result(call)


@case("twin signatures")
async def signal_0_is_no_signal(here: Here) -> object:
    async with here.open_process(["cat"], stdin=PIPE) as process:
        sent = process.send_signal(0)
        await process.stdin.aclose()
        return sent, await process.wait(), process.send_signal(0), process.send_signal(signal.SIGTERM)


@case("twin signatures", differs="refused first", in_guest=["ValueError", "ValueError", "ValueError"])
async def a_number_that_is_no_signal_is_refused(here: Here) -> object:
    async with here.open_process(["sleep", "1000"]) as process:
        results = []
        for number in (99, -1, 34):
            try:
                process.send_signal(number)
            except Exception as exc:
                results.append(type(exc).__name__)
        return results


@case("twin signatures")
async def a_process_has_the_attributes_of_one(here: Here) -> object:
    async with here.open_process(["cat"], stdin=PIPE, stdout=PIPE) as process:
        before = (process.args, process.returncode, process.poll(), process.stderr, isinstance(process.pid, int))
        stdio = process.stdio is not None and process.stdio.send_stream is process.stdin
        await process.stdin.aclose()
        return before, stdio, await process.wait(), process.returncode


@case("twin signatures")
async def a_path_is_an_argument_a_directory_and_a_variable(here: Here) -> object:
    path = here.path(here.file("file", b"contents"))
    root = here.path(here.dir)
    return await here.ran(["cat", path], cwd=root), await here.ran(["sh", "-c", "cat $IT"], env={"IT": str(path)})


@case("twin signatures")
async def a_path_has_pure_parts(here: Here) -> object:
    path = here.path("/a/b.tar.gz")
    pure = pathlib.PurePosixPath("/a/b.tar.gz")
    names = ("name", "stem", "suffix", "suffixes", "parts", "anchor", "root", "drive")
    return [getattr(path, name) == getattr(pure, name) for name in names], plain(
        [path / "c", "x" / here.path("y"), path.parent]
    )


@case("twin signatures", differs="descriptors", in_guest=("TypeError",))
async def output_goes_to_a_descriptor(here: Here) -> object:
    target = os.open(here.file("out"), os.O_WRONLY | os.O_CREAT)
    try:
        outcome = await here.result(lambda: here.run_process(["echo", "hi"], stdout=target))
    finally:
        os.close(target)
    return outcome if isinstance(outcome, tuple) else "written"


@case("twin signatures", differs="paths", in_guest=(False, False))
async def a_path_is_one_of_this_machine(here: Here) -> object:
    path = here.path("/etc")
    return isinstance(path, os.PathLike), path == pathlib.PurePosixPath("/etc")


@case("twin signatures", differs="options", in_guest=[("TypeError",), ("TypeError",)])
async def further_options_are_those_of_subprocess(here: Here) -> object:
    options: list[dict[str, Any]] = [{"umask": 0o77}, {"pass_fds": (2,)}]
    outcomes = [await here.result(lambda one=one: here.run_process(["true"], **one)) for one in options]
    return [one if isinstance(one, tuple) else "run" for one in outcomes]

"""What a guest in namespaces can see of this machine, and do to it: nothing but what was named.

Each claim is tried as each user who can have such a guest.
"""

from __future__ import annotations

import json
import os
from typing import Any

import pytest
import trio

from tests.guests.namespaces._looks import look
from tests.guests.namespaces._unprivileged import run_beside
from tests.tools.limits import HANG
from tests.tools.users import NOBODY, as_root
from trio_console._guests.namespaces.runtime import PLACE

LOOKS = "tests.guests.namespaces._looks"


def _beside(uid: int, **options: Any) -> dict[str, Any]:
    done = run_beside("-m", LOOKS, json.dumps(options), uid=uid)
    assert done.returncode == 0, done.stderr
    found: dict[str, Any] = json.loads(done.stdout)
    return found


async def _own() -> dict[str, Any]:
    with trio.fail_after(HANG):
        return await look()


@pytest.fixture(
    scope="module",
    params=["this user", pytest.param("nobody", marks=as_root), pytest.param("root for nobody", marks=as_root)],
)
def found(request: pytest.FixtureRequest) -> dict[str, Any]:
    """What is found in a guest of this user, in one of another, and in one that root runs as another."""
    if request.param == "this user":
        return trio.run(_own)
    return _beside(NOBODY) if request.param == "nobody" else _beside(0, user=NOBODY)


def test_a_file_that_was_not_shared_cannot_be_read_by_any_name(found: dict[str, Any]) -> None:
    assert len(found["reads"]) > 10
    assert set(found["reads"].values()) <= {"FileNotFoundError", "NotADirectoryError", "PermissionError"}


def test_there_is_no_network(found: dict[str, Any]) -> None:
    assert found["interfaces"] == ["lo"]
    assert found["routes"] == []


def test_this_machines_loopback_is_not_reached(found: dict[str, Any]) -> None:
    assert found["tcp"] == "ConnectionRefusedError"


def test_a_socket_of_this_machine_is_not_reached(found: dict[str, Any]) -> None:
    assert found["abstract"] == "ConnectionRefusedError"
    assert found["unix"] == "FileNotFoundError"


def test_no_process_but_its_own_is_seen(found: dict[str, Any]) -> None:
    assert found["processes"] == [1]
    assert found["signal"] == "ProcessLookupError"


def test_no_file_of_the_kernel_or_of_the_root_can_be_changed(found: dict[str, Any]) -> None:
    devices = {f"/dev/{name}" for name in ("full", "null", "ptmx", "pts/ptmx", "random", "urandom", "zero")}
    assert set(found["writable"]) <= devices
    assert found["new file in /usr"] == "OSError"  # a read-only file system


def test_it_has_no_capability_and_gets_none(found: dict[str, Any]) -> None:
    assert {int(value, 16) for value in found["capabilities"]} == {0}
    assert not found["new privileges"]


def test_a_namespace_within_does_not_make_it_writable(found: dict[str, Any]) -> None:
    assert found["remount"] != 0


def test_the_environment_is_empty_but_for_what_is_documented(found: dict[str, Any]) -> None:
    assert found["environment"] == ["HOME", "PATH", "TRIO_CONSOLE_COMMAND", "TRIO_CONSOLE_GUEST"]


def test_the_home_is_empty(found: dict[str, Any]) -> None:
    assert found["home"] == []


def test_no_descriptor_of_this_program_is_open(found: dict[str, Any]) -> None:
    kinds = {"/dev/null", "/proc/1/mountinfo", "anon_inode", "pipe", "socket"}
    assert {kind for kind in found["own descriptors"] if not kind.startswith("/proc/")} <= kinds
    assert set(found["agent's descriptors"]) <= kinds


def test_only_what_is_named_is_mounted(found: dict[str, Any]) -> None:
    programs = ("/bin", "/lib", "/lib32", "/lib64", "/libx32", "/sbin", "/usr")
    settings = ("/etc/alternatives", "/etc/ld.so.cache", "/etc/ld.so.conf", "/etc/ld.so.conf.d")
    own = ("/", "/dev", "/dev/pts", "/proc", "/proc/bus", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger", "/tmp")
    devices = [f"/dev/{name}" for name in ("full", "null", "random", "tty", "urandom", "zero")]
    for path, (_, access) in found["mounts"].items():
        if path.startswith(f"{PLACE}/") or path in (*programs, *settings):
            assert access == "ro", path
        else:
            assert path in (*own, *devices), path
    assert "hosts" in found["etc"]
    assert not {"shadow", "machine-id", "ssh", "hostname", "resolv.conf"} & set(found["etc"])


def test_the_machine_has_another_name(found: dict[str, Any]) -> None:
    assert found["host name"] == "guest"


def test_no_shared_memory_is_seen(found: dict[str, Any]) -> None:
    assert found["shared memory"] == 0


def test_the_user_is_the_programs_own() -> None:
    found = trio.run(_own)
    assert found["ids"][:2] == [os.geteuid(), os.getegid()]


@as_root
def test_root_may_name_another_user() -> None:
    assert _beside(0, user=NOBODY)["ids"] == [NOBODY, NOBODY, []]

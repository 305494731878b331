"""Starting a command: its environment, and the errors of a command that cannot be started."""

from __future__ import annotations

import contextlib
import errno
import gc
import os
import pwd
import resource
import signal
from typing import TYPE_CHECKING

import pytest

from tests.tools.memory import held_by
from trio_console import _wire as wire
from trio_console.agent._process.spawn import Child

if TYPE_CHECKING:
    from pathlib import Path

    from tests.agent._host import Host
    from tests.agent.conftest import AgentFactory

ROOT = os.getuid() == 0
UNLIMITED = 2**64 - 1


def failure(code: int, kind: str, command: str, filename: str, stage: str = "Command::spawn") -> wire.ExecFailed:
    return wire.ExecFailed(
        kind=kind,
        errno=code,
        errno_name=errno.errorcode[code],
        message=f'spawn "{command}": {os.strerror(code)} (os error {code})',
        stage=stage,
        filename=filename,
    )


# --- the course of things -------------------------------------------------------------------------


async def test_a_command_is_started_speaks_and_exits(host: Host) -> None:
    outcome = await host.sh("printf out; printf err >&2; exit 7")
    assert isinstance(outcome.messages[0], wire.ExecStarted)
    assert outcome.stdout == b"out"
    assert outcome.stderr == b"err"
    assert outcome.last == wire.ExecExited(code=7)


async def test_the_pid_is_the_commands(host: Host) -> None:
    outcome = await host.sh("echo $$")
    assert outcome.stdout == b"%d\n" % outcome.all(wire.ExecStarted)[0].pid


async def test_a_signal_is_code_minus_one_and_told_apart(host: Host) -> None:
    assert (await host.sh("kill -TERM $$")).last == wire.ExecExited(code=-1, signal=15)


async def test_255_is_an_exit_like_any_other(host: Host) -> None:
    assert (await host.sh("exit 255")).last == wire.ExecExited(code=255)


async def test_the_command_leads_its_own_session(host: Host) -> None:
    outcome = await host.run("/bin/sh", "-c", "read a b c d pgrp session rest </proc/$$/stat; echo $pgrp $session")
    pid = outcome.all(wire.ExecStarted)[0].pid
    assert outcome.stdout == b"%d %d\n" % (pid, pid)


async def test_the_name_as_given_is_argv0(host: Host) -> None:
    assert (await host.run("cat", "/proc/self/cmdline")).stdout == b"cat\0/proc/self/cmdline\0"


async def test_a_child_has_no_descriptors_but_its_own_three(host: Host) -> None:
    running = await host.start("sleep", "60")
    listed = (await host.run("ls", "/proc/self/fd")).stdout.split()
    assert listed == [b"0", b"1", b"2", b"3"]  # the last is ls reading the directory
    await host.send(wire.ExecSignal(9), running)
    await host.collect(running)


async def test_signals_python_ignores_are_at_their_defaults(host: Host) -> None:
    outcome = await host.run("grep", "SigIgn", "/proc/self/status")
    # (Other signals may be ignored because the program that started the tests ignores them, as nohup does.)
    ignored = int(outcome.stdout.split()[1], 16)
    assert not [number for number in (signal.SIGPIPE, signal.SIGXFSZ) if ignored >> (number - 1) & 1]


async def test_a_status_that_somebody_else_has_taken_is_not_invented(
    host: Host, monkeypatch: pytest.MonkeyPatch
) -> None:
    status = Child.status

    def after_another(child: Child) -> wire.ExecExited | None:
        with contextlib.suppress(ChildProcessError):
            os.waitpid(child.pid, 0)
        return status(child)

    monkeypatch.setattr(Child, "status", after_another)
    outcome = await host.run("true")
    assert isinstance(outcome.last, wire.Error)
    assert outcome.last.kind == "exit_unknown"
    assert f"process {outcome.all(wire.ExecStarted)[0].pid} has ended" in outcome.last.message


async def test_the_id_is_free_once_the_exit_was_seen(host: Host) -> None:
    for _ in range(20):
        await host.request("/bin/true", sid=5)
        assert (await host.collect(5)).last == wire.ExecExited(code=0)


# --- failures -------------------------------------------------------------------------------------


@pytest.mark.parametrize("tty", [False, True])
async def test_a_missing_command_is_not_found(host: Host, tty: bool) -> None:
    stage = "execvp" if tty else "Command::spawn"
    outcome = await host.run("/no/such", tty=tty)
    assert outcome.messages == [failure(errno.ENOENT, "not_found", "/no/such", "/no/such", stage)]


async def test_a_name_that_is_nowhere_on_the_path_is_not_found(host: Host) -> None:
    assert (await host.run("no-such-command")).last.kind == "not_found"


async def test_an_empty_command_is_not_found(host: Host) -> None:
    assert (await host.run("")).last.kind == "not_found"


async def test_quotes_in_a_name_are_escaped_in_the_message(host: Host) -> None:
    assert (await host.run('/no"\\such')).last.message.startswith('spawn "/no\\"\\\\such": ')


@pytest.mark.parametrize("cwd", ["/no/dir", ""])
@pytest.mark.parametrize("tty", [False, True])
async def test_a_missing_cwd_is_named(host: Host, tty: bool, cwd: str) -> None:
    stage = "execvp" if tty else "Command::spawn"
    outcome = await host.run("/bin/true", cwd=cwd, tty=tty)
    assert outcome.messages == [failure(errno.ENOENT, "not_found", "/bin/true", cwd, stage)]


async def test_a_cwd_that_is_a_file_is_a_bad_cwd(host: Host) -> None:
    outcome = await host.run("/bin/true", cwd="/etc/passwd")
    assert outcome.last == failure(errno.ENOTDIR, "bad_cwd", "/bin/true", "/etc/passwd")


async def test_a_missing_command_in_a_good_cwd_is_blamed_itself(host: Host) -> None:
    assert (await host.run("/tmp", cwd="/tmp")).last.kind == "permission_denied"
    assert (await host.run("/no/such", cwd="/tmp")).last.filename == "/no/such"


async def test_a_directory_is_permission_denied(host: Host) -> None:
    assert (await host.run("/tmp")).last == failure(errno.EACCES, "permission_denied", "/tmp", "/tmp")


async def test_a_file_without_the_x_bit_is_permission_denied(host: Host, tmp_path: Path) -> None:
    (tmp_path / "plain").write_text("#!/bin/sh\n")
    assert (await host.run(str(tmp_path / "plain"))).last.kind == "permission_denied"


async def test_a_script_without_an_interpreter_line_is_not_executable(host: Host, tmp_path: Path) -> None:
    script = tmp_path / "script"
    script.write_text("echo hi\n")
    script.chmod(0o755)
    assert (await host.run(str(script))).last == failure(errno.ENOEXEC, "not_executable", str(script), str(script))


async def test_a_missing_interpreter_is_not_found(host: Host, tmp_path: Path) -> None:
    script = tmp_path / "script"
    script.write_text("#!/no/such/interpreter\n")
    script.chmod(0o755)
    assert (await host.run(str(script))).last.kind == "not_found"


async def test_arguments_beyond_the_kernels_limit_are_bad_args(host: Host) -> None:
    outcome = await host.run("/bin/true", "x" * 200_000)
    assert outcome.last == failure(errno.E2BIG, "bad_args", "/bin/true", "/bin/true")


async def test_a_loop_of_links_is_bad_args(host: Host, tmp_path: Path) -> None:
    (tmp_path / "loop").symlink_to("loop")
    assert (await host.run(str(tmp_path / "loop"))).last.kind == "bad_args"


@pytest.mark.parametrize("fields", [{"args": ["a\0b"]}, {"env": ["A=\0"]}, {"cwd": "/\0"}])
async def test_a_nul_has_no_errno(host: Host, fields: dict[str, object]) -> None:
    await host.send(wire.ExecRequest("/bin/true", **fields), 5)  # type: ignore[arg-type]
    last = (await host.collect(5)).last
    assert (last.kind, last.errno, last.errno_name) == ("other", None, None)


async def test_a_failed_start_leaves_the_agent_as_it_was(host: Host) -> None:
    before = len(os.listdir("/proc/self/fd"))
    for _ in range(10):
        await host.run("/no/such")
        await host.run("/no/such", tty=True)
    assert len(os.listdir("/proc/self/fd")) == before


@pytest.mark.parametrize(
    ("call", "tty", "kind"),
    [
        ("pipe", False, "resource_limit"),
        pytest.param(
            "pidfd_open",
            False,
            "resource_limit",
            marks=pytest.mark.skipif(not hasattr(os, "pidfd_open"), reason="this Python has no os.pidfd_open"),
        ),
        ("openpty", True, "resource_limit"),
    ],
)
async def test_running_out_of_descriptors_is_told(
    host: Host, monkeypatch: pytest.MonkeyPatch, call: str, tty: bool, kind: str
) -> None:
    await host.run("true")  # by now everything that is imported or opened only once is there

    def fail(*_: object) -> None:
        raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))

    with monkeypatch.context() as broken:
        broken.setattr(os, call, fail)
        outcome = await host.run("true", tty=tty)
    assert (outcome.last.kind, outcome.last.errno_name) == (kind, "EMFILE")
    assert (await host.run("true", tty=tty)).last == wire.ExecExited(code=0)


async def test_no_more_terminals_is_a_failure_of_its_own(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "openpty", fail)
    assert (await host.run("true", tty=True)).last.kind == "pty_setup_failed"


# --- environment ----------------------------------------------------------------------------------


async def environment(host: Host, **fields: object) -> dict[bytes, bytes]:
    outcome = await host.run("/usr/bin/env", "-0", **fields)
    return dict(entry.split(b"=", 1) for entry in outcome.stdout.split(b"\0") if entry)


async def test_a_command_inherits_the_agents_environment(
    agent: AgentFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FROM_AGENT", "yes")
    async with agent() as host:
        assert (await environment(host))[b"FROM_AGENT"] == b"yes"


async def test_the_bootstraps_environment_is_over_the_agents_and_under_the_requests(
    agent: AgentFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("A", "B", "C"):
        monkeypatch.setenv(name, "agent")
    defaults = [wire.EnvVar("B", "bootstrap"), wire.EnvVar("C", "bootstrap")]
    async with agent(bootstrap={"default_env": defaults}) as host:
        env = await environment(host, env=["C=request"])
    assert (env[b"A"], env[b"B"], env[b"C"]) == (b"agent", b"bootstrap", b"request")


async def test_an_entry_without_an_equals_sign_is_ignored(host: Host) -> None:
    assert b"NOTHING" not in await environment(host, env=["NOTHING"])


async def test_the_last_of_two_entries_wins(host: Host) -> None:
    assert (await environment(host, env=["A=1", "A=2"]))[b"A"] == b"2"


async def test_a_value_may_hold_an_equals_sign_or_nothing(host: Host) -> None:
    env = await environment(host, env=["A=b=c", "E="])
    assert (env[b"A"], env[b"E"]) == (b"b=c", b"")


async def test_text_beyond_ascii_arrives_as_utf8(host: Host) -> None:
    assert (await environment(host, env=["A=käse"]))[b"A"] == "käse".encode()


async def test_the_scripts_directory_comes_first_on_the_path(host: Host) -> None:
    path = (await environment(host, env=["PATH=/usr/bin:/bin"]))[b"PATH"]
    assert path == b"/.msb/scripts:/usr/bin:/bin"


async def test_the_scripts_directory_is_not_added_twice(host: Host) -> None:
    path = (await environment(host, env=["PATH=/bin:/.msb/scripts"]))[b"PATH"]
    assert path == b"/bin:/.msb/scripts"


async def test_without_any_path_there_is_a_default(agent: AgentFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("PATH")
    async with agent() as host:
        path = (await environment(host))[b"PATH"]
    assert path == b"/.msb/scripts:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"


async def test_the_path_of_the_request_is_searched(host: Host, tmp_path: Path) -> None:
    tool = tmp_path / "only-here"
    tool.write_text("#!/bin/sh\necho found\n")
    tool.chmod(0o755)
    assert (await host.run("only-here", env=[f"PATH={tmp_path}"])).stdout == b"found\n"


async def test_home_is_that_of_the_user_the_agent_runs_as(
    agent: AgentFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", "/somewhere/else")
    async with agent() as host:
        assert (await environment(host))[b"HOME"] == os.fsencode(pwd.getpwuid(os.getuid()).pw_dir)


async def test_home_of_the_request_stands(host: Host) -> None:
    assert (await environment(host, env=["HOME=/x"]))[b"HOME"] == b"/x"


# --- directory ------------------------------------------------------------------------------------


async def test_without_a_cwd_the_agents_own_is_used(host: Host) -> None:
    assert (await host.run("pwd")).stdout.strip() == os.fsencode(os.getcwd())


async def test_the_bootstraps_cwd_is_the_default(agent: AgentFactory) -> None:
    async with agent(bootstrap={"default_cwd": "/usr"}) as host:
        assert (await host.run("pwd")).stdout == b"/usr\n"
        assert (await host.run("pwd", cwd="/tmp")).stdout == b"/tmp\n"


# --- user -----------------------------------------------------------------------------------------


async def identity(host: Host, user: str | None) -> object:
    """``uid gid groups`` of a command, or why it failed."""
    outcome = await host.sh("echo $(id -u) $(id -g) $(id -G)", user=user)
    return outcome.stdout.decode().strip() if outcome.stdout else outcome.last


def denied_unless_root(expected: str, found: object) -> None:
    if ROOT:
        assert found == expected
    else:
        assert isinstance(found, wire.ExecFailed)
        assert (found.kind, found.errno) == ("permission_denied", errno.EPERM)


async def test_no_user_means_nobody_is_switched_to(host: Host) -> None:
    expected = f"{os.getuid()} {os.getgid()}"
    for user in (None, "", "  "):
        assert str(await identity(host, user)).startswith(expected)


async def test_a_name_brings_its_group_and_home(host: Host) -> None:
    entry = pwd.getpwnam("daemon")
    denied_unless_root(f"{entry.pw_uid} {entry.pw_gid} {entry.pw_gid}", await identity(host, "daemon"))
    if ROOT:
        assert (await host.sh("echo $HOME", user="daemon")).stdout == entry.pw_dir.encode() + b"\n"


async def test_an_unknown_number_is_an_id_without_groups_or_home(host: Host) -> None:
    denied_unless_root(f"54321 {os.getgid()} {os.getgid()}", await identity(host, "54321"))
    if ROOT:
        assert (await host.sh('echo "${HOME-unset}"', user="54321")).stdout == b"unset\n"


async def test_user_and_group_mix_names_and_numbers_and_spaces(host: Host) -> None:
    uid = pwd.getpwnam("daemon").pw_uid
    outcome = await host.sh("echo $(id -u) $(id -g)", user=" daemon : 54321 ")
    denied_unless_root(f"{uid} 54321", outcome.stdout.decode().strip() or outcome.last)


async def test_ones_own_name_needs_no_privilege(host: Host) -> None:
    name = pwd.getpwuid(os.getuid()).pw_name
    assert str(await identity(host, name)).startswith(f"{os.getuid()} {os.getgid()}")


@pytest.mark.parametrize("user", ["no-such-user", "root:no-such-group", "root:", ":root", "4294967295", "a\0b"])
async def test_a_user_that_makes_no_sense_has_no_errno(host: Host, user: str) -> None:
    last = (await host.run("/bin/true", user=user)).last
    assert (last.kind, last.errno, last.errno_name, last.stage) == ("other", None, None, wire.USER_STAGE)


async def test_the_bootstraps_user_is_the_default(agent: AgentFactory) -> None:
    async with agent(bootstrap={"user": "daemon"}) as host:
        entry = pwd.getpwnam("daemon")
        denied_unless_root(f"{entry.pw_uid} {entry.pw_gid} {entry.pw_gid}", await identity(host, None))


# --- limits ---------------------------------------------------------------------------------------


async def test_limits_are_set_by_name_in_any_case(host: Host) -> None:
    limits = [wire.Rlimit("NOFILE", 100, 200), wire.Rlimit("core", 0, 0)]
    outcome = await host.sh("ulimit -Sn; ulimit -Hn; ulimit -c", rlimits=limits)
    assert outcome.stdout.split() == [b"100", b"200", b"0"]


async def test_an_unknown_limit_is_skipped(host: Host) -> None:
    assert (await host.run("/bin/true", rlimits=[wire.Rlimit("bogus", 1, 1)])).last.code == 0


async def test_the_largest_number_means_no_limit(host: Host) -> None:
    hard = resource.getrlimit(resource.RLIMIT_CPU)[1]
    outcome = await host.sh("ulimit -St", rlimits=[wire.Rlimit("cpu", UNLIMITED, UNLIMITED)])
    if hard == resource.RLIM_INFINITY:
        assert outcome.stdout == b"unlimited\n"


@pytest.mark.parametrize("tty", [False, True])
async def test_an_impossible_limit_is_told_with_its_errno(host: Host, tty: bool) -> None:
    outcome = await host.run("/bin/true", tty=tty, rlimits=[wire.Rlimit("nofile", 20, 10)])
    stage = "execvp" if tty else "Command::spawn"
    assert outcome.messages == [failure(errno.EINVAL, "other", "/bin/true", "/bin/true", stage)]


async def test_limits_hold_after_the_switch_to_another_user(host: Host) -> None:
    outcome = await host.sh("ulimit -Hn", user="daemon" if ROOT else None, rlimits=[wire.Rlimit("nofile", 64, 64)])
    assert outcome.stdout == b"64\n"


async def test_the_bootstraps_limits_hold_for_every_command(agent: AgentFactory) -> None:
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    async with agent(bootstrap={"rlimits": [wire.Rlimit("nofile", 77, 88)]}) as host:
        assert (await host.sh("ulimit -Sn; ulimit -Hn")).stdout == b"77\n88\n"
    assert resource.getrlimit(resource.RLIMIT_NOFILE) == before


async def test_a_command_that_runs_holds_the_words_of_its_request_no_more(host: Host) -> None:
    words = [f"{number}=" + "x" * 100_000 for number in range(4)]
    started = []
    with held_by() as held:
        for sid in range(1, 6):
            await host.request("sleep", "60", sid=sid, env=words)
            started.append(await host.receive(sid))
            await host.ping()
            gc.collect()
    assert all(isinstance(message, wire.ExecStarted) for message in started)
    assert held.size < 400_000

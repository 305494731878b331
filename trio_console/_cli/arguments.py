"""The arguments of the command line."""

from __future__ import annotations

import argparse
import os

from trio_console._bundle.archive import VERSIONS
from trio_console._cli.options import add_relay_options
from trio_console._version import __version__

__all__ = ["parser"]


def parser() -> argparse.ArgumentParser:
    """The parser for the whole command line; ``what`` of its result is the command."""
    made = argparse.ArgumentParser(prog="trio-console", description="Share a guest, and use a shared one.")
    made.add_argument("--version", action="version", version=f"trio_console {__version__}")
    commands = made.add_subparsers(dest="what", required=True, metavar="{relay,exec,agent-bundle,vm}")
    _add_relay(commands)
    _add_exec(commands)
    _add_bundle(commands)
    _add_vm(commands)
    return made


def _add_relay(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    relay = commands.add_parser(
        "relay",
        help="boot a guest and serve it on a Unix socket",
        description="Boot a guest and serve it on a Unix socket, until SIGTERM, SIGHUP, Ctrl-C or the guest's "
        "end. Prints 'ready PATH' once clients are served. Signals that were ignored at the start (nohup) stay "
        "ignored. The third signal within two seconds ends it without waiting for the guest.",
    )
    relay.add_argument("--listen", required=True, metavar="PATH", help="where clients connect")
    relay.add_argument(
        "--console",
        metavar="SOCKET",
        help="the guest's raw console socket; without it, an agent in a child process",
    )
    relay.add_argument("--grace", type=float, default=5.0, metavar="SECONDS", help="for the teardown (default 5)")
    relay.add_argument("--ready-timeout", type=float, default=60.0, metavar="SECONDS", help="(default 60)")
    add_relay_options(relay)


def _add_exec(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    run = commands.add_parser(
        "exec",
        help="run one command in a relay's guest",
        description="Run one command in a relay's guest. Its stdin, stdout, stderr and exit status are this "
        "program's; 125 is a relay that cannot be reached or a lost guest, 126 a command that could not be "
        "started, 127 one that was not found, 1 with a message output that could not be written here. It ends "
        "when the command has exited and its output has ended.",
        epilog="INT, TERM and HUP are passed on to the command, unless they were ignored at the start (nohup). "
        "They end this program itself if the command has exited, if a second one comes while the guest does not "
        "answer, or if a third one comes within two seconds; the relay then kills the command.",
    )
    run.add_argument("--relay", required=True, metavar="PATH", help="the relay's socket")
    run.add_argument(
        "--server-uid",
        action="append",
        type=int,
        metavar="UID",
        help="a user whose relay is trusted; may be repeated (default: you, root, and the owner of the socket and "
        "its directory)",
    )
    run.add_argument("--cwd", type=_utf8, metavar="DIR", help="working directory in the guest")
    run.add_argument("--user", type=_utf8, help="USER, UID, USER:GROUP or UID:GID")
    run.add_argument(
        "--env",
        action="append",
        default=[],
        type=_variable,
        metavar="NAME[=VALUE]",
        help="a variable; without a value it is passed on from this program's environment; may be repeated",
    )
    run.add_argument("--tty", action="store_true", help="give the command a terminal")
    run.add_argument("command", nargs="+", type=_utf8, metavar="COMMAND", help="after --")


def _add_bundle(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    made = commands.add_parser(
        "agent-bundle",
        help="write the agent into one file",
        description="Write the agent with all that it needs into one executable file, which Python runs without "
        "anything else being installed: python3 FILE --stdio. It is for this kind of processor and C library.",
    )
    made.add_argument("file", metavar="FILE", help="what to write; it is replaced at once")
    made.add_argument(
        "--python",
        action="append",
        metavar="VERSION",
        help="a version of Python that is to run it; may be repeated (default: " + ", ".join(VERSIONS) + ")",
    )
    made.add_argument(
        "--wheels",
        metavar="DIR",
        help="where the wheels of compiled modules are for other versions of Python than this one; without it pip "
        "fetches them",
    )


def _add_vm(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    vm = commands.add_parser(
        "vm",
        help="get what virtual machines need, and see what works here",
        description="Get what virtual machines (MicroVMGuest) need, see what works here, remove what is kept.",
    )
    actions = vm.add_subparsers(dest="action", required=True, metavar="{setup,doctor,prune}")
    actions.add_parser(
        "setup",
        help="get QEMU and a kernel where they are missing",
        description="Get QEMU and Linux kernels where they are missing, and say what is done. QEMU is installed "
        "by the system's package manager, which needs root; otherwise it says what to install. Kernels are "
        "fetched by apt-get and unpacked into the cache, without root and without installing them. Needs no "
        "network if nothing is missing.",
    )
    actions.add_parser(
        "doctor",
        help="say what works here, and what does not, and why",
        description="Say what works here, and what does not, and why. The status is 1 if no machine can be "
        "started.",
    )
    actions.add_parser(
        "prune",
        help="remove all that is kept for virtual machines",
        description="Remove all that is kept for virtual machines in $XDG_CACHE_HOME/trio_console "
        "(~/.cache/trio_console), also the kernels that setup has fetched. Running machines go on.",
    )


def _utf8(text: str) -> str:
    """The text for the bytes of an argument in UTF-8, which guests use, whatever encoding the locale names."""
    return os.fsencode(text).decode(errors="surrogateescape")


def _variable(text: str) -> tuple[str, str]:
    name, equals, value = text.partition("=")
    if not equals:
        if name not in os.environ:
            raise argparse.ArgumentTypeError(f"{name!r} is not set here: give it a value, as {name}=VALUE")
        value = os.environ[name]
    return _utf8(name), _utf8(value)

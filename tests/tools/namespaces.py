"""Functions that run as another user in a user namespace that has some users, as in a container without root.

An interpreter that this user may not read cannot be started there. So a process is forked, which has imported all.
"""

from __future__ import annotations

import ctypes
import json
import os
import subprocess
import sys
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["called_in_namespace", "serve_calls"]

_CLONE_NEWUSER = 0x1000_0000


def called_in_namespace(module: str, uid: int, users: str, *arguments: str) -> Any:
    """What ``look(*arguments)`` of a module returns, called as a user in a new user namespace.

    The module is a program that calls `serve_calls`.

    Args:
        module: the name of the module.
        uid: the user outside of the namespace, and its group.
        users: the users and groups that the namespace has, as in `user_namespaces(7)`; may be empty.
        arguments: texts.
    """
    command = [sys.executable, "-m", module, str(uid), users, *arguments]
    done = subprocess.run(command, stdout=subprocess.PIPE, check=True, timeout=60)
    return json.loads(done.stdout)


def serve_calls(look: Callable[..., Any]) -> None:
    """The program of a module that is called: see `called_in_namespace`."""
    uid, users, *arguments = sys.argv[1:]
    # The child ends one pipe when it is in its namespace, and this process the other when its users are set.
    asked, ask = os.pipe()
    told, tell = os.pipe()
    child = os.fork()
    if not child:
        os.close(asked)
        os.close(tell)
        status = 1
        try:
            _enter(int(uid))
            os.close(ask)
            os.read(told, 1)
            os.write(1, json.dumps(look(*arguments)).encode())
            status = 0
        finally:
            os._exit(status)
    os.close(ask)
    os.close(told)
    os.read(asked, 1)
    for kind in ("uid", "gid") if users else ():
        with open(f"/proc/{child}/{kind}_map", "w", encoding="ascii") as file:
            file.write(users)
    os.close(tell)
    _, status = os.waitpid(child, 0)
    sys.exit(os.waitstatus_to_exitcode(status))


def _enter(uid: int) -> None:
    os.setgroups([])
    os.setresgid(uid, uid, uid)
    os.setresuid(uid, uid, uid)
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.unshare(_CLONE_NEWUSER):
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))

"""What is trusted in a user namespace; a program, see `tests.tools.namespaces`."""

from __future__ import annotations

import os
import pwd
import socket
from typing import Any, cast

from tests.tools.namespaces import serve_calls
from trio_console._relay.log_files import LogFile
from trio_console._relay.trust import check_directory, check_server

__all__: list[str] = []


def look(what: str, path: str) -> str:
    """Why something is not trusted, or an empty text."""
    pwd.getpwall = list  # by the users of this machine a group might be another's, too
    try:
        if what == "server":
            with socket.socket(socket.AF_UNIX) as sock:
                sock.connect(path)
                check_server(cast("Any", sock), path, None)
        elif what == "log":
            LogFile(path, 1_000_000, 1).close()
        else:
            check_directory(os.open(path, os.O_RDONLY), path)
    except PermissionError as exc:
        return exc.strerror or ""
    return ""


if __name__ == "__main__":
    serve_calls(look)

"""Programs that run as another user, who can reach this interpreter: it may lie in a directory of root's.

A mount namespace has copies of what they need at other paths.
"""

from __future__ import annotations

import contextlib
import os
import shlex
import subprocess
import sys
import sysconfig
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from tests.tools.limits import HANG
from tests.tools.users import NOBODY

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["run_beside"]

_REPOSITORY = Path(__file__).parents[3]


@contextlib.contextmanager
def _places() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(dir="/tmp") as name:
        top = Path(name)
        for directory in (top, *(top / part for part in ("python", "modules", "here"))):
            directory.mkdir(exist_ok=True)
            directory.chmod(0o755)
        yield top


def run_beside(*arguments: str, uid: int = NOBODY) -> subprocess.CompletedProcess[str]:
    """Run this Python with these arguments, in a namespace in which every user can reach it.

    Args:
        arguments: of the interpreter.
        uid: the user, and the group.
    """
    with _places() as top:
        python = os.path.realpath(sys.executable)
        moved = top / "python" / os.path.relpath(python, sys.base_prefix)
        binds = {
            sys.base_prefix: top / "python",
            sysconfig.get_path("purelib"): top / "modules",
            str(_REPOSITORY): top / "here",
        }
        mounts = "; ".join(f"mount --rbind {shlex.quote(path)} {place}" for path, place in binds.items())
        env = {
            "PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
            "PYTHONPATH": f"{top}/here:{top}/modules",
            "LD_LIBRARY_PATH": f"{top}/python/lib",
            "PYTHONDONTWRITEBYTECODE": "1",
        }
        user = ["setpriv", "--reuid", str(uid), "--regid", str(uid), "--clear-groups"] if uid else []
        script = f'set -e; {mounts}; cd /; exec "$@"'
        return subprocess.run(
            ["unshare", "--mount", "sh", "-c", script, "sh", *user, str(moved), *arguments],
            env=env,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=HANG,
            check=False,
        )

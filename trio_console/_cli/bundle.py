"""``trio-console agent-bundle``: writes the agent into one file."""

from __future__ import annotations

import platform
import sys
from typing import TYPE_CHECKING

from trio_console._bundle.archive import VERSIONS, BundleError, write_bundle

if TYPE_CHECKING:
    import argparse

__all__ = ["bundle"]


def bundle(args: argparse.Namespace) -> int:
    """Write the file; returns the exit status."""
    versions = args.python or list(VERSIONS)
    try:
        size = write_bundle(args.file, versions, args.wheels)
    except BundleError as exc:
        print(f"trio-console: {exc}", file=sys.stderr)  # noqa: T201
        return 1
    except OSError as exc:
        print(f"trio-console: cannot write {args.file!r}: {exc.strerror}", file=sys.stderr)  # noqa: T201
        return 1
    print(f"{args.file}: the agent for Python {', '.join(versions)} on {platform.machine()}, {size / 1e6:.1f} MB")  # noqa: T201
    return 0

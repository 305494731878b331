"""Run a program that you do not trust, in namespaces of its own on this machine's kernel.

Run it with ``python examples/bubblewrap.py``. It needs bubblewrap (the program ``bwrap``), and no root. The guest
sees this machine's programs, one directory that it may write to, and nothing else: no file, no process, no
network. The example checks what it claims and takes a second or two.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile

import trio

import trio_console

# What it does is its own affair, and what it can reach is ours.
UNTRUSTED = """
echo "I am $(id -un), on $(hostname)"
echo "processes that I see: $(ls /proc | grep -c '^[0-9]')"
cat "$1" 2>/dev/null || echo "no file $1"
(echo >/usr/bin/sh) 2>/dev/null || echo "no way to change /usr/bin/sh"
tail -n +3 /proc/net/dev | cut -d : -f 1 | xargs echo "network:"
echo "sum: $(sort -n numbers | tail -n 1)" >result
"""


async def main() -> None:
    with tempfile.TemporaryDirectory() as work, tempfile.NamedTemporaryFile() as secret:
        await trio.Path(work, "numbers").write_text("3\n1\n2\n")
        await trio.Path(secret.name).write_text("the secret\n")
        spec = trio_console.BubblewrapGuest(shares={"/work": trio_console.Share(work, writable=True)})
        async with trio_console.open_guest(spec) as guest:
            result = await guest.run_process(
                ["sh", "-c", UNTRUSTED, "sh", secret.name], cwd="/work", capture_stdout=True
            )
            said = result.stdout.decode()
            print(said, end="", flush=True)
            assert f"no file {secret.name}" in said
            assert "no way to change" in said
            assert said.endswith("network: lo\n")

            # What it starts in the background ends with the guest, at the latest.
            async with guest.open_process(["sleep", "1000"], stdout=subprocess.DEVNULL):
                pass
        print(f"it wrote: {await trio.Path(work, 'result').read_text()}", end="", flush=True)


if __name__ == "__main__":
    try:
        trio.run(main)
    except (FileNotFoundError, trio_console.GuestLostError) as exc:  # these say what to install or to set
        sys.exit(str(exc))

"""Run a program that you do not trust, in a virtual machine with a kernel of its own.

Run it with ``python examples/microvm.py``. It needs QEMU and a Linux kernel, which ``trio-console vm setup`` gets,
and neither root, KVM nor an image. The first run makes a machine and keeps it, which takes ten seconds or so where
the processor is emulated; each later one starts a clone of it in a third of a second. What isolates it, and
what does not: docs/machines.md.
"""

from __future__ import annotations

import os
import subprocess
import sys

import trio

import trio_console

# It does some of its work, tries what it should not, and does not end.
UNTRUSTED = """
echo "I am $(id -un) on Linux $(uname -r)"
sort -n numbers | tail -n 1 >largest
rm -rf /bin/sort && echo "I have removed /bin/sort"
while :; do :; done
"""

#: Seconds that the program may take, and bytes of its output that are worth keeping.
PATIENCE = 5.0
ENOUGH = 10_000


async def main() -> None:
    spec = trio_console.MicroVMGuest(root=trio_console.Root.MINIMAL)
    async with trio_console.open_guest(spec, launch_timeout=300) as guest:
        machine = guest.machine
        assert machine is not None
        how = "a clone" if machine.cloned else "started"
        print(f"{how} ({machine.model}, {machine.accelerator}), ready in {sum(machine.seconds.values()):.2f} s")

        # In: a file, and a directory to work in.
        work = guest.path("/tmp/work")
        await work.mkdir()
        await (work / "numbers").write_text("3\n1\n2\n")

        # It runs until its time is over. Then all that it has started in the guest is ended, and this goes on.
        said = b""
        with trio.move_on_after(PATIENCE) as limit:
            async with guest.open_process(["sh", "-c", UNTRUSTED], cwd=work, stdout=subprocess.PIPE) as process:
                assert process.stdout is not None
                async for chunk in process.stdout:
                    said = (said + chunk)[:ENOUGH]
        print(said.decode(errors="replace"), end="", flush=True)
        assert limit.cancelled_caught
        print(f"ended after {PATIENCE:g} s", flush=True)

        # Out: what it has made, if it came so far. It is a stranger's, so its size is looked at first.
        largest = work / "largest"
        if await largest.exists() and (await largest.stat()).st_size < ENOUGH:
            print(f"it has found: {await largest.read_text()}", end="", flush=True)

    # Nothing of this machine was touched, and the next clone has its own /bin/sort.
    print(f"this machine runs {os.uname().sysname} {os.uname().release}", flush=True)


if __name__ == "__main__":
    try:
        trio.run(main)
    except (FileNotFoundError, trio_console.GuestLostError) as exc:  # these say what to install or to set
        sys.exit(str(exc))

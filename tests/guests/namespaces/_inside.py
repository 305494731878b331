"""What can be seen and done in a guest: a program for the guest's Python, which prints it as JSON.

It is given the paths, addresses and the process id of things of the machine that it should not reach.
"""

import json
import os
import socket
import subprocess
import sys


def attempt(call, *args):
    """None if it succeeds, or else the name of the error."""
    try:
        call(*args)
    except OSError as exc:
        return type(exc).__name__
    return None


def read(path):
    with open(path, "rb") as file:
        return file.read(1)


def connect(family, address):
    with socket.socket(family) as sock:
        sock.settimeout(5)
        sock.connect(address)


def tcp(port):
    connect(socket.AF_INET, ("127.0.0.1", port))


def unix(path):
    connect(socket.AF_UNIX, path)


def ways_to(path):
    """A file of the machine by all names that it might have here."""
    os.symlink(path, "/tmp/link")
    os.symlink("/proc/self/root", "/tmp/root")
    ids = [name for name in os.listdir("/proc") if name.isdigit()]
    yield from (path, "/tmp/link", "/tmp/root" + path, "/oldroot" + path, "/newroot" + path)
    for name in ids:
        yield from (f"/proc/{name}/root{path}", f"/proc/{name}/cwd/../../..{path}")
        for fd in os.listdir(f"/proc/{name}/fd"):
            yield f"/proc/{name}/fd/{fd}/../../../..{path}"


def writable(*tops):
    """The files in directories that may be opened for writing, but for those of processes."""
    for top in tops:
        for directory, names, files in os.walk(top):
            names[:] = [name for name in names if not (directory == "/proc" and name.isdigit())]
            for name in files:
                path = f"{directory}/{name}"
                if path.startswith(("/proc/self/", "/proc/thread-self/")) or os.path.islink(path):
                    continue
                try:
                    os.close(os.open(path, os.O_WRONLY | os.O_NONBLOCK | os.O_NOCTTY))
                except OSError:
                    continue
                yield path


def descriptors(of):
    found = set()
    for fd in os.listdir(f"/proc/{of}/fd"):
        try:
            found.add(os.readlink(f"/proc/{of}/fd/{fd}").partition(":")[0])
        except FileNotFoundError:
            continue  # the one that listed the directory
    return sorted(found)


def status():
    with open("/proc/self/status") as file:
        return dict(line.rstrip("\n").split(":\t", 1) for line in file if ":\t" in line)


def lines(path):
    with open(path) as file:
        return list(file)


def environment():
    """The names in the environment that the process was given. (Python itself adds to `os.environ`.)"""
    return sorted(entry.partition("=")[0] for entry in lines("/proc/self/environ")[0].split("\0") if entry)


def mounts():
    """The kind of each file system, and whether it may be written to, by the path."""
    found = {}
    with open("/proc/self/mounts") as file:
        for line in file:
            _, path, kind, options = line.split()[:4]
            found[path] = [kind, options.split(",")[0]]
    return found


def main():
    given = json.loads(sys.argv[1])
    found = {
        "reads": {path: attempt(read, path) for path in ways_to(given["secret"])},
        "writable": sorted(writable("/proc", "/dev", "/usr", "/run")),
        "new file in /usr": attempt(os.mkdir, "/usr/new"),
        "interfaces": [name for _, name in socket.if_nameindex()],
        "routes": lines("/proc/net/route")[1:],
        "tcp": attempt(tcp, given["port"]),
        "abstract": attempt(unix, "\0" + given["abstract"]),
        "unix": attempt(unix, given["unix"]),
        "processes": sorted(
            int(name) for name in os.listdir("/proc") if name.isdigit() and int(name) != os.getpid()
        ),
        "signal": attempt(os.kill, given["pid"], 0),
        "own descriptors": descriptors("self"),
        "agent's descriptors": descriptors(1),
        "environment": environment(),
        "capabilities": [value for name, value in status().items() if name.startswith("Cap")],
        "new privileges": status()["NoNewPrivs"] == "0",
        "ids": [os.getuid(), os.getgid(), os.getgroups()],
        "mounts": mounts(),
        "root": sorted(os.listdir("/")),
        "home": os.listdir(os.path.expanduser("~")),
        "etc": sorted(os.listdir("/etc")),
        "host name": socket.gethostname(),
        "remount": subprocess.run(
            ["unshare", "--user", "--map-root-user", "--mount", "mount", "-o", "remount,bind,rw", "/usr"],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        ).returncode,
        "shared memory": len(lines("/proc/sysvipc/shm")) - 1,
    }
    json.dump(found, sys.stdout)


main()

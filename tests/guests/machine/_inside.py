"""What can be seen and done in a machine: a program for its Python, which prints it as Python writes it.

It is given the path of a file of the host that it should not reach, a port of the host's, and an abstract socket.
"""

import os
import socket
import stat
import sys

HOSTS = ("127.0.0.1", "10.0.2.2", "192.168.122.1", "169.254.169.254", "::1", "fe80::1%lo")


def attempt(call, *args):
    """None if it succeeds, or else the name of the error."""
    try:
        call(*args)
    except OSError as exc:
        return type(exc).__name__ if exc.errno is None else os.strerror(exc.errno)
    return None


def read(path):
    with open(path, "rb") as file:
        return file.read(1)


def connect(family, address):
    with socket.socket(family) as sock:
        sock.settimeout(5)
        sock.connect(address)


def ways_to(path):
    """A file of the host by all names that it might have here."""
    name = os.path.basename(path)
    os.symlink(path, "/tmp/link")
    yield from (path, "/tmp/link")
    for process in filter(str.isdigit, os.listdir("/proc")):
        yield from (f"/proc/{process}/root{path}", f"/proc/{process}/cwd/../../../../..{path}")
        for fd in os.listdir(f"/proc/{process}/fd"):
            yield f"/proc/{process}/fd/{fd}/../../../../../..{path}"
    for share in ("/mnt/ro", "/mnt/rw"):
        for way in ("..", "../..", "absolute", "relative", "directory", "inner/../..", "inner/up"):
            yield f"{share}/{way}/{name}"
        yield from (f"{share}/to-absolute", f"{share}/to-relative", f"{share}/inner/to-relative")


def links():
    """Links that the guest itself makes, soft and hard, in the share that it may write."""
    given = eval(sys.argv[1])
    os.symlink(given["secret"], "/mnt/rw/made")
    os.symlink("../" * 20 + given["secret"], "/mnt/rw/made-relative")
    os.link("/mnt/rw/to-absolute", "/mnt/rw/hard", follow_symlinks=False)
    for name in ("made", "made-relative", "hard"):
        yield f"/mnt/rw/{name}"


def lines(path):
    with open(path) as file:
        return [line.rstrip("\n") for line in file]


def devices(bus):
    path = f"/sys/bus/{bus}/devices"
    return sorted(os.listdir(path)) if os.path.isdir(path) else []


def virtio(name):
    return int(lines(f"/sys/bus/virtio/devices/{name}/device")[0], 16)


def main():
    given = eval(sys.argv[1])
    found = {
        "reads": {path: attempt(read, path) for path in [*ways_to(given["secret"]), *links()]},
        "device node": attempt(os.mknod, "/mnt/rw/node", stat.S_IFCHR | 0o666, os.makedev(1, 5)),
        "interfaces": [name for _, name in socket.if_nameindex()],
        "routes": lines("/proc/net/route")[1:],
        "tcp": {host: attempt(socket.create_connection, (host, given["port"]), 5) for host in HOSTS},
        "abstract": attempt(connect, socket.AF_UNIX, "\0" + given["abstract"]),
        "unix": attempt(connect, socket.AF_UNIX, "/mnt/rw/socket"),
        "vsock": attempt(connect, 40, (2, given["port"])),
        "dev": sorted(os.listdir("/dev")),
        "ports": sorted(os.listdir("/sys/class/virtio-ports")),
        "block": sorted(os.listdir("/sys/block")),
        "pci": devices("pci"),
        "platform": devices("platform"),
        "virtio": sorted(virtio(name) for name in devices("virtio")),
        "mounts": {line.split()[1]: line.split()[2] for line in lines("/proc/mounts")},
        "kinds": sorted(os.listdir("/sys/class")),
    }
    sys.stdout.write(repr(found))


main()

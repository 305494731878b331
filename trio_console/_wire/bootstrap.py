"""The parts of the bootstrap message, with the host's settings for the guest.

Their declarations follow the rules in ``payloads``. This module must not know what an agent does with a setting.
"""

from __future__ import annotations

from collections.abc import Sequence  # noqa: TC003 (msgspec reads annotations)
from typing import TYPE_CHECKING, Any, Literal, TypeAlias, final

from msgspec import UNSET, Struct, field
from msgspec.structs import force_setattr

from trio_console._wire.payloads import U8, U16, U32, Omit, Omitting

if TYPE_CHECKING:
    Octets: TypeAlias = Sequence[int]
else:
    # Checked by the struct that holds them, which knows how many octets there have to be.
    Octets = Any


def _settle_octets(struct: Struct, name: str, count: int) -> None:
    """Make the field a list of ``count`` octets; a byte string, list or tuple will do."""
    value = getattr(struct, name)
    octets = list(value) if isinstance(value, bytes | list | tuple) else []
    if len(octets) != count or not all(type(o) is int and 0 <= o <= 255 for o in octets):
        raise ValueError(f"Expected {count} octets in `{name}`")
    force_setattr(struct, name, octets)


@final
class DiskImageRoot(Omitting, frozen=True, tag_field="kind", tag="disk-image"):
    device: str
    fstype: Omit[str] = UNSET


@final
class DeviceUpper(Struct, frozen=True, tag_field="kind", tag="device"):
    device: str
    fstype: str


@final
class TmpfsUpper(Omitting, frozen=True, tag_field="kind", tag="tmpfs"):
    size_mib: Omit[U32] = UNSET


@final
class OciErofsRoot(Struct, frozen=True, tag_field="kind", tag="oci-erofs"):
    lower: str
    upper: DeviceUpper | TmpfsUpper


@final
class MountFlags(Struct, frozen=True):
    readonly: bool = False
    noexec: bool = False
    nosuid: bool = False
    nodev: bool = False


@final
class DirMount(Struct, frozen=True):
    tag: str
    guest_path: str
    flags: MountFlags = field(default_factory=MountFlags)


@final
class FileMount(Struct, frozen=True):
    tag: str
    filename: str
    guest_path: str
    flags: MountFlags = field(default_factory=MountFlags)


@final
class DiskMount(Omitting, frozen=True, kw_only=True):
    id: str
    guest_path: str
    fstype: Omit[str] = UNSET
    flags: MountFlags = field(default_factory=MountFlags)


@final
class TmpfsMount(Omitting, frozen=True, kw_only=True):
    path: str
    size_mib: Omit[U32] = UNSET
    mode: Omit[U32] = UNSET
    flags: MountFlags = field(default_factory=MountFlags)


@final
class Ipv4(Omitting, frozen=True, kw_only=True):
    """Addresses are sequences of 4 octets."""

    address: Octets
    prefix_len: U8
    gateway: Octets
    dns: Omit[Octets] = UNSET

    def __post_init__(self) -> None:
        _settle_addresses(self, 4)


@final
class Ipv6(Omitting, frozen=True, kw_only=True):
    """Addresses are sequences of 16 octets."""

    address: Octets
    prefix_len: U8
    gateway: Octets
    dns: Omit[Octets] = UNSET

    def __post_init__(self) -> None:
        _settle_addresses(self, 16)


def _settle_addresses(struct: Ipv4 | Ipv6, count: int) -> None:
    Omitting.__post_init__(struct)
    for name in ("address", "gateway") if struct.dns is UNSET else ("address", "gateway", "dns"):
        _settle_octets(struct, name, count)


@final
class Network(Omitting, frozen=True, kw_only=True):
    """One network interface; ``mac`` is a sequence of 6 octets."""

    interface: str
    mac: Octets
    mtu: U16
    ipv4: Omit[Ipv4] = UNSET
    ipv6: Omit[Ipv6] = UNSET

    def __post_init__(self) -> None:
        Omitting.__post_init__(self)
        _settle_octets(self, "mac", 6)


@final
class EnvVar(Struct, frozen=True):
    key: str
    value: str


@final
class HandoffInit(Omitting, frozen=True):
    """The program that takes over as process 1."""

    cmd: str
    args: Sequence[str] = field(default_factory=list)
    cwd: Omit[str] = UNSET
    env: Sequence[EnvVar] = field(default_factory=list)


SecurityProfile: TypeAlias = Literal["default", "restricted"]

# SPDX-License-Identifier: LGPL-2.1-or-later
"""Device nodes: the number of the device behind one, and the nodes that no VM gets. Pure."""

from typing import Final

_BLOCK: Final = 1
_MINOR_BITS: Final = 32

# Of character devices, what each major number is for. There is one such node on a host, and the
# host itself and every VM use it: it is never one VM's.
_SHARED: Final = {
    1: "memory of the host",
    4: "a terminal of the host",
    5: "a terminal of the host",
    7: "a screen of the host",
    # KVM, TUN/TAP, VFIO's own node, vhost, FUSE, loop control, clocks.
    10: "one for the whole host",
    136: "a terminal of somebody's session",
}
_TUN: Final = (10, 200)
_VFIO: Final = (10, 196)


def number(major: int, minor: int, *, block: bool) -> int:
    """Return the number by which a device is known, whatever node leads to it; never 0 for one that
    there is."""
    return (major << _MINOR_BITS | minor) << 1 | (_BLOCK if block else 0)


def is_character(device: int) -> bool:
    """Say whether a device of this number is a character device; 0 is none at all."""
    return bool(device) and not device & _BLOCK


def major_minor(device: int) -> tuple[int, int]:
    """Return the kernel's two numbers of a device."""
    return device >> _MINOR_BITS + 1, device >> 1 & (1 << _MINOR_BITS) - 1


def shared_by_all(device: int) -> str:
    """Say what a character device is that belongs to the host as a whole, and what to do; empty for
    one that may be a VM's."""
    major, minor = major_minor(device)
    if (major, minor) == _TUN:
        return (
            "/dev/net/tun, the one node behind all of the host's tap devices: a label on it would "
            "take the network from every other VM. A tap device is kept for its VM by its owner "
            "(ip tuntap add dev NAME mode tap user USER); leave this node out of the request"
        )
    if (major, minor) == _VFIO:
        return (
            "/dev/vfio/vfio, the one node that every VM with a device of the host's opens: give "
            "the VM its group's own node, /dev/vfio/NUMBER, and leave this one out of the request "
            "(the boolean virt_use_vfio lets VMs open it)"
        )
    what = _SHARED.get(major)
    return f"a character device that is {what}; it is never labelled" if what else ""

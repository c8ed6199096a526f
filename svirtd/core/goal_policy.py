# SPDX-License-Identifier: LGPL-2.1-or-later
"""What the loaded policy must answer before a goal's types keep what the goal promises. Pure.

That VMs under a type are kept from each other is asked in core/separation.py; here it is what one
may do with the network and with its own disks. A name promises nothing: a type that is not loaded,
or that a site's module has widened, is not used as if it were ours.
"""

from collections.abc import Iterable, Iterator
from typing import Final

from svirtd.core.mcs import Context
from svirtd.core.separation import Ask

# Every way to others that the kernel knows sockets of. What goes through the file system (unix
# stream sockets) is files' business, but a datagram socket is what syslog and others listen on.
_SOCKETS: Final = (
    *("tcp_socket", "udp_socket", "rawip_socket", "icmp_socket", "sctp_socket"),
    *("packet_socket", "netlink_route_socket", "netlink_generic_socket", "vsock_socket"),
    *("bluetooth_socket", "tun_socket", "key_socket", "xdp_socket", "tipc_socket", "smc_socket"),
    *("can_socket", "unix_dgram_socket"),
)
_USES: Final = ("create", "bind", "connect", "read", "write")
# Devices that are a network by another name: taps, and the vhost devices, vsock's among them.
_NETWORK_DEVICES: Final = ("tun_tap_device_t", "vhost_device_t")
# What changes a disk, by whichever door, and what of a folder lets it be exchanged.
_CHANGES: Final = {
    "file": ("append", "create", "link", "rename", "setattr", "unlink", "write"),
    "blk_file": ("append", "create", "link", "rename", "setattr", "unlink", "write"),
    "dir": ("add_name", "remove_name", "rename", "rmdir", "setattr", "write"),
}
_LABELS: Final = ("relabelfrom", "relabelto")
# What a VM needs of the type that it writes: its overlay, its runtime folder, its sockets.
_OWN: Final = {
    "file": {"create", "open", "read", "write"},
    "dir": {"add_name", "search", "write"},
    "sock_file": {"create", "write"},
}
# With one of these a namespace or a mode of a file is no bound any more.
_CAPABILITIES: Final = (
    *("dac_override", "dac_read_search", "fowner", "mknod", "net_admin", "net_raw"),
    *("sys_admin", "sys_module", "sys_ptrace", "sys_rawio"),
)


def problems(
    *,
    process: Context,
    image: Context,
    content: Context,
    scratch: Context | None,
    network: bool,
    writes_images: bool,
    ask: Ask,
) -> list[str]:
    """Return what of the policy breaks a goal's promise, a sentence each; none is good.

    The contexts are those of one VM and what is its own. `scratch` is what it writes where
    `writes_images` is False. `network`: whether the goal has one. `ask` returns what the loaded
    policy decides; where it raises OSError, the policy does not know a type, and that is a problem.
    """
    try:
        return [
            *_permissive(process, ask),
            *_surplus(process, process, "capability", _CAPABILITIES, ask),
            *_network(process, image, ask, promised=network),
            *_disks(process, image, content, ask, written=writes_images),
            *_scratch(process, image if writes_images else scratch, ask),
        ]
    except OSError as error:
        # Not sure is no.
        return [f"the loaded policy does not say what {process} may ({error})"]


def _permissive(me: Context, ask: Ask) -> Iterator[str]:
    if ask(me, me, "process").permissive:
        yield f"{me.type} is a permissive domain in the loaded policy, nothing is denied to it"


def _network(me: Context, image: Context, ask: Ask, *, promised: bool) -> Iterator[str]:
    if promised:
        yield from _shortfall(me, me, "tcp_socket", ("connect", "create"), ask)
        return
    for kind in _SOCKETS:
        yield from _surplus(me, me, kind, _USES, ask)
    for device in _NETWORK_DEVICES:
        node = image.with_type(device)
        yield from _surplus(me, node, "chr_file", ("open", "read", "write"), ask)


def _disks(
    me: Context, image: Context, content: Context, ask: Ask, *, written: bool
) -> Iterator[str]:
    # Reading is what every goal is for; it also shows that the type is one that VMs run under: to
    # one that the policy gives nothing, all is forbidden.
    yield from _shortfall(me, image, "file", ("open", "read"), ask)
    yield from _shortfall(me, content, "file", ("open", "read"), ask)
    for disk in (content,) if written else (content, image):
        for kind, changes in _CHANGES.items():
            yield from _surplus(me, disk, kind, changes, ask)
        yield from _surplus(me, disk, "file", _LABELS, ask)


def _scratch(me: Context, own: Context | None, ask: Ask) -> Iterator[str]:
    if own is None:
        yield f"{me.type} writes no disk, and the goal names no type that it may write instead"
        return
    for kind, needed in _OWN.items():
        yield from _shortfall(me, own, kind, needed, ask)
    yield from _surplus(me, own, "file", _LABELS, ask)


def _surplus(
    me: Context, target: Context, kind: str, forbidden: Iterable[str], ask: Ask
) -> Iterator[str]:
    found = ask(me, target, kind).allowed & set(forbidden)
    if found:
        yield f"{me} may {', '.join(sorted(found))} the {kind} {target}"


def _shortfall(
    me: Context, target: Context, kind: str, needed: Iterable[str], ask: Ask
) -> Iterator[str]:
    missing = set(needed) - ask(me, target, kind).allowed
    if missing:
        yield f"{me} may not {', '.join(sorted(missing))} its own {kind} {target}"

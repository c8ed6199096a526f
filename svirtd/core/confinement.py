# SPDX-License-Identifier: LGPL-2.1-or-later
"""What a goal has systemd keep a VM's unit in, beside the label. Pure.

Type and namespace hold one without the other: a type that may use no network stays without where
systemd could make no namespace, and a namespace without interfaces stays so under any type.
"""

from collections.abc import Sequence
from typing import Final, assert_never

from svirtd.core.goals import Goal, Network

# "block" or "char", major and minor number, and whether the VM may write.
Node = tuple[str, int, int, bool]
Properties = tuple[tuple[str, str, object], ...]

# What a goal alone may say about a unit; api/wire.py has none of them on its white list.
BOUNDS: Final = frozenset({"PrivateNetwork", "NetworkNamespacePath", "DevicePolicy", "DeviceAllow"})


def properties(goal: Goal, namespace: str, nodes: Sequence[Node]) -> Properties:
    """Return the unit's properties (name, signature, value).

    `namespace` is the network namespace of the VM's zone, empty if it is in none. `nodes` are the
    devices among its resources.
    """
    return (*_network(goal.network, namespace), *_devices(goal.devices, nodes))


def _network(network: Network, namespace: str) -> Properties:
    match network:
        case Network.HOST:
            return ()
        case Network.NONE:
            return (("PrivateNetwork", "b", True),)
        case Network.ZONE:
            if not namespace:
                raise ValueError("a goal with the network of a zone, and no zone")
            return (("NetworkNamespacePath", "s", namespace),)
        case _:
            assert_never(network)


def _devices(allowed: Sequence[str] | None, resources: Sequence[Node]) -> Properties:
    if allowed is None:
        return ()
    nodes = [[path, "rw"] for path in allowed]
    # By number: the path of a node is somebody's to exchange.
    nodes += [
        [f"/dev/{kind}/{major}:{minor}", "rw" if writes else "r"]
        for kind, major, minor, writes in resources
    ]
    return (("DevicePolicy", "s", "closed"), ("DeviceAllow", "a(ss)", nodes))

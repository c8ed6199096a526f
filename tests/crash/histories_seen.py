# SPDX-License-Identifier: LGPL-2.1-or-later
"""A world of the model, and the world as it is seen from outside, in the same words."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from tests.crash import histories_book as book
from tests.crash import model
from tests.crash.histories_disks import Disks
from tests.crash.model import Guest, Hold
from tests.crash.model_units import UNIT
from tests.crash.model_world import World

# Ten pairs for seven VMs: they come back soon, and a full pool is met.
POOL: Final = frozenset(range(5))
_WORDS: Final = (
    "Id",
    "State",
    "Categories",
    "ProcessContext",
    "ImageContext",
    "Persistent",
    "Unit",
    "HasReason",
    "Resources",
    "Groups",
    "LastingGroups",
    "LabelledBy",
    "Enrolled",
)


def expected(world: World, disks: Disks) -> dict[str, Any]:
    """What must be seen of a world."""
    return {
        "files": {name: (file.ino, file.label) for name, file in world.files.items()},
        "vms": {vm.name: _vm(vm, disks, world) for vm in world.vms.values()},
        "suspects": sorted((one.pair, disks.path(one.path), one.ino) for one in world.suspects),
        "counts": (len(world.in_use()), len(world.quarantined())),
        "groups": {
            name: (
                category,
                sorted(vm.name for vm in world.vms.values() if name in vm.groups | vm.lasting),
                sorted(vm for group, vm in world.grants if group == name),
            )
            for name, category in world.groups.items()
        },
    }


def _vm(vm: Guest, disks: Disks, world: World) -> dict[str, Any]:
    ours = {"MainPID": vm.pid, "LabelledBy": "libvirt"} if vm.libvirt else {"LabelledBy": "svirtd"}
    images = world.whole(vm) if vm.libvirt else vm.pair
    return ours | {
        "Groups": sorted(vm.groups),
        "LastingGroups": sorted(vm.lasting),
        "Id": vm.id,
        "State": vm.state,
        "Categories": model.text(vm.pair),
        "ProcessContext": f"{model.PROCESS}:{model.text(world.whole(vm))}",
        "ImageContext": f"{model.IMAGE}:{model.text(images)}",
        "Persistent": vm.persistent,
        "Unit": (UNIT if vm.enrolled else f"svirt-{vm.name}.service") if vm.unit else "",
        "Enrolled": UNIT if vm.enrolled else "",
        "HasReason": vm.state == "failed",
        "Resources": [_hold(hold, disks) for hold in vm.holds],
    }


def _hold(hold: Hold, disks: Disks) -> dict[str, Any]:
    shown: dict[str, Any] = {
        "id": hold.id,
        "path": disks.path(hold.path),
        "access": hold.access,
        "context": hold.label,
        "original": hold.original or "",
        "group": hold.group,
        "part-of": hold.part_of,
    }
    if hold.tree:
        shown["recursive"] = True
    if hold.until:
        shown |= {"until": hold.until, "at-end": hold.at_end}
    optional = ("group", "part-of")
    return {key: value for key, value in shown.items() if value or key not in optional}


def seen(
    objects: Mapping[str, Any], manager: Mapping[str, Any], disks: Disks, path: Path
) -> dict[str, Any]:
    """What is seen: the VM objects and the manager's properties, the files, the book at `path`."""
    vms, groups = {}, {}
    for interfaces in objects.values():
        group = interfaces.get("org.svirt1.Group")
        if group is not None:
            granted = sorted(one["vm"] for one in group["Grants"])
            groups[group["Name"]] = int(group["Category"][1:]), group["Members"], granted
            continue
        if "org.svirt1.Job" in interfaces:
            continue
        vm = interfaces["org.svirt1.VM"]
        vm["HasReason"] = bool(vm["StateReason"])
        words = (*_WORDS, "MainPID") if vm["LabelledBy"] == "libvirt" else _WORDS
        vms[vm["Name"]] = {key: vm[key] for key in words}
    return {
        "files": disks.labels(),
        "vms": vms,
        "suspects": book.suspects(path, POOL),
        "counts": (manager["PairsInUse"], manager["PairsQuarantined"]),
        "groups": groups,
    }

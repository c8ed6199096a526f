# SPDX-License-Identifier: LGPL-2.1-or-later
"""The matrix of a whole host, answered by the loaded policy: no VM can do more or less."""

import json
import random
import subprocess
from typing import Any, Final

from svirtd.host.bus import Variant
from tests.guest.inside.audit import Audit
from tests.guest.inside.vms import Captive, captive, disk
from tests.support import Client, label, unwrap

VMS: Final = 50
RESOURCES: Final = 100
GROUPS: Final = 10
SEED: Final = 6
# Each with whether it is a group's.
ACCESSES: Final = (
    ("exclusive", False),
    ("readonly", False),
    ("public", False),
    ("group", True),
    ("readonly", True),
)


def matrix(client: Client) -> list[dict[str, Any]]:
    # Thousands of questions to the kernel, emulated.
    client.deadline_s = 120.0
    (cells,) = client.call("Matrix", "a{sv}", {})
    return [dict(unwrap(one)) for one in cells]


def populate(client: Client) -> tuple[list[str], list[str]]:
    """Have random resources with random accesses held by so many VMs in random groups.

    Returns the names of the VMs and of the groups.
    """
    chance = random.Random(SEED)
    names = [f"vm{number}" for number in range(VMS)]
    groups = [f"group{number}" for number in range(GROUPS)]
    for group in groups:
        client.call("CreateGroup", "sa{sv}", group, {})
    member_of = {name: chance.sample(groups, chance.randint(0, 3)) for name in names}
    held: dict[str, list[dict[str, Variant]]] = {name: [] for name in names}
    for number in range(RESOURCES):
        path = disk(f"matrix{number}")
        access, shared = chance.choice(ACCESSES)
        resource = {"path": Variant("s", str(path)), "access": Variant("s", access)}
        able, most = names, 5 if access == "public" else 1
        if shared:
            group = chance.choice(groups)
            resource["group"] = Variant("s", group)
            able, most = [name for name in names if group in member_of[name]], 5
        for name in chance.sample(able, min(len(able), chance.randint(1, most))):
            held[name].append(resource)
    for number, name in enumerate(names):
        options = {
            "persistent": Variant("b", True),
            "groups": Variant("as", member_of[name]),
            # Some run in another domain than the rest.
            "goal": Variant("s", "offline" if number % 5 == 0 else "isolated"),
        }
        client.call("Acquire", "saa{sv}a{sv}", name, held[name], options)
    return names, groups


def test_no_surplus_and_no_shortfall(client: Client) -> None:
    names, groups = populate(client)
    try:
        told = matrix(client)
        assert len(told) == VMS * RESOURCES + VMS * (VMS - 1)
        assert {one["by"] for one in told} == {"policy"}
        assert [one for one in told if one["surplus"] or one["shortfall"]] == []
        granted = sum(bool(one["granted"]) for one in told)
        # A public one is for all: there are some, and private ones that only their holders use.
        assert VMS < granted < VMS * RESOURCES
        print(f"matrix: {len(told)} questions, {granted} granted, no surplus, no shortfall")
    finally:
        for name in names:
            client.release(name)
            client.call("Forget", "sa{sv}", name, {})
        for group in groups:
            client.call("DeleteGroup", "sa{sv}", group, {})


def test_a_member_of_a_group_is_known_by_its_label(client: Client) -> None:
    """One that somebody else starts: beside the set of its own it has the group's category."""
    client.call("CreateGroup", "sa{sv}", "g", {})
    options = {"groups": Variant("as", ["g"])}
    (path,) = client.call("Acquire", "saa{sv}a{sv}", "member", [], options)
    context = client.properties("member")["ProcessContext"]
    unit = "known-by-label.service"
    program = [captive()[0], "-I", "-S", "-c", "import time; time.sleep(600)"]
    run = ["systemd-run", "-q", "--collect", f"--unit={unit}", f"-pSELinuxContext={context}"]
    subprocess.run([*run, *program], check=True)
    try:
        show = ["systemctl", "show", "--value", "-pMainPID", unit]
        done = subprocess.run(show, capture_output=True, text=True, check=True)
        assert client.call("GetVMByPID", "u", int(done.stdout)) == [path]
    finally:
        subprocess.run(["systemctl", "stop", unit], check=True)
        client.release("member")
        client.call("DeleteGroup", "sa{sv}", "g", {})


def test_what_it_says_is_what_a_process_can_do(client: Client, audit: Audit) -> None:
    own, others = disk("a"), disk("b")
    vms = [Captive(client, name, path) for name, path in (("a", own), ("b", others))]
    cells = matrix(client)
    argv = ["svirtctl", "--json", "matrix"]
    done = subprocess.run(argv, capture_output=True, text=True, check=True)
    assert json.loads(done.stdout) == {"enforced": True, "cells": cells}
    told = {(one["vm"], one["object"]): one["allowed"] for one in cells}
    assert {"read", "write"} <= set(told["a", str(own)])
    assert vms[0].do(f"read({str(own)!r})") > 0
    assert vms[0].do(f"write({str(own)!r})") > 0
    assert told["a", str(others)] == told["a", "b"] == []
    for use in ("read", "write"):
        with audit.denied(f"{use} open", vms[0].context, str(label(others))):
            assert vms[0].fails(f"{use}({str(others)!r})") == "EACCES"
    for vm in vms:
        vm.end()

# SPDX-License-Identifier: LGPL-2.1-or-later
"""Attacks by what is for root's libvirt: labels that nobody sets, and the end of VMs of others."""

from collections.abc import Iterator

import pytest

from svirtd.host.bus import Variant
from tests.attacks.arena import DENIALS, Arena
from tests.attacks.defences import against
from tests.attacks.stranger import Stranger
from tests.sandbox.accounts import Account
from tests.support import VM, label, resources

UUID = "6c3a6e6e-0000-4000-8000-000000000001"
OPTIONS = {"labelled-by": Variant("s", "libvirt"), "uuid": Variant("s", UUID)}
SET = {**OPTIONS, "categories": Variant("s", "c17,c402")}


@pytest.fixture
def stranger(arena: Arena, ann: Account) -> Stranger:
    return arena.stranger(ann)


@against("only root's libvirt labels instead of svirtd")
@pytest.mark.parametrize("options", [OPTIONS, SET], ids=["labels", "categories"])
def test_labels_that_nobody_sets(
    arena: Arena, stranger: Stranger, ann: Account, options: dict[str, Variant]
) -> None:
    """A VM of the book whose disk carries nothing, under categories of one's choice."""
    disk = arena.disk(ann)
    before = label(disk)
    for member in () if arena.without else ("Acquire", "Plan"):
        refused = stranger.error(member, "saa{sv}a{sv}", "vm", resources(disk), options)
        assert refused.name in DENIALS
        assert "labelled-by" in refused.text
    if not arena.without:
        assert arena.root.vms() == {}
        return
    stranger.call("Acquire", "saa{sv}a{sv}", "vm", resources(disk), options)
    vm = stranger.properties("vm")
    arena.verdict(vm["LabelledBy"] == "libvirt" and label(disk) == before, "nothing was labelled")
    stranger.release("vm")


@pytest.fixture
def domain(arena: Arena) -> Iterator[str]:
    """A VM of root's libvirt that was checked in."""
    arena.root.call("Acquire", "saa{sv}a{sv}", "domain", [], OPTIONS)
    yield "/org/svirt1/vm/domain"
    arena.root.release("domain")


@against("only the owner may")
@pytest.mark.parametrize("member", ["Follow", "Ending"])
def test_what_libvirts_hook_says(
    arena: Arena, stranger: Stranger, ann: Account, domain: str, member: str
) -> None:
    # Held, so that there is something to follow.
    arena.root.release("domain")
    disk = arena.disk(ann)
    arena.root.call("Acquire", "saa{sv}a{sv}", "domain", resources(disk), OPTIONS)
    signature = "ua{sv}" if member == "Follow" else "a{sv}"
    body = [1, {}] if member == "Follow" else [{}]
    if not arena.without:
        refused = stranger.error(member, signature, *body, path=domain, interface=VM)
        assert refused.name in DENIALS
        assert arena.root.properties("domain")["State"] == "labelled"
        return
    if member == "Follow":
        # That it runs under the label is looked at, whoever says so.
        refused = stranger.error(member, signature, *body, path=domain, interface=VM)
        arena.verdict(refused.name == "org.svirt1.Error.LabelRefused", "was not refused")
        return
    stranger.call(member, signature, *body, path=domain, interface=VM)
    arena.verdict(arena.root.properties("domain")["State"] == "releasing", "not watched any more")

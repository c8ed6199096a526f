# SPDX-License-Identifier: LGPL-2.1-or-later
"""Rules about nodes, about what images lie over, and about mounts that say the label themselves."""

from dataclasses import replace

import pytest

from svirtd.core import nodes
from svirtd.core.filesystems import ALLOWED, Labels, Mount, problem, quoted
from svirtd.core.goals import BUILT_INS, ISOLATED, Goal
from svirtd.core.mcs import parse_context
from svirtd.core.model import (
    Access,
    Contexts,
    Hold,
    Identity,
    Kind,
    Override,
    Seen,
    Snapshot,
    Terms,
)
from svirtd.core.plan import Decision, Sets, plan
from svirtd.core.rules import Asker, Rules

CONTEXTS = Contexts(
    parse_context("system_u:system_r:svirt_t:s0"),
    parse_context("system_u:object_r:svirt_image_t:s0"),
    parse_context("system_u:object_r:virt_content_t:s0"),
)
RULES = Rules(
    frozenset({"virt_image_t", "virt_content_t"}),
    frozenset(range(768)),
    2,
    frozenset(range(768, 1024)),
    frozenset({"usb_device_t", "tun_tap_device_t"}),
)
SETS = Sets(frozenset({17, 402}), {"g": 800})
GOOD = "system_u:object_r:virt_image_t:s0"
CONTENT = "system_u:object_r:virt_content_t:s0"
OWN = "system_u:object_r:svirt_image_t:s0:c17,c402"
USB = "system_u:object_r:usb_device_t:s0"
ROOT, USER = Asker(0, frozenset()), Asker(1000, frozenset())
KEPT = Mount("ext4", "/", Labels.KEPT)
STICK = nodes.number(189, 3, block=False)


def one(**changes: object) -> Seen:
    seen = Seen(
        *("/a", Access.EXCLUSIVE, "/a", Identity(1, 2), Kind.FILE, 1),
        setid=False,
        label=GOOD,
        owner_uid=1000,
        mount=KEPT,
    )
    return replace(seen, **changes)  # type: ignore[arg-type]


def device(**changes: object) -> Seen:
    values = {"kind": Kind.CHARACTER, "label": USB, "owner_uid": 0, "device": STICK}
    return one(**values | changes)


def decide(
    seen: Seen, *holds: Hold, asker: Asker = ROOT, goal: Goal = ISOLATED, vm: str = "v"
) -> Decision:
    snapshot = Snapshot(
        {seen.identity: [one for one in holds if one.identity == seen.identity]},
        {seen.device: [one for one in holds if one.device == seen.device]} if seen.device else {},
    )
    return plan(vm, [seen], snapshot, CONTEXTS, SETS, goal, RULES, asker).decisions[0]


def refused(decision: Decision) -> str:
    assert decision.refusal is not None
    assert decision.step is None
    return str(decision.refusal)


# -- nodes ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", [Kind.FIFO, Kind.SOCKET])
@pytest.mark.parametrize("access", Access)
def test_fifos_and_sockets_are_used_by_who_may_write_them(kind: Kind, access: Access) -> None:
    terms = Terms(group="g" if access is Access.GROUP else "")
    decision = decide(one(kind=kind, access=access, terms=terms), asker=USER)
    if access.writes:
        assert decision.step is not None
        assert "svirt_image_t" in str(decision.step.new)
    else:
        assert "ask for access 'exclusive'" in refused(decision)


def test_a_device_is_one_vms() -> None:
    decision = decide(device())
    assert decision.step is not None
    assert (decision.step.old, decision.step.new) == (USB, OWN)
    for access in (Access.READONLY, Access.PUBLIC):
        assert "ask for access 'exclusive'" in refused(decide(device(access=access)))
    shared = device(access=Access.GROUP, terms=Terms(group="g"))
    assert "which one VM has at a time" in refused(decide(shared))


def test_a_device_is_roots_to_give() -> None:
    assert "belongs to uid 0, and you are uid 1000" in refused(decide(device(), asker=USER))
    assert decide(device(), asker=Asker(1000, frozenset({Override.OWNER}))).step is not None


@pytest.mark.parametrize(
    "label",
    [
        *(f"system_u:object_r:{kind}:s0" for kind in ("memory_device_t", "virt_image_t", "tty_t")),
        None,
    ],
)
def test_only_types_of_devices_that_are_for_vms(label: str | None) -> None:
    assert "relabel-devices-from" in refused(decide(device(label=label)))


def test_a_file_is_not_taken_by_the_list_for_devices() -> None:
    assert "[labels] relabel-from" in refused(decide(one(label=USB)))
    assert "[labels] relabel-from" in refused(decide(one(label=USB, kind=Kind.BLOCK)))


@pytest.mark.parametrize(
    ("major", "minor", "why"),
    [
        (1, 1, "memory of the host"),
        (4, 64, "a terminal of the host"),
        (10, 200, "/dev/net/tun, the one node behind all"),
        (10, 196, "/dev/vfio/NUMBER"),
        (10, 232, "one for the whole host"),
        (136, 0, "somebody's session"),
    ],
)
def test_what_is_the_whole_hosts_is_never_one_vms(major: int, minor: int, why: str) -> None:
    """Whatever its type says, and whoever asks."""
    number = nodes.number(major, minor, block=False)
    label = "system_u:object_r:tun_tap_device_t:s0"
    every = Asker(0, frozenset(Override))
    assert why in refused(decide(device(device=number, label=label), asker=every))
    # A block device of that number is another one.
    assert nodes.shared_by_all(number)
    assert nodes.number(major, minor, block=True) != number


@pytest.mark.parametrize("goal", BUILT_INS.values(), ids=lambda goal: str(goal.name))
def test_a_device_goes_with_no_goal_that_bounds_the_network(goal: Goal) -> None:
    decision = decide(device(), goal=goal)
    if goal is ISOLATED:
        assert decision.step is not None
    else:
        assert decision.refusal is not None


def test_numbers_of_devices() -> None:
    for major, minor in ((0, 1), (8, 16), (189, 1023), (511, (1 << 20) - 1)):
        for block in (False, True):
            found = nodes.number(major, minor, block=block)
            assert nodes.major_minor(found) == (major, minor)
            assert nodes.is_character(found) is not block
            assert 0 < found < 1 << 63
    assert not nodes.is_character(0)


@pytest.mark.parametrize("block", [False, True])
def test_two_vms_on_one_device_by_two_nodes(block: bool) -> None:
    """Invariant 5: one holder, under whatever name."""
    number = nodes.number(8, 16, block=block)
    seen = device(device=number, kind=Kind.BLOCK if block else Kind.CHARACTER, label=GOOD)
    held = Hold(
        *("w", "the-other", Identity(7, 8), "/dev/other", Access.EXCLUSIVE, OWN, USB),
        owner_uid=1000,
        device=number,
    )
    for asker in (ROOT, Asker(1000, frozenset({Override.OWNER}))):
        said = refused(decide(seen, held, asker=asker))
        assert "/a is the same device" in said
        assert "VM 'the-other' (as /dev/other)" in said
    # Even a VM that has it: two nodes would carry two labels.
    assert "the same device" in refused(decide(seen, held, vm="w"))
    stranger = refused(decide(seen, held, asker=Asker(1001, frozenset({Override.OWNER}))))
    assert "a VM of another user" in stranger
    assert "the-other" not in stranger


# -- what images lie over ------------------------------------------------------------------------


def below(**changes: object) -> Seen:
    values = {"access": Access.PUBLIC, "terms": Terms(below="/top", part_of="/top")}
    return one(**values | changes)


def test_a_rule_is_lifted_for_what_was_named_and_not_for_what_a_header_names() -> None:
    every = Asker(1000, frozenset(Override))
    assert decide(one(owner_uid=0, links=2, access=Access.PUBLIC), asker=every).step is not None
    assert "belongs to uid 0" in refused(decide(below(owner_uid=0), asker=every))
    assert "hard links" in refused(decide(below(links=2), asker=every))
    assert "hard links" in refused(decide(below(links=2), asker=Asker(0, frozenset(Override))))


@pytest.mark.parametrize("terms", [Terms(), Terms(below="/top", part_of="/top")])
def test_anybody_reads_what_every_vm_reads_already(terms: Terms) -> None:
    """A base image of the administrator's, which he has given the content type."""
    seen = one(owner_uid=0, label=CONTENT, access=Access.PUBLIC, terms=terms)
    decision = decide(seen, asker=USER)
    assert decision.stays
    assert decision.step is not None
    assert decision.step.old == decision.step.new == CONTENT
    for other in (
        replace(seen, label=GOOD),
        replace(seen, label=CONTENT + ":c1"),
        replace(seen, access=Access.READONLY),
        replace(seen, access=Access.EXCLUSIVE),
    ):
        assert "belongs to uid 0" in refused(decide(other, asker=USER))
    # Its owner gets it otherwise once nobody reads it, and is told who does.
    held = Hold("u", "reader", seen.identity, "/a", Access.PUBLIC, CONTENT, CONTENT, owner_uid=1000)
    assert "held by VM 'reader'" in refused(decide(one(owner_uid=0, label=CONTENT), held))


# -- mounts --------------------------------------------------------------------------------------


def on(kind: str, labels: Labels, **changes: str) -> Mount:
    return Mount(kind, "/mnt", labels, **changes)


@pytest.mark.parametrize("kind", ["vfat", "nfs4", "tmpfs", "cifs"])
def test_a_mount_whose_label_is_the_very_one(kind: str) -> None:
    mount = on(kind, Labels.FIXED)
    decision = decide(one(mount=mount, label=OWN), asker=USER)
    assert decision.stays
    assert decision.step is not None
    assert decision.step.old == decision.step.new == OWN
    assert decide(one(mount=mount, label=CONTENT, access=Access.PUBLIC), asker=USER).stays
    for label in (
        GOOD,
        None,
        OWN.replace("c402", "c403"),
        "system_u:object_r:svirt_image_t:s0",
        "system_u:object_r:svirt_image_t:s0:c17",
        CONTENT,
    ):
        said = refused(decide(one(mount=mount, label=label)))
        assert "on /mnt, mounted with the option context=" in said
        assert f'context="{OWN}"' in said


@pytest.mark.parametrize(
    ("mount", "said"),
    [
        (
            on("vfat", Labels.NONE),
            ["kind vfat, mounted at /mnt", "cannot keep a label", "context="],
        ),
        (on("nfs", Labels.NONE), ["NFS 4.2", "security_label", "virt_use_nfs is no way"]),
        (
            on("nfs4", Labels.NONE, opened_by="virt_use_nfs"),
            ["boolean virt_use_nfs is on", "nothing keeps the VMs apart"],
        ),
        (on("cifs", Labels.NONE), ["virt_use_samba"]),
        (on("ext4", Labels.NONE), ["cannot keep a label"]),
        (on("fuse.sshfs", Labels.KEPT), ["a user's process answers"]),
        (on("fuse.sshfs", Labels.FIXED), ["a user's process answers"]),
        (on("strange", Labels.FIXED), ["none of those"]),
        (on("9p", Labels.KEPT), ["cannot keep a label"]),
        (on("virtiofs", Labels.NONE), ["context="]),
    ],
)
def test_file_systems_that_cannot_keep_a_label(mount: Mount, said: list[str]) -> None:
    for asker in (ROOT, USER):
        found = refused(decide(one(mount=mount, label=OWN), asker=asker))
        assert "file system of kind" in found
        assert "/mnt" in found
        for text in said:
            assert text in found


@pytest.mark.parametrize("kind", sorted(ALLOWED))
def test_where_labels_are_kept_or_are_those_of_the_mount(kind: str) -> None:
    assert not problem(on(kind, Labels.KEPT))
    assert not problem(on(kind, Labels.FIXED))
    assert problem(on(kind, Labels.NONE))


def test_how_an_option_is_written() -> None:
    assert quoted(CONTENT) == CONTENT
    assert quoted(OWN) == f'"{OWN}"'

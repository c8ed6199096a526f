# SPDX-License-Identifier: LGPL-2.1-or-later
"""What one user tries with another's VM: end it, talk to it, take its name, look into it."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from svirtd.host.bus import Variant
from tests.attack import DENIED
from tests.attacks.arena import DENIALS, Arena, tries
from tests.attacks.defences import against
from tests.attacks.stranger import Stranger
from tests.sandbox.accounts import Account
from tests.support import JOB, PROPERTIES, ROOT, VM, resources, unwrap

ACQUIRE = "saa{sv}a{sv}"
PATH = f"{ROOT}/vm/anns"
OBJECT_MANAGER = "org.freedesktop.DBus.ObjectManager"
# What everybody may know of a VM.
PUBLIC = {"Name", "State", "Owner"}


@pytest.fixture
def disk(arena: Arena, ann: Account) -> Path:
    """The disk of a VM of Ann's, named "anns"."""
    return arena.disk(ann, "secret-disk.img")


@pytest.fixture
def owner(arena: Arena, ann: Account, disk: Path) -> Iterator[Stranger]:
    """Ann, with her VM; it is there afterwards, unless its defence is off."""
    owner = arena.stranger(ann)
    owner.acquire("anns", disk, persistent=Variant("b", True))
    before = owner.properties("anns")
    yield owner
    if not arena.without:
        assert owner.properties("anns") == before
        owner.release("anns")
        owner.call("Forget", "sa{sv}", "anns", {})


@against("only the owner may")
def test_release_by_name(arena: Arena, owner: Stranger, ben: Account) -> None:
    answer = tries(arena.stranger(ben), "Release", "sa{sv}", "anns", {})
    arena.verdict(answer == "", "Release")
    assert answer in {"", *DENIALS}


@against("only the owner may")
def test_release_by_object(arena: Arena, owner: Stranger, ben: Account) -> None:
    stranger = arena.stranger(ben)
    answer = tries(stranger, "Release", "a{sv}", {}, path=PATH, interface=VM)
    arena.verdict(answer == "", "Release of the object")
    assert answer in {"", *DENIALS}


@against("only the owner may")
def test_forget(arena: Arena, ann: Account, ben: Account) -> None:
    owner = arena.stranger(ann)
    owner.call("Acquire", ACQUIRE, "anns", [], {"persistent": Variant("b", True)})
    answer = tries(arena.stranger(ben), "Forget", "sa{sv}", "anns", {})
    arena.verdict(answer == "", "Forget")
    if answer:
        assert answer in DENIALS
        owner.call("Release", "sa{sv}", "anns", {})
        owner.call("Forget", "sa{sv}", "anns", {})


def test_the_name_is_taken(arena: Arena, owner: Stranger, ben: Account, nobody: Account) -> None:
    """Acquiring or launching under her name gives nothing of hers, and no word of what she has."""
    for account in (ben, nobody):
        stranger = arena.stranger(account)
        for member, signature, body in (
            ("Acquire", ACQUIRE, ["anns", [], {}]),
            ("Acquire", ACQUIRE, ["anns", [], {"persistent": Variant("b", True)}]),
            ("Launch", "sasaa{sv}a{sv}", ["anns", ["/bin/true"], [], {}]),
        ):
            refused = stranger.error(member, signature, *body)
            assert refused.name in {*DENIALS, "org.svirt1.Error.VMExists"}, refused
            assert "secret-disk" not in refused.text


def test_no_words_of_ids(arena: Arena, owner: Stranger, ben: Account) -> None:
    """Neither the right Id nor a wrong one opens anything, or tells which is right."""
    stranger = arena.stranger(ben)
    right = owner.properties("anns")["Id"]
    answers = {
        tries(stranger, "Release", "sa{sv}", "anns", {"id": Variant("s", right)}),
        tries(stranger, "OpenChannel", "sa{sv}", "qmp", {"id": Variant("s", right)}, path=PATH,
              interface=VM),
    }  # fmt: skip
    assert answers <= DENIALS


@against("others see that a VM exists, and no more")
def test_properties(arena: Arena, owner: Stranger, disk: Path, ben: Account) -> None:
    stranger = arena.stranger(ben)
    (shown,) = stranger.call("GetAll", "s", VM, path=PATH, interface=PROPERTIES)
    (tree,) = stranger.call("GetManagedObjects", interface=OBJECT_MANAGER)
    seen = set(unwrap(shown)) | set(unwrap(tree)[PATH][VM])
    said = json.dumps([unwrap(shown), unwrap(tree)], default=str)
    arena.verdict(not seen <= PUBLIC or str(disk) in said, "properties")
    if arena.without:
        return
    assert seen == PUBLIC
    for name in sorted(set(owner.properties("anns")) - PUBLIC):
        answer = tries(stranger, "Get", "ss", VM, name, path=PATH, interface=PROPERTIES)
        assert answer == DENIED, name
    for name in PUBLIC:
        assert tries(stranger, "Get", "ss", VM, name, path=PATH, interface=PROPERTIES) == ""


@against("others see that a VM exists, and no more")
def test_owners_of_a_path(arena: Arena, owner: Stranger, disk: Path, ben: Account) -> None:
    stranger = arena.stranger(ben)
    categories = owner.properties("anns")["Categories"]
    said = json.dumps([unwrap(stranger.call("FindOwners", "s", what)) for what in
                       (str(disk), categories, f"x:y:z:s0:{categories}")])  # fmt: skip
    arena.verdict("anns" in said, "FindOwners")
    assert arena.without or str(disk) not in said


def test_a_disk_in_use_names_nobody(
    arena: Arena, owner: Stranger, disk: Path, ben: Account
) -> None:
    """By whatever way Ben asks, he learns neither who holds a file nor whether it is held."""
    stranger = arena.stranger(ben)
    open_to_all = arena.victim(ben, mode=0o666)
    for path in (disk, open_to_all):
        refused = stranger.error("Acquire", ACQUIRE, "bens", resources(path), {})
        assert "anns" not in refused.text
        assert "hold" not in refused.text


@against("signals carry what everybody may know")
def test_signals(arena: Arena, ann: Account, ben: Account) -> None:
    stranger = arena.stranger(ben)
    stranger.do(_listen)
    owner = arena.stranger(ann)
    disk = arena.disk(ann, "secret-disk.img")
    owner.acquire("anns", disk)
    shown = owner.properties("anns")
    owner.release("anns")
    heard = stranger.do(_heard, "VMRemoved")
    secrets = [str(disk), shown["Categories"], shown["ProcessContext"], shown["Id"]]
    arena.verdict([one for one in secrets if one in heard], "signals")
    if not arena.without:
        assert "VMAdded" in heard


def _listen(me: Any) -> None:
    me.client.listen()


def _heard(me: Any, last: str) -> str:
    from tests.support import wait_for

    wait_for(last, lambda: me.client.seen(last))
    return repr([(msg.member, unwrap(msg.body)) for msg in me.client.signals])


def test_a_job_of_roots(arena: Arena, ben: Account) -> None:
    stranger = arena.stranger(ben)
    for number in (1, 2):
        answer = tries(stranger, "Cancel", "a{sv}", {}, path=f"{ROOT}/job/{number}", interface=JOB)
        assert answer == "org.freedesktop.DBus.Error.UnknownObject"


@pytest.mark.parametrize("member", ["Verify", "Backup"])
@against("only the owner may")
def test_what_is_roots(arena: Arena, ben: Account, member: str) -> None:
    body: list[Any] = [True, {}] if member == "Verify" else [{}]
    answer = tries(arena.stranger(ben), member, "ba{sv}" if member == "Verify" else "a{sv}", *body)
    arena.verdict(answer == "", member)
    assert answer in {"", *DENIALS}

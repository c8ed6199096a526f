# SPDX-License-Identifier: LGPL-2.1-or-later
"""The second lock in every state of kernel and policy; the real policy is the guest tier's."""

import asyncio
import re
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import cast

import pytest

from svirtd.core.mcs import Context, parse_context
from svirtd.core.model import VM, Caller, Mode, Standing
from svirtd.engine.authorize import Action
from svirtd.engine.doors import Doors
from svirtd.engine.events import Entry
from svirtd.engine.locks import Locks
from svirtd.engine.meant import Meant
from svirtd.engine.object_manager import ObjectManager
from svirtd.engine.queries import Queries
from svirtd.errors import AccessDenied, NoSuchVM
from svirtd.host.audit import AuditLog
from svirtd.host.journal import Journal, MessageId
from svirtd.host.kernel import Access, Kernel, Status
from tests.authorities import root_only
from tests.support import REPO

OWN = "system_u:system_r:svirtd_t:s0-s0:c0.c1023"
VMS = "system_u:system_r:svirt_t:s0:c1,c2"
USER = "user_u:user_r:user_t:s0"
ROOT = Caller(":1.1", 0, 1, USER)
ANN = Caller(":1.2", 1000, 2, USER)


@dataclass
class FakeKernel:
    """A kernel with a policy that grants `granted` to everybody."""

    mode: Mode = Mode.ENFORCING
    known: bool = True
    broken: bool = False
    granted: bool = True
    permissive: bool = False
    audited: bool = False
    asked: list[tuple[str, str, str, str]] = field(default_factory=list)

    def status(self) -> Status:
        return Status(self.mode, 1)

    def enabled(self) -> bool:
        return self.mode is not Mode.DISABLED

    def own_context(self) -> Context | None:
        return parse_context(OWN) if self.enabled() else None

    def has_class(self, kind: str) -> bool:
        return kind == "svirtd" and self.known and self.enabled()

    def check_access(self, source: str, target: str, kind: str, permission: str) -> Access:
        assert self.enabled()
        self.asked.append((source, target, kind, permission))
        if self.broken:
            raise OSError(22, "Invalid argument")
        permissive = self.permissive or self.mode is Mode.PERMISSIVE
        return Access(self.granted, permissive, self.audited)


class FakeAudit:
    def __init__(self) -> None:
        self.told: list[tuple[str, int]] = []

    def user_avc(self, text: str, uid: int) -> None:
        self.told.append((text, uid))


class FakeJournal:
    def __init__(self) -> None:
        self.records: list[tuple[MessageId, str]] = []

    def record(self, message_id: MessageId, message: str, **_: object) -> None:
        self.records.append((message_id, message))


def manager(
    kernel: FakeKernel, audit: FakeAudit | None = None, journal: FakeJournal | None = None
) -> ObjectManager:
    return ObjectManager(
        cast("Kernel", kernel),
        cast("AuditLog", audit or FakeAudit()),
        cast("Journal", journal or FakeJournal()),
    )


def machine() -> VM:
    vm = object.__new__(VM)
    object.__setattr__(vm, "name", 'a "b" c')
    object.__setattr__(vm, "id", "0123456789abcdef")
    object.__setattr__(vm, "process_context", VMS)
    return vm


@pytest.mark.parametrize("caller", [ROOT, ANN])
def test_the_target_is_the_daemon_or_the_vm(caller: Caller) -> None:
    kernel = FakeKernel()
    manager(kernel).check(caller, "launch")
    manager(kernel).check(caller, "release", machine())
    assert kernel.asked == [
        (USER, OWN, "svirtd", "launch"),
        (USER, VMS, "svirtd", "release"),
    ]


@pytest.mark.parametrize("caller", [ROOT, ANN])
@pytest.mark.parametrize("audited", [True, False])
def test_a_denial_is_for_everybody_and_told_where_the_policy_wants_that(
    caller: Caller, *, audited: bool
) -> None:
    audit = FakeAudit()
    kernel = FakeKernel(granted=False, audited=audited)
    with pytest.raises(AccessDenied, match=r"does not let user_t launch \(svirtd \{ launch \}\)"):
        manager(kernel, audit).check(caller, "launch")
    text = (
        f"avc:  denied  {{ launch }} for uid={caller.uid} spid={caller.pid} "
        f"scontext={USER} tcontext={OWN} tclass=svirtd permissive=0"
    )
    assert audit.told == ([(text, caller.uid)] if audited else [])


def test_a_record_names_the_vm_and_cannot_be_forged_by_it() -> None:
    audit = FakeAudit()
    with pytest.raises(AccessDenied):
        manager(FakeKernel(granted=False, audited=True), audit).check(ANN, "release", machine())
    ((text, _),) = audit.told
    encoded = b'a "b" c'.hex().upper()
    assert f" vm={encoded} scontext=" in text
    assert f" tcontext={VMS} " in text


@pytest.mark.parametrize("mode", [Mode.ENFORCING, Mode.PERMISSIVE])
def test_what_is_permissive_is_served_and_told(mode: Mode) -> None:
    audit = FakeAudit()
    kernel = FakeKernel(mode, granted=False, audited=True, permissive=mode is Mode.ENFORCING)
    manager(kernel, audit).check(ANN, "launch")
    ((text, _),) = audit.told
    assert "denied  { launch }" in text
    assert text.endswith("permissive=1")


def test_what_is_granted_is_told_only_if_the_policy_asks_for_it() -> None:
    audit = FakeAudit()
    manager(FakeKernel(), audit).check(ANN, "launch")
    assert audit.told == []
    manager(FakeKernel(audited=True), audit).check(ANN, "launch")
    ((text, _),) = audit.told
    assert text.startswith("avc:  granted  { launch } ")


@pytest.mark.parametrize("caller", [ROOT, ANN])
def test_a_policy_that_cannot_be_asked_grants_nothing(caller: Caller) -> None:
    """A context or a permission that it does not know, or no context at all."""
    kernel = FakeKernel(broken=True)
    with pytest.raises(AccessDenied, match=r"does not say whether user_u:\S+ may launch"):
        manager(kernel).check(caller, "launch")
    kernel.mode = Mode.PERMISSIVE
    manager(kernel).check(caller, "launch")


@pytest.mark.parametrize("caller", [ROOT, ANN])
@pytest.mark.parametrize("mode", Mode)
def test_a_policy_without_the_class(caller: Caller, mode: Mode) -> None:
    kernel, journal = FakeKernel(mode, known=False), FakeJournal()
    lock = manager(kernel, journal=journal)
    if mode is Mode.ENFORCING and caller is ANN:
        with pytest.raises(AccessDenied, match=r"no class svirtd.* load svirtd's policy module"):
            lock.check(caller, "read")
    else:
        lock.check(caller, "read")
    assert kernel.asked == []
    standing = Standing(mode, "default", 1, "")
    lock.enforcement(standing, standing)
    told = [one for one, text in journal.records if "only root is served" in text]
    assert told == [MessageId.WARNING] * (mode is Mode.ENFORCING)


def test_nothing_is_said_where_the_class_is_known() -> None:
    journal = FakeJournal()
    manager(FakeKernel(), journal=journal).warn(Standing(Mode.ENFORCING, "default", 1, ""))
    assert journal.records == []


@pytest.mark.parametrize("action", Action)
def test_no_action_of_anybody_passes_by(action: Action) -> None:
    """Not root's, not an owner's: the policy is asked first, with a permission of the class."""
    kernel = FakeKernel(granted=False)
    authority = root_only(manager(kernel))
    for caller in (ROOT, ANN):
        with pytest.raises(AccessDenied, match="SELinux: the policy does not let user_t"):
            authority.at_once(caller, action, owner_uid=caller.uid)
    declared = (REPO / "policy" / "svirtd_class.cil").read_text("utf-8")
    (permissions,) = re.findall(r"^\(class svirtd \(([a-z ]+)\)\)$", declared, re.M)
    assert {asked[3] for asked in kernel.asked} <= set(permissions.split())
    assert len(kernel.asked) == 2


@pytest.mark.parametrize(("found", "meant"), [(None, ""), (machine(), "another")])
def test_names_are_alike_to_whoever_may_not_read(found: VM | None, meant: str) -> None:
    """Of a VM that is not there, too, only the policy's word is told."""

    class Book:
        async def read(self, _look: object) -> VM | None:
            return found

    for granted, error in ((False, AccessDenied), (True, NoSuchVM)):
        authority = root_only(manager(FakeKernel(granted=granted)))
        doors = cast("Doors", SimpleNamespace(store=Book(), authority=authority))
        with pytest.raises(error):
            asyncio.run(Meant(doors, Locks()).vm(ANN, "vm", meant))


def test_one_vm_is_read_by_its_own_context_too() -> None:
    entry = Entry(machine(), ())

    class Book:
        async def read(self, _look: object) -> Entry:
            return entry

    kernel = FakeKernel()
    doors = SimpleNamespace(store=Book(), authority=root_only(manager(kernel)))
    assert asyncio.run(Queries(cast("Doors", doors)).vm(ANN, "vm")) is entry
    assert [asked[1:] for asked in kernel.asked] == [
        (OWN, "svirtd", "read"),
        (VMS, "svirtd", "read"),
    ]

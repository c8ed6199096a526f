# SPDX-License-Identifier: LGPL-2.1-or-later
"""What the policy keeps from a caller's own context is kept from it by svirtd, too."""

import asyncio
from dataclasses import replace
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, cast

import pytest

from svirtd.core.filesystems import Mount
from svirtd.core.mcs import Context, parse_context
from svirtd.core.model import (
    Access,
    Caller,
    Identity,
    Kind,
    Lifetime,
    Override,
    Request,
    ResourceRequest,
    Seen,
)
from svirtd.core.separation import Decision
from svirtd.engine import openings
from svirtd.engine.authorize import Action
from svirtd.errors import AccessDenied, Failed, InvalidArgs, LabelRefused, ResourceRefused
from svirtd.host.kernel import Kernel

if TYPE_CHECKING:
    from svirtd.engine.doors import Doors

USER = "user_u:user_r:user_t:s0"
IMAGE = "system_u:object_r:virt_image_t:s0"
VM_DOMAIN = parse_context("system_u:system_r:svirt_t:s0")
QEMU = "system_u:object_r:qemu_exec_t:s0"
BIN = "system_u:object_r:bin_t:s0"
READ = frozenset({"getattr", "open", "read"})
WRITE = READ | {"write"}


class FakeKernel:
    """A policy: what it allows of (source type, target type, class)."""

    def __init__(self, allowed: dict[tuple[str, str, str], frozenset[str]]) -> None:
        self.allowed = allowed
        self.permissive = False
        self.is_enforcing = True
        self.is_enabled = True
        self.broken = False

    def enabled(self) -> bool:
        return self.is_enabled

    def enforcing(self) -> bool:
        return self.is_enforcing

    def decide(self, source: Context, target: Context, kind: str) -> Decision:
        if self.broken:
            raise OSError(22, "Invalid argument")
        found = self.allowed.get((source.type, target.type, kind), frozenset())
        return Decision(found, self.permissive)


def seen(**changes: Any) -> Seen:
    values: dict[str, Any] = {
        "named": "/a.img",
        "access": Access.EXCLUSIVE,
        "path": "/a.img",
        "identity": Identity(1, 2),
        "kind": Kind.FILE,
        "links": 1,
        "setid": False,
        "label": IMAGE,
        "owner_uid": 1000,
        "mount": Mount("ext4"),
    }
    return Seen(**values | changes)


def ask(kernel: FakeKernel, *objects: Seen, label: str = USER, uid: int = 1000) -> None:
    caller = Caller(":1.1", uid, label=label)
    openings.refuse_by_policy(cast("Kernel", kernel), caller, objects)


def kernel(allowed: frozenset[str], kind: str = "file", target: str = "virt_image_t") -> FakeKernel:
    return FakeKernel({("user_t", target, kind): allowed})


def test_the_callers_own_context_is_asked_for() -> None:
    ask(kernel(WRITE), seen())
    ask(kernel(READ), seen(access=Access.READONLY), seen(access=Access.PUBLIC))
    ask(kernel(WRITE, "blk_file"), seen(kind=Kind.BLOCK))
    ask(kernel(WRITE, target="unlabeled_t"), seen(label=None))


@pytest.mark.parametrize("uid", [0, 1000])
def test_what_it_may_not_is_refused_with_both_contexts(uid: int) -> None:
    for missing in sorted(WRITE):
        with pytest.raises(ResourceRefused) as refused:
            ask(kernel(WRITE - {missing}), seen(), uid=uid)
        assert f"/a.img carries {IMAGE}" in str(refused.value)
        assert f"your own context {USER}" in str(refused.value)
        assert f"file: {missing}" in str(refused.value)
    for one, policy in (
        (seen(access=Access.READONLY), kernel(READ - {"read"})),
        (seen(kind=Kind.BLOCK), kernel(WRITE)),
        (seen(label=None), kernel(WRITE)),
    ):
        with pytest.raises(ResourceRefused):
            ask(policy, one)


def test_who_has_no_context_opens_nothing() -> None:
    for label in ("", "nonsense", "a:b"):
        with pytest.raises(Failed, match="does not say under which context"):
            ask(kernel(WRITE), seen(), label=label)


def test_no_answer_is_a_refusal() -> None:
    broken = kernel(WRITE)
    broken.broken = True
    with pytest.raises(ResourceRefused, match="the policy does not say"):
        ask(broken, seen())


def test_where_nothing_is_enforced_nothing_is_asked() -> None:
    for name, value in (("is_enforcing", False), ("is_enabled", False), ("permissive", True)):
        policy = kernel(frozenset())
        setattr(policy, name, value)
        ask(policy, seen(), label=USER)


def enter(policy: FakeKernel, label: str | None) -> None:
    openings.refuse_entry(cast("Kernel", policy), "/bin/x", label, VM_DOMAIN)


def test_a_program_that_a_vm_may_begin_with() -> None:
    enough = frozenset({"entrypoint", "execute", "read"})
    policy = FakeKernel({("svirt_t", "qemu_exec_t", "file"): enough})
    enter(policy, QEMU)
    for label, type_ in ((BIN, "bin_t"), (None, "unlabeled_t")):
        with pytest.raises(LabelRefused) as refused:
            enter(policy, label)
        assert f"has type {type_}" in str(refused.value)
        assert "qemu_exec_t" in str(refused.value)
    for missing in ("entrypoint", "execute"):
        policy.allowed = {("svirt_t", "qemu_exec_t", "file"): enough - {missing}}
        with pytest.raises(LabelRefused, match=missing):
            enter(policy, QEMU)
    with pytest.raises(InvalidArgs, match="cannot be judged"):
        enter(policy, "nonsense")
    policy.is_enforcing = False
    enter(policy, BIN)
    policy.is_enabled = False
    enter(policy, "nonsense")


def test_an_account_is_what_the_bus_says() -> None:
    caller = Caller(":1.1", 1000, groups=(1000, 27))
    account = openings.account_of(caller)
    assert (account.uid, account.gid, account.groups) == (1000, 1000, (1000, 27))
    for groups in (None, ()):
        with pytest.raises(Failed, match="in which groups"):
            openings.account_of(Caller(":1.1", 1000, groups=groups))


def test_the_policy_is_asked_before_root_lifts_a_rule() -> None:
    """A confined service that runs as root is no less confined for naming an override."""
    asked: list[Action] = []

    class Denying:
        async def authorize(self, _caller: Caller, action: Action) -> None:
            asked.append(action)
            raise AccessDenied("the policy does not let you")

    doors = cast("Doors", SimpleNamespace(authority=Denying()))
    resource = ResourceRequest("/a.img", None, Access.EXCLUSIVE)
    plain = Request("vm", (resource,), "isolated", "", False, Lifetime.RELEASE, frozenset())
    lifting = replace(plain, overrides=frozenset({Override.LINKS}))

    async def work(request: Request) -> None:
        async with openings.Openings(doors).lifted(Caller(":1.1", 0), request) as held:
            assert held is None

    asyncio.run(work(plain))
    assert asked == []
    with pytest.raises(AccessDenied):
        asyncio.run(work(lifting))
    assert asked == [Action.USE_ANY_FILE]

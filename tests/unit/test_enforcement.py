# SPDX-License-Identifier: LGPL-2.1-or-later
"""When svirtd starts and serves, by what the kernel says; the real kernel is the guest tier's."""

from dataclasses import replace
from typing import cast

import pytest

from svirtd.config import Config
from svirtd.core.mcs import Context, parse_context
from svirtd.core.model import Contexts, Mode
from svirtd.core.separation import Decision
from svirtd.engine.enforcement import Enforcement
from svirtd.errors import LabelRefused, NotEnforcing, StartError
from svirtd.host.kernel import Kernel, Status

CONTEXTS = Contexts(
    parse_context("system_u:system_r:svirt_t:s0"),
    parse_context("system_u:object_r:svirt_image_t:s0"),
    parse_context("system_u:object_r:virt_content_t:s0"),
)


class FakeKernel:
    """What svirtd asks of a kernel, in every state that one kernel is never in at once."""

    def __init__(self, mode: Mode) -> None:
        self.seen = Status(mode, 1)
        self.permissive = False
        self.bad_context = ""
        self.broken = False
        self.hidden = ""
        self.questions = 0

    def status(self) -> Status:
        return self.seen

    def policy_name(self) -> str:
        return "" if self.seen.mode is Mode.DISABLED else "default"

    def has_class(self, kind: str) -> bool:
        return kind == "svirtd"

    def check_context(self, context: str) -> None:
        if self.bad_context and self.bad_context in context:
            raise LabelRefused(f"the kernel does not accept the context {context}")

    def own_context(self) -> Context | None:
        return parse_context("system_u:system_r:svirtd_t:s0-s0:c0.c1023")

    def decide(self, source: Context, target: Context, kind: str) -> Decision:
        self.questions += 1
        if self.broken:
            raise OSError(22, "Invalid argument")
        if source.type == "svirtd_t":
            kinds = {"file": {"relabelfrom", "relabelto"}, "process": {"getattr"}}
            return Decision(frozenset(kinds[kind] if kind != self.hidden else ()), False)
        allowed = set()
        if kind == "file" and source.categories >= target.categories:
            content = target.type == CONTEXTS.content.type
            allowed = {"open", "read"} if content else {"open", "read", "write"}
        return Decision(frozenset(allowed), self.permissive)


def enforcement(kernel: FakeKernel, require: str = "enforcing") -> Enforcement:
    return Enforcement(cast("Kernel", kernel), replace(Config(), require=require), CONTEXTS)


@pytest.mark.parametrize("mode", Mode)
@pytest.mark.parametrize("require", ["enforcing", "permissive", "none"])
def test_what_is_required_and_what_is(require: str, mode: Mode) -> None:
    enough = require == "none" or mode is Mode.ENFORCING
    enough = enough or (require == "permissive" and mode is Mode.PERMISSIVE)
    judge = enforcement(FakeKernel(mode), require)
    if enough:
        judge.check_start()
        judge.refuse_unprotected()
    else:
        with pytest.raises(StartError, match=f'SELinux is {mode.value} .* require = "{require}"'):
            judge.check_start()
        with pytest.raises(NotEnforcing, match=f"SELinux has become {mode.value}"):
            judge.refuse_unprotected()
    assert judge.now().enforced == (mode is Mode.ENFORCING)


@pytest.mark.parametrize("require", ["enforcing", "permissive", "none"])
@pytest.mark.parametrize("fault", ["permissive", "bad_context", "broken", "process", "file"])
def test_a_policy_that_is_not_to_be_trusted(require: str, fault: str) -> None:
    kernel = FakeKernel(Mode.ENFORCING)
    if fault in ("process", "file"):
        kernel.hidden = fault
    else:
        setattr(kernel, fault, "svirt_image_t" if fault == "bad_context" else True)
    judge = enforcement(kernel, require)
    assert not judge.now().enforced
    assert judge.now().problem
    if require == "none":
        judge.check_start()
        judge.refuse_unprotected()
        return
    with pytest.raises(StartError, match="the loaded policy does not keep VMs apart: "):
        judge.check_start()
    with pytest.raises(NotEnforcing, match="does not keep VMs apart: "):
        judge.refuse_unprotected()


def test_another_policy_is_asked_again_and_the_same_is_not() -> None:
    kernel = FakeKernel(Mode.ENFORCING)
    judge = enforcement(kernel)
    judge.check_start()
    asked = kernel.questions
    assert asked
    judge.refuse_unprotected()
    assert kernel.questions == asked
    kernel.permissive = True
    judge.refuse_unprotected()  # nothing says that anything has changed
    kernel.seen = Status(Mode.ENFORCING, 2)
    with pytest.raises(NotEnforcing, match="svirt_t is a permissive domain"):
        judge.refuse_unprotected()
    kernel.permissive = False
    kernel.seen = Status(Mode.ENFORCING, 3)
    judge.refuse_unprotected()


def test_enforcing_that_is_switched_off_is_met_at_once() -> None:
    kernel = FakeKernel(Mode.ENFORCING)
    judge = enforcement(kernel)
    judge.refuse_unprotected()
    kernel.seen = Status(Mode.PERMISSIVE, 1)
    with pytest.raises(NotEnforcing, match="setenforce 1"):
        judge.refuse_unprotected()
    kernel.seen = Status(Mode.ENFORCING, 1)
    judge.refuse_unprotected()


@pytest.mark.parametrize("private", ["c0.c767", "c0,c1", "c1,c2", "c5.c9"])
@pytest.mark.parametrize("size", [1, 2])
def test_the_two_sets_that_are_asked_about_are_a_hard_case(private: str, size: int) -> None:
    asked: list[tuple[frozenset[int], frozenset[int]]] = []

    class Listening(FakeKernel):
        def decide(self, source: Context, target: Context, kind: str) -> Decision:
            if source.type == "svirt_t":
                asked.append((frozenset(source.categories), frozenset(target.categories)))
            return super().decide(source, target, kind)

    config = replace(Config(), private=private, private_size=size)
    Enforcement(cast("Kernel", Listening(Mode.ENFORCING)), config, CONTEXTS).check_start()
    mine = {source for source, _ in asked}
    assert len(mine) == 1
    (own,) = mine
    others = {target for _, target in asked if target and target != own}
    assert len(others) == 1
    (other,) = others
    assert len(own) == len(other) == size
    assert len(own & other) == size - 1

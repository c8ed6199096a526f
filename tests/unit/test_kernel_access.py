# SPDX-License-Identifier: LGPL-2.1-or-later
"""A permission asked of the policy by name, while policies come and go."""

from collections.abc import Callable
from typing import Any, cast

import pytest

from svirtd.core.mcs import parse_context
from svirtd.host.kernel import Access, Kernel

PERMISSIONS = ("read", "launch", "release")


class Decision:
    allowed = auditallow = auditdeny = flags = 0


class FakeBinding:
    """libselinux with a policy in which the class has another number after each load."""

    def __init__(self) -> None:
        self.loaded = 1
        self.enforcing = 1
        self.flags = 0
        self.granted = {"read"}
        self.auditallow: set[str] = set()
        self.auditdeny = set(PERMISSIONS)
        self.permissions: tuple[str, ...] = PERMISSIONS
        self.asked = 0
        self.on_compute: Callable[[], None] = lambda: None
        self._cached = 0

    def number(self) -> int:
        return 100 + self.loaded

    def selinux_status_policyload(self) -> int:
        return self.loaded

    def selinux_status_getenforce(self) -> int:
        return self.enforcing

    def selinux_flush_class_cache(self) -> None:
        self._cached = 0

    def string_to_security_class(self, name: str) -> int:
        if name != "svirtd":
            return 0
        self._cached = self._cached or self.number()
        return self._cached

    def security_av_perm_to_string(self, number: int, bit: int) -> str | None:
        assert number == self._cached
        # The order is another in each policy, too.
        names = self.permissions if self.loaded % 2 else self.permissions[::-1]
        place = bit.bit_length() - 1
        return names[place] if place < len(names) else None

    def av_decision(self) -> Decision:
        return Decision()

    def security_compute_av_flags_raw(
        self, source: str, target: str, number: int, requested: int, decision: Any
    ) -> int:
        self.asked += 1
        self.on_compute()
        if "bad" in source + target:
            raise OSError(22, "Invalid argument")
        wrong = number != self.number()
        names = self.permissions if self.loaded % 2 else self.permissions[::-1]

        def bits(of: set[str]) -> int:
            return sum(1 << place for place, name in enumerate(names) if name in of)

        decision.allowed = 0xFFFFFFFF if wrong else bits(self.granted)
        decision.auditallow, decision.auditdeny = bits(self.auditallow), bits(self.auditdeny)
        decision.flags = self.flags
        return 0


@pytest.fixture
def binding() -> FakeBinding:
    return FakeBinding()


@pytest.fixture
def kernel(binding: FakeBinding) -> Kernel:
    kernel = object.__new__(Kernel)
    kernel._selinux = cast("Any", binding)
    kernel._enabled = True
    kernel._classes = {}
    return kernel


def ask(kernel: Kernel, permission: str = "launch", kind: str = "svirtd") -> Access:
    return kernel.check_access("u:r:a_t:s0", "u:r:b_t:s0", kind, permission)


def test_granted_and_denied(kernel: Kernel, binding: FakeBinding) -> None:
    assert ask(kernel, "read") == Access(granted=True, permissive=False, audited=False)
    assert ask(kernel) == Access(granted=False, permissive=False, audited=True)
    binding.auditdeny.clear()
    binding.auditallow.add("read")
    assert ask(kernel, "read").audited
    assert not ask(kernel).audited


@pytest.mark.parametrize(("flags", "enforcing"), [(1, 1), (0, 0)])
def test_permissive(kernel: Kernel, binding: FakeBinding, flags: int, enforcing: int) -> None:
    binding.flags, binding.enforcing = flags, enforcing
    assert ask(kernel) == Access(granted=False, permissive=True, audited=True)


def test_numbers_are_those_of_the_loaded_policy(kernel: Kernel, binding: FakeBinding) -> None:
    for _ in range(3):
        assert ask(kernel, "read").granted
        assert not ask(kernel).granted
        binding.loaded += 1


def test_a_policy_that_comes_in_between(kernel: Kernel, binding: FakeBinding) -> None:
    """The answer by the old numbers, which say yes to everything here, does not count."""
    ask(kernel)

    def load() -> None:
        binding.loaded += 1
        binding.on_compute = lambda: None

    binding.on_compute = load
    assert not ask(kernel).granted
    binding.asked = 0
    binding.on_compute = lambda: setattr(binding, "loaded", binding.loaded + 1)
    with pytest.raises(OSError, match="one policy after the other"):
        ask(kernel)
    assert binding.asked == 5


def test_what_the_policy_does_not_know_is_not_granted(kernel: Kernel, binding: FakeBinding) -> None:
    with pytest.raises(OSError, match="no class other"):
        ask(kernel, kind="other")
    with pytest.raises(OSError, match="no permission fly"):
        ask(kernel, "fly")
    with pytest.raises(OSError, match="Invalid argument"):
        kernel.check_access("bad", "u:r:b_t:s0", "svirtd", "read")
    # Nor what an older module lacks and a newer one brings.
    binding.permissions = ("read",)
    binding.loaded += 2
    with pytest.raises(OSError, match="no permission launch"):
        ask(kernel)


def test_a_class_is_looked_up_once_for_each_policy(kernel: Kernel, binding: FakeBinding) -> None:
    assert kernel.has_class("svirtd")
    assert not kernel.has_class("other")
    binding.permissions = ()  # would be seen if it looked again
    assert not ask(kernel).granted
    binding.loaded += 2
    with pytest.raises(OSError, match="no permission"):
        ask(kernel)


def test_a_whole_decision_by_names(kernel: Kernel, binding: FakeBinding) -> None:
    source = parse_context("u:r:a_t:s0")
    assert kernel.decide(source, source, "svirtd").allowed == {"read"}
    binding.loaded += 1
    binding.granted = {"launch", "release"}
    assert kernel.decide(source, source, "svirtd").allowed == {"launch", "release"}
    with pytest.raises(OSError, match="no class other"):
        kernel.decide(source, source, "other")


def test_without_selinux_there_is_no_class(kernel: Kernel) -> None:
    kernel._enabled = False
    assert not kernel.has_class("svirtd")

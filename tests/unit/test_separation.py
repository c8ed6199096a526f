# SPDX-License-Identifier: LGPL-2.1-or-later
"""What makes a policy isolate VMs: a model of one that does, and each way to break it."""

from collections.abc import Callable
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from svirtd.core.mcs import Context, parse_context
from svirtd.core.model import Contexts
from svirtd.core.separation import Ask, Decision, blind_spots, problems

untimed = settings(deadline=None)
CONTEXTS = Contexts(
    parse_context("system_u:system_r:svirt_t:s0"),
    parse_context("system_u:object_r:svirt_image_t:s0"),
    parse_context("system_u:object_r:virt_content_t:s0"),
)
MINE, OTHERS = frozenset({0, 1}), frozenset({0, 2})
# What the types alone allow, before categories are looked at.
TYPES = {
    ("svirt_t", "svirt_image_t", "file"): {"open", "read", "write", "append", "getattr", "unlink"},
    ("svirt_t", "virt_content_t", "file"): {"open", "read", "getattr"},
    ("svirt_t", "svirt_t", "process"): {"signal", "signull", "sigkill", "ptrace", "getsched"},
}
# Not bound by categories in the reference policy.
FREE = {"getattr", "signull"}


def policy(
    *,
    constrained: bool = True,
    permissive: bool = False,
    more: Callable[[Context, Context, str], set[str]] = lambda _s, _t, _k: set(),
) -> Ask:
    """The reference policy in small: types, and categories where the domain is constrained."""

    def ask(source: Context, target: Context, kind: str) -> Decision:
        allowed = set(TYPES.get((source.type, target.type, kind), ()))
        if constrained and not source.categories >= target.categories:
            allowed &= FREE
        return Decision(frozenset(allowed | more(source, target, kind)), permissive)

    return ask


def test_a_policy_that_isolates() -> None:
    assert problems(CONTEXTS, MINE, OTHERS, policy()) == []


def test_under_levels_only_opening_is_not_asked_about() -> None:
    """What an opening is for is: reading, writing, appending."""
    for opens, said in (("open", []), ("read", ["read"]), ("append", ["append"])):

        def more(source: Context, target: Context, kind: str, word: str = opens) -> set[str]:
            others = source.categories != target.categories and kind == "file"
            return {word} if others and target.categories else set()

        found = problems(CONTEXTS, MINE, OTHERS, policy(more=more), levels=True)
        assert [one for one in found if f"may {opens} " in one] == [one for one in found if said]
        assert bool(found) is bool(said)
        assert problems(CONTEXTS, MINE, OTHERS, policy(more=more))


@untimed
@given(st.sets(st.integers(0, 1023), min_size=2, max_size=2), st.integers(0, 1023))
def test_any_two_sets_will_do(mine: set[int], other: int) -> None:
    others = frozenset({min(mine), other})
    found = problems(CONTEXTS, frozenset(mine), others, policy())
    assert (found == []) == (not others <= mine)


def test_a_domain_that_categories_do_not_bind() -> None:
    found = problems(CONTEXTS, MINE, OTHERS, policy(constrained=False))
    me, image = "system_u:system_r:svirt_t:s0:c0,c1", "system_u:object_r:svirt_image_t:s0:c0,c2"
    assert found == [
        f"{me} may append, open, read, unlink, write the file {image}",
        f"{me} may open, read the file system_u:object_r:virt_content_t:s0:c0,c2",
        f"{me} may ptrace, sigkill, signal the process system_u:system_r:svirt_t:s0:c0,c2",
    ]


def test_a_permissive_domain() -> None:
    (found,) = problems(CONTEXTS, MINE, OTHERS, policy(permissive=True))
    assert found == (
        "svirt_t is a permissive domain in the loaded policy, nothing is denied to it: "
        "semanage permissive -d svirt_t"
    )


@pytest.mark.parametrize("type_", ["svirt_image_t", "virt_content_t"])
def test_a_policy_that_does_not_know_the_types(type_: str) -> None:
    changed = replace(
        CONTEXTS,
        image=replace(CONTEXTS.image, type="a_t" if type_ == "svirt_image_t" else type_),
        content=replace(CONTEXTS.content, type="a_t" if type_ == "virt_content_t" else type_),
    )
    found = [one for one in problems(changed, MINE, OTHERS, policy()) if "a_t" in one]
    assert len(found) == 1
    assert "its own file system_u:object_r:a_t:" in found[0]


@pytest.mark.parametrize(
    ("permission", "target", "kind"),
    [
        *((one, "svirt_image_t:s0:c0,c2", "file") for one in ("open", "read", "write", "append")),
        *((one, "svirt_image_t:s0:c0,c2", "file") for one in ("setattr", "unlink", "execute")),
        *((one, "svirt_image_t:s0:c0,c1", "file") for one in ("relabelfrom", "relabelto")),
        *((one, "virt_content_t:s0:c0,c2", "file") for one in ("open", "read")),
        *((one, "virt_content_t:s0", "file") for one in ("write", "append")),
        *((one, "svirt_t:s0:c0,c2", "process") for one in ("signal", "sigkill", "sigstop")),
        *((one, "svirt_t:s0:c0,c2", "process") for one in ("ptrace", "transition")),
        ("dyntransition", "svirt_t:s0:c0,c2", "process"),
    ],
)
def test_one_permission_too_many(permission: str, target: str, kind: str) -> None:
    def more(_source: Context, seen: Context, seen_kind: str) -> set[str]:
        hit = str(seen).endswith(f":{target}") and seen_kind == kind
        return {permission} if hit else set()

    (found,) = problems(CONTEXTS, MINE, OTHERS, policy(more=more))
    assert f" may {permission} the {kind} " in found
    assert found.endswith(f":{target}")


@pytest.mark.parametrize("hidden", ["process", "svirt_image_t", "virt_content_t", ""])
def test_what_the_daemon_cannot_see_or_label(hidden: str) -> None:
    daemon = parse_context("system_u:system_r:svirtd_t:s0-s0:c0.c1023")

    def ask(source: Context, target: Context, kind: str) -> Decision:
        assert source == daemon
        assert target.categories == MINE
        given = {"process": {"getattr"}, "file": {"relabelfrom", "relabelto"}}[kind]
        return Decision(frozenset() if hidden in (kind, target.type) else frozenset(given), False)

    found = blind_spots(daemon, CONTEXTS, MINE, ask)
    assert len(found) == bool(hidden)
    assert all(("svirt_t" if hidden == "process" else hidden) in one for one in found)

# SPDX-License-Identifier: LGPL-2.1-or-later
"""What a policy must answer before its labels keep VMs apart. Pure: the engine asks the kernel.

Categories bind only domains that the policy constrains by them (mcs_constrained_type in the
reference policy); under any other type a VM may use every image of the host, whatever the labels
say. So the questions are about what counts, what one VM may do to another, and not about names of
attributes.
"""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Final

from svirtd.core.mcs import Context
from svirtd.core.model import Contexts

# What a VM may do with what is its own. Without it no VM runs, and the refusals below would prove
# nothing: a policy that knows none of these types refuses all.
_OWN_IMAGE: Final = frozenset({"open", "read", "write"})
_OWN_CONTENT: Final = frozenset({"open", "read"})
# What it may not, each on its own.
_OTHERS_IMAGE: Final = ("open", "read", "write", "append", "setattr", "unlink", "execute")
_OTHERS_CONTENT: Final = ("open", "read")
_CONTENT_OF_ALL: Final = ("write", "append")
_OTHERS_PROCESS: Final = ("signal", "sigkill", "sigstop", "ptrace", "transition", "dyntransition")
# Not bound by levels in the reference policy: whoever opens a file reads, writes or appends to it,
# and the kernel asks for that as well, by the same call. Categories bind it, too.
_UNBOUND_BY_LEVELS: Final = frozenset({"open"})
# One that could relabel would give its disk, or itself, to whom it likes.
_LABELS: Final = ("relabelfrom", "relabelto")


@dataclass(frozen=True, slots=True)
class Decision:
    """The policy's word on one subject, object and class."""

    allowed: frozenset[str]
    permissive: bool
    """Whether the subject's domain is permissive: what is not allowed happens all the same."""


Ask = Callable[[Context, Context, str], Decision]


def problems(
    contexts: Contexts,
    mine: frozenset[int],
    others: frozenset[int],
    ask: Ask,
    *,
    levels: bool = False,
) -> list[str]:
    """Return what of the policy breaks the isolation of two VMs, a sentence each; none is good.

    `mine` and `others` are private sets; such as share all but one category make the hardest case.
    `ask` returns what the loaded policy decides for subject, object and class. `levels`: that
    policy keeps VMs apart by levels, of which categories are a part (MLS), not by categories alone.
    """
    others_image = _bound(_OTHERS_IMAGE, levels=levels)
    others_content = _bound(_OTHERS_CONTENT, levels=levels)
    me = contexts.process.with_categories(mine)
    return [
        *_permissive(me, ask),
        *_unusable(me, contexts.image.with_categories(mine), _OWN_IMAGE, ask),
        *_unusable(me, contexts.content.with_categories(mine), _OWN_CONTENT, ask),
        *_open(me, contexts.image.with_categories(others), "file", others_image, ask),
        *_open(me, contexts.content.with_categories(others), "file", others_content, ask),
        *_open(me, contexts.content.with_categories(frozenset()), "file", _CONTENT_OF_ALL, ask),
        *_open(me, contexts.process.with_categories(others), "process", _OTHERS_PROCESS, ask),
        *_open(me, contexts.image.with_categories(mine), "file", _LABELS, ask),
    ]


def between(
    contexts: Contexts,
    base: Contexts,
    mine: frozenset[int],
    others: frozenset[int],
    ask: Ask,
    *,
    levels: bool = False,
) -> list[str]:
    """Return what of the policy breaks the isolation of a VM with these contexts from one with the
    base contexts, in either direction; none is good. `levels` as in problems().
    """
    others_image = _bound(_OTHERS_IMAGE, levels=levels)
    me, it = contexts.process.with_categories(mine), base.process.with_categories(others)
    return [
        *_open(me, base.image.with_categories(others), "file", others_image, ask),
        *_open(me, it, "process", _OTHERS_PROCESS, ask),
        *_open(it, contexts.image.with_categories(mine), "file", others_image, ask),
        *_open(it, me, "process", _OTHERS_PROCESS, ask),
    ]


def blind_spots(daemon: Context, contexts: Contexts, mine: frozenset[int], ask: Ask) -> list[str]:
    """Return what the policy keeps from the daemon that it must be able to do, a sentence each.

    A process that it cannot see would be taken for one that has ended, and its categories given to
    the next VM.
    """
    found = []
    process = contexts.process.with_categories(mine)
    if "getattr" not in ask(daemon, process, "process").allowed:
        found.append(
            f"{daemon.type} may not look at processes of {process.type}: the policy module says "
            "which it may, svirtd_vm_domain()"
        )
    for context in (contexts.image, contexts.content):
        if not ask(daemon, context.with_categories(mine), "file").allowed >= set(_LABELS):
            found.append(
                f"{daemon.type} may not label files {context.type}: the policy module says which "
                "it may, svirtd_image()"
            )
    return found


def _bound(permissions: Iterable[str], *, levels: bool) -> list[str]:
    return [one for one in permissions if not levels or one not in _UNBOUND_BY_LEVELS]


def _permissive(me: Context, ask: Ask) -> Iterator[str]:
    if ask(me, me, "process").permissive:
        yield (
            f"{me.type} is a permissive domain in the loaded policy, nothing is denied to it: "
            f"semanage permissive -d {me.type}"
        )


def _unusable(me: Context, own: Context, needed: frozenset[str], ask: Ask) -> Iterator[str]:
    missing = needed - ask(me, own, "file").allowed
    if missing:
        yield f"{me} may not {_listed(missing)} its own file {own}"


def _open(
    me: Context, target: Context, kind: str, forbidden: Iterable[str], ask: Ask
) -> Iterator[str]:
    found = ask(me, target, kind).allowed & set(forbidden)
    if found:
        yield f"{me} may {_listed(found)} the {kind} {target}"


def _listed(permissions: Iterable[str]) -> str:
    return ", ".join(sorted(permissions))

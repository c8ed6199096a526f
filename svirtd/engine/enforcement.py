# SPDX-License-Identifier: LGPL-2.1-or-later
"""Whether labels keep VMs apart on this host, now. Asked of the kernel, never remembered.

An administrator can switch enforcing off or load another policy at any moment. The kernel's status
page tells both without a system call, so every request looks again; between requests a task does.
"""

import asyncio
from typing import Final

from svirtd.config import Config
from svirtd.core import goal_policy, levels, separation
from svirtd.core.goals import Goal, Network
from svirtd.core.levels import Sensitivities
from svirtd.core.model import Contexts, Mode, Standing
from svirtd.engine.events import Events
from svirtd.engine.object_manager import CLASS
from svirtd.errors import LabelRefused, NotEnforcing, StartError
from svirtd.host.credentials import CAP_SYS_ADMIN, may
from svirtd.host.kernel import Kernel, Status

_LOOK_S: Final = 1.0
_ALLOWED: Final = {
    "enforcing": (Mode.ENFORCING,),
    "permissive": (Mode.ENFORCING, Mode.PERMISSIVE),
    "none": tuple(Mode),
}
_ADVICE: Final = (
    "Use a process type that the policy constrains by categories (svirt_t in the reference policy; "
    "seinfo -a mcs_constrained_type -x lists them), see [labels] process-context"
)


def base_contexts(kernel: Kernel, config: Config) -> Contexts:
    """Return the contexts that labels are made from: configured, or the policy's. StartError."""
    default = None
    if None in (config.process_context, config.image_context, config.content_context):
        default = kernel.default_contexts()
    return Contexts(
        *(
            given if given is not None else getattr(default, name)
            for given, name in (
                (config.process_context, "process"),
                (config.image_context, "image"),
                (config.content_context, "content"),
            )
        )
    )


class Enforcement:
    """The one judge of whether a VM may be labelled or started under the kernel as it is."""

    def __init__(self, kernel: Kernel, config: Config, contexts: Contexts) -> None:
        self._kernel = kernel
        self._require = config.require
        self._contexts = contexts
        # Two sets that share all but one category: if these are kept apart, any two are.
        self._mine = config.shape.categories_of(0)
        spare = next(number for number in range(len(self._mine) + 1) if number not in self._mine)
        self._others = self._mine - {max(self._mine)} | {spare}
        self._seen: Status | None = None
        self._levels = False
        # What is wrong with goals under the policy that was seen last.
        self._problems: dict[Goal, str] = {}
        self._standing = Standing(Mode.DISABLED, "", 0, "")

    def now(self) -> Standing:
        """Return how it stands at this moment."""
        status = self._kernel.status()
        if status != self._seen:
            self._problems.clear()
            self._levels = status.mode is not Mode.DISABLED and self._has_levels()
            self._standing = Standing(
                status.mode,
                self._kernel.policy_name(),
                status.policies_loaded,
                self._problem(status.mode, self._contexts),
                self._kernel.has_class(CLASS),
                self._levels,
            )
            self._seen = status
        return self._standing

    @property
    def levels(self) -> bool:
        """Whether the policy had levels when it was looked at last. For every thread."""
        return self._levels

    def check_start(self) -> None:
        """Raise StartError where svirtd may not serve.

        Fail closed: labels that nobody enforces are served only where that was asked for.
        """
        standing = self.now()
        if standing.mode not in _ALLOWED[self._require]:
            raise StartError(
                f"SELinux is {standing.mode.value} on this host and [selinux] require = "
                f'"{self._require}": labels would keep nothing apart. Boot with SELinux enforcing, '
                'or set require = "none" to have labels written without protection'
            )
        if standing.mode is Mode.DISABLED and not may(CAP_SYS_ADMIN):
            raise StartError(
                "this kernel has no SELinux, and labels are written by CAP_SYS_ADMIN there, which "
                "svirtd.service does not give: add a drop-in with CapabilityBoundingSet="
                "CAP_SYS_ADMIN (systemctl edit svirtd)"
            )
        if standing.problem and self._require != "none":
            raise StartError(
                f"the loaded policy does not keep VMs apart: {standing.problem}. {_ADVICE}"
            )

    def refuse_unprotected(self) -> None:
        """Raise NotEnforcing if a VM that is labelled or started now would not be isolated.

        Given as often as asked: what was true at the start may not be true any more.
        """
        standing = self.now()
        if standing.mode not in _ALLOWED[self._require]:
            raise NotEnforcing(
                f"SELinux has become {standing.mode.value} on this host and [selinux] require = "
                f'"{self._require}": nothing would keep the VM apart. Switch it back (setenforce 1)'
            )
        if standing.problem and self._require != "none":
            raise NotEnforcing(
                f"the policy that was loaded meanwhile does not keep VMs apart: "
                f"{standing.problem}. {_ADVICE}"
            )

    @property
    def required(self) -> bool:
        """Whether a policy that does not keep VMs apart is refused."""
        return self._require != "none"

    def problem(self, goal: Goal) -> str:
        """Say why the loaded policy does not keep what a goal promises, empty if it does.

        That is about the types that it names; what is wrong with the base contexts is in now().
        """
        mode = self.now().mode
        found = self._problems.get(goal)
        if found is None:
            contexts = goal.contexts(self._contexts)
            same = contexts == self._contexts
            found = "" if same else self._problem(mode, contexts, goal)
            self._problems[goal] = found
        return found

    async def watch(self, events: Events) -> None:
        """Tell of every change, for ever."""
        before = self.now()
        while True:
            await asyncio.sleep(_LOOK_S)
            after = self.now()
            events.enforcement(before, after)
            before = after

    def _has_levels(self) -> bool:
        """Say whether the policy knows a sensitivity above the one that VMs have by default."""
        process = self._contexts.process.with_categories(self._mine)
        above = levels.default(process).high + 1
        try:
            self._kernel.check_context(str(levels.at(process, Sensitivities(above, above))))
        except LabelRefused:
            return False
        return True

    def _problem(self, mode: Mode, contexts: Contexts, goal: Goal | None = None) -> str:
        """Say what is wrong with the loaded policy, empty if nothing is."""
        if mode is Mode.DISABLED:
            return ""
        try:
            for context in (contexts.process, contexts.image, contexts.content):
                self._kernel.check_context(str(context.with_categories(self._mine)))
            ask, own = self._kernel.decide, self._kernel.own_context()
            mine, others, by_levels = self._mine, self._others, self._levels
            found = separation.problems(contexts, mine, others, ask, levels=by_levels)
            if goal is not None:
                found += separation.between(
                    contexts, self._contexts, mine, others, ask, levels=by_levels
                )
                found += self._broken_promises(goal, contexts)
            if own is not None:
                found += separation.blind_spots(own, contexts, self._mine, ask)
        except LabelRefused as error:
            return str(error)
        except OSError as error:
            # Not sure is no: a policy that cannot be asked may not be trusted.
            return f"the kernel does not tell what it allows ({error})"
        return "; ".join(found)

    def _broken_promises(self, goal: Goal, contexts: Contexts) -> list[str]:
        base, mine = self._contexts, self._mine
        writes = goal.writes_images(base)
        # The base type has a network of its own: under it, a namespace alone keeps a VM from one.
        named = contexts.process.type != base.process.type
        return goal_policy.problems(
            process=contexts.process.with_categories(mine),
            image=base.image.with_categories(mine),
            content=contexts.content.with_categories(mine),
            scratch=None if writes else contexts.image.with_categories(mine),
            network=not (named and goal.network is Network.NONE),
            writes_images=writes,
            ask=self._kernel.decide,
        )

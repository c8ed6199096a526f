# SPDX-License-Identifier: LGPL-2.1-or-later
"""Levels as this host has them: which the kernel knows, and whether a request chooses one.

Asked before a set is drawn or a line is written: a level that means nothing here changes nothing.
"""

from collections.abc import Sequence

from svirtd.core import levels
from svirtd.core.levels import Sensitivities
from svirtd.core.mcs import Context, parse_context
from svirtd.core.model import VM, Mode, Request, Standing
from svirtd.engine.doors import Doors
from svirtd.errors import LabelRefused
from svirtd.host.kernel import Kernel


def chosen(doors: Doors, request: Request) -> str:
    """Return what a request chooses, for whoever has to allow it; empty if all is as by default.

    Raises LabelRefused for a level that the loaded policy does not have.
    """
    process, image, content = doors.contexts.process, doors.contexts.image, doors.contexts.content
    common = levels.default(process)
    told = []
    of_resources = enumerate(request.resources, start=1)
    for where, what, text, contexts in (
        ("options", f"VM {request.name}", request.level, (process,)),
        *((f"resource {n}", r.named, r.terms.level, (image, content)) for n, r in of_resources),
    ):
        wanted = levels.asked(text, process)
        if wanted != common:
            _refuse_unknown(doors, where, wanted, contexts)
            told.append(f"{wanted} for {what}")
    return ", ".join(told)


def _refuse_unknown(
    doors: Doors, where: str, wanted: Sensitivities, contexts: Sequence[Context]
) -> None:
    standing = doors.enforcement.now()
    if not standing.levels:
        raise LabelRefused(f"{where}: level {wanted}: {_without(standing)}")
    for context in contexts:
        # With categories: a user or a role may have them at one level and not at another.
        of_vm = context.with_categories(doors.shape.categories_of(0))
        try:
            doors.kernel.check_context(str(levels.at(of_vm, wanted)))
        except LabelRefused as error:
            raise LabelRefused(
                f"{where}: level {wanted}: the loaded policy does not have it ({error})"
            ) from error


def _without(standing: Standing) -> str:
    if standing.mode is Mode.DISABLED:
        return (
            "this kernel has no SELinux, and nothing else could say what a level means; leave the "
            "level out"
        )
    return (
        f"the loaded policy {standing.policy!r} has categories and no levels (MCS), so that there "
        "is only s0; leave the level out, or load a policy with levels (MLS)"
    )


def of_sockets(kernel: Kernel, vm: VM) -> str:
    """Return the daemon's own context at the VM's level: the VM may talk through such a socket."""
    own = kernel.own_context()
    if own is None:
        return vm.process_context
    level = parse_context(vm.process_context).range
    return str(Context(own.user, own.role, own.type, level))

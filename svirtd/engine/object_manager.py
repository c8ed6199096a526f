# SPDX-License-Identifier: LGPL-2.1-or-later
"""The second lock: what the administrator's policy says about the domain that a caller runs in.

svirtd is an object manager of SELinux's: it has a class with permissions of its own (policy/), and
asks the loaded policy about every call of everybody, root included. It only ever takes away: what
the policy grants, the other rules of engine/authorize must still allow.
"""

from typing import Final

from svirtd.core.model import VM, Caller, Mode, Standing
from svirtd.engine.events import Listener
from svirtd.errors import AccessDenied
from svirtd.host.audit import AuditLog, field
from svirtd.host.journal import Journal, MessageId, Priority
from svirtd.host.kernel import Access, Kernel

CLASS: Final = "svirtd"
_INSTALL: Final = (
    f"the loaded policy has no class {CLASS}, by which svirtd asks it about callers: load svirtd's "
    "policy module, see svirtd(8)"
)


class ObjectManager(Listener):
    """Asks the policy about callers."""

    def __init__(self, kernel: Kernel, audit: AuditLog | None, journal: Journal) -> None:
        """`audit` is None on a kernel without SELinux only."""
        self._kernel = kernel
        self._audit = audit
        self._journal = journal
        # A process does not change its context while it serves.
        self._own = str(kernel.own_context() or "")

    def check(self, caller: Caller, permission: str, vm: VM | None = None) -> None:
        """Raise AccessDenied unless the policy grants this to the caller's domain.

        The target is the process context of `vm`, or the daemon's own. A denial is in the audit
        log, also where the domain or the system is permissive and the caller is served all the
        same.
        """
        if not self._kernel.enabled():
            return
        enforcing = self._kernel.status().mode is Mode.ENFORCING
        if not self._kernel.has_class(CLASS):
            # Nobody to ask is no: but root, who must be able to release what is there.
            if enforcing and caller.uid != 0:
                raise AccessDenied(f"{_INSTALL}; until then only root is served")
            return
        target = vm.process_context if vm is not None else self._own
        try:
            access = self._kernel.check_access(caller.label, target, CLASS, permission)
        except OSError as error:
            # A policy that cannot be asked grants nothing, to root neither.
            if not enforcing:
                return
            raise AccessDenied(
                f"the policy does not say whether {caller.label or 'a caller without a context'} "
                f"may {permission} ({error.strerror}); load the policy module that belongs to this "
                "version of svirtd, see svirtd(8)"
            ) from error
        if access.audited:
            self._tell(caller, permission, target, access, vm)
        if not access.granted and not access.permissive:
            domain = caller.label.split(":")[2]
            raise AccessDenied(
                f"SELinux: the policy does not let {domain} {permission} ({CLASS} {{ {permission} "
                f"}}); an administrator can, see svirtd(8)"
            )

    def close(self) -> None:
        """Let go of the audit log."""
        if self._audit is not None:
            self._audit.close()

    def enforcement(self, _before: Standing, after: Standing) -> None:
        """Another policy, or another mode: say so if callers cannot be asked about any more."""
        self.warn(after)

    def warn(self, standing: Standing) -> None:
        """Say so where the kernel enforces and the policy does not know svirtd's class."""
        if standing.mode is Mode.ENFORCING and not self._kernel.has_class(CLASS):
            self._journal.record(
                MessageId.WARNING,
                f"{_INSTALL}; only root is served",
                priority=Priority.WARNING,
                SVIRT_MODE=standing.mode.value,
                SVIRT_POLICY=standing.policy,
            )

    def _tell(
        self, caller: Caller, permission: str, target: str, access: Access, vm: VM | None
    ) -> None:
        if self._audit is None:
            return
        outcome = "granted" if access.granted else "denied"
        about = f"{field('vm', vm.name)} " if vm is not None else ""
        self._audit.user_avc(
            f"avc:  {outcome}  {{ {permission} }} for uid={caller.uid} spid={caller.pid} {about}"
            f"scontext={caller.label} tcontext={target} tclass={CLASS} "
            f"permissive={int(access.permissive)}",
            caller.uid,
        )

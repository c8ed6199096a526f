# SPDX-License-Identifier: LGPL-2.1-or-later
"""Events as structured records."""

from svirtd.core.findings import Finding
from svirtd.core.model import Standing
from svirtd.engine.events import Cause, Entry, Listener
from svirtd.host.journal import Journal, MessageId, Priority


class Log(Listener):
    """Listens to events and writes a record for each."""

    def __init__(self, journal: Journal) -> None:
        self._journal = journal

    def added(self, entry: Entry, cause: Cause) -> None:
        """A VM has entered the book."""
        self._vm(MessageId.VM_ADDED, entry, cause)

    def changed(self, before: Entry, after: Entry, cause: Cause) -> None:
        """A VM is in another state."""
        if before.vm.state is not after.vm.state:
            self._vm(MessageId.VM_CHANGED, after, cause)

    def removed(self, entry: Entry, cause: Cause) -> None:
        """A VM has left the book."""
        self._vm(MessageId.VM_REMOVED, entry, cause)

    def drift(self, finding: Finding) -> None:
        """An object is not what the book says."""
        self._journal.record(
            MessageId.DRIFT,
            f"{finding.path} ({finding.kind}): {finding.reason}"
            + ("; the label is back" if finding.repaired else ""),
            priority=Priority.NOTICE if finding.repaired else Priority.WARNING,
            SVIRT_VM=finding.vm_name,
            SVIRT_PATH=finding.path,
            SVIRT_EXPECTED=finding.expected,
            SVIRT_FOUND=finding.found,
            SVIRT_KIND=finding.kind.value,
            SVIRT_REPAIR=finding.repair,
        )

    def enforcement(self, _before: Standing, after: Standing) -> None:
        """The kernel does something else with labels than before, or by another policy."""
        text = f"SELinux is {after.mode.value} now, policy {after.policy or '(none)'}"
        if not after.enforced:
            text += f": labels are NOT ENFORCED{after.problem and f', {after.problem}'}"
        self._journal.record(
            MessageId.ENFORCEMENT,
            text,
            priority=Priority.NOTICE if after.enforced else Priority.ERROR,
            SVIRT_MODE=after.mode.value,
            SVIRT_POLICY=after.policy,
        )

    def _vm(self, message_id: MessageId, entry: Entry, cause: Cause) -> None:
        vm = entry.vm
        what = message_id.name.removeprefix("VM_").lower()
        self._journal.record(
            message_id,
            f"VM {vm.name} {what} by {cause.operation}: {vm.state.value}, {vm.categories}",
            SVIRT_VM=vm.name,
            SVIRT_VM_ID=vm.id,
            SVIRT_OPERATION=cause.operation,
            SVIRT_CALLER_UID=cause.caller_uid,
            SVIRT_UNIT=vm.unit,
        )

# SPDX-License-Identifier: LGPL-2.1-or-later
"""How much of the book one user may have. Root's own is bounded by the whole alone."""

from svirtd.book import pool, registry
from svirtd.book.store import Database
from svirtd.config import Limits
from svirtd.core.model import Caller
from svirtd.errors import LimitsExceeded


def refuse_too_many(
    db: Database, limits: Limits, caller: Caller, resources: int, *, new: bool
) -> None:
    """Raise LimitsExceeded if a request of so many resources would pass a limit; `new` says that it
    makes a VM.

    Inside the transaction that enters it: of two requests at the same time, the second sees the
    first.
    """
    if new and pool.in_use(db) >= limits.vms:
        raise LimitsExceeded(
            f"the book has [limits] vms = {limits.vms} VMs; release or forget some, or raise the "
            "limit"
        )
    if caller.uid == 0:
        return
    # Names and sets are everybody's: without a bound one user could leave none to the others.
    vms, holds = registry.owned_by(db, caller.uid)
    if new and vms >= limits.vms_per_user:
        raise LimitsExceeded(
            f"you have {vms} VMs; [limits] vms-per-user allows {limits.vms_per_user}: release or "
            "forget some"
        )
    # A set that a file of his still carries is as good as taken: one user could bring all of them
    # into quarantine, by moving his files about.
    retired = pool.retired_of(db, caller.uid) if new else 0
    if new and vms + retired >= limits.vms_per_user:
        raise LimitsExceeded(
            f"you have {vms} VMs, and the sets of {retired} earlier ones are in quarantine, since "
            "files that were moved may still carry them; [limits] vms-per-user allows "
            f"{limits.vms_per_user}: move the files back, or have root look for them (svirtctl "
            "verify --repair --scan)"
        )
    _refuse_resources(limits, holds, resources)


def refuse_more(db: Database, limits: Limits, owner_uid: int, resources: int) -> None:
    """Raise LimitsExceeded if so many resources more for a VM of this owner would pass a limit."""
    if owner_uid:
        _, holds = registry.owned_by(db, owner_uid)
        _refuse_resources(limits, holds, resources)


def _refuse_resources(limits: Limits, holds: int, more: int) -> None:
    if holds + more > limits.resources_per_user:
        raise LimitsExceeded(
            f"your VMs hold {holds} resources, and {more} more would pass [limits] "
            f"resources-per-user = {limits.resources_per_user}: release some VMs"
        )

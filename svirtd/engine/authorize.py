# SPDX-License-Identifier: LGPL-2.1-or-later
"""May this caller do this? The one place that decides; everything else only asks."""

import enum

from svirtd.core.model import Caller
from svirtd.errors import AccessDenied


class Action(enum.Enum):
    """What a caller may be allowed to do, split by risk. The value completes "you may not …"."""

    READ = "read the book"
    LABEL = "label resources"
    LAUNCH = "launch VMs"
    RELEASE = "release VMs"
    CONNECT = "connect to VMs"
    VERIFY = "compare the book with the host"
    REPAIR = "have labels put back"
    BACKUP = "copy the book"


def authorize(caller: Caller, action: Action) -> None:
    """Raise AccessDenied unless the caller may do this.

    Only root may, for now: opening files for a stranger takes rules of its own (see
    host/files.open_all, which uses the daemon's authority), and until they stand nobody else may
    even read which files VMs use.
    """
    if caller.uid != 0:
        raise AccessDenied(
            f"uid {caller.uid} may not {action.value}; in this version svirtd serves root only: "
            "run the command as root"
        )

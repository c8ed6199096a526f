# SPDX-License-Identifier: LGPL-2.1-or-later
"""May this caller do this? The one place that decides; everything else only asks.

Who a caller is comes from the bus, never from the message. A question may take as long as a dialog
does, and the world moves meanwhile: what was decided is about the VM that was looked at, and
whoever asks takes care that it is that very VM which is changed.
"""

import enum
from collections.abc import Mapping
from typing import Final

from svirtd.core.model import VM, Caller
from svirtd.errors import AccessDenied


class Action(enum.Enum):
    """What a caller may be allowed to do, split by risk. The value completes "you may not …"."""

    READ = "read the book"
    PLAN = "ask what would be labelled"
    LABEL = "label resources"
    LAUNCH = "launch VMs"
    RELEASE = "release VMs of other users"
    FORGET = "forget VMs of other users"
    CONNECT = "connect to VMs of other users"
    USE_ANY_FILE = "use files that are not yours"
    RUN_AS_USER = "run VMs as another user"
    VERIFY = "compare the book with the host"
    REPAIR = "have labels put back"
    CANCEL = "cancel jobs of other users"
    BACKUP = "copy the book"


# What the owner of a thing may do with it unasked.
_OWNERS: Final = frozenset({Action.RELEASE, Action.FORGET, Action.CONNECT, Action.CANCEL})


def sees(caller: Caller, vm: VM) -> bool:
    """Say whether a caller may know more of a VM than that it exists: its name, state and owner."""
    return caller.uid in (0, vm.owner_uid)


class Authority:
    """Decides for the daemon."""

    async def authorize(
        self,
        caller: Caller,
        action: Action,
        *,
        vm: VM | None = None,
        owner_uid: int | None = None,
        details: Mapping[str, str] | None = None,
    ) -> None:
        """Raise AccessDenied unless the caller may do this, to `vm` if it is about one.

        `owner_uid` is the owner of another thing than a VM. `details` are shown to whoever is
        asked to authenticate. May wait for a dialog.
        """
        if not self.at_once(caller, action, vm=vm, owner_uid=owner_uid):
            await self._ask(caller, action, vm, details or {})

    def at_once(
        self,
        caller: Caller,
        action: Action,
        *,
        vm: VM | None = None,
        owner_uid: int | None = None,
    ) -> bool:
        """Say whether the caller may do this without anybody being asked.

        Raises AccessDenied where asking would be of no use.
        """
        # Root can do all this to the host by itself.
        if caller.uid == 0 or action is Action.READ:
            return True
        owner = vm.owner_uid if vm is not None else owner_uid
        return action in _OWNERS and owner == caller.uid

    async def _ask(
        self, caller: Caller, action: Action, _vm: VM | None, _details: Mapping[str, str]
    ) -> None:
        raise AccessDenied(
            f"uid {caller.uid} may not {action.value}; in this version svirtd serves root only: "
            "run the command as root"
        )

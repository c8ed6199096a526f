# SPDX-License-Identifier: LGPL-2.1-or-later
"""May this caller do this? The one place that decides; everything else only asks.

Who a caller is comes from the bus, never from the message. A question may take as long as a dialog
does, and the world moves meanwhile: what was decided is about the VM that was looked at, and
whoever asks takes care that it is that very VM which is changed.
"""

import enum
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from svirtd.core.groups import GroupView
from svirtd.core.model import VM, Caller, Command, Labeller, Request
from svirtd.core.names import shown_to_judge
from svirtd.engine.dialogs import Dialogs
from svirtd.engine.object_manager import ObjectManager
from svirtd.errors import (
    AccessDenied,
    InteractiveAuthorizationRequired,
    InvalidArgs,
    SvirtError,
)
from svirtd.host.polkit import Verdict


class Action(enum.Enum):
    """What a caller may be allowed to do, split by risk. The value completes "you may not …"."""

    READ = "read the book"
    PLAN = "ask what would be labelled"
    LABEL = "label resources"
    LAUNCH = "launch VMs"
    ATTACH = "attach resources to VMs"
    ATTACH_OTHERS = "attach resources to VMs of other users"
    DETACH = "detach resources from VMs of other users"
    RELEASE = "release VMs of other users"
    FORGET = "forget VMs of other users"
    CONNECT = "connect to VMs of other users"
    USE_ANY_FILE = "use files that are not yours"
    RUN_AS_USER = "run VMs as another user"
    SET_LEVEL = "choose the level of VMs and files"
    VERIFY = "compare the book with the host"
    REPAIR = "have labels put back"
    CANCEL = "cancel jobs of other users"
    BACKUP = "copy the book"
    CLEAR_WALLS = "clear the history of a wall"
    MANAGE_GROUPS = "manage groups"
    ENROLL = "have services run under labels of VMs"


# What the owner of a thing may do with it unasked.
_OWNERS: Final = frozenset(
    {
        Action.ATTACH_OTHERS,
        Action.DETACH,
        Action.RELEASE,
        Action.FORGET,
        Action.CONNECT,
        Action.CANCEL,
        Action.MANAGE_GROUPS,
    }
)

# What each is called in the policy: permissions of svirtd's class, see policy/svirtd_class.cil. The
# policy has no word on whom a VM runs as; by launching it is asked whether the domain may at all.
_PERMISSIONS: Final[Mapping[Action, str]] = {
    Action.READ: "read",
    Action.PLAN: "plan",
    Action.LABEL: "acquire",
    Action.LAUNCH: "launch",
    Action.ATTACH: "acquire",
    Action.ATTACH_OTHERS: "acquire",
    Action.DETACH: "release",
    Action.RELEASE: "release",
    Action.FORGET: "forget",
    Action.CONNECT: "connect",
    Action.USE_ANY_FILE: "override",
    Action.RUN_AS_USER: "launch",
    Action.SET_LEVEL: "levels",
    Action.VERIFY: "verify",
    Action.REPAIR: "repair",
    Action.CANCEL: "verify",
    Action.BACKUP: "backup",
    Action.CLEAR_WALLS: "wall",
    Action.MANAGE_GROUPS: "group",
    Action.ENROLL: "enroll",
}
# polkit's action for each that it is asked about: dbus/org.svirt1.policy has the defaults.
POLKIT: Final[Mapping[Action, str]] = {
    Action.PLAN: "org.svirt1.acquire",
    Action.LABEL: "org.svirt1.acquire",
    Action.LAUNCH: "org.svirt1.launch",
    Action.ATTACH: "org.svirt1.attach",
    Action.ATTACH_OTHERS: "org.svirt1.manage-others",
    Action.DETACH: "org.svirt1.manage-others",
    Action.RELEASE: "org.svirt1.manage-others",
    Action.FORGET: "org.svirt1.manage-others",
    Action.CONNECT: "org.svirt1.manage-others",
    Action.CANCEL: "org.svirt1.manage-others",
    Action.USE_ANY_FILE: "org.svirt1.use-any-file",
    Action.RUN_AS_USER: "org.svirt1.run-as-user",
    Action.SET_LEVEL: "org.svirt1.set-level",
    Action.VERIFY: "org.svirt1.verify",
    Action.REPAIR: "org.svirt1.repair",
    Action.BACKUP: "org.svirt1.backup",
    Action.CLEAR_WALLS: "org.svirt1.clear-walls",
    Action.MANAGE_GROUPS: "org.svirt1.manage-groups",
    Action.ENROLL: "org.svirt1.enroll",
}
# What a dialog says where the action's own message leaves open what is about to happen.
MESSAGES: Final[Mapping[Action, str]] = {
    Action.ATTACH_OTHERS: "Authentication is required for $(user) to give the virtual machine "
    "$(vm) of $(owner) these files: $(files)",
    Action.DETACH: "Authentication is required for $(user) to take files from the virtual machine "
    "$(vm) of $(owner)",
    Action.RELEASE: "Authentication is required for $(user) to end the virtual machine $(vm) of "
    "$(owner)",
    Action.FORGET: "Authentication is required for $(user) to remove the virtual machine $(vm) of "
    "$(owner)",
    Action.CONNECT: "Authentication is required for $(user) to control the virtual machine $(vm) "
    "of $(owner)",
    Action.CANCEL: "Authentication is required for $(user) to cancel a job of $(owner)",
}
_SHOWN: Final = 8


@dataclass(frozen=True, slots=True)
class About:
    """What a request is about, for whoever is asked to authenticate: as it is, whatever is in it.

    `account` is the user that a VM is to run as, `command` what it is to run, and `level` the
    sensitivities that it and its files are to have; `group` is one of VMs, `wall` one whose history
    of `vm` is to be forgotten; `unit` is a service that is to run as the VM.
    """

    vm: str = ""
    files: Sequence[str] = ()
    account: str = ""
    command: Sequence[str] = ()
    wall: str = ""
    level: str = ""
    group: str = ""
    unit: str = ""


def sees(caller: Caller, vm: VM) -> bool:
    """Say whether a caller may know more of a VM than that it exists: its name, state and owner."""
    return caller.uid in (0, vm.owner_uid)


def sees_group(caller: Caller, view: GroupView) -> bool:
    """Say whether a caller may know who is in a group: its owner, its members' owners, and root."""
    return caller.uid in (0, view.group.owner_uid, *(uid for _, uid in view.members))


class Authority:
    """Decides for the daemon. `name_of` tells the name of a user for people to read."""

    def __init__(
        self,
        object_manager: ObjectManager,
        dialogs: Dialogs,
        name_of: Callable[[int], Awaitable[str]],
    ) -> None:
        self._object_manager = object_manager
        self._dialogs = dialogs
        self._name_of = name_of

    def end(self) -> None:
        """Ask nobody any more: the daemon stops."""
        self._dialogs.end()

    async def authorize(
        self,
        caller: Caller,
        action: Action,
        *,
        vm: VM | None = None,
        owner_uid: int | None = None,
        about: About | None = None,
    ) -> None:
        """Raise AccessDenied unless the caller may do this, to `vm` if it is about one.

        `owner_uid` is the owner of another thing than a VM. `about` is shown to whoever is asked
        to authenticate. May wait for a dialog. Also raises InteractiveAuthorizationRequired where
        a dialog would help that the message did not allow, LimitsExceeded, and Failed where there
        is no answer.
        """
        if self.at_once(caller, action, vm=vm, owner_uid=owner_uid):
            return
        about = about or About(vm.name if vm is not None else "")
        if action is Action.USE_ANY_FILE and len(about.files) > _SHOWN:
            # Whoever says yes to these gives root's power over them: he must have seen each.
            raise InvalidArgs(
                f"{len(about.files)} files that are not yours; an administrator is asked about "
                f"{_SHOWN} at once: attach the others as root"
            )
        owner = vm.owner_uid if vm is not None else owner_uid
        verdict = await self._dialogs.ask(
            caller, POLKIT[action], lambda: self._details(caller, action, owner, about)
        )
        if verdict is not Verdict.ALLOWED:
            raise _refusal(caller, action, verdict)

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
        # First of all and of everybody: what an administrator's policy keeps from a domain it keeps
        # from it as root, too.
        self._object_manager.check(caller, _PERMISSIONS[action], vm)
        # Root can do all this to the host by itself.
        if caller.uid == 0 or action is Action.READ:
            return True
        owner = vm.owner_uid if vm is not None else owner_uid
        return action in _OWNERS and owner == caller.uid

    async def _details(
        self, caller: Caller, action: Action, owner_uid: int | None, about: About
    ) -> dict[str, str]:
        """What polkit's rules and dialogs see. All of it is written for who decides by it."""
        told = {
            "user": await self._name_of(caller.uid),
            "vm": shown_to_judge(about.vm) if about.vm else "",
            "files": _listed(about.files),
            "account": shown_to_judge(about.account) if about.account else "",
            "command": _listed(about.command),
            "wall": shown_to_judge(about.wall) if about.wall else "",
            "level": shown_to_judge(about.level) if about.level else "",
            "group": shown_to_judge(about.group) if about.group else "",
            "unit": shown_to_judge(about.unit) if about.unit else "",
            "owner": await self._name_of(owner_uid) if owner_uid is not None else "",
        }
        if action in MESSAGES:
            told["polkit.message"] = MESSAGES[action]
        return told


def refuse_labeller(caller: Caller, request: Request) -> None:
    """Raise AccessDenied for whoever says that somebody else labels a VM, and is not root.

    svirtd sets nothing then, and the book has what it was told: only root's libvirt sets labels.
    """
    if caller.uid and request.labeller is not Labeller.SVIRTD:
        raise AccessDenied(
            f"uid {caller.uid} may not have VMs that {request.labeller.value} labels in the book; "
            "that is for root's libvirt alone: leave 'labelled-by' out"
        )


def refuse_settings(caller: Caller, command: Command) -> None:
    """Raise AccessDenied for settings of systemd's that would give a caller's VM more than it has.

    They are set by systemd, which may do anything: what the kernel would ask a capability for, a
    user does not get from it.
    """
    for name, _, value in command.properties:
        if caller.uid and name == "OOMScoreAdjust" and isinstance(value, int) and value < 0:
            raise AccessDenied(
                f"uid {caller.uid} may not have a VM spared by the kernel when memory is short "
                f"({name} {value}): leave it out or give 0 or more, or run the command as root"
            )


def _listed(texts: Sequence[str]) -> str:
    if not texts:
        return "none"
    told = ", ".join(map(shown_to_judge, texts[:_SHOWN]))
    more = len(texts) - _SHOWN
    return f"{told} and {more} more" if more > 0 else told


def _refusal(caller: Caller, action: Action, verdict: Verdict) -> SvirtError:
    what = f"uid {caller.uid} may not {action.value}"
    by = f"polkit's action {POLKIT[action]}"
    do = "run the command as root"
    if action in (Action.PLAN, Action.LABEL, Action.LAUNCH, Action.ATTACH):
        do += ", or have root put you into the group svirt"
    match verdict:
        case Verdict.ABSENT:
            return AccessDenied(
                f"{what}: there is no polkit on this host, so svirtd serves root only; run the "
                "command as root"
            )
        case Verdict.CHALLENGE if not caller.interactive:
            return InteractiveAuthorizationRequired(
                f"{what} unless an administrator authenticates ({by}), and the call does not allow "
                f"a dialog: allow one, {do}"
            )
        case Verdict.CHALLENGE:
            return AccessDenied(
                f"{what} unless an administrator authenticates ({by}), and there is no "
                f"authentication agent to ask one: start pkttyagent, {do}"
            )
        case Verdict.DISMISSED:
            return AccessDenied(f"{what}: the dialog was closed ({by}); {do}")
        case Verdict.UNANSWERED:
            return AccessDenied(f"{what}: nobody has answered in time ({by}); try again, or {do}")
        case _:
            return AccessDenied(f"{what}: refused by {by}; {do}")

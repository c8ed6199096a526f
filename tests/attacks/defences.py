# SPDX-License-Identifier: LGPL-2.1-or-later
"""The main defences, each with what switches it off in a daemon of the tests.

An attack that is `against` one is mounted twice: it must fail as the daemon is, and succeed where
that defence is off; otherwise the test proves nothing. Nothing in svirtd knows of this: a forked
daemon replaces functions of its own before it starts (see tests/zygote.py).
"""

import importlib
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    import pytest

# Makes the replacement out of the real thing.
Weakener = Callable[[Any], Any]


@dataclass(frozen=True, slots=True)
class Defence:
    """A rule, and which functions stand for it: by module and qualified name, with a weakener."""

    what: str
    places: tuple[tuple[str, str, Weakener], ...]


def _always(value: Any) -> Weakener:
    return lambda _real: lambda *_args, **_kwargs: value


def _unasked(action: str) -> Weakener:
    """Let everybody do one thing."""

    def weaken(real: Any) -> Any:
        async def authorize(self: Any, caller: Any, what: Any, **kwargs: Any) -> None:
            if what.name != action:
                await real(self, caller, what, **kwargs)

        return authorize

    return weaken


def _everything_public(_real: Any) -> Any:
    from svirtd.api import answers
    from svirtd.host.bus import Variant

    def public_properties(vm: Any) -> dict[str, Variant]:
        return {name: Variant(sig, get(vm)) for name, (sig, get) in answers.VM_PROPERTIES.items()}

    return public_properties


def _by_path(_real: Any) -> Any:
    def open_folder(root: int, path: bytes) -> int:
        flags = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC
        return os.open(os.readlink(f"/proc/self/fd/{root}").encode() + b"/" + path, flags)

    return open_folder


def _by_root(_real: Any) -> Any:
    from svirtd.host import opening

    async def open_(self: Any, _caller: Any, request: Any, _held: Any = None) -> Any:
        return await self._kept(lambda: opening.open_all(self._doors.kernel, request.resources))

    return open_


def _whatever_is_there(_real: Any) -> Any:
    @contextmanager
    def holding(path: str, _identity: Any) -> Iterator[str]:
        held = os.open(path, os.O_PATH | os.O_CLOEXEC)
        yield f"/proc/self/fd/{held}"
        os.close(held)

    return holding


def _whatever_mode(_real: Any) -> Any:
    return lambda fd, _access: os.open(f"/proc/self/fd/{fd}", os.O_PATH | os.O_CLOEXEC)


def _through_links(real: Any) -> Any:
    return lambda path, _links=None: real(path)


def _of_root(_real: Any) -> Any:
    from svirtd.host.credentials import Account

    return lambda _folder: Account(0, 0, (0,))


async def _nothing(*_args: Any, **_kwargs: Any) -> None:
    pass


_NO_OWNER: Final = ("svirtd.core.rules", "refuse_owner", _always(None))

DEFENCES: Final[dict[str, Defence]] = {
    "files are opened as the caller, and owned by it": Defence(
        "a child that has become the caller opens what it names; its owner must be the caller",
        (("svirtd.engine.openings", "Openings.open", _by_root), _NO_OWNER),
    ),
    "what a dialog has shown is what is used": Defence(
        "held before anybody is asked, and opened through what is held",
        (("svirtd.engine.openings", "Openings.open", _by_root),),
    ),
    "a file is its owner's": Defence(
        "what one may write to is not one's own for that",
        (_NO_OWNER,),
    ),
    "a file with other names is not taken, and owned by its caller": Defence(
        "hard links are refused",
        (("svirtd.core.rules", "refuse_links", _always(None)), _NO_OWNER),
    ),
    "an object is what the book says it is": Defence(
        "what lies at a path of the book is the object of the book, by device and inode",
        (("svirtd.host.files", "holding", _whatever_is_there),),
    ),
    "the open mode of a descriptor proves the right": Defence(
        "what is passed for writing was opened for writing",
        (("svirtd.host.opening", "_hold_passed", _whatever_mode),),
    ),
    "a channel leads to the VM's own socket": Defence(
        "held without following links, looked at, and connected to through what is held",
        (
            ("svirtd.host.opener_child", "refuse_odd_socket", _always(None)),
            ("svirtd.host.walk", "hold", _through_links),
        ),
    ),
    "a channel is the account's, not root's": Defence(
        "a child that has become the VM's user connects",
        (("svirtd.engine.openings", "_owner_of", _of_root),),
    ),
    "only the owner may": Defence(
        "engine/authorize.py decides who may do what to a VM",
        (("svirtd.engine.authorize", "Authority.at_once", _always(True)),),
    ),
    "only polkit lets one run as somebody else": Defence(
        "user= other than the caller takes an action of its own",
        (("svirtd.engine.authorize", "Authority.authorize", _unasked("RUN_AS_USER")),),
    ),
    "signals carry what everybody may know": Defence(
        "a signal reaches everybody: it has the public properties only",
        (("svirtd.api.answers", "public_properties", _everything_public),),
    ),
    "only listed properties go to systemd": Defence(
        "a white list of resource controls",
        (("svirtd.api.commands", "_property", lambda _: lambda _name, v: (v.signature, v.value)),),
    ),
    "what takes a capability is not a caller's to have set": Defence(
        "settings that the kernel would ask a capability for are root's",
        (("svirtd.engine.authorize", "refuse_settings", _always(None)),),
    ),
    "texts reach a terminal without control characters": Defence(
        "svirtctl escapes what does not print",
        (("svirtd.ctl.render", "shown", lambda _: str),),
    ),
    "only root's libvirt labels instead of svirtd": Defence(
        "labelled-by is root's: svirtd sets nothing then, and believes that somebody does",
        (("svirtd.engine.authorize", "refuse_labeller", _always(None)),),
    ),
    "a caller's VM ends with the caller": Defence(
        "lifetime 'caller': the bus says when it has left",
        (("svirtd.engine.requests", "Requests._caller_gone", lambda _: _nothing),),
    ),
    "others see that a VM exists, and no more": Defence(
        "authorize.sees() is asked before anything of a VM but its name, state and owner is told",
        (("svirtd.engine.authorize", "sees", _always(True)),),
    ),
    "starts and ends of units are told by root": Defence(
        "StartEnrolled and EndEnrolled are for uid 0 alone",
        (("svirtd.engine.enrolled", "_refuse_others", _always(None)),),
    ),
    "a VM is meant by its Id": Defence(
        "what was authorized, or seen, is about one VM; a later one of its name is another",
        (("svirtd.engine.meant", "_refuse_other", _always(None)),),
    ),
    "who has held one side of a wall never gets the other": Defence(
        "what a VM and its owner have held is looked at before a group's label is given",
        (("svirtd.engine.walls", "refuse", _always(None)),),
    ),
    "one user has a bounded part of what is under way": Defence(
        "calls are counted by user, however many connections he has",
        (
            ("svirtd.api.turns", "Turns.turn", lambda _: lambda *_args: nullcontext()),
            ("svirtd.api.turns", "Turns._refuse_too_many", _always(None)),
        ),
    ),
    "a group's owner says who is in it": Defence(
        "a VM of another user's is in a group by a grant for its name and its owner only",
        (("svirtd.core.groups", "refuse_member", _always(None)),),
    ),
    "what a group shares is its members'": Defence(
        "a resource of a group goes with being in it",
        (("svirtd.core.plan", "_refuse_group", _always(None)),),
    ),
    "others see that a group exists, and no more": Defence(
        "authorize.sees_group() is asked before who is in it, and its category, is told",
        (("svirtd.engine.authorize", "sees_group", _always(True)),),
    ),
    "a tree is walked by descriptors, and each entry looked at": Defence(
        "each entry is judged by the descriptor that it is labelled by; folders are opened beneath "
        "the root, through no link",
        (
            ("svirtd.host.tree_worker", "_Worker._judge", _always(None)),
            ("svirtd.host.tree_entries", "Chunk.open_plain", _always(False)),
            ("svirtd.host.tree_entries", "open_folder", _by_path),
        ),
    ),
    "what VMs or a group had is no original": Defence(
        "a file that carries categories of VMs or of a group is not taken",
        (("svirtd.core.rules", "refuse_carried", _always(None)),),
    ),
    "one user has a bounded part of the groups": Defence(
        "categories that his earlier groups left in quarantine count as groups",
        (("svirtd.book.groups", "retired_of", _always(0)),),
    ),
    "one user has a bounded part of the book": Defence(
        "quotas of [limits] for each uid",
        (("svirtd.engine.quotas", "refuse_too_many", _always(None)),),
    ),
}


def switch_off(name: str) -> None:
    """Replace what stands for a defence in this process; never in the tester itself."""
    for module_name, qualified, weaken in DEFENCES[name].places:
        *owners, attribute = qualified.split(".")
        owner: Any = importlib.import_module(module_name)
        for one in owners:
            owner = getattr(owner, one)
        real = getattr(owner, attribute)
        weak = weaken(real)
        setattr(owner, attribute, weak)
        # Others have it by name: `from module import function`.
        for other in tuple(sys.modules.values()):
            if getattr(other, "__name__", "").startswith("svirtd"):
                for key, value in tuple(vars(other).items()):
                    if value is real:
                        setattr(other, key, weak)


def against(*names: str) -> "pytest.MarkDecorator":
    """Mount the attack against the daemon as it is, and once with each of these defences off."""
    # Not for the daemons, each of which would have to import it.
    import pytest

    assert set(names) <= set(DEFENCES), names
    kinds: list[str | None] = [None, *names]
    ids = [f"without {name}" if name else "as it is" for name in kinds]
    return pytest.mark.parametrize("arena", kinds, indirect=True, ids=ids)

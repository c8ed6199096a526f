# SPDX-License-Identifier: LGPL-2.1-or-later
"""Untrusted D-Bus values to typed requests. Every refusal is InvalidArgs."""

from collections.abc import Mapping, Sequence
from typing import Any, Final

from svirtd.api.commands import read_command
from svirtd.api.values import Options, absolute, choice, typed
from svirtd.core import goals, overlays
from svirtd.core.goals import BUILT_INS, Goal, Goals
from svirtd.core.groups import AtEnd, Writers
from svirtd.core.levels import parse_sensitivities
from svirtd.core.mcs import parse_categories
from svirtd.core.model import (
    Access,
    Backing,
    Command,
    Format,
    Labeller,
    Lifetime,
    Override,
    Request,
    ResourceRequest,
    Terms,
)
from svirtd.core.names import (
    check_group_name,
    check_resource_id,
    check_uuid,
    check_vm_name,
    shown,
)
from svirtd.engine.attachments import Asked
from svirtd.engine.groups import NewGrant, NewGroup
from svirtd.engine.verify import Wanted
from svirtd.errors import InvalidArgs, NotSupported

_ACCESSES: Final = {access.value: access for access in Access}
_LIFETIMES: Final = {lifetime.value: lifetime for lifetime in Lifetime}
_WRITERS: Final = {one.value: one for one in Writers}
_AT_ENDS: Final = {one.value: one for one in AtEnd}
# The first moment of the year 10000, in UTC: later ones cannot be written down.
_UNTIL_MAX_US: Final = 253_402_300_800_000_000 - 1
_FORMATS: Final = {one.value: one for one in Format}
_BACKINGS: Final = {one.value: one for one in Backing}
_OVERRIDES: Final = {override.value: override for override in Override}


_RESOURCE: Final[Mapping[str, str]] = {
    "path": "s",
    "fd": "h",
    "access": "s",
    "format": "s",
    "group": "s",
    "level": "s",
    "until": "t",
    "at-end": "s",
    "backing": "s",
    "recursive": "b",
    "id": "s",
    "overlay": "s",
}
_ACQUIRE: Final[Mapping[str, str]] = {
    "uuid": "s",
    "goal": "s",
    "persistent": "b",
    "lifetime": "s",
    "override": "as",
    "groups": "as",
    "level": "s",
}
# Of VMs that libvirt starts and labels.
_FOLLOWED: Final[Mapping[str, str]] = {"labelled-by": "s", "categories": "s"}
_ATTACH: Final[Mapping[str, str]] = {"id": "s", "override": "as", "replaces": "s", "keep": "s"}
_LAUNCH: Final[Mapping[str, str]] = {
    **_ACQUIRE,
    "user": "s",
    "environment": "as",
    "working-directory": "s",
    "properties": "a{sv}",
}


def no_options(options: Options) -> None:
    """Refuse any option."""
    typed("options", options, {})


def read_id(options: Options) -> str:
    """Read what Release, Forget and OpenChannel take: the Id of the VM that is meant, or ""."""
    return str(typed("options", options, {"id": "s"}).get("id", ""))


def read_verify(repair: bool, options: Options) -> Wanted:
    """Read what Verify takes. Raises InvalidArgs."""
    folders = typed("options", options, {"scan": "as"}).get("scan", [])
    return Wanted(repair, tuple(absolute("scan", one) for one in folders))


def read_group(name: str, options: Options) -> NewGroup:
    """Read what CreateGroup takes. Raises InvalidArgs."""
    given = typed("options", options, {"writers": "s", "namespace": "s"})
    writers = given.get("writers", Writers.ALL.value)
    if writers not in _WRITERS:
        raise InvalidArgs(f"options: writers {shown(writers[:32])}; expected {choice(_WRITERS)}")
    namespace = given.get("namespace", "")
    if namespace:
        absolute("namespace", namespace)
    return NewGroup(check_group_name(name), _WRITERS[writers], namespace)


def read_grant(vm_name: str, options: Options) -> NewGrant:
    """Read what Grant takes. Raises InvalidArgs."""
    given = typed("options", options, {"owner": "u", "until": "t", "at-end": "s"})
    until_us, at_end = _lease("options", given)
    if at_end is AtEnd.DETACH:
        raise InvalidArgs(
            "options: at-end 'detach' is for resources: a process keeps the categories that it was "
            "started with; expected 'report' or 'stop'"
        )
    return NewGrant(check_vm_name(vm_name), given.get("owner"), until_us, at_end)


def read_when(options: Options) -> bool:
    """Read what joining and leaving take: whether it is from the next start on."""
    when = typed("options", options, {"when": "s"}).get("when", "now")
    if when not in ("now", "next-start"):
        raise InvalidArgs(f"options: when {shown(when[:32])}; expected 'now' or 'next-start'")
    return bool(when == "next-start")


def _lease(what: str, given: Mapping[str, Any]) -> tuple[int, AtEnd]:
    """Read an end: microseconds since 1970 (0: none), and what happens to a VM that runs then."""
    until_us, at_end = given.get("until", 0), given.get("at-end", AtEnd.REPORT.value)
    if until_us > _UNTIL_MAX_US:
        raise InvalidArgs(f"{what}: 'until' is after the year 9999; leave it out for no end")
    if at_end not in _AT_ENDS:
        raise InvalidArgs(f"{what}: at-end {shown(at_end[:32])}; expected {choice(_AT_ENDS)}")
    if "at-end" in given and not until_us:
        raise InvalidArgs(f"{what}: 'at-end' without 'until': it has no end")
    return until_us, _AT_ENDS[at_end]


def read_request(
    name: str,
    resources: Sequence[Options],
    options: Options,
    fds: Sequence[int],
    known: Goals = BUILT_INS,
) -> Request:
    """Read what Acquire and Plan take. `known` are the goals that there are."""
    return _request(
        name, resources, typed("options", options, {**_ACQUIRE, **_FOLLOWED}), fds, known
    )


def read_attach(
    resource: Options, options: Options, fds: Sequence[int], goal: Goal
) -> tuple[Asked, str]:
    """Read what Attach takes, and the Id of the VM that is meant; `goal` is the VM's."""
    given = typed("options", options, _ATTACH)
    replaces, keep = given.get("replaces", ""), given.get("keep", "")
    if "overlay" in resource:
        raise InvalidArgs(
            "resource: 'overlay' is for a launch: a VM that runs has its overlays made by whoever "
            "drives it"
        )
    if keep not in ("", Access.READONLY.value):
        raise InvalidArgs(f"options: keep {shown(keep[:32])}; expected 'readonly'")
    if keep and not replaces:
        raise InvalidArgs("options: 'keep' goes with 'replaces': the resource that is kept")
    found = _resource("resource", resource, fds, goal)
    asked = Asked(
        found,
        overrides=_overrides(given.get("override", ())),
        replaces=check_resource_id(replaces) if replaces else "",
        keeps=bool(keep),
        alike=bool(replaces) and "access" not in resource and not found.terms.group,
    )
    return asked, str(given.get("id", ""))


def read_launch(
    name: str,
    argv: Sequence[str],
    resources: Sequence[Options],
    options: Options,
    fds: Sequence[int],
    command_bytes_max: int,
    known: Goals = BUILT_INS,
) -> tuple[Request, Command]:
    """Read what Launch takes. `known` are the goals that there are."""
    given = typed("options", options, _LAUNCH)
    request = _request(name, resources, given, fds, known)
    command = read_command(argv, given, command_bytes_max)
    overlays.refuse_unknown_words(command.argv, request.resources)
    return request, command


def _request(
    name: str,
    resources: Sequence[Options],
    given: Mapping[str, Any],
    fds: Sequence[int],
    known: Goals,
) -> Request:
    uuid = given.get("uuid", "")
    lifetime = given.get("lifetime", Lifetime.RELEASE.value)
    if lifetime not in _LIFETIMES:
        raise InvalidArgs(f"options: lifetime {lifetime[:32]!r}; expected {choice(_LIFETIMES)}")
    goal = goals.named(known, given.get("goal", goals.ISOLATED.name))
    return Request(
        name=check_vm_name(name),
        resources=_resources(resources, fds, goal),
        goal=goal.name,
        uuid=check_uuid(uuid) if uuid else "",
        persistent=given.get("persistent", False),
        lifetime=_LIFETIMES[lifetime],
        overrides=_overrides(given.get("override", ())),
        groups=_groups(given.get("groups", ())),
        level=_level("options", given.get("level", "")),
        labeller=_labeller(given, lifetime),
        categories=_categories(given),
    )


def _labeller(given: Mapping[str, Any], lifetime: str) -> Labeller:
    name = given.get("labelled-by")
    if name is None:
        return Labeller.SVIRTD
    if name != Labeller.LIBVIRT.value:
        raise InvalidArgs(f"options: labelled-by {shown(name[:32])}; expected 'libvirt'")
    if lifetime != Lifetime.RELEASE.value:
        raise InvalidArgs("options: a VM of libvirt's has lifetime 'release': libvirt ends it")
    if not given.get("uuid"):
        raise InvalidArgs("options: labelled-by needs 'uuid', the UUID of libvirt's domain")
    return Labeller.LIBVIRT


def _categories(given: Mapping[str, Any]) -> str:
    text = given.get("categories", "")
    if text:
        if "labelled-by" not in given:
            raise InvalidArgs("options: 'categories' goes with 'labelled-by': svirtd gives others")
        try:
            parse_categories(text)
        except ValueError as error:
            raise InvalidArgs(f"options: categories: {error}") from None
    return str(text)


def _overrides(names: Sequence[str]) -> frozenset[Override]:
    for name in names:
        if name not in _OVERRIDES:
            raise InvalidArgs(
                f"options: override {shown(name[:32])}; expected {choice(_OVERRIDES)}"
            )
    return frozenset(_OVERRIDES[name] for name in names)


def _groups(names: Sequence[str]) -> tuple[str, ...]:
    for number, name in enumerate(names):
        if check_group_name(name) in names[:number]:
            raise InvalidArgs(f"options: groups names {shown(name)} twice")
    return tuple(names)


def _level(what: str, text: str, *, ranges: bool = True) -> str:
    if text:
        try:
            found = parse_sensitivities(text)
        except ValueError as error:
            raise InvalidArgs(f"{what}: level: {error}") from None
        if not ranges and found.low != found.high:
            raise InvalidArgs(f"{what}: level {text!r} is a range; only a VM has one, expected sN")
    return text


def _resources(
    given: Sequence[Options], fds: Sequence[int], goal: Goal
) -> tuple[ResourceRequest, ...]:
    """Read the resources, and behind them the files that are named as overlays of some."""
    whats = [f"resource {number}" for number in range(1, len(given) + 1)]
    found = [_resource(what, one, fds, goal) for what, one in zip(whats, given, strict=True)]
    for what, one, resource in zip(whats, given, tuple(found), strict=True):
        if "overlay" in one:
            if not resource.terms.id or resource.access.writes:
                raise InvalidArgs(
                    f"{what}: 'overlay' takes an 'id', and access 'readonly' or 'public'"
                )
            path = absolute(what, one["overlay"].value)
            terms = Terms(takes=resource.terms.id)
            found.append(ResourceRequest(path, None, Access.EXCLUSIVE, terms))
    overlays.refuse_requests(goal, found)
    return tuple(found)


def _resource(what: str, values: Options, fds: Sequence[int], goal: Goal) -> ResourceRequest:
    given = typed(what, values, _RESOURCE)
    path, index = given.get("path"), given.get("fd")
    access, form = given.get("access", goal.default_access.value), given.get("format", "raw")
    if (path is None) == (index is None):
        raise InvalidArgs(f"{what}: expected exactly one of 'path' and 'fd'")
    if access == "host-shared":
        raise NotSupported(f"{what}: access {access!r} is not supported by this version")
    if access not in _ACCESSES:
        raise InvalidArgs(f"{what}: access {access[:32]!r}; expected {choice(_ACCESSES)}")
    if given.get("recursive") and form != Format.RAW.value:
        raise InvalidArgs(f"{what}: 'recursive' is for directories, which have no format")
    if form not in _FORMATS:
        raise InvalidArgs(
            f"{what}: format {form[:32]!r}; expected {choice(_FORMATS)} ('raw' labels the file as "
            "it is, without looking for files behind it)"
        )
    fd = None
    if index is not None:
        if not 0 <= index < len(fds):
            raise InvalidArgs(f"{what}: 'fd' names no descriptor of this message")
        fd = fds[index]
    group = check_group_name(given["group"]) if "group" in given else ""
    if access == Access.GROUP and not group:
        raise InvalidArgs(f"{what}: access 'group' needs 'group', the name of the group")
    backing = _backing(what, given, goal)
    below = backing is Backing.GROUP
    if below and not group:
        raise InvalidArgs(f"{what}: backing 'group' needs 'group', the name of the group")
    if group and access not in (Access.GROUP, Access.READONLY) and not below:
        raise InvalidArgs(f"{what}: 'group' goes with access 'group' or 'readonly', not {access!r}")
    until_us, at_end = _lease(what, given)
    terms = Terms(
        id=check_resource_id(given["id"]) if "id" in given else "",
        group=group if access in (Access.GROUP, Access.READONLY) else "",
        level=_level(what, given.get("level", ""), ranges=False),
        until_us=until_us,
        at_end=at_end,
        recursive=given.get("recursive", False),
        format=_FORMATS[form],
        backing=backing,
        backing_group=group if below else "",
    )
    return ResourceRequest(
        None if path is None else absolute(what, path), fd, _ACCESSES[access], terms
    )


def _backing(what: str, given: Mapping[str, Any], goal: Goal) -> Backing:
    """Read how files under an image are labelled: for every VM, unless the goal allows no such."""
    default = Backing.PUBLIC if Access.PUBLIC in goal.accesses else Backing.PRIVATE
    value = given.get("backing", default.value)
    if value not in _BACKINGS:
        raise InvalidArgs(f"{what}: backing {value[:32]!r}; expected {choice(_BACKINGS)}")
    if "backing" in given and given.get("format") != Format.QCOW2.value:
        raise InvalidArgs(f"{what}: 'backing' goes with format 'qcow2', which has files under it")
    return _BACKINGS[value]

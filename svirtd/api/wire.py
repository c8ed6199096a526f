# SPDX-License-Identifier: LGPL-2.1-or-later
"""Untrusted D-Bus values to typed requests. Every refusal is InvalidArgs."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final

from svirtd.core import goals, overlays
from svirtd.core.goals import BUILT_INS, Goal, Goals
from svirtd.core.groups import AtEnd, Writers
from svirtd.core.levels import parse_sensitivities
from svirtd.core.model import (
    Access,
    Command,
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
from svirtd.engine.groups import NewGrant, NewGroup
from svirtd.engine.verify import Wanted
from svirtd.errors import InvalidArgs, LimitsExceeded, NotSupported
from svirtd.host.bus import Variant

Options = Mapping[str, Variant]

_PATH_MAX: Final = 4095
_U64: Final = 2**64 - 1

# systemd's resource controls that a caller may set: signature and the values taken. Nothing that
# says who runs, where, or under which label is here: those are svirtd's to say.
_PROPERTIES: Final[Mapping[str, tuple[str, int, int]]] = {
    "MemoryMax": ("t", 1, _U64),
    "MemoryHigh": ("t", 1, _U64),
    "MemorySwapMax": ("t", 0, _U64),
    "TasksMax": ("t", 1, _U64),
    "CPUWeight": ("t", 1, 10_000),
    "IOWeight": ("t", 1, 10_000),
    "CPUQuotaPerSecUSec": ("t", 1, _U64),
    "LimitNOFILE": ("t", 1, _U64),
    "LimitMEMLOCK": ("t", 0, _U64),
    "RuntimeMaxUSec": ("t", 1, _U64),
    "TimeoutStopUSec": ("t", 1, _U64),
    "OOMScoreAdjust": ("i", -1000, 1000),
    "AllowedCPUs": ("ay", 0, 0),
    "Description": ("s", 0, 0),
}
_ACCESSES: Final = {access.value: access for access in Access}
_LIFETIMES: Final = {lifetime.value: lifetime for lifetime in Lifetime}
_WRITERS: Final = {one.value: one for one in Writers}
_AT_ENDS: Final = {one.value: one for one in AtEnd}
# The first moment of the year 10000, in UTC: later ones cannot be written down.
_UNTIL_MAX_US: Final = 253_402_300_800_000_000 - 1
_OVERRIDES: Final = {override.value: override for override in Override}
_DESCRIPTION_MAX: Final = 256
_CPUS_MAX_BYTES: Final = 1024


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
_LAUNCH: Final[Mapping[str, str]] = {
    **_ACQUIRE,
    "user": "s",
    "environment": "as",
    "working-directory": "s",
    "properties": "a{sv}",
}


def typed(what: str, values: Options, keys: Mapping[str, str]) -> dict[str, Any]:
    """Return the values of an a{sv} by key. Raises InvalidArgs for an unknown key or wrong type.

    `keys` gives the signature of each key that may be there.
    """
    found = {}
    for key, (signature, value) in values.items():
        expected = keys.get(key)
        if expected is None:
            known = ", ".join(sorted(keys)) or "none"
            raise InvalidArgs(f"{what}: unknown key {shown(key)}; known keys: {known}")
        if signature != expected:
            raise InvalidArgs(f"{what}: {key!r} has type {signature!r}, expected {expected!r}")
        found[key] = value
    return found


def no_options(options: Options) -> None:
    """Refuse any option."""
    typed("options", options, {})


def read_id(options: Options) -> str:
    """Read what Release, Forget and OpenChannel take: the Id of the VM that is meant, or ""."""
    return str(typed("options", options, {"id": "s"}).get("id", ""))


def read_verify(repair: bool, options: Options) -> Wanted:
    """Read what Verify takes. Raises InvalidArgs."""
    folders = typed("options", options, {"scan": "as"}).get("scan", [])
    return Wanted(repair, tuple(_path("scan", one) for one in folders))


def read_group(name: str, options: Options) -> NewGroup:
    """Read what CreateGroup takes. Raises InvalidArgs."""
    given = typed("options", options, {"writers": "s", "namespace": "s"})
    writers = given.get("writers", Writers.ALL.value)
    if writers not in _WRITERS:
        raise InvalidArgs(f"options: writers {shown(writers[:32])}; expected {_choice(_WRITERS)}")
    namespace = given.get("namespace", "")
    if namespace:
        _path("namespace", namespace)
    return NewGroup(check_group_name(name), _WRITERS[writers], namespace)


def read_grant(vm_name: str, options: Options) -> NewGrant:
    """Read what Grant takes. Raises InvalidArgs."""
    given = typed("options", options, {"owner": "u", "until": "t", "at-end": "s"})
    until_us, at_end = _lease("options", given)
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
        raise InvalidArgs(f"{what}: at-end {shown(at_end[:32])}; expected {_choice(_AT_ENDS)}")
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
    return _request(name, resources, typed("options", options, _ACQUIRE), fds, known)


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
    command = Command(
        argv=_argv(argv, command_bytes_max),
        user=_printable("user", given.get("user", ""), 64),
        environment=tuple(_assignment(one) for one in given.get("environment", ())),
        working_directory=_folder(given.get("working-directory", "")),
        properties=_properties(given.get("properties", {})),
    )
    overlays.refuse_unknown_words(command.argv, request.resources)
    if sum(len(e.encode()) + 1 for e in command.environment) > command_bytes_max:
        raise LimitsExceeded(
            f"environment: more than [limits] command-bytes = {command_bytes_max} bytes"
        )
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
        raise InvalidArgs(f"options: lifetime {lifetime[:32]!r}; expected {_choice(_LIFETIMES)}")
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
    )


def _overrides(names: Sequence[str]) -> frozenset[Override]:
    for name in names:
        if name not in _OVERRIDES:
            raise InvalidArgs(
                f"options: override {shown(name[:32])}; expected {_choice(_OVERRIDES)}"
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
            path = _path(what, one["overlay"].value)
            terms = Terms(takes=resource.terms.id)
            found.append(ResourceRequest(path, None, Access.EXCLUSIVE, terms))
    overlays.refuse_requests(goal, found)
    return tuple(found)


def _resource(what: str, values: Options, fds: Sequence[int], goal: Goal) -> ResourceRequest:
    given = typed(what, values, _RESOURCE)
    path, index = given.get("path"), given.get("fd")
    access, form = given.get("access", goal.default_access.value), given.get("format", "raw")
    if "backing" in given:
        raise NotSupported(f"{what}: 'backing' is not supported by this version")
    if given.get("recursive", False):
        raise NotSupported(f"{what}: directory trees are not supported by this version")
    if (path is None) == (index is None):
        raise InvalidArgs(f"{what}: expected exactly one of 'path' and 'fd'")
    if access == "host-shared":
        raise NotSupported(f"{what}: access {access!r} is not supported by this version")
    if access not in _ACCESSES:
        raise InvalidArgs(f"{what}: access {access[:32]!r}; expected {_choice(_ACCESSES)}")
    if form != "raw":
        raise NotSupported(
            f"{what}: format {form[:32]!r} is not supported by this version; 'raw' labels the "
            "file as it is, without looking for files behind it"
        )
    fd = None
    if index is not None:
        if not 0 <= index < len(fds):
            raise InvalidArgs(f"{what}: 'fd' names no descriptor of this message")
        fd = fds[index]
    group = check_group_name(given["group"]) if "group" in given else ""
    if access == Access.GROUP and not group:
        raise InvalidArgs(f"{what}: access 'group' needs 'group', the name of the group")
    if group and access not in (Access.GROUP, Access.READONLY):
        raise InvalidArgs(f"{what}: 'group' goes with access 'group' or 'readonly', not {access!r}")
    until_us, at_end = _lease(what, given)
    terms = Terms(
        id=check_resource_id(given["id"]) if "id" in given else "",
        group=group,
        level=_level(what, given.get("level", ""), ranges=False),
        until_us=until_us,
        at_end=at_end,
    )
    return ResourceRequest(
        None if path is None else _path(what, path), fd, _ACCESSES[access], terms
    )


def _choice(values: Iterable[str]) -> str:
    return " or ".join(f"'{value}'" for value in values)


def _path(what: str, path: str) -> str:
    if not path.startswith("/"):
        raise InvalidArgs(f"{what}: path {path[:64]!r} is not absolute")
    if len(path) > _PATH_MAX or len(path.encode()) > _PATH_MAX:
        raise InvalidArgs(f"{what}: path is longer than {_PATH_MAX} bytes")
    if not path.isprintable():
        # It could not be shown, logged or compared by a person without tricks.
        raise InvalidArgs(f"{what}: path {path[:64]!r} has control characters; rename the file")
    if ".." in path and ".." in path.split("/"):
        raise InvalidArgs(f"{what}: path {path[:64]!r} has '..' in it; name the file plainly")
    return path


def _argv(argv: Sequence[str], limit: int) -> tuple[str, ...]:
    if not argv:
        raise InvalidArgs("command: empty; expected the absolute path of a program")
    if not argv[0].startswith("/"):
        raise InvalidArgs(f"command: {argv[0][:64]!r} is not an absolute path")
    _path("command", argv[0])
    if sum(len(arg.encode()) + 1 for arg in argv) > limit:
        raise LimitsExceeded(f"command: longer than [limits] command-bytes = {limit} bytes")
    return tuple(argv)


def _assignment(text: str) -> str:
    name, equals, _ = text.partition("=")
    valid = name.isascii() and name.replace("_", "a").isalnum() and not name[0].isdigit()
    if not equals or not valid:
        raise InvalidArgs(f"environment: {text[:64]!r} is not NAME=value")
    if not text.replace("\n", "").replace("\t", "").isprintable():
        raise InvalidArgs(f"environment: {shown(name)} has control characters")
    return text


def _folder(path: str) -> str:
    return _path("working-directory", path) if path else ""


def _printable(what: str, text: str, longest: int) -> str:
    if len(text) > longest or not text.isprintable():
        raise InvalidArgs(
            f"{what}: {text[:longest]!r}; expected at most {longest} printable characters"
        )
    return text


def _properties(values: Options) -> tuple[tuple[str, str, object], ...]:
    return tuple((name, *_property(name, variant)) for name, variant in values.items())


def _property(name: str, variant: Variant) -> tuple[str, object]:
    if name not in _PROPERTIES:
        raise InvalidArgs(
            f"properties: {name[:64]!r} may not be set; allowed: {', '.join(sorted(_PROPERTIES))}"
        )
    signature, low, high = _PROPERTIES[name]
    value = variant.value
    if variant.signature != signature:
        raise InvalidArgs(
            f"properties: {name} has type {variant.signature!r}, expected {signature!r}"
        )
    match signature:
        case "s":
            _printable(f"properties: {name}", value, _DESCRIPTION_MAX)
        case "ay":
            if not 0 < len(value) <= _CPUS_MAX_BYTES:
                raise InvalidArgs(f"properties: {name} has {len(value)} bytes; expected a bit mask")
        case _:
            if not low <= value <= high:
                raise InvalidArgs(f"properties: {name} is {value}; expected {low} to {high}")
    return signature, value

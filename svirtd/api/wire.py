# SPDX-License-Identifier: LGPL-2.1-or-later
"""Untrusted D-Bus values to typed requests, and results back. Every refusal is InvalidArgs."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final

from svirtd.core import goals
from svirtd.core.model import (
    VM,
    Access,
    Command,
    Finding,
    Hold,
    Lifetime,
    Request,
    ResourceRequest,
)
from svirtd.core.names import check_uuid, check_vm_name, shown
from svirtd.core.plan import Plan
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
_DESCRIPTION_MAX: Final = 256
_CPUS_MAX_BYTES: Final = 1024


class Reader:
    """Takes known keys out of an a{sv}; done() refuses whatever is left."""

    def __init__(self, what: str, values: Options) -> None:
        self._what = what
        self._left = dict(values)
        self._known: list[str] = []

    def take(self, key: str, signature: str, default: Any) -> Any:
        """Return the value of `key`, which must have `signature`, or the default."""
        self._known.append(key)
        variant = self._left.pop(key, None)
        if variant is None:
            return default
        if variant.signature != signature:
            raise InvalidArgs(
                f"{self._what}: {key!r} has type {variant.signature!r}, expected {signature!r}"
            )
        return variant.value

    def done(self) -> None:
        """Refuse keys that nobody took."""
        if self._left:
            known = ", ".join(sorted(self._known)) or "none"
            raise InvalidArgs(
                f"{self._what}: unknown key {shown(min(self._left))}; known keys: {known}"
            )


def no_options(options: Options) -> None:
    """Refuse any option."""
    Reader("options", options).done()


def read_request(
    name: str, resources: Sequence[Options], options: Options, fds: Sequence[int]
) -> Request:
    """Read what Acquire and Plan take."""
    reader = Reader("options", options)
    request = _request(name, resources, reader, fds)
    reader.done()
    return request


def read_launch(
    name: str,
    argv: Sequence[str],
    resources: Sequence[Options],
    options: Options,
    fds: Sequence[int],
    command_bytes_max: int,
) -> tuple[Request, Command]:
    """Read what Launch takes."""
    reader = Reader("options", options)
    request = _request(name, resources, reader, fds)
    command = Command(
        argv=_argv(argv, command_bytes_max),
        user=_printable("user", reader.take("user", "s", ""), 64),
        environment=tuple(_assignment(one) for one in reader.take("environment", "as", [])),
        working_directory=_folder(reader.take("working-directory", "s", "")),
        properties=_properties(reader.take("properties", "a{sv}", {})),
    )
    if sum(len(e.encode()) + 1 for e in command.environment) > command_bytes_max:
        raise LimitsExceeded(
            f"environment: more than [limits] command-bytes = {command_bytes_max} bytes"
        )
    reader.done()
    return request, command


def _request(
    name: str, resources: Sequence[Options], reader: Reader, fds: Sequence[int]
) -> Request:
    uuid = reader.take("uuid", "s", "")
    lifetime = reader.take("lifetime", "s", Lifetime.RELEASE.value)
    if lifetime not in tuple(Lifetime):
        raise InvalidArgs(
            f"options: lifetime {lifetime[:32]!r}; expected {_choice(tuple(Lifetime))}"
        )
    goal = reader.take("goal", "s", goals.ISOLATED.name)
    return Request(
        name=check_vm_name(name),
        resources=tuple(
            _resource(number, one, fds) for number, one in enumerate(resources, start=1)
        ),
        goal=goals.goal(goal[:64]).name,
        uuid=check_uuid(uuid) if uuid else "",
        persistent=reader.take("persistent", "b", False),
        lifetime=Lifetime(lifetime),
    )


def _resource(number: int, values: Options, fds: Sequence[int]) -> ResourceRequest:
    what = f"resource {number}"
    reader = Reader(what, values)
    path = reader.take("path", "s", None)
    index = reader.take("fd", "h", None)
    access = reader.take("access", "s", Access.EXCLUSIVE.value)
    form = reader.take("format", "s", "raw")
    for later in ("group", "backing"):
        if reader.take(later, "s", None) is not None:
            raise NotSupported(f"{what}: {later!r} is not supported by this version")
    if reader.take("recursive", "b", False):
        raise NotSupported(f"{what}: directory trees are not supported by this version")
    reader.done()
    if (path is None) == (index is None):
        raise InvalidArgs(f"{what}: expected exactly one of 'path' and 'fd'")
    if access in ("group", "host-shared"):
        raise NotSupported(f"{what}: access {access!r} is not supported by this version")
    if access not in tuple(Access):
        raise InvalidArgs(f"{what}: access {access[:32]!r}; expected {_choice(tuple(Access))}")
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
    return ResourceRequest(None if path is None else _path(what, path), fd, Access(access))


def _choice(values: Sequence[str]) -> str:
    return " or ".join(f"'{value}'" for value in values)


def _path(what: str, path: str) -> str:
    if not path.startswith("/"):
        raise InvalidArgs(f"{what}: path {path[:64]!r} is not absolute")
    if len(path.encode()) > _PATH_MAX:
        raise InvalidArgs(f"{what}: path is longer than {_PATH_MAX} bytes")
    if not path.isprintable():
        # It could not be shown, logged or compared by a person without tricks.
        raise InvalidArgs(f"{what}: path {path[:64]!r} has control characters; rename the file")
    if ".." in path.split("/"):
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


# -- results ---------------------------------------------------------------------------------

VM_PROPERTIES: Final[Mapping[str, tuple[str, Callable[[VM], object]]]] = {
    "Name": ("s", lambda vm: vm.name),
    "Id": ("s", lambda vm: vm.id),
    "UUID": ("s", lambda vm: vm.uuid),
    "Owner": ("u", lambda vm: vm.owner_uid),
    "State": ("s", lambda vm: vm.state.value),
    "StateReason": ("s", lambda vm: vm.reason),
    "Goal": ("s", lambda vm: vm.goal),
    "Groups": ("as", lambda _: []),
    "Unit": ("s", lambda vm: vm.unit),
    "MainPID": ("u", lambda vm: vm.main_pid),
    "ProcessContext": ("s", lambda vm: vm.process_context),
    "ImageContext": ("s", lambda vm: vm.image_context),
    "Categories": ("s", lambda vm: vm.categories),
    "RuntimeDirectory": ("s", lambda vm: vm.runtime_dir),
    "Persistent": ("b", lambda vm: vm.persistent),
    "CreatedAt": ("t", lambda vm: vm.created_us),
}


def vm_properties(vm: VM, holds: Sequence[Hold]) -> dict[str, Variant]:
    """Return every property of org.svirt1.VM."""
    values = {name: Variant(sig, get(vm)) for name, (sig, get) in VM_PROPERTIES.items()}
    values["Resources"] = Variant("aa{sv}", [_hold(hold) for hold in holds])
    return values


def vm_changes(
    before: tuple[VM, Sequence[Hold]], after: tuple[VM, Sequence[Hold]]
) -> dict[str, Variant]:
    """Return the properties whose values differ."""
    changed = {
        name: Variant(sig, get(after[0]))
        for name, (sig, get) in VM_PROPERTIES.items()
        if get(before[0]) != get(after[0])
    }
    if tuple(before[1]) != tuple(after[1]):
        changed["Resources"] = Variant("aa{sv}", [_hold(hold) for hold in after[1]])
    return changed


def _hold(hold: Hold) -> dict[str, Variant]:
    return {
        "path": Variant("s", hold.path),
        "access": Variant("s", hold.access.value),
        "context": Variant("s", hold.label),
        "original": Variant("s", hold.original or ""),
    }


def plan_steps(plan: Plan) -> list[dict[str, Variant]]:
    """Return a plan as Plan answers it."""
    steps = []
    for decision in plan.decisions:
        step = {
            "path": Variant("s", decision.seen.path),
            "access": Variant("s", decision.seen.access.value),
            "from": Variant("s", decision.seen.label or ""),
            "to": Variant("s", decision.target),
        }
        if decision.refusal is not None:
            step["error"] = Variant("s", decision.refusal.name)
            step["reason"] = Variant("s", decision.refusal.text)
        steps.append(step)
    return steps


def owner(vm: VM, hold: Hold | None, path: str) -> dict[str, Variant]:
    """Return one owner as FindOwners answers it; `path` is the VM's object."""
    found = {
        "vm": Variant("s", vm.name),
        "object": Variant("o", path),
        "state": Variant("s", vm.state.value),
    }
    if hold is not None:
        found["path"] = Variant("s", hold.path)
        found["access"] = Variant("s", hold.access.value)
    return found


def finding(one: Finding) -> dict[str, Variant]:
    """Return a finding as DriftFound carries it."""
    return {
        "kind": Variant("s", one.kind),
        "vm": Variant("s", one.vm_name),
        "path": Variant("s", one.path),
        "expected": Variant("s", one.expected),
        "found": Variant("s", one.found),
        "reason": Variant("s", one.reason),
    }

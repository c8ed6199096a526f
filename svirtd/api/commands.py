# SPDX-License-Identifier: LGPL-2.1-or-later
"""What Launch is told to start, and under which of systemd's controls."""

from collections.abc import Mapping, Sequence
from typing import Any, Final

from svirtd.api.values import Options, absolute
from svirtd.core.model import Command
from svirtd.core.names import shown
from svirtd.errors import InvalidArgs, LimitsExceeded
from svirtd.host.bus import Variant

_U64: Final = 2**64 - 1
_DESCRIPTION_MAX: Final = 256
_CPUS_MAX_BYTES: Final = 1024
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


def read_command(argv: Sequence[str], given: Mapping[str, Any], bytes_max: int) -> Command:
    """Return the command of a launch; `given` are its options. InvalidArgs, LimitsExceeded."""
    command = Command(
        argv=_argv(argv, bytes_max),
        user=_printable("user", given.get("user", ""), 64),
        environment=tuple(_assignment(one) for one in given.get("environment", ())),
        working_directory=_folder(given.get("working-directory", "")),
        properties=_properties(given.get("properties", {})),
    )
    if sum(len(e.encode()) + 1 for e in command.environment) > bytes_max:
        raise LimitsExceeded(f"environment: more than [limits] command-bytes = {bytes_max} bytes")
    return command


def _argv(argv: Sequence[str], limit: int) -> tuple[str, ...]:
    if not argv:
        raise InvalidArgs("command: empty; expected the absolute path of a program")
    if not argv[0].startswith("/"):
        raise InvalidArgs(f"command: {argv[0][:64]!r} is not an absolute path")
    absolute("command", argv[0])
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
    return absolute("working-directory", path) if path else ""


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

# SPDX-License-Identifier: LGPL-2.1-or-later
"""Typed getters for untrusted D-Bus values. Every refusal is InvalidArgs."""

from collections.abc import Iterable, Mapping
from typing import Any, Final

from svirtd.core.names import shown
from svirtd.errors import InvalidArgs
from svirtd.host.bus import Variant

Options = Mapping[str, Variant]

_PATH_MAX: Final = 4095


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


def choice(values: Iterable[str]) -> str:
    """Return the values that may be given, for a message."""
    return " or ".join(f"'{value}'" for value in values)


def absolute(what: str, path: str) -> str:
    """Return a path that can be looked up and shown. Raises InvalidArgs that begins with `what`."""
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

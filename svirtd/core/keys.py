# SPDX-License-Identifier: LGPL-2.1-or-later
"""Keys of the TOML files that administrators write: each is known, and says what it takes. Pure.

A rule that was mistyped must not silently become a wider one, so that nothing unknown is passed
over, and every error names the key and what was expected.
"""

from collections.abc import Callable, Iterable, Mapping
from typing import Any

from svirtd.errors import ConfigError

Reader = Callable[[Any], Any]
"""Returns a value as it is used. Raises ValueError, whose text says what was expected."""


def read_keys(
    where: str,
    table: Mapping[str, Any],
    known: Mapping[str, tuple[str, Reader]],
    others: Iterable[str] = (),
) -> dict[str, Any]:
    """Return what a table says, by the field that each key of `known` is for.

    `where` comes before the key in errors; `others` are keys that somebody else reads, and are left
    out here. Raises ConfigError.
    """
    values = {}
    for key, value in table.items():
        if key in others:
            continue
        if key not in known:
            expected = ", ".join(sorted([*known, *others]))
            raise ConfigError(f"{where}{key}: unknown key; expected one of {expected}")
        field, reader = known[key]
        try:
            values[field] = reader(value)
        except ValueError as error:
            raise ConfigError(
                f"{where}{key}: {value!r} cannot be used; expected {error}"
            ) from error
    return values


def boolean(value: Any) -> bool:
    """Read true or false."""
    if not isinstance(value, bool):
        raise ValueError("true or false")  # noqa: TRY004 -- readers speak with ValueError
    return value


def whole(low: int, high: int) -> Reader:
    """Return what reads a number between these, both included."""

    def read(value: Any) -> int:
        if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
            raise ValueError(f"a whole number from {low} to {high}")
        return value

    return read


def one_of(values: Iterable[Any]) -> Reader:
    """Return what reads one of these by the text that it is."""
    known = {str(one): one for one in values}

    def read(value: Any) -> Any:
        if not isinstance(value, str) or value not in known:
            raise ValueError(" or ".join(f'"{one}"' for one in known))
        return known[value]

    return read

# SPDX-License-Identifier: LGPL-2.1-or-later
"""Times that people type: how long, or until when. Every refusal is a ValueError."""

import decimal
import re
from datetime import datetime
from typing import Final

_NUMBER: Final = r"(\d+(?:\.\d+)?)"
_UNIT: Final = "us|ms|s|sec|m|min|h|hr|d|day"
_SPAN = re.compile(rf"{_NUMBER}\s*({_UNIT}|)", re.ASCII)
# Whether somebody who writes 30 means seconds or days, nobody can tell.
_WITH_UNITS = re.compile(rf"\s*(?:{_NUMBER}\s*(?:{_UNIT})\s*)+", re.ASCII)
_SPAN_US: Final = {
    "us": 1,
    "ms": 1000,
    **dict.fromkeys(("", "s", "sec"), 1_000_000),
    **dict.fromkeys(("m", "min"), 60_000_000),
    **dict.fromkeys(("h", "hr"), 3_600_000_000),
    **dict.fromkeys(("d", "day"), 86_400_000_000),
}
_DATE = re.compile(r"\d{4}-\d{2}-\d{2}(?:[T ].*)?", re.I | re.S)
# The last moment that can be written out again.
_LAST_US: Final = 253_402_300_799_000_000


def span_us(text: str) -> decimal.Decimal:
    """Return a span such as "90", "10min" or "1h 30min" in µs; a bare number is of seconds."""
    words = text.strip()
    if not re.fullmatch(rf"(?:{_SPAN.pattern}\s*)+", words, re.ASCII):
        raise ValueError(f"{text!r} is not a time such as 90, 10min or 1h 30min")
    spans = _SPAN.findall(words)
    return sum(
        (decimal.Decimal(number) * _SPAN_US[unit] for number, unit in spans), decimal.Decimal(0)
    )


def until_us(text: str, now_us: int) -> int:
    """Return the moment that is meant, in µs since 1970: a span from now on, or a date and time.

    A time without an offset is of the local zone, a date without a time its first moment.
    """
    moment_us = _moment_us(text) if _DATE.fullmatch(text.strip()) else now_us + _span_us(text)
    if not now_us < moment_us <= _LAST_US:
        raise ValueError(f"{text!r} is not in the future, or too far in it")
    return moment_us


def _span_us(text: str) -> int:
    if not _WITH_UNITS.fullmatch(text):
        raise ValueError(
            f"{text!r} is not a span with units such as 2h, 3d or 1h 30min, nor a time such as "
            "2027-01-31 18:00 or 2027-01-31T18:00:00Z"
        )
    return int(span_us(text))


def _moment_us(text: str) -> int:
    try:
        moment = datetime.fromisoformat(text.strip())
        # A naive one becomes one of the local zone.
        return int(moment.astimezone().timestamp() * 1_000_000)
    except (ValueError, OverflowError, OSError):
        raise ValueError(
            f"{text!r} is not a date and time such as 2027-01-31 18:00 or 2027-01-31T18:00:00Z"
        ) from None

# SPDX-License-Identifier: LGPL-2.1-or-later
"""Times that people type: spans with units, dates and times, in the future only."""

import time
from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from svirtd.ctl.times import until_us

# 2026-06-01 12:00:00 UTC.
NOW = 1_780_315_200_000_000
HOUR = 3_600_000_000


@pytest.fixture
def summer() -> Iterator[None]:
    """A zone two hours before UTC in June, one in January."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TZ", "Europe/Berlin")
        time.tzset()
        yield
    time.tzset()


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("2h", NOW + 2 * HOUR),
        ("3d", NOW + 72 * HOUR),
        ("1h 30min", NOW + HOUR * 3 // 2),
        ("1h30m", NOW + HOUR * 3 // 2),
        ("0.5 h", NOW + HOUR // 2),
        (" 90s ", NOW + 90_000_000),
        ("1us", NOW + 1),
        ("2026-06-01T12:00:01Z", NOW + 1_000_000),
        ("2026-06-01 13:00:00+00:00", NOW + HOUR),
        ("2026-06-01T13:00:00.5-01:00", NOW + 2 * HOUR + 500_000),
        ("2026-06-02", NOW + 10 * HOUR),
        ("2026-06-01 18:00", NOW + 4 * HOUR),
        ("2027-01-31 18:00", 1_801_414_800_000_000),
    ],
)
@pytest.mark.usefixtures("summer")
def test_times(text: str, expected: int) -> None:
    assert until_us(text, NOW) == expected


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "not a span with units"),
        ("30", "not a span with units"),
        ("1h 30", "not a span with units"),
        ("-2h", "not a span with units"),
        ("2 fortnights", "not a span with units"),
        ("infinity", "not a span with units"),
        ("tomorrow", "not a span with units"),
        ("٣h", "not a span with units"),
        ("0s", "not in the future"),
        ("99999999d", "not in the future, or too far"),
        ("9" * 400 + "d", "too far"),
        ("2026-06-01T12:00:00Z", "not in the future"),
        ("2026-06-01 13:59", "not in the future"),
        ("1970-01-01", "not in the future"),
        ("2026-02-30", "not a date and time"),
        ("2026-06-01T25:00", "not a date and time"),
        ("2026-06-01 at noon", "not a date and time"),
        ("2026-06-01T12:00:01Z and more", "not a date and time"),
        ("9999-12-31T23:59:59-12:00", "date and time|too far"),
    ],
)
@pytest.mark.usefixtures("summer")
def test_what_is_no_time_or_past(text: str, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        until_us(text, NOW)


@given(st.text(alphabet="0123456789.-:TZdhms +\n\0", max_size=30) | st.text(max_size=30))
def test_anything_is_a_time_in_the_future_or_refused(text: str) -> None:
    try:
        found = until_us(text, NOW)
    except ValueError as error:
        found, said = NOW + 1, str(error)
    else:
        said = repr(text)
    assert found > NOW
    assert said.startswith(repr(text))

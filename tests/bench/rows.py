# SPDX-License-Identifier: LGPL-2.1-or-later
"""One result, its floor and its bar; and the arithmetic of samples."""

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any


@dataclass(frozen=True, slots=True)
class Bar:
    """What the ratio to the floor has to keep: at most `limit`, or at least."""

    limit: float
    at_most: bool = True

    def holds(self, ratio: float) -> bool:
        """Say whether a ratio keeps the bar."""
        return ratio <= self.limit if self.at_most else ratio >= self.limit

    def __str__(self) -> str:
        return f"{'≤' if self.at_most else '≥'} {self.limit:g}"


@dataclass(frozen=True, slots=True)
class Row:
    """A measured value. `floor` has the value's unit; `meaning` says what both are."""

    name: str
    meaning: str
    value: float
    unit: str
    floor: float | None = None
    bar: Bar | None = None

    @property
    def ratio(self) -> float | None:
        """The value by its floor."""
        return self.value / self.floor if self.floor else None

    @property
    def holds(self) -> bool | None:
        """Whether the bar holds; None where there is none."""
        if self.bar is None or self.ratio is None:
            return None
        return self.bar.holds(self.ratio)

    def as_json(self) -> dict[str, Any]:
        """Return the row for programs. `bar_kind` says on which side of `bar` the ratio may be."""
        return {
            "name": self.name,
            "value": self.value,
            "unit": self.unit,
            "floor": self.floor,
            "ratio": self.ratio,
            "bar": self.bar.limit if self.bar else None,
            "bar_kind": ("at-most" if self.bar.at_most else "at-least") if self.bar else None,
            "holds": self.holds,
            "meaning": self.meaning,
        }


@dataclass(slots=True)
class Rounds:
    """Samples by round; a figure is the median over the rounds of the figure of each round.

    A disturbance of the machine then spoils its own round and not the result.
    """

    samples: list[list[float]]

    def __init__(self) -> None:
        self.samples = []

    def add(self, samples: Sequence[float]) -> None:
        """Take in one round."""
        self.samples.append(sorted(samples))

    def percentile(self, percent: float) -> float:
        """Return the figure below which `percent` of a round's samples lie."""
        return median(_percentile(one, percent) for one in self.samples)

    @property
    def p50(self) -> float:
        """The median."""
        return self.percentile(50)

    @property
    def p99(self) -> float:
        """What one sample in a hundred exceeds."""
        return self.percentile(99)


def _percentile(ascending: Sequence[float], percent: float) -> float:
    return ascending[min(len(ascending) - 1, int(len(ascending) * percent / 100))]

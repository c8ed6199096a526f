# SPDX-License-Identifier: LGPL-2.1-or-later
"""The daemon killed at every boundary of every scenario, and at every boundary of its recovery."""

from collections.abc import Sequence

import pytest

from tests.crash.enumeration import Enumeration, Place
from tests.crash.report import Report
from tests.crash.scenarios import OPEN, SCENARIOS, Opened, Scenario
from tests.crash.world import World


@pytest.mark.parametrize(
    ("scenario", "size"),
    [
        pytest.param(scenario, size, id=f"{scenario.name}-{size}")
        for scenario in SCENARIOS
        for size in scenario.sizes
    ],
)
def test_killed_at_every_boundary(
    world: World, report: Report, scenario: Scenario, size: int
) -> None:
    Enumeration(world, report, scenario, size).kill_everywhere()


@pytest.mark.parametrize(
    ("opened", "size"),
    [
        pytest.param(opened, size, id=f"{opened.name}-{size}")
        for opened in OPEN
        for size in opened.scenario.sizes
    ],
)
def test_killed_at_every_boundary_of_recovery(
    world: World, report: Report, opened: Opened, size: int
) -> None:
    def first(places: Sequence[Place]) -> Place:
        there = [place for place in places if place.point is opened.point]
        return there[(len(there) - 1) // 2]

    whole = size == min(opened.scenario.sizes)
    Enumeration(world, report, opened.scenario, size).kill_recovery(first, whole=whole)

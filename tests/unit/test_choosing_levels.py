# SPDX-License-Identifier: LGPL-2.1-or-later
"""Which levels a request chooses, and that the kernel is asked about each of them."""

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest

from svirtd.core.mcs import parse_context
from svirtd.core.model import (
    Access,
    Contexts,
    Lifetime,
    Mode,
    Request,
    ResourceRequest,
    Standing,
    Terms,
)
from svirtd.core.pool import Shape
from svirtd.engine import levels
from svirtd.errors import LabelRefused

CONTEXTS = Contexts(
    parse_context("system_u:system_r:svirt_t:s0"),
    parse_context("system_u:object_r:svirt_image_t:s0"),
    parse_context("system_u:object_r:virt_content_t:s0"),
)
MLS = Standing(Mode.ENFORCING, "mls", 1, "", levels=True)
MCS = Standing(Mode.ENFORCING, "default", 1, "")
NONE = Standing(Mode.DISABLED, "", 0, "")


def doors(standing: Standing, check: Callable[[str], None]) -> Any:
    return SimpleNamespace(
        contexts=CONTEXTS,
        shape=Shape(tuple(range(768)), 2),
        enforcement=SimpleNamespace(now=lambda: standing),
        kernel=SimpleNamespace(check_context=check),
    )


def request(level: str = "", *of_resources: str) -> Request:
    resources = tuple(
        ResourceRequest(f"/{number}", None, Access.PUBLIC, Terms(level=one))
        for number, one in enumerate(of_resources)
    )
    return Request(
        "web", resources, "isolated", "", False, Lifetime.RELEASE, frozenset(), level=level
    )


@pytest.mark.parametrize("standing", [MLS, MCS, NONE], ids=["mls", "mcs", "none"])
@pytest.mark.parametrize("asked", [("",), ("s0",), ("s0-s0",), ("", "", "s0"), ("s0", "s0")])
def test_what_everything_has_is_nobodys_choice(standing: Standing, asked: tuple[str, ...]) -> None:
    asks: list[str] = []
    assert levels.chosen(doors(standing, asks.append), request(*asked)) == ""
    assert asks == []


def test_each_is_told_and_asked_of_the_kernel() -> None:
    asks: list[str] = []
    told = levels.chosen(doors(MLS, asks.append), request("s1-s3", "", "s0", "s2"))
    assert told == "s1-s3 for VM web, s2 for /2"
    assert asks == [
        "system_u:system_r:svirt_t:s1:c0,c1-s3:c0,c1",
        "system_u:object_r:svirt_image_t:s2:c0,c1",
        "system_u:object_r:virt_content_t:s2:c0,c1",
    ]


@pytest.mark.parametrize(
    ("standing", "why"), [(MCS, "'default' has categories and no levels"), (NONE, "no SELinux")]
)
@pytest.mark.parametrize(
    ("asked", "where"),
    [
        (("s1",), "options: level s1"),
        (("s0-s1",), "options: level s0-s1"),
        (("", "", "s5"), "resource 2: level s5"),
    ],
)
def test_without_levels_there_is_only_one(
    standing: Standing, why: str, asked: tuple[str, ...], where: str
) -> None:
    asks: list[str] = []
    with pytest.raises(LabelRefused) as refused:
        levels.chosen(doors(standing, asks.append), request(*asked))
    assert refused.value.text.startswith(where)
    assert why in refused.value.text
    assert asks == []


def test_what_the_kernel_does_not_know_is_refused() -> None:
    def check(context: str) -> None:
        raise LabelRefused(f"not {context}")

    with pytest.raises(LabelRefused, match="resource 1: level s9: the loaded policy does not have"):
        levels.chosen(doors(MLS, check), request("", "s9"))

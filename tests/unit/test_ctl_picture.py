# SPDX-License-Identifier: LGPL-2.1-or-later
"""The picture of a matrix, read back by Graphviz itself."""

import json
import subprocess
from collections.abc import Sequence
from typing import Any, Final

import pytest

from svirtd.ctl import picture

HOSTILE: Final = 'a"]; evil [label="\\G\\"\x1b]0;owned\x07\n</svg>'


def cell(vm: str, what: str, granted: str = "", **values: Any) -> dict[str, Any]:
    uses: dict[str, Any] = {"granted": granted.split(), "allowed": granted.split()}
    empty: dict[str, Any] = {"surplus": [], "shortfall": [], "kind": "resource", "by": "policy"}
    return {"vm": vm, "object": what, **uses, **empty} | values


def drawn(cells: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """What Graphviz understands."""
    done = subprocess.run(
        ["dot", "-Tdot_json"],
        input=picture.dot(cells),
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    assert done.stderr == ""
    return dict(json.loads(done.stdout))


def edges(graph: dict[str, Any]) -> list[dict[str, Any]]:
    names = {one["_gvid"]: one["name"] for one in graph.get("objects", ())}
    return [
        {**one, "from": names[one["tail"]], "to": names[one["head"]]}
        for one in graph.get("edges", ())
    ]


def test_nothing() -> None:
    assert drawn([]).get("objects", []) == []


def test_uses_and_what_differs() -> None:
    graph = drawn(
        [
            cell("one", "/a.img", "append read write"),
            cell("two", "/a.img", allowed=["read"], surplus=["read"]),
            cell("one", "/c.img", "read"),
            cell("two", "/c.img"),
            cell("one", "/p.img", "read"),
            cell("two", "/p.img", "read"),
            cell("one", "two", kind="vm"),
            cell("two", "one", kind="vm", allowed=["ptrace"], surplus=["ptrace"]),
            cell("two", "/d.img", granted="read write", allowed=["read"], shortfall=["write"]),
        ]
    )
    names = {one["name"]: one for one in graph["objects"]}
    assert set(names) == {
        "vm one",
        "vm two",
        *(f"resource /{one}.img" for one in "acpd"),
    }
    assert names["resource /p.img"]["label"] == "/p.img (every VM reads it)"
    found = {(e["from"], e["to"], e["label"]): e.get("color", "") for e in edges(graph)}
    assert found == {
        ("vm one", "resource /a.img", "read, write"): "",
        ("vm two", "resource /a.img", "read"): "red",
        ("vm one", "resource /c.img", "read"): "",
        ("vm two", "vm one", "ptrace"): "red",
        ("vm two", "resource /d.img", "read"): "",
        ("vm two", "resource /d.img", "no write"): "red",
    }


@pytest.mark.parametrize("kind", ["resource", "vm"])
def test_a_name_stays_a_name(kind: str) -> None:
    cells = [cell(HOSTILE, HOSTILE + "x", "read", kind=kind, surplus=[HOSTILE])]
    cells.append(cell(HOSTILE + "x", "/b.img", "read"))
    text = picture.dot(cells)
    assert all(line.isprintable() for line in text.split("\n"))
    graph = drawn(cells)
    assert len(graph["objects"]) == 3 + (kind == "resource")
    assert len(edges(graph)) == 3


def test_twenty_vms_can_be_drawn() -> None:
    cells = [
        cell(f"vm{v}", f"/{r}.img", "read write" if v == r else "")
        for v in range(20)
        for r in range(20)
    ]
    cells += [cell(f"vm{v}", "/tools.img", "read") for v in range(20)]
    assert len(edges(drawn(cells))) == 20
    svg = subprocess.run(
        ["dot", "-Tsvg"], input=picture.dot(cells), capture_output=True, text=True, check=True
    )
    assert svg.stdout.count("<title>vm vm") >= 20

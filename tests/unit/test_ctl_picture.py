# SPDX-License-Identifier: LGPL-2.1-or-later
"""The picture of a matrix, read back by Graphviz itself."""

import json
import subprocess
from collections.abc import Sequence
from typing import Any, Final
from xml.etree import ElementTree

import pytest

from svirtd.ctl import main, picture, programs
from svirtd.ctl.failures import Exit, Failure

HOSTILE: Final = 'a"]; evil [label="\\G\\"\x1b]0;owned\x07\n</svg>'


def cell(vm: str, what: str, granted: str = "", **values: Any) -> dict[str, Any]:
    uses: dict[str, Any] = {"granted": granted.split(), "allowed": granted.split()}
    empty: dict[str, Any] = {"surplus": [], "shortfall": [], "kind": "resource", "by": "policy"}
    return {"vm": vm, "object": what, "identity": "", "group": "", **uses, **empty} | values


def drawn(cells: Sequence[dict[str, Any]], *, enforced: bool = True) -> dict[str, Any]:
    """What Graphviz understands."""
    done = subprocess.run(
        ["dot", "-Tdot_json"],
        input=picture.dot(cells, enforced=enforced),
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
        *(f"resource /{one}.img " for one in "acpd"),
    }
    assert names["resource /p.img "]["label"] == "/p.img (every VM reads it)"
    found = {(e["from"], e["to"], e["label"]): e.get("color", "") for e in edges(graph)}
    assert found == {
        ("vm one", "resource /a.img ", "read, write"): "",
        ("vm two", "resource /a.img ", "read"): "red",
        ("vm one", "resource /c.img ", "read"): "",
        ("vm two", "vm one", "ptrace"): "red",
        ("vm two", "resource /d.img ", "read"): "",
        ("vm two", "resource /d.img ", "no write"): "red",
    }


@pytest.mark.parametrize("kind", ["resource", "vm"])
def test_a_name_stays_a_name(kind: str) -> None:
    cells = [cell(HOSTILE, HOSTILE + "x", "read", kind=kind, surplus=[HOSTILE])]
    cells.append(cell(HOSTILE + "x", "/b.img", "read"))
    text = picture.dot(cells, enforced=True)
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
    assert svg(cells).count("<title>vm vm") >= 20


def test_what_a_group_has_carries_its_name_and_colour() -> None:
    cells = [
        cell(vm, f"/{group}.img", "append read write" if vm in group else "", group=group)
        for vm in "abcd"
        for group in ("ab", "cd")
    ]
    cells += [cell(vm, "/own.img", "append read write" * (vm == "a")) for vm in "abcd"]
    graph = drawn(cells)
    named = {one["label"]: one.get("fillcolor") for one in graph["objects"]}
    assert named["/own.img"] is None
    one, two = named["/ab.img (group ab)"], named["/cd.img (group cd)"]
    assert one is not None
    assert two not in (None, one)
    lines = {(e["from"], e["to"]): e.get("color") for e in edges(graph)}
    assert set(lines) == {
        *((f"vm {vm}", f"resource /{group}.img ") for group in ("ab", "cd") for vm in group),
        ("vm a", "resource /own.img "),
    }
    # Each group's lines have its colour: one for each, and none for what is nobody else's.
    assert lines["vm a", "resource /ab.img "] == lines["vm b", "resource /ab.img "]
    assert lines["vm a", "resource /ab.img "] is not None
    assert lines["vm c", "resource /cd.img "] != lines["vm a", "resource /ab.img "]
    assert lines["vm a", "resource /own.img "] is None


def test_two_objects_that_are_known_by_one_path() -> None:
    cells = [
        cell(vm, "/a.img", "read write" if vm == holder else "", identity=identity)
        for vm in ("one", "two")
        for holder, identity in (("one", "device 0x1 inode 2"), ("two", "device 0x1 inode 3"))
    ]
    graph = drawn(cells)
    assert sorted(one["label"] for one in graph["objects"]) == [
        "/a.img (device 0x1 inode 2)",
        "/a.img (device 0x1 inode 3)",
        "one",
        "two",
    ]
    assert {(e["from"], e["to"]) for e in edges(graph)} == {
        ("vm one", "resource /a.img device 0x1 inode 2"),
        ("vm two", "resource /a.img device 0x1 inode 3"),
    }


@pytest.mark.parametrize("enforced", [True, False])
@pytest.mark.parametrize("by", ["policy", "algebra"])
def test_it_says_where_nothing_is_kept_apart(enforced: bool, by: str) -> None:
    cells = [cell("one", "/a.img", "read write", by=by)]
    said = str(drawn(cells, enforced=enforced).get("label", ""))
    assert ("NOT ENFORCED" in said) is not enforced
    assert ("NOT ASKED OF A POLICY" in said) is (by == "algebra")
    # And whoever has the picture alone can read it there.
    shown = [one.text or "" for one in ElementTree.fromstring(svg(cells, enforced)).iter()]
    assert any("NOT ENFORCED" in one for one in shown) is not enforced


def test_a_name_stays_a_name_in_the_picture() -> None:
    root = ElementTree.fromstring(svg([cell(HOSTILE, f"/{HOSTILE}", "read write")]))
    assert {one.tag.partition("}")[2] for one in root.iter()} == {
        *("svg", "g", "title", "polygon", "polyline", "path", "text")
    }


def svg(cells: Sequence[dict[str, Any]], enforced: bool = True) -> str:
    """The picture as svirtctl has it drawn."""
    return programs.run(["dot", "-Tsvg"], text=picture.dot(cells, enforced=enforced), limit_s=60.0)


def test_a_program_that_is_not_there_is_named() -> None:
    with pytest.raises(Failure) as failed:
        programs.run(["no-such-program"], limit_s=5.0, missing="install the package graphviz")
    assert failed.value.text == (
        "no-such-program cannot be run: No such file or directory; install the package graphviz"
    )
    assert failed.value.code is Exit.REFUSED


@pytest.mark.parametrize(
    ("script", "said"),
    [
        ("echo words >&2; exit 3", "words"),
        ("exit 3", "/bin/sh failed with exit status 3"),
        ("exec sleep 1000", "/bin/sh has not ended within 1 s"),
    ],
)
def test_a_program_that_fails(script: str, said: str) -> None:
    with pytest.raises(Failure) as failed:
        programs.run(["/bin/sh", "-c", script], limit_s=1.0 if "sleep" in script else 20.0)
    assert failed.value.text == said


@pytest.mark.parametrize(
    "options",
    [
        ["matrix", "--all", "--dot"],
        ["matrix", "--all", "--svg"],
        ["matrix", "--all", "--json"],
        ["matrix", "--dot", "--svg"],
        ["--json", "matrix", "--svg"],
        ["matrix", "--dot", "--json"],
    ],
)
def test_options_that_would_have_no_effect(
    options: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main.run(options) == Exit.USAGE
    said = capsys.readouterr().err
    assert "one of them says what is printed" in said
    assert all(one in said for one in options if one.startswith("-"))

# SPDX-License-Identifier: LGPL-2.1-or-later
"""The matrix as a picture: text in the language of Graphviz, for `dot -Tsvg`. Pure.

VMs stand on the left, what they use on the right; what a group has carries the group's name and
colour. A line is a use that was granted; one that nobody granted is thick and red, one that was
granted and is not allowed is dashed and red. What every VM may read gets no lines, it is drawn
apart: a picture of twenty VMs stays one that a person can read.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any, Final

from svirtd.ctl.render import NOT_ASKED, NOT_ENFORCED, shown

_HEAD: Final = (
    "digraph svirt {",
    "  rankdir=LR; ranksep=2; nodesep=0.1;",
    '  node [fontname="sans-serif", fontsize=10, height=0.3]; edge [fontsize=8, arrowsize=0.6];',
)
_WRITES: Final = 'label="read, write"'
_SURPLUS: Final = 'color="red", fontcolor="red", penwidth=3'
_SHORTFALL: Final = 'color="red", fontcolor="red", style="dashed"'
_ALARM: Final = 'labelloc="t"; fontname="sans-serif"; fontsize=16; fontcolor="red";'
# Fill and line; none is red, which means something else. After the last the first comes again.
_COLOURS: Final = (
    ("#cfe2f3", "#2a6099"),
    ("#d9ead3", "#38761d"),
    ("#fff2cc", "#7f6000"),
    ("#d9d2e9", "#5b3b8c"),
    ("#d0e0e3", "#134f5c"),
    ("#ead1dc", "#741b47"),
    ("#e6e0c4", "#5c5320"),
    ("#dce9c8", "#4b5d16"),
)

Cell = Mapping[str, Any]


def dot(cells: Sequence[Cell], *, enforced: bool) -> str:
    """Return the graph of a matrix. What comes from the bus stands in it as quoted, plain text."""
    vms = {one["vm"]: None for one in cells}
    resources = {_key(one): one for one in cells if one["kind"] == "resource"}
    readers = Counter(
        _key(one)
        for one in cells
        if one["kind"] == "resource" and one["granted"] == one["allowed"] == ["read"]
    )
    # One VM alone has nobody to share with: its own read-only file is no public one.
    public = {key for key, count in readers.items() if count == len(vms) > 1}
    groups = sorted({one["group"] for one in resources.values() if one["group"]})
    colours = {name: _COLOURS[number % len(_COLOURS)] for number, name in enumerate(groups)}
    twice = Counter(one["object"] for one in resources.values())

    lines = _warnings(cells, enforced=enforced)
    lines += [f'  {_vm(name)} [label={_quoted(name)}, shape="box"];' for name in vms]
    for key, one in resources.items():
        words = [one["object"]]
        look = 'shape="note"'
        if twice[one["object"]] > 1:
            # Found under one path at two times; or under it in two places, mounted.
            words.append(f"({one['identity']})")
        if key in public:
            words.append("(every VM reads it)")
            look += ', style="filled", fillcolor="lightgrey"'
        elif one["group"]:
            words.append(f"(group {one['group']})")
            fill, line = colours[one["group"]]
            look += f', style="filled", fillcolor="{fill}", color="{line}"'
        lines.append(f"  {_resource(key)} [label={_quoted(' '.join(words))}, {look}];")
    for one in cells:
        if one["kind"] == "vm" or _key(one) not in public:
            lines += _lines(one, colours)
    return "\n".join([*_HEAD, *lines, "}", ""])


def _warnings(cells: Sequence[Cell], *, enforced: bool) -> list[str]:
    """Above the picture: a policy that answers well keeps nothing apart where none is enforced."""
    said = [NOT_ENFORCED] * (not enforced)
    said += [NOT_ASKED] * any(one["by"] != "policy" for one in cells)
    text = "\\n".join(_plain(one) for one in said)
    return [f'  label="{text}"; {_ALARM}'] if said else []


def _lines(cell: Cell, colours: Mapping[str, tuple[str, str]]) -> list[str]:
    is_vm = cell["kind"] == "vm"
    target = _vm(cell["object"]) if is_vm else _resource(_key(cell))
    ends = f"  {_vm(cell['vm'])} -> {target}"
    usual = [use for use in cell["allowed"] if use in cell["granted"]]
    colour = ""
    if cell["group"] in colours:
        line = colours[cell["group"]][1]
        colour = f', color="{line}", fontcolor="{line}"'
    kinds = (
        (usual, (_WRITES if "write" in usual else 'label="read"') + colour),
        (cell["surplus"], f"label={_quoted(', '.join(cell['surplus']))}, {_SURPLUS}"),
        (cell["shortfall"], f"label={_quoted('no ' + ', '.join(cell['shortfall']))}, {_SHORTFALL}"),
    )
    # VMs stay on the left, whatever they do to each other.
    place = ", constraint=false" if is_vm else ""
    return [f"{ends} [{look}{place}];" for uses, look in kinds if uses]


def _key(cell: Cell) -> str:
    """What tells a resource from every other: a path does not."""
    return f"{cell['object']} {cell['identity']}"


def _vm(name: str) -> str:
    return _quoted(f"vm {name}")


def _resource(key: str) -> str:
    return _quoted(f"resource {key}")


def _quoted(text: str) -> str:
    return f'"{_plain(text)}"'


def _plain(text: str) -> str:
    """The inside of a string of the language: `shown` leaves only printing characters in it.

    A backslash would begin an escape of Graphviz's own there.
    """
    return shown(text).replace("\\", "\\\\").replace('"', '\\"')

# SPDX-License-Identifier: LGPL-2.1-or-later
"""The matrix as a picture: text in the language of Graphviz, for `dot -Tsvg`. Pure.

VMs stand on the left, what they use on the right. A line is a use that was granted; one that nobody
granted is thick and red, one that was granted and is not allowed is dashed and red. What every VM
may read gets no lines, it is drawn apart: a picture of twenty VMs stays one that a person can read.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any, Final

from svirtd.ctl.render import shown

_HEAD: Final = (
    "digraph svirt {",
    "  rankdir=LR; ranksep=2; nodesep=0.1;",
    '  node [fontname="sans-serif", fontsize=10, height=0.3]; edge [fontsize=8, arrowsize=0.6];',
)
_WRITES: Final = 'label="read, write"'
_SURPLUS: Final = 'color="red", fontcolor="red", penwidth=3'
_SHORTFALL: Final = 'color="red", fontcolor="red", style="dashed"'


def dot(cells: Sequence[Mapping[str, Any]]) -> str:
    """Return the graph of a matrix. What comes from the bus stands in it as quoted, plain text."""
    vms = {one["vm"]: None for one in cells}
    resources = {one["object"]: None for one in cells if one["kind"] == "resource"}
    readers = Counter(
        one["object"]
        for one in cells
        if one["kind"] == "resource" and one["granted"] == one["allowed"] == ["read"]
    )
    # One VM alone has nobody to share with: its own read-only file is no public one.
    public = {path for path, count in readers.items() if count == len(vms) > 1}
    lines = [f'  {_vm(name)} [label={_quoted(name)}, shape="box"];' for name in vms]
    for path in resources:
        look = (
            'shape="note", style="filled", fillcolor="lightgrey"'
            if path in public
            else ('shape="note"')
        )
        label = f"{path} (every VM reads it)" if path in public else path
        lines.append(f"  {_resource(path)} [label={_quoted(label)}, {look}];")
    lines += [line for one in cells if one["object"] not in public for line in _lines(one)]
    return "\n".join([*_HEAD, *lines, "}", ""])


def _lines(cell: Mapping[str, Any]) -> list[str]:
    target = _vm(cell["object"]) if cell["kind"] == "vm" else _resource(cell["object"])
    ends = f"  {_vm(cell['vm'])} -> {target}"
    usual = [use for use in cell["allowed"] if use in cell["granted"]]
    kinds = (
        (usual, _WRITES if "write" in usual else 'label="read"'),
        (cell["surplus"], f"label={_quoted(', '.join(cell['surplus']))}, {_SURPLUS}"),
        (cell["shortfall"], f"label={_quoted('no ' + ', '.join(cell['shortfall']))}, {_SHORTFALL}"),
    )
    return [f"{ends} [{look}];" for uses, look in kinds if uses]


def _vm(name: str) -> str:
    return _quoted(f"vm {name}")


def _resource(path: str) -> str:
    return _quoted(f"resource {path}")


def _quoted(text: str) -> str:
    """A string of the language: `shown` leaves nothing but printing characters in it.

    A backslash would begin an escape of Graphviz's own there.
    """
    plain = shown(text).replace("\\", "\\\\").replace('"', '\\"')
    return f'"{plain}"'

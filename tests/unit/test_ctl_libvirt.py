# SPDX-License-Identifier: LGPL-2.1-or-later
"""svirtctl libvirt: what people see, and what it says where libvirt is not there."""

import sys
from typing import Any

import pytest

from svirtd.core.domains import Hold, described
from svirtd.core.model import Access
from svirtd.ctl.failures import Failure
from svirtd.ctl.libvirt_commands import _group, table
from svirtd.ctl.libvirt_door import Libvirt
from svirtd.ctl.libvirt_watch import differences, matches
from svirtd.ctl.render import Screen
from tests.unit.test_domains import disk, domain

DOMAIN: dict[str, Any] = {
    "domain": "web",
    "runs": True,
    "adopted": True,
    "vm": "web",
    "state": "running",
    "categories": "c7,c300",
    "groups": ["pair"],
    "from_next_start": False,
    "not_in_the_book": [{"what": "disk vdb", "path": "", "reason": "nothing to label"}],
}
OTHER = DOMAIN | {"domain": "old", "adopted": False, "runs": False, "vm": "", "state": "",
                  "categories": "", "groups": []}  # fmt: skip


def test_the_table() -> None:
    lines = table([DOMAIN, OTHER], Screen()).splitlines()
    assert [line.split() for line in lines[:3]] == [
        ["DOMAIN", "LIBVIRT", "VM", "STATE", "CATEGORIES", "GROUPS"],
        ["web", "running", "web", "running", "c7,c300", "pair"],
        ["old", "shut", "off", "-", "-", "-", "-"],
    ]
    # What is not covered is told of those that are adopted; the others are not covered at all.
    assert lines[4:] == ["web: disk vdb: nothing to label"]
    later = table([DOMAIN | {"from_next_start": True, "not_in_the_book": []}], Screen())
    assert later.splitlines()[-1].startswith("web: adopted while it ran")
    assert table([], Screen()) == "libvirt has no domains.\n"


def test_nothing_of_a_domains_reaches_the_terminal_as_it_is() -> None:
    odd = DOMAIN | {"domain": "\x1b[2J", "not_in_the_book": [
        {"what": "disk", "path": "/\x07", "reason": "\x1b]0;x"}]}  # fmt: skip
    assert not set(table([odd], Screen())) & {"\x1b", "\x07"}


def test_a_disk_and_its_group() -> None:
    assert _group("/srv/a=b.img=pair") == ("/srv/a=b.img", "pair")
    for text in ("", "pair", "=pair", "/srv/a.img=", "/srv/a.img"):
        with pytest.raises(ValueError, match="PATH=GROUP"):
            _group(text)


@pytest.mark.parametrize(
    ("name", "patterns", "expected"),
    [
        ("web", (), False),
        ("web", ("*",), True),
        ("web", ("w*",), True),
        ("web", ("W*",), False),
        ("web", ("db", "web"), True),
        ("web2", ("web",), False),
        ("[x]", ("[x]",), False),
    ],
)
def test_patterns(name: str, patterns: tuple[str, ...], expected: bool) -> None:
    assert matches(name, patterns) is expected


def test_without_libvirts_binding(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "libvirt", None)
    with pytest.raises(Failure, match="python3-libvirt"):
        Libvirt()


def test_what_a_domain_uses_by_now() -> None:
    """A disk was plugged in, one out, and one lies under another since."""
    chain = "<backingStore type='file'><source file='/old'/></backingStore>"
    text = domain(disk("<source file='/new'/>", chain))
    held = [{"path": "/old", "id": "r1"}, {"path": "/gone", "id": "r2"}]
    more, less = differences(described(text), held)
    assert more == [Hold("/new", Access.EXCLUSIVE)]
    assert less == [("/gone", "r2")]

# SPDX-License-Identifier: LGPL-2.1-or-later
"""The XML contract by itself, and as the daemon reads it."""

import re
import subprocess
from pathlib import Path
from typing import Final

import pytest
from dbus_next.signature import SignatureTree

from svirtd.api import contract
from tests.contract import sources
from tests.contract.sources import Member

# The introspection DTD: children and attributes of each element; "!" marks what must be there.
_DTD: Final = {
    "node": ("interface node", "name"),
    "interface": ("method signal property annotation", "name!"),
    "method": ("arg annotation", "name!"),
    "signal": ("arg annotation", "name!"),
    "property": ("annotation", "name! type! access!"),
    "arg": ("annotation", "name type! direction"),
    "annotation": ("", "name! value!"),
}
# Methods that change nothing need no options to grow by.
_ONLY_LOOK: Final = ("Get", "List", "Find")

_FILES: Final = [*sources.contract_files(), sources.DBUS / "standard.xml"]
_MEMBERS: Final = [
    pytest.param(member, id=f"{interface}.{member.name}")
    for interface, members in sources.own_interfaces().items()
    for member in members
]
_METHODS: Final = [
    pytest.param(member, id=".".join(key)) for key, member in sources.own_members("method").items()
]


@pytest.mark.parametrize("file", _FILES, ids=lambda file: str(file.name))
def test_file_keeps_to_the_dtd(file: Path) -> None:
    wrong = []
    for element in sources.elements(file):
        children, attributes = (part.split() for part in _DTD[element.tag])
        known = [name.rstrip("!") for name in attributes]
        wrong += [
            f"<{child.tag}> in <{element.tag}>"
            for child in element
            if sources.is_element(child.tag) and child.tag not in children
        ]
        wrong += [f"{name}= of <{element.tag}>" for name in element.attrib if name not in known]
        wrong += [
            f"<{element.tag}> without {name[:-1]}="
            for name in attributes
            if name.endswith("!") and name[:-1] not in element.attrib
        ]
        if element.attrib.get("direction", "in") not in ("in", "out"):
            wrong.append(f"direction of {element.attrib}")
    assert not wrong


@pytest.mark.parametrize("member", _MEMBERS)
def test_member_is_documented_by_a_comment_above(member: Member) -> None:
    assert member.documented


@pytest.mark.parametrize("member", _MEMBERS)
def test_every_argument_has_a_name_and_one_complete_type(member: Member) -> None:
    arguments = (*member.takes, *member.returns)
    assert all(name for _, name in arguments)
    assert [kind for kind, _ in arguments if len(SignatureTree(kind).types) != 1] == []


@pytest.mark.parametrize("member", _METHODS)
def test_a_method_that_changes_something_ends_in_options(member: Member) -> None:
    if member.name.startswith(_ONLY_LOOK):
        assert ("a{sv}", "options") not in member.takes
    else:
        assert member.takes[-1] == ("a{sv}", "options")


@pytest.mark.parametrize("file", sources.contract_files(), ids=lambda file: str(file.name))
def test_every_property_is_read_only(file: Path) -> None:
    accesses = [
        element.attrib["access"] for element in sources.elements(file) if element.tag == "property"
    ]
    assert accesses
    assert set(accesses) == {"read"}


@pytest.mark.parametrize("file", sources.contract_files(), ids=lambda file: str(file.name))
def test_a_file_holds_the_one_interface_that_it_is_named_after(file: Path) -> None:
    found = [e.attrib["name"] for e in sources.elements(file) if e.tag == "interface"]
    assert found == [file.stem]


def test_glib_reads_the_same_contract() -> None:
    """By its own parser, as gdbus, its code generator and every program with GLib do."""
    script = (
        "import sys; from gi.repository import Gio\n"
        "for one in sys.argv[1:]:\n"
        "    for each in Gio.DBusNodeInfo.new_for_xml(open(one).read()).interfaces:\n"
        "        for kind in (each.methods, each.signals, each.properties):\n"
        "            print(*(f'{each.name}.{member.name}' for member in kind), sep='\\n')\n"
    )
    said = subprocess.run(
        ["/usr/bin/python3", "-c", script, *_FILES], capture_output=True, text=True, check=True
    )
    assert set(said.stdout.split()) == {
        f"{name}.{member.name}"
        for name, members in sources.interfaces().items()
        for member in members
    }


def test_the_daemon_reads_the_same_contract() -> None:
    read = {
        (name, kind, member): signature
        for name, one in contract.load().items()
        for kind, members in (
            ("method", one.methods),
            ("signal", one.signals),
            ("property", one.properties),
        )
        for member, signature in members.items()
    }
    expected = {
        (name, one.kind, one.name): (
            (one.signature, one.result) if one.kind == "method" else one.signature
        )
        for name, members in sources.interfaces().items()
        for one in members
    }
    assert read == expected


@pytest.mark.parametrize("name", sources.own_interfaces())
def test_the_text_that_is_served_has_the_comments(name: str) -> None:
    text = contract.load()[name].text
    source = (sources.DBUS / f"{name}.xml").read_text("utf-8")
    assert text in source
    # The one about the interface, which says what keys there are, too.
    assert re.match(rf"  <!--\s+{name}: ", text)

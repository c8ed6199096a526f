# SPDX-License-Identifier: LGPL-2.1-or-later
"""svirtd's label in a description: what is not svirtd's stays as it is."""

import re
from xml.etree import ElementTree

import pytest
from hypothesis import given
from hypothesis import strategies as st

from svirtd.core.domain_edit import Shared, adopted, released
from svirtd.core.domains import described
from tests.unit.test_domains import CASES, LABEL, OWN, STATIC, UNTOUCHED, disk, domain

PROCESS = "system_u:system_r:svirt_t:s0:c1,c2,c900"
QEMU = (
    "<qemu:commandline xmlns:qemu='http://libvirt.org/schemas/domain/qemu/1.0'>"
    "<qemu:arg value='a&gt;b > c'/></qemu:commandline>"
)
OTHERS = (
    "<metadata><app:x xmlns:app='urn:app' y='&quot;>'><app:z/></app:x></metadata>"
    "<description>not a &lt;seclabel> &amp; no <![CDATA[<uuid>]]></description>"
)
DAC = "<seclabel type='dynamic' model='dac' relabel='yes'/>"


def canonical(text: bytes) -> str:
    """The document without svirtd's own: its seclabels and its mark."""
    root = ElementTree.fromstring(text)
    metadata = root.find("metadata")
    if metadata is not None:
        for one in metadata.findall("{urn:org.svirt1:domain}vm"):
            metadata.remove(one)
        if len(metadata) == 0:
            root.remove(metadata)
    for parent in list(root.iter()):
        for one in parent.findall("seclabel"):
            if one.get("model") in (None, "selinux"):
                parent.remove(one)
    return ElementTree.canonicalize(ElementTree.tostring(root), strip_text=True)


ALL = [
    *(text for text, _ in CASES.values()),
    domain(disk() + QEMU, head=OTHERS, seclabel=DAC + STATIC),
    domain(disk("<source  file = \"/d\" index='1' />")),
    domain(disk("<source file='/d'></source>"), seclabel=""),
    domain(disk(f"<source file='/d'>{LABEL}<privateData/></source>")),
    domain(disk(f"<source file='/d'>{UNTOUCHED}</source>")),
]


@pytest.mark.parametrize("text", ALL)
def test_all_else_stays(text: bytes) -> None:
    before = described(text)
    shared = {}
    if any(one.path == "/d" for one in before.uses) and b"file" in text:
        shared = {"/d": Shared("pair", OWN)} if "/d" in _tops(text) else {}
    after = adopted(text, "a & b", PROCESS, shared)
    found = described(after)
    assert (found.seclabel.type, found.seclabel.relabel, found.seclabel.label) == (
        "static",
        True,
        PROCESS,
    )
    assert found.mark is not None
    assert (found.mark.name, dict(found.mark.groups)) == ("a & b", dict.fromkeys(shared, "pair"))
    for path in shared:
        assert [u.label for u in found.uses if u.path == path] == [OWN]
    assert canonical(after) == canonical(text)
    assert _plain(released(after)) == _plain(text)


def _plain(text: bytes) -> str:
    return ElementTree.canonicalize(text.decode(), strip_text=True)


def _tops(text: bytes) -> list[str]:
    return [
        source.get("file", "")
        for one in ElementTree.fromstring(text).iter("disk")
        if (source := one.find("source")) is not None
    ]


@pytest.mark.parametrize("text", ALL)
def test_a_second_time_takes_the_place_of_the_first(text: bytes) -> None:
    once = adopted(text, "one", "system_u:system_r:svirt_t:s0:c5,c6", {})
    again = adopted(once, "web", PROCESS, {})
    fresh = adopted(text, "web", PROCESS, {})
    assert _plain(again) == _plain(fresh)
    assert released(released(again)) == released(again)


def test_what_was_not_adopted_stays_to_the_byte() -> None:
    for text in ALL:
        assert released(text) == text


def test_the_text_in_words() -> None:
    text = domain(disk(), seclabel=DAC)
    after = adopted(text, "web", PROCESS, {"/d": Shared("pair", OWN)}).decode()
    assert f"<source file='/d'>{LABEL}</source>" in after
    assert DAC in after
    assert after.count("<seclabel type='static'") == 1
    assert re.search(
        r"<metadata><svirtd:vm xmlns:svirtd=\"urn:org.svirt1:domain\" name=\"web\">", after
    )


def test_a_disk_that_is_not_there() -> None:
    with pytest.raises(ValueError, match="no disk /x"):
        adopted(domain(disk()), "web", PROCESS, {"/x": Shared("pair", OWN)})


@given(st.text(st.characters(codec="utf-8", exclude_categories=("Cc", "Cs")), max_size=20))
def test_names_and_paths_are_escaped(name: str) -> None:
    """Whatever a path is called, it is no markup."""
    path = f"/{name.strip()}"
    quoted = path.replace("&", "&amp;").replace("<", "&lt;").replace("'", "&apos;")
    try:
        text = domain(disk(f"<source file='{quoted}'/>"))
        described(text)
    except ValueError:
        return  # not a character of XML
    found = described(adopted(text, path, PROCESS, {path: Shared("pair", OWN)}))
    assert found.mark is not None
    assert (found.mark.name, dict(found.mark.groups)) == (path, {path: "pair"})

# SPDX-License-Identifier: LGPL-2.1-or-later
"""The manual pages: clean, and saying what the contract, the errors and the log say."""

import inspect
import re
import subprocess
from pathlib import Path
from typing import Any, Final

import pytest

from svirtd.api import objects, wire
from svirtd.core.findings import FindingKind
from svirtd.errors import InvalidArgs, bus_errors
from svirtd.host.bus import Variant
from svirtd.host.journal import MessageId
from tests.contract import sources

_PAGES: Final = sorted(sources.MAN.iterdir())
_SECTIONS: Final = {
    (f"{sources.NAME}.Manager", "method"): ("MANAGER OBJECT", "Methods"),
    (f"{sources.NAME}.Manager", "signal"): ("MANAGER OBJECT", "Signals"),
    (f"{sources.NAME}.Manager", "property"): ("MANAGER OBJECT", "Properties"),
    (f"{sources.NAME}.VM", "method"): ("VM OBJECT", "Methods"),
    (f"{sources.NAME}.VM", "property"): ("VM OBJECT", "Properties"),
    (f"{sources.NAME}.Group", "method"): ("GROUP OBJECT", "Methods"),
    (f"{sources.NAME}.Group", "property"): ("GROUP OBJECT", "Properties"),
    (f"{sources.NAME}.Job", "method"): ("JOB OBJECT", "Methods"),
    (f"{sources.NAME}.Job", "property"): ("JOB OBJECT", "Properties"),
}
_ARROW: Final = r" No \(-> Fa "


def _page_line(member: sources.Member) -> str:
    """The line that introduces a member."""
    if member.kind == "property":
        return f".It Va {member.name} Pq {member.signature}"
    line = f".It Fn {member.name} " + (
        " ".join(f'"{kind} {name}"' for kind, name in member.takes) or '""'
    )
    if member.returns:
        line += _ARROW + " , Fa ".join(f'"{kind} {name}"' for kind, name in member.returns)
    return line


def _known_keys(text: str) -> set[str]:
    """The keys that the daemon lists when it refuses one that it does not know."""
    return set(text.rpartition("known keys: ")[2].split(", "))


def _dictionary(section: str) -> set[str]:
    return set(re.findall(r"^\.It Cm (\S+) Pq ", section, re.M))


@pytest.mark.parametrize("page", _PAGES, ids=lambda page: str(page.name))
def test_page_is_clean(page: Path) -> None:
    found = subprocess.run(
        ["mandoc", "-T", "lint", "-W", "warning", str(page)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert found.stdout + found.stderr == ""
    assert found.returncode == 0


@pytest.mark.parametrize("page", _PAGES, ids=lambda page: str(page.name))
def test_pages_that_are_ours_exist(page: Path) -> None:
    named = re.findall(
        r"^\.Xr (\S*svirt\S*) (\d)|\\fB(svirt\S*?|org\.svirt1)\\f\w?\((\d)\)",
        page.read_text("utf-8"),
        re.M,
    )
    missing = [
        name for a, b, c, d in named if not (sources.MAN / (name := f"{a or c}.{b or d}")).is_file()
    ]
    assert not missing


def test_every_interface_has_its_sections() -> None:
    assert {
        (interface, member.kind)
        for interface, members in sources.own_interfaces().items()
        for member in members
    } == set(_SECTIONS)


@pytest.mark.parametrize("key", _SECTIONS, ids=".".join)
def test_members_are_those_of_the_contract(key: tuple[str, str]) -> None:
    interface, kind = key
    text = sources.section(sources.page("org.svirt1.5"), *_SECTIONS[key])
    items = re.findall(r"^\.It .*$", text, re.M)
    assert items == [
        _page_line(member) for member in sources.own_interfaces()[interface] if member.kind == kind
    ]


def test_errors_are_those_of_the_daemon() -> None:
    text = sources.section(sources.page("org.svirt1.5"), "ERROR NAMES")
    named = re.findall(r"^\.It Er (\S+)$", text, re.M)
    assert len(named) == len(set(named))
    assert set(named) == set(bus_errors())


def test_kinds_of_findings_are_those_of_the_daemon() -> None:
    text = sources.section(sources.page("org.svirt1.5"), "FINDINGS")
    named = re.findall(r"^\.It Ql (.*)$", text, re.M)
    assert sorted(" , ".join(named).split(" , ")) == sorted(FindingKind)


def test_resource_keys_are_those_that_are_read() -> None:
    with pytest.raises(InvalidArgs) as refused:
        wire.read_request("a", [{"unknown": Variant("s", "")}], {}, [])
    text = sources.section(sources.page("org.svirt1.5"), "RESOURCES")
    assert _dictionary(text) == _known_keys(refused.value.text)


def test_option_keys_are_those_that_are_read() -> None:
    unknown = {"unknown": Variant("s", "")}
    with pytest.raises(InvalidArgs) as refused:
        wire.read_request("a", [], unknown, [])
    with pytest.raises(InvalidArgs) as launch_refused:
        wire.read_launch("a", ["/bin/true"], [], unknown, [], 4096)
    text = sources.section(sources.page("org.svirt1.5"), "OPTIONS")
    rest, _, launch_only = text.partition(".Fn Launch\nalone:")
    common, _, acquire_only = rest.partition(".Fn Plan\nalone:")
    assert _dictionary(common) | _dictionary(acquire_only) == _known_keys(refused.value.text)
    assert _dictionary(common) | _dictionary(launch_only) == _known_keys(launch_refused.value.text)


def _launch_properties(properties: dict[str, Any]) -> None:
    options = {"properties": Variant("a{sv}", properties)}
    wire.read_launch("a", ["/bin/true"], [], options, [], 4096)


def test_unit_properties_are_those_that_may_be_set() -> None:
    with pytest.raises(InvalidArgs) as refused:
        _launch_properties({"Unknown": Variant("s", "")})
    allowed = set(refused.value.text.rpartition("allowed: ")[2].split(", "))
    text = sources.section(sources.page("org.svirt1.5"), "OPTIONS")
    named = dict(re.findall(r"^\.Li (\w+)\n\.Pq (\w+)", text.partition("Cm properties")[2], re.M))
    assert set(named) == allowed
    for name, signature in named.items():
        # A value of another type is refused with the type that was expected.
        wrong = Variant("b", True)
        with pytest.raises(InvalidArgs, match=f"{name} has type 'b', expected '{signature}'"):
            _launch_properties({name: wrong})


def test_features_are_named_wherever_they_are_explained() -> None:
    source = inspect.getsource(objects._standing)
    features = set(re.findall(r'"([a-z][a-z-]{2,})"', source))
    assert "launch" in features
    page = sources.section(sources.page("org.svirt1.5"), "MANAGER OBJECT", "Properties")
    xml = (sources.DBUS / "org.svirt1.Manager.xml").read_text("utf-8")
    assert {one for one in features if not re.search(rf"^\.Ql {one}\b", page, re.M)} == set()
    assert {one for one in features if f'"{one}"' not in xml} == set()


def test_contract_comment_names_the_same_keys() -> None:
    """The comment above Manager is what `busctl introspect --xml-interface` readers have."""
    page = sources.page("org.svirt1.5")
    resources, options = (sources.section(page, name) for name in ("RESOURCES", "OPTIONS"))
    keys = _dictionary(resources) | _dictionary(options)
    keys |= set(re.findall(r"^\.Li (\w+)\n\.Pq", options.partition("Cm properties")[2], re.M))
    comment = (
        (sources.DBUS / "org.svirt1.Manager.xml").read_text("utf-8").partition("<interface")[0]
    )
    assert {key for key in keys if not re.search(rf"\b{key}\b", comment)} == set()


def test_message_ids_are_those_of_the_daemon() -> None:
    text = sources.section(sources.page("svirtd.8"), "LOG")
    named = re.findall(r"^\.It Dv (\w+) Li ([0-9a-f]{32})$", text, re.M)
    assert len(named) == len(dict(named))
    assert dict(named) == {one.name: one.value for one in MessageId}


def test_message_ids_are_unique() -> None:
    # An enum turns a second member of the same value into an alias that iteration does not show.
    assert len(MessageId.__members__) == len({one.value for one in MessageId})


def test_journal_fields_are_those_that_are_written() -> None:
    text = sources.section(sources.page("svirtd.8"), "LOG")
    named = set(re.findall(r"\bSVIRT_[A-Z_]+", text))
    written = {
        field
        for file in (sources.REPO / "svirtd").rglob("*.py")
        for field in re.findall(r"\b(SVIRT_[A-Z_]+)=[^{]", file.read_text("utf-8"))
    }
    assert named == written

# SPDX-License-Identifier: LGPL-2.1-or-later
"""Names: what a VM may be called, and the unit, object and machine that follow from it."""

import re
import subprocess

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from svirtd.core.names import (
    check_group_name,
    check_socket_name,
    check_uuid,
    check_vm_name,
    escape_path,
    machine_name,
    shown,
    shown_to_judge,
    unescape_path,
    unit_name,
)
from svirtd.errors import InvalidArgs

untimed = settings(deadline=None)
anything = st.text(max_size=80)
vm_names = st.from_regex(
    re.compile(r"[A-Za-z0-9][A-Za-z0-9 ._@:+-]{0,58}[A-Za-z0-9._@:+-]"), fullmatch=True
)
SAMPLES = [
    "a", "A1", "web-1", "a.b", "a b", "a_b", "a@b", "a:b", "a+b", "9lives", "a--b", "x" * 60,
    "9 ._@:+-", "a.service",
]  # fmt: skip


@untimed
@given(anything)
def test_a_name_is_taken_as_it_is_or_refused(text: str) -> None:
    if (
        not (text.isascii() and re.fullmatch(r"\w(?:[\w .@:+-]{0,58}[\w.@:+-])?", text))
        or text[0] == "_"
    ):
        with pytest.raises(InvalidArgs, match="1 to 60") as refused:
            check_vm_name(text)
        assert str(refused.value).isprintable()
        return
    assert check_vm_name(text) == text
    assert text.isprintable()
    assert text.strip() == text


@pytest.mark.parametrize(
    "name", ["a\n", "a\n\n", "\na", "a\r", "a\0", "a\u2028", "a\x85", "٣", "\uff41"]
)
def test_line_ends_and_look_alikes_are_no_names(name: str) -> None:
    for check in (check_vm_name, check_socket_name, check_group_name, check_uuid):
        with pytest.raises(InvalidArgs):
            check(name)


@untimed
@given(anything)
def test_a_group_is_a_word(text: str) -> None:
    """Blanks separate groups in the book: no name may have one."""
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]{0,31}", text):
        with pytest.raises(InvalidArgs, match="1 to 32") as refused:
            check_group_name(text)
        assert str(refused.value).isprintable()
        return
    assert check_group_name(text) == text
    assert text.split() == [text]


@untimed
@given(vm_names)
def test_units_and_objects_of_different_names_differ(name: str) -> None:
    assert check_vm_name(name) == name
    unit = unit_name(name)
    assert len(unit) < 256
    assert re.fullmatch(r"svirt-[A-Za-z0-9:_.\\-]+\.service", unit)
    # The name can be read back, so no two names share a unit.
    escaped = unit.removeprefix("svirt-").removesuffix(".service")
    assert re.sub(r"\\x([0-9a-f]{2})", lambda m: chr(int(m[1], 16)), escaped) == name
    assert unescape_path(escape_path(name)) == name


@pytest.mark.parametrize("name", SAMPLES)
def test_units_are_escaped_as_systemd_escapes_them(name: str) -> None:
    out = subprocess.run(
        ["systemd-escape", "--template=x@.service", "--", name],
        capture_output=True,
        text=True,
        check=True,
    ).stdout.strip()
    instance = out.removeprefix("x@").removesuffix(".service")
    assert unit_name(name) == f"svirt-{instance}.service"


@untimed
@given(anything)
def test_path_escaping_comes_back(text: str) -> None:
    escaped = escape_path(text)
    assert re.fullmatch(r"[A-Za-z0-9_]+", escaped)
    assert unescape_path(escaped) == text


@untimed
@given(st.text("abAB019_fz\n", max_size=12))
def test_only_the_canonical_element_is_a_label(element: str) -> None:
    label = unescape_path(element)
    assert label is None or escape_path(label) == element


@pytest.mark.parametrize(
    "element", ["", "_4", "_zz", "a_", "_41", "1a", "_4A", "_ff", "a-b", "a\n"]
)
def test_elements_that_are_none(element: str) -> None:
    assert unescape_path(element) is None


@pytest.mark.parametrize(
    ("label", "element"),
    [("", "_"), ("a", "a"), ("1a", "_31a"), ("a1", "a1"), ("a_b", "a_5fb"), ("é", "_c3_a9")],
)
def test_elements_are_those_of_sd_bus(label: str, element: str) -> None:
    assert escape_path(label) == element
    assert unescape_path(element) == label


@untimed
@given(vm_names)
def test_machine_names_are_host_names(name: str) -> None:
    machine = machine_name(name)
    assert 1 <= len(machine) <= 64
    assert re.fullmatch(r"[A-Za-z0-9]([A-Za-z0-9.-]*[A-Za-z0-9])?", machine)
    assert ".." not in machine


def test_uuids_are_one_spelling() -> None:
    text = "ABCDEF01-2345-6789-abcd-ef0123456789"
    assert check_uuid(text) == text.lower()
    for bad in ("", text[:-1], text + "0", text.replace("-", ""), f"{{{text}}}", text + "\n"):
        with pytest.raises(InvalidArgs, match="is not a UUID"):
            check_uuid(bad)


@pytest.mark.parametrize("name", ["qmp", "a", "serial0", "a.b_c-d", "x" * 32])
def test_socket_names(name: str) -> None:
    assert check_socket_name(name) == name


@pytest.mark.parametrize("name", ["", ".", "..", ".hidden", "-a", "a/b", "../qmp", "x" * 33, "a b"])
def test_what_is_no_socket_name(name: str) -> None:
    with pytest.raises(InvalidArgs, match="is not a socket name"):
        check_socket_name(name)


@untimed
@given(st.text())
def test_what_is_shown_is_short_and_has_no_control_characters(text: str) -> None:
    assert shown(text).isprintable()
    assert shown(text * 1000).isprintable()
    assert len(shown(text * 1000)) < 700


@untimed
@given(st.text(max_size=400))
def test_what_a_judge_is_shown_is_one_short_quoted_word(text: str) -> None:
    told = shown_to_judge(text)
    assert told.isascii()
    assert told.isprintable()
    assert len(told) <= 127
    assert told[0] == told[-1] == "'"
    assert not set("'\"<>&$") & set(told[1:-1])


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("web 1", "'web 1'"),
        ("/srv/a b.img", "'/srv/a b.img'"),
        ("a\nb", "'a\\u000ab'"),
        ("it's", "'it\\u0027s'"),
        ("<b>$(vm)</b>", "'\\u003cb\\u003e\\u0024(vm)\\u003c/b\\u003e'"),
        # A letter of another script that looks the same, and one that turns the direction.
        ("/\u0435tc", "'/\\u0435tc'"),
        ("/a\u202egmi", "'/a\\u202egmi'"),
        ("\u05d0", "'\\u05d0'"),
        ("a\\b", "'a\\u005cb'"),
    ],
)
def test_what_a_judge_is_shown(text: str, told: str) -> None:
    assert shown_to_judge(text) == told


def test_a_judge_sees_both_ends_of_a_long_path() -> None:
    told = shown_to_judge("/home/ann/" + "x" * 500 + "/etc/shadow")
    assert told.startswith("'/home/ann/x")
    assert told.endswith("x/etc/shadow'")
    assert " ... " in told

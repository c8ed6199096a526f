# SPDX-License-Identifier: LGPL-2.1-or-later
"""Names of units that may be enrolled, and what their drop-ins say."""

import configparser
import shlex

import pytest
from hypothesis import given
from hypothesis import strategies as st

from svirtd.core.enrolment import check_unit, drop_in
from svirtd.errors import InvalidArgs

CONTEXT = "system_u:system_r:svirt_t:s0:c1,c2"


@pytest.mark.parametrize(
    "name",
    [
        "web.service",
        "vm@web.service",
        "vm@a\\x2db.service",
        "systemd-vmspawn@web.service",
        "a.b:c_d-e.service",
        "x" * 243 + ".service",
    ],
)
def test_services_and_instances_are_units(name: str) -> None:
    assert check_unit(name) == name


@pytest.mark.parametrize(
    "name",
    [
        *("", "web", "web.socket", ".service", "@.service", "@a.service", "a@b@c.service"),
        *("a/b.service", "../a.service", "a b.service", "a\n.service", "a\0.service"),
        *("%n.service", "ä.service", "a'.service", 'a".service', "a$b.service", "a.service "),
        *("x" * 244 + ".service", "svirtd.service", "dbus.service", "dbus-broker.service"),
        *("svirtd-libvirt.service", "polkit.service", "systemd-journald.service"),
        *("systemd-nspawn@x.service", "svirt-web.service", "svirt-vm@web.service"),
    ],
)
def test_everything_else_is_refused(name: str) -> None:
    with pytest.raises(InvalidArgs):
        check_unit(name)


def test_a_template_is_refused_with_what_to_do() -> None:
    with pytest.raises(InvalidArgs, match=r"vm@NAME\.service"):
        check_unit("vm@.service")


@given(st.text())
def test_what_passes_is_one_plain_file_name(name: str) -> None:
    try:
        check_unit(name)
    except InvalidArgs:
        return
    assert name.endswith(".service")
    assert not set(name) & set("/ \n\0%'\"$*?[]")
    assert len(f"{name}.d".encode()) <= 255


def _read(text: str) -> configparser.ConfigParser:
    found = configparser.ConfigParser(interpolation=None, delimiters=("=",))
    found.optionxform = str  # type: ignore[assignment,method-assign]  # keys as they are
    found.read_string(text)
    return found


@given(st.text(st.characters(exclude_categories=["Cs"]), min_size=1))
def test_a_folder_of_any_name_stays_one_assignment(name: str) -> None:
    text = drop_in(CONTEXT, f"/run/{name}")
    assert text.isprintable() or set(text) - {"\n"} == {c for c in text if c.isprintable()}
    service = _read(text)["Service"]
    assert dict(service).keys() == {
        "SELinuxContext",
        "Environment",
        "ExecStartPre",
        "ExecStopPost",
    }
    assert service["SELinuxContext"] == CONTEXT
    (word,) = shlex.split(service["Environment"])
    assert word.startswith("SVIRT_RUNTIME_DIR=/run/")
    # A specifier would be systemd's to fill in.
    assert "%" not in word.replace("%%", "")


def test_a_drop_in_has_svirtd_asked_and_told_and_is_not_bound_to_it() -> None:
    found = _read(drop_in(CONTEXT, "/run/svirtd/vm/1"))
    assert found["Service"]["ExecStartPre"] == "+svirtctl enrolled start %n"
    assert found["Service"]["ExecStopPost"] == "+svirtctl enrolled end %n"
    assert dict(found["Unit"]) == {"Wants": "svirtd.service", "After": "svirtd.service"}


@pytest.mark.parametrize("context", ["", "a b", "a\nExecStart=/bin/sh", "%n", "-a:b:c:s0\t"])
def test_a_context_that_is_none_is_not_written(context: str) -> None:
    with pytest.raises(ValueError, match="cannot stand"):
        drop_in(context, "/run")

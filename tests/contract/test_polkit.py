# SPDX-License-Identifier: LGPL-2.1-or-later
"""The polkit files: valid by polkit's own DTD, sparing with what they give, and documented."""

import re
import shutil
import subprocess
from pathlib import Path
from typing import Final
from xml.etree import ElementTree

import pytest

from svirtd.engine.authorize import MESSAGES, POLKIT, Action
from tests.contract import sources

_POLICY: Final = sources.DBUS / "org.svirt1.policy"
_RULES: Final = sources.DBUS / "org.svirt1.rules"
_DTD: Final = "/usr/share/polkit-1/policyconfig-1.dtd"
# Whoever sits at the machine, and members of the group, may do these without a dialog.
_OWN: Final = {"org.svirt1.launch", "org.svirt1.acquire", "org.svirt1.attach"}
# A dialog that shows nothing of the request: an answer may count for the next one too.
_KEPT: Final = {"org.svirt1.verify", "org.svirt1.repair", "org.svirt1.backup"}
# For members of the contract that this version does not have yet.
_LATER: Final = {"org.svirt1.share-host-wide"}
# What svirtd tells polkit of a request.
_DETAILS: Final = {
    *("vm", "files", "user", "owner", "account", "command", "group", "wall", "level", "unit")
}


def _actions() -> dict[str, ElementTree.Element]:
    found = ElementTree.parse(_POLICY).getroot().findall("action")
    return {one.attrib["id"]: one for one in found}


def _default(action: ElementTree.Element, whom: str) -> str:
    return action.findtext(f"defaults/{whom}", "")


def _used(action: ElementTree.Element) -> set[str]:
    return set(re.findall(r"\$\((\w+)\)", action.findtext("message", "")))


def test_policy_is_valid() -> None:
    found = subprocess.run(
        ["xmllint", "--noout", "--nonet", "--dtdvalid", _DTD, _POLICY],
        capture_output=True,
        text=True,
        check=False,
    )
    assert (found.returncode, found.stderr) == (0, "")


def test_ids_are_of_the_project_and_told_once() -> None:
    ids = [one.attrib["id"] for one in ElementTree.parse(_POLICY).getroot().findall("action")]
    assert len(ids) == len(set(ids))
    assert [one for one in ids if not re.fullmatch(r"org\.svirt1\.[a-z-]+", one)] == []


@pytest.mark.parametrize("name", _actions())
def test_nobody_far_away_may_without_an_administrator(name: str) -> None:
    """A confined service could otherwise have svirtd run a command outside of its own sandbox."""
    action = _actions()[name]
    assert _default(action, "allow_any") == "auth_admin"
    assert _default(action, "allow_inactive") == "auth_admin"


@pytest.mark.parametrize("name", _actions())
def test_who_sits_at_the_machine_may_what_is_his_own(name: str) -> None:
    expected = {**dict.fromkeys(_OWN, "yes"), **dict.fromkeys(_KEPT, "auth_admin_keep")}
    assert _default(_actions()[name], "allow_active") == expected.get(name, "auth_admin")


@pytest.mark.parametrize("name", _actions())
def test_message_is_for_people_and_uses_what_is_told(name: str) -> None:
    action = _actions()[name]
    message = action.findtext("message", "")
    assert message.startswith("Authentication is required ")
    assert action.findtext("description")
    assert _used(action) <= _DETAILS
    # An answer that is kept counts for whatever else the dialog could have named.
    assert bool(_used(action)) == (name not in _KEPT)


def test_every_action_of_the_daemon_is_one_of_polkits() -> None:
    """But reading, which everybody may, and which tells a stranger next to nothing."""
    assert set(Action) - set(POLKIT) == {Action.READ}
    assert set(_actions()) - set(POLKIT.values()) == _LATER
    assert set(POLKIT.values()) <= set(_actions())


@pytest.mark.parametrize("action", MESSAGES, ids=str)
def test_messages_of_the_daemon_use_what_is_told(action: Action) -> None:
    message = MESSAGES[action]
    assert message.startswith("Authentication is required ")
    assert set(re.findall(r"\$\((\w+)\)", message)) <= _DETAILS
    # What the dialog shows is what the answer is for.
    assert POLKIT[action] not in _KEPT


def test_rules_give_what_is_ones_own_and_no_more() -> None:
    code = re.sub(r"//.*", "", _RULES.read_text("utf-8"))
    assert set(re.findall(r"org\.svirt1\.[a-z-]+", code)) == _OWN
    assert re.findall(r"Result\.(\w+)", code) == ["YES"]
    assert re.findall(r'isInGroup\("(\w+)"\)', code) == [_group()]


def _group() -> str:
    (name,) = re.findall(r"^g (\w+) -$", (sources.UNITS / "svirtd.sysusers").read_text(), re.M)
    return str(name)


def test_sysusers_makes_the_group(tmp_path: Path) -> None:
    for folder in ("etc", "usr/lib/sysusers.d"):
        (tmp_path / folder).mkdir(parents=True)
    shutil.copy(sources.UNITS / "svirtd.sysusers", tmp_path / "usr/lib/sysusers.d/svirtd.conf")
    found = subprocess.run(
        ["systemd-sysusers", f"--root={tmp_path}"], capture_output=True, text=True, check=False
    )
    assert found.returncode == 0, found.stderr
    name, _, _, members = (tmp_path / "etc/group").read_text().strip().split(":")
    assert (name, members) == (_group(), "")


def test_page_has_every_action() -> None:
    text = sources.section(sources.page("svirtd.8"), "CALLERS")
    assert re.findall(r"^\.It Li (org\.svirt1\.\S+)$", text, re.M) == list(_actions())

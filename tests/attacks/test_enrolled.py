# SPDX-License-Identifier: LGPL-2.1-or-later
"""Strangers and the services that an administrator has run as VMs."""

import contextlib
from pathlib import Path

from svirtd.host.bus import Variant
from tests.attack import DENIED
from tests.attacks.arena import DENIALS, Arena, tries
from tests.attacks.defences import against
from tests.enrolled import UNITS, done, install_svirtctl, show, systemctl, unit_file
from tests.sandbox.accounts import Account
from tests.support import image, label, wait_for

ENROLL = "ssaa{sv}a{sv}"


@against("starts and ends of units are told by root")
def test_labels_of_a_unit_that_runs(arena: Arena, ann: Account) -> None:
    """Ann says that a unit of root's has ended while it is about to use its disk."""
    install_svirtctl()
    stranger = arena.stranger(ann)
    disk = image(arena.place / "a.img")
    with unit_file("web.service", "Type=exec", "ExecStart=/bin/sleep 1000") as unit:
        done("enroll", unit, "web", "--disk", str(disk))
        # Labelled, and without a main process that would speak for it.
        late = UNITS / f"{unit}.d" / "60-late.conf"
        late.write_text("[Service]\nExecStartPre=/bin/sleep 1000\n", "utf-8")
        systemctl("daemon-reload")
        systemctl("start", "--no-block", unit)
        # Asked to stop in the moment between two commands, systemd begins the second all the same
        # and waits for its end; so the unit is asked when that one runs.
        wait_for("the second command", lambda: _runs_second(unit))
        assert label(disk)
        answer = tries(stranger, "EndEnrolled", "sa{sv}", unit, {})
        assert answer in ("", DENIED)
        arena.verdict(label(disk) is None, "the disk of a unit that starts is unlabelled")
        for name in (unit, "x" * 60_000, "../../x.service"):
            assert tries(stranger, "StartEnrolled", "sa{sv}", name, {})
        if not arena.without:
            assert show(unit, "ActiveState") == {"ActiveState": "activating"}
        systemctl("stop", unit)
        late.unlink()
        done("unenroll", unit)
    disk.unlink()


def _runs_second(unit: str) -> bool:
    pid = show(unit, "ControlPID")["ControlPID"]
    with contextlib.suppress(FileNotFoundError, ProcessLookupError):  # the first one, ended since
        return Path(f"/proc/{pid}/comm").read_text("utf-8") == "sleep\n"
    return False


def test_a_unit_of_ones_own(arena: Arena, ann: Account, nobody: Account) -> None:
    """What runs as which VM is no user's to say, of no unit and with no file."""
    for account in (ann, nobody):
        stranger = arena.stranger(account)
        mine = [{"path": Variant("s", str(arena.disk(account)))}] if account is ann else []
        for unit in ("ssh.service", "ann@1000.service"):
            assert tries(stranger, "Enroll", ENROLL, unit, "mine", mine, {}) in DENIALS
            assert tries(stranger, "Unenroll", "sa{sv}", unit, {}) in DENIALS
        # An administrator would be asked about eight files, and not about what he does not see.
        many = [{"path": Variant("s", f"/srv/{number}")} for number in range(9)]
        refused = tries(stranger, "Enroll", ENROLL, "a.service", "mine", many, {})
        assert refused == "org.freedesktop.DBus.Error.InvalidArgs"
        assert stranger.call("ListEnrolled") == [[]]
    assert arena.root.vms() == {}
    # Taken by a user's VM, a name is not given to a unit.
    stranger = arena.stranger(ann)
    stranger.call("Acquire", "saa{sv}a{sv}", "mine", [], {"persistent": Variant("b", True)})
    refused = tries(arena.root, "Enroll", ENROLL, "a.service", "mine", [], {})
    assert refused == "org.svirt1.Error.VMExists"
    stranger.call("Forget", "sa{sv}", "mine", {})

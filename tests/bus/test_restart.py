# SPDX-License-Identifier: LGPL-2.1-or-later
"""What outlives the daemon, and what a new start settles."""

import os
from pathlib import Path

from svirtd.host.bus import Variant
from tests.support import Client, Daemon, image, label, set_label, wait_for


def test_a_replaced_file_is_not_touched_and_its_pair_is_quarantined(
    own_daemon: Daemon, client: Client, tmp_path: Path
) -> None:
    disk = image(tmp_path / "a.img")
    client.listen()
    client.acquire("vm", disk)
    held = label(disk)
    os.rename(disk, tmp_path / "moved.img")
    set_label(image(disk), "system_u:object_r:etc_t:s0")
    client.release("vm")
    assert label(disk) == "system_u:object_r:etc_t:s0"
    assert label(tmp_path / "moved.img") == held
    assert wait_for("the finding", lambda: client.seen("DriftFound"))[0][0]["kind"].value == "replaced"
    assert client.manager()["PairsQuarantined"] == 1
    # Proven clean at the next start: the file is where it was, without the pair.
    os.rename(tmp_path / "moved.img", disk)
    os.removexattr(disk, "security.selinux")
    own_daemon.stop()
    own_daemon.start()
    assert client.manager()["PairsQuarantined"] == 0


def test_a_persistent_vm_keeps_its_pair(own_daemon: Daemon, client: Client, tmp_path: Path) -> None:
    disk = image(tmp_path / "a.img")
    client.acquire("vm", disk, persistent=Variant("b", True))
    first = client.properties("vm")
    client.release("vm")
    assert label(disk) is None
    assert client.vms() == {"vm": "reserved"}
    own_daemon.stop()
    own_daemon.start()
    client.acquire("vm", disk)
    again = client.properties("vm")
    assert (again["Categories"], again["Id"]) == (first["Categories"], first["Id"])
    refused = client.error("Forget", "sa{sv}", "vm", {})
    assert refused.name == "org.svirt1.Error.Failed"
    client.release("vm")
    client.call("Forget", "sa{sv}", "vm", {})
    assert client.vms() == {}

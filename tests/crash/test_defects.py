# SPDX-License-Identifier: LGPL-2.1-or-later
"""A defect in the midst of a request: the caller learns little, and nothing is left behind."""

from pathlib import Path

import pytest

from tests.sandbox import Sandbox
from tests.support import Client, Daemon, image, label, resources
from tests.zygote import Zygote


@pytest.mark.parametrize("where", ["label-before@2", "label-after@1", "label-after@2"])
def test_labels_are_taken_back(
    sandbox: Sandbox, zygote: Zygote, client: Client, tmp_path: Path, where: str
) -> None:
    disks = [image(tmp_path / f"{number}.img") for number in range(2)]
    defect = f"{where}=raise:builtins.KeyError:a_defect"
    daemon = Daemon(tmp_path / "d", zygote=zygote, failpoints=defect)
    daemon.start()
    try:
        refused = client.error("Acquire", "saa{sv}a{sv}", "vm", resources(*disks), {})
        assert refused.name == "org.svirt1.Error.Failed"
        assert "defect" not in refused.text
        assert [label(disk) for disk in disks] == [None, None]
        assert client.vms() == {}
        assert client.manager()["PairsInUse"] == client.manager()["PairsQuarantined"] == 0
        client.acquire("vm", *disks)
        client.release("vm")
        assert daemon.stop() == 0
    finally:
        if daemon.process is not None:
            daemon.kill()

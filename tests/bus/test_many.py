# SPDX-License-Identifier: LGPL-2.1-or-later
"""More VMs than the bus gives one connection match rules (512)."""

import os
import signal
import subprocess

from svirtd.host.bus import Variant
from tests.support import Client, Daemon, svirt_units, wait_for

MANY = 520


def test_more_running_vms_than_the_bus_has_rules(daemon: Daemon, client: Client) -> None:
    names = [f"vm-{number}" for number in range(MANY)]
    for name in names:
        client.launch(name, ["/bin/sleep", "1000"], lifetime=Variant("s", "release"))
    assert len(client.vms()) == MANY
    last = client.properties(names[-1])
    os.kill(last["MainPID"], signal.SIGKILL)
    wait_for("the end of the last one is noticed", lambda: names[-1] not in client.vms())
    subprocess.run(["systemctl", "kill", "-s", "KILL", *svirt_units()], check=True)
    wait_for("every end is noticed", lambda: client.vms() == {}, 60)

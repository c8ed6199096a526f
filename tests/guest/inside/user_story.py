# SPDX-License-Identifier: LGPL-2.1-or-later
"""What an ordinary user's own program does over D-Bus, from its launch to its release.

`python3 -m tests.guest.inside.user_story NAME DISK`, as that user; prints what it saw as JSON.
"""

import json
import os
import sys
from pathlib import Path

from tests.guest.inside.vms import Qemu
from tests.support import Client, label, svirt_units, wait_for


def main() -> None:
    """Launch, talk, let it read and write, release."""
    name, disk = sys.argv[1], Path(sys.argv[2])
    client = Client()
    vm = Qemu(client, name, disk)
    seen = {
        "uid": os.getuid(),
        "owner": client.properties(name)["Owner"],
        "running": vm.command("query-status")["return"]["running"],
        "reads": vm.reads(),
        "writes": vm.writes(),
        "vm": [vm.label(), vm.context],
        "disk": [label(disk), vm.image_context],
        "uids": vm.status("Uid").split(),
    }
    vm.end()
    wait_for("its unit is gone", lambda: not svirt_units())
    seen["left"] = client.vms()
    client.close()
    sys.stdout.write(json.dumps(seen))


if __name__ == "__main__":
    main()

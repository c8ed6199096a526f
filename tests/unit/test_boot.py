# SPDX-License-Identifier: LGPL-2.1-or-later
"""What a reboot ends."""

import subprocess
import sys

import pytest

from svirtd.host.boot import boot_id, is_device_node


def test_this_boot_has_a_name() -> None:
    assert boot_id() == boot_id() != ""


@pytest.mark.parametrize("path", ["/dev/null", "/dev/svirt-gone", "/dev/svirt-gone/sub/node"])
def test_a_device_node(path: str) -> None:
    assert is_device_node(path)


@pytest.mark.parametrize(
    "path", ["/srv/dev/sda", "/devices", "/dev", "/dev/shm/disk.img", "/tmp/x"]
)
def test_what_is_no_device_node(path: str) -> None:
    assert not is_device_node(path)


def test_another_file_system_at_dev_has_no_device_nodes() -> None:
    look = "from svirtd.host.boot import is_device_node; print(is_device_node('/dev/null'))"
    mount = 'mount -t tmpfs over /dev && exec "$0" -c "$1"'
    done = subprocess.run(
        ["unshare", "--mount", "sh", "-c", mount, sys.executable, look],
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout == "False\n"

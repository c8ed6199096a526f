# SPDX-License-Identifier: LGPL-2.1-or-later
"""The catalogue of attacks against the installed service, where the policy is enforced.

As it is: no defence of the daemon's can be switched off here, and swaps are as fast as an emulated
machine has them; their number is the same.
"""

import os
import pwd
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import pytest

from tests.attacks.arena import Arena
from tests.attacks.test_channels import (  # noqa: F401 -- collected from here
    folder,
    service,
    talker,
    test_a_deep_tree_at_the_end,
    test_a_link_to_a_service,
    test_another_users_channel,
    test_links_out_of_the_folder_at_the_end,
    test_nobody_else_looks_into_the_folder,
    test_what_is_no_socket,
)
from tests.attacks.test_ids import (  # noqa: F401 -- collected from here
    test_a_name_that_never_rests,
    test_released_and_acquired_by_another,
    test_released_through_its_object,
)
from tests.attacks.test_links import (  # noqa: F401 -- collected from here
    test_a_disk_of_another_user_that_everybody_may_write,
    test_a_disk_that_another_user_may_not_open,
    test_a_file_of_roots_that_everybody_may_write,
    test_a_hard_link_to_a_file_of_roots,
    test_a_link_to_a_file_of_roots,
    test_a_second_name_for_ones_own_file,
    test_ones_own_setuid_program,
)
from tests.attacks.test_options import (  # noqa: F401 -- collected from here
    stranger,
    test_another_user,
    test_who_the_command_runs_as,
)
from tests.attacks.test_owners import (  # noqa: F401 -- collected from here
    disk,
    owner,
    test_owners_of_a_path,
    test_properties,
    test_release_by_name,
    test_release_by_object,
    test_signals,
    test_what_is_roots,
)
from tests.attacks.test_swaps import (  # noqa: F401 -- collected from here
    test_a_chain_of_links,
    test_a_link_in_place_of_its_folder,
    test_a_link_in_place_of_the_file,
)
from tests.guest.inside.conftest import main_pid
from tests.guest.inside.vms import CAPTIVE
from tests.sandbox.accounts import Account
from tests.support import Client, set_label, wait_for

PLACE: Final = Path("/srv/attacks")


def _account(name: str) -> Account:
    subprocess.run(["useradd", "--create-home", "--groups", "svirt", name], check=True)
    found = pwd.getpwnam(name)
    home = Path(found.pw_dir)
    home.chmod(0o755)
    subprocess.run(["restorecon", "-R", "-F", home], check=True)
    groups = tuple(os.getgrouplist(name, found.pw_gid))
    return Account(name, found.pw_uid, found.pw_gid, groups)


@pytest.fixture(scope="module")
def ann() -> Account:
    """An ordinary user who may launch and acquire."""
    return _account("ann")


@pytest.fixture(scope="module")
def ben() -> Account:
    """Another one."""
    return _account("ben")


@pytest.fixture
def arena(request: pytest.FixtureRequest, client: Client) -> Iterator[Arena]:
    """The installed service."""
    assert getattr(request, "param", None) is None, "it has all its defences"
    PLACE.mkdir(exist_ok=True)
    PLACE.chmod(0o755)

    def home(account: Account) -> Path:
        return Path(pwd.getpwuid(account.uid).pw_dir)

    pid = main_pid()
    if not CAPTIVE.exists():
        shutil.copy(Path("/usr/bin/python3").resolve(), CAPTIVE)
        set_label(CAPTIVE, "system_u:object_r:qemu_exec_t:s0")
    arena = Arena(main_pid, home, PLACE, "")
    arena.idle = [str(CAPTIVE), "-I", "-c", "import time; time.sleep(1000)"]
    try:
        yield arena
    finally:
        arena.leave()
    wait_for("nothing of the strangers is left", lambda: client.vms() == {})
    assert main_pid() == pid

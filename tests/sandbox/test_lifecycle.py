# SPDX-License-Identifier: LGPL-2.1-or-later
"""The sandbox passes on how its command ended, leaves nothing, and says what failed. Needs root."""

import fcntl
import subprocess
import sys
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[2]
TIMEOUT_S = 60.0
RUN = (sys.executable, "-m", "tests.sandbox", "run")


def run(*argv: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        argv, cwd=REPOSITORY, check=False, capture_output=True, text=True, timeout=TIMEOUT_S
    )


def assert_nothing_left(state: str) -> None:
    """Fail if a folder or cgroup of the sandbox that had the state folder `state` is there."""
    name = Path(state).name
    assert name.startswith("svirt-")
    places = ("/tmp", "/sys/fs/cgroup", "/sys/fs/cgroup/unified")
    assert [place for place in places if (Path(place) / name).exists()] == []


def test_exit_code_is_passed_on_and_nothing_is_left(tmp_path: Path) -> None:
    # The background process inherits a lock, which only its end lets go of.
    lock = tmp_path / "lock"
    script = f'exec 9>{lock}; flock 9; echo "$SVIRT_SANDBOX"; setsid sleep 1000 >&- 2>&- & exit 7'
    result = run(*RUN, "--", "sh", "-c", script)
    assert result.returncode == 7
    assert_nothing_left(result.stdout.strip())
    with lock.open() as held:
        fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)


def test_private_tmp_of_a_killed_unit_is_removed() -> None:
    script = (
        'echo "$SVIRT_SANDBOX"; systemd-run --quiet --property=PrivateTmp=yes sleep 1000;'
        "ls -d /tmp/systemd-private-$(tr -d - </proc/sys/kernel/random/boot_id)-*"
    )
    result = run(*RUN, "--", "sh", "-c", script)
    assert result.returncode == 0, result.stderr
    state, private = result.stdout.split()
    assert_nothing_left(state)
    assert not Path(private).exists()


def test_the_folders_of_an_installed_svirtd_are_empty_ones_of_the_sandbox() -> None:
    folders = [Path("/etc/svirtd"), Path("/var/lib/svirtd")]
    before = [folder.exists() for folder in folders]
    code = (
        "import os, sys\nfor folder in sys.argv[1:]:\n"
        "  print(os.path.ismount(folder), os.listdir(folder))\n"
        "  open(folder + '/left-by-the-sandbox', 'x')\n"
    )
    result = run(*RUN, "--", sys.executable, "-c", code, *map(str, folders))
    assert result.stdout == "True []\n" * 2, result.stderr
    assert [folder.exists() for folder in folders] == before
    assert [each for folder in folders if folder.exists() for each in folder.glob("left-by*")] == []


def test_death_by_a_signal_is_passed_on() -> None:
    assert run(*RUN, "--", "sh", "-c", "kill -KILL $$").returncode == 128 + 9


def test_sigterm_reaches_the_command_and_everything_is_removed() -> None:
    argv = [*RUN, "--", "sh", "-c", 'trap "exit 3" TERM; echo "$SVIRT_SANDBOX"; sleep 1000 & wait']
    with subprocess.Popen(argv, cwd=REPOSITORY, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        state = process.stdout.readline().strip()
        process.terminate()
        assert process.wait(TIMEOUT_S) == 3
    assert_nothing_left(state)


def test_a_part_that_fails_is_named_with_its_log(tmp_path: Path) -> None:
    # Takes the place of the policy that lets machined have its name.
    (tmp_path / "org.freedesktop.machine1.conf").write_text("<busconfig></busconfig>")
    options = ("--start-timeout-s=2", "--bus-files", str(tmp_path))
    result = run(*RUN, *options, "--", "true")
    assert result.returncode == 1
    assert "not every part came up" in result.stderr
    assert "systemd-machined.service start running" in result.stderr
    assert "Journal started" in result.stderr


def test_a_missing_folder_of_bus_files_is_named() -> None:
    result = run(*RUN, "--bus-files", "/nonexistent", "--", "true")
    assert result.returncode == 1
    assert result.stderr == "sandbox: no such folder: /nonexistent\n"


def test_without_root_it_is_one_sentence() -> None:
    # Privileges are dropped once the code is read: a stranger may not be able to.
    code = (
        "import os, sys; from tests.sandbox.__main__ import main; os.setgroups([]);"
        "os.setresgid(65534, 65534, 65534); os.setresuid(65534, 65534, 65534); sys.exit(main())"
    )
    result = run("/usr/bin/python3", "-c", code, "run", "--", "true")
    assert result.returncode == 1
    assert result.stderr == "sandbox: needs root: it mounts file systems and makes cgroups\n"

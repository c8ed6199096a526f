# SPDX-License-Identifier: LGPL-2.1-or-later
"""The unit file: accepted by systemd's own tools, and in line with the rest of the repository."""

import os
import re
import subprocess
from pathlib import Path
from typing import Final

import pytest

from svirtd.config import DEFAULT_PATH, Config
from svirtd.core import vm_files
from tests.contract import sources

_UNIT: Final = sources.UNITS / "svirtd.service"
_TEMPLATE: Final = sources.UNITS / "svirt-vm@.service"
# systemd-analyze's scale goes from 0 (nothing can be done) to 100.
_EXPOSURE_MAX: Final = 25


def _settings() -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for name, value in re.findall(r"^(\w+)=(.*)$", _UNIT.read_text("utf-8"), re.M):
        found.setdefault(name, []).append(value)
    return found


def _installed(folder: Path) -> Path:
    """The unit as it is, with a command that exists on a machine without the package."""
    unit = folder / _UNIT.name
    unit.write_bytes(_UNIT.read_bytes())
    drop_in = folder / f"{_UNIT.name}.d"
    drop_in.mkdir()
    (drop_in / "command.conf").write_text("[Service]\nExecStart=\nExecStart=/bin/true\n", "utf-8")
    return unit


def test_systemd_accepts_the_unit(tmp_path: Path) -> None:
    found = subprocess.run(
        ["systemd-analyze", "verify", "--man=no", "--recursive-errors=no", _installed(tmp_path)],
        capture_output=True,
        text=True,
        check=False,
    )
    # An unknown key is only a line of text; the exit code stays 0.
    assert found.stdout + found.stderr == ""
    assert found.returncode == 0


def test_systemd_accepts_the_template(tmp_path: Path) -> None:
    text = _TEMPLATE.read_text("utf-8").replace("/usr/bin/svirtctl", "/bin/true")
    instance = tmp_path / "svirt-vm@web.service"
    instance.write_text(text, "utf-8")
    found = subprocess.run(
        ["systemd-analyze", "verify", "--man=no", "--recursive-errors=no", instance],
        capture_output=True,
        text=True,
        check=False,
    )
    assert found.stdout + found.stderr == ""
    assert found.returncode == 0


def test_the_template_outlives_a_restart_of_the_daemon() -> None:
    lines = _TEMPLATE.read_text("utf-8").splitlines()
    assert "Wants=svirtd.service" in lines
    bound = ("Requires=", "BindsTo=", "PartOf=")
    assert [one for one in lines if one.startswith(bound)] == []
    assert f"AssertPathExists={vm_files.FOLDER}/%i.toml" in lines


@pytest.mark.parametrize(
    ("section", "keys"),
    [("The VM", vm_files.KEYS), ("[[disk]]", vm_files.DISK_KEYS), ("[qemu]", vm_files.QEMU_KEYS)],
)
def test_keys_of_a_vms_file_are_on_its_page(section: str, keys: dict[str, object]) -> None:
    text = sources.section(sources.page("svirtd.vms.d.5"), "DESCRIPTION", section)
    named = [one for line in re.findall(r"^\.It Cm (.*)$", text, re.M) for one in line.split(" , ")]
    assert sorted(named) == sorted(keys)


def test_exposure_is_low(tmp_path: Path) -> None:
    found = subprocess.run(
        [
            "systemd-analyze",
            "security",
            "--no-pager",
            "--offline=yes",
            f"--threshold={_EXPOSURE_MAX}",
            _installed(tmp_path),
        ],
        capture_output=True,
        text=True,
        check=False,
    )
    assert "Overall exposure level" in found.stdout
    assert found.returncode == 0, found.stdout


def test_documentation_exists() -> None:
    pages = re.findall(r"man:(\S+)\((\d)\)", " ".join(_settings()["Documentation"]))
    assert pages
    assert [one for one in pages if not (sources.MAN / ".".join(one)).is_file()] == []


def test_folders_are_the_defaults_of_the_configuration() -> None:
    settings = _settings()
    (state,), (runtime,) = settings["StateDirectory"], settings["RuntimeDirectory"]
    assert os.path.dirname(Config().registry_path) == f"/var/lib/{state}"
    assert Config().runtime_directory == f"/run/{runtime}"
    assert os.path.basename(DEFAULT_PATH) == (sources.UNITS / "svirtd.toml").name


@pytest.mark.parametrize(
    ("setting", "value"),
    [
        # VMs run on while the daemon restarts, so what is theirs stays too.
        ("RuntimeDirectoryPreserve", "yes"),
        ("KillMode", "control-group"),
        # The book is for root alone; VMs' users walk to their own folder below the other.
        ("StateDirectoryMode", "0700"),
        ("RuntimeDirectoryMode", "0711"),
        ("BusName", sources.NAME),
        ("Type", "notify"),
    ],
)
def test_setting_that_others_rely_on(setting: str, value: str) -> None:
    assert _settings()[setting] == [value]


@pytest.mark.parametrize("setting", ["RestrictSUIDSGID", "ProtectHome", "PrivateTmp", "ProcSubset"])
def test_setting_that_would_break_the_daemon_is_not_there(setting: str) -> None:
    assert setting not in _settings()


def test_umask_lets_others_walk_to_their_runtime_folder() -> None:
    (umask,) = _settings()["UMask"]
    assert 0o711 & ~int(umask, 8) == 0o711
    assert 0o666 & ~int(umask, 8) == 0o600

# SPDX-License-Identifier: LGPL-2.1-or-later
"""VMs as files: what may stand in one, and what QEMU is told."""

import os
import tomllib
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from svirtd.core.model import Access
from svirtd.core.vm_files import DISK_KEYS, KEYS, QEMU_KEYS, VMFile, command_of, read
from svirtd.ctl.failures import Failure
from svirtd.ctl.run import read_file
from svirtd.errors import ConfigError

PATH = "/etc/svirtd/vms.d/web.toml"


def parsed(text: str) -> VMFile:
    return read(PATH, tomllib.loads(text))


def qemu(text: str, architecture: str = "x86_64", *, overlays: bool = False) -> tuple[str, ...]:
    return command_of("web", parsed(text), architecture, Access.EXCLUSIVE, overlays=overlays)


def test_a_command_is_taken_as_it_is() -> None:
    found = parsed(
        'command = ["/bin/sleep", "{resource.a}", "$x %n"]\ngoal = "offline"\ngroups = ["g"]\n'
        'user = "nobody"\nuuid = "u"\nlevel = "s0"\ndirectory = "/srv"\npersistent = true\n'
        '[environment]\nA = "b=c"\n[properties]\nMemoryMax = "2G"\nTasksMax = 9\n'
        '[[disk]]\npath = "/srv/a"\naccess = "readonly"\nid = "a"\n[[disk]]\npath = "/srv/b"\n'
    )
    assert found.command == ("/bin/sleep", "{resource.a}", "$x %n")
    assert (found.goal, found.groups, found.user) == ("offline", ("g",), "nobody")
    assert found.environment == ("A=b=c",)
    assert found.properties == (("MemoryMax", "2G"), ("TasksMax", "9"))
    assert [(one.path, one.access, one.id) for one in found.disks] == [
        ("/srv/a", Access.READONLY, "a"),
        ("/srv/b", None, ""),
    ]
    assert command_of("web", found, "m68k", Access.EXCLUSIVE, overlays=True) == found.command


def test_what_qemu_is_told() -> None:
    words = qemu(
        '[qemu]\nmemory = "2G"\ncpus = 2\ncpu = "max"\nnetwork = "user"\narguments = ["-S"]\n'
        '[[disk]]\npath = "/srv/a.img"\n[[disk]]\npath = "/srv/b"\naccess = "readonly"\n'
        'format = "qcow2"\n[[disk]]\npath = "/srv/cd.iso"\naccess = "public"\nqemu = "cdrom"\n'
        '[[disk]]\npath = "/srv/k"\nid = "kernel"\nqemu = "none"\n'
        '[[disk]]\npath = "/srv/tree"\nrecursive = true\n'
    )
    assert words[0] == "/usr/bin/qemu-system-x86_64"
    assert words[-1] == "-S"
    text = " ".join(words)
    for part in (
        "-machine q35,accel=kvm:tcg -cpu max -m 2G -smp 2 -nic user,model=virtio-net-pci",
        "-qmp unix:{runtime}/qmp,server=on,wait=off",
        "-drive id=disk1,file={resource.disk1},format=raw,if=virtio ",
        "-drive id=disk2,file={resource.disk2},format=qcow2,if=virtio,readonly=on",
        "-drive id=disk3,file={resource.disk3},format=raw,if=ide,media=cdrom",
    ):
        assert part in text
    assert "kernel" not in text
    assert "disk5" not in text


def test_what_is_read_through_an_overlay_is_written_there() -> None:
    words = qemu('[qemu]\n[[disk]]\npath = "/srv/a"\naccess = "readonly"\n', overlays=True)
    assert "id=disk1,file={resource.disk1},format=qcow2,if=virtio" in words


def test_a_machine_that_is_not_known_is_asked_for() -> None:
    with pytest.raises(ConfigError, match="machine"):
        qemu("[qemu]\n", "riscv64")
    assert "virt,accel=tcg" in qemu('[qemu]\nmachine = "virt"\naccel = "tcg"\n', "riscv64")


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "neither is there"),
        ('command = ["/bin/true"]\n[qemu]\n', "both are there"),
        ('command = ["true"]\n', "command: .*absolute path"),
        ("command = []\n", "command: "),
        ('commando = ["/bin/true"]\n', "commando: unknown key; expected one of command"),
        ("[qemu]\nmemroy = 1\n", r"\[qemu\] memroy: unknown key"),
        ('[qemu]\nmemory = "lots"\n', "memory: 'lots' cannot be used; expected a size"),
        ("[qemu]\ncpus = true\n", "cpus: True"),
        ('[qemu]\nmachine = "q35,accel=x"\n', "commas"),
        ('[qemu]\nnetwork = "host"\n', '"none" or "user"'),
        ("qemu = 1\n", "section"),
        ('disk = "/srv/a"\n[qemu]\n', r"\[\[disk\]\]"),
        ("[qemu]\n[[disk]]\n", r"\[\[disk\]\] 1 path: is not there"),
        ('[qemu]\n[[disk]]\npath = "a.img"\n', "an absolute path"),
        ('[qemu]\n[[disk]]\npath = "/a/../b"\n', "without"),
        ('[qemu]\n[[disk]]\npath = "/srv/a,b"\n', "comma"),
        ('[qemu]\n[[disk]]\npath = "/a"\naccess = "shared"\n', '"exclusive" or'),
        ('[qemu]\n[[disk]]\npath = "/a"\nid = "a b"\n', "id: 'a b' cannot be used"),
        ('[qemu]\n[[disk]]\npath="/a"\nid="x"\n[[disk]]\npath="/b"\nid="x"\n', "the same"),
        ('[qemu]\n[[disk]]\npath="/a"\nid="disk2"\n[[disk]]\npath="/b"\n', "is another's"),
        ('[qemu]\n[environment]\n"A B" = "x"\n', "'A B' is none"),
        ("[qemu]\n[properties]\nMemoryMax = [1]\n", "'MemoryMax' is no such"),
        ("persistent = 1\n[qemu]\n", "true or false"),
        ('goal = ""\n[qemu]\n', "goal"),
    ],
)
def test_what_is_wrong_is_named(text: str, says: str) -> None:
    with pytest.raises(ConfigError, match=says) as refused:
        parsed(text)
    assert str(refused.value).startswith(f"{PATH}: ")


_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=9) | st.floats(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner),
    max_leaves=6,
)
_ANY_KEY = st.sampled_from([*KEYS, *QEMU_KEYS, *DISK_KEYS, "qemu", "disk", "x"])


@given(st.dictionaries(_ANY_KEY, _VALUES), st.dictionaries(_ANY_KEY, _VALUES))
def test_nothing_else_comes_of_anything(top: dict[str, Any], inner: dict[str, Any]) -> None:
    for tables in (top, {**top, "qemu": inner}, {**top, "qemu": {}, "disk": [inner]}):
        try:
            found = read(PATH, tables)
        except ConfigError:
            continue
        for one in found.disks:
            assert one.path.startswith("/")
        if found.qemu is not None:
            for word in command_of("web", found, "x86_64", Access.READONLY, overlays=False):
                assert "\0" not in word


def test_a_file_that_others_can_write_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "web.toml"
    path.write_text("[qemu]\n", "utf-8")
    path.chmod(0o644)
    assert read_file(str(path)).qemu is not None
    path.chmod(0o664)
    with pytest.raises(Failure, match="others than root"):
        read_file(str(path))
    path.chmod(0o644)
    os.chown(path, 65534, 0)
    with pytest.raises(Failure, match="others than root"):
        read_file(str(path))
    path.write_bytes(b"\xff")
    os.chown(path, 0, 0)
    with pytest.raises(Failure, match="TOML"):
        read_file(str(path))
    with pytest.raises(Failure, match="is not there"):
        read_file(f"{path}.gone")

# SPDX-License-Identifier: LGPL-2.1-or-later
"""The configuration: every key, every refusal, drop-ins and their order, what a reload takes."""

import os
from dataclasses import fields, replace
from pathlib import Path

import pytest

from svirtd import config
from svirtd.config import Config, Limits
from svirtd.core.mcs import parse_context
from svirtd.core.walls import Scope, Wall
from svirtd.errors import ConfigError

BAD_CONFIGS: list[tuple[str, str, list[str]]] = [
    ("unknown section", "[selinx]\n", ["[selinx]", "unknown section", "[selinux]"]),
    ("unknown key", "[selinux]\nrequires = 'none'\n", ["requires", "unknown key", "require"]),
    ("key of another", "[launch]\nprivate = 'c0'\n", ["[launch] private", "unknown key", "slice"]),
    ("no section", "require = 'none'\n", ["[require]", "unknown section"]),
    ("section as value", "selinux = 'none'\n", ["selinux", "expected a section, [selinux]"]),
    ("array of sections", "[[selinux]]\nrequire = 'none'\n", ["selinux", "expected a section"]),
    ("no TOML", "[selinux\n", ["is not TOML", "line 1"]),
    ("key twice", "[limits]\nvms = 1\nvms = 2\n", ["is not TOML"]),
    ("require", "[selinux]\nrequire = 'maybe'\n", ["require", "'maybe'", '"enforcing"']),
    ("require cased", "[selinux]\nrequire = 'None'\n", ["require", "'None'"]),
    ("require type", "[selinux]\nrequire = false\n", ["require", "False", '"enforcing"']),
    ("require list", "[selinux]\nrequire = ['none']\n", ["require", '"enforcing"']),
    ("book relative", "[registry]\npath = 'book.sqlite'\n", ["path", "an absolute path"]),
    ("book empty", "[registry]\npath = ''\n", ["path", "an absolute path"]),
    ("book type", "[registry]\npath = 7\n", ["path", "7", "a string"]),
    ("book NUL", '[registry]\npath = "/a\\u0000b"\n', ["path", "an absolute path"]),
    ("commit type", "[registry]\ngroup-commit = 1\n", ["group-commit", "true or false"]),
    ("runtime", "[runtime]\ndirectory = 'run'\n", ["directory", "an absolute path"]),
    ("categories", "[labels]\nprivate = 'c5.c1'\n", ["[labels] private", "'c5.c1'"]),
    ("category range", "[labels]\nprivate = 'c0.c1024'\n", ["[labels] private", "1023"]),
    ("category type", "[labels]\ngroups = 5\n", ["[labels] groups", "a string"]),
    ("no categories", "[labels]\nprivate = ''\n", ["[labels] private", "too small"]),
    ("one category", "[labels]\nprivate = 'c0'\n", ["too small", "at least 2"]),
    ("all reserved", "[labels]\nreserved = 'c0.c1023'\n", ["reserved", "too small"]),
    ("overlap", "[labels]\nprivate = 'c0.c800'\n", ["overlap", "c768.c800"]),
    ("size", "[labels]\nprivate-size = 6\n", ["private-size", "a whole number from 1 to 5"]),
    ("size type", "[labels]\nprivate-size = 2.0\n", ["private-size", "a whole number"]),
    ("size bool", "[labels]\nprivate-size = true\n", ["private-size", "a whole number"]),
    ("context", "[labels]\nprocess-context = 'svirt_t'\n", ["process-context", "user:role:type"]),
    ("context range", "[labels]\nimage-context = 'a:b:c'\n", ["image-context", "has no range"]),
    ("types", "[labels]\nrelabel-from = 'virt_image_t'\n", ["relabel-from", "a list of type"]),
    ("types empty", "[labels]\nrelabel-from = []\n", ["relabel-from", "a list of type"]),
    ("types odd", "[labels]\nrelabel-from = ['a b']\n", ["relabel-from", "'a b'"]),
    ("slice", "[launch]\nslice = 'machine'\n", ["slice", "the name of a slice"]),
    ("timeout", "[launch]\nstart-timeout = 0\n", ["start-timeout", "from 1 to 3600"]),
    ("timeout text", "[launch]\nstop-timeout = '90s'\n", ["stop-timeout", "from 1 to 3600"]),
    ("limit", "[limits]\nvms = -1\n", ["[limits] vms", "-1", "from 1 to 10000000"]),
    ("limit infinite", "[limits]\nvms = inf\n", ["[limits] vms", "a whole number"]),
    ("walls as value", "wall = 3\n", ["wall: expected sections", "[wall.NAME]"]),
    ("wall as value", "[wall]\nx = 3\n", ["[wall.x] expected a section"]),
    ("wall as list", "[[wall]]\nclasses = [['a'], ['b']]\n", ["[wall.NAME]"]),
    ("wall's name", "[wall.'a b']\nclasses = [['a'], ['b']]\n", ["[wall.a b]", "1 to 32"]),
    ("wall's key", "[wall.x]\nsides = []\n", ["[wall.x] sides", "unknown key", "classes, scope"]),
    ("wall without", "[wall.x]\nscope = 'vm'\n", ["[wall.x] classes", "is not there"]),
    ("wall of nothing", "[wall.x]\n", ["[wall.x] classes", "is not there"]),
    ("one class", "[wall.x]\nclasses = [['a']]\n", ["[wall.x] classes", "two or more"]),
    ("no list", "[wall.x]\nclasses = 'a'\n", ["[wall.x] classes", "two or more"]),
    ("flat list", "[wall.x]\nclasses = ['a', 'b']\n", ["[wall.x] classes", "two or more"]),
    ("empty class", "[wall.x]\nclasses = [['a'], []]\n", ["classes", "none of them empty"]),
    ("in two classes", "[wall.x]\nclasses = [['a', 'b'], ['b']]\n", ["'b' is in two classes"]),
    ("group twice", "[wall.x]\nclasses = [['a', 'a'], ['b']]\n", ["'a' is in a class twice"]),
    ("group's name", "[wall.x]\nclasses = [['a'], ['-b']]\n", ["classes", "1 to 32", "'-b'"]),
    ("group's type", "[wall.x]\nclasses = [['a'], [7]]\n", ["classes", "1 to 32", "not 7"]),
    ("scope", "[wall.x]\nclasses = [['a'], ['b']]\nscope = 'user'\n", ["scope", '"owner"']),
    ("scope's type", "[wall.x]\nscope = ['vm']\n", ["[wall.x] scope", '"vm"']),
    ("limit huge", f"[limits]\nvms = {'9' * 400}\n", ["[limits] vms", "a whole number"]),
]  # fmt: skip


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "svirtd.toml"


@pytest.mark.parametrize(("text", "fragments"), [c[1:] for c in BAD_CONFIGS],
                         ids=[c[0] for c in BAD_CONFIGS])  # fmt: skip
def test_refusals_name_file_key_and_expectation(
    file: Path, text: str, fragments: list[str]
) -> None:
    file.write_text(text)
    with pytest.raises(ConfigError) as refused:
        config.load(str(file))
    said = str(refused.value)
    assert said.startswith(f"{file}: ")
    for fragment in fragments:
        assert fragment in said


def test_an_empty_file_is_the_default(file: Path) -> None:
    file.touch()
    assert config.load(str(file)) == Config()
    assert Config().require == "enforcing"
    assert Config().shape.total == 768 * 767 // 2
    assert len(Config().group_categories) == 256


def test_a_named_file_must_exist_and_be_text(file: Path) -> None:
    with pytest.raises(ConfigError, match=r"cannot be read \(No such file or directory\)"):
        config.load(str(file))
    with pytest.raises(ConfigError, match=r"cannot be read \(Is a directory\)"):
        config.load(str(file.parent))
    file.write_bytes(b"[selinux]\nrequire = '\xff'\n")
    with pytest.raises(ConfigError, match="is not TOML"):
        config.load(str(file))


def test_the_default_file_may_be_absent(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(config, "DEFAULT_PATH", str(file))
    assert config.load(None) == Config()
    os.mkdir(f"{file}.d")
    Path(f"{file}.d/site.toml").write_text("[launch]\nslice = 'vm.slice'\n")
    assert config.load(None) == replace(Config(), slice="vm.slice")
    file.write_text("[selinux]\nrequire = 'none'\n")
    assert config.load(None) == replace(Config(), slice="vm.slice", require="none")


EVERY_KEY = """
[selinux]
require = "permissive"
[registry]
path = "/srv//book/../book.sqlite"
group-commit = false
[runtime]
directory = "/run/vms/"
[labels]
private = "c1.c9"
groups = "c20,c21"
reserved = "c9,c21"
private-size = 3
process-context = "u:r:p_t:s0"
image-context = "u:r:i_t:s0"
content-context = "u:r:c_t:s0"
relabel-from = ["a_t", "b_t"]
relabel-devices-from = ["d_t"]
[goals]
directory = "/srv/goals/"
[launch]
slice = "vm.slice"
start-timeout = 1
stop-timeout = 3600
answer-timeout = 2
[drift]
repair = false
interval = 10
[limits]
vms = 1
resources = 2
vms-per-user = 3
resources-per-user = 4
groups-per-user = 5
jobs-per-user = 6
pending-calls = 7
pending-calls-per-sender = 8
pending-calls-per-user = 9
calls-at-once-per-user = 10
command-bytes = 11
listed-vms = 12
dialogs-per-user = 13
pending-bytes = 14
pending-bytes-per-user = 15
pending-fds-per-user = 16
[polkit]
dialog-timeout = 60
[libvirt]
adopt = ["web-*"]
require-adopted = true
[wall.banks]
classes = [["bank-a", "bank-a.old"], ["bank-b"]]
scope = "owner"
"""


def test_every_key_has_its_place(file: Path) -> None:
    file.write_text(EVERY_KEY)
    read = config.load(str(file))
    assert read == Config(
        require="permissive",
        registry_path="/srv/book.sqlite",
        group_commit=False,
        runtime_directory="/run/vms",
        private="c1.c9",
        groups="c20,c21",
        reserved="c9,c21",
        private_size=3,
        process_context=parse_context("u:r:p_t:s0"),
        image_context=parse_context("u:r:i_t:s0"),
        content_context=parse_context("u:r:c_t:s0"),
        relabel_from=frozenset({"a_t", "b_t"}),
        relabel_devices_from=frozenset({"d_t"}),
        goals_directory="/srv/goals",
        slice="vm.slice",
        start_timeout_s=1,
        stop_timeout_s=3600,
        answer_timeout_s=2,
        drift_repair=False,
        drift_interval_s=10,
        dialog_timeout_s=60,
        libvirt_adopt=("web-*",),
        libvirt_require_adopted=True,
        limits=Limits(*range(1, 17)),
        walls=(Wall("banks", (("bank-a", "bank-a.old"), ("bank-b",)), Scope.OWNER),),
    )
    assert read.shape.private == tuple(range(1, 9))
    assert read.group_categories == {20}
    changed = [f.name for f in fields(Config) if getattr(read, f.name) == getattr(Config(), f.name)]
    assert changed == []


def test_drop_ins_in_the_order_of_their_names_and_the_last_wins(file: Path) -> None:
    file.write_text("[limits]\nvms = 1\nresources = 1\n")
    folder = Path(f"{file}.d")
    folder.mkdir()
    for name, number in (("20.toml", 20), ("10.toml", 10), ("9.toml", 9)):
        (folder / name).write_text(f"[limits]\nvms = {number}\n")
    (folder / "99.conf").write_text("nonsense")
    (folder / ".hidden.toml").write_text("nonsense")
    assert config.load(str(file)).limits == Limits(vms=9, resources=1)
    (folder / "20.toml").write_text("[limits]\nvms = 'many'\n")
    with pytest.raises(ConfigError, match=r"svirtd\.toml\.d/20\.toml: \[limits\] vms: 'many'"):
        config.load(str(file))


def test_a_drop_in_changes_a_wall_key_by_key(file: Path) -> None:
    folder = Path(f"{file}.d")
    folder.mkdir()
    file.write_text("[wall.b]\nclasses = [['a'], ['b']]\n[wall.a]\nclasses = [['x'], ['y']]\n")
    (folder / "1.toml").write_text("[wall.b]\nscope = 'owner'\n")
    (folder / "2.toml").write_text("[wall.a]\nclasses = [['x'], ['y'], ['z']]\n")
    assert config.load(str(file)).walls == (
        Wall("a", (("x",), ("y",), ("z",)), Scope.VM),
        Wall("b", (("a",), ("b",)), Scope.OWNER),
    )
    (folder / "3.toml").write_text("[wall.a]\nclasses = [['x'], ['x']]\n")
    with pytest.raises(ConfigError, match=r"3\.toml: \[wall\.a\] classes: .* in two classes"):
        config.load(str(file))


def test_a_file_name_with_wildcards_names_itself(tmp_path: Path) -> None:
    file = tmp_path / "sv[a-z]*.toml"
    file.touch()
    other = tmp_path / "sva.toml.d"
    other.mkdir()
    (other / "x.toml").write_text("nonsense")
    assert config.load(str(file)) == Config()


def test_a_reload_takes_what_can_change_and_names_the_rest(file: Path) -> None:
    old = Config()
    file.write_text(EVERY_KEY)
    new = config.load(str(file))
    live, waiting = config.reload_changes(old, new)
    assert live == replace(
        old,
        relabel_from=new.relabel_from,
        relabel_devices_from=new.relabel_devices_from,
        goals_directory=new.goals_directory,
        start_timeout_s=new.start_timeout_s,
        stop_timeout_s=new.stop_timeout_s,
        answer_timeout_s=new.answer_timeout_s,
        slice=new.slice,
        drift_repair=new.drift_repair,
        drift_interval_s=new.drift_interval_s,
        dialog_timeout_s=new.dialog_timeout_s,
        libvirt_adopt=new.libvirt_adopt,
        libvirt_require_adopted=new.libvirt_require_adopted,
        limits=new.limits,
        walls=new.walls,
    )
    assert set(waiting) == {f.name for f in fields(Config)} - {
        "relabel_from",
        "relabel_devices_from",
        "goals_directory",
        "start_timeout_s",
        "stop_timeout_s",
        "answer_timeout_s",
        "slice",
        "drift_repair",
        "drift_interval_s",
        "dialog_timeout_s",
        "libvirt_adopt",
        "libvirt_require_adopted",
        "limits",
        "walls",
    }
    assert config.reload_changes(old, old) == (old, [])

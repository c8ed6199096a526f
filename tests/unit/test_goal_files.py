# SPDX-License-Identifier: LGPL-2.1-or-later
"""A site's goals: what a file may say, and what each mistake in one is told."""

import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import pytest
from hypothesis import given
from hypothesis import strategies as st

from svirtd import config
from svirtd.config import Config
from svirtd.core import goals
from svirtd.core.confinement import BOUNDS, properties
from svirtd.core.goal_files import KEYS, read_all
from svirtd.core.goals import (
    BUILT_INS,
    ISOLATED,
    Goal,
    GroupRule,
    Network,
    Written,
    image_types,
    of_type,
)
from svirtd.core.mcs import parse_context
from svirtd.core.model import Access, Contexts
from svirtd.errors import ConfigError, InvalidArgs
from svirtd.host.unit import UnitSpec, unit_properties

CONTEXTS: Final = Contexts(
    parse_context("system_u:system_r:svirt_t:s0"),
    parse_context("system_u:object_r:svirt_image_t:s0"),
    parse_context("system_u:object_r:virt_content_t:s0"),
)
ALL: Final = """
[goal.all]
description = "Every key."
based-on = "forensic"
process-type = "site_vm_t"
image-type = "site_image_t"
accesses = ["readonly", "exclusive"]
default-access = "exclusive"
groups = ["a", "b c"]
network = "host"
devices = ["/dev/kvm", "/dev/net/tun"]
levels = "s0-s3"
written = "kept"
digest = false
"""


def read(text: str, path: str = "/goals/a.toml") -> Mapping[str, Goal]:
    return read_all([(path, tomllib.loads(text))])


def refusal(text: str) -> str:
    with pytest.raises(ConfigError) as refused:
        read(text)
    return str(refused.value)


def test_every_key_has_its_place() -> None:
    assert read(ALL)["all"] == Goal(
        "all",
        frozenset({Access.READONLY, Access.EXCLUSIVE}),
        "Every key.",
        default_access=Access.EXCLUSIVE,
        process_type="site_vm_t",
        image_type="site_image_t",
        groups=frozenset({"a", "b c"}),
        network=Network.HOST,
        devices=("/dev/kvm", "/dev/net/tun"),
        levels=(0, 3),
        written=Written.KEPT,
        digest=False,
        source="/goals/a.toml",
    )
    assert {f"{key} = " for key in [*KEYS, "based-on"]} == {
        f"{line.partition(' = ')[0]} = " for line in ALL.splitlines() if " = " in line
    }


def test_built_ins_are_always_there() -> None:
    assert read("") == BUILT_INS
    assert list(BUILT_INS) == ["isolated", "offline", "forensic", "view-only", "network-zone"]
    assert {one.source for one in BUILT_INS.values()} == {"built-in"}
    assert list(read(ALL)) == [*BUILT_INS, "all"]


def test_the_built_ins_keep_what_they_promise() -> None:
    for name in ("offline", "forensic", "view-only"):
        assert BUILT_INS[name].network is Network.NONE
    for name in ("forensic", "view-only"):
        one = BUILT_INS[name]
        assert (one.process_type, one.image_type) == ("svirtd_view_t", "svirtd_scratch_t")
        assert (one.written, one.devices) == (Written.OVERLAY, ("/dev/kvm",))
    assert Access.EXCLUSIVE not in BUILT_INS["view-only"].accesses
    assert Access.PUBLIC not in BUILT_INS["forensic"].accesses
    assert BUILT_INS["forensic"].groups is GroupRule.NONE
    assert BUILT_INS["network-zone"].groups is GroupRule.REQUIRED


def test_what_is_not_said_is_the_bases() -> None:
    both = read('[goal.a]\nbased-on = "offline"\n[goal.b]\nbased-on = "a"\ndigest = true')
    assert both["a"].network is both["b"].network is Network.NONE
    assert both["b"].process_type == "svirtd_offline_t"
    assert both["b"].digest
    assert not both["a"].digest
    # What it is for is its own to say.
    assert both["a"].description == ""
    plain = read("[goal.c]")["c"]
    assert plain.accesses == ISOLATED.accesses
    assert plain.network is Network.HOST


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("x = 1", "x: unknown; expected sections [goal.NAME], with keys"),
        ("[goals.a]", "goals: unknown; expected sections [goal.NAME], with keys"),
        ("goal = 1", "goal: unknown; expected sections [goal.NAME], with keys"),
        ("[goal]\na = 1", "[goal.a]: 1 cannot be used; expected a section with keys"),
        ("[goal.A]", "[goal.A]: 'A' cannot be a goal's name; expected 1 to 32 lower-case"),
        (f"[goal.{'a' * 33}]", "cannot be a goal's name"),
        ('[goal."a b"]', "cannot be a goal's name"),
        ('[goal.""]', "cannot be a goal's name"),
        ("[goal.isolated]", "[goal.isolated]: there is a goal of this name already, in built-in"),
        ("[goal.a]\nprocess = 1", "[goal.a] process: unknown key; expected one of accesses, based"),
        ('[goal.a]\nbased-on = "b"\n[goal.b]', "[goal.a] based-on: 'b' cannot be used; expected a"),
        ("[goal.a]\nbased-on = []", "[goal.a] based-on: [] cannot be used; expected a goal that"),
        ("[goal.a]\ndescription = 1", "description: 1 cannot be used; expected a string of at m"),
        ('[goal.a]\ndescription = "a\\u001b"', "expected a string of at most 512 printable"),
        ('[goal.a]\nprocess-type = ""', "process-type: '' cannot be used; expected the name of a"),
        ('[goal.a]\nprocess-type = "a:b"', "process-type: 'a:b' cannot be used"),
        ('[goal.a]\nprocess-type = "u:r:svirt_t:s0"', "expected the name of a type of the policy"),
        ('[goal.a]\nimage-type = "é"', "image-type: 'é' cannot be used; expected the name of a t"),
        ('[goal.a]\naccesses = "readonly"', "accesses: 'readonly' cannot be used; expected a list"),
        ("[goal.a]\naccesses = []", "accesses: [] cannot be used; expected a list of accesses"),
        ('[goal.a]\naccesses = ["rw"]', "accesses: ['rw'] cannot be used; expected \"exclusive\""),
        ("[goal.a]\naccesses = [1]", "accesses: [1] cannot be used"),
        ('[goal.a]\ndefault-access = "x"', "default-access: 'x' cannot be used; expected \"excl"),
        ('[goal.a]\naccesses = ["readonly"]', "default-access: 'exclusive' is not among accesses"),
        ('[goal.a]\ngroups = "some"', "groups: 'some' cannot be used; expected \"any\" or"),
        ("[goal.a]\ngroups = []", "groups: [] cannot be used"),
        ('[goal.a]\ngroups = ["a/b"]', "groups: ['a/b'] cannot be used"),
        ("[goal.a]\ngroups = true", "groups: True cannot be used"),
        ('[goal.a]\nnetwork = "off"', "network: 'off' cannot be used; expected \"host\" or"),
        ("[goal.a]\nnetwork = false", "network: False cannot be used"),
        ('[goal.a]\nbased-on = "forensic"\nnetwork = "zone"', 'network: "zone" takes a group'),
        ('[goal.a]\ndevices = "/dev/kvm"', "devices: '/dev/kvm' cannot be used; expected \"host\""),
        ('[goal.a]\ndevices = ["/etc/passwd"]', "or a list of device nodes such as"),
        ('[goal.a]\ndevices = ["/dev/../etc"]', "devices: ['/dev/../etc'] cannot be used"),
        ('[goal.a]\ndevices = ["/dev/kvm rw"]', "devices: ['/dev/kvm rw'] cannot be used"),
        ('[goal.a]\ndevices = ["/dev"]', "devices: ['/dev'] cannot be used"),
        ('[goal.a]\ndevices = ["block-*"]', "devices: ['block-*'] cannot be used"),
        ('[goal.a]\nlevels = "0"', "levels: '0' cannot be used; expected a sensitivity such as"),
        ('[goal.a]\nlevels = "s3-s0"', "levels: 's3-s0' cannot be used; expected the lower"),
        ('[goal.a]\nlevels = "s0:c1"', "levels: 's0:c1' cannot be used"),
        ("[goal.a]\nlevels = 0", "levels: 0 cannot be used"),
        ('[goal.a]\nwritten = "gone"', "written: 'gone' cannot be used; expected \"kept\" or"),
        (
            '[goal.a]\naccesses = ["exclusive"]\nwritten = "overlay"',
            'written: "overlay" is about what is only read',
        ),
        ('[goal.a]\ndigest = "yes"', "digest: 'yes' cannot be used; expected true or false"),
        (
            '[goal.a]\naccesses = ["exclusive"]\ndigest = true',
            "digest: it is taken of what is held with access 'readonly'",
        ),
    ],
)  # fmt: skip
def test_a_mistake_is_told_with_file_key_and_what_was_expected(text: str, told: str) -> None:
    said = refusal(text)
    assert said.startswith("/goals/a.toml: ")
    assert told in said
    assert "expected" in said


@given(st.sets(st.sampled_from(Access), min_size=1), st.sampled_from(Access))
def test_a_default_access_is_one_that_is_allowed(accesses: set[Access], default: Access) -> None:
    allowed = ", ".join(f'"{one}"' for one in sorted(accesses))
    text = f'[goal.a]\naccesses = [{allowed}]\ndefault-access = "{default}"'
    if default in accesses:
        found = read(text)["a"]
        assert found.accesses == frozenset(accesses)
        assert found.default_access is default
    else:
        assert "is not among accesses" in refusal(text)


@given(st.dictionaries(st.sampled_from([*KEYS, "based-on", "x"]), st.one_of(
    st.none(), st.booleans(), st.integers(), st.text(max_size=8), st.lists(st.text(max_size=8)),
    st.sampled_from(["any", "host", "overlay", "s0", "svirt_t", "isolated"]),
)))  # fmt: skip
def test_whatever_a_file_says_is_a_goal_or_a_clear_error(keys: dict[str, Any]) -> None:
    tables = [("f", {"goal": {"a": keys}})]
    try:
        found = read_all(tables)["a"]
    except ConfigError:
        with pytest.raises(ConfigError, match=r"^f: \[goal\.a\] .*expected"):
            read_all(tables)
    else:
        assert found.default_access in found.accesses


def test_files_are_read_in_the_order_of_their_names(tmp_path: Path) -> None:
    (tmp_path / "2.toml").write_text('[goal.second]\nbased-on = "first"')
    (tmp_path / "1.toml").write_text('[goal.first]\nnetwork = "none"')
    (tmp_path / "3.conf").write_text("not read")
    known = config.load_goals(Config(goals_directory=str(tmp_path)))
    assert list(known)[-2:] == ["first", "second"]
    assert known["second"].network is Network.NONE
    assert known["second"].source == f"{tmp_path}/2.toml"
    (tmp_path / "4.toml").write_text("[goal.first]")
    with pytest.raises(ConfigError, match=f"already, in {tmp_path}/1.toml"):
        config.load_goals(Config(goals_directory=str(tmp_path)))


def test_no_directory_is_no_goals_and_a_broken_file_is_an_error(tmp_path: Path) -> None:
    assert config.load_goals(Config(goals_directory=str(tmp_path / "none"))) == BUILT_INS
    (tmp_path / "a.toml").write_text("[goal")
    with pytest.raises(ConfigError, match=r"a\.toml: is not TOML"):
        config.load_goals(Config(goals_directory=str(tmp_path)))
    (tmp_path / "a.toml").unlink()
    (tmp_path / "a.toml").mkdir()
    with pytest.raises(ConfigError, match=r"a\.toml: cannot be read"):
        config.load_goals(Config(goals_directory=str(tmp_path)))


def test_types_replace_those_of_the_base_and_nothing_else() -> None:
    found = BUILT_INS["forensic"].contexts(CONTEXTS)
    assert str(found.process) == "system_u:system_r:svirtd_view_t:s0"
    assert str(found.image) == "system_u:object_r:svirtd_scratch_t:s0"
    assert found.content == CONTEXTS.content
    assert ISOLATED.contexts(CONTEXTS) == CONTEXTS


def test_a_goal_is_found_by_the_type_of_its_processes() -> None:
    for one in BUILT_INS.values():
        type_ = one.contexts(CONTEXTS).process.type
        found = of_type(BUILT_INS, CONTEXTS, type_)
        assert found is not None
        assert found.contexts(CONTEXTS) == one.contexts(CONTEXTS)
    assert of_type(BUILT_INS, CONTEXTS, "init_t") is None
    assert image_types(BUILT_INS.values(), CONTEXTS) == {"svirt_image_t", "svirtd_scratch_t"}


def test_an_unknown_goal_is_told_with_the_known_ones() -> None:
    with pytest.raises(InvalidArgs, match="'x' is not known; known goals: forensic, isolated"):
        goals.named(BUILT_INS, "x")


@pytest.mark.parametrize("goal", BUILT_INS.values(), ids=lambda one: str(one.name))
def test_what_systemd_keeps_a_unit_in(goal: Goal) -> None:
    disks = [("block", 8, 0, True), ("block", 253, 17, False), ("char", 189, 3, True)]
    found = {
        name: (signature, value)
        for name, signature, value in properties(goal, "/run/netns/a", disks)
    }
    assert set(found) <= BOUNDS
    assert found.get("PrivateNetwork") == (("b", True) if goal.network is Network.NONE else None)
    zone = found.get("NetworkNamespacePath")
    assert zone == (("s", "/run/netns/a") if goal.network is Network.ZONE else None)
    if goal.devices is not None:
        assert found["DevicePolicy"] == ("s", "closed")
        assert found["DeviceAllow"] == (
            "a(ss)",
            [
                ["/dev/kvm", "rw"],
                ["/dev/block/8:0", "rw"],
                ["/dev/block/253:17", "r"],
                ["/dev/char/189:3", "rw"],
            ],
        )
    else:
        assert "DevicePolicy" not in found


@given(st.lists(st.sampled_from(sorted(BOUNDS))))
def test_no_property_of_a_callers_changes_what_a_unit_is_kept_in(names: list[str]) -> None:
    """Not even one that the white list should let through one day."""
    bounds = properties(BUILT_INS["forensic"], "", [])
    mine = tuple((name, "s", "mine") for name in names)
    spec = UnitSpec("u", "", ("/bin/true",), "c", "", "s", (), "", mine, bounds)
    told = [[name, value.value] for name, value in unit_properties(spec) if name in BOUNDS]
    kept = {name for name, _, _ in bounds}
    assert [one for one in told if one[0] in kept] == [[n, v] for n, _, v in bounds]

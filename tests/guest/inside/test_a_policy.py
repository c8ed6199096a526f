# SPDX-License-Identifier: LGPL-2.1-or-later
"""The loaded policy, asked: what svirtd and its VMs may do, and what they may not."""

import subprocess
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any, Final

import pytest
import setools

from svirtd.config import Config
from svirtd.core import goal_policy
from svirtd.core.mcs import parse_context
from svirtd.host.kernel import Kernel

DAEMON: Final = "system_u:system_r:svirtd_t:s0-s0:c0.c1023"
BUS: Final = "system_u:system_r:system_dbusd_t:s0-s0:c0.c1023"
VM: Final = "system_u:system_r:svirt_t:s0:c1,c2"
# The domains that goals have of their own, and those of them that have no network.
GOALS: Final = ("svirtd_offline_t", "svirtd_view_t", "svirtd_zone_t")
SEALED: Final = ("svirtd_offline_t", "svirtd_view_t")

# Target, class, and what is allowed.
Rule = tuple[str, str, frozenset[str]]


@cache
def loaded() -> Any:
    return setools.SELinuxPolicy("/sys/fs/selinux/policy")


def allowed(source: str, target_type: str, kind: str) -> frozenset[str]:
    """What the kernel itself says."""
    target = parse_context(f"system_u:object_r:{target_type}:s0")
    return Kernel().decide(parse_context(source), target, kind).allowed


def members(attribute: str) -> set[str]:
    return {str(one) for one in loaded().lookup_typeattr(attribute).expand()}


def targets(permission: str, kind: str) -> set[str]:
    """Every type on which svirtd_t has a permission by some rule."""
    return {target for target, of, may in rules("svirtd_t") if of == kind and permission in may}


def rules(domain: str) -> Sequence[Rule]:
    """Every rule that allows a domain something, whatever the booleans are."""
    return _rules()[domain]


@cache
def _rules() -> Mapping[str, Sequence[Rule]]:
    """Read once for all domains: a look through all rules takes a quarter of a minute here."""
    found: dict[str, list[Rule]] = {domain: [] for domain in ("svirtd_t", *GOALS)}
    sources: dict[Any, list[list[Rule]]] = {}
    for domain, own in found.items():
        kind = loaded().lookup_type(domain)
        for source in (kind, *kind.attributes()):
            sources.setdefault(source, []).append(own)
    for rule in loaded().terules():
        if rule.ruletype == setools.TERuletype.allow and rule.source in sources:
            may = str(rule.tclass), frozenset(map(str, rule.perms))
            for own in sources[rule.source]:
                own += [(str(target), *may) for target in rule.target.expand()]
    return found


def test_the_daemon_runs_in_its_domain() -> None:
    shown = subprocess.run(["ps", "-eo", "label,comm"], capture_output=True, text=True, check=True)
    labels = [line.split()[0] for line in shown.stdout.splitlines() if line.endswith(" svirtd")]
    assert labels == [DAEMON]


@pytest.mark.parametrize("domain", ["svirtd_t", "svirt_t", *GOALS])
def test_domain_is_confined(domain: str) -> None:
    assert domain not in members("unconfined_domain_type")
    assert not loaded().lookup_type(domain).ispermissive
    found = Kernel().decide(parse_context(DAEMON), parse_context(DAEMON), "process")
    assert not found.permissive


@pytest.mark.parametrize("kind", ["file", "blk_file"])
@pytest.mark.parametrize("permission", ["relabelfrom", "relabelto"])
def test_what_may_be_relabelled_is_what_the_configuration_says(kind: str, permission: str) -> None:
    wanted = Config().relabel_from | {"svirt_image_t", "virt_content_t"}
    assert wanted == members("svirtd_image_type")
    # And a type of its own, which no file has before svirtd gives it.
    assert targets(permission, kind) == wanted | {"svirtd_scratch_t"}


def test_folders_that_may_be_relabelled() -> None:
    trees = members("svirtd_image_type") | {"svirtd_scratch_t"}
    assert targets("relabelfrom", "dir") == trees | {"svirtd_runtime_t"}
    assert targets("relabelto", "dir") == trees


@pytest.mark.parametrize("permission", ["relabelfrom", "relabelto"])
def test_nodes_that_may_be_relabelled(permission: str) -> None:
    devices = Config().relabel_devices_from | {"svirt_image_t"}
    assert targets(permission, "chr_file") == members("svirtd_device_type") == devices
    images = members("svirtd_image_type") | {"svirtd_scratch_t"}
    assert targets(permission, "fifo_file") == targets(permission, "sock_file") == images
    assert targets(permission, "lnk_file") == images


@pytest.mark.parametrize("kind", ["usb_device_t", "vfio_device_t", "memory_device_t"])
def test_devices_are_not_opened(kind: str) -> None:
    assert "open" not in allowed(DAEMON, kind, "chr_file")


@pytest.mark.parametrize("kind", ["shadow_t", "etc_t", "bin_t", "usr_t", "fixed_disk_device_t"])
def test_what_is_the_hosts_is_out_of_reach(kind: str) -> None:
    for object_class in ("file", "blk_file"):
        found = allowed(DAEMON, kind, object_class)
        assert not found & {"relabelfrom", "relabelto", "write", "append", "unlink", "create"}
    assert not allowed(DAEMON, "shadow_t", "file") & {"read", "open"}
    # The question itself works: this is allowed.
    assert "relabelfrom" in allowed(DAEMON, "virt_image_t", "file")


def test_the_daemon_is_not_the_policys_master() -> None:
    assert allowed(DAEMON, "security_t", "security") == {"check_context", "compute_av"}
    me = parse_context(DAEMON)
    assert Kernel().decide(me, me, "capability").allowed == {
        *("audit_write", "chown", "dac_override", "fowner", "setgid", "setuid")
    }
    for domain in ("init_t", "unconfined_t", "svirt_t"):
        transition = allowed(DAEMON, domain, "process") & {"transition", "dyntransition", "ptrace"}
        assert not transition


def test_every_domain_of_vms_is_bound_by_categories() -> None:
    domains = members("svirtd_vm_domain_type")
    assert domains >= {"svirt_t", *GOALS}
    assert domains <= members("mcs_constrained_type")


@pytest.mark.parametrize("domain", SEALED)
def test_a_domain_without_network_has_no_rule_about_one(domain: str) -> None:
    found = [(target, kind, may) for target, kind, may in rules(domain) if "socket" in kind]
    made = {(target, kind) for target, kind, may in found if "create" in may}
    assert made == {(domain, "unix_stream_socket")}
    # Of others: systemd's for the output. (Packets may arrive, by the policy's rule for all.)
    others = [one for one in found if one[0] != domain and not one[2] <= {"recvfrom"}]
    reached = {target for target, _, may in others if may & {"connectto", "sendto"}}
    assert reached <= {"setrans_t"}  # which every domain may ask, and categories keep from VMs
    used = {(target, kind) for target, kind, _ in others if target not in reached}
    assert used == {("init_t", "unix_stream_socket")}
    # Devices that are a network, or a way to one.
    devices = {
        target for target, kind, may in rules(domain) if kind == "chr_file" and "open" in may
    }
    assert not devices & {"tun_tap_device_t", "vhost_device_t", "vfio_device_t"}


@pytest.mark.parametrize("domain", GOALS)
def test_a_goals_domain_runs_nothing_and_asks_nobody(domain: str) -> None:
    found = rules(domain)
    asked = {target for target, kind, _ in found if kind == "dbus"}
    assert asked == set()
    assert not [one for one in found if one[1].startswith("cap") or one[1] == "user_namespace"]
    started = {target for target, kind, may in found if "execute_no_trans" in may}
    assert started <= {"ld_so_t", "lib_t"}
    left = {target for target, _, may in found if may & {"transition", "dyntransition"}}
    assert left == set()


def test_a_viewer_writes_nothing_but_its_own() -> None:
    found = rules("svirtd_view_t")
    files = {"file", "dir", "blk_file", "lnk_file", "sock_file", "fifo_file"}
    change = {"write", "append", "create", "setattr", "unlink", "rename", "link", "add_name"}
    changed = {target for target, kind, may in found if kind in files and may & change}
    # Its own entries in /proc, and the sockets of setrans_t, see above.
    assert changed - {"svirtd_view_t", "setrans_runtime_t"} == {"svirtd_scratch_t"}
    # Nobody else's disk is of that type, and no other VM may use what is.
    for domain in members("svirtd_vm_domain_type") - {"svirtd_view_t"}:
        assert "open" not in allowed(f"system_u:system_r:{domain}:s0", "svirtd_scratch_t", "file")
    # The question works: what it may read, others may write.
    assert "write" in allowed("system_u:system_r:svirtd_offline_t:s0", "svirt_image_t", "file")
    assert "read" in allowed("system_u:system_r:svirtd_view_t:s0", "svirt_image_t", "file")


def test_the_bus_may_carry_images_only_if_an_administrator_says_so() -> None:
    wanted = {"read", "write"}
    switch = Path("/sys/fs/selinux/booleans/svirtd_bus_image_fds")
    assert switch.read_text("utf-8").split() == ["0", "0"]
    assert not allowed(BUS, "virt_image_t", "file") & wanted
    subprocess.run(["setsebool", "svirtd_bus_image_fds", "on"], check=True)
    try:
        assert allowed(BUS, "virt_image_t", "file") >= wanted
    finally:
        subprocess.run(["setsebool", "svirtd_bus_image_fds", "off"], check=True)
    assert allowed(BUS, "svirtd_t", "unix_stream_socket") >= wanted


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        ("/usr/bin/svirtd", "svirtd_exec_t"),
        ("/etc/svirtd/svirtd.toml", "svirtd_conf_t"),
        ("/var/lib/svirtd/book.sqlite", "svirtd_var_lib_t"),
        ("/run/svirtd", "svirtd_runtime_t"),
        ("/usr/lib/systemd/system/svirtd.service", "svirtd_unit_t"),
    ],
)
def test_files_carry_the_modules_types(path: str, expected: str) -> None:
    assert parse_context(Kernel().read_label(path) or "").type == expected


def broken(domain: str, *, network: bool, writes_images: bool) -> list[str]:
    """What svirtd itself finds wrong with a domain, if a goal promises this of it."""
    mine = {
        kind: parse_context(f"system_u:object_r:{kind}:s0:c1,c2")
        for kind in ("svirt_image_t", "virt_content_t", "svirtd_scratch_t")
    }
    return goal_policy.problems(
        process=parse_context(f"system_u:system_r:{domain}:s0:c1,c2"),
        image=mine["svirt_image_t"],
        content=mine["virt_content_t"],
        scratch=None if writes_images else mine["svirtd_scratch_t"],
        network=network,
        writes_images=writes_images,
        ask=Kernel().decide,
    )


def test_what_svirtd_asks_before_it_uses_a_goals_domain() -> None:
    assert broken("svirtd_offline_t", network=False, writes_images=True) == []
    assert broken("svirtd_view_t", network=False, writes_images=False) == []
    assert broken("svirtd_zone_t", network=True, writes_images=True) == []
    # Each promise is seen to be broken by a domain that was not made for it.
    for domain in ("svirt_t", "svirtd_zone_t"):
        found = "; ".join(broken(domain, network=False, writes_images=True))
        assert (
            f"may bind, connect, create, read, write the tcp_socket system_u:system_r:{domain}"
            in found
        )
    found = "; ".join(broken("svirtd_offline_t", network=False, writes_images=False))
    assert "the file system_u:object_r:svirt_image_t" in found
    assert "may not create, open, read, write its own file" in found
    (found,) = broken("svirtd_none_t", network=False, writes_images=True)
    assert found.startswith("the loaded policy does not say what system_u:system_r:svirtd_none_t")

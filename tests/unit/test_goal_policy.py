# SPDX-License-Identifier: LGPL-2.1-or-later
"""What a policy must answer for a goal: a model of the module, and each way to widen it."""

import errno
from collections.abc import Callable

import pytest

from svirtd.core.goal_policy import problems
from svirtd.core.mcs import Context, parse_context
from svirtd.core.separation import Ask, Decision

LEVEL = "s0:c1,c2"
IMAGE, CONTENT, SCRATCH = (
    parse_context(f"system_u:object_r:{one}:{LEVEL}")
    for one in ("svirt_image_t", "virt_content_t", "svirtd_scratch_t")
)
_MANAGED = {
    "file": {"append", "create", "getattr", "link", "open", "read", "rename", "unlink", "write"},
    "dir": {"add_name", "create", "remove_name", "search", "write"},
    "sock_file": {"create", "unlink", "write"},
    "blk_file": {"append", "open", "read", "write"},
}
_READ = {"file": {"getattr", "open", "read"}, "dir": {"open", "read", "search"}}
_FILES = {
    "svirtd_offline_t": {"svirt_image_t": _MANAGED, "virt_content_t": _READ},
    "svirtd_view_t": {
        "svirt_image_t": _READ,
        "virt_content_t": _READ,
        "svirtd_scratch_t": _MANAGED,
    },
    "svirtd_zone_t": {"svirt_image_t": _MANAGED, "virt_content_t": _READ},
}
_STREAM = {"accept", "bind", "connect", "create", "listen", "read", "write"}


def policy(
    more: Callable[[Context, Context, str], set[str]] = lambda _s, _t, _k: set(),
    *,
    permissive: bool = False,
) -> Ask:
    """The module in small. Of a domain that it does not have nothing can be asked."""

    def ask(source: Context, target: Context, kind: str) -> Decision:
        files = _FILES.get(source.type)
        if files is None:
            raise OSError(errno.EINVAL, "Invalid argument")
        allowed = set(files.get(target.type, {}).get(kind, ()))
        if source == target and kind == "unix_stream_socket":
            allowed |= _STREAM
        if source == target and source.type == "svirtd_zone_t":
            allowed |= _STREAM if kind in {"tcp_socket", "udp_socket"} else set()
        return Decision(frozenset(allowed | more(source, target, kind)), permissive)

    return ask


def found(domain: str, ask: Ask) -> list[str]:
    """What is wrong with one of the module's domains, by what the goals promise of it."""
    viewer = domain == "svirtd_view_t"
    return problems(
        process=parse_context(f"system_u:system_r:{domain}:{LEVEL}"),
        image=IMAGE,
        content=CONTENT,
        scratch=SCRATCH if viewer else None,
        network=domain == "svirtd_zone_t",
        writes_images=not viewer,
        ask=ask,
    )


@pytest.mark.parametrize("domain", list(_FILES))
def test_the_modules_domains_keep_their_promises(domain: str) -> None:
    assert found(domain, policy()) == []


@pytest.mark.parametrize("domain", list(_FILES))
def test_a_permissive_domain(domain: str) -> None:
    assert found(domain, policy(permissive=True)) == [
        f"{domain} is a permissive domain in the loaded policy, nothing is denied to it"
    ]


def test_a_type_that_is_not_loaded() -> None:
    (said,) = found("nowhere_t", policy())
    assert said == (
        "the loaded policy does not say what system_u:system_r:nowhere_t:s0:c1,c2 may "
        "([Errno 22] Invalid argument)"
    )


def test_a_domain_that_may_nothing_is_no_domain_of_vms() -> None:
    def nothing(_source: Context, _target: Context, _kind: str) -> Decision:
        return Decision(frozenset(), permissive=False)

    said = found("svirtd_offline_t", nothing)
    assert f"svirtd_offline_t:{LEVEL} may not open, read its own file {IMAGE}" in said[0]
    assert any("may not create, open, read, write its own file" in one for one in said)


@pytest.mark.parametrize("domain", ["svirtd_offline_t", "svirtd_view_t"])
@pytest.mark.parametrize(
    ("target", "kind", "permission"),
    [
        ("self", "tcp_socket", "create"),
        ("self", "tcp_socket", "connect"),
        ("self", "udp_socket", "create"),
        ("self", "rawip_socket", "create"),
        ("self", "icmp_socket", "create"),
        ("self", "packet_socket", "create"),
        ("self", "vsock_socket", "create"),
        ("self", "netlink_route_socket", "create"),
        ("self", "unix_dgram_socket", "create"),
        ("self", "tun_socket", "create"),
        ("tun_tap_device_t", "chr_file", "open"),
        ("vhost_device_t", "chr_file", "read"),
        ("self", "capability", "net_raw"),
        ("self", "capability", "sys_admin"),
        ("virt_content_t", "file", "write"),
        ("virt_content_t", "blk_file", "append"),
        ("virt_content_t", "dir", "add_name"),
        ("virt_content_t", "file", "relabelfrom"),
    ],
)
def test_one_permission_too_many(domain: str, target: str, kind: str, permission: str) -> None:
    wanted = domain if target == "self" else target

    def more(_source: Context, seen: Context, seen_kind: str) -> set[str]:
        return {permission} if (seen.type, seen_kind) == (wanted, kind) else set()

    (said,) = found(domain, policy(more))
    assert f":{domain}:{LEVEL} may {permission} the {kind} " in said
    assert f":{wanted}:" in said


@pytest.mark.parametrize(
    ("kind", "permission"),
    [
        *(("file", one) for one in ("append", "create", "link", "rename", "setattr", "unlink")),
        *(("file", one) for one in ("write", "relabelfrom", "relabelto")),
        *(("blk_file", one) for one in ("append", "setattr", "write")),
        *(("dir", one) for one in ("add_name", "remove_name", "write")),
    ],
)
def test_a_viewer_that_could_change_a_disk(kind: str, permission: str) -> None:
    def more(_source: Context, seen: Context, seen_kind: str) -> set[str]:
        return {permission} if (seen, seen_kind) == (IMAGE, kind) else set()

    (said,) = found("svirtd_view_t", policy(more))
    assert f" may {permission} the {kind} {IMAGE}" in said


def test_a_viewer_that_has_nowhere_to_write() -> None:
    process = parse_context(f"system_u:system_r:svirtd_view_t:{LEVEL}")

    def of(scratch: Context | None) -> list[str]:
        return problems(
            process=process,
            image=IMAGE,
            content=CONTENT,
            scratch=scratch,
            network=False,
            writes_images=False,
            ask=policy(),
        )

    assert of(SCRATCH) == []
    assert of(None) == [
        "svirtd_view_t writes no disk, and the goal names no type that it may write instead"
    ]
    assert " may not create, write its own file " in of(IMAGE)[0]


def test_a_zone_without_a_network() -> None:
    def less(source: Context, target: Context, kind: str) -> Decision:
        known = policy()(source, target, kind)
        return Decision(frozenset(), permissive=False) if kind == "tcp_socket" else known

    (said,) = found("svirtd_zone_t", less)
    assert "may not connect, create its own tcp_socket" in said

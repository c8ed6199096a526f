# SPDX-License-Identifier: LGPL-2.1-or-later
"""What a qcow2 image lies over, with images of qemu-img's own."""

import os
import shutil
import struct
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from svirtd.core import qcow2
from svirtd.host.bus import Variant
from tests.attack import INVALID, LIMITS, OWN, REFUSED
from tests.groups import category_of, client_of, disk_of
from tests.sandbox import Sandbox
from tests.sandbox.accounts import ANN, BEN, Account
from tests.support import ROOT, VM, Client, Daemon, image, label, set_label, unwrap, wait_for

ACQUIRE = "saa{sv}a{sv}"
LAUNCH = "sasaa{sv}a{sv}"
BUSY = OWN + "ResourceBusy"
CONTENT = "system_u:object_r:virt_content_t:s0"
EARLIER = "system_u:object_r:virt_image_t:s0"


def create(path: Path, backing: str = "", form: str = "qcow2", **options: str) -> Path:
    """An image of qemu-img's over another file, which need not be there."""
    told = [f"{key}={value}" for key, value in options.items()]
    over = ["-u", "-b", backing, "-F", form] if backing else []
    size = [] if backing and os.path.exists(backing) else ["1M"]
    more = ["-o", ",".join(told)] if told else []
    subprocess.run(
        ["qemu-img", "create", "-q", "-f", "qcow2", *more, *over, path, *(size or ["1M"])],
        check=True,
        stdout=subprocess.DEVNULL,
    )
    return path


def top(path: Path, access: str = "exclusive", **more: str) -> dict[str, Variant]:
    values = {"path": str(path), "access": access, "format": "qcow2", **more}
    return {key: Variant("s", value) for key, value in values.items()}


def held(client: Client, name: str) -> dict[str, dict[str, Any]]:
    return {Path(one["path"]).name: one for one in client.properties(name)["Resources"]}


def error(client: Client, name: str, given: str, *tops: dict[str, Variant], **options: Any) -> str:
    found = client.error("Acquire", ACQUIRE, name, list(tops), options)
    assert found.name.endswith(given), found
    return found.text


def acquire(client: Client, name: str, *tops: dict[str, Variant], **options: Any) -> None:
    client.call("Acquire", ACQUIRE, name, list(tops), options)


@pytest.fixture
def base(tmp_path: Path) -> Iterator[Path]:
    path = image(tmp_path / "base.img")
    set_label(path, EARLIER)
    yield path
    assert label(path) == EARLIER
    os.removexattr(path, "security.selinux")


def test_two_vms_over_one_base_image(
    daemon: Daemon, client: Client, tmp_path: Path, base: Path
) -> None:
    """Labelled with the first, counted, and restored byte for byte with the last."""
    middle = create(tmp_path / "middle.qcow2", str(base), "raw")
    tops = [create(tmp_path / f"{n}.qcow2", "middle.qcow2") for n in (1, 2)]
    for name, disk in zip(("one", "two"), tops, strict=True):
        acquire(client, name, top(disk))
        found = held(client, name)
        assert {file: one["access"] for file, one in found.items()} == {
            disk.name: "exclusive",
            "middle.qcow2": "public",
            "base.img": "public",
        }
        assert found["base.img"]["context"] == label(base) == label(middle) == CONTENT
        assert label(disk) == client.properties(name)["ImageContext"]
    assert "held by VM 'one'" in error(client, "three", BUSY, top(middle))
    client.release("one")
    assert label(base) == label(middle) == CONTENT
    assert label(tops[0]) is None
    client.release("two")
    assert label(base) == EARLIER
    assert label(middle) is None


def test_what_lies_below_for_this_vm_or_its_group_alone(
    daemon: Daemon, client: Client, tmp_path: Path, base: Path
) -> None:
    one, two = (create(tmp_path / f"{n}.qcow2", str(base), "raw") for n in (1, 2))
    acquire(client, "one", top(one, backing="private"))
    pair = client.properties("one")["Categories"]
    assert label(base) == f"{CONTENT}:{pair}"
    assert "held by VM 'one'" in error(client, "two", BUSY, top(two, backing="private"))
    assert "held by VM 'one'" in error(client, "two", BUSY, top(two))
    client.release("one")

    client.call("CreateGroup", "sa{sv}", "team", {})
    category = f"c{category_of(client, 'team')}"
    groups = Variant("as", ["team"])
    for name, disk in (("one", one), ("two", two)):
        acquire(client, name, top(disk, backing="group", group="team"), groups=groups)
        assert held(client, name)["base.img"]["group"] == "team"
        assert held(client, name)[disk.name].get("group") is None
        assert label(base) == f"{CONTENT}:{category}"
        assert label(disk) == client.properties(name)["ImageContext"]
    client.release("one")
    assert label(base) == f"{CONTENT}:{category}"
    client.release("two")
    client.call("DeleteGroup", "sa{sv}", "team", {})


def test_evidence_lies_over_what_this_vm_alone_reads(
    daemon: Daemon, client: Client, tmp_path: Path, base: Path
) -> None:
    disk = create(tmp_path / "top.qcow2", str(base), "raw")
    evidence = top(disk, "readonly", id="a")
    argv = ["/bin/sleep", "1000"]
    client.call("Launch", LAUNCH, "vm", argv, [evidence], {"goal": Variant("s", "forensic")})
    found = held(client, "vm")
    assert {one["access"] for one in found.values()} == {"readonly"}
    assert all(one["digest"].startswith("sha256:") for one in found.values())
    overlay = Path(client.properties("vm")["RuntimeDirectory"]) / "a.overlay.qcow2"
    header = qcow2.parse(overlay.read_bytes())
    assert (header.backing, header.backing_format, header.size) == (str(disk), "qcow2", 1 << 20)
    told = subprocess.run(
        ["qemu-img", "info", "-U", "--backing-chain", overlay],
        capture_output=True,
        text=True,
        check=True,
    )
    assert str(base) in told.stdout
    client.release("vm")


def test_a_data_file_is_held_as_its_image(daemon: Daemon, client: Client, tmp_path: Path) -> None:
    data = tmp_path / "data.raw"
    disk = create(tmp_path / "top.qcow2", data_file=str(data))
    acquire(client, "vm", top(disk))
    assert held(client, "vm")["data.raw"]["access"] == "exclusive"
    assert label(data) == label(disk) == client.properties("vm")["ImageContext"]
    client.release("vm")
    os.chdir(tmp_path)
    try:
        relative = create(tmp_path / "relative.qcow2", data_file="data.raw")
    finally:
        os.chdir("/")
    assert "without a folder" in error(client, "vm", REFUSED, top(relative))


def test_where_names_lead(daemon: Daemon, client: Client, tmp_path: Path, base: Path) -> None:
    (tmp_path / "d").mkdir()
    (tmp_path / "e").mkdir()
    relative = create(tmp_path / "d" / "relative.qcow2", "../base.img", "raw")
    os.symlink(base, tmp_path / "link.img")
    linked = create(tmp_path / "linked.qcow2", str(tmp_path / "link.img"), "raw")
    for disk in (relative, linked):
        acquire(client, "vm", top(disk))
        assert label(base) == CONTENT
        client.release("vm")
    # By a link in another folder, QEMU would look there; from here it is the same file.
    os.symlink(relative, tmp_path / "e" / "link.qcow2")
    acquire(client, "vm", top(tmp_path / "e" / "link.qcow2"))
    client.release("vm")
    os.symlink(relative, tmp_path / "link.qcow2")
    assert "reached by a link" in error(client, "vm", REFUSED, top(tmp_path / "link.qcow2"))


def test_what_cannot_be_followed(
    daemon: Daemon, client: Client, tmp_path: Path, base: Path
) -> None:
    one, two = tmp_path / "a.qcow2", tmp_path / "b.qcow2"
    create(one, str(two))
    create(two, str(one))
    disks = {
        "has no end": one,
        "no such file": create(tmp_path / "missing.qcow2", str(tmp_path / "none")),
        "is no path": create(tmp_path / "nbd.qcow2", "nbd://localhost/x", "raw"),
        "and no json": create(tmp_path / "json.qcow2", 'json:{"file.filename":"x"}', "raw"),
        "'raw' and 'qcow2' only": create(tmp_path / "vmdk.qcow2", str(base), "vmdk"),
        "does not begin as one does": base,
        "which is a directory": create(tmp_path / "dir.qcow2", str(tmp_path)),
        "leads through /proc": create(tmp_path / "proc.qcow2", "/proc/self/fd/0", "raw"),
        "which is a character device": create(tmp_path / "null.qcow2", "/dev/null", "raw"),
    }
    silent = create(tmp_path / "silent.qcow2", "x")
    data = silent.read_bytes()
    kind = struct.pack(">I", 0xE2792ACA)
    silent.write_bytes(data.replace(kind, struct.pack(">I", 0x12345678), 1))
    disks["does not say of what format"] = silent
    for text, disk in disks.items():
        said = error(client, "vm", REFUSED, top(disk))
        assert text in said, said
        assert disk.name in said
    # Raw, it is labelled as it is, and nothing behind it is looked for.
    client.acquire("vm", one)
    assert list(held(client, "vm")) == [one.name]
    client.release("vm")


def test_a_chain_is_bounded(daemon: Daemon, client: Client, tmp_path: Path, base: Path) -> None:
    below = create(tmp_path / "0.qcow2", str(base), "raw")
    for number in range(1, qcow2.CHAIN_MAX):
        below = create(tmp_path / f"{number}.qcow2", str(below))
    acquire(client, "vm", top(below))
    assert len(held(client, "vm")) == qcow2.CHAIN_MAX + 1
    client.release("vm")
    longer = create(tmp_path / "longer.qcow2", str(below))
    assert "more than 16 files" in error(client, "vm", REFUSED, top(longer))
    many = [create(tmp_path / f"t{n}.qcow2", str(tmp_path / f"x{n}"), "raw") for n in range(140)]
    for number in range(140):
        image(tmp_path / f"x{number}")
    assert "280 resources; [limits]" in error(client, "vm", LIMITS, *map(top, many))


def test_what_is_named_twice(daemon: Daemon, client: Client, tmp_path: Path, base: Path) -> None:
    one, two = (create(tmp_path / f"{n}.qcow2", str(base), "raw") for n in (1, 2))
    acquire(client, "vm", top(one), top(two))
    assert len(held(client, "vm")) == 3
    client.release("vm")
    said = error(client, "vm", INVALID, top(one), top(two, backing="private"))
    assert "lies under two of the images" in said
    named = {"path": Variant("s", str(base)), "access": Variant("s", "exclusive")}
    acquire(client, "vm", named, top(one))
    assert held(client, "vm")["base.img"]["access"] == "exclusive"
    client.release("vm")


def leased(path: Path, seconds: float) -> dict[str, Variant]:
    until = time.time_ns() // 1000 + int(seconds * 1_000_000)
    return top(path) | {"until": Variant("t", until)}


def test_what_several_lie_over_outlasts_the_first_of_them(
    daemon: Daemon, client: Client, tmp_path: Path, base: Path
) -> None:
    """A lease of one image is not one of what the others need, too."""
    one, two = (create(tmp_path / f"{n}.qcow2", str(base), "raw") for n in (1, 2))
    acquire(client, "vm", leased(one, 1), top(two))
    wait_for("the first is over", lambda: "1.qcow2" not in held(client, "vm"))
    assert held(client, "vm").keys() == {"2.qcow2", "base.img"}
    assert label(base) == CONTENT
    client.release("vm")
    acquire(client, "vm", leased(one, 2000), leased(two, 1000))
    assert held(client, "vm")["base.img"]["until"] == held(client, "vm")["1.qcow2"]["until"]
    client.release("vm")


def test_what_lies_under_an_image_is_leased_with_it(
    daemon: Daemon, client: Client, tmp_path: Path, base: Path
) -> None:
    one, two, three = (create(tmp_path / f"{n}.qcow2", str(base), "raw") for n in (1, 2, 3))

    def attach(resource: dict[str, Variant], **options: str) -> dict[str, dict[str, Any]]:
        told = {key: Variant("s", value) for key, value in options.items()}
        path = f"{ROOT}/vm/vm"
        client.call("Attach", "a{sv}a{sv}", resource, told, path=path, interface=VM)
        return held(client, "vm")

    acquire(client, "vm", leased(one, 1000))
    found = held(client, "vm")
    assert found["base.img"]["until"] == found["1.qcow2"]["until"]
    # In its place one that stays, over the same.
    found = attach(top(two), replaces="r1")
    assert found["base.img"]["part-of"] == found["2.qcow2"]["id"]
    assert "until" not in found["base.img"]
    # In the place of that one that goes, and another that stays.
    found = attach(leased(three, 1000), replaces=found["2.qcow2"]["id"])
    assert found["base.img"]["until"] == found["3.qcow2"]["until"]
    found = attach(top(one))
    assert "part-of" not in found["base.img"]
    assert "until" not in found["base.img"]
    client.release("vm")
    # Asked for by itself it has what was asked for, and no lease of another's.
    acquire(client, "vm", leased(one, 1000))
    given = {"path": Variant("s", str(base)), "access": Variant("s", "readonly")}
    found = attach(given)
    assert (found["base.img"]["access"], "until" in found["base.img"]) == ("readonly", False)
    client.release("vm")


def test_a_plan_shows_the_chain(daemon: Daemon, client: Client, tmp_path: Path, base: Path) -> None:
    disk = create(tmp_path / "top.qcow2", str(base), "raw")
    steps = unwrap(client.call("Plan", ACQUIRE, "vm", [top(disk)], {})[0])
    assert [(Path(one["path"]).name, one["access"]) for one in steps if "path" in one] == [
        ("top.qcow2", "exclusive"),
        ("base.img", "public"),
    ]


# -- as users ------------------------------------------------------------------------------------


@pytest.fixture
def place(sandbox: Sandbox) -> Iterator[Path]:
    """A folder that everybody may pass through."""
    folder = Path(tempfile.mkdtemp(dir=sandbox.state))
    folder.chmod(0o755)
    yield folder
    left = [str(path) for path in folder.iterdir() if label(path) is not None]
    shutil.rmtree(folder)
    assert not left


def of_user(account: Account, path: Path, mode: int = 0o600) -> Path:
    os.chown(path, account.uid, account.gid)
    path.chmod(mode)
    return path


def test_a_users_overlay_over_the_administrators_image(
    daemon: Daemon, client: Client, place: Path
) -> None:
    """It has to be given the content type first, by which every VM reads it already."""
    base = image(place / "base.img")
    set_label(base, EARLIER)
    with client_of(ANN) as ann, client_of(BEN) as ben:
        disks = [
            of_user(who, create(place / f"{who.name}.qcow2", str(base), "raw"))
            for who in (ANN, BEN)
        ]
        said = error(ann, "anns", REFUSED, top(disks[0]))
        assert "belongs to uid 0" in said
        assert disks[0].name in said
        assert label(base) == EARLIER
        set_label(base, CONTENT)
        acquire(ann, "anns", top(disks[0]))
        acquire(ben, "bens", top(disks[1]))
        # Whose it is gets to know who reads it, and can release that VM.
        given = {"path": Variant("s", str(base)), "access": Variant("s", "exclusive")}
        assert "VM 'anns'" in client.error("Acquire", ACQUIRE, "vm", [given], {}).text
        ann.release("anns")
        assert label(base) == CONTENT
        ben.release("bens")
        assert label(base) == CONTENT
    os.removexattr(base, "security.selinux")


def test_what_a_users_header_names_gains_nothing(
    daemon: Daemon, client: Client, place: Path
) -> None:
    """Another's disk, the host's secrets: opened as the user, and by the rules of what is named."""
    secret = disk_of(BEN, place)
    open_ = of_user(BEN, image(place / "open.img"), 0o666)
    shadow = os.stat("/etc/shadow")
    with client_of(ANN) as ann:
        for number, (target, text) in enumerate(
            [
                ("/etc/shadow", "permission denied"),
                (str(secret), "permission denied"),
                (str(open_), f"belongs to uid {BEN.uid}"),
                ("/etc/passwd", "belongs to uid 0"),
                (str(daemon.book), "ermission denied"),
                (f"/proc/{daemon.pid}/fd/5", "ermission denied"),
            ]
        ):
            for form in ("raw", "qcow2"):
                disk = create(place / f"{number}-{form}.qcow2", target, form)
                of_user(ANN, disk)
                said = error(ann, "vm", REFUSED, top(disk))
                if form == "raw" or "permission" in text:
                    assert text in said, said
                # Whether it is an image is told of what he may read himself.
                assert "root:" not in said
                assert label(disk) is None
        assert label(secret) is label(open_) is None
    assert os.stat("/etc/shadow") == shadow
    assert client.vms() == {}


def test_huge_numbers_in_a_header_cost_nothing(daemon: Daemon, client: Client, place: Path) -> None:
    disk = of_user(ANN, create(place / "top.qcow2", "/x", "raw"))
    good = disk.read_bytes()
    with client_of(ANN) as ann:
        for at, data in (
            (8, b"\xff" * 8),
            (16, b"\xff" * 4),
            (20, b"\0\0\0\x3f"),
            (100, b"\xff\xff\xff\xf8"),
            (108, b"\xff" * 4),
        ):
            disk.write_bytes(good[:at] + data + good[at + len(data) :])
            error(ann, "vm", REFUSED, top(disk))

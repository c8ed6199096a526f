# SPDX-License-Identifier: LGPL-2.1-or-later
"""Categories of groups: given once, kept back as long as a file may carry them, known again."""

import contextlib
import os
import sqlite3
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from svirtd.host.bus import Variant
from tests.bus.test_verify import verify
from tests.groups import ACQUIRE, LAUNCH, category_of, in_groups, shared, view
from tests.sandbox import Sandbox
from tests.support import (
    ROOT,
    VM,
    XATTR,
    Client,
    Daemon,
    image,
    label,
    resources,
    set_label,
    unwrap,
    wait_for,
)

ERROR = "org.svirt1.Error."
PLAIN = "system_u:object_r:virt_image_t:s0"
PERSISTENT = {"persistent": Variant("b", True)}
SLEEP = ["/bin/sleep", "1000"]
# Its disks are known by its command.
NAMES = ["/bin/sh", "-c", "exec sleep 1000", "sh"]


def create(client: Client, name: str = "g", **options: Variant) -> int:
    """Make a group; returns its category."""
    client.call("CreateGroup", "sa{sv}", name, options)
    return category_of(client, name)


def delete(client: Client, name: str = "g") -> None:
    client.call("DeleteGroup", "sa{sv}", name, {})


@contextlib.contextmanager
def small(folder: Path, categories: str) -> Iterator[Daemon]:
    """A daemon with few categories for groups."""
    daemon = Daemon(folder / "small", extra=f'[labels]\ngroups = "{categories}"\n')
    daemon.start()
    try:
        yield daemon
    finally:
        code = daemon.stop() if daemon.process is not None else 0
    assert code == 0


def test_a_full_pool_of_groups(sandbox: Sandbox, client: Client, tmp_path: Path) -> None:
    with small(tmp_path, "c800.c802"):
        made = {name: create(client, name) for name in ("a", "b", "c")}
        assert set(made.values()) == {800, 801, 802}
        manager = client.manager()
        assert (manager["GroupCategoriesTotal"], manager["GroupCategoriesInUse"]) == (3, 3)
        refused = client.error("CreateGroup", "sa{sv}", "d", {})
        assert refused.name == ERROR + "PoolExhausted"
        assert "each of the 3 categories of [labels] groups" in refused.text
        # The one that was given back longest ago is the next.
        for name in ("b", "a", "c"):
            delete(client, name)
        assert [create(client, name) for name in ("d", "e", "f")] == [
            made[name] for name in ("b", "a", "c")
        ]
        for name in ("d", "e", "f"):
            delete(client, name)


def test_a_category_that_a_moved_file_carries_stays_out(
    sandbox: Sandbox, client: Client, tmp_path: Path
) -> None:
    """Renamed before the last release, the file carries it on: nobody else's until it is clean."""
    disk, moved = image(tmp_path / "a.img"), tmp_path / "moved.img"
    set_label(disk, PLAIN)
    with small(tmp_path, "c800"):
        assert create(client) == 800
        for name in ("one", "two"):
            client.call("Acquire", ACQUIRE, name, shared(disk, access="readonly"), in_groups("g"))
        held = str(label(disk))
        client.release("one")
        os.rename(disk, moved)
        client.release("two")
        assert label(moved) == held
        assert client.manager()["PairsQuarantined"] == 0  # no private set is kept back by it
        delete(client)
        refused = client.error("CreateGroup", "sa{sv}", "next", {})
        assert refused.name == ERROR + "PoolExhausted"
        assert "verify --scan" in refused.text
        (finding,) = verify(client)
        assert finding["kind"] == "quarantine"
        assert "keeps c800, the category of a group, out of the pool" in finding["reason"]
        # The label must not become anybody's original: given back, it would let in the next group.
        os.rename(moved, disk)
        refused = client.error("Acquire", ACQUIRE, "other", resources(disk), {})
        assert refused.name == ERROR + "ResourceRefused"
        assert "c800 of a group, of today or of an earlier one" in refused.text
        os.rename(disk, moved)
        # Seen by a scan, and then given its original.
        (_, finding) = verify(client, tmp_path)
        assert (finding["kind"], finding["path"]) == ("stale", str(moved))
        assert client.error("CreateGroup", "sa{sv}", "next", {}).name == ERROR + "PoolExhausted"
        verify(client, tmp_path, repair=True)
        assert label(moved) == PLAIN
        assert create(client, "next") == 800
        delete(client, "next")
    os.removexattr(moved, XATTR)


def test_a_group_of_the_same_name_gets_another_category(
    sandbox: Sandbox, client: Client, tmp_path: Path
) -> None:
    """A group's own label is no original either: the last release would give it back."""
    disk, moved = image(tmp_path / "a.img"), tmp_path / "moved.img"
    with small(tmp_path, "c800.c801"):
        first = create(client)
        client.call("Acquire", ACQUIRE, "one", shared(disk, access="readonly"), in_groups("g"))
        os.rename(disk, moved)
        client.release("one")
        os.rename(moved, disk)
        refused = client.error(
            "Acquire", ACQUIRE, "one", shared(disk, access="readonly"), in_groups("g")
        )
        assert refused.name == ERROR + "ResourceRefused"
        delete(client)
        assert create(client) == ({800, 801} - {first}).pop()
        assert verify(client, repair=True) == []
        assert label(disk) is None
        client.call("Acquire", ACQUIRE, "one", shared(disk), in_groups("g"))
        client.release("one")
        delete(client)


def test_a_scan_finds_files_that_carry_a_groups_category(
    own_daemon: Daemon, client: Client, tmp_path: Path
) -> None:
    """Held by nobody, they keep the category of a group that is there, and of one that was."""
    folder = tmp_path / "images"
    folder.mkdir()
    category = create(client)
    held = image(folder / "held.img")
    client.call("Acquire", ACQUIRE, "vm", shared(held), in_groups("g"))
    copy, other = folder / "copy.img", folder / "other.img"
    subprocess.run(["cp", "--preserve=all", held, copy], check=True)
    free = next(one for one in range(768, 1024) if one != category)
    set_label(image(other), f"system_u:object_r:svirt_image_t:s0:c{free}")
    assert verify(client) == []
    found = {one["path"]: one for one in verify(client, folder)}
    assert set(found) == {str(copy), str(other)}
    assert {one["kind"] for one in found.values()} == {"orphan"}
    assert "the category of group 'g', and no member holds it" in found[str(copy)]["reason"]
    assert "they are in quarantine as long as it does" in found[str(other)]["reason"]
    assert quarantined(own_daemon) == {category, free}
    # Known now, and told as what keeps a category back; once each.
    assert [one["kind"] for one in verify(client, folder)] == ["stale"] * 4
    assert quarantined(own_daemon) == {category, free}
    client.release("vm")
    assert label(held) is None
    delete(client)
    for path in (copy, other):
        os.removexattr(path, XATTR)
    assert verify(client) == []
    assert quarantined(own_daemon) == set()


def quarantined(daemon: Daemon) -> set[int]:
    """The group categories that are in quarantine."""
    with sqlite3.connect(f"file:{daemon.book}?mode=ro", uri=True) as book:
        keys = [key for (key,) in book.execute("SELECT rank FROM quarantine")]
    book.close()
    assert all(key < 0 for key in keys)
    return {-1 - key for key in keys}


def test_one_writer_and_readers(daemon: Daemon, client: Client, tmp_path: Path) -> None:
    """What a member may do is what its domain may: at most one whose domain writes."""
    disk = image(tmp_path / "a.img")
    category = create(client, writers=Variant("s", "one"))
    client.call("Acquire", ACQUIRE, "writer", shared(disk), in_groups("g"))
    for wanted in (shared(disk), []):  # holding nothing of it makes no reader of it
        refused = client.error("Acquire", ACQUIRE, "second", wanted, in_groups("g"))
        assert refused.name == ERROR + "ResourceBusy"
        assert "has one writer, VM 'writer'" in refused.text
    looks = in_groups("g", goal=Variant("s", "view-only"))
    for name in ("reader", "another"):
        client.call("Acquire", ACQUIRE, name, shared(disk), looks)
        context = client.properties(name)["ProcessContext"]
        assert ":svirtd_view_t:" in context
        assert context.endswith(f",c{category}")
    assert label(disk) == f"system_u:object_r:svirt_image_t:s0:c{category}"
    assert view(client)["Members"] == ["another", "reader", "writer"]
    client.release("writer")
    # One that holds nothing yet is a writer all the same: its process has the category.
    client.call("Acquire", ACQUIRE, "second", [], in_groups("g"))
    refused = client.error("Acquire", ACQUIRE, "writer", shared(disk), in_groups("g"))
    assert "has one writer, VM 'second'" in refused.text
    for name in ("reader", "another", "second"):
        client.release(name)
    assert label(disk) is None
    delete(client)


def test_a_vm_that_holds_nothing_is_a_member(daemon: Daemon, client: Client) -> None:
    """Whoever starts it has its label with the category in it: the group stays."""
    category = create(client)
    client.call("Acquire", ACQUIRE, "vm", [], in_groups("g", **PERSISTENT))
    assert client.properties("vm")["State"] == "labelled"
    assert client.properties("vm")["ProcessContext"].endswith(f",c{category}")
    assert view(client)["Members"] == ["vm"]
    assert client.error("DeleteGroup", "sa{sv}", "g", {}).name == ERROR + "ResourceBusy"
    member: dict[str, Any] = {"path": f"{ROOT}/vm/vm", "interface": VM}
    assert client.error("LeaveGroup", "sa{sv}", "g", {}, **member).name == ERROR + "Failed"
    client.release("vm")
    assert view(client)["Members"] == []
    delete(client)
    client.call("Forget", "sa{sv}", "vm", {})


def test_memberships_last(own_daemon: Daemon, client: Client, tmp_path: Path) -> None:
    """Over release, and over an end of the daemon of either kind; the label with them."""
    disk = image(tmp_path / "a.img")
    category = create(client)
    client.call("Acquire", ACQUIRE, "kept", [], PERSISTENT)
    client.call("JoinGroup", "sa{sv}", "g", {}, path=f"{ROOT}/vm/kept", interface=VM)
    for end in (own_daemon.stop, own_daemon.kill):
        end()
        own_daemon.start()
        now = client.properties("kept")
        assert (now["Groups"], now["LastingGroups"]) == ([], ["g"])
        assert view(client)["Members"] == ["kept"]
        client.call("Launch", LAUNCH, "kept", SLEEP, shared(disk), {})
        before = client.properties("kept")
        group = view(client)
        assert before["Groups"] == ["g"]
        end()
        own_daemon.start()
        assert client.properties("kept") == before
        assert view(client) == group
        assert label(disk) == f"system_u:object_r:svirt_image_t:s0:c{category}"
        client.call("Acquire", ACQUIRE, "other", shared(disk), in_groups("g"))
        client.release("kept")
        assert label(disk) is not None
        end()
        own_daemon.start()
        client.release("other")
        assert label(disk) is None
    client.call("Forget", "sa{sv}", "kept", {})
    delete(client)


def test_a_unit_of_a_member_that_ended_while_the_daemon_was_away(
    own_daemon: Daemon, client: Client, tmp_path: Path
) -> None:
    disk = image(tmp_path / "a.img")
    create(client)
    for name in ("one", "two"):
        client.call("Launch", LAUNCH, name, SLEEP, shared(disk), in_groups("g"))
    held = label(disk)
    for name, there in (("one", held), ("two", None)):
        pid = client.properties(name)["MainPID"]
        own_daemon.kill()
        os.kill(pid, 9)
        wait_for("its end", lambda pid=pid: not os.path.exists(f"/proc/{pid}"))  # type: ignore[misc]
        own_daemon.start()
        assert name not in client.vms()
        assert label(disk) == there
    assert view(client)["Members"] == []
    delete(client)


@pytest.mark.parametrize("order", [("one", "two"), ("two", "one")])
def test_the_book_is_lost_while_members_run(
    own_daemon: Daemon, client: Client, tmp_path: Path, order: tuple[str, str]
) -> None:
    """What their processes run under tells the group; whose it was, and its name, are lost."""
    disk, own = image(tmp_path / "a.img"), image(tmp_path / "own.img")
    categories = {name: create(client, name) for name in ("g", "h")}
    category = categories["g"]
    asked = shared(disk) + shared(own, "h", "readonly")
    client.call(
        "Launch",
        LAUNCH,
        "one",
        [*NAMES, str(disk), str(own)],
        asked,
        in_groups("g", "h"),
    )
    client.call("Launch", LAUNCH, "two", [*NAMES, str(disk)], shared(disk), in_groups("g"))
    before = {name: client.properties(name) for name in order}
    labels = label(disk), label(own)
    own_daemon.kill()
    for file in own_daemon.book.parent.glob("book.sqlite*"):
        file.unlink()
    for _ in range(2):
        own_daemon.start()
        lost = {name: f"lost-c{number}" for name, number in categories.items()}
        assert [row[:2] for row in unwrap(client.call("ListGroups")[0])] == [
            [name, 0] for name in sorted(lost.values())
        ]
        assert view(client, lost["g"])["Members"] == ["one", "two"]
        assert category_of(client, lost["g"]) == category
        after = {name: client.properties(name) for name in order}
        for name in order:
            for key in ("ProcessContext", "Categories", "MainPID"):
                assert after[name][key] == before[name][key]
        assert set(after["one"]["Groups"]) == set(lost.values())
        assert after["two"]["Groups"] == [lost["g"]]
        assert [(r["path"], r["access"]) for r in after["one"]["Resources"]] == [
            (str(disk), "group"),
            (str(own), "readonly"),
        ]
        assert [r["path"] for r in after["two"]["Resources"]] == [str(disk)]
        assert (label(disk), label(own)) == labels
        own_daemon.kill()
    own_daemon.start()
    # Nobody else gets the category, and it is no group's of another name.
    assert create(client) not in categories.values()
    assert client.error("DeleteGroup", "sa{sv}", lost["g"], {}).name == ERROR + "ResourceBusy"
    # A third one may come in, and the last one ends it.
    client.call("Acquire", ACQUIRE, "three", shared(disk, lost["g"]), in_groups(lost["g"]))
    assert label(disk) == labels[0]
    for name in order:
        client.release(name)
        assert label(disk) == labels[0]
    client.release("three")
    assert (label(disk), label(own)) == (None, None)
    for name in (*lost.values(), "g"):
        delete(client, name)

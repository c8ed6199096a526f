# SPDX-License-Identifier: LGPL-2.1-or-later
"""Walls over the bus: one side for ever, whatever happens to VM, daemon, book or configuration."""

import json
import os
import signal
import sqlite3
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from svirtd.host.bus import BusError, Variant
from svirtd.host.journal import MessageId
from tests import svirtctl
from tests.attack import INVALID, OWN, nothing_changes
from tests.support import VM, Client, Daemon, unwrap, wait_for

CONFLICT = OWN + "WallConflict"
UUID = "0123abcd-0000-0000-0000-00000000abcd"
BANKS = '[wall.banks]\nclasses = [["bank-a", "bank-a-archive"], ["bank-b"]]\n'
OWNER = BANKS + 'scope = "owner"\n'


def configure(daemon: Daemon, text: str) -> None:
    folder = Path(f"{daemon.config}.d")
    folder.mkdir(exist_ok=True)
    (folder / "walls.toml").write_text(text)


def records(message_id: MessageId) -> list[dict[str, Any]]:
    """What the daemons have written with this id, the newest last."""
    subprocess.run(["journalctl", "--sync"], check=True)
    argv = [
        "journalctl",
        "-b",
        "-q",
        "-t",
        "svirtd",
        "-o",
        "json",
        f"MESSAGE_ID={message_id.value}",
    ]
    out = subprocess.run(argv, capture_output=True, text=True, check=True).stdout
    return [json.loads(line) for line in out.splitlines()]


def reload(daemon: Daemon, client: Client, text: str, *expected: str) -> None:
    """Give the daemon other walls; returns when it has them, and what runs is recorded."""
    before = len(records(MessageId.RELOADED))
    configure(daemon, text)
    os.kill(daemon.pid, signal.SIGHUP)
    wait_for("the new walls", lambda: len(records(MessageId.RELOADED)) > before)
    assert [n for n, one in walls(client).items() if one["configured"]] == [*expected]


@pytest.fixture
def walled(own_daemon: Daemon, client: Client) -> Iterator[Daemon]:
    """A daemon with groups of two banks and a wall between them."""
    reload(own_daemon, client, BANKS, "banks")
    for name in ("bank-a", "bank-a-archive", "bank-b", "free"):
        client.call("CreateGroup", "sa{sv}", name, {})
    yield own_daemon
    for name, state in client.vms().items():
        if state != "reserved":
            client.release(name)
        if name in client.vms():
            client.call("Forget", "sa{sv}", name, {})


def acquire(
    client: Client, name: str, *groups: str, uuid: str = "", persistent: bool = True
) -> Any:
    options = {"groups": Variant("as", list(groups)), "persistent": Variant("b", persistent)}
    if uuid:
        options["uuid"] = Variant("s", uuid)
    return client.call("Acquire", "saa{sv}a{sv}", name, [], options)


def refused(client: Client, name: str, *groups: str, uuid: str = "") -> str:
    """What is said to a VM that the wall stands against."""
    before = client.vms()
    with pytest.raises(BusError) as error:
        acquire(client, name, *groups, uuid=uuid)
    assert error.value.name == CONFLICT, error.value
    assert client.vms() == before
    return error.value.text


def held(client: Client, name: str, *groups: str, **options: Any) -> None:
    """Have a VM in these groups, and release it."""
    acquire(client, name, *groups, **options)
    client.release(name)


def walls(client: Client) -> dict[str, dict[str, Any]]:
    (found,) = client.call("ListWalls")
    return {one["name"]: one for one in (dict(unwrap(one)) for one in found)}


def clear(client: Client, wall: str, subject: str) -> int:
    return int(client.call("ClearWall", "ssa{sv}", wall, subject, {})[0])


def clear_refused(client: Client, wall: str, subject: str) -> BusError:
    return client.error("ClearWall", "ssa{sv}", wall, subject, {})


def test_both_sides_at_once(walled: Daemon, client: Client) -> None:
    text = refused(client, "web", "bank-a-archive", "free", "bank-b")
    assert "wall 'banks' separates group 'bank-b' from group 'bank-a-archive'" in text
    acquire(client, "web", "bank-a", "bank-a-archive", "free")
    assert client.properties("web")["Groups"] == ["bank-a", "bank-a-archive", "free"]


def test_after_the_release(walled: Daemon, client: Client) -> None:
    held(client, "web", "bank-a")
    text = refused(client, "web", "bank-b")
    assert "'bank-b' from group 'bank-a', which VM 'web' has held since 20" in text
    assert f"svirtctl wall clear banks {client.properties('web')['Id']}" in text
    # Its own side it may hold again, and what is behind no wall.
    held(client, "web", "bank-a-archive", "free")
    held(client, "web", "free")
    held(client, "other", "bank-b")
    refused(client, "other", "bank-a-archive")


def test_after_a_restart_of_the_daemon(walled: Daemon, client: Client) -> None:
    held(client, "web", "bank-a")
    walled.stop()
    walled.start()
    refused(client, "web", "bank-b")
    held(client, "crashed", "bank-b")
    walled.kill()
    walled.start()
    refused(client, "crashed", "bank-a")


def test_under_another_name_and_after_forget(walled: Daemon, client: Client) -> None:
    held(client, "web", "bank-a", uuid=UUID, persistent=False)
    assert client.vms() == {}
    assert "which VM 'web' has held" in refused(client, "renamed", "bank-b", uuid=UUID.upper())
    held(client, "kept", "bank-a", uuid=UUID)
    client.call("Forget", "sa{sv}", "kept", {})
    refused(client, "kept", "bank-b", uuid=UUID)
    # Without the UUID it is another VM: nothing of the old one is left but its name.
    held(client, "kept", "bank-b")
    # Taking the UUID now would be taking its past.
    refused(client, "kept", "bank-b", uuid=UUID)


def test_a_new_uuid_does_not_help(walled: Daemon, client: Client) -> None:
    other = UUID.replace("abcd", "dcba")
    held(client, "web", "bank-a", uuid=UUID)
    held(client, "web", "free", uuid=other)
    client.call("Forget", "sa{sv}", "web", {})
    refused(client, "fresh", "bank-b", uuid=other)


def test_plan_says_so_and_remembers_nothing(walled: Daemon, client: Client) -> None:
    def plan(*groups: str) -> Any:
        options = {"groups": Variant("as", list(groups)), "uuid": Variant("s", UUID)}
        return client.call("Plan", "saa{sv}a{sv}", "web", [], options)

    plan("bank-a")
    assert walls(client)["banks"]["entries"] == 0
    held(client, "web", "bank-b", uuid=UUID)
    with pytest.raises(BusError) as error:
        plan("bank-a")
    assert error.value.name == CONFLICT


def test_joining(walled: Daemon, client: Client) -> None:
    held(client, "web", "bank-a")
    (path,) = client.call("GetVM", "s", "web")

    def join(group: str) -> None:
        client.call("JoinGroup", "sa{sv}", group, {}, path=path, interface=VM)

    with pytest.raises(BusError) as error:
        join("bank-b")
    assert error.value.name == CONFLICT
    join("bank-a-archive")
    assert client.properties("web")["LastingGroups"] == ["bank-a-archive"]
    # Of one that has held nothing, both at once are refused, too.
    held(client, "new")
    (path,) = client.call("GetVM", "s", "new")
    join("bank-b")
    with pytest.raises(BusError, match="would be in both") as error:
        join("bank-a")
    assert error.value.name == CONFLICT
    assert walls(client)["banks"]["history"] == [one for one in walls(client)["banks"]["history"]
                                                 if one["vm"] == "web"]  # fmt: skip


def test_the_owner(own_daemon: Daemon, client: Client, walled: Daemon) -> None:
    reload(walled, client, OWNER, "banks")
    held(client, "one", "bank-a", persistent=False)
    text = refused(client, "two", "bank-b")
    assert "which VM 'one' of the same owner (uid:0) has held" in text
    with pytest.raises(BusError) as error:
        clear(client, "banks", "two")
    assert error.value.name == OWN + "NoSuchVM"
    assert clear(client, "banks", "uid:0") == 1
    held(client, "two", "bank-b")
    reload(walled, client, BANKS, "banks")
    held(client, "three", "bank-a")


def test_a_wall_that_comes_while_vms_run(walled: Daemon, client: Client) -> None:
    reload(walled, client, "")
    acquire(client, "web", "bank-a")
    reload(walled, client, BANKS, "banks")
    assert [one["group"] for one in walls(client)["banks"]["history"]] == ["bank-a"]
    client.release("web")
    refused(client, "web", "bank-b")


def test_a_history_that_was_lost(walled: Daemon, client: Client) -> None:
    """What VMs hold when the daemon starts is recorded, whatever the book says."""
    acquire(client, "web", "bank-a")
    walled.stop()
    with sqlite3.connect(walled.book) as book:
        book.execute("DELETE FROM wall_history")
    book.close()
    walled.start()
    client.release("web")
    refused(client, "web", "bank-b")


def test_a_wall_that_is_renamed_or_moved(walled: Daemon, client: Client) -> None:
    held(client, "web", "bank-a")
    reload(walled, client, BANKS.replace("banks", "houses"), "houses")
    assert not walls(client)["banks"]["configured"]
    text = refused(client, "web", "bank-b")
    assert text.startswith("wall 'houses'")
    assert "svirtctl wall clear banks" in text
    reload(walled, client, '[wall.banks]\nclasses = [["bank-a", "bank-b"], ["x"]]\n', "banks")
    held(client, "web", "bank-b")


def test_a_bad_wall_changes_nothing(walled: Daemon, client: Client) -> None:
    configure(walled, BANKS.replace('"bank-b"', '"bank-a"'))
    os.kill(walled.pid, signal.SIGHUP)
    told = wait_for(
        "it is told", lambda: [m for one in records(MessageId.RELOADED)
                               if "kept as it was" in (m := one["MESSAGE"])]
    )  # fmt: skip
    assert "[wall.banks] classes" in told[-1]
    held(client, "web", "bank-a")
    refused(client, "web", "bank-b")


def test_clear(walled: Daemon, client: Client) -> None:
    held(client, "web", "bank-a", uuid=UUID)
    id_ = client.properties("web")["Id"]
    for wall, subject, name, said in (
        ("bank", "web", INVALID, "no wall is named 'bank'"),
        ("banks", "other", OWN + "NoSuchVM", "no VM is named 'other'"),
        ("banks", "uid:0", OWN + "Failed", "nothing was cleared"),
        ("banks", UUID[:-1] + "0", OWN + "Failed", "nothing was cleared"),
    ):
        with nothing_changes(client, walled.folder):
            error = clear_refused(client, wall, subject)
        assert error.name == name
        assert said in error.text
    assert walls(client)["banks"]["entries"] == 2
    acquire(client, "web", "bank-a")
    error = clear_refused(client, "banks", "web")
    assert error.name == OWN + "Failed"
    assert "in group 'bank-a' now" in error.text
    client.release("web")
    assert clear(client, "banks", UUID.upper()) == 2
    told = walls(client)["banks"]
    assert (told["entries"], told["history"]) == (0, [])
    assert {(one["subject"], one["uid"], one["entries"]) for one in told["cleared"]} == {
        (id_, 0, 1),
        (UUID, 0, 1),
    }
    held(client, "web", "bank-b")
    record = records(MessageId.WALL_CLEARED)[-1]
    assert (record["SVIRT_WALL"], record["SVIRT_SUBJECT"]) == ("banks", UUID.upper())
    assert (record["SVIRT_CALLER_UID"], record["PRIORITY"]) == ("0", "5")
    error = client.error("ClearWall", "ssa{sv}", "banks", "web", {"force": Variant("b", True)})
    assert error.name == INVALID


def test_svirtctl(walled: Daemon, client: Client) -> None:
    def ctl(*arguments: str, code: int = 0) -> str:
        done = svirtctl.run(*arguments)
        assert done.returncode == code, done
        return done.stdout if code == 0 else done.stderr

    assert ctl("wall", "list") == (
        "WALL   SCOPE  SIDES                             HISTORY\n"
        "banks  vm     bank-a, bank-a-archive | bank-b  0\n"
    ).replace("SIDES                             H", "SIDES                            H")
    assert ctl("wall", "history") == "Nothing was held behind a wall.\n"
    held(client, "web", "bank-a")
    id_ = client.properties("web")["Id"]
    (row,) = ctl("wall", "history", "--wall", "banks").splitlines()[1:]
    assert row.split()[:4] == ["banks", id_, "bank-a", "web"]
    assert ctl("wall", "history", "--wall", "other") == "Nothing was held behind a wall.\n"
    assert "wall 'banks'" in ctl("acquire", "web", "--group", "bank-b", code=1)
    assert "nothing was cleared" in ctl("wall", "clear", "banks", "uid:7", code=1)
    assert "no VM is named 'x'" in ctl("wall", "clear", "banks", "x", code=3)
    assert ctl("wall", "clear", "banks", "web") == "1 entry of web behind banks forgotten\n"
    document = json.loads(ctl("--json", "wall", "history"))
    (cleared,) = document["walls"][0]["cleared"]
    assert (cleared["subject"], cleared["uid"], cleared["entries"]) == (id_, 0, 1)
    assert json.loads(ctl("wall", "list", "--json"))["walls"] == [
        {
            "name": "banks",
            "scope": "vm",
            "classes": [["bank-a", "bank-a-archive"], ["bank-b"]],
            "configured": True,
            "entries": 0,
        }
    ]
    ctl("acquire", "web", "--group", "bank-b")

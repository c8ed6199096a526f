# SPDX-License-Identifier: LGPL-2.1-or-later
"""Rules about files that an administrator lifts, for the very files that he is shown."""

import os
import shutil
import tempfile
from pathlib import Path
from typing import Any

from svirtd.host.bus import Variant
from tests.attack import DENIED, INVALID, REFUSED
from tests.bus.test_chains import create, top
from tests.bus.test_polkit import NEEDS_DIALOG, World, refused, story
from tests.groups import disk_of
from tests.sandbox import Sandbox
from tests.sandbox.accounts import ANN, BEN, SVIRT_GID
from tests.support import Client, Daemon, image, label, resources, wait_for

ANY_FILE = "org.svirt1.use-any-file"
ACQUIRE = "saa{sv}a{sv}"


def lifting(*rules: str) -> dict[str, Variant]:
    return {"override": Variant("as", list(rules))}


def acquiring(disk: Path, *rules: str) -> list[Any]:
    return ["Acquire", ACQUIRE, "vm", resources(disk), lifting(*rules)]


def status(pid: int) -> dict[str, str]:
    """What the kernel tells of a process."""
    text = Path(f"/proc/{pid}/status").read_text()
    return dict(line.split(":\t", 1) for line in text.splitlines() if ":\t" in line)


def test_another_users_file(sandbox: Sandbox, tmp_path: Path) -> None:
    async def work(world: World) -> None:
        disk = world.disk(BEN, "ben.img")
        try:
            # Without a word of it nobody is asked; what is not there is told of to nobody.
            text = await refused(world.call(ANN, *acquiring(disk)), REFUSED)
            assert f"permission denied for uid {ANN.uid}" in text
            assert world.agent.dialogs.empty()
            # Whether it is there is not told to whoever has not been allowed anything yet.
            asked = world.begin(ANN, *acquiring(disk.with_name("none"), "owner"))
            dialog = await world.agent.shown()
            assert dialog.action == ANY_FILE
            await world.agent.allow(dialog)
            await refused(asked, REFUSED)
            await refused(
                world.call(ANN, *acquiring(disk, "owner"), interactive=False), NEEDS_DIALOG
            )

            asked = world.begin(ANN, *acquiring(disk, "owner"))
            dialog = await world.agent.shown()
            assert dialog.action == ANY_FILE
            assert str(disk) in dialog.message
            world.agent.deny(dialog)
            await refused(asked, DENIED)
            assert label(disk) is None

            asked = world.begin(ANN, *acquiring(disk, "owner"))
            await world.agent.allow(await world.agent.shown())
            await asked
            assert ":svirt_image_t:" in str(label(disk))
            await world.release(ANN, "vm")
            assert label(disk) is None
        finally:
            disk.unlink()

    story(tmp_path, work)


def test_what_was_shown_is_what_is_used(sandbox: Sandbox, tmp_path: Path) -> None:
    """The name that the caller gave leads elsewhere by the time that somebody has allowed it."""

    async def work(world: World) -> None:
        shown, other, link = (world.disk(BEN, "a"), world.disk(BEN, "b"), world.disk(ANN, "link"))
        link.unlink()
        link.symlink_to(shown)
        try:
            asked = world.begin(ANN, *acquiring(link, "owner"))
            dialog = await world.agent.shown()
            assert str(shown) in dialog.message
            link.unlink()
            link.symlink_to(other)
            await world.agent.allow(dialog)
            await asked
            assert ":svirt_image_t:" in str(label(shown))
            assert label(other) is None
            await world.release(ANN, "vm")
            assert label(shown) is None
        finally:
            for path in (shown, other, link):
                path.unlink()

    story(tmp_path, work)


def test_more_than_one_name(sandbox: Sandbox, tmp_path: Path) -> None:
    async def work(world: World) -> None:
        disk = world.disk(ANN, "a")
        twin, spare = disk.with_name("b"), disk.with_name("c")
        os.link(disk, twin)
        try:
            assert "2 hard links" in await refused(world.call(ANN, *acquiring(disk)), REFUSED)
            asked = world.begin(ANN, *acquiring(disk, "links"))
            dialog = await world.agent.shown()
            assert str(disk) in dialog.message
            disk.rename(spare)
            world.disk(ANN, "a")
            await world.agent.allow(dialog)
            assert "another file than the one that was allowed" in await refused(asked, REFUSED)
            disk.unlink()
            spare.rename(disk)
            asked = world.begin(ANN, *acquiring(disk, "links"))
            await world.agent.allow(await world.agent.shown())
            await asked
            assert ":svirt_image_t:" in str(label(twin))
            await world.release(ANN, "vm")
            # The rule about the owner is not lifted by that.
            os.chown(disk, BEN.uid, ANN.gid)
            disk.chmod(0o660)
            asked = world.begin(ANN, *acquiring(disk, "links"))
            await world.agent.allow(await world.agent.shown())
            assert f"belongs to uid {BEN.uid}" in await refused(asked, REFUSED)
        finally:
            for path in (disk, twin):
                path.unlink()

    story(tmp_path, work)


def test_another_users_file_in_a_tree(sandbox: Sandbox, tmp_path: Path) -> None:
    """The rule about the owner is for every entry, whoever owns the directory around it."""

    async def work(world: World) -> None:
        root = world.disk(ANN, "tree")
        root.unlink()
        (root / "in").mkdir(parents=True)
        for name in ("a", "b"):
            image(root / "in" / name, 1)
        for path in (root, *root.rglob("*")):
            os.chown(path, ANN.uid, ANN.gid)
        os.chown(root / "in" / "b", BEN.uid, ANN.gid)
        tree = [{"path": Variant("s", str(root)), "recursive": Variant("b", True)}]
        call: list[Any] = ["Acquire", ACQUIRE, "vm", tree]
        try:
            text = await refused(world.call(ANN, *call, {}), REFUSED)
            assert f"tree/in/b belongs to uid {BEN.uid}" in text
            assert [label(path) for path in (root, *root.rglob("*"))] == [None] * 4

            asked = world.begin(ANN, *call, lifting("owner"))
            dialog = await world.agent.shown()
            assert dialog.action == ANY_FILE
            await world.agent.allow(dialog)
            await asked
            assert ":svirt_image_t:" in str(label(root / "in" / "b"))
            await world.release(ANN, "vm")
            assert [label(path) for path in (root, *root.rglob("*"))] == [None] * 4
        finally:
            shutil.rmtree(root)

    story(tmp_path, work)


def test_no_other_rule_is_lifted(sandbox: Sandbox, tmp_path: Path) -> None:
    async def work(world: World) -> None:
        disk = world.disk(BEN, "a")
        disk.chmod(0o4700)
        try:
            for path, text in ((disk, "setuid or setgid"), (disk.parent, "is a directory"),
                               (Path("/dev/null"), "is a character device")):  # fmt: skip
                asked = world.begin(ANN, *acquiring(path, "owner", "links"))
                await world.agent.allow(await world.agent.shown())
                assert text in await refused(asked, REFUSED)
            await refused(world.call(ANN, *acquiring(disk, "owner", "kind")), INVALID)
        finally:
            disk.unlink()

    story(tmp_path, work)


def test_a_command_runs_as_its_caller_with_the_groups(sandbox: Sandbox, tmp_path: Path) -> None:
    async def work(world: World) -> None:
        disk = world.disk(ANN, "a")
        try:
            argv = ["/bin/sleep", "1000"]
            launch: list[Any] = ["Launch", "sasaa{sv}a{sv}", "vm", argv, resources(disk), {}]
            await world.call(ANN, *launch)
            (pid,) = await world.call(
                ANN, "Get", "ss", "org.svirt1.VM", "MainPID",
                path="/org/svirt1/vm/vm", interface="org.freedesktop.DBus.Properties",
            )  # fmt: skip
            lines = status(pid.value)
            assert lines["Uid"].split() == [str(ANN.uid)] * 4
            assert lines["Gid"].split() == [str(ANN.gid)] * 4
            assert {*lines["Groups"].split()} == {str(ANN.gid), str(SVIRT_GID)}
            await world.release(ANN, "vm")
            script = world.disk(BEN, "script")
            script.chmod(0o700)
            text = await refused(
                world.call(ANN, "Launch", "sasaa{sv}a{sv}", "vm", [str(script)], [], {}), INVALID
            )
            assert "cannot be run: permission denied" in text
            script.unlink()
        finally:
            disk.unlink()

    story(tmp_path, work)


def test_a_lifted_rule_is_not_lifted_for_what_a_header_names(
    sandbox: Sandbox, tmp_path: Path
) -> None:
    folder = Path(tempfile.mkdtemp(dir=sandbox.state))
    folder.chmod(0o755)

    async def work(world: World) -> None:
        mine = world.disk(ANN, "top.qcow2")
        his = disk_of(BEN, folder, mode=0o644)
        create(mine, str(his), "raw")
        os.chown(mine, BEN.uid, BEN.gid)
        try:
            asked = world.begin(ANN, "Acquire", ACQUIRE, "vm", [top(mine)], lifting("owner"))
            dialog = await world.agent.shown()
            assert dialog.action == ANY_FILE
            assert str(his) not in dialog.message
            await world.agent.allow(dialog)
            text = await refused(asked, REFUSED)
            assert f"belongs to uid {BEN.uid}" in text
            assert label(his) is label(mine) is None
        finally:
            mine.unlink()
            shutil.rmtree(folder)

    story(tmp_path, work)


def test_root_needs_nobody(daemon: Daemon, client: Client, tmp_path: Path) -> None:
    disk = image(tmp_path / "a.img")
    os.link(disk, tmp_path / "b.img")
    os.chown(disk, BEN.uid, BEN.gid)
    assert "2 hard links" in client.error("Acquire", ACQUIRE, "vm", resources(disk), {}).text
    client.call("Acquire", ACQUIRE, "vm", resources(disk), lifting("links"))
    assert ":svirt_image_t:" in str(label(tmp_path / "b.img"))
    client.release("vm")
    wait_for("it is back", lambda: label(disk) is None)
    error = client.error("Plan", ACQUIRE, "vm", resources(disk), lifting("all"))
    assert "override 'all'; expected 'owner' or 'links'" in error.text

# SPDX-License-Identifier: LGPL-2.1-or-later
"""Who may do what: by the real polkitd, with dialogs that a real authentication agent answers."""

import asyncio
import contextlib
import os
import re
import subprocess
from collections.abc import Callable, Coroutine, Iterator
from pathlib import Path
from typing import Any

import pytest

from svirtd.errors import Failed
from svirtd.host.bus import BusError, BusLost, Connection, Variant
from svirtd.host.polkit import Polkit, Verdict
from tests.attack import DENIED, LIMITS
from tests.bus.agent import Agent, connect_as
from tests.fixtures import leftovers
from tests.sandbox import Sandbox, inside
from tests.sandbox.accounts import ANN, BEN, NOBODY, SVIRT_GID, Account, home
from tests.support import DEADLINE_S, MANAGER, NAME, REPO, ROOT, Daemon, image, resources

LAUNCH = "org.svirt1.launch"
BACKUP = "org.svirt1.backup"
OTHERS = "org.svirt1.manage-others"
NEEDS_DIALOG = "org.freedesktop.DBus.Error.InteractiveAuthorizationRequired"
RULES = Path("/etc/polkit-1/rules.d")


def polkitd(*verb: str) -> None:
    subprocess.run(["systemctl", *verb, "polkit.service"], check=True)


# --- the accounts of the sandbox


def test_accounts(sandbox: Sandbox) -> None:
    for account in (ANN, BEN):
        done = subprocess.run(
            ["sh", "-c", "id -un; id -G; echo ~; touch ~/mine"],
            capture_output=True,
            text=True,
            check=True,
            user=account.uid,
            group=account.gid,
            extra_groups=account.groups,
            env={"HOME": str(home(sandbox.state, account)), "PATH": "/usr/bin:/bin"},
        )
        folder = str(home(sandbox.state, account))
        assert done.stdout.split("\n")[:3] == [account.name, f"{account.gid} {SVIRT_GID}", folder]
        os.unlink(f"{folder}/mine")
    other = subprocess.run(["ls", folder], user=ANN.uid, capture_output=True, check=False)
    assert other.returncode != 0


def test_polkit_has_the_projects_actions(sandbox: Sandbox) -> None:
    done = subprocess.run(["pkaction"], capture_output=True, text=True, check=True)
    known = {one for one in done.stdout.split() if one.startswith("org.svirt1.")}
    policy = (REPO / "dbus/org.svirt1.policy").read_text("utf-8")
    assert known == set(re.findall(r'<action id="(.*?)"', policy))


# --- host/polkit.py


def run(work: Coroutine[Any, Any, None]) -> None:
    async def bounded() -> None:
        async with asyncio.timeout(60.0):
            await work

    asyncio.run(bounded())


class Asking:
    """A connection of root's that asks polkit about one of a user's."""

    def __init__(self, root: Connection, user: Connection) -> None:
        self.root = root
        self.user = user
        self.polkit = Polkit(root)

    async def check(
        self, action: str, *, interactive: bool = True, timeout_s: float = 20.0, **details: str
    ) -> Verdict:
        return await self.polkit.check(
            self.user.unique_name, action, details, interactive=interactive, timeout_s=timeout_s
        )


def asking(account: Account, work: Callable[[Asking], Coroutine[Any, Any, None]]) -> None:
    async def connected() -> None:
        root = await Connection.open()
        user = await connect_as(account)
        try:
            await work(Asking(root, user))
        finally:
            user.close()
            root.close()

    run(connected())


@pytest.mark.parametrize(
    ("account", "action", "expected"),
    [
        (ANN, LAUNCH, Verdict.ALLOWED),
        (BEN, LAUNCH, Verdict.ALLOWED),
        (NOBODY, LAUNCH, Verdict.CHALLENGE),
        (ANN, BACKUP, Verdict.CHALLENGE),
        (ANN, OTHERS, Verdict.CHALLENGE),
    ],
)
def test_the_projects_rule(
    sandbox: Sandbox, account: Account, action: str, expected: Verdict
) -> None:
    async def work(asks: Asking) -> None:
        assert await asks.check(action, interactive=False) is expected
        # Nobody is there to show a dialog.
        assert await asks.check(action) is expected

    asking(account, work)


def test_a_dialog_is_answered(sandbox: Sandbox) -> None:
    async def work(asks: Asking) -> None:
        async with Agent.open() as agent:
            answers = [(agent.allow, Verdict.ALLOWED), (agent.deny, Verdict.DENIED)]
            for answer, expected in [*answers, (agent.dismiss, Verdict.DISMISSED)]:
                asked = asyncio.ensure_future(asks.check(OTHERS, user="ann", vm="'x'", owner="ben"))
                dialog = await agent.shown()
                assert dialog.action == OTHERS
                assert dialog.message == (
                    "Authentication is required for ann to manage the virtual machine 'x', which "
                    "belongs to ben"
                )
                done = answer(dialog)
                if done is not None:
                    await done
                assert await asked is expected
            # Without the message's leave there is no dialog.
            assert await asks.check(OTHERS, interactive=False) is Verdict.CHALLENGE
            assert agent.dialogs.empty()

    asking(ANN, work)


def test_a_dialog_is_taken_away(sandbox: Sandbox) -> None:
    async def work(asks: Asking) -> None:
        async with Agent.open() as agent:
            # At the deadline,
            asked = asyncio.ensure_future(asks.check(OTHERS, timeout_s=3.0))
            dialog = await agent.shown()
            assert await asked is Verdict.UNANSWERED
            assert await agent.taken_away() == dialog.cookie
            # and when whoever asked does not want to know any more.
            asked = asyncio.ensure_future(asks.check(OTHERS))
            dialog = await agent.shown()
            asked.cancel()
            with pytest.raises(asyncio.CancelledError):
                await asked
            assert await agent.taken_away() == dialog.cookie

    asking(ANN, work)


def test_an_unknown_action_is_no_answer(sandbox: Sandbox) -> None:
    async def work(asks: Asking) -> None:
        with pytest.raises(Failed, match=r"org\.svirt1\.nonsense is not registered"):
            await asks.check("org.svirt1.nonsense")

    asking(ANN, work)


def test_a_caller_that_has_left_may_nothing(sandbox: Sandbox) -> None:
    """polkit cannot see whose the name was; there was a time when it took it for root's."""

    async def work(asks: Asking) -> None:
        name = asks.user.unique_name
        asks.user.close()
        async with asyncio.timeout(DEADLINE_S):
            while await asks.root.has_owner(name):  # noqa: ASYNC110 -- it is the bus's to notice
                await asyncio.sleep(0.01)
        for interactive in (False, True):
            with pytest.raises(Failed, match="polkit does not say whether this is allowed"):
                await asks.check(LAUNCH, interactive=interactive)

    asking(ANN, work)


@pytest.fixture
def no_polkit(sandbox: Sandbox) -> Iterator[None]:
    """polkit is neither there nor can it be started."""
    polkitd("stop")
    polkitd("mask", "--runtime", "--quiet")
    yield
    polkitd("unmask", "--runtime", "--quiet")


def test_polkit_is_absent(no_polkit: None) -> None:
    async def work(asks: Asking) -> None:
        assert await asks.check(LAUNCH) is Verdict.ABSENT

    asking(ANN, work)


def test_polkit_ends_meanwhile(sandbox: Sandbox) -> None:
    async def work(asks: Asking) -> None:
        async with Agent.open() as agent:
            asked = asyncio.ensure_future(asks.check(OTHERS))
            await agent.shown()
            await asyncio.to_thread(polkitd, "kill", "--signal=KILL")
            with pytest.raises(Failed, match="polkit does not say whether this is allowed"):
                await asked
        # The next one has it started again.
        assert await asks.check(LAUNCH) is Verdict.ALLOWED

    asking(ANN, work)


# --- the daemon


class World:
    """A daemon, an agent that answers dialogs, and users of the daemon on the bus."""

    def __init__(self, daemon: Daemon, agent: Agent, folder: Path) -> None:
        self.daemon = daemon
        self.agent = agent
        self.folder = folder
        self.users: dict[Account, Connection] = {}
        self._connecting = asyncio.Lock()

    async def call(
        self,
        account: Account,
        member: str,
        signature: str,
        *body: Any,
        interactive: bool = True,
        path: str = ROOT,
        interface: str = MANAGER,
    ) -> list[Any]:
        async with self._connecting:
            if account not in self.users:
                self.users[account] = await connect_as(account)
        reply = await self.users[account].call(
            NAME, path, interface, member, signature, body, timeout_s=30.0, interactive=interactive
        )
        return list(reply.body)

    def begin(self, *args: Any, **kwargs: Any) -> asyncio.Task[list[Any]]:
        return asyncio.ensure_future(self.call(*args, **kwargs))

    async def acquire(self, account: Account, name: str, *disks: Path | str) -> None:
        await self.call(account, "Acquire", "saa{sv}a{sv}", name, resources(*disks), {})

    async def release(self, account: Account, name: str) -> None:
        await self.call(account, "Release", "sa{sv}", name, {})

    async def vms(self) -> dict[str, int]:
        """The owner of each VM by name."""
        (rows,) = await self.call(NOBODY, "ListVMs", "")
        return {row[0]: row[3] for row in rows}

    def disk(self, account: Account, name: str) -> Path:
        """A disk of the account's in its home."""
        disk = image(home(inside().state, account) / name)
        os.chown(disk, account.uid, account.gid)
        disk.chmod(0o600)
        return disk

    def leave(self, account: Account) -> None:
        """End the account's connection."""
        self.users.pop(account).close()


async def refused(work: Coroutine[Any, Any, Any] | asyncio.Task[Any], name: str) -> str:
    """The text of the refusal, which has this name."""
    with pytest.raises(BusError) as error:
        await work
    assert error.value.name == name, error.value
    assert error.value.text.isprintable()
    return error.value.text


def story(folder: Path, work: Callable[[World], Coroutine[Any, Any, None]], extra: str = "") -> str:
    """Tell a story in which a daemon of its own appears; returns what it logged."""
    daemon = Daemon(folder / "d", extra=extra)
    daemon.start()

    async def told() -> None:
        async with Agent.open() as agent:
            world = World(daemon, agent, folder)
            try:
                await work(world)
            finally:
                for user in world.users.values():
                    user.close()

    try:
        run(told())
        assert not leftovers(daemon)
    finally:
        code = daemon.stop() if daemon.process is not None else 0
    assert code == 0, daemon.output()
    return daemon.output()


def test_members_of_the_group_have_vms_of_their_own(sandbox: Sandbox, tmp_path: Path) -> None:
    async def work(world: World) -> None:
        disk = world.disk(ANN, "a.img")
        try:
            # More at once than there may be dialogs: no dialog is needed, and none counted.
            names = [f"vm{number}" for number in range(8)]
            await asyncio.gather(*(world.acquire(ANN, name) for name in names))
            await world.acquire(BEN, "bens")
            command = ["/bin/sleep", "1000"]
            await world.call(
                ANN, "Launch", "sasaa{sv}a{sv}", "run", command, resources(disk), {},
                interactive=False,
            )  # fmt: skip
            owners = await world.vms()
            assert owners == {**dict.fromkeys([*names, "run"], ANN.uid), "bens": BEN.uid}
            unit = subprocess_output("systemctl", "show", "--value", "-pUser", "svirt-run.service")
            assert unit == "ann"
            for name in [*names, "run"]:
                await world.release(ANN, name)
            await world.release(BEN, "bens")
            assert world.agent.dialogs.empty()
        finally:
            disk.unlink()

    story(tmp_path, work)


def subprocess_output(*argv: str) -> str:
    return subprocess.run(argv, capture_output=True, text=True, check=True).stdout.strip()


@pytest.mark.parametrize(
    ("member", "signature", "body", "action"),
    [
        ("Acquire", "saa{sv}a{sv}", ["x", [], {}], "acquire"),
        ("Plan", "saa{sv}a{sv}", ["x", [], {}], "acquire"),
        ("Launch", "sasaa{sv}a{sv}", ["x", ["/bin/true"], [], {}], "launch"),
        ("Verify", "ba{sv}", [False, {}], "verify"),
        ("Verify", "ba{sv}", [True, {}], "repair"),
        ("Backup", "a{sv}", [{}], "backup"),
        ("ListWalls", "", [], "verify"),
        ("ClearWall", "ssa{sv}", ["banks", "uid:0", {}], "clear-walls"),
    ],
)
def test_everybody_else_needs_an_administrator(
    sandbox: Sandbox, tmp_path: Path, member: str, signature: str, body: list[Any], action: str
) -> None:
    async def work(world: World) -> None:
        text = await refused(
            world.call(NOBODY, member, signature, *body, interactive=False), NEEDS_DIALOG
        )
        assert f"polkit's action org.svirt1.{action}" in text
        asked = world.begin(NOBODY, member, signature, *body)
        dialog = await world.agent.shown()
        assert dialog.action == f"org.svirt1.{action}"
        # Every name in the text was told.
        assert "$(" not in dialog.message
        world.agent.deny(dialog)
        assert f"refused by polkit's action org.svirt1.{action}" in await refused(asked, DENIED)
        assert await world.vms() == {}

    story(tmp_path, work)


def test_another_users_vm(sandbox: Sandbox, tmp_path: Path) -> None:
    async def work(world: World) -> None:
        await world.acquire(ANN, "x")
        assert await world.vms() == {"x": ANN.uid}
        for member in ("Release", "Forget"):
            call = world.call(BEN, member, "sa{sv}", "x", {}, interactive=False)
            assert "org.svirt1.manage-others" in await refused(call, NEEDS_DIALOG)
        asked = world.begin(BEN, "Release", "sa{sv}", "x", {})
        dialog = await world.agent.shown()
        assert dialog.message == (
            "Authentication is required for 'ben' (uid 60002) to end the virtual machine 'x' of "
            "'ann' (uid 60001)"
        )
        world.agent.dismiss(dialog)
        assert "the dialog was closed" in await refused(asked, DENIED)
        assert await world.vms() == {"x": ANN.uid}
        # The VM is not held meanwhile: its owner does what he likes with it.
        asked = world.begin(BEN, "Release", "sa{sv}", "x", {})
        dialog = await world.agent.shown()
        assert await world.call(ANN, "GetVM", "s", "x")
        await world.agent.allow(dialog)
        await asked
        assert await world.vms() == {}

    story(tmp_path, work)


def test_another_users_account(sandbox: Sandbox, tmp_path: Path) -> None:
    async def work(world: World) -> None:
        options = {"user": Variant("s", "root")}
        argv = ["/bin/sleep", *map(str, range(1000, 1020))]
        arguments: tuple[Any, ...] = ("sasaa{sv}a{sv}", "x", argv, [], options)
        text = await refused(world.call(ANN, "Launch", *arguments, interactive=False), NEEDS_DIALOG)
        assert "org.svirt1.run-as-user" in text
        asked = world.begin(ANN, "Launch", *arguments)
        dialog = await world.agent.shown()
        assert dialog.message == (
            "Authentication is required for 'ann' (uid 60001) to run this as 'root' for the "
            "virtual machine 'x': '/bin/sleep', '1000', '1001', '1002', '1003', '1004', '1005', "
            "'1006' and 13 more"
        )
        world.agent.deny(dialog)
        await refused(asked, DENIED)
        assert await world.vms() == {}
        # Oneself is nobody else, however named.
        options["user"] = Variant("s", str(ANN.uid))
        await world.call(ANN, "Launch", *arguments, interactive=False)
        await world.release(ANN, "x")

    story(tmp_path, work)


@pytest.mark.parametrize("again", [True, False])
def test_the_vm_is_another_one_meanwhile(sandbox: Sandbox, tmp_path: Path, again: bool) -> None:
    """What was allowed was about the VM that was there when the dialog was opened."""

    async def work(world: World) -> None:
        await world.acquire(ANN, "x")
        asked = world.begin(BEN, "Release", "sa{sv}", "x", {})
        dialog = await world.agent.shown()
        await world.release(ANN, "x")
        if again:
            await world.acquire(ANN, "x")
        await world.agent.allow(dialog)
        await refused(asked, "org.svirt1.Error.NoSuchVM")
        if again:
            assert await world.vms() == {"x": ANN.uid}
            await world.release(ANN, "x")

    story(tmp_path, work)


def test_the_caller_leaves_meanwhile(sandbox: Sandbox, tmp_path: Path) -> None:
    async def work(world: World) -> None:
        await world.acquire(ANN, "x")
        asked = world.begin(BEN, "Release", "sa{sv}", "x", {})
        dialog = await world.agent.shown()
        world.leave(BEN)
        assert await world.agent.taken_away() == dialog.cookie
        with pytest.raises(BusLost):
            await asked
        # Too late, whether polkit still knows the dialog or not: the yes is nobody's any more.
        with contextlib.suppress(BusError):
            await world.agent.allow(dialog)
        await asyncio.sleep(0.2)
        assert await world.vms() == {"x": ANN.uid}
        await world.release(ANN, "x")

    story(tmp_path, work)


def test_nobody_answers(sandbox: Sandbox, tmp_path: Path) -> None:
    async def work(world: World) -> None:
        asked = world.begin(NOBODY, "Acquire", "saa{sv}a{sv}", "x", [], {})
        dialog = await world.agent.shown()
        assert "nobody has answered in time" in await refused(asked, DENIED)
        assert await world.agent.taken_away() == dialog.cookie
        assert await world.vms() == {}

    story(tmp_path, work, "[polkit]\ndialog-timeout = 3\n")


def test_too_many_dialogs(sandbox: Sandbox, tmp_path: Path) -> None:
    async def work(world: World) -> None:
        await world.acquire(ANN, "x")
        asked, dialogs = [], []
        for _ in range(2):
            asked.append(world.begin(BEN, "Release", "sa{sv}", "x", {}))
            dialogs.append(await world.agent.shown())
        # Another connection of the same user changes nothing,
        first = world.users.pop(BEN)
        text = await refused(world.release(BEN, "x"), LIMITS)
        assert "[limits] dialogs-per-user = 2" in text
        # and another user is not concerned.
        other = world.begin(NOBODY, "Release", "sa{sv}", "x", {})
        world.agent.deny(await world.agent.shown())
        await refused(other, DENIED)
        for one, dialog in zip(asked, dialogs, strict=True):
            world.agent.dismiss(dialog)
            await refused(one, DENIED)
        asked.append(world.begin(BEN, "Release", "sa{sv}", "x", {}))
        await world.agent.allow(await world.agent.shown())
        await asked[-1]
        first.close()

    story(tmp_path, work, "[limits]\ndialogs-per-user = 2\n")


def test_what_an_administrator_is_shown_is_harmless(sandbox: Sandbox, tmp_path: Path) -> None:
    async def work(world: World) -> None:
        # Control characters are no names for files; what is left can still be made to lie.
        lie = "/home/x', 'y'   Everything is fine. <span size='1'>$(vm) \u05d0\u0435"
        files = [lie, *(f"/{'y' * 3000}/{number}" for number in range(20))]
        asked = world.begin(NOBODY, "Acquire", "saa{sv}a{sv}", "x", resources(*files), {})
        dialog = await world.agent.shown()
        assert dialog.message.isascii()
        assert dialog.message.isprintable()
        assert len(dialog.message) < 1500
        assert not set("<>&") & set(dialog.message)
        assert r"'/home/x\u0027, \u0027y\u0027   Everything is fine. " in dialog.message
        assert "and 13 more" in dialog.message
        assert "$(vm)" not in dialog.message
        world.agent.deny(dialog)
        await refused(asked, DENIED)

    story(tmp_path, work)


def test_the_daemon_stops_meanwhile(sandbox: Sandbox, tmp_path: Path) -> None:
    async def work(world: World) -> None:
        asked = world.begin(NOBODY, "Acquire", "saa{sv}a{sv}", "x", [], {})
        dialog = await world.agent.shown()
        stopped = asyncio.ensure_future(asyncio.to_thread(world.daemon.stop))
        text = await refused(asked, "org.svirt1.Error.Failed")
        assert "svirtd is stopping" in text
        assert await world.agent.taken_away() == dialog.cookie
        # It does not wait for the deadline of the dialog, nor for that of its own end.
        async with asyncio.timeout(10.0):
            assert await stopped == 0

    story(tmp_path, work)


def test_polkit_ends_while_a_call_waits(sandbox: Sandbox, tmp_path: Path) -> None:
    async def work(world: World) -> None:
        asked = world.begin(NOBODY, "Acquire", "saa{sv}a{sv}", "x", [], {})
        await world.agent.shown()
        await asyncio.to_thread(polkitd, "kill", "--signal=KILL")
        text = await refused(asked, "org.svirt1.Error.Failed")
        assert "polkit does not say whether this is allowed" in text
        # It is started again by the next question.
        await world.acquire(ANN, "x")
        await world.release(ANN, "x")

    story(tmp_path, work)


def test_without_polkit_root_and_owners_are_served(sandbox: Sandbox, tmp_path: Path) -> None:
    async def work(world: World) -> None:
        await world.acquire(ANN, "x")
        polkitd("stop")
        polkitd("mask", "--runtime", "--quiet")
        try:
            for account in (ANN, NOBODY):
                for interactive in (True, False):
                    call = world.call(
                        account, "Acquire", "saa{sv}a{sv}", "y", [], {}, interactive=interactive
                    )
                    assert "there is no polkit" in await refused(call, DENIED)
            await world.release(ANN, "x")
            root = Account("root", 0, 0)
            await world.acquire(root, "y")
            await refused(world.release(ANN, "y"), DENIED)
            await world.release(root, "y")
        finally:
            polkitd("unmask", "--runtime", "--quiet")

    story(tmp_path, work)


def test_a_rule_of_the_administrators_comes_first(sandbox: Sandbox, tmp_path: Path) -> None:
    rule = RULES / "10-local.rules"

    async def work(world: World) -> None:
        await world.acquire(ANN, "x")
        text = await refused(world.acquire(BEN, "y"), DENIED)
        assert "refused by polkit's action org.svirt1.acquire" in text
        # What a rule sees of the request.
        await world.release(BEN, "x")

    rule.write_text(
        "polkit.addRule(function(action, subject) {"
        '  if (action.id == "org.svirt1.acquire" && subject.user == "ben")'
        "    return polkit.Result.NO;"
        '  if (action.id == "org.svirt1.manage-others" && action.lookup("vm") == "\'x\'" &&'
        '      action.lookup("owner") == "\'ann\' (uid 60001)")'
        "    return polkit.Result.YES; });"
    )
    try:
        polkitd("restart")
        story(tmp_path, work)
    finally:
        rule.unlink()
        polkitd("restart")

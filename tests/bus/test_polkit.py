# SPDX-License-Identifier: LGPL-2.1-or-later
"""Who may do what: by the real polkitd, with dialogs that a real authentication agent answers."""

import asyncio
import os
import subprocess
from collections.abc import Callable, Coroutine, Iterator
from pathlib import Path
from typing import Any

import pytest

from svirtd.errors import Failed
from svirtd.host.bus import Connection
from svirtd.host.polkit import Polkit, Verdict
from tests.bus.agent import Agent, connect_as
from tests.sandbox import Sandbox
from tests.sandbox.accounts import ANN, BEN, NOBODY, SVIRT_GID, Account, home

LAUNCH = "org.svirt1.launch"
BACKUP = "org.svirt1.backup"
OTHERS = "org.svirt1.manage-others"
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
    assert {LAUNCH, BACKUP, OTHERS} <= set(done.stdout.split())


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
            asked = asyncio.ensure_future(asks.check(OTHERS, timeout_s=1.0))
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
        asks.user.close()
        await asyncio.sleep(0.1)
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

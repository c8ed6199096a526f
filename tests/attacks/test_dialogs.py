# SPDX-License-Identifier: LGPL-2.1-or-later
"""The world changes while an administrator looks at a dialog: what he sees is what he allows.

By the real polkitd, and a real agent. The caller's connection is one of this process, which polkit
takes to be the agent's, with another user's credentials.
"""

import asyncio
import os
from collections.abc import Awaitable, Callable, Coroutine
from pathlib import Path
from typing import Any

from svirtd.host.bus import BusError, Connection, Variant
from tests.attacks.arena import Arena
from tests.attacks.defences import against
from tests.bus.agent import Agent, connect_as
from tests.sandbox.accounts import Account
from tests.support import DEADLINE_S, MANAGER, NAME, ROOT, label, resources

ACQUIRE = "saa{sv}a{sv}"
NO_VM = "org.svirt1.Error.NoSuchVM"


def run(account: Account, deed: Callable[[Agent, Connection], Awaitable[None]]) -> None:
    """Have somebody do something under an agent's eyes."""

    async def main() -> None:
        async with asyncio.timeout(60.0), Agent.open() as agent:
            user = await connect_as(account)
            try:
                await deed(agent, user)
            finally:
                user.close()

    asyncio.run(main())


def asks(user: Connection, member: str, signature: str, *body: Any) -> Coroutine[Any, Any, Any]:
    """A call that allows a dialog."""
    return user.call(
        NAME, ROOT, MANAGER, member, signature, body, timeout_s=DEADLINE_S, interactive=True
    )


@against("what a dialog has shown is what is used")
def test_the_file_is_another_one_meanwhile(arena: Arena, ann: Account) -> None:
    """A link leads to a file that an administrator may give; a moment later, to the secret."""
    harmless, secret = arena.victim(ann), arena.victim(ann)
    name = arena.home(ann) / "disk.img"
    os.symlink(harmless, name)
    shown: list[str] = []

    async def deed(agent: Agent, user: Connection) -> None:
        override = {"override": Variant("as", ["owner"])}
        asking = asyncio.ensure_future(
            asks(user, "Acquire", ACQUIRE, "vm", resources(name), override)
        )
        dialog = await agent.shown()
        shown.append(dialog.message)
        os.unlink(name)
        os.symlink(secret, name)
        await agent.allow(dialog)
        await asking

    run(ann, deed)
    arena.verdict(label(secret) is not None, "another file than the one that was shown")
    assert f"'{harmless}'" in shown[0]
    if not arena.without:
        assert label(harmless) is not None
        arena.root.release("vm")
        assert label(harmless) is None


@against("a VM is meant by its Id")
def test_the_vm_is_another_one_meanwhile(arena: Arena, ann: Account, ben: Account) -> None:
    """It is released and acquired again while somebody decides about the one before."""
    owner = arena.stranger(ann)
    owner.acquire("anns")
    answers: list[str] = []

    async def deed(agent: Agent, user: Connection) -> None:
        asking = asyncio.ensure_future(asks(user, "Release", "sa{sv}", "anns", {}))
        dialog = await agent.shown()
        owner.release("anns")
        owner.acquire("anns")
        await agent.allow(dialog)
        try:
            await asking
        except BusError as error:
            answers.append(error.name)

    run(ben, deed)
    arena.verdict(arena.root.vms() == {}, "the next VM of the name")
    if not arena.without:
        assert answers == [NO_VM]
        owner.release("anns")


def test_the_caller_leaves_meanwhile(arena: Arena, ann: Account, ben: Account) -> None:
    """Nobody is left to have asked: the dialog goes, and nothing is done."""
    owner = arena.stranger(ann)
    owner.acquire("anns")

    async def deed(agent: Agent, user: Connection) -> None:
        asking = asyncio.ensure_future(asks(user, "Release", "sa{sv}", "anns", {}))
        dialog = await agent.shown()
        user.close()
        assert await agent.taken_away() == dialog.cookie
        await asyncio.gather(asking, return_exceptions=True)

    run(ben, deed)
    assert arena.root.vms() == {"anns": "reserved"}
    owner.release("anns")


def test_nothing_of_it_is_there_is_asked_about_all_the_same(arena: Arena, ann: Account) -> None:
    """By whether a dialog comes nobody learns whether a file is there; allowed, it is refused."""
    closed = arena.victim(ann).parent / "closed"
    closed.mkdir(mode=0o700)
    missing = Path(closed / "missing")
    answers: list[BusError] = []

    async def deed(agent: Agent, user: Connection) -> None:
        override = {"override": Variant("as", ["owner"])}
        named = resources(missing)
        asking = asyncio.ensure_future(asks(user, "Acquire", ACQUIRE, "vm", named, override))
        dialog = await agent.shown()
        assert f"'{missing}'" in dialog.message
        await agent.allow(dialog)
        try:
            await asking
        except BusError as error:
            answers.append(error)

    run(ann, deed)
    (refused,) = answers
    assert refused.name == "org.svirt1.Error.ResourceRefused"
    assert arena.root.vms() == {}

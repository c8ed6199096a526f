# SPDX-License-Identifier: LGPL-2.1-or-later
"""Who may do what: what is decided unasked, what polkit is told, and how a no is worded."""

import asyncio
from collections.abc import Mapping
from typing import Any, cast

import pytest

from svirtd.config import Config, Limits
from svirtd.core.model import Caller, Command
from svirtd.engine import dialogs
from svirtd.engine.authorize import POLKIT, About, Action, Authority, refuse_settings
from svirtd.engine.dialogs import Dialogs
from svirtd.errors import (
    AccessDenied,
    Failed,
    InteractiveAuthorizationRequired,
    InvalidArgs,
    LimitsExceeded,
)
from svirtd.host.bus import Connection, Message
from svirtd.host.polkit import Verdict
from tests.authorities import no_second_lock

ROOT = Caller(":1.1", 0)
ANN = Caller(":1.2", 1000)
ASKING = Caller(":1.3", 1000, interactive=True)


class FakeBus:
    """Has every name, and tells of nothing by itself."""

    def __init__(self) -> None:
        self.here = True
        self.watched: list[Any] = []

    async def subscribe(self, *args: Any, **_: Any) -> Any:
        self.watched.append(args[3])
        return lambda: self.watched.remove(args[3])

    async def has_owner(self, _name: str) -> bool:
        return self.here

    def leave(self, name: str) -> None:
        for handler in list(self.watched):
            handler(Message(body=[name, name, ""]))


class FakePolkit:
    """Has one verdict without a dialog; each dialog waits until the test answers it."""

    def __init__(self, verdict: Verdict) -> None:
        self.verdict = verdict
        self.asked: list[tuple[str, str, Mapping[str, str], bool]] = []
        self.dialogs: list[asyncio.Future[Verdict]] = []
        self.taken_away = 0
        self.opened = asyncio.Event()

    async def check(
        self,
        subject: str,
        action: str,
        details: Mapping[str, str],
        *,
        interactive: bool,
        timeout_s: float,
    ) -> Verdict:
        assert timeout_s == (120 if interactive else 25)
        self.asked.append((subject, action, details, interactive))
        if not interactive:
            return self.verdict
        self.dialogs.append(asyncio.get_running_loop().create_future())
        self.opened.set()
        try:
            return await self.dialogs[-1]
        except asyncio.CancelledError:
            self.taken_away += 1
            raise


class World:
    """An Authority on a bus and a polkit of the test's."""

    def __init__(self, verdict: Verdict, monkeypatch: pytest.MonkeyPatch) -> None:
        self.bus = FakeBus()
        self.polkit = FakePolkit(verdict)
        self.config = Config(limits=Limits(dialogs_per_user=2))
        monkeypatch.setattr(dialogs, "Polkit", lambda _bus: self.polkit)
        asks = Dialogs(cast(Connection, self.bus), lambda: self.config)

        async def name_of(uid: int) -> str:
            return f"<{uid}>"

        self.authority = Authority(no_second_lock(), asks, name_of)

    async def until(self, count: int) -> None:
        """Wait for so many dialogs."""
        async with asyncio.timeout(20.0):
            while len(self.polkit.dialogs) < count:
                await self.polkit.opened.wait()
                self.polkit.opened.clear()


def told(world: World, action: Action, about: About, caller: Caller = ANN) -> Mapping[str, str]:
    asyncio.run(world.authority.authorize(caller, action, about=about))
    return world.polkit.asked[-1][2]


@pytest.mark.parametrize("action", Action)
def test_root_is_not_asked_about(action: Action, monkeypatch: pytest.MonkeyPatch) -> None:
    world = World(Verdict.DENIED, monkeypatch)
    asyncio.run(world.authority.authorize(ROOT, action))
    assert world.polkit.asked == []


@pytest.mark.parametrize("action", set(Action) - {Action.READ})
@pytest.mark.parametrize("verdict", set(Verdict) - {Verdict.ALLOWED})
def test_whatever_is_no_yes_is_a_no(
    action: Action, verdict: Verdict, monkeypatch: pytest.MonkeyPatch
) -> None:
    world = World(verdict, monkeypatch)
    with pytest.raises((AccessDenied, InteractiveAuthorizationRequired)) as refused:
        asyncio.run(world.authority.authorize(ANN, action, owner_uid=1001))
    assert f"uid 1000 may not {action.value}" in refused.value.text
    assert "as root" in refused.value.text
    assert [one[:2] for one in world.polkit.asked] == [(":1.2", POLKIT[action])]
    wants_dialog = isinstance(refused.value, InteractiveAuthorizationRequired)
    assert wants_dialog == (verdict is Verdict.CHALLENGE)


@pytest.mark.parametrize("action", [Action.RELEASE, Action.FORGET, Action.CONNECT, Action.CANCEL])
def test_the_owner_is_not_asked_about(action: Action, monkeypatch: pytest.MonkeyPatch) -> None:
    world = World(Verdict.DENIED, monkeypatch)
    asyncio.run(world.authority.authorize(ANN, action, owner_uid=1000))
    with pytest.raises(AccessDenied):
        asyncio.run(world.authority.authorize(ANN, action, owner_uid=1001))
    # Nobody's is not everybody's.
    with pytest.raises(AccessDenied):
        asyncio.run(world.authority.authorize(ANN, action))


@pytest.mark.parametrize("action", [Action.LAUNCH, Action.USE_ANY_FILE, Action.BACKUP])
def test_owning_something_gives_nothing_else(
    action: Action, monkeypatch: pytest.MonkeyPatch
) -> None:
    world = World(Verdict.DENIED, monkeypatch)
    with pytest.raises(AccessDenied):
        asyncio.run(world.authority.authorize(ANN, action, owner_uid=1000))


def test_what_polkit_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    world = World(Verdict.ALLOWED, monkeypatch)
    about = About("web", ["/home/a/x.img", "/y\n\nAll is well <b>"], "ben", ["/bin/true", "-x"])
    assert told(world, Action.LAUNCH, about) == {
        "user": "<1000>",
        "vm": "'web'",
        "files": "'/home/a/x.img', '/y\\u000a\\u000aAll is well \\u003cb\\u003e'",
        "account": "'ben'",
        "command": "'/bin/true', '-x'",
        "group": "",
        "wall": "",
        "level": "",
        "unit": "",
        "owner": "",
    }
    details = told(world, Action.MANAGE_GROUPS, About(group="g\n"))
    assert details["group"] == "'g\\u000a'"
    details = told(world, Action.CLEAR_WALLS, About(vm="uid:0", wall="banks\n"))
    assert (details["vm"], details["wall"]) == ("'uid:0'", "'banks\\u000a'")
    asyncio.run(world.authority.authorize(ANN, Action.RELEASE, owner_uid=1001))
    details = world.polkit.asked[-1][2]
    assert details["owner"] == "<1001>"
    assert details["polkit.message"].endswith("to end the virtual machine $(vm) of $(owner)")


def test_what_polkit_is_told_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    world = World(Verdict.ALLOWED, monkeypatch)
    files = [f"/{'x' * 4000}/{number}" for number in range(256)]
    details = told(world, Action.LAUNCH, About("v" * 10_000, files))
    assert all(len(value) < 1200 and value.isprintable() for value in details.values())
    assert details["files"].endswith("/7' and 248 more")
    # Root's power over files is given for files that were seen only.
    told(world, Action.USE_ANY_FILE, About("web", files[:8]))
    with pytest.raises(InvalidArgs, match="256 files that are not yours"):
        told(world, Action.USE_ANY_FILE, About("web", files))


def test_no_dialog_without_the_callers_leave(monkeypatch: pytest.MonkeyPatch) -> None:
    world = World(Verdict.CHALLENGE, monkeypatch)
    with pytest.raises(InteractiveAuthorizationRequired):
        asyncio.run(world.authority.authorize(ANN, Action.LAUNCH))
    assert [one[3] for one in world.polkit.asked] == [False]


def test_no_dialog_where_none_is_needed(monkeypatch: pytest.MonkeyPatch) -> None:
    """So that who may anyway is not counted, however many calls he makes at once."""
    world = World(Verdict.ALLOWED, monkeypatch)

    async def many() -> None:
        await asyncio.gather(*(world.authority.authorize(ASKING, Action.LAUNCH) for _ in range(20)))

    asyncio.run(many())
    assert not any(one[3] for one in world.polkit.asked)


def test_dialogs_of_one_user_are_limited(monkeypatch: pytest.MonkeyPatch) -> None:
    world = World(Verdict.CHALLENGE, monkeypatch)
    other = Caller(":1.9", 1001, interactive=True)

    async def story() -> None:
        def ask(caller: Caller) -> asyncio.Future[None]:
            return asyncio.ensure_future(world.authority.authorize(caller, Action.LAUNCH))

        asks = [ask(ASKING), ask(Caller(":1.4", 1000, interactive=True))]
        await world.until(2)
        with pytest.raises(LimitsExceeded, match=r"dialogs-per-user = 2 dialogs open"):
            await ask(ASKING)
        asks.append(ask(other))
        await world.until(3)
        for dialog in world.polkit.dialogs:
            dialog.set_result(Verdict.ALLOWED)
        await asyncio.gather(*asks)
        # The places are free again.
        again = ask(ASKING)
        await world.until(4)
        world.polkit.dialogs[3].set_result(Verdict.DISMISSED)
        with pytest.raises(AccessDenied, match="closed"):
            await again
        assert world.bus.watched == []

    asyncio.run(story())


def test_a_dialog_ends_with_its_caller_and_with_the_daemon(monkeypatch: pytest.MonkeyPatch) -> None:
    world = World(Verdict.CHALLENGE, monkeypatch)

    async def story() -> None:
        asked = asyncio.ensure_future(world.authority.authorize(ASKING, Action.LAUNCH))
        await world.until(1)
        world.bus.leave(ASKING.unique_name)
        # An answer at the last moment counts for nobody.
        world.polkit.dialogs[0].set_result(Verdict.ALLOWED)
        with pytest.raises(Failed, match="has left the bus"):
            await asked
        asked = asyncio.ensure_future(world.authority.authorize(ASKING, Action.LAUNCH))
        await world.until(2)
        world.authority.end()
        with pytest.raises(Failed, match="svirtd is stopping"):
            await asked
        assert world.polkit.taken_away == 1
        world.bus.here = False
        with pytest.raises(Failed, match="has left the bus"):
            await world.authority.authorize(ASKING, Action.LAUNCH)
        assert world.bus.watched == []

    asyncio.run(story())


@pytest.mark.parametrize(
    ("uid", "properties", "refused"),
    [
        (0, (("OOMScoreAdjust", "i", -1000),), False),
        (1000, (("OOMScoreAdjust", "i", -1),), True),
        (1000, (("MemoryMax", "t", 1), ("OOMScoreAdjust", "i", -1)), True),
        (1000, (("OOMScoreAdjust", "i", 0), ("CPUWeight", "t", 1)), False),
        (1000, (), False),
    ],
)
def test_what_takes_a_capability_is_roots(
    uid: int, properties: tuple[tuple[str, str, object], ...], refused: bool
) -> None:
    command = Command(("/bin/true",), "", (), "", properties)
    if not refused:
        refuse_settings(Caller(":1.1", uid), command)
        assert uid == 0 or "-" not in repr(properties)
        return
    with pytest.raises(AccessDenied, match="OOMScoreAdjust -1"):
        refuse_settings(Caller(":1.1", uid), command)

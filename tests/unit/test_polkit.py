# SPDX-License-Identifier: LGPL-2.1-or-later
"""What is no answer of polkit's is not taken for one."""

import asyncio
from typing import Any, cast

import pytest

from svirtd.errors import Failed
from svirtd.host.bus import BusError, BusLost, Connection, Message, MessageType
from svirtd.host.polkit import Polkit, Verdict


class FakeBus:
    """Answers a call with what it is given and keeps what is sent."""

    def __init__(self, answer: Message | Exception) -> None:
        self.answer = answer
        self.sent: list[Message] = []
        self.called: list[Any] = []

    async def call(self, *args: Any, **kwargs: Any) -> Message:
        self.called.append(args)
        if isinstance(self.answer, Exception):
            raise self.answer
        return self.answer

    def send(self, msg: Message) -> None:
        self.sent.append(msg)


def check(bus: FakeBus) -> Verdict:
    polkit = Polkit(cast(Connection, bus))
    asked = polkit.check(":1.2", "org.svirt1.launch", {}, interactive=True, timeout_s=1.0)
    return asyncio.run(asked)


def answer(signature: str, *body: Any) -> Message:
    return Message(MessageType.METHOD_RETURN, signature=signature, body=list(body))


@pytest.mark.parametrize(
    ("authorized", "challenge", "details", "expected"),
    [
        (True, False, {}, Verdict.ALLOWED),
        (False, False, {}, Verdict.DENIED),
        (False, True, {}, Verdict.CHALLENGE),
        (False, False, {"polkit.dismissed": "true"}, Verdict.DISMISSED),
    ],
)
def test_verdicts(
    authorized: bool, challenge: bool, details: dict[str, str], expected: Verdict
) -> None:
    assert check(FakeBus(answer("(bba{ss})", [authorized, challenge, details]))) is expected


@pytest.mark.parametrize("other", [answer(""), answer("b", True), answer("bba{ss}", True, True)])
def test_another_shape_is_no_answer(other: Message) -> None:
    with pytest.raises(Failed, match="expected '\\(bba\\{ss\\}\\)'"):
        check(FakeBus(other))


@pytest.mark.parametrize(
    "name",
    [
        "org.freedesktop.DBus.Error.NoReply",
        "org.freedesktop.DBus.Error.AccessDenied",
        "org.freedesktop.DBus.Error.NameHasNoOwner",
        "org.freedesktop.PolicyKit1.Error.Failed",
        "org.freedesktop.PolicyKit1.Error.Cancelled",
    ],
)
def test_an_error_is_no_answer(name: str) -> None:
    with pytest.raises(Failed, match="polkit does not say whether this is allowed"):
        check(FakeBus(BusError(name, "why")))


def test_without_polkit() -> None:
    error = BusError("org.freedesktop.DBus.Error.ServiceUnknown", "no such name")
    assert check(FakeBus(error)) is Verdict.ABSENT


def test_late_and_lost() -> None:
    bus = FakeBus(TimeoutError())
    assert check(bus) is Verdict.UNANSWERED
    (cancel,) = bus.sent
    cancellation = bus.called[0][5][4]
    assert (cancel.member, cancel.body) == ("CancelCheckAuthorization", [cancellation])
    lost = FakeBus(BusLost("gone"))
    with pytest.raises(BusLost):
        check(lost)


def test_every_question_can_be_cancelled_apart() -> None:
    bus = FakeBus(answer("(bba{ss})", [True, False, {}]))
    polkit = Polkit(cast(Connection, bus))

    async def twice() -> None:
        for _ in range(2):
            await polkit.check(":1.2", "x", {}, interactive=False, timeout_s=1.0)

    asyncio.run(twice())
    assert len({args[5][4] for args in bus.called}) == 2
    assert [args[5][3] for args in bus.called] == [0, 0]

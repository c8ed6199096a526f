# SPDX-License-Identifier: LGPL-2.1-or-later
"""What is dropped unread: calls of who floods, that want no answer and bring no descriptor."""

import time

import pytest

from svirtd.host.mute import Muted
from tests.attack import method_call

SENDER = ":1.42"


def call(
    sender: str, *, flags: int = 1, kind: int = 1, order: str = "<", fds: bool = False
) -> bytes:
    size = len(sender).to_bytes(4, "little" if order == "<" else "big")
    extra = b"\x07\x01s\0" + size + sender.encode() + b"\0"
    if fds:
        one = (1).to_bytes(4, "little" if order == "<" else "big")
        extra += b"\0" * (-len(extra) % 8) + b"\x09\x01u\0" + one
    body = sender.encode() * 3
    return method_call(
        7, "org.svirt1", "/org/svirt1", "org.svirt1.Manager", "ListVMs", "", body, order=order,
        flags=flags, kind=kind, extra=extra,
    )  # fmt: skip


@pytest.mark.parametrize("order", ["<", ">"])
def test_what_is_dropped(order: str) -> None:
    muted = Muted()
    assert not muted
    muted.add(SENDER)
    assert muted
    assert muted.drops(call(SENDER, order=order))
    for other in (":1.4", ":1.420", ":1.43", "1.42", ":11.42"):
        assert not muted.drops(call(other, order=order)), other
    # One that wants an answer is answered, and what is no call may be an answer to us.
    assert not muted.drops(call(SENDER, flags=0, order=order))
    assert not muted.drops(call(SENDER, kind=2, order=order))
    # Its descriptors have come with it: whoever drops it unread would take them for another's.
    assert not muted.drops(call(SENDER, fds=True, order=order))


def test_it_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    now_s = 100.0
    monkeypatch.setattr(time, "monotonic", lambda: now_s)
    muted = Muted()
    muted.add(SENDER)
    muted.add(":1.7")
    now_s += 0.15
    assert muted
    muted.add(":1.7")
    now_s += 0.15
    assert muted
    assert not muted.drops(call(SENDER))
    assert muted.drops(call(":1.7"))
    now_s += 0.15
    assert not muted

# SPDX-License-Identifier: LGPL-2.1-or-later
"""Matrix over the bus, on a kernel that cannot be asked: the algebra answers, and says so."""

from pathlib import Path
from typing import Any

import pytest

from svirtd.host.bus import BusError, Variant
from tests.support import Client, Daemon, image, unwrap


def matrix(client: Client) -> dict[tuple[str, str], dict[str, Any]]:
    (cells,) = client.call("Matrix", "a{sv}", {})
    told = [dict(unwrap(one)) for one in cells]
    return {(one["vm"], one["object"]): one for one in told}


def test_nothing_to_ask(daemon: Daemon, client: Client) -> None:
    assert matrix(client) == {}


def test_two_vms(daemon: Daemon, client: Client, tmp_path: Path) -> None:
    ours, theirs = image(tmp_path / "a.img"), image(tmp_path / "b.img")
    client.acquire("one", ours)
    client.acquire("two", theirs)
    told = matrix(client)
    assert set(told) == {
        ("one", str(ours)),
        ("one", str(theirs)),
        ("two", str(ours)),
        ("two", str(theirs)),
        ("one", "two"),
        ("two", "one"),
    }
    own, other = told["one", str(ours)], told["one", str(theirs)]
    assert own["granted"] == own["allowed"] == ["append", "read", "write"]
    assert other["granted"] == other["allowed"] == told["one", "two"]["allowed"] == []
    assert {one["by"] for one in told.values()} == {"algebra"}
    assert {one["kind"] for one in told.values()} == {"vm", "resource"}
    assert all(one["surplus"] == one["shortfall"] == [] for one in told.values())
    client.release("one")
    assert set(matrix(client)) == {("two", str(theirs))}
    client.release("two")


def test_options_are_refused(daemon: Daemon, client: Client) -> None:
    with pytest.raises(BusError) as refused:
        client.call("Matrix", "a{sv}", {"repair": Variant("b", True)})
    assert refused.value.name == "org.freedesktop.DBus.Error.InvalidArgs"
    assert "'repair'" in refused.value.text


def test_more_than_can_be_answered(daemon: Daemon, client: Client, tmp_path: Path) -> None:
    """A hundred and one VMs make 10,100 questions about each other."""
    names = [f"vm{number}" for number in range(101)]
    for name in names:
        client.call("Acquire", "saa{sv}a{sv}", name, [], {"persistent": Variant("b", True)})
    with pytest.raises(BusError) as refused:
        client.call("Matrix", "a{sv}", {})
    assert refused.value.name == "org.freedesktop.DBus.Error.LimitsExceeded"
    assert "101 VMs and 0 resources make 10100 questions" in refused.value.text
    client.call("Forget", "sa{sv}", names.pop(), {})
    assert len(matrix(client)) == 100 * 99
    for name in names:
        client.call("Forget", "sa{sv}", name, {})

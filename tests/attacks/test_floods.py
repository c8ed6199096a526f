# SPDX-License-Identifier: LGPL-2.1-or-later
"""More of everything than one user should have: calls, connections, descriptors, bytes, VMs."""

import array
import os
import signal
import socket
import struct
import time
from collections import Counter
from typing import Any

from svirtd.host.bus import BusError, Variant
from tests.attack import LIMITS, RawConnection, method_call
from tests.attacks.arena import Arena, tries
from tests.attacks.defences import against
from tests.attacks.messages import Draft
from tests.attacks.stranger import Me
from tests.sandbox.accounts import Account
from tests.support import MANAGER, NAME, PROPERTIES, ROOT, VM, wait_for

ACQUIRE = "saa{sv}a{sv}"
_ADDRESS = "unix:path=/run/dbus/system_bus_socket"


def address() -> str:
    """Where the bus is."""
    return os.environ.get("DBUS_SYSTEM_BUS_ADDRESS", _ADDRESS)


def test_descriptors_by_the_thousand(arena: Arena, ann: Account, ben: Account) -> None:
    """They come with calls that use none; the daemon has them for a moment only."""
    before = arena.fds()
    stranger, other = arena.stranger(ann), arena.stranger(ben)
    stranger.start(_send_descriptors, 60, 16)
    while not stranger.ready():
        other.vms()
    sent = stranger.result()
    assert sent == 60 * 16
    wait_for("they are closed", lambda: arena.fds() <= before + 2)


def _send_descriptors(_me: Me, calls: int, each: int) -> int:
    raw = RawConnection(address())
    with open("/dev/null") as null:
        rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", [null.fileno()] * each))]
        for serial in range(2, 2 + calls):
            announced = b"\x09\x01u\0" + struct.pack("<I", each)
            data = method_call(serial, NAME, ROOT, MANAGER, "ListVMs", extra=announced)
            raw.sock.sendmsg([data], rights)
        answers: set[int] = set()
        while len(answers) < calls:
            answers |= {raw.next_answered()} - {0}
    raw.close()
    assert answers == set(range(2, 2 + calls))
    return calls * each


def test_more_descriptors_than_one_call_may_have(arena: Arena, ann: Account) -> None:
    stranger = arena.stranger(ann)
    before = arena.fds()
    assert stranger.do(_too_many_descriptors)
    assert stranger.vms() == {}
    wait_for("they are closed", lambda: arena.fds() <= before + 2)


def _too_many_descriptors(_me: Me) -> bool:
    """The bus ends whoever sends more than it passes on."""
    raw = RawConnection(address())
    with open("/dev/null") as null:
        rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", [null.fileno()] * 253))]
        announced = b"\x09\x01u\0" + struct.pack("<I", 253)
        raw.sock.sendmsg([method_call(2, NAME, ROOT, MANAGER, "ListVMs", extra=announced)], rights)
        ended = raw.ended()
    raw.close()
    return ended


def test_huge_messages(arena: Arena, ann: Account) -> None:
    """Not read at all: who it is cannot be asked before."""
    stranger = arena.stranger(ann)
    memory = _rss(arena.pid)
    for size in (5 << 20, 20 << 20, 30 << 20):
        refused = stranger.do(_huge, size)
        assert refused[0] == LIMITS
        assert "was not read" in refused[1]
    assert _rss(arena.pid) - memory < 96 << 20
    assert stranger.vms() == {}


def _huge(me: Me, size: int) -> tuple[str, str]:
    try:
        me.client.call("Acquire", ACQUIRE, "vm", [], {"x": Variant("ay", bytes(size))})
    except BusError as error:
        return error.name, error.text
    return "", ""


def _rss(pid: int) -> int:
    with open(f"/proc/{pid}/statm") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def test_many_of_everything_in_one_message(arena: Arena, ann: Account) -> None:
    stranger = arena.stranger(ann)
    path = {"path": Variant("s", "/nowhere")}
    for body in (
        ["vm", [path] * 20_000, {}],
        ["vm", [{f"k{n}": Variant("s", "") for n in range(20_000)}], {}],
        ["vm", [], {f"k{n}": Variant("s", "") for n in range(20_000)}],
        ["vm" * 500_000, [], {}],
        ["vm", [], {"goal": Variant("s", "x" * 1_000_000)}],
    ):
        refused = stranger.error("Acquire", ACQUIRE, *body)
        assert len(refused.text) < 2000
        assert "internal error" not in refused.text
    refused = stranger.error("Launch", "sasaa{sv}a{sv}", "vm", ["/bin/true"] * 100_000, [], {})
    assert refused.name == LIMITS
    assert arena.root.vms() == {}


def test_deeply_nested(arena: Arena, ann: Account) -> None:
    """As deep as a bus lets through, and one deeper, which it does not."""
    stranger = arena.stranger(ann)
    for depth in range(1, 33):
        assert stranger.do(_nested, "a" * depth + "y", depth) == 3
        assert stranger.do(_nested, "(" * depth + "y" + ")" * depth, depth) == 3
    assert stranger.do(_nested, "a" * 33 + "y", 33) == 0
    deep: Any = Variant("s", "x")
    for _ in range(60):
        deep = Variant("v", deep)
    refused = stranger.error("Acquire", ACQUIRE, "vm", [], {"goal": deep})
    assert "has type 'v'" in refused.text


def _nested(_me: Me, signature: str, depth: int) -> int:
    """The type of the answer, 0 if the bus ended us."""
    value: Any = 1
    for _ in range(depth):
        value = [value]
    raw = RawConnection(address())
    raw.sock.sendall(Draft(ROOT, MANAGER, "ListVMs", signature, [value], 0, 1, "<").encode(2))
    try:
        return raw.reply(2)[0]
    except (AssertionError, ConnectionResetError):
        return 0
    finally:
        raw.close()


def test_without_an_interface(arena: Arena, ann: Account) -> None:
    """The bus lets a stranger send listed members only: by their full names."""
    stranger = arena.stranger(ann)
    stranger.acquire("vm")
    for member, signature, values in (
        ("ListVMs", "", []),
        ("Release", "sa{sv}", ["vm", []]),
        ("Set", "ssv", [VM, "State", ("s", "x")]),
        ("Verify", "ba{sv}", [True, []]),
    ):
        answer = stranger.do(_raw_call, "", member, signature, values)
        assert b"AccessDenied" in answer
    assert arena.root.vms() == {"vm": "reserved"}
    stranger.release("vm")


def _raw_call(_me: Me, interface: str, member: str, signature: str, values: list[Any]) -> bytes:
    raw = RawConnection(address())
    raw.sock.sendall(Draft(ROOT, interface, member, signature, values, 0, 1, "<").encode(2))
    answer = raw.reply(2)[1]
    raw.close()
    return answer


def test_no_reply_wanted(arena: Arena, ann: Account, ben: Account) -> None:
    """Who wants no answer is asked the same questions."""
    owner, stranger = arena.stranger(ann), arena.stranger(ben)
    owner.acquire("vm")
    assert stranger.do(_quietly, [("Release", "sa{sv}", ["vm", []])] * 200) == [300]
    assert owner.properties("vm")["Name"] == "vm"
    owner.do(_quietly, [("Release", "sa{sv}", ["vm", []])])
    wait_for("its owner's counts", lambda: arena.root.vms() == {})


def _quietly(_me: Me, calls: list[tuple[str, str, list[Any]]]) -> list[int]:
    """Send calls that want no reply, and one that does; the serials that were answered."""
    raw = RawConnection(address())
    for serial, (member, signature, values) in enumerate(calls, 2):
        raw.sock.sendall(Draft(ROOT, MANAGER, member, signature, values, 1, 1, "<").encode(serial))
    raw.sock.sendall(Draft(ROOT, MANAGER, "ListVMs", "", [], 0, 1, "<").encode(300))
    answered = raw.answered_until(300)
    raw.close()
    return answered


@against("one user has a bounded part of what is under way")
def test_calls_of_one_user_over_many_connections(arena: Arena, ann: Account, ben: Account) -> None:
    """Limits for each sender alone would be none: senders are free."""
    stranger, other = arena.stranger(ann), arena.stranger(ben)
    # All of it waits before the first is looked at, however slowly a busy machine lets it be sent.
    os.kill(arena.pid, signal.SIGSTOP)
    try:
        stranger.do(_flood, 24, 120)
    finally:
        os.kill(arena.pid, signal.SIGCONT)
    stranger.start(_flooded, 120)
    refused = 0
    while not stranger.ready():
        refused += tries(other, "ListVMs") == LIMITS
    answers = stranger.result()
    won = answers["answered"] > 0 and not answers["per-user"]
    arena.verdict(won, f"one user's calls: {dict(answers)}")
    # Nothing of that is anybody else's trouble.
    assert arena.without or refused == 0


# Of the stranger's process: what it has sent calls over, from one deed to the next.
_over: list[RawConnection] = []


def _flood(_me: Me, connections: int, calls: int) -> None:
    """Send calls over many connections at once; returns when the bus has them all."""
    _over.extend(RawConnection(address()) for _ in range(connections))
    block = b"".join(
        method_call(serial, NAME, ROOT, PROPERTIES, "GetAll", "s", struct.pack("<I", 0) + b"\0")
        for serial in range(2, 2 + calls)
    )
    for raw in _over:
        raw.sock.sendall(block)
    # The bus takes what one connection sends in its order.
    bus = "org.freedesktop.DBus"
    for raw in _over:
        last = 2 + calls
        raw.sock.sendall(method_call(last, bus, "/org/freedesktop/DBus", bus, "GetId"))
        assert raw.reply(last)[0] == 2


def _flooded(_me: Me, calls: int) -> Counter[str]:
    """Count how the calls were answered."""
    answers: Counter[str] = Counter()
    for raw in _over:
        for serial in range(2, 2 + calls):
            kind, data = raw.reply(serial)
            if kind == 2:
                answers["answered"] += 1
            elif LIMITS.encode() in data:
                answers["limit"] += 1
                answers["per-user"] += b"pending-calls-per-user" in data
            else:
                answers[repr(data)] += 1
        raw.close()
    _over.clear()
    return answers


@against("one user has a bounded part of the book")
def test_squatting(arena: Arena, ann: Account, ben: Account) -> None:
    """Names and sets are everybody's: one user cannot take them all."""
    stranger = arena.stranger(ann)
    made, refused = stranger.do(_squat, 80)
    arena.verdict(made >= 80, f"{made} VMs of one user")
    if arena.without:
        return
    assert "vms-per-user" in refused
    other = arena.stranger(ben)
    other.acquire("bens")
    other.release("bens")
    stranger.do(_unsquat, made)


def _squat(me: Me, wanted: int) -> tuple[int, str]:
    for number in range(wanted):
        try:
            me.client.acquire(f"squat{number}")
        except BusError as error:
            if error.name != LIMITS:
                raise
            return number, error.text
    return wanted, ""


def _unsquat(me: Me, count: int) -> None:
    for number in range(count):
        me.client.release(f"squat{number}")


@against("one user has a bounded part of the book")
def test_sets_left_in_quarantine(arena: Arena, ann: Account, ben: Account) -> None:
    """A set that a moved file still carries is given to nobody: in the end none would be left."""
    stranger = arena.stranger(ann)
    arena.moved = True
    made, refused = stranger.do(_leave_labels, str(arena.home(ann)), 80)
    arena.verdict(made >= 80, f"{made} sets in quarantine for one user")
    assert arena.root.manager()["PairsQuarantined"] == made
    if not arena.without:
        assert refused.startswith(LIMITS)
        assert "vms-per-user" in refused
        assert arena.root.vms() == {}
        other = arena.stranger(ben)
        other.acquire("bens")
        other.release("bens")


def _leave_labels(me: Me, folder: str, wanted: int) -> tuple[int, str]:
    """Take disks, move each away while it is held, and put another one in its place."""
    for number in range(wanted):
        path = f"{folder}/disk"
        with open(path, "wb") as disk:
            disk.truncate(4096)
        try:
            me.client.acquire("vm", path)
        except BusError as error:
            return number, f"{error.name}: {error.text}"
        os.rename(path, f"{folder}/{number}")
        with open(path, "wb"):
            pass
        me.client.release("vm")
    return wanted, ""


def test_connections_that_come_and_go(arena: Arena, ann: Account, ben: Account) -> None:
    """Each is looked up once and forgotten: what the daemon keeps of callers is bounded."""
    stranger, other = arena.stranger(ann), arena.stranger(ben)
    memory = _rss(arena.pid)
    stranger.start(_come_and_go, 1500)
    while not stranger.ready():
        other.vms()
        time.sleep(0.02)
    assert stranger.result() == 1500
    assert _rss(arena.pid) - memory < 32 << 20


def _come_and_go(_me: Me, times: int) -> int:
    done = 0
    for _ in range(times):
        raw = RawConnection(address())
        raw.sock.sendall(method_call(2, NAME, ROOT, MANAGER, "ListVMs"))
        done += raw.reply(2)[0] == 2
        raw.close()
    return done

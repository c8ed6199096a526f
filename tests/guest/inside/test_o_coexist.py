# SPDX-License-Identifier: LGPL-2.1-or-later
"""libvirt's VMs and podman's containers beside svirtd's: no set of one is within another's."""

import itertools
import threading
from collections.abc import Iterator
from typing import Final

import pytest

from svirtd.core.mcs import parse_categories
from svirtd.host.bus import BusError, Variant
from tests.guest.inside import others
from tests.guest.inside.audit import Audit
from tests.guest.inside.conftest import configuring, systemctl
from tests.guest.inside.others import CONTAINER, Container, Domain
from tests.guest.inside.test_f_drift import verify
from tests.guest.inside.vms import Captive, categories, disk
from tests.support import GROUP, PROPERTIES, ROOT, VM, Client, label, unwrap

OBJECTS: Final = "org.freedesktop.DBus.ObjectManager"
EXHAUSTED: Final = "org.svirt1.Error.PoolExhausted"
# Few enough that whoever draws meets what the others have; fewer libvirt refuses to draw from.
SMALL: Final = "c0.c8"
GROUPS: Final = "c768.c770"
PAIRS: Final = frozenset(
    frozenset(pair) for pair in itertools.combinations(sorted(parse_categories(SMALL)), 2)
)
DRAWS: Final = 200
AT_ONCE: Final = 20
_PAUSE_S: Final = 3.0


def free(foreign: list[frozenset[int]]) -> set[frozenset[int]]:
    """The pairs of the small pool that give nobody access to what is another's."""
    return {pair for pair in PAIRS if not any(pair <= one or one <= pair for one in foreign)}


def names() -> Iterator[str]:
    return (f"vm{number}" for number in itertools.count())


def acquire_all(client: Client, new: Iterator[str]) -> dict[str, frozenset[int]]:
    """Acquire until there is nothing left; returns the VMs and their pairs."""
    found: dict[str, frozenset[int]] = {}
    while True:
        name = next(new)
        try:
            client.call("Acquire", "saa{sv}a{sv}", name, [], {})
        except BusError as error:
            if error.name != EXHAUSTED:
                raise
            return found
        found[name] = categories(client.properties(name)["ProcessContext"])


def drawn_by_all(client: Client) -> list[frozenset[int]]:
    """The pair of every VM, asked for at once: asking each takes longer than its draw."""
    (tree,) = client.call("GetManagedObjects", interface=OBJECTS)
    vms = [interfaces[VM] for interfaces in unwrap(tree).values() if VM in interfaces]
    return [categories(str(vm["ProcessContext"])) for vm in vms]


def foreign_contexts(client: Client) -> set[str]:
    return {one["found"] for one in verify(client) if one["kind"] == "foreign"}


class Coming:
    """Containers that come and go, as their owner pleases."""

    def __init__(self) -> None:
        self.seen: set[frozenset[int]] = set()
        self.error: BaseException | None = None
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._work)
        self._thread.start()

    def _work(self) -> None:
        try:
            while not self._stop.is_set():
                one = Container("coming")
                self.seen.add(one.categories)
                one.end()
                # Each costs the machine more than all the draws meanwhile.
                self._stop.wait(_PAUSE_S)
        except BaseException as error:  # noqa: BLE001 -- raised by stop()
            self.error = error

    def stop(self) -> None:
        self._stop.set()
        self._thread.join()
        if self.error is not None:
            raise self.error


def test_many_draws_among_many_foreign_sets(client: Client, audit: Audit) -> None:
    """The pools as they come, sets as libvirt and podman draw them from all categories."""
    theirs = Domain("theirs")
    there: list[Container | Domain] = [theirs, Container("a"), Container("b")]
    coming = Coming()
    drawn: list[frozenset[int]] = []
    try:
        while len(drawn) < DRAWS:
            some = [f"vm{number}" for number in range(AT_ONCE)]
            for name in some:
                client.call("Acquire", "saa{sv}a{sv}", name, [], {})
            drawn += drawn_by_all(client)
            assert len(drawn) % AT_ONCE == 0
            for name in some:
                client.release(name)
    finally:
        coming.stop()
        try:
            for pair in drawn:
                assert not [one for one in there if pair <= one.categories]
                assert not [one for one in there if one.categories <= pair]
            assert foreign_contexts(client) == {one.context for one in there}
        finally:
            others.end(there)
            audit.leave_out(theirs.context)
    assert len(set(drawn)) == DRAWS
    assert coming.seen
    assert not coming.seen & set(drawn)
    print(f"coexistence: {DRAWS} draws, {len(coming.seen)} containers came and went meanwhile")


def test_a_container_that_takes_a_running_vms_set(client: Client) -> None:
    """Who asks nobody cannot be refused: the conflict is found, with both names."""
    vm = Captive(client, "a", disk("a"))
    level = vm.context.split(":", 3)[3]
    # The same set, and one that has more.
    for more in ("", ",c900"):
        container = Container("taker", f"{level}{more}")
        try:
            (finding,) = verify(client)
            assert (finding["kind"], finding["vm"]) == ("conflict", "a")
            assert finding["path"] == f"/proc/{container.pid}"
            assert finding["found"].startswith(f"{CONTAINER}:")
            assert "VM 'a'" in finding["reason"]
        finally:
            container.end()
        assert verify(client) == []
    vm.end()


@pytest.fixture(scope="module")
def small() -> Iterator[None]:
    """Pools so small that whoever draws meets what the others have; for the tests at the end."""
    with configuring() as write:
        write(f'[labels]\nprivate = "{SMALL}"\ngroups = "{GROUPS}"\n')
        systemctl("restart", "svirtd.service")
        yield


def test_every_pair_but_those_that_meet_a_foreign_set(
    client: Client, audit: Audit, small: None
) -> None:
    """A set of three has pairs within it, a single category is within pairs: both ways count."""
    with others.libvirt_draws_from(SMALL):
        there: list[Container | Domain] = []
        try:
            theirs = Domain("theirs")
            there.append(theirs)
            there += [Container("wide", "s0:c0.c2"), Container("narrow", "s0:c5")]
            sets = [one.categories for one in there]
            assert len(theirs.categories) == 2
            assert theirs.categories in PAIRS
            assert sets[1:] == [frozenset({0, 1, 2}), frozenset({5})]

            new = names()
            given = acquire_all(client, new)
            assert sorted(map(sorted, given.values())) == sorted(map(sorted, free(sets)))
            assert foreign_contexts(client) == {one.context for one in there}
            (listed,) = client.call("ListForeign")
            told = {one["context"]: one for one in unwrap(listed)}
            assert {one.context for one in there} <= set(told)
            assert told[theirs.context]["name"].startswith("qemu-system")
            assert {one["processes"] > 0 for one in told.values()} == {True}
            assert not {client.properties(name)["ProcessContext"] for name in given} & set(told)

            # What a foreign process kept back is handed out when it is gone, and not before.
            while there:
                there.pop().end()
                sets.pop()
                more = acquire_all(client, new)
                assert not set(more.values()) & set(given.values())
                given |= more
                assert sorted(map(sorted, given.values())) == sorted(map(sorted, free(sets)))
            assert set(given.values()) == PAIRS
            print(f"coexistence: {len(PAIRS)} pairs, all handed out once the others had gone")
            # Its QEMU may have looked for who has started it.
            audit.leave_out(theirs.context)
        finally:
            others.end(there)
            for name in client.vms():
                client.release(name)


def category_of(client: Client, group: str) -> int:
    path = f"{ROOT}/group/{group}"
    (values,) = client.call("GetAll", "s", GROUP, path=path, interface=PROPERTIES)
    (number,) = parse_categories(str(unwrap(values)["Category"]))
    return number


def test_a_group_and_a_foreign_process_with_its_category(client: Client, small: None) -> None:
    """One category is all that a group's resources ask for: others must not have it."""
    groups: list[str] = []

    def create(name: str) -> int:
        client.call("CreateGroup", "sa{sv}", name, {})
        groups.append(name)
        return category_of(client, name)

    there = [Container("pair", "s0:c5,c768"), Container("one", "s0:c769")]
    try:
        # Both are stepped over, though one has a private category besides.
        assert create("g") == 770
        refused = client.error("CreateGroup", "sa{sv}", "h", {})
        assert refused.name == EXHAUSTED
        there.pop().end()
        assert create("h") == 769

        # One that comes later, and asks nobody, is told; whoever shares with it is refused.
        there.append(Container("late", "s0:c6,c770"))
        (found,) = [one for one in verify(client) if one["kind"] == "conflict"]
        assert found["path"] == f"/proc/{there[-1].pid}"
        assert "group 'g'" in found["reason"]
        member = {"groups": Variant("as", ["g"])}
        of_group = {"access": Variant("s", "group"), "group": Variant("s", "g")}
        named = [{"path": Variant("s", str(disk("a"))), **of_group}]
        for resources in ([], named):
            refused = client.error("Acquire", "saa{sv}a{sv}", "vm", resources, member)
            assert refused.name == "org.svirt1.Error.Drift"
            assert "c770 of group 'g'" in refused.text
        client.call("Acquire", "saa{sv}a{sv}", "vm", [], {"groups": Variant("as", ["h"])})
        client.release("vm")

        there.pop().end()
        client.call("Acquire", "saa{sv}a{sv}", "vm", named, member)
        assert categories(str(label("/srv/vm/a.img"))) == {770}
        client.release("vm")
    finally:
        others.end(there)
        for name in groups:
            client.call("DeleteGroup", "sa{sv}", name, {})

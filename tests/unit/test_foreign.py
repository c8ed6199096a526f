# SPDX-License-Identifier: LGPL-2.1-or-later
"""Sets that others use: which are in the way of a draw, and which are not."""

import os
from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st

from svirtd.core import foreign
from svirtd.core.model import Process
from svirtd.host import processes

PRIVATE = frozenset(range(768))
category_sets = st.frozensets(st.integers(0, 1023), max_size=6)


def test_sets_of_processes() -> None:
    contexts = [
        "u:r:svirt_t:s0:c1,c2",
        "u:r:container_t:s0:c3,c4",
        "u:r:container_t:s0:c3,c4",
        "u:r:sshd_t:s0",
        "u:r:unconfined_t:s0-s0:c0.c1023",
        "kernel",
        "",
    ]
    processes = [Process(number, context) for number, context in enumerate(contexts)]
    assert foreign.sets(processes, PRIVATE) == {frozenset({1, 2}), frozenset({3, 4})}


def test_sets_by_context_are_those_of_nobody_here() -> None:
    contexts = {
        7: "u:r:container_t:s0:c3,c4",
        9: "u:r:svirt_t:s0:c1,c2",
        11: "u:r:container_t:s0:c3,c4",
        12: "u:r:svirt_t:s0:c1,c5",
        13: "u:r:sshd_t:s0",
        14: "u:r:unconfined_t:s0-s0:c0.c1023",
        15: "",
    }
    processes = [Process(pid, context) for pid, context in contexts.items()]
    assert foreign.by_context(processes, {contexts[9]}, PRIVATE) == [
        foreign.ForeignSet(contexts[7], frozenset({3, 4}), (7, 11)),
        foreign.ForeignSet(contexts[12], frozenset({1, 5}), (12,)),
    ]


def test_who_has_every_private_category_oversees_all() -> None:
    all_of_them = Process(1, "u:r:svirt_t:s0:c0.c767")
    most = Process(2, "u:r:svirt_t:s0:c0.c766")
    assert foreign.sets([all_of_them, most], PRIVATE) == {frozenset(range(767))}


@given(pair=st.frozensets(st.integers(0, 767), min_size=2, max_size=2), other=category_sets)
def test_overlap_is_access_of_one_to_the_others(
    pair: frozenset[int], other: frozenset[int]
) -> None:
    """A process may use an object whose categories it has all: asked both ways."""
    theirs_ours, ours_theirs = other >= pair, pair >= other
    assert foreign.overlaps(pair, frozenset({other})) == (theirs_ours or ours_theirs)


def test_a_shared_category_is_no_overlap() -> None:
    assert not foreign.overlaps(frozenset({1, 2}), frozenset({frozenset({2, 3})}))
    assert not foreign.overlaps(frozenset({1, 2}), frozenset())


def test_the_unit_of_a_process() -> None:
    scope = "machine.slice/libpod-1.scope"
    assert processes.unit_of(f"0::/{scope}/container\n") == "libpod-1.scope"
    assert processes.unit_of("0::/system.slice/a.service\n") == "a.service"
    assert processes.unit_of(f"1:name=systemd:/x.scope\n0::/{scope}\n") == "libpod-1.scope"
    assert processes.unit_of("0::/user.slice/x.scope/y.service/z\n") == "y.service"
    for text in ("", "0::/\n", "0::/init\n", "12:cpu:/a.service\n"):
        assert processes.unit_of(text) == ""


def test_a_process_of_ours() -> None:
    facts = processes.facts(os.getpid())
    assert facts is not None
    assert facts.uid == os.getuid()
    assert facts.name == Path("/proc/self/comm").read_text().strip()
    assert processes.facts(2**22 + 1) is None

# SPDX-License-Identifier: LGPL-2.1-or-later
"""The steps of a random history as hypothesis draws them; histories.py says what each comes to.

Which steps can be drawn never depends on what came before, or a history that ends at a fail point
could not be drawn again.
"""

from dataclasses import dataclass
from typing import Final

from hypothesis import strategies as st

from svirtd.failpoints import Point
from tests.crash import model
from tests.crash.histories_life import FILES, USER_HOME, VIRT_IMAGE
from tests.crash.model import Want

ROOTS: Final = ("t0", "t1")
LEAVES: Final = ("t0/x", "t0/s/y", "t1/x", "t1/y")
NAMES: Final = (*FILES, "g0", "g1")
VMS: Final = ("a", "b", "c", "d")
ENROLLED: Final = "u"
DOMAINS: Final = ("l", "m")
LABELS: Final = (
    None,
    USER_HOME,
    VIRT_IMAGE,
    model.CONTENT,
    "system_u:object_r:etc_t:s0",
    f"{model.IMAGE}:c700,c701",
    f"{model.CONTENT}:c700,c701",
    f"{model.CONTENT}:c0,c1",
)


@dataclass(frozen=True, slots=True)
class Ask:
    """Acquire, Launch, or Plan with or without an Acquire behind it."""

    what: str
    vm: str
    wants: tuple[Want, ...]
    persistent: bool
    slot: int | None
    insist: bool
    cut: str


@dataclass(frozen=True, slots=True)
class Lease:
    """An Acquire, or Launch, for a moment: of all that is wanted, or of the first alone; `at_end`
    says what becomes of a VM that runs, and the daemon may be away by then."""

    ask: Ask
    at_end: str
    every: bool
    away: bool


@dataclass(frozen=True, slots=True)
class GiveBack:
    """Release or Forget."""

    what: str
    vm: str
    insist: bool
    cut: str


@dataclass(frozen=True, slots=True)
class Domain:
    """libvirt starts a domain that is down, or ends it, and comes so far with it; or it does one
    thing only."""

    what: str
    name: str
    wants: tuple[Want, ...]
    far: int
    insist: bool
    cut: str


@dataclass(frozen=True, slots=True)
class Unit:
    """The administrator's unit is started if it is down, else ended, or the like."""

    what: str
    vm: str
    wants: tuple[Want, ...]
    insist: bool
    cut: str


@dataclass(frozen=True, slots=True)
class End:
    """A VM's process is killed, or a caller leaves; a daemon that is away stays so."""

    what: str
    vm: str
    slot: int
    cut: str


@dataclass(frozen=True, slots=True)
class Service:
    """The daemon is killed, stopped, or started (again)."""

    what: str
    again: bool
    cut: str


@dataclass(frozen=True, slots=True)
class Relabel:
    """By a third party: to this label, or to that of the file of this name."""

    name: str
    label: str | None


@dataclass(frozen=True, slots=True)
class Disturb:
    """What else third parties do to files."""

    what: str
    name: str
    to: str
    keep_label: bool


@dataclass(frozen=True, slots=True)
class Refuse:
    """A file becomes immutable or mutable again; without a name, a mount read-only."""

    name: str | None
    on: bool


@dataclass(frozen=True, slots=True)
class Groups:
    """A group is made or deleted, granted to a VM or not any more, or a VM joins it or leaves it
    for its next start."""

    what: str
    vm: str
    group: str
    insist: bool
    cut: str


@dataclass(frozen=True, slots=True)
class Change:
    """A VM that is up gets one more file, or loses one; `resource` is the N-th that it has."""

    what: str
    vm: str
    want: Want
    id: str
    resource: int
    insist: bool
    cut: str


Step = (
    Ask
    | Lease
    | Change
    | Domain
    | Unit
    | GiveBack
    | Groups
    | End
    | Service
    | Relabel
    | Disturb
    | Refuse
)
# Each with the group that shares it.
_ACCESSES: Final = (
    ("group", "g"),
    ("exclusive", ""),
    ("readonly", ""),
    ("group", "g"),
    ("readonly", "g"),
    ("group", "h"),
    ("public", ""),
    ("public", ""),
)
_groups = st.sampled_from(("g", "g", "h"))
_names = st.sampled_from((*FILES, *NAMES))
_vms = st.sampled_from(VMS)
# In the middle: the ends of a range are drawn more often.
_insist = st.sampled_from([False] * 5 + [True] + [False] * 6)
_want = st.builds(
    lambda folder, name, access, fd: Want(f"{folder}/{name}", access[0], fd, access[1]),
    st.sampled_from(["disks", "disks", "view"]),
    _names,
    st.sampled_from(_ACCESSES),
    st.sampled_from([False, False, False, True]),
)
_tree = st.builds(
    lambda name, access: Want(f"disks/{name}", access[0], group=access[1], tree=True),
    st.sampled_from(ROOTS),
    st.sampled_from(_ACCESSES),
)
_chain = st.builds(
    lambda name, access: Want(f"disks/{name}", access[0], group=access[1], chain=True),
    _names,
    st.sampled_from(_ACCESSES),
)
_kinds: Final = (_want, _tree, _want, _chain, _chain, _want)
_wants = st.lists(
    st.integers(0, len(_kinds) - 1).flatmap(lambda place: _kinds[place]), min_size=1, max_size=3
).map(tuple)
# What third parties do something to.
_theirs = st.one_of(_names, st.sampled_from(LEAVES))
# Where a daemon is to end: at the N-th time that it reaches a point.
_deaths = st.builds(
    "{}@{}=kill".format, st.sampled_from([str(point) for point in Point]), st.integers(1, 6)
)
_cuts = st.one_of(st.just(""), st.just(""), _deaths)
# One rule with all of them: hypothesis leaves out rules at random, and would leave too few.
_asks = st.builds(
    Ask,
    st.sampled_from(["Acquire", "Acquire", "Launch", "Launch", "Plan", "Plan and Acquire"]),
    _vms,
    _wants,
    st.booleans(),
    st.sampled_from([None, None, 0, 1]),
    _insist,
    _cuts,
)
_leases = st.builds(
    Lease,
    st.builds(
        Ask,
        st.sampled_from(["Launch", "Acquire", "Launch"]),
        _vms,
        _wants,
        st.booleans(),
        st.none(),
        _insist,
        _cuts,
    ),
    st.sampled_from(["report", "detach", "stop", "report"]),
    st.booleans(),
    st.sampled_from([False, False, True]),
)
_changes = st.builds(
    Change,
    st.sampled_from(
        ["attach", "replace", "keep", "attach", "detach", "keep alike", "replace alike"]
    ),
    _vms,
    _want,
    st.sampled_from(["", "", "", "r2", "x"]),
    st.integers(0, 3),
    st.sampled_from([False, False, True, False]),
    _cuts,
)
# What libvirt has read by one domain alone carries what it gives to all: it is left out.
_of_domain = st.lists(
    _want.filter(lambda want: want.access != "readonly" or bool(want.group)), min_size=1, max_size=2
).map(tuple)
_domains = st.builds(
    Domain,
    st.sampled_from(["turn", "turn", "turn", "crash", "turn", "follow", "ending", "label", "back"]),
    st.sampled_from((*DOMAINS[:1], *DOMAINS)),
    _of_domain,
    st.sampled_from([2, 2, 2, 1, 2, 0]),
    _insist,
    _cuts,
)
_units = st.builds(
    Unit,
    st.sampled_from(["turn", "turn", "kill", "turn", "enroll", "turn", "unenroll", "keep"]),
    _vms,
    _wants,
    _insist,
    _cuts,
)
_releases = st.builds(
    GiveBack, st.sampled_from(["Release", "Release", "Forget"]), _vms, _insist, _cuts
)
_ends = st.builds(End, st.sampled_from(["VM", "caller"]), _vms, st.sampled_from([0, 1]), _cuts)
_memberships = st.builds(
    Groups,
    st.sampled_from(["revoke", "join", "make", "grant", "delete", "leave", "join", "revoke"]),
    _vms,
    _groups,
    _insist,
    _cuts,
)
_services = st.builds(Service, st.sampled_from(["kill", "stop", "start"]), st.booleans(), _cuts)
_relabels = st.builds(
    Relabel,
    st.one_of(_theirs, st.sampled_from((*ROOTS, "t0/s"))),
    st.one_of(st.sampled_from(LABELS), _names),
)
_disturbances = st.builds(
    Disturb,
    st.sampled_from(["delete", "make", "replace", "rename", "rename", "link"]),
    _theirs,
    _names,
    st.booleans(),
)
_refusals = st.builds(Refuse, st.one_of(st.none(), _theirs), st.sampled_from([True, True, False]))
# Drawn by their places: of strategies that are alike one_of() takes one.
_TABLE: Final = (
    *(_domains, _changes, _asks, _units, _ends, _disturbances, _memberships, _services),
    *(_asks, _changes, _relabels, _domains, _refusals, _asks, _disturbances, _releases),
    *(_units, _changes, _memberships, _leases, _asks, _domains),
)
steps: st.SearchStrategy[Step] = st.integers(0, len(_TABLE) - 1).flatmap(
    lambda place: _TABLE[place]
)

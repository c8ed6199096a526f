# SPDX-License-Identifier: LGPL-2.1-or-later
"""The things svirtd speaks of, as plain values. No I/O, no behaviour beyond small derivations."""

import enum
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

from svirtd.core.filesystems import Mount
from svirtd.core.groups import AtEnd
from svirtd.core.mcs import Context


class Access(enum.StrEnum):
    """How a VM uses a resource."""

    EXCLUSIVE = "exclusive"
    GROUP = "group"
    READONLY = "readonly"
    PUBLIC = "public"

    @property
    def writes(self) -> bool:
        """Whether the VM may write the resource."""
        return self in (Access.EXCLUSIVE, Access.GROUP)


class State(enum.StrEnum):
    """Where a VM is in its life; the contract words each."""

    RESERVED = "reserved"
    LABELLED = "labelled"
    RUNNING = "running"
    RELEASING = "releasing"
    FAILED = "failed"


class Lifetime(enum.StrEnum):
    """What ends a VM's labels besides Release."""

    RELEASE = "release"
    CALLER = "caller"


class Labeller(enum.StrEnum):
    """Who sets the labels that the book says for a VM, and gives the earlier ones back."""

    SVIRTD = ""
    LIBVIRT = "libvirt"


class Format(enum.StrEnum):
    """What is looked for behind a resource: nothing, or the files that a qcow2 image lies over."""

    RAW = "raw"
    QCOW2 = "qcow2"


class Backing(enum.StrEnum):
    """How the files under an overlay are labelled."""

    PUBLIC = "public"
    GROUP = "group"
    PRIVATE = "private"


class Override(enum.StrEnum):
    """A rule about objects that a request may have lifted, by whoever may do that."""

    OWNER = "owner"
    LINKS = "links"


class Mode(enum.StrEnum):
    """What the kernel does with labels."""

    ENFORCING = "enforcing"
    PERMISSIVE = "permissive"
    DISABLED = "disabled"


class OperationKind(enum.StrEnum):
    """What an open entry of the ledger was about to do."""

    ACQUIRE = "acquire"
    LAUNCH = "launch"
    RELEASE = "release"
    ATTACH = "attach"
    DETACH = "detach"


@dataclass(frozen=True, slots=True)
class Caller:
    """Who sent a request, by the bus's word. `pid` is for the log, never for a decision.

    `groups` are all of the process's groups when it connected, None where the bus does not tell.
    `label` is its SELinux context, empty where it has none. `interactive`: this message allows that
    somebody is asked to authenticate.
    """

    unique_name: str
    uid: int
    pid: int = 0
    label: str = ""
    groups: tuple[int, ...] | None = None
    interactive: bool = False


@dataclass(frozen=True, slots=True, order=True)
class Identity:
    """Device and inode: what a file is under whatever name, link or mount it is reached."""

    dev: int
    ino: int

    def __str__(self) -> str:
        return f"device {self.dev:#x} inode {self.ino}"


class Kind(enum.StrEnum):
    """What an opened object is."""

    FILE = "regular file"
    BLOCK = "block device"
    DIRECTORY = "directory"
    CHARACTER = "character device"
    FIFO = "fifo"
    SOCKET = "socket"
    LINK = "symbolic link"
    OTHER = "object of an unknown kind"


@dataclass(frozen=True, slots=True)
class Terms:
    """How a resource is to be held, beyond the access.

    `id` is what the request calls it. `group`: labelled by that group's category. `level`: empty
    for the VM's own. `until_us`: when the VM is to lose it (0: never), and `at_end` how. `takes`:
    the id of the resource over which it is the overlay. `reads`: what the access lets others write
    is only read by this VM, whose domain writes none of it. `format` and `backing` say what lies
    under it, `backing_group` whose that is; `part_of` is the id of the resource under which it lies
    itself, and `below` the image that named it: not the caller did. `recursive`: a directory with
    all that is in it.
    """

    id: str = ""
    group: str = ""
    level: str = ""
    until_us: int = 0
    at_end: AtEnd = AtEnd.REPORT
    takes: str = ""
    reads: bool = False
    format: Format = Format.RAW
    backing: Backing = Backing.PUBLIC
    backing_group: str = ""
    part_of: str = ""
    below: str = ""
    recursive: bool = False


@dataclass(frozen=True, slots=True)
class ResourceRequest:
    """One resource as the caller named it: by path, or by a descriptor of its own."""

    path: str | None
    fd: int | None
    access: Access
    terms: Terms = Terms()

    @property
    def named(self) -> str:
        """The resource in the caller's words, for messages."""
        own = self.path if self.path is not None else "the passed descriptor"
        return f"{own} (which {self.terms.below} lies over)" if self.terms.below else own

    @property
    def opens(self) -> Access:
        """The access whose rights a caller has to have: no more than what the VM gets."""
        return Access.READONLY if self.terms.reads else self.access


@dataclass(frozen=True, slots=True)
class Request:
    """What Acquire, Launch and Plan ask for, checked for form but not yet against the book.

    `categories` are those that a VM which the book does not know has had elsewhere, and keeps.
    """

    name: str
    resources: tuple[ResourceRequest, ...]
    goal: str
    uuid: str
    persistent: bool
    lifetime: Lifetime
    overrides: frozenset[Override]
    groups: tuple[str, ...] = ()
    level: str = ""
    labeller: Labeller = Labeller.SVIRTD
    categories: str = ""


@dataclass(frozen=True, slots=True)
class Command:
    """What Launch starts, and how. `properties` are (systemd property, signature, value)."""

    argv: tuple[str, ...]
    user: str
    environment: tuple[str, ...]
    working_directory: str
    properties: tuple[tuple[str, str, object], ...]


@dataclass(frozen=True, slots=True)
class Seen:
    """An opened object as it was found: identity, kind, links, label, owner, and where it lies.

    `path` is the daemon's own name for it, under which it can be found again; `label` is None
    where the object carries none. `device` is the number of the device that a node stands for.
    """

    named: str
    access: Access
    path: str
    identity: Identity
    kind: Kind
    links: int
    setid: bool
    label: str | None
    owner_uid: int
    mount: Mount
    terms: Terms = Terms()
    device: int = 0


@dataclass(frozen=True, slots=True)
class VM:
    """A VM of the book.

    `groups` are those whose categories its processes have in this run, `lasting` those that it will
    be in at each start to come. `enrolled` is the administrator's unit that has its label.
    """

    id: str
    name: str
    owner_uid: int
    state: State
    reason: str
    goal: str
    uuid: str
    rank: int
    categories: str
    process_context: str
    image_context: str
    unit: str
    main_pid: int
    runtime_dir: str
    persistent: bool
    lifetime: Lifetime
    caller: str
    created_us: int
    groups: tuple[str, ...] = ()
    lasting: tuple[str, ...] = ()
    labeller: Labeller = Labeller.SVIRTD
    enrolled: str = ""


@dataclass(frozen=True, slots=True)
class Hold:
    """One VM's use of one object. `label` is what svirtd set, `original` what it found.

    A hold that was entered again from what runs has no known original. `owner_uid` is the VM's.
    `group`: labelled by that group's category. `name` is what the request calls the object,
    `digest` what was in it when the VM got it, `until_us` when the VM loses it (0: never). `number`
    tells a VM's holds apart, in the order in which it got them; `part_of` is the name of the one
    under which this lies; `device` the number of the device that a node stands for.
    """

    vm_id: str
    vm_name: str
    identity: Identity
    path: str
    access: Access
    label: str
    original: str | None
    original_known: bool = True
    owner_uid: int = 0
    group: str = ""
    name: str = ""
    digest: str = ""
    until_us: int = 0
    at_end: AtEnd = AtEnd.REPORT
    number: int = 0
    part_of: str = ""
    recursive: bool = False
    device: int = 0


@dataclass(frozen=True, slots=True)
class Step:
    """One label change: of the object at `path`, if it still is `identity`, from `old` to `new`;
    `recursive`: and of all that is in it, whatever each entry had, which the book knows."""

    identity: Identity
    path: str
    old: str | None
    new: str | None
    recursive: bool = False

    def undone(self) -> "Step":
        """Return the step that takes this one back."""
        return replace(self, old=self.new, new=self.old)


@dataclass(frozen=True, slots=True)
class Operation:
    """An entry of the ledger that has been opened and not yet closed.

    `numbers` are of the holds that it is about, where it is not about all of the VM's: of those
    that the VM gets as they are, of those that leave it as -1 - number.
    """

    id: int
    kind: OperationKind
    vm: VM
    created: bool
    caller_uid: int
    steps: tuple[Step, ...]
    numbers: tuple[int, ...] = ()

    @property
    def gained(self) -> frozenset[int]:
        """The numbers of the holds that the VM gets by it."""
        return frozenset(number for number in self.numbers if number >= 0)

    @property
    def left(self) -> frozenset[int]:
        """The numbers of the holds that leave the VM by it."""
        return frozenset(-1 - number for number in self.numbers if number < 0)


@dataclass(frozen=True, slots=True)
class Contexts:
    """The base contexts that labels are made from; categories are put on by the plan.

    `image` is of what a VM alone writes, `shared` of what the members of a group write: None where
    that is the same.
    """

    process: Context
    image: Context
    content: Context
    shared: Context | None = None


@dataclass(frozen=True, slots=True)
class Standing:
    """What the kernel does with labels, by which policy, and what that policy fails to do.

    `asks`: the policy knows svirtd's class, so it is asked about callers. `levels`: it has more
    than one sensitivity (MLS), and VMs of different ones are kept apart by them.
    """

    mode: Mode
    policy: str
    policies_loaded: int
    problem: str
    asks: bool = False
    levels: bool = False

    @property
    def enforced(self) -> bool:
        """Whether labels keep VMs apart."""
        return self.mode is Mode.ENFORCING and not self.problem


@dataclass(frozen=True, slots=True)
class Counts:
    """Live figures of the book."""

    vms_active: int
    pairs_in_use: int
    pairs_quarantined: int
    groups: int


@dataclass(frozen=True, slots=True)
class Process:
    """A process and the context that it runs under."""

    pid: int
    context: str


@dataclass(frozen=True, slots=True)
class Snapshot:
    """What the book says about the objects that a request names, and about the devices behind them,
    whatever node they were held by; and who holds the tree that one is in, or something in one."""

    holds: Mapping[Identity, Sequence[Hold]] = field(default_factory=dict)
    devices: Mapping[int, Sequence[Hold]] = field(default_factory=dict)
    around: Mapping[Identity, Hold] = field(default_factory=dict)

# SPDX-License-Identifier: LGPL-2.1-or-later
"""The kernel's side of labels: the only user of libselinux and of the label xattr.

A label is text without its closing NUL, or None where an object has none. On a kernel without
SELinux labels can be written and read all the same; nothing enforces them there.
"""

import contextlib
import errno
import os
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Final

from svirtd.core.mcs import Context, parse_context
from svirtd.core.model import Contexts, Mode
from svirtd.core.separation import Decision
from svirtd.errors import LabelRefused, StartError
from svirtd.failpoints import Point, reach

XATTR: Final = "security.selinux"

# What the reference policy calls them; used where no policy is loaded that could say.
_PROCESS: Final = "system_u:system_r:svirt_t:s0"
_IMAGE: Final = "system_u:object_r:svirt_image_t:s0"
_CONTENT: Final = "system_u:object_r:virt_content_t:s0"

# SELINUX_AVD_FLAGS_PERMISSIVE, which the binding does not have.
_PERMISSIVE_DOMAIN: Final = 0x1
# Policies that may be loaded during one question before it is given up.
_TRIES: Final = 5
# As large as the kernel makes any of its attributes in /proc.
_LABEL_BYTES: Final = 4096
_NO_LABELS: Final = (errno.EOPNOTSUPP, errno.ENOSYS)


def _binding() -> Any:
    """Import the distribution's binding. Raises StartError that names what to install instead."""
    advice = (
        "install python3-selinux with the system's package manager and run svirtd from a virtual "
        "environment made by the system's python3 with --system-site-packages"
    )
    try:
        import selinux  # noqa: PLC0415 -- the check below is the point of importing it here
    except ImportError as error:
        raise StartError(f"the SELinux binding is missing ({error}); {advice}") from error
    # The PyPI package of the same name is a shim that says "SELinux is off" wherever it does not
    # know the distribution, Debian included: a daemon that believes it would enforce nothing.
    if not hasattr(selinux, "security_check_context") or not hasattr(selinux, "fsetfilecon_raw"):
        raise StartError(
            f"the module 'selinux' at {selinux.__file__} is the stub from PyPI, which reports "
            f"SELinux as off: remove it (pip uninstall selinux) and {advice}"
        )
    return selinux


class NoLabels(Exception):
    """The file system of an object cannot keep a label."""


@dataclass(frozen=True, slots=True)
class Status:
    """What the kernel does with labels, and how many policies it has loaded since it booted."""

    mode: Mode
    policies_loaded: int


@dataclass(frozen=True, slots=True)
class Access:
    """What the policy says of one permission: granted or not, and whether it wants that logged.

    `permissive`: the domain or the whole system is, so a denial is only told.
    """

    granted: bool
    permissive: bool
    audited: bool


@dataclass(frozen=True, slots=True)
class _Class:
    """A class by the numbers that one loaded policy has for it; 0 if it has none."""

    policies_loaded: int
    number: int
    bits: dict[str, int]


class Kernel:
    """What this host's kernel and policy say. Thread-safe."""

    def __init__(self) -> None:
        """Raises StartError."""
        self._selinux = _binding()
        self._classes: dict[str, _Class] = {}
        # Whether there is SELinux is settled when the kernel boots.
        self._enabled = bool(self._selinux.is_selinux_enabled())
        if self._enabled:
            try:
                # Without the fallback to netlink, which tells nothing in a network namespace.
                self._selinux.selinux_status_open(0)
            except OSError as error:
                raise StartError(
                    f"the kernel's SELinux status page cannot be read ({error}); svirtd must learn "
                    "when enforcing is switched off"
                ) from error

    def status(self) -> Status:
        """Return what the kernel does with labels now: read from memory, no system call."""
        if not self._enabled:
            return Status(Mode.DISABLED, 0)
        enforcing = self._selinux.selinux_status_getenforce() == 1
        return Status(
            Mode.ENFORCING if enforcing else Mode.PERMISSIVE,
            self._selinux.selinux_status_policyload(),
        )

    def enforcing(self) -> bool:
        """Say whether the kernel acts by its policy now."""
        return self.status().mode is Mode.ENFORCING

    def enabled(self) -> bool:
        """Say whether the kernel has SELinux and a policy at all."""
        return self._enabled

    def decide(self, source: Context, target: Context, kind: str) -> Decision:
        """Return what the loaded policy lets `source` do to `target` of class `kind`.

        Only on a kernel with SELinux. Raises OSError, also for a class that the policy lacks.
        """
        known, decision = self._compute(str(source), str(target), kind)
        return Decision(
            frozenset(name for name, bit in known.bits.items() if decision.allowed & bit),
            permissive=bool(decision.flags & _PERMISSIVE_DOMAIN),
        )

    def has_class(self, kind: str) -> bool:
        """Say whether the loaded policy has a class; False without SELinux."""
        return self._enabled and bool(self._class(kind).number)

    def check_access(self, source: str, target: str, kind: str, permission: str) -> Access:
        """Return what the loaded policy says of one permission, for an object manager.

        Only on a kernel with SELinux. Raises OSError where the policy cannot say, also for a class
        or a permission that it lacks: the library's own check would then allow what the policy
        was built to allow of unknown ones. Nothing is kept between two questions: the library's
        cache never lets go of a context, and each VM has one of its own.
        """
        known, decision = self._compute(source, target, kind)
        bit = known.bits.get(permission)
        if bit is None:
            raise OSError(errno.EINVAL, f"the policy's class {kind} has no permission {permission}")
        granted = bool(decision.allowed & bit)
        enforcing = self._selinux.selinux_status_getenforce() == 1
        return Access(
            granted,
            permissive=not enforcing or bool(decision.flags & _PERMISSIVE_DOMAIN),
            audited=bool((decision.auditallow if granted else decision.auditdeny) & bit),
        )

    def _compute(self, source: str, target: str, kind: str) -> tuple[_Class, Any]:
        """Return what the policy says, and the numbers by which it says that. Raises OSError."""
        decision = self._selinux.av_decision()
        for _ in range(_TRIES):
            known = self._class(kind)
            if not known.number:
                raise OSError(errno.EINVAL, f"the policy has no class {kind}")
            self._selinux.security_compute_av_flags_raw(source, target, known.number, 0, decision)
            # An answer by another policy than the numbers are of would be about something else.
            if known.policies_loaded == self._selinux.selinux_status_policyload():
                return known, decision
        raise OSError(errno.EAGAIN, "one policy after the other is being loaded")

    def _class(self, kind: str) -> _Class:
        loaded = self._selinux.selinux_status_policyload()
        known = self._classes.get(kind)
        if known is None or known.policies_loaded != loaded:
            # The library keeps numbers that another policy may give otherwise.
            self._selinux.selinux_flush_class_cache()
            number = self._selinux.string_to_security_class(kind)
            names = (
                (self._selinux.security_av_perm_to_string(number, 1 << bit), 1 << bit)
                for bit in range(32 if number else 0)
            )
            known = _Class(loaded, number, {name: bit for name, bit in names if name})
            self._classes[kind] = known
        return known

    def policy_name(self) -> str:
        """Return the name of the loaded policy, empty where there is none."""
        if not self._enabled:
            return ""
        result, name = self._selinux.selinux_getpolicytype()
        return str(name) if result == 0 else ""

    def default_contexts(self) -> Contexts:
        """Return the base contexts that the policy's own files name, or the reference policy's.

        Raises StartError if a policy is loaded and its files do not say.
        """
        if not self._enabled:
            return Contexts(parse_context(_PROCESS), parse_context(_IMAGE), parse_context(_CONTENT))
        domains = self._policy_file(self._selinux.selinux_virtual_domain_context_path(), 1)
        images = self._policy_file(self._selinux.selinux_virtual_image_context_path(), 2)
        return Contexts(domains[0], images[0], images[1])

    def _policy_file(self, path: str, lines: int) -> list[Context]:
        try:
            with open(path, encoding="utf-8") as file:
                found = [line.strip() for line in file if line.strip()]
            contexts = [parse_context(text) for text in found[:lines]]
        except (OSError, ValueError) as error:
            raise StartError(f"the policy's file {path} cannot be used: {error}") from error
        if len(contexts) < lines:
            raise StartError(
                f"{path} has {len(contexts)} contexts, svirtd needs {lines}: set process-context, "
                "image-context and content-context under [labels]"
            )
        return contexts

    def check_context(self, context: str) -> None:
        """Have the kernel validate a context before it is written anywhere. Raises LabelRefused.

        Without SELinux there is nobody to ask: the form is checked.
        """
        try:
            parse_context(context)
            if self._enabled:
                self._selinux.security_check_context_raw(context)
        except (ValueError, OSError) as error:
            raise LabelRefused(
                f"the kernel does not accept the context {context} ({error}); check [labels] in "
                "the configuration against the loaded policy"
            ) from error

    def boolean(self, name: str) -> bool:
        """Say whether a boolean of the loaded policy is on; False if it has none, or does not say:
        for what an error tells."""
        try:
            return self._enabled and self._selinux.security_get_boolean_active(name) == 1
        except OSError:
            return False

    def default_label(self, path: str, kind: int) -> str | None:
        """Return what the policy says a file at `path` has by default; None if it says nothing.

        `kind` is the file type of its mode, 0 for any.
        """
        if not self._enabled:
            return None
        selinux = self._selinux
        # Opened each time: what it says changes with the policy, and it is asked rarely.
        handle = selinux.selabel_open(selinux.SELABEL_CTX_FILE, None, 0)
        if handle is None:
            return None
        try:
            result, label = selinux.selabel_lookup_raw(handle, path, kind)
        except OSError:
            return None  # no rule of the policy is about this path
        finally:
            selinux.selabel_close(handle)
        return str(label) if result == 0 and label != "<<none>>" else None

    def read_label(self, fd: int | str) -> str | None:
        """Return the label of an open object, or of a /proc/self/fd path for one held by O_PATH.

        Raises NoLabels or OSError.
        """
        return self._label(fd, follow=True)

    def label_at(self, path: str) -> str | None:
        """Return the label of what is at a path, a link itself included: for reports, since what
        is there can change. Raises NoLabels or OSError."""
        return self._label(path, follow=False)

    def _label(self, what: int | str, *, follow: bool) -> str | None:
        try:
            reach(Point.LABEL_READ)
            # A descriptor is its object, and takes no word on links.
            raw = (
                os.getxattr(what, XATTR)
                if follow
                else os.getxattr(what, XATTR, follow_symlinks=False)
            )
        except OSError as error:
            if error.errno == errno.ENODATA:
                return None
            if error.errno in _NO_LABELS:
                raise NoLabels from error
            raise
        return raw.removesuffix(b"\0").decode("utf-8", "backslashreplace")

    def write_label(self, fd: int | str, label: str | None) -> None:
        """Set the label of an open object, or of one that is held and named as for read_label(), or
        take it away. Raises OSError."""
        reach(Point.LABEL_WRITE)
        if label is None:
            os.removexattr(fd, XATTR)
        else:
            os.setxattr(fd, XATTR, label.encode() + b"\0")

    def process_label(self, pid: int) -> str:
        """Return the label of a process; empty where the kernel has none. Raises OSError."""
        try:
            # Not open(): all processes of the host are asked before a set is drawn.
            fd = os.open(f"/proc/{pid}/attr/current", os.O_RDONLY | os.O_CLOEXEC)
            try:
                return os.read(fd, _LABEL_BYTES).rstrip(b"\0\n").decode("utf-8", "backslashreplace")
            finally:
                os.close(fd)
        except OSError as error:
            # No security module shows this as EINVAL; a process without the file has ended.
            if error.errno == errno.EINVAL:
                return ""
            raise

    @contextlib.contextmanager
    def sockets_at(self, context: str) -> Iterator[None]:
        """Sockets that this thread makes inside get `context`. Raises LabelRefused."""
        if not self._enabled:
            yield
            return
        try:
            self._selinux.setsockcreatecon_raw(context)
        except OSError as error:
            raise LabelRefused(f"no socket can be made as {context}: {error.strerror}") from error
        try:
            yield
        finally:
            self._selinux.setsockcreatecon_raw(None)

    def own_context(self) -> Context | None:
        """Return this process's context, None without SELinux."""
        if not self._enabled:
            return None
        return parse_context(str(self._selinux.getcon_raw()[1]))

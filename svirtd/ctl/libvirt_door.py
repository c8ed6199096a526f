# SPDX-License-Identifier: LGPL-2.1-or-later
"""libvirt by its own library, which svirtctl uses where it is installed. Everything here blocks."""

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from svirtd.ctl.failures import Exit, Failure

if TYPE_CHECKING:
    import libvirt

URI: Final = "qemu:///system"
_ERROR: Final = "Libvirt"


@dataclass(frozen=True, slots=True)
class Event:
    """Something that happened to a domain: it was defined, undefined, or uses other things now."""

    kind: str
    name: str
    uuid: str


class Libvirt:
    """A connection to libvirt. Every method raises Failure."""

    def __init__(self, uri: str = URI) -> None:
        try:
            import libvirt  # noqa: PLC0415 -- where it is not installed the rest works without
        except ImportError:
            raise Failure(
                _ERROR,
                "libvirt's Python binding is not installed (Debian: python3-libvirt, Fedora: "
                "python3-libvirt)",
                Exit.REFUSED,
            ) from None
        self._library = libvirt
        # Otherwise it prints what it raises.
        libvirt.registerErrorHandler(lambda _context, _error: None, None)
        with self._failures(f"libvirt ({uri}) cannot be reached"):
            libvirt.virEventRegisterDefaultImpl()
            self._connection = libvirt.open(uri)

    def close(self) -> None:
        """Hang up."""
        with self._failures("libvirt"):
            self._connection.close()

    def names(self) -> list[str]:
        """Return the names of the domains that libvirt keeps a definition of."""
        flags = self._library.VIR_CONNECT_LIST_DOMAINS_PERSISTENT
        with self._failures("the domains cannot be listed"):
            return sorted(one.name() for one in self._connection.listAllDomains(flags))

    def definition(self, name: str) -> bytes:
        """Return what libvirt will start next time, with all that is secret in it."""
        flags = self._library.VIR_DOMAIN_XML_INACTIVE | self._library.VIR_DOMAIN_XML_SECURE
        with self._failures(f"domain {name!r}"):
            domain = self._connection.lookupByName(name)
            if not domain.isPersistent():
                raise Failure(
                    _ERROR,
                    f"domain {name!r} is transient: there is no definition to write into; define "
                    "it first (virsh define)",
                    Exit.REFUSED,
                )
            return domain.XMLDesc(flags).encode()

    def running(self, name: str) -> bytes | None:
        """Return what a domain that runs is made of, None if it does not run."""
        with self._failures(f"domain {name!r}"):
            domain = self._connection.lookupByName(name)
            return domain.XMLDesc(0).encode() if domain.isActive() else None

    def define(self, text: bytes) -> None:
        """Have libvirt start a domain by this description from now on."""
        with self._failures("the domain's description is not taken"):
            self._connection.defineXMLFlags(text.decode(), 0)

    def listen(self, heard: Callable[[Event | None], None]) -> None:
        """Tell of every event from now on, None at the end of the connection.

        `heard` is called in a thread of its own, which runs until the process ends.
        """
        library, connection = self._library, self._connection

        def lifecycle(
            _connection: object, domain: "libvirt.virDomain", event: int, detail: int, _: object
        ) -> None:
            if event == library.VIR_DOMAIN_EVENT_DEFINED:
                heard(Event("defined", domain.name(), domain.UUIDString()))
            elif (
                event == library.VIR_DOMAIN_EVENT_UNDEFINED
                and detail != library.VIR_DOMAIN_EVENT_UNDEFINED_RENAMED
            ):
                heard(Event("undefined", domain.name(), domain.UUIDString()))

        def changed(_connection: object, domain: "libvirt.virDomain", *_: object) -> None:
            heard(Event("changed", domain.name(), domain.UUIDString()))

        def closed(_connection: object, _reason: int, _: object) -> None:
            heard(None)

        def loop() -> None:
            while True:
                library.virEventRunDefaultImpl()

        with self._failures("libvirt's events"):
            events: dict[int, Callable[..., None]] = {
                library.VIR_DOMAIN_EVENT_ID_LIFECYCLE: lifecycle,
                library.VIR_DOMAIN_EVENT_ID_DEVICE_ADDED: changed,
                library.VIR_DOMAIN_EVENT_ID_DEVICE_REMOVED: changed,
                library.VIR_DOMAIN_EVENT_ID_BLOCK_JOB_2: changed,
            }
            for number, handler in events.items():
                connection.domainEventRegisterAny(None, number, handler, None)
            connection.registerCloseCallback(closed, None)
            threading.Thread(target=loop, name="libvirt", daemon=True).start()
            connection.setKeepAlive(10, 3)

    @contextmanager
    def _failures(self, what: str) -> Iterator[None]:
        try:
            yield
        except self._library.libvirtError as error:
            missing = error.get_error_code() == self._library.VIR_ERR_NO_DOMAIN
            text = f"{what}: {error.get_error_message() or error}"
            raise Failure(_ERROR, text, Exit.NOT_FOUND if missing else Exit.REFUSED) from error

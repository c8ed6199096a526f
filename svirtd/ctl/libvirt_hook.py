# SPDX-License-Identifier: LGPL-2.1-or-later
"""libvirt's hook: it checks a VM in before its start and out at its end.

libvirt runs it for each domain, several times, waits for it, and starts nothing that it refuses. It
never calls libvirt, which waits for it; all it knows is what libvirt hands it, and svirtd's book.
What there is nothing to do about is left before anything large is loaded.
"""

import sys
from collections.abc import Callable, Sequence
from typing import Final

_START: Final = ("start", "begin")
# Of a domain that is not adopted its start alone is looked at.
_OF_ADOPTED: Final = (
    ("started", "begin"),
    ("reconnect", "begin"),
    ("stopped", "end"),
    ("release", "end"),
)


def main() -> int:
    """Do what libvirt's hook is told by its arguments and its input; returns the exit code."""
    return run(sys.argv[1:], sys.stdin.buffer.read)


def run(arguments: Sequence[str], read: Callable[[int], bytes], address: str | None = None) -> int:
    """Do it: `arguments` are domain, operation, sub-operation and one more of libvirt's; `read`
    reads its input, which libvirt does not insist on.
    """
    operation = tuple(arguments[1:3])
    if operation not in (_START, *_OF_ADOPTED):
        return 0
    from svirtd.core.domains import described  # noqa: PLC0415 -- see the module's text
    from svirtd.core.xml_text import BYTES_MAX  # noqa: PLC0415

    text = read(BYTES_MAX + 1)
    try:
        domain = described(text)
    except ValueError as error:
        why = f"the description of domain {arguments[0]!r} cannot be used: {error}"
    else:
        if operation in _OF_ADOPTED and domain.mark is None:
            return 0
        from svirtd.ctl import libvirt_checks  # noqa: PLC0415 -- see the module's text

        why = libvirt_checks.check(operation, domain, address)
    if why:
        from svirtd.ctl.libvirt_checks import tell  # noqa: PLC0415 -- see the module's text

        tell(why)
    return 1 if why else 0

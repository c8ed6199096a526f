# SPDX-License-Identifier: LGPL-2.1-or-later
"""Errors that say nothing of what was asked for: the daemon itself has run out of something."""

import errno
import os
from typing import Final

from svirtd.errors import LimitsExceeded

_SCARCE: Final = {
    errno.EMFILE: "raise LimitNOFILE= of svirtd.service",
    errno.ENFILE: "raise fs.file-max of this host",
    errno.ENOMEM: "free memory on this host",
}


def scarcity(error: Exception) -> LimitsExceeded | None:
    """Return the refusal that an error of the daemon's own makes, None for every other."""
    if not isinstance(error, OSError) or error.errno not in _SCARCE:
        return None
    return LimitsExceeded(
        f"svirtd itself has run out ({error.strerror}); try later, or {_SCARCE[error.errno]}"
    )


def refuse_scarcity(error: OSError) -> None:
    """Raise LimitsExceeded if an error is of the daemon's own; return otherwise."""
    refusal = scarcity(error)
    if refusal is not None:
        raise refusal from error


def refuse_without_descriptor() -> None:
    """Raise LimitsExceeded if no descriptor is left: some libraries do not tell that from "no"."""
    try:
        os.close(os.open("/", os.O_PATH | os.O_CLOEXEC))
    except OSError as error:
        refuse_scarcity(error)

# SPDX-License-Identifier: LGPL-2.1-or-later
"""Tells the service manager how the daemon is. The only user of systemd.daemon."""

import os
import time

from systemd import daemon


def ready(status: str) -> None:
    """The daemon serves requests."""
    daemon.notify(f"READY=1\nSTATUS={status}")


def status(text: str) -> None:
    """A line for `systemctl status`."""
    daemon.notify(f"STATUS={text}")


def reloading() -> None:
    """The configuration is being read again; followed by ready()."""
    daemon.notify(
        f"RELOADING=1\nMONOTONIC_USEC={time.clock_gettime_ns(time.CLOCK_MONOTONIC) // 1000}"
    )


def stopping() -> None:
    """The daemon takes no new requests."""
    daemon.notify("STOPPING=1\nSTATUS=finishing what is under way")


def watchdog() -> None:
    """The daemon is alive: its book was read and its bus answered."""
    daemon.notify("WATCHDOG=1")


def watchdog_interval_s() -> float:
    """Return how often to call watchdog(): a third of what the manager asks for, 0 if it does not.

    What has to be seen to beforehand may take as long again.
    """
    usec = os.environ.get("WATCHDOG_USEC", "")
    pid = os.environ.get("WATCHDOG_PID", "")
    if not usec.isdigit() or (pid and pid != str(os.getpid())):
        return 0.0
    return int(usec) / 3_000_000

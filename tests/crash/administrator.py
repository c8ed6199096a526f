# SPDX-License-Identifier: LGPL-2.1-or-later
"""Services of an administrator's that are enrolled, as far as the daemon takes part in them.

What their drop-ins have svirtctl tell the daemon is told by busctl, which takes a hundredth of the
time.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

from svirtd.host.bus import BusError
from tests.enrolled import UNITS
from tests.support import MANAGER, NAME, PROPERTIES, ROOT, wait_for

PREFIX: Final = "of-administrator-"
_UNIT: Final = "org.freedesktop.systemd1.Unit"
_TELL: Final = f"+busctl --auto-start=no --timeout=20 call {NAME} {ROOT} {MANAGER}"
_UNDER_WAY: Final = ("activating", "deactivating", "reloading")


class Administrator:
    """Writes unit files, starts and stops services. `systemd` asks systemd."""

    def __init__(self, systemd: Callable[..., list[Any]]) -> None:
        self._systemd = systemd
        self._files: list[Path] = []

    @staticmethod
    def unit(name: str) -> str:
        """The service of a VM. Each is new to systemd, which reads its file when it is started."""
        return f"{PREFIX}{name}.service"

    def write(self, name: str, command: str, context: str) -> None:
        """Write a service's file, with what its drop-in would say."""
        file = UNITS / self.unit(name)
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(
            "[Unit]\nCollectMode=inactive-or-failed\n[Service]\nType=exec\n"
            f"ExecStart={command}\nSELinuxContext={context}\n"
            f"ExecStartPre={_TELL} StartEnrolled sa{{sv}} %n 0\n"
            f"ExecStopPost={_TELL} EndEnrolled sa{{sv}} %n 0\n",
            "utf-8",
        )
        self._files.append(file)

    def start(self, name: str) -> bool:
        """Start a service; says whether it runs."""
        self._systemd("StartUnit", "ss", self.unit(name), "replace")
        return self._state_at_last(name) == "active"

    def stop(self, name: str) -> None:
        """Stop a service that runs."""
        self._systemd("StopUnit", "ss", self.unit(name), "replace")
        assert self._state_at_last(name) != "active"

    def wait_for_end(self, name: str) -> None:
        """Wait for the end of a service that somebody has stopped, if it runs."""
        wait_for("the service's end", lambda: self._state(name) in ("inactive", "failed"))

    def _state_at_last(self, name: str) -> str:
        return wait_for("the job's end", lambda: self._state(name, at_last=True))

    def _state(self, name: str, *, at_last: bool = False) -> str:
        try:
            (path,) = self._systemd("GetUnit", "s", self.unit(name))
            found = {
                one: self._systemd("Get", "ss", _UNIT, one, path=path, interface=PROPERTIES)[
                    0
                ].value
                for one in ("Job", "ActiveState")
            }
        except BusError as error:
            # It is unloaded as soon as it has ended.
            if not error.name.endswith((".NoSuchUnit", ".UnknownObject")):
                raise
            return "inactive"
        has_job = found["Job"][0] != 0 or found["ActiveState"] in _UNDER_WAY
        return "" if at_last and has_job else str(found["ActiveState"])

    def reset(self) -> None:
        """Take every file away."""
        for file in self._files:
            file.unlink()
        self._files.clear()

# SPDX-License-Identifier: LGPL-2.1-or-later
"""A service manager that owns its name and never answers, on a real bus."""

import asyncio
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from svirtd.errors import Failed, UnitFailed, UnitStuck
from svirtd.host import systemd
from svirtd.host.bus import Connection
from svirtd.host.systemd import Systemd, UnitSpec

_CONFIG = """<busconfig><type>custom</type><listen>unix:path={socket}</listen><auth>EXTERNAL</auth>
<policy context="default"><allow own="*"/><allow send_destination="*"/><allow receive_sender="*"/>
<allow user="*"/></policy></busconfig>"""
SPEC = UnitSpec("svirt-vm.service", "", ("/bin/true",), "", "", "machine.slice", (), "", ())


@pytest.fixture
def bus(tmp_path: Path) -> Iterator[str]:
    config = tmp_path / "bus.conf"
    config.write_text(_CONFIG.replace("{socket}", str(tmp_path / "s")))
    argv = ["dbus-daemon", f"--config-file={config}", "--print-address", "--nofork"]
    with subprocess.Popen(argv, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        yield process.stdout.readline().strip().partition(",")[0]
        process.kill()


def test_a_start_that_nobody_answers_is_stuck_and_not_failed(
    bus: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whether a process runs is not known: what its label stands for may not be given away."""
    monkeypatch.setattr(systemd, "_CALL_TIMEOUT_S", 0.1)

    async def main() -> None:
        silent, ours = await Connection.open(bus), await Connection.open(bus)
        silent.handle_methods(lambda _: None)
        try:
            assert await silent.request_name("org.freedesktop.systemd1")
            manager = Systemd(ours)
            with pytest.raises(Failed, match="did not answer Subscribe"):
                await manager.open()
            with pytest.raises(UnitStuck, match="may still run") as caught:
                await manager.start(SPEC, timeout_s=0.1)
            assert caught.value.name == UnitFailed.name
            assert list(manager._watched.values()) == [SPEC.name]
        finally:
            silent.close()
            ours.close()

    asyncio.run(main())

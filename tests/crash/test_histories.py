# SPDX-License-Identifier: LGPL-2.1-or-later
"""Random histories of the real daemon: see histories.py for the steps, model.py for the promise."""

import os
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis.stateful import run_state_machine_as_test

from tests.crash.histories import Histories
from tests.crash.histories_disks import Disks
from tests.crash.histories_life import Stage, figures
from tests.crash.histories_units import administrators_unit
from tests.sandbox import Sandbox
from tests.zygote import Zygote

# The same histories at each run, unless a number is asked for: then that many new ones.
ASKED = os.environ.get("SVIRTD_TEST_HISTORIES", "")
HISTORIES = int(ASKED or 50)
STEPS = 30


@pytest.fixture
def stage(sandbox: Sandbox, zygote: Zygote) -> Iterator[Stage]:
    """Everything in memory: what is tested is not the disk, and a history makes many commits."""
    with TemporaryDirectory(dir="/run") as folder:
        disks = Disks(Path(folder))
        with administrators_unit():
            yield Stage(zygote, disks, Path(folder))
        disks.close()


def test_histories(stage: Stage) -> None:
    Histories.stage = stage
    run_state_machine_as_test(
        Histories,
        settings=settings(
            max_examples=HISTORIES,
            stateful_step_count=STEPS,
            derandomize=not ASKED,
            database=None,
            deadline=None,
            print_blob=True,
            suppress_health_check=list(HealthCheck),
            # To look for a smaller one takes minutes, and its timing is another.
            phases=[Phase.explicit, Phase.generate],
        ),
    )
    if not ASKED:
        # Histories of nothing would pass, too.
        assert figures["histories"] >= HISTORIES
        assert figures["requests done"] > figures["requests refused"] > 0
        assert figures["of these at a fail point"] > 0
        assert figures["kills of VMs"] > 0
        changes = ("attached", "detached", "replaced", "kept")
        domains = ("checked in", "followed", "ending", "domains over")
        # Not those that are told of: in fifty histories that was one to sixteen, and what is drawn
        # changes with whatever is changed in svirtd.
        leases = ("leases over", "leases over while it was away")
        units = ("enrolled", "units started", "units not started", "units ended")
        known = (
            *changes,
            *domains,
            *units,
            "with trees",
            "with chains",
            "granted",
            "revoked",
            *leases,
        )
        assert not {what for what in known if not figures[what]}, figures

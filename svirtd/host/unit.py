# SPDX-License-Identifier: LGPL-2.1-or-later
"""A VM's transient service: what systemd is asked for, what it says, and why it did not start."""

from dataclasses import dataclass
from typing import Any

from svirtd.core.unit_state import UnitDetails, UnitState
from svirtd.host.bus import Variant

Properties = dict[str, Variant]


@dataclass(frozen=True, slots=True)
class UnitSpec:
    """A transient service. `properties` are (name, signature, value) beyond the fixed ones.

    `bounds` are what it is kept in, such as no other property can change.
    """

    name: str
    description: str
    argv: tuple[str, ...]
    context: str
    user: str
    slice: str
    environment: tuple[str, ...]
    working_directory: str
    properties: tuple[tuple[str, str, object], ...]
    bounds: tuple[tuple[str, str, object], ...] = ()


def unit_properties(spec: UnitSpec) -> list[list[Any]]:
    """Return the properties of the unit as StartTransientUnit takes them."""
    # "no-env-expand": a "$" in an argument is the caller's, not systemd's.
    exec_start = [[spec.argv[0], list(spec.argv), ["no-env-expand"]]]
    fixed: list[tuple[str, str, object]] = [
        ("Description", "s", spec.description),
        ("Type", "s", "exec"),
        # Kept by our reference until we have read how its start went, then collected at its end,
        # even if it failed.
        ("CollectMode", "s", "inactive-or-failed"),
        ("AddRef", "b", True),
        ("Slice", "s", spec.slice),
        ("SELinuxContext", "s", spec.context),
        ("ExecStartEx", "a(sasas)", exec_start),
        ("Environment", "as", list(spec.environment)),
        # A VM that runs as root is root in name only, and no program it executes gets it more. The
        # policy lets systemd start a VM's domain all the same (nnp_transition).
        ("NoNewPrivileges", "b", True),
        ("CapabilityBoundingSet", "t", 0),
        ("AmbientCapabilities", "t", 0),
    ]
    if spec.user:
        fixed.append(("User", "s", spec.user))
    if spec.working_directory:
        fixed.append(("WorkingDirectory", "s", spec.working_directory))
    overridden = {name for name, _, _ in spec.properties}
    kept = [p for p in fixed if p[0] not in overridden]
    # What a VM is kept in is not its caller's to loosen, whatever may be set one day: of two
    # assignments the later one would hold, and of a list both.
    bound = {name for name, _, _ in spec.bounds}
    given = [p for p in (*kept, *spec.properties) if p[0] not in bound]
    return [[name, Variant(sig, value)] for name, sig, value in (*given, *spec.bounds)]


def unit_state(unit: str, general: Properties, service: Properties) -> UnitState:
    """Return a unit's state from the properties of its two interfaces."""
    return UnitState(
        name=unit,
        active=general["ActiveState"].value,
        result=service["Result"].value,
        main_pid=service["MainPID"].value,
        exit_code=service["ExecMainCode"].value,
        exit_status=service["ExecMainStatus"].value,
        context=service["SELinuxContext"].value[1],
        sub=general["SubState"].value,
    )


def unit_details(unit: str, general: Properties, service: Properties) -> UnitDetails:
    """Return what a unit was told to run; of several commands, all arguments."""
    return UnitDetails(
        state=unit_state(unit, general, service),
        user=service["User"].value,
        argv=tuple(arg for command in service["ExecStart"].value for arg in command[1]),
        environment=tuple(service["Environment"].value),
        started_us=service["ExecMainStartTimestamp"].value,
    )


def failure(unit: str, job_result: str, state: UnitState | None) -> str:
    """One sentence on why a unit did not start, with systemd's own words."""
    if state is None:
        return f"{unit} failed: job result {job_result}; see journalctl -u {unit}"
    if state.result == "success":
        return (
            f"{unit} ended at once, with exit status 0; a VM's command must stay in the foreground"
        )
    status = f"exit status {state.exit_status}"
    if state.exit_status == 203:
        status += "/EXEC: the command could not be executed; does it exist, may the user run it"
        status += ", and does the policy let systemd start it under the VM's context?"
    return f"{unit} failed: result {state.result}, {status}; see journalctl -u {unit}"

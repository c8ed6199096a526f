# SPDX-License-Identifier: LGPL-2.1-or-later
"""Values to text for people and for programs. Pure: nothing here writes or asks anything.

What comes from the bus may have been named by a stranger. It reaches a terminal only through
`shown`, which leaves no character that a terminal acts on or that turns the order of the others.
"""

import io
import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, tzinfo
from typing import TYPE_CHECKING, Any, Final

from svirtd.ctl.answers import Event, Row

if TYPE_CHECKING:
    from rich.console import RenderableType

Values = Mapping[str, Any]
UserName = Callable[[int], str]

_STATE_STYLES: Final = {
    "running": "green",
    "labelled": "cyan",
    "releasing": "yellow",
    "failed": "bold red",
}
_EVENT_STYLES: Final = {
    "VMAdded": "green",
    "VMRemoved": "yellow",
    "DriftFound": "bold red",
    "Stopped": "bold red",
}
_ALARM: Final = "bold red"
_HEAD: Final = "bold"
# Wide enough that nothing is ever wrapped for a program that reads lines.
_UNLIMITED_COLUMNS: Final = 200_000
NOT_ENFORCED: Final = (
    "NOT ENFORCED: the kernel does not enforce SELinux labels here, nothing keeps VMs apart."
)

NOT_ASKED: Final = (
    "NOT ASKED OF A POLICY: this kernel has no SELinux; answered by what labels mean."
)


@dataclass(frozen=True, slots=True)
class Screen:
    """What the output can show. `columns` is None where lines may be of any length."""

    columns: int | None = None
    colour: bool = False


# A VM of which the caller may only know that it holds something.
_OTHERS: Final = "(of another user)"


def shown(value: object) -> str:
    """Return a value as text in which every character that does not print is escaped."""
    return "".join(one if one.isprintable() else _escaped(one) for one in str(value))


def _escaped(char: str) -> str:
    code = ord(char)
    if code <= 0xFF:
        return {"\n": "\\n", "\t": "\\t", "\r": "\\r"}.get(char, f"\\x{code:02x}")
    return f"\\u{code:04x}" if code <= 0xFFFF else f"\\U{code:08x}"


def document(values: object, *, indent: int | None = 2) -> str:
    """Return values as one JSON document of ASCII characters, in one line without `indent`."""
    return json.dumps(values, indent=indent, ensure_ascii=True)


def keyed(properties: Values) -> dict[str, Any]:
    """Return properties with keys as JSON has them: MainPID becomes main_pid."""
    return {_key(name): value for name, value in properties.items()}


def _key(name: str) -> str:
    whole = name.replace("SELinux", "Selinux")
    return re.sub(r"(?<=[a-z0-9])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])", "_", whole).lower()


def resources(count: int) -> str:
    """Return so many resources in words."""
    return "1 resource" if count == 1 else f"{count} resources"


def vm_list(rows: Sequence[Row], user: UserName, screen: Screen, *, enforced: bool) -> str:
    """Return the table of `list`."""
    if not rows:
        return _notice(screen, enforced=enforced) + "No VMs.\n"
    listed = [(one.name, one.state, one.unit or "-", user(one.owner_uid)) for one in rows]
    return _notice(screen, enforced=enforced) + table(
        ("NAME", "STATE", "UNIT", "OWNER"), listed, screen, state_column=1
    )


def vm_details(
    vm: Values, user: UserName, screen: Screen, zone: tzinfo | None, *, enforced: bool
) -> str:
    """Return what `show` says of one VM. Times are in `zone`, the local one if None."""
    owner = vm.get("Owner", 0)
    public = [
        ("Name", vm.get("Name", "")),
        ("State", vm.get("State", "")),
        ("Reason", vm.get("StateReason", "")),
        ("Owner", f"{user(owner)} ({owner})"),
    ]
    if "Id" not in vm:
        rest = "\nThe rest is for its owner and root to see.\n"
        return _notice(screen, enforced=enforced) + pairs(public, screen) + rest
    rows = [
        *public,
        ("Goal", vm.get("Goal", "")),
        ("Groups", ", ".join(map(str, vm.get("Groups", ())))),
        ("Lasting", ", ".join(map(str, vm.get("LastingGroups", ())))),
        ("Unit", vm.get("Unit", "")),
        ("Labelled by", "libvirt" if vm.get("LabelledBy") == "libvirt" else ""),
        ("Main PID", vm.get("MainPID", 0) or ""),
        ("Process", vm.get("ProcessContext", "")),
        ("Image", vm.get("ImageContext", "")),
        ("Categories", vm.get("Categories", "")),
        ("Runtime", vm.get("RuntimeDirectory", "")),
        ("Persistent", "yes" if vm.get("Persistent") else "no"),
        ("Created", moment(vm.get("CreatedAt", 0) / 1e6, zone)),
        ("Id", vm.get("Id", "")),
        ("UUID", vm.get("UUID", "")),
    ]
    text = _notice(screen, enforced=enforced) + pairs(rows, screen)
    held = [
        (
            one.get("id", "-"),
            one.get("access", "") + (f" ({one['group']})" if one.get("group") else ""),
            one.get("path", ""),
            one.get("context", ""),
            one.get("original", "unknown"),
        )
        for one in vm.get("Resources", ())
    ]
    if not held:
        return text + "\nHolds nothing.\n"
    text += "\n" + table(("ID", "ACCESS", "PATH", "CONTEXT", "ORIGINAL"), held, screen)
    digests = [
        (one["digest"], one.get("path", "")) for one in vm.get("Resources", ()) if "digest" in one
    ]
    return text + ("\n" + table(("DIGEST", "PATH"), digests, screen) if digests else "")


def finding_list(findings: Sequence[Values], screen: Screen) -> str:
    """Return what `verify` has found: three lines for each finding."""
    if not findings:
        return "Nothing differs.\n"
    return "\n".join(_finding(one, screen) for one in findings)


def _finding(one: Values, screen: Screen) -> str:
    whose = f"VM {one['vm']}" if one.get("vm") else "no VM"
    rows = [
        (str(one.get("kind", "")).capitalize(), f"{one.get('path') or whose} ({whose})"),
        ("Why", one.get("reason", "")),
        ("Is", one.get("found", "")),
        ("Should be", one.get("expected", "")),
        ("Repair", f"done: {one['repair']}" if one.get("repaired") else one.get("repair", "")),
    ]
    return pairs(rows, screen)


def matrix(cells: Sequence[Values], screen: Screen, *, everything: bool, enforced: bool) -> str:
    """Return the table of `matrix`, and in its last line how many questions had which answer."""

    def told(uses: Sequence[str]) -> str:
        return " ".join(uses) or "-"

    def result(cell: Values) -> str:
        wrong = ["SURPLUS"] * bool(cell["surplus"]) + ["SHORTFALL"] * bool(cell["shortfall"])
        return ", ".join(wrong) or "as granted"

    rows = [
        (
            one["vm"],
            f"VM {one['object']}" if one["kind"] == "vm" else one["object"],
            told(one["granted"]),
            told(one["allowed"]),
            result(one),
        )
        for one in cells
        if everything or one["granted"] or one["surplus"] or one["shortfall"]
    ]
    surplus = sum(bool(one["surplus"]) for one in cells)
    shortfall = sum(bool(one["shortfall"]) for one in cells)
    by_policy = all(one["by"] == "policy" for one in cells)
    end = f"{len(cells)} questions, {surplus} with a surplus, {shortfall} with a shortfall.\n"
    if not by_policy:
        end += f"{NOT_ASKED}\n"
    heads = ("VM", "OBJECT", "GRANTED", "ALLOWED", "RESULT")
    listed = table(heads, rows, screen) + "\n" if rows else ""
    # A policy that answers well keeps nothing apart on a kernel that does not enforce it.
    return _notice(screen, enforced=enforced) + listed + end


def daemon_status(manager: Values, screen: Screen) -> str:
    """Return what `status` says of the daemon."""
    total, used = manager.get("PairsTotal", 0), manager.get("PairsInUse", 0)
    quarantined = manager.get("PairsQuarantined", 0)
    groups = f"{manager.get('GroupCategoriesInUse', 0)} in use"
    enforced = bool(manager.get("Enforced"))
    rows = [
        ("Version", manager.get("Version", "")),
        ("SELinux", manager.get("SELinuxMode", "")),
        ("Enforced", "yes" if enforced else "no"),
        ("Policy", manager.get("PolicyName", "") or "none"),
        ("Pairs", f"{used} in use, {quarantined} in quarantine, of {total}"),
        ("Groups", f"{groups}, of {manager.get('GroupCategoriesTotal', 0)}"),
        ("Features", ", ".join(map(str, manager.get("Features", ()))) or "none"),
    ]
    return _notice(screen, enforced=enforced) + pairs(rows, screen)


def owner_list(owners: Sequence[Values], screen: Screen) -> str:
    """Return the table of `owners`."""
    if not owners:
        return "No VM holds it.\n"
    if not any("vm" in one for one in owners):
        return "A VM of another user holds it.\n"
    if not any("path" in one for one in owners):
        return table(
            ("VM", "STATE"),
            [(one.get("vm", _OTHERS), one.get("state", "")) for one in owners],
            screen,
            state_column=1,
        )
    rows = [
        (one.get("vm", _OTHERS), *(one.get(key, "") for key in ("state", "access", "path")))
        for one in owners
    ]
    return table(("VM", "STATE", "ACCESS", "PATH"), rows, screen, state_column=1)


def plan_list(steps: Sequence[Values], screen: Screen) -> str:
    """Return the table of `plan`, and below it why what would be refused would be."""
    if not steps:
        return "Nothing would be labelled.\n"
    rows = [
        (
            one.get("access", ""),
            one.get("path", ""),
            one.get("from", "") or "-",
            "refused" if "error" in one else one.get("to", ""),
        )
        for one in steps
    ]
    text = table(("ACCESS", "PATH", "FROM", "TO"), rows, screen)
    reasons = [f"Refused: {shown(one.get('reason', ''))}" for one in steps if "error" in one]
    if reasons:
        text += "\n" + "".join(_line(one, screen, _ALARM) for one in reasons)
    for one in steps:
        if "stays" in one:
            kept = f"{shown(one.get('path', ''))} keeps its label: {shown(one['stays'])}"
            text += _line(kept, screen, "")
    return text


def event_line(event: Event, screen: Screen, zone: tzinfo | None) -> str:
    """Return one line of `monitor`."""
    when = datetime.fromtimestamp(event.time_s, zone).isoformat(" ", "milliseconds")[:23]
    return _line(
        f"{when} {event.kind:<17} {shown(_said(event))}",
        screen,
        _EVENT_STYLES.get(event.kind, ""),
    )


def event_values(event: Event, zone: tzinfo | None) -> dict[str, Any]:
    """Return one event as `monitor --json` prints it."""
    when = datetime.fromtimestamp(event.time_s, zone).astimezone(zone).isoformat()
    values = dict(event.values)
    if event.kind == "PropertiesChanged" and "changed" in values:
        values["changed"] = keyed(values["changed"])
    if event.kind == "InterfacesAdded" and "interfaces" in values:
        values["interfaces"] = {name: keyed(one) for name, one in values["interfaces"].items()}
    return {"time": when, "event": event.kind, "path": event.path, **values}


def _said(event: Event) -> str:
    values = event.values
    match event.kind:
        case "VMAdded" | "VMRemoved":
            return str(values.get("name", values))
        case "DriftFound":
            finding = values.get("finding", values)
            return " ".join(f"{key}={_short(one)}" for key, one in finding.items() if one != "")
        case "PropertiesChanged":
            changed = values.get("changed", values)
            return f"{event.path} " + " ".join(f"{k}={_short(v)}" for k, v in changed.items())
        case "InterfacesAdded" | "InterfacesRemoved":
            names = ", ".join(values.get("interfaces", ()))
            return f"{values.get('object', '')} {names}"
    return " ".join(map(str, values.values()))


def _short(value: object) -> str:
    return value if isinstance(value, str) and value else json.dumps(value, ensure_ascii=False)


def moment(time_s: float, zone: tzinfo | None) -> str:
    """Return a time as people read it, in `zone` or the local one."""
    return datetime.fromtimestamp(time_s, zone).astimezone(zone).isoformat(" ", "seconds")


def _notice(screen: Screen, *, enforced: bool) -> str:
    return "" if enforced else _line(NOT_ENFORCED, screen, _ALARM)


def _line(text: str, screen: Screen, style: str = "") -> str:
    # A line of its own is left to the terminal to wrap, so that it can be copied whole.
    if not (style and screen.colour):
        return text + "\n"
    from rich.text import Text  # noqa: PLC0415 -- see _print

    return _print(Text(text, style=style), Screen(None, colour=True))


def alarm(text: str, screen: Screen) -> str:
    """Return a line of its own that nobody should overlook."""
    return _line(shown(text), screen, _ALARM)


def pairs(rows: Sequence[tuple[str, object]], screen: Screen) -> str:
    """Return a line for each label with a value."""
    from rich.table import Table  # noqa: PLC0415 -- see _print
    from rich.text import Text  # noqa: PLC0415

    grid = Table.grid(padding=(0, 2, 0, 0))
    grid.add_column(style=_HEAD, no_wrap=True)
    grid.add_column(overflow="fold")
    for label, value in rows:
        text = shown(value)
        if text:
            style = _STATE_STYLES.get(text, "") if label == "State" else ""
            style = _ALARM if label == "Enforced" and text != "yes" else style
            grid.add_row(Text(label), Text(text, style=style))
    return _print(grid, screen)


def table(
    heads: Sequence[str],
    rows: Sequence[Sequence[object]],
    screen: Screen,
    *,
    state_column: int | None = None,
) -> str:
    """Return rows below their heads. `state_column` has states of VMs, which have colours."""
    from rich.table import Table  # noqa: PLC0415 -- see _print
    from rich.text import Text  # noqa: PLC0415

    rich_table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style=_HEAD)
    for head in heads:
        rich_table.add_column(head, overflow="fold")
    for row in rows:
        cells = [shown(one) for one in row]
        rich_table.add_row(
            *(
                Text(cell, style=_STATE_STYLES.get(cell, "") if place == state_column else "")
                for place, cell in enumerate(cells)
            )
        )
    return _print(rich_table, screen)


def _print(renderable: "RenderableType", screen: Screen) -> str:
    # Imported where a table is made: what answers in a word should not pay for rich.
    from rich.console import Console  # noqa: PLC0415

    out = io.StringIO()
    console = Console(
        file=out,
        width=screen.columns or _UNLIMITED_COLUMNS,
        force_terminal=screen.colour,
        color_system="standard" if screen.colour else None,
        no_color=not screen.colour,
        highlight=False,
        markup=False,
        emoji=False,
        legacy_windows=False,
    )
    console.print(renderable)
    return "".join(line.rstrip(" ") + "\n" for line in out.getvalue().splitlines())

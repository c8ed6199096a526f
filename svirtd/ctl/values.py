# SPDX-License-Identifier: LGPL-2.1-or-later
"""Values of the contract as svirtctl has them, and as the bus does."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from svirtd.core.model import Lifetime
from svirtd.ctl.arguments import Disk, Property
from svirtd.host.bus import Variant

Values = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Options:
    """What launch, acquire and plan take beside the resources; what is None is not sent."""

    uuid: str | None = None
    goal: str | None = None
    level: str | None = None
    persistent: bool = False
    lifetime: Lifetime | None = None
    overrides: Sequence[str] = ()
    groups: Sequence[str] = ()
    user: str | None = None
    environment: Sequence[str] = ()
    working_directory: str | None = None
    properties: Sequence[Property] = ()

    def variants(self) -> dict[str, Variant]:
        """Return them as the contract's a{sv}."""
        texts = {
            "uuid": self.uuid,
            "goal": self.goal,
            "level": self.level,
            "lifetime": self.lifetime and self.lifetime.value,
            "user": self.user,
            "working-directory": self.working_directory,
        }
        found = {key: Variant("s", text) for key, text in texts.items() if text is not None}
        if self.persistent:
            found["persistent"] = Variant("b", True)
        if self.overrides:
            found["override"] = Variant("as", list(self.overrides))
        if self.groups:
            found["groups"] = Variant("as", list(self.groups))
        if self.environment:
            found["environment"] = Variant("as", list(self.environment))
        if self.properties:
            typed = {one.name: Variant(one.signature, one.value) for one in self.properties}
            found["properties"] = Variant("a{sv}", typed)
        return found


def plain(value: Any) -> Any:
    """Return a D-Bus value without its variants."""
    if isinstance(value, Variant):
        return plain(value.value)
    if isinstance(value, Mapping):
        return {key: plain(one) for key, one in value.items()}
    if isinstance(value, bytes):
        return list(value)
    if isinstance(value, list | tuple):
        return [plain(one) for one in value]
    return value


def resources(disks: Sequence[Disk]) -> list[dict[str, Variant]]:
    """Return disks as the contract's aa{sv}."""
    return [
        {"path": Variant("s", one.path)}
        | ({"recursive": Variant("b", True)} if one.recursive else {})
        | ({"access": Variant("s", one.access.value)} if one.access is not None else {})
        | {key: Variant("t" if isinstance(value, int) else "s", value) for key, value in one.terms}
        for one in disks
    ]

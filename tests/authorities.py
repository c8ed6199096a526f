# SPDX-License-Identifier: LGPL-2.1-or-later
"""An Authority for tests of the parts that ask one."""

from typing import cast

from svirtd.config import Config
from svirtd.engine.authorize import Authority
from svirtd.engine.dialogs import Dialogs
from svirtd.engine.object_manager import ObjectManager
from svirtd.host.bus import BusError, Connection, Message
from svirtd.host.journal import Journal
from svirtd.host.kernel import Kernel


class _NobodyThere:
    """A bus without polkit."""

    async def call(self, *_args: object, **_kwargs: object) -> Message:
        raise BusError("org.freedesktop.DBus.Error.ServiceUnknown", "no such name")


class _WithoutSELinux:
    """A kernel that has no policy to ask about callers."""

    def enabled(self) -> bool:
        return False

    def own_context(self) -> None:
        return None


def no_second_lock() -> ObjectManager:
    """What a host without SELinux has: nobody's domain counts."""
    return ObjectManager(cast(Kernel, _WithoutSELinux()), None, Journal())


def root_only(object_manager: ObjectManager | None = None) -> Authority:
    """What a host without polkit has: root may everything, an owner what is his own."""

    async def name_of(uid: int) -> str:
        return f"uid {uid}"

    asks = Dialogs(cast(Connection, _NobodyThere()), Config)
    return Authority(object_manager or no_second_lock(), asks, name_of)

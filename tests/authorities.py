# SPDX-License-Identifier: LGPL-2.1-or-later
"""An Authority for tests of the parts that ask one."""

from typing import cast

from svirtd.config import Config
from svirtd.engine.authorize import Authority
from svirtd.engine.dialogs import Dialogs
from svirtd.host.bus import BusError, Connection, Message


class _NobodyThere:
    """A bus without polkit."""

    async def call(self, *_args: object, **_kwargs: object) -> Message:
        raise BusError("org.freedesktop.DBus.Error.ServiceUnknown", "no such name")


def root_only() -> Authority:
    """What a host without polkit has: root may everything, an owner what is his own."""

    async def name_of(uid: int) -> str:
        return f"uid {uid}"

    return Authority(Dialogs(cast(Connection, _NobodyThere()), Config), name_of)

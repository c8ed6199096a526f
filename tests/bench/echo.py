# SPDX-License-Identifier: LGPL-2.1-or-later
"""`python -m tests.bench.echo`: the least that a Python service on the bus can do.

Owns NAME and returns the first argument it is given. It uses dbus-next as it comes, without
svirtd's transport.
"""

import asyncio

from dbus_next import Message, MessageType
from dbus_next.aio import MessageBus
from dbus_next.constants import BusType

NAME = "org.svirt1.Bench"
PATH = "/org/svirt1/bench"
INTERFACE = "org.svirt1.Bench"


def _answer(msg: Message) -> Message | None:
    if msg.message_type is MessageType.METHOD_CALL and msg.member == "Echo":
        return Message.new_method_return(msg, "s", [msg.body[0]])
    return None


async def _serve() -> None:
    bus = await MessageBus(bus_type=BusType.SYSTEM).connect()
    bus.add_message_handler(_answer)
    await bus.request_name(NAME)
    await bus.wait_for_disconnect()


if __name__ == "__main__":
    asyncio.run(_serve())

# SPDX-License-Identifier: LGPL-2.1-or-later
"""Members about enrolled units: values of the bus to requests, and kept as they came."""

import json
from collections.abc import Mapping, Sequence
from typing import Any, Final

from svirtd.api import answers, wire
from svirtd.api.call import Call, Handler, Reply
from svirtd.api.contract import MANAGER, VM_FOLDER
from svirtd.api.values import Options, typed
from svirtd.book.enrolments import Enrolment
from svirtd.core.enrolment import check_unit
from svirtd.core.model import Request
from svirtd.core.names import escape_path
from svirtd.engine.doors import Doors
from svirtd.engine.enrolled import Enrolled
from svirtd.errors import InvalidArgs
from svirtd.host.bus import Variant

_ENROLL: Final[Mapping[str, str]] = {"uuid": "s", "goal": "s", "groups": "as", "level": "s"}


class EnrolledObjects:
    """The handlers. No decisions."""

    def __init__(self, enrolled: Enrolled, doors: Doors) -> None:
        self._enrolled = enrolled
        self._doors = doors

    def handlers(self) -> Mapping[tuple[str, str], Handler]:
        """Return the handler of each method, by interface and member."""
        return {
            (MANAGER, "Enroll"): self._enroll,
            (MANAGER, "Unenroll"): self._unenroll,
            (MANAGER, "ListEnrolled"): self._list_enrolled,
            (MANAGER, "StartEnrolled"): self._start,
            (MANAGER, "EndEnrolled"): self._end,
        }

    async def _enroll(self, call: Call) -> Reply:
        unit, name, resources, options = call.body
        check_unit(unit)
        request = self._request(name, resources, options)
        vm = await self._enrolled.enroll(
            call.caller, unit, request, _text(resources), _text([options])
        )
        return Reply([_path(vm.name)])

    async def _unenroll(self, call: Call) -> Reply:
        unit, options = call.body
        keep = typed("options", options, {"keep": "b"}).get("keep", False)
        await self._enrolled.unenroll(call.caller, unit, keep=keep)
        return Reply([])

    async def _list_enrolled(self, call: Call) -> Reply:
        found = []
        for row, vm in await self._enrolled.rows(call.caller):
            one = await self._enrolled.listed(row, vm, self._stored(row))
            found.append(answers.enrolled(one, _path(vm.name)))
        return Reply([found])

    async def _start(self, call: Call) -> Reply:
        unit, options = call.body
        wire.no_options(options)
        row = await self._enrolled.stored(call.caller, unit)
        await self._enrolled.start(call.caller, row, self._stored(row))
        return Reply([])

    async def _end(self, call: Call) -> Reply:
        unit, options = call.body
        wire.no_options(options)
        await self._enrolled.end(call.caller, unit)
        return Reply([])

    def _request(self, name: str, resources: Sequence[Options], options: Options) -> Request:
        typed("options", options, _ENROLL)
        if any("fd" in one for one in resources):
            raise InvalidArgs("a unit is started long after this call: its files are named by path")
        kept = {**options, "persistent": Variant("b", True)}
        return wire.read_request(name, resources, kept, (), self._doors.goals.known)

    def _stored(self, row: Enrolment) -> Request:
        (options,) = _values(row.options)
        return self._request(row.vm_name, _values(row.resources), options)


def _path(name: str) -> str:
    return f"{VM_FOLDER}/{escape_path(name)}"


def _text(given: Sequence[Options]) -> str:
    """Write dictionaries down as they came. What is in them has been read, and is plain."""
    return json.dumps([{key: [v.signature, v.value] for key, v in one.items()} for one in given])


def _values(text: str) -> list[dict[str, Variant]]:
    found: list[dict[str, list[Any]]] = json.loads(text)
    return [{key: Variant(sig, value) for key, (sig, value) in one.items()} for one in found]

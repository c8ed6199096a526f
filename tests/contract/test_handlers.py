# SPDX-License-Identifier: LGPL-2.1-or-later
"""What the daemon answers and sends, against the contract."""

import ast
import inspect
from collections.abc import Iterator
from typing import Any, Final, cast

from svirtd.api import answers, contract, group_objects, objects
from svirtd.api.call import Call, Reply
from svirtd.api.enrolled_objects import EnrolledObjects
from svirtd.api.group_objects import GroupObjects
from svirtd.api.hotplug_objects import HotplugObjects
from svirtd.api.objects import Objects
from tests.contract import sources

# What a member of svirtd's objects says of these names when it sends a signal.
_CONSTANTS: Final = {
    "MANAGER": contract.MANAGER,
    "VM": contract.VM,
    "GROUP": contract.GROUP,
    "JOB": contract.JOB,
    "PROPERTIES": contract.PROPERTIES,
    "OBJECT_MANAGER": contract.OBJECT_MANAGER,
}


def _handlers() -> dict[tuple[str, str], Any]:
    # The table is made without asking anything of what the handlers will work with.
    nothing = cast("Any", None)
    groups = GroupObjects(nothing)
    enrolled = EnrolledObjects(nothing, nothing)
    hotplug = HotplugObjects(nothing, nothing)
    some = (nothing, hotplug, nothing, nothing, nothing, nothing, groups)
    made = Objects(*some, enrolled, nothing, nothing, nothing)
    return dict(made.handlers())


def _calls(name: str) -> Iterator[ast.Call]:
    """Every call of a method of this name in the modules of svirtd's objects."""
    for module in (objects, group_objects):
        for node in ast.walk(ast.parse(inspect.getsource(module))):
            if (
                isinstance(node, ast.Call)
                and isinstance(node.func, ast.Attribute)
                and node.func.attr == name
            ):
                yield node


def test_every_method_has_a_handler_and_no_handler_is_without_a_method() -> None:
    assert set(_handlers()) == set(sources.own_members("method"))


def test_every_handler_takes_a_call_and_returns_a_reply() -> None:
    for key, handler in _handlers().items():
        hints = inspect.get_annotations(handler)
        assert hints == {"call": Call, "return": Reply}, key


def test_no_two_methods_share_a_handler() -> None:
    handlers = [handler.__func__ for handler in _handlers().values()]
    assert len(handlers) == len(set(handlers))


def test_every_signal_is_sent_as_the_contract_says() -> None:
    sent = set()
    for call in _calls("emit"):
        _, interface, member, signature, _ = call.args
        assert isinstance(interface, ast.Name)
        assert isinstance(member, ast.Constant)
        assert isinstance(signature, ast.Constant)
        sent.add((_CONSTANTS[interface.id], member.value, signature.value))
    promised = {
        (interface, member.name, member.signature)
        for interface, members in sources.interfaces().items()
        for member in members
        if member.kind == "signal"
    }
    assert sent == promised


def test_vm_properties_are_those_of_the_contract() -> None:
    answered = {name: signature for name, (signature, _) in answers.VM_PROPERTIES.items()}
    # Made from what the VM holds, not from the VM.
    answered["Resources"] = "aa{sv}"
    assert answered == _properties(contract.VM)


def test_group_properties_are_those_of_the_contract() -> None:
    properties = group_objects.GROUP_PROPERTIES
    answered = {name: signature for name, (signature, _) in properties.items()}
    assert answered == _properties(contract.GROUP)


def test_job_properties_are_those_of_the_contract() -> None:
    answered = {name: signature for name, (signature, _) in answers.JOB_PROPERTIES.items()}
    assert answered == _properties(contract.JOB)


def test_manager_properties_are_those_of_the_contract() -> None:
    answered = _returned("manager_properties")
    # What of the answer is made by a function of its own, since it is signalled too.
    assert answered.pop(None) == "_standing"
    assert answered | _returned("_standing") == _properties(contract.MANAGER)


def _returned(function_name: str) -> dict[str | None, str]:
    """Signatures by property that a function returns; under None, whose result is among them."""
    (function,) = (
        node
        for node in ast.walk(ast.parse(inspect.getsource(objects)))
        if isinstance(node, ast.AsyncFunctionDef | ast.FunctionDef) and node.name == function_name
    )
    (returned,) = (node.value for node in ast.walk(function) if isinstance(node, ast.Return))
    assert isinstance(returned, ast.Dict)
    answered: dict[str | None, str] = {}
    for name, value in zip(returned.keys, returned.values, strict=True):
        assert isinstance(value, ast.Call)
        if name is None:
            assert isinstance(value.func, ast.Name)
            answered[None] = value.func.id
            continue
        assert isinstance(name, ast.Constant)
        (signature, _) = value.args
        assert isinstance(signature, ast.Constant)
        answered[str(name.value)] = str(signature.value)
    return answered


def _properties(interface: str) -> dict[str, str]:
    return {
        member.name: member.signature
        for member in sources.interfaces()[interface]
        if member.kind == "property"
    }


def test_objects_have_the_interfaces_that_the_contract_has() -> None:
    every = set()
    for path in (
        contract.ROOT,
        f"{contract.VM_FOLDER}/a",
        f"{contract.GROUP_FOLDER}/a",
        f"{contract.JOB_FOLDER}/1",
        "/",
    ):
        every |= set(contract.interfaces_of(path))
    assert every == set(sources.interfaces())

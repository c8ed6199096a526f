# SPDX-License-Identifier: LGPL-2.1-or-later
"""Values of the bus to requests and back, without a bus: what every input may do, and changes."""

from dataclasses import fields, replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from svirtd.api import answers, contract, wire
from svirtd.api.values import Options, typed
from svirtd.core.model import VM, Access, Hold, Identity, Labeller, Lifetime, State
from svirtd.errors import InvalidArgs, LimitsExceeded, NotSupported
from svirtd.host.bus import Variant

untimed = settings(deadline=None)
texts = st.text(max_size=30)
values = st.one_of(
    st.builds(lambda v: Variant("s", v), texts),
    st.builds(lambda v: Variant("b", v), st.booleans()),
    st.builds(lambda v: Variant("h", v), st.integers(0, 2**32 - 1)),
    st.builds(lambda v: Variant("t", v), st.integers(0, 2**64 - 1)),
    st.builds(lambda v: Variant("as", v), st.lists(texts, max_size=3)),
    st.builds(lambda v: Variant("ay", v), st.binary(max_size=8)),
)
likely = st.sampled_from(
    ["path", "fd", "access", "format", "group", "recursive", "uuid", "goal", "persistent",
     "lifetime", "user", "environment", "working-directory"]
)  # fmt: skip
dictionaries = st.dictionaries(st.one_of(likely, texts), values, max_size=4)


@untimed
@given(
    texts,
    st.lists(texts, max_size=3),
    st.lists(dictionaries, max_size=3),
    dictionaries,
    st.dictionaries(texts, values, max_size=2),
)
def test_any_input_is_a_request_or_a_refusal_in_words(
    name: str,
    argv: list[str],
    resources: list[Options],
    options: Options,
    extra: Options,
) -> None:
    given_options = dict(options) | {"properties": Variant("a{sv}", dict(extra))}
    try:
        wire.read_launch(name, argv, resources, given_options, (5, 6), 1000)
        wire.read_request(name, resources, options, (5, 6))
    except (InvalidArgs, NotSupported, LimitsExceeded) as error:
        refusal = str(error)
    else:
        refusal = "none"
    assert refusal.isprintable()
    assert 0 < len(refusal) < 2000


PATH = {"path": Variant("s", "/a.img")}


def test_a_request_is_what_was_asked() -> None:
    request, command = wire.read_launch(
        "vm",
        ["/bin/true", "", "a\nb", "{runtime}/x"],
        [PATH, {"fd": Variant("h", 1), "access": Variant("s", "readonly")}],
        {
            "uuid": Variant("s", "ABCDEF01-2345-6789-abcd-ef0123456789"),
            "persistent": Variant("b", True),
            "lifetime": Variant("s", "caller"),
            "user": Variant("s", "nobody"),
            "environment": Variant("as", ["A=", "_b=c=d\te"]),
            "working-directory": Variant("s", "/srv"),
            "properties": Variant(
                "a{sv}", {"TasksMax": Variant("t", 5), "AllowedCPUs": Variant("ay", b"\3")}
            ),
        },
        (7, 8),
        1000,
    )
    assert (request.name, request.goal) == ("vm", "isolated")
    assert request.uuid == "abcdef01-2345-6789-abcd-ef0123456789"
    assert request.persistent is True
    assert request.lifetime is Lifetime.CALLER
    assert [(r.path, r.fd, r.access) for r in request.resources] == [
        ("/a.img", None, Access.EXCLUSIVE),
        (None, 8, Access.READONLY),
    ]
    assert command.argv == ("/bin/true", "", "a\nb", "{runtime}/x")
    assert (command.user, command.working_directory) == ("nobody", "/srv")
    assert command.environment == ("A=", "_b=c=d\te")
    assert command.properties == (("TasksMax", "t", 5), ("AllowedCPUs", "ay", b"\3"))


def test_the_limit_of_a_command_counts_bytes() -> None:
    wire.read_launch("vm", ["/bin/" + "é" * 10], [], {}, (), 26)
    with pytest.raises(LimitsExceeded, match="command-bytes = 25"):
        wire.read_launch("vm", ["/bin/" + "é" * 10], [], {}, (), 25)


def test_keys_have_one_type_each() -> None:
    keys = {"a": "s", "b": "b"}
    assert typed("x", {"a": Variant("s", "t")}, keys) == {"a": "t"}
    with pytest.raises(InvalidArgs, match=r"^x: unknown key 'c'; known keys: a, b$"):
        typed("x", {"c": Variant("s", "t")}, keys)
    with pytest.raises(InvalidArgs, match=r"^x: 'a' has type 'o', expected 's'$"):
        typed("x", {"a": Variant("o", "/")}, keys)
    with pytest.raises(InvalidArgs, match="known keys: none"):
        wire.no_options({"a": Variant("s", "")})


VM_ = VM(
    id="0123456789abcdef", name="vm", owner_uid=7, state=State.RUNNING, reason="", goal="isolated",
    uuid="", rank=3, categories="c1,c2", process_context="p", image_context="i",
    unit="svirt-vm.service", main_pid=9, runtime_dir="/run/x", persistent=False,
    lifetime=Lifetime.RELEASE, caller="", created_us=11,
)  # fmt: skip
HOLD = Hold(VM_.id, VM_.name, Identity(1, 2), "/a.img", Access.PUBLIC, "new", None)


def test_properties_are_those_of_the_contract() -> None:
    found = answers.vm_properties(VM_, [HOLD])
    parsed = contract.load()[contract.VM].properties
    assert {name: variant.signature for name, variant in found.items()} == parsed
    assert found["State"] == Variant("s", "running")
    assert found["Resources"].value == [
        {
            "path": Variant("s", "/a.img"),
            "access": Variant("s", "public"),
            "context": Variant("s", "new"),
            "original": Variant("s", ""),
        }
    ]


def test_an_original_that_is_not_known_is_left_out() -> None:
    unknown = replace(HOLD, original_known=False)
    (found,) = answers.vm_properties(VM_, [unknown])["Resources"].value
    assert set(found) == {"path", "access", "context"}


def test_changes_are_what_differs_and_nothing_else() -> None:
    same = (VM_, [HOLD])
    assert answers.vm_changes(same, same) == ({}, [])
    # A signal goes to everybody: what only the owner may see is named, without its value.
    failed = replace(VM_, state=State.FAILED, reason="why")
    assert answers.vm_changes(same, (failed, [HOLD])) == (
        {"State": Variant("s", "failed")},
        ["StateReason"],
    )
    assert answers.vm_changes(same, (VM_, [])) == ({}, ["Resources"])


def test_no_field_of_a_vm_is_forgotten() -> None:
    """A field that no property shows is listed here, with the reason in the model."""
    hidden = {"rank", "lifetime", "caller"}
    for field in fields(VM):
        old = getattr(VM_, field.name)
        changes: dict[type, Any] = {bool: not old, int: 12345, str: "other", State: State.FAILED,
                   tuple: ("g",), Lifetime: Lifetime.CALLER,
                   Labeller: Labeller.LIBVIRT}  # fmt: skip
        after = replace(VM_, **{field.name: changes[type(old)]})
        changed = answers.vm_changes((VM_, []), (after, []))
        assert (changed == ({}, [])) == (field.name in hidden), field.name

# SPDX-License-Identifier: LGPL-2.1-or-later
"""What a running unit tells: the inverse of what svirtd told systemd when it started it."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from svirtd.core.mcs import format_categories, parse_categories, parse_context
from svirtd.core.model import Access, Contexts
from svirtd.core.names import check_vm_name, unit_name
from svirtd.core.pool import make_shape
from svirtd.core.running import access_of, claim_of, id_of, named_paths, vm_of_unit
from svirtd.errors import InvalidArgs

PROCESS = "system_u:system_r:svirt_t:s0"
IMAGE = "system_u:object_r:svirt_image_t:s0"
CONTENT = "system_u:object_r:virt_content_t:s0"
CONTEXTS = Contexts(parse_context(PROCESS), parse_context(IMAGE), parse_context(CONTENT))
SHAPE = make_shape(parse_categories("c0.c9"), frozenset(), parse_categories("c3"), 2)
GROUPS = frozenset({20, 21, 22})
FOLDER = "/run/svirtd/vm"
ID = "0123456789abcdef"


def is_name(text: str) -> bool:
    try:
        check_vm_name(text)
    except InvalidArgs:
        return False
    return True


names = st.from_regex(r"[A-Za-z0-9]([A-Za-z0-9 ._@:+-]{0,58}[A-Za-z0-9._@:+-])?", fullmatch=True)
paths = st.text(
    st.characters(blacklist_characters="\0/", blacklist_categories=["Cs"]), min_size=1, max_size=20
).map(lambda name: f"/srv/{name}")
# Where a language gives these characters a meaning, a path with them is spelt otherwise.
plain_paths = paths.filter(lambda path: not set(path) & set(",:"))


@given(names)
def test_a_unit_is_its_vm(name: str) -> None:
    assert vm_of_unit(unit_name(name)) == name


@given(st.text(alphabet="ab-_\\x2d0f.@ ", max_size=20))
def test_no_two_units_are_one_vm(escaped: str) -> None:
    unit = f"svirt-{escaped}.service"
    name = vm_of_unit(unit)
    assert name is None or (is_name(name) and unit_name(name) == unit)


@pytest.mark.parametrize(
    "unit",
    ["svirt-.service", "svirt-a.scope", "other-a.service", "svirt-a-b.service",
     r"svirt-\x61.service", r"svirt-a\x2.service", r"svirt-a\x0a.service"],
)  # fmt: skip
def test_what_is_no_unit_of_a_vm(unit: str) -> None:
    assert vm_of_unit(unit) is None


@given(st.integers(0, SHAPE.total - 1))
def test_a_full_set_is_claimed(rank: int) -> None:
    context = f"{PROCESS}:{format_categories(SHAPE.categories_of(rank))}"
    claim = claim_of(context, CONTEXTS, SHAPE, GROUPS)
    assert claim is not None
    assert (claim.rank, str(claim.context), claim.groups) == (rank, context, frozenset())


@given(st.integers(0, SHAPE.total - 1), st.frozensets(st.sampled_from(sorted(GROUPS))))
def test_groups_are_claimed_beside_it(rank: int, groups: frozenset[int]) -> None:
    context = f"{PROCESS}:{format_categories(SHAPE.categories_of(rank) | groups)}"
    claim = claim_of(context, CONTEXTS, SHAPE, GROUPS)
    assert claim is not None
    assert (claim.rank, claim.groups) == (rank, groups)


@pytest.mark.parametrize(
    "context",
    ["", "no context", PROCESS, f"{PROCESS}:c1", f"{PROCESS}:c1,c2,c4", f"{PROCESS}:c1,c3",
     f"{PROCESS}:c1,c10", "system_u:system_r:init_t:s0:c1,c2", f"{IMAGE}:c1,c2"],
)  # fmt: skip
def test_anything_else_is_not(context: str) -> None:
    assert claim_of(context, CONTEXTS, SHAPE, GROUPS) is None


@pytest.mark.parametrize(
    ("environment", "found"),
    [
        ([f"SVIRT_RUNTIME_DIR={FOLDER}/{ID}"], ID),
        (["A=b", "SVIRT_RUNTIME_DIR=/x", f"SVIRT_RUNTIME_DIR={FOLDER}/{ID}"], ID),
        ([f"SVIRT_RUNTIME_DIR={FOLDER}/{ID}", "SVIRT_RUNTIME_DIR=/x"], None),
        ([f"XSVIRT_RUNTIME_DIR={FOLDER}/{ID}"], None),
        ([f"SVIRT_RUNTIME_DIR={FOLDER}/{ID}/"], None),
        ([f"SVIRT_RUNTIME_DIR={FOLDER}/../{ID}"], None),
        ([f"SVIRT_RUNTIME_DIR={FOLDER}/{ID[:-1]}g"], None),
        ([], None),
    ],
)
def test_the_id(environment: list[str], found: str | None) -> None:
    assert id_of(environment, FOLDER) == found


@pytest.mark.parametrize(
    ("label", "access"),
    [
        (f"{IMAGE}:c1,c2", (Access.EXCLUSIVE, None)),
        (f"{CONTENT}:c1,c2", (Access.READONLY, None)),
        (f"{IMAGE}:c20", (Access.GROUP, 20)),
        (f"{CONTENT}:c21", (Access.READONLY, 21)),
        (f"{IMAGE}:c22", None),
        (f"{IMAGE}:c20,c21", None),
        (f"{IMAGE}:c1,c2,c20", None),
        (CONTENT, None),
        (IMAGE, None),
        (f"{IMAGE}:c1", None),
        (f"{IMAGE}:c1,c2,c4", None),
        (f"{IMAGE}:c1,c4", None),
        (f"{PROCESS}:c1,c2", None),
        ("no label", None),
        (None, None),
    ],
)
def test_the_access(label: str | None, access: tuple[Access, int | None] | None) -> None:
    assert access_of(label, CONTEXTS, frozenset({1, 2}), frozenset({20, 21})) == access


@given(paths)
def test_a_path_alone(path: str) -> None:
    assert path in named_paths(["/usr/bin/qemu", "-hda", path])


@given(paths)
def test_a_path_as_qemu_spells_it(path: str) -> None:
    spelt = path.replace(",", ",,")
    for argument in (f"file={spelt},if=virtio,format=raw", f"driver=raw,file.filename={spelt}"):
        assert path in named_paths(["-drive", argument])


@given(plain_paths)
def test_a_path_among_other_words(path: str) -> None:
    for argument in (
        f"--disk={path}",
        f"{path}:ro",
        f"x,path={path},y",
        f"file:{path}",
        f"a,{path}",
    ):
        assert path in named_paths([argument])


@given(paths)
def test_a_path_in_json(path: str) -> None:
    node = {"driver": "raw", "file": {"driver": "file", "filename": path}, "n": [1, None, path]}
    for argument in (json.dumps(node), f"json:{json.dumps(node)}", json.dumps([node])[1:-1]):
        assert path in named_paths(["-blockdev", argument])


@given(st.lists(st.text(), max_size=5))
def test_only_absolute_paths_and_each_once(argv: list[str]) -> None:
    found = named_paths(argv)
    assert all(path.startswith("/") and "\0" not in path for path in found)
    assert len(set(found)) == len(found)


@pytest.mark.parametrize(
    "argument", ["=/" * 60_000, "{" * 60_000, "," * 60_000 + "/", "[" * 100_000]
)
def test_a_long_command_costs_little(argument: str) -> None:
    assert len(named_paths([argument, "{" + argument])) <= 4096

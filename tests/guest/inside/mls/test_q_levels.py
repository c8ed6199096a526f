# SPDX-License-Identifier: LGPL-2.1-or-later
"""VMs of different levels under the policy that has them: no read up and no write down.

Where two VMs meet here, their categories do not decide: what is shared carries none, and what is
tried across levels carries the categories of whoever tries.
"""

import random
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import pytest
import selinux

from svirtd.core import levels, mcs
from svirtd.core.mcs import Context, Level, Range, parse_context
from svirtd.host.bus import Variant
from svirtd.host.kernel import Kernel
from tests.guest.inside.audit import Audit
from tests.guest.inside.vms import CAPTIVE, Captive, Qemu, disk
from tests.support import Client, label, resources, set_label, unwrap, wait_for

SIGNATURE: Final = "saa{sv}a{sv}"
DENIED: Final = {"EACCES", "EPERM"}
VM: Final = "system_u:system_r:svirt_t:"
IMAGE: Final = "system_u:object_r:svirt_image_t:"
CONTENT: Final = "system_u:object_r:virt_content_t:"
_PAIRS: Final = 4000


def at(level: str) -> dict[str, Any]:
    """The option of a VM."""
    return {"level": Variant("s", level)}


def one(path: Path, access: str, level: str = "") -> list[dict[str, Variant]]:
    """A resource, with a level of its own if one is given."""
    (found,) = resources(path, access=access)
    return [{**found, **(at(level) if level else {})}]


def image_at(name: str, sensitivity: str) -> Path:
    """A disk image whose content is of a level."""
    return disk(name, f"unconfined_u:object_r:virt_image_t:{sensitivity}")


# -- the kernel, asked --------------------------------------------------------------------------


def some_level(chance: random.Random) -> Level:
    few = frozenset(chance.sample(range(4), chance.randint(0, 3)))
    return Level(chance.choice((0, 0, 1, 2, 3, 15)), frozenset(one * 300 for one in few))


def some_range(chance: random.Random) -> Range:
    low = some_level(chance)
    high = Level(min(15, low.sensitivity + chance.randint(0, 2)), low.categories)
    return Range(low, high if chance.random() < 0.3 else low)


def related(chance: random.Random, process: Range) -> Level:
    """A level near a process's, so that each case is common: equal, above, below, beside."""
    match chance.randint(0, 3):
        case 0:
            return process.low
        case 1:
            return Level(process.low.sensitivity, some_level(chance).categories)
        case 2:
            return Level(some_level(chance).sensitivity, process.low.categories)
    return some_level(chance)


@pytest.mark.parametrize("kind", ["file", "blk_file"])
@pytest.mark.parametrize(("base", "may"), [(IMAGE, {"read", "write"}), (CONTENT, {"read"})])
def test_the_core_foretells_what_the_kernel_decides(kind: str, base: str, may: set[str]) -> None:
    seed = random.SystemRandom().randrange(2**32)
    chance, kernel, seen = random.Random(seed), Kernel(), set()
    for _ in range(_PAIRS // 4):
        process = some_range(chance)
        level = related(chance, process)
        resource = Range(level, level)
        foretold = {
            word
            for word, possible in (
                ("read", levels.reads_down(process, resource)),
                ("write", levels.writes_level(process, resource)),
            )
            if possible
        }
        source, target = parse_context(f"{VM}{process}"), parse_context(f"{base}{level}")
        decided = kernel.decide(source, target, kind).allowed & {"read", "write"}
        assert decided == foretold & may, f"{source} on {target}, seed {seed}"
        seen.add(frozenset(foretold))
    assert seen == {frozenset(), frozenset({"read"}), frozenset({"read", "write"})}


def test_a_process_of_another_level_is_neither_looked_at_nor_signalled() -> None:
    kernel = Kernel()
    one_set = ":c1,c2"
    for mine, other in (("s1", "s3"), ("s3", "s1"), ("s1-s3", "s2")):
        ranges = ["-".join(f"{one}{one_set}" for one in text.split("-")) for text in (mine, other)]
        source, target = (parse_context(f"{VM}{text}") for text in ranges)
        found = kernel.decide(source, target, "process").allowed
        assert not found & {"signal", "sigkill", "sigstop", "ptrace", "transition", "setsched"}
        looks = levels.reads_down(source.range, target.range)
        assert ("getsched" in found) is looks
    same = parse_context(f"{VM}s1{one_set}")
    assert kernel.decide(same, same, "process").allowed >= {"signal", "getsched"}


def test_contexts_are_written_as_the_kernel_writes_them() -> None:
    seed = random.SystemRandom().randrange(2**32)
    chance = random.Random(seed)
    for _ in range(500):
        numbers = chance.sample(range(1024), chance.randint(0, 12))
        start = chance.randint(0, 1000)
        cats = frozenset({*numbers, *range(start, start + chance.randint(0, 20))})
        low = Level(chance.randint(0, 15), cats)
        high = Level(
            chance.randint(low.sensitivity, 15), cats | frozenset({chance.randint(0, 1023)})
        )
        context = Context("system_u", "system_r", "svirt_t", Range(low, high))
        text = str(context)
        code, canonical = selinux.security_canonicalize_context_raw(text)
        assert (code, canonical) == (0, text), f"seed {seed}"
        # In another order and spelt out, as a person might write it.
        words = [f"c{number}" for number in cats]
        chance.shuffle(words)
        loose = f"{VM}s{low.sensitivity}" + (f":{','.join(words)}" if words else "")
        code, canonical = selinux.security_canonicalize_context_raw(loose)
        assert (code, canonical) == (0, str(parse_context(loose))), f"seed {seed}"


# -- the service ---------------------------------------------------------------------------------


def test_the_service_runs_over_all_levels(client: Client) -> None:
    listed = subprocess.run(["ps", "-eo", "label,comm"], capture_output=True, text=True, check=True)
    found = [line.split()[0] for line in listed.stdout.splitlines() if line.endswith(" svirtd")]
    assert found == ["system_u:system_r:svirtd_t:s0-s15:c0.c1023"]
    shown = client.manager()
    assert (shown["PolicyName"], shown["SELinuxMode"]) == ("mls", "enforcing")
    assert shown["Enforced"] is True


@pytest.fixture
def two(client: Client) -> Iterator[tuple[Captive, Captive]]:
    """Two VMs that were broken out of, each on a disk of its own level."""
    low = Captive(client, "low", image_at("low", "s1"), **at("s1"))
    high = Captive(client, "high", image_at("high", "s3"), **at("s3"))
    yield low, high
    low.end()
    high.end()


def level_of(context: str) -> str:
    return str(parse_context(context).range.low).partition(":")[0]


def test_no_read_up_and_no_write_down(
    two: tuple[Captive, Captive], client: Client, audit: Audit
) -> None:
    low, high = two
    assert (level_of(low.label()), level_of(high.label())) == ("s1", "s3")
    assert (low.label(), high.label()) == (low.context, high.context)
    for vm in two:
        own = f"/srv/vm/{vm.name}.img"
        assert label(own) == vm.image_context
        assert vm.do(f"read({own!r})") == 512
        assert vm.do(f"write({own!r})") == 5

    # Public: without categories, so that the level alone decides.
    public = {name: image_at(f"public-{name}", name) for name in ("s0", "s1", "s3")}
    for name, path in public.items():
        client.call("Acquire", SIGNATURE, f"of-{name}", one(path, "public", name), at(name))
        assert label(path) == f"{CONTENT}{name}"
    for vm, below, above in ((low, ("s0", "s1"), ("s3",)), (high, ("s0", "s1", "s3"), ())):
        for name in below:
            assert vm.do(f"read('{public[name]}')") == 512
        for name in above:
            with audit.denied("read", vm.context, f"{CONTENT}{name}"):
                assert vm.fails(f"read('{public[name]}')") in DENIED

    # The loaded policy, asked about all of that at once, has nothing that nobody granted.
    (cells,) = client.call("Matrix", "a{sv}", {})
    for cell in unwrap(cells):
        assert (cell["surplus"], cell["shortfall"]) == ([], []), cell

    # With the categories of whoever tries: by them it would be the VM's own.
    for vm, sensitivity, reads in ((low, "s3", False), (high, "s1", True)):
        categories = mcs.format_categories(parse_context(vm.context).categories)
        path = disk(f"beside-{vm.name}", f"{IMAGE}{sensitivity}:{categories}")
        found, before = str(label(path)), path.read_bytes()
        if reads:
            assert vm.do(f"read('{path}')") == 512
        else:
            with audit.denied("read", vm.context, found):
                assert vm.fails(f"read('{path}')") in DENIED
        for attack, permission in (
            (f"write('{path}')", "write"),
            (f"os.open('{path}', os.O_WRONLY | os.O_APPEND)", "append write"),
            (f"os.truncate('{path}', 0)", "write"),
            (f"os.chmod('{path}', 0o777)", "setattr"),
            (f"relabel('{path}', {vm.image_context!r})", "relabelfrom"),
        ):
            with audit.denied(permission, vm.context, found):
                assert vm.fails(attack) in DENIED, attack
        assert (path.read_bytes(), str(label(path))) == (before, found)
        # It was the level and nothing else.
        set_label(path, f"{IMAGE}{level_of(vm.context)}:{categories}")
        assert vm.do(f"write('{path}')") == 5
    for name in public:
        client.release(f"of-{name}")


def test_what_else_one_tries_on_the_other(two: tuple[Captive, Captive], audit: Audit) -> None:
    # Yama, where it is on, would refuse before SELinux is asked.
    yama = Path("/proc/sys/kernel/yama/ptrace_scope")
    if yama.exists():
        yama.write_text("0", "utf-8")
    for taken, victim in (two, two[::-1]):
        me, it = taken.context, victim.context
        own, others = f"/srv/vm/{taken.name}.img", f"/srv/vm/{victim.name}.img"
        for attack, permissions, target, kind in (
            (f"read({others!r})", "read", victim.image_context, "file"),
            (f"write({others!r})", "write", victim.image_context, "file"),
            (f"os.kill({victim.pid}, signal.SIGKILL)", "sigkill", it, "process"),
            (f"attach({victim.pid})", "ptrace", it, "process"),
            (f"read('/proc/{victim.pid}/mem')", "search", it, "dir"),
            (f"connect('{victim.runtime}/control')", "search", victim.image_context, "dir"),
            (f"relabel({own!r}, {victim.image_context!r})", "relabelfrom", "*", "file"),
            (
                f"become({it!r})",
                "setcurrent dyntransition",
                "system_u:system_r:svirt_t:*",
                "process",
            ),
        ):
            with audit.denied(permissions, me, target, kind):
                assert taken.fails(attack) in DENIED, attack
        assert (taken.label(), victim.label()) == (me, it)


def test_a_clearance_is_not_a_level(client: Client, audit: Audit) -> None:
    vm = Captive(client, "ranged", image_at("ranged", "s1"), **at("s1-s3"))
    categories = mcs.format_categories(parse_context(vm.context).categories)
    assert vm.label() == f"{VM}s1:{categories}-s3:{categories}"
    assert vm.image_context == f"{IMAGE}s1:{categories}"
    assert vm.do("write('/srv/vm/ranged.img')") == 5
    above = disk("above", f"{CONTENT}s2")
    with audit.denied("read", vm.context, f"{CONTENT}s2"):
        assert vm.fails(f"read('{above}')") in DENIED
    vm.end()


def test_a_real_one_at_its_level(client: Client) -> None:
    path = image_at("qemu", "s3")
    before = label(path)
    vm = Qemu(client, "qemu", path, **at("s3"))
    assert level_of(vm.label()) == "s3"
    assert vm.reads() == vm.writes() == ""
    vm.end()
    assert label(path) == before


def test_what_a_vm_says_is_in_the_journal(client: Client) -> None:
    if not CAPTIVE.exists():
        Captive(client, "maker").end()
    argv = [
        str(CAPTIVE),
        "-I",
        "-c",
        "print('said at s2', flush=True); import time; time.sleep(60)",
    ]
    client.call("Launch", "sasaa{sv}a{sv}", "says", argv, [], at("s2"))

    def said() -> bool:
        command = ["journalctl", "-b", "-u", "svirt-says.service", "-o", "cat", "--no-pager"]
        found = subprocess.run(command, capture_output=True, text=True, check=False)
        return "said at s2" in found.stdout

    wait_for("its words are in the journal", said)
    client.release("says")


# -- what is refused -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("sensitivity", "level", "access", "resource", "rule"),
    [
        ("s3", "s1", "readonly", "s3", "no read up"),
        ("s1", "s3", "exclusive", "s1", "no write down"),
        ("s0", "s1", "public", "s2", "no read up"),
        # svirtd itself moves nothing to a lower level, nor by a label that comes back later.
        ("s3", "s1", "readonly", "", "takes nothing to a lower level"),
        ("s0", "s3", "exclusive", "", "given back"),
    ],
)
def test_what_could_not_work_is_refused(
    client: Client, sensitivity: str, level: str, access: str, resource: str, rule: str
) -> None:
    path = image_at("refused", sensitivity)
    before = label(path)
    error = client.error("Acquire", SIGNATURE, "vm", one(path, access, resource), at(level))
    assert error.name == "org.svirt1.Error.ResourceRefused"
    assert rule in str(error)
    named = one(path, access, resource)
    step, _ = client.call("Plan", SIGNATURE, "vm", named, at(level))[0]
    assert rule in step["reason"].value
    assert label(path) == before
    assert client.vms() == {}


def test_a_level_that_the_policy_does_not_have(client: Client) -> None:
    path = image_at("refused", "s0")
    for named, options in ((resources(path), at("s16")), (one(path, "public", "s16"), {})):
        error = client.error("Acquire", SIGNATURE, "vm", named, options)
        assert error.name == "org.svirt1.Error.LabelRefused"
        assert ":s16" in str(error)
    assert client.vms() == {}


def test_a_level_is_for_whoever_may_choose_one(client: Client, audit: Audit) -> None:
    """Units of the host may have VMs, and not choose their level: root or not."""
    asks = ["svirtctl", "acquire", "vm", "--level", "s1"]
    unit = ["systemd-run", "--wait", "-q", "-pSELinuxContext=system_u:system_r:initrc_t:s0"]
    with audit.denied("levels", "system_u:system_r:initrc_t:s0", "*:svirtd_t:*", "svirtd"):
        assert subprocess.run([*unit, *asks], check=False).returncode != 0
    assert client.vms() == {}
    assert subprocess.run(asks, check=False).returncode == 0
    client.release("vm")

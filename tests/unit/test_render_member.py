"""User-data: what a member is born with, its size and what must not be in it."""

import ast
import base64
import json
import re
import shutil
import subprocess
from pathlib import Path

import pytest

import settings
from plan.derivation import derive, encode, fleet_seed
from plan.keys import slot_keys
from plan.names import fleet_names
from render.member import (
    HIGH_VERSION,
    LIMIT_BYTES,
    LONG_FACTS,
    SCRIPTS,
    JoinFacts,
    join_facts,
    pack,
    user_data,
    without_explanations,
)
from settings import ROOT, Settings, SettingsError
from tests import born
from tests.unit.samples import SEED, container_workload, mesh_of, sample, sample_data


def rendered(of: Settings, facts: JoinFacts | None = None, secrets_version: int = 1) -> str:
    mesh = mesh_of(of)
    plan = mesh.fleet("frankfurt")
    return user_data(
        facts=facts or join_facts(mesh, hub_public_key="HUBKEY="),
        fleet=of.fleets["frankfurt"],
        plan=plan,
        names=fleet_names("fortress-and-fleet", "prod", "frankfurt", plan.generation),
        group_name="fortress-prod-frankfurt",
        launch_hook="joined",
        terminate_hook="left",
        workload=of.workload,
        database=of.database,
        secrets_version=secrets_version,
    )


def files_of(of: Settings) -> dict[str, str]:
    return born.files(rendered(of))


def test_equal_settings_make_equal_user_data_below_the_limit() -> None:
    assert rendered(sample()) == rendered(sample())
    assert len(base64.b64decode(rendered(sample()))) <= LIMIT_BYTES


def test_every_script_compiles_and_is_the_one_of_the_repository_but_for_its_explanations() -> None:
    files = files_of(sample())
    for name in (*(f"scripts/node/{script}.py" for script in SCRIPTS), "plan/derivation.py"):
        where = name.removeprefix("scripts/node/")
        shipped = files[f"/usr/local/lib/fortress/node/{where}"]
        original = ast.parse((ROOT / name).read_text())
        for node in ast.walk(original):
            if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef) and ast.get_docstring(
                node
            ):
                node.body = node.body[1:] or [ast.Pass()]
        assert ast.dump(ast.parse(shipped)) == ast.dump(original), name


def test_explanations_are_left_out_and_nothing_else() -> None:
    source = '''"""Module.

Long.
"""
# reason
LINK = "a # b"  # why


class Failure(Exception):
    """Only this."""


def double(value: int) -> int:
    """Twice."""
    text = """kept
# kept too"""
    return 2 * value  # noqa
'''
    assert without_explanations(source) == (
        'LINK = "a # b"\nclass Failure(Exception):\n    pass\ndef double(value: int) -> int:\n'
        '    text = """kept\n# kept too"""\n    return 2 * value\n'
    )


def test_no_secret_is_in_it() -> None:
    text = json.dumps([born.document(rendered(sample())), files_of(sample())])
    mesh = mesh_of(sample())
    secrets = [encode(SEED), encode(fleet_seed(SEED, "frankfurt", 0))]
    secrets += [keys.preshared_key for keys in slot_keys(SEED, mesh.slots).values()]
    assert not [secret for secret in secrets if secret in text]
    assert "PGPASSWORD=" not in text


def test_members_claim_only_slots_of_their_own_generation() -> None:
    data = sample_data()
    data["fleets"]["frankfurt"]["generation"] = 3
    facts = json.loads(files_of(settings.validate(data))["/etc/fortress/member.json"])
    assert facts["slot_name"].format(facts["first_index"]) == "frankfurt-3-00"
    assert facts["first_address"] == "10.100.0.96"
    assert facts["slot_count"] == 31 or facts["slot_count"] == 32
    assert facts["seed_parameter"].endswith("/generation-3/seed")


def test_its_size_does_not_depend_on_the_number_of_slots() -> None:
    data = sample_data()
    data["mesh"] = {"range": "10.100.0.0/16"}
    data["fleets"]["frankfurt"].update({"block": "10.100.128.0/17", "max-size": 10000})
    assert len(rendered(settings.validate(data))) < len(rendered(sample())) + 200


def test_nothing_of_a_request_or_key_reaches_a_disk() -> None:
    files = files_of(sample())
    kernel = files["/etc/sysctl.d/60-fortress.conf"].splitlines()
    assert {"kernel.core_pattern=|/bin/false", "fs.suid_dumpable=0"} <= set(kernel)
    journal = files["/etc/systemd/journald.conf.d/60-fortress.conf"].splitlines()
    assert {"Storage=volatile", "RuntimeMaxUse=32M", "ForwardToSyslog=no"} <= set(journal)
    for name in ("member", "workload"):
        unit = files[f"/etc/systemd/system/fortress-{name}.service"].splitlines()
        assert "LimitCORE=0" in unit
    commands = born.command(rendered(sample())).splitlines()
    assert "systemctl restart --no-block systemd-journald.service" in commands
    member = files["/etc/systemd/system/fortress-member.service"].splitlines()
    (waits_for,) = [line for line in member if "systemd-journald.service" in line]
    assert waits_for.startswith("After=")
    assert "sysctl --quiet --load /etc/sysctl.d/60-fortress.conf" in commands


def run_command(command: str, root: Path) -> "subprocess.CompletedProcess[str]":
    """Run a member's command with another root directory; what concerns the machine is printed."""
    unpacking = f'extractall("{root}/"'
    script = command.replace('extractall("/"', unpacking)
    script = re.sub(r"^(systemctl|sysctl|sync)\b", r"echo \1", script, flags=re.MULTILINE)
    assert unpacking in script
    return subprocess.run(["sh", "-c", script], capture_output=True, text=True, check=False)


def test_the_command_puts_every_file_in_place_with_its_mode_and_only_then_starts_the_member(
    tmp_path: Path,
) -> None:
    done = run_command(born.command(rendered(sample())), tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    placed = {path for path in tmp_path.rglob("*") if path.is_file()}
    assert {f"/{path.relative_to(tmp_path)}": path.read_text() for path in placed} == files_of(
        sample()
    )
    modes = {path.name: path.stat().st_mode & 0o777 for path in placed}
    assert modes["member.py"] == 0o644
    assert modes["start"] == modes["install"] == 0o755
    assert done.stdout.splitlines()[-2:] == [
        "sync",
        "systemctl start --no-block fortress-member.service",
    ]


@pytest.mark.parametrize("share", [0.0, 0.3, 0.6, 0.9])
@pytest.mark.parametrize("damage", ["cut off", "one byte"])
def test_a_member_whose_files_are_damaged_is_not_started(
    tmp_path: Path, share: float, damage: str
) -> None:
    user_data = rendered(sample())
    whole = born.archive(user_data)
    place = int(share * len(whole))
    damaged = bytearray(whole[:place] if damage == "cut off" else whole)
    if damage == "one byte":
        damaged[place] ^= 0x55
    right, wrong = (base64.b64encode(content).decode() for content in (whole, damaged))
    done = run_command(born.command(user_data).replace(right, wrong), tmp_path)
    assert done.returncode != 0
    assert done.stdout == ""
    assert not list(tmp_path.iterdir())


def test_a_member_has_no_swap_after_a_reboot_either() -> None:
    unit = files_of(sample())["/etc/systemd/system/fortress-member.service"].splitlines()
    before = unit.index("ExecStartPre=/usr/sbin/swapoff --all")
    assert before < unit.index("ExecStart=/usr/bin/python3 /usr/local/lib/fortress/node/member.py")


def test_at_power_off_a_member_drains_before_workload_and_network_end() -> None:
    data = sample_data()
    data["fleets"]["frankfurt"]["drain-seconds"] = 900
    unit = files_of(settings.validate(data))["/etc/systemd/system/fortress-member.service"]
    lines = dict(line.split("=", 1) for line in unit.splitlines() if "=" in line)
    after = {
        name
        for line in unit.splitlines()
        if line.startswith("After=")
        for name in line.removeprefix("After=").split()
    }
    # systemd stops units in the reverse of the order in which it starts them.
    assert {
        "network.target",
        "fortress-workload.service",
        "fortress-health.service",
    } <= after
    assert lines["DefaultDependencies"] == "no"
    assert (lines["Conflicts"], lines["Before"]) == ("shutdown.target", "shutdown.target")
    assert int(lines["TimeoutStopSec"]) > 900
    assert lines["KillMode"] == "mixed"


def test_what_a_member_says_is_in_its_console_log() -> None:
    unit = files_of(sample())["/etc/systemd/system/fortress-member.service"].splitlines()
    assert {"StandardOutput=journal+console", "StandardError=journal+console"} <= set(unit)


def test_output_of_the_workload_is_kept_only_when_asked_for() -> None:
    unit = "/etc/systemd/system/fortress-workload.service"
    assert "StandardOutput=null" in files_of(sample())[unit]
    data = sample_data()
    data["workload"]["log-output"] = True
    assert "StandardOutput=null" not in files_of(settings.validate(data))[unit]


def test_a_container_gets_its_variables_by_name() -> None:
    data = sample_data()
    data["workload"] = container_workload()
    files = files_of(settings.validate(data))
    unit = files["/etc/systemd/system/fortress-workload.service"]
    (start,) = [line for line in unit.splitlines() if line.startswith("ExecStart=")]
    assert start.endswith("localhost/greeter:1.0")
    assert "--env GREETING " in start
    assert "--env PGPASSWORD " in start
    assert "god dag" not in start
    assert "--log-driver none" in start
    assert not [path for path in files if path.startswith("/usr/local/lib/fortress/workload/")]


@pytest.mark.parametrize("kind", ["script", "container"])
def test_a_workload_never_gets_the_instances_role_even_as_root(kind: str) -> None:
    data = sample_data()
    if kind == "container":
        data["workload"] = container_workload()
    files = files_of(settings.validate(data))
    unit = files["/etc/systemd/system/fortress-workload.service"].splitlines()
    assert "IPAddressDeny=169.254.169.254 fd00:ec2::254" in unit
    if kind == "container":
        # The refusal holds for the unit's processes, so the container must be among them.
        (start,) = [line for line in unit if line.startswith("ExecStart=")]
        assert "--cgroups split" in start
        assert "Delegate=yes" in unit


def test_too_much_is_refused_with_the_size_and_what_is_large(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("install", "start"):
        (tmp_path / name).write_text("#!/bin/sh\n")
    (tmp_path / "page.html").write_text("".join(f"{number * 7919:x}" for number in range(9000)))
    data = sample_data()
    data["workload"]["directory"] = str(tmp_path)
    with pytest.raises(SettingsError, match=r"fleet frankfurt has \d+ bytes .*page\.html \d+"):
        rendered(settings.validate(data))


def test_what_fits_with_made_up_facts_fits_with_true_ones() -> None:
    limit = len(rendered(sample(), LONG_FACTS, secrets_version=HIGH_VERSION))
    for number in range(20):
        facts = join_facts(mesh_of(sample()), hub_public_key=encode(derive(SEED, "hub", number)))
        assert len(rendered(sample(), facts, secrets_version=10 * number)) < limit


def test_nobody_can_log_in_and_only_the_edge_reaches_the_workload() -> None:
    document = born.document(rendered(sample()))
    assert document["users"] == []
    rules = files_of(sample())["/etc/fortress/nftables/member.nft"]
    assert "elements = { 10.100.0.1 }" in rules
    assert "policy drop" in rules
    assert "dport 22" not in rules


@pytest.mark.skipif(shutil.which("nft") is None, reason="nft is not installed")
def test_nft_accepts_the_rules(tmp_path: Path) -> None:
    rules = tmp_path / "member.nft"
    rules.write_text(files_of(sample())["/etc/fortress/nftables/member.nft"])
    # In a network namespace of its own: even a check talks to the kernel's tables.
    checked = subprocess.run(
        ["unshare", "--user", "--map-root-user", "--net", "nft", "-c", "-f", rules],
        capture_output=True,
        text=True,
        check=False,
    )
    if "unshare failed" in checked.stderr or "Operation not permitted" in checked.stderr:
        pytest.skip("no network namespace may be made here")
    assert checked.returncode == 0, checked.stderr


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="systemd is not installed")
@pytest.mark.parametrize("kind", ["script", "container"])
def test_systemd_accepts_the_units(tmp_path: Path, kind: str) -> None:
    data = sample_data()
    if kind == "container":
        data["workload"] = container_workload()
    units = []
    for path, content in files_of(settings.validate(data)).items():
        if path.endswith(".service"):
            units.append(tmp_path / Path(path).name)
            # Programs are not on this machine.
            units[-1].write_text(
                "\n".join(
                    "ExecStart=/bin/true" if line.startswith("ExecStart=") else line
                    for line in content.splitlines()
                    if not line.startswith("ExecStop=")
                )
            )
    checked = subprocess.run(
        ["systemd-analyze", "verify", "--man=no", *units],
        capture_output=True,
        text=True,
        check=False,
    )
    complaints = [line for line in checked.stderr.splitlines() if str(tmp_path) in line]
    assert complaints == []


def test_packing_has_no_date() -> None:
    assert pack(b"text")[4:8] == b"\0\0\0\0"

"""Members come and go, reboot, shrink their packets and change their keys while requests pass
through the door; at last everything ends.

The tests share one lab and build on each other's order: generations only go up, and the last tests
destroy.
"""

import json
import re
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from lab import paths, wan
from lab.driving import (
    DATABASE_NODE,
    EXISTING_NODE,
    FLEET,
    GROUP,
    OSLO_CONNECTIONS,
    OSLO_STATE,
    Lab,
    await_condition,
)
from lab.namespace import Namespace
from lab.stack import AWS_ENDPOINT, STACK
from lab.wan import WanSettings
from plan.names import METRIC_NAMESPACE

MEBIBYTE = 1024 * 1024
# IPv4 20, UDP 8, WireGuard's data message 32 bytes (WireGuard whitepaper, section 5.4.6).
TUNNEL_OVERHEAD_BYTES = 60


def fleet_tool(lab: Lab, *words: str, check: bool = True) -> "subprocess.CompletedProcess[str]":
    command = " ".join([f"{lab.root}/scripts/fleet", *words, "--stack", STACK])
    return lab.inside(command, check=check)


def rows(lab: Lab) -> list[dict[str, Any]]:
    """What scripts/fleet status says of every slot in use."""
    (fleet,) = json.loads(fleet_tool(lab, "status", "--json").stdout)["fleets"]
    found: list[dict[str, Any]] = fleet["rows"]
    return found


def the_member(lab: Lab) -> dict[str, Any]:
    """What scripts/fleet status says of the only member."""
    (instance,) = lab.in_service()
    return next(row for row in rows(lab) if row["instance"] == instance)


def claim_of(lab: Lab, instance: str) -> dict[str, str]:
    return next(claim for claim in lab.claims().values() if claim["instance"] == instance)


def change(lab: Lab, *, fleet: dict[str, Any] | None = None, **top: dict[str, Any]) -> None:
    """Merge changes into the lab's settings file: the fleet's, or those of a section."""
    settings = lab.settings()
    settings["fleets"][FLEET] |= fleet or {}
    for name, changes in top.items():
        settings[name] = settings.get(name, {}) | changes
    lab.write_settings(settings)


def up(lab: Lab) -> str:
    text = lab.pulumi("up", "--stack", STACK, "--yes").stdout
    lab.pulumi("preview", "--stack", STACK, "--expect-no-changes")
    return text


def peers(lab: Lab, interface: str = "wg0") -> set[str]:
    """Public keys that the hub accepts."""
    return set(lab.on(DATABASE_NODE, f"wg show {interface} peers").split())


@contextmanager
def no_request_fails(lab: Lab, *, from_fleet: int = 50) -> Iterator[None]:
    """Keep Oslo full meanwhile; the fleet answers more than so many requests, and nobody fails."""
    load = lab.load(seconds=1800, held=OSLO_CONNECTIONS)
    try:
        yield
    finally:
        report = load.end()
    assert report["failed"] == []
    assert report["by_site"].get(FLEET, 0) > from_fleet, "the load did not reach the fleet"


def test_status_says_who_is_in_which_slot_and_how_it_does(lab: Lab) -> None:
    row = the_member(lab)
    assert row["slot"].startswith(f"{FLEET}-0-")
    assert (row["ec2_state"], row["lifecycle"]) == ("running", "InService")
    assert row["handshake_age_seconds"] < 180
    assert row["tunnel_mtu"] == 1360
    assert row["door_state"].startswith("UP")
    assert row["requests"] >= 0
    text = fleet_tool(lab, "status").stdout
    assert row["instance"] in text
    assert f"{len(lab.claims())} of 32 slots claimed" in text


@pytest.fixture
def path_mtu(lab: Lab, request: pytest.FixtureRequest) -> Iterator[int]:
    """The largest packet between Oslo and the fleet; larger ones vanish without a word."""
    namespace, mtu = Namespace(paths.RUN), request.param
    wan.configure(namespace, WanSettings(mtu=mtu))
    yield mtu
    wan.configure(namespace, WanSettings())


def a_megabyte_passes_both_ways(lab: Lab, address: str) -> None:
    member = f"http://{address}:8080"
    size = f"curl -fsS --max-time 60 -o /dev/null -w '%{{size_download}}' {member}/big"
    assert int(lab.on(DATABASE_NODE, f"{size}?bytes={MEBIBYTE}")) == MEBIBYTE
    send = f"curl -fsS --max-time 60 --data-binary @- {member}/query"
    text = lab.on(DATABASE_NODE, f"head -c {MEBIBYTE} /dev/zero | {send}")
    assert json.loads(text)["bytes"] == MEBIBYTE


@pytest.mark.parametrize("path_mtu", [1500], indirect=True)
def test_a_megabyte_passes_by_a_usual_path(lab: Lab, path_mtu: int) -> None:
    row = the_member(lab)
    assert row["tunnel_mtu"] == 1360 <= path_mtu - TUNNEL_OVERHEAD_BYTES
    a_megabyte_passes_both_ways(lab, row["address"])


@pytest.mark.parametrize("path_mtu", [1368, 1296], indirect=True)
def test_a_member_that_starts_again_keeps_its_slot_and_fits_its_packets_to_a_narrow_path(
    lab: Lab, path_mtu: int
) -> None:
    (instance,) = lab.in_service()
    before = claim_of(lab, instance)
    lab.inside(f"virsh reset {instance}")

    def serves_again() -> bool:
        now = claim_of(lab, instance)
        return now["serving_since"] > before["serving_since"] and bool(lab.members())

    await_condition("the member to serve after its reboot", serves_again)
    row = the_member(lab)
    assert (row["slot"], row["instance"]) == (before["slot"], instance)
    # WireGuard's padding to 16 bytes (whitepaper, section 5.4.6) may cost up to 15 of them.
    assert 0 <= path_mtu - TUNNEL_OVERHEAD_BYTES - row["tunnel_mtu"] < 16
    a_megabyte_passes_both_ways(lab, row["address"])


def test_scale_cycles_under_load_change_nothing_in_oslo_and_fail_no_request(lab: Lab) -> None:
    before = lab.on(DATABASE_NODE, OSLO_STATE)
    with no_request_fails(lab):
        for _ in range(2):
            lab.set_desired(2)
            await_condition("the second member to serve", lambda: len(lab.in_service()) == 2)
            lab.set_desired(1)
            await_condition("one member to have left", lambda: len(lab.group()["Instances"]) == 1)
    assert lab.on(DATABASE_NODE, OSLO_STATE) == before
    assert {claim["instance"] for claim in lab.claims().values()} == set(lab.in_service())
    lab.pulumi("preview", "--stack", STACK, "--expect-no-changes")


def test_a_spot_notice_drains_the_member_before_its_machine_is_taken(lab: Lab) -> None:
    (instance,) = lab.in_service()
    ask = f"from lab.cloud import control; control.interrupt('{AWS_ENDPOINT}', '{instance}', 120)"
    # For most of this time there is no member.
    with no_request_fails(lab, from_fleet=0):
        lab.inside(f'PYTHONPATH={lab.root} {lab.root}/.venv/bin/python -c "{ask}"')
        await_condition(
            "the claim to be released",
            lambda: instance not in {claim["instance"] for claim in lab.claims().values()},
            120,
        )
        await_condition("a replacement to serve", lambda: set(lab.in_service()) - {instance})
        await_condition("the door to see it", lab.members, 60)


def test_a_fleets_key_is_replaced_without_a_failed_request(lab: Lab) -> None:
    (old,) = lab.in_service()
    before, old_peers = lab.refresh().get("InstanceRefreshId", ""), peers(lab)
    with no_request_fails(lab):
        change(lab, fleet={"generation": 1})
        up(lab)
        assert old_peers < peers(lab), "both generations are accepted while members are replaced"
        lab.await_refresh(before)
        assert old not in lab.in_service()
        await_condition("the door to see the new member", lab.members, 60)
        change(lab, fleet={"accept-previous-generation": False})
        up(lab)
    assert {row["slot"].rsplit("-", 2)[1] for row in rows(lab)} == {"1"}
    dropped = [name for name in lab.outputs()["slots"] if name.startswith(f"{FLEET}-0-")]
    assert dropped == []
    assert not old_peers <= peers(lab), "the previous generation is still accepted"


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"fleets": 0}, "generation 0, but this stack already runs 1"),
        ({"fleets": 3}, "one previous generation is accepted"),
        ({"hub": 1}, "Raise the hub by one together with every fleet by one"),
    ],
    ids=["backwards", "two at once", "the hub alone"],
)
def test_a_step_that_would_cut_members_off_is_refused_before_anything_is_touched(
    lab: Lab, wrong: dict[str, int], message: str
) -> None:
    right = lab.settings()
    settings = lab.settings()
    settings["fleets"][FLEET]["accept-previous-generation"] = True
    if "fleets" in wrong:
        settings["fleets"][FLEET]["generation"] = wrong["fleets"]
    else:
        settings["core"]["nodes"][0]["generation"] = wrong["hub"]
    lab.write_settings(settings)
    done = lab.pulumi("up", "--stack", STACK, "--yes", "--skip-preview", check=False)
    lab.write_settings(right)
    text = done.stdout + done.stderr
    assert done.returncode != 0
    assert message in text
    assert "Traceback" not in text
    lab.pulumi("preview", "--stack", STACK, "--expect-no-changes")


def test_the_hubs_key_is_replaced_without_a_failed_request(lab: Lab) -> None:
    before, old_key = lab.refresh()["InstanceRefreshId"], lab.outputs()["hub"]["public_key"]
    settings = lab.settings()
    settings["core"]["nodes"][0]["generation"] = 1
    settings["fleets"][FLEET] |= {"generation": 2, "accept-previous-generation": True}
    with no_request_fails(lab):
        lab.write_settings(settings)
        up(lab)
        keys = lab.on(DATABASE_NODE, "wg show wg0 public-key; wg show wg1 public-key").split()
        assert old_key in keys
        assert lab.outputs()["hub"]["public_key"] in keys
        assert lab.outputs()["hub"]["public_key"] != old_key
        lab.await_refresh(before)
        await_condition("the door to see the new member", lab.members, 60)
        change(lab, mesh={"accept-previous-hub": False})
        up(lab)
    keys = lab.on(DATABASE_NODE, "wg show all public-key").split()
    assert old_key not in keys
    assert {lab.ask()["row"] for _ in range(4)} == {"God dag fra Oslo"}


def test_a_core_nodes_key_is_replaced_in_one_up(lab: Lab) -> None:
    interface = lab.on(EXISTING_NODE, "wg show interfaces")
    before = lab.on(EXISTING_NODE, f"wg show {interface} public-key")
    settings = lab.settings()
    settings["core"]["nodes"][1]["generation"] = 1
    lab.write_settings(settings)
    up(lab)
    assert lab.on(EXISTING_NODE, f"wg show {interface} public-key") != before
    await_condition(
        "the node to serve with its new key",
        lambda: {lab.ask()["served_by"] for _ in range(4)} == {DATABASE_NODE, EXISTING_NODE},
        60,
    )


def test_a_fleet_is_shut_out_at_once_by_one_setting_and_comes_back_with_new_keys(
    lab: Lab,
) -> None:
    slot = lab.members()[0]
    address, key = lab.outputs()["slots"][slot].split()
    change(lab, fleet={"generation": 3, "accept-previous-generation": False})
    before = lab.refresh()["InstanceRefreshId"]
    up(lab)
    accepted = lab.on(DATABASE_NODE, "wg show all allowed-ips")
    assert key not in accepted
    assert address not in accepted
    assert lab.ask()["row"] == "God dag fra Oslo"
    lab.await_refresh(before)
    await_condition(
        "members of the new generation only",
        lambda: {slot.rsplit("-", 2)[1] for slot in [*lab.claims(), *lab.members()]} == {"3"},
        120,
    )


def test_the_door_tells_how_much_of_its_work_found_oslo_full(lab: Lab) -> None:
    change(lab, fleet={"min-size": 0, "scaling": {"kind": "spill-pressure", "target-percent": 30}})
    up(lab)
    load = lab.load(seconds=600, held=OSLO_CONNECTIONS)

    def told() -> bool:
        text = lab.on(DATABASE_NODE, "journalctl -u fortress-spill-pressure -o cat --no-pager")
        shares = [float(share) for share in re.findall(rf"of {FLEET}: ([\d.]+) %", text)]
        return any(share > 0 for share in shares)

    await_condition("a minute in which Oslo was full to be told", told, 240)
    load.end()
    metrics = lab.aws("cloudwatch", "list_metrics", Namespace=METRIC_NAMESPACE)["Metrics"]
    assert {metric["MetricName"] for metric in metrics} == {
        "SpillPressure",
        "SpillPressurePerMember",
    }
    change(lab, fleet={"min-size": 1, "scaling": {"kind": "cpu", "target-percent": 60}})
    up(lab)
    units = lab.on(DATABASE_NODE, "systemctl list-timers --all --no-legend", check=False)
    assert "fortress-spill-pressure" not in units
    left = lab.on(DATABASE_NODE, "ls /etc/fortress | grep -i spill", check=False)
    assert left == ""


def test_a_function_is_made_changed_and_removed(lab: Lab, tmp_path: Path) -> None:
    (tmp_path / "job.py").write_text("def run(event, context):\n    return 'one'\n")
    function = {"directory": str(tmp_path), "runtime": "python3.13", "handler": "job.run"}
    change(lab, fleet={"functions": {"thumbnail": function}})
    up(lab)
    (made,) = lab.aws("lambda", "list_functions")["Functions"]
    assert made["FunctionName"] == lab.outputs()["functions"][FLEET]["thumbnail"]["name"]
    (tmp_path / "job.py").write_text("def run(event, context):\n    return 'two'\n")
    up(lab)
    (changed,) = lab.aws("lambda", "list_functions")["Functions"]
    assert changed["CodeSha256"] != made["CodeSha256"]
    settings = lab.settings()
    settings["fleets"][FLEET]["functions"]["thumbnail"]["touches-personal-data"] = True
    lab.write_settings(settings)
    refused = lab.pulumi("preview", "--stack", STACK, check=False)
    assert refused.returncode != 0
    assert "personal data" in refused.stdout + refused.stderr
    settings["fleets"][FLEET]["functions"] = {}
    lab.write_settings(settings)
    up(lab)
    assert lab.aws("lambda", "list_functions")["Functions"] == []


def test_orphans_are_listed_with_their_reason_and_reaped(lab: Lab) -> None:
    assert fleet_tool(lab, "orphans").stdout.strip() == "no orphans"
    free = next(name for name in lab.outputs()["slots"] if name not in lab.claims())
    lab.aws(
        "dynamodb",
        "put_item",
        TableName=f"{GROUP}-claims",
        Item={
            "slot": {"S": free},
            "instance": {"S": "i-0123456789abcdef0"},
            "claimed_at": {"N": "1"},
        },
    )
    tags = [
        {"Key": "project", "Value": "fortress-and-fleet"},
        {"Key": "stack", "Value": STACK},
        {"Key": "fleet", "Value": FLEET},
    ]
    address = lab.aws(
        "ec2",
        "allocate_address",
        Domain="vpc",
        TagSpecifications=[{"ResourceType": "elastic-ip", "Tags": tags}],
    )["AllocationId"]
    volume = lab.aws(
        "ec2",
        "create_volume",
        AvailabilityZone="eu-central-1a",
        Size=1,
        TagSpecifications=[{"ResourceType": "volume", "Tags": tags}],
    )["VolumeId"]
    listed = fleet_tool(lab, "orphans", check=False)
    assert listed.returncode == 1
    for part in (free, "unknown to EC2", address, volume, "KEPT"):
        assert part in listed.stdout, listed.stdout
    reaped = fleet_tool(lab, "orphans", "--reap", "--yes", check=False)
    assert f"removed claim {free}" in reaped.stdout
    assert f"removed address {address}" in reaped.stdout
    assert volume not in re.findall(r"removed volume (\S+)", reaped.stdout), "it may hold data"
    lab.aws("ec2", "delete_volume", VolumeId=volume)
    assert free not in lab.claims()
    assert fleet_tool(lab, "orphans").stdout.strip() == "no orphans"


def test_destroy_refuses_while_the_data_is_protected(lab: Lab) -> None:
    done = lab.pulumi("destroy", "--stack", "lab", "--yes", check=False)
    assert done.returncode != 0
    assert "protected" in done.stdout + done.stderr
    assert lab.ask()["row"] == "God dag fra Oslo"


def test_destroy_and_down_leave_nothing_but_protected_data(lab: Lab) -> None:
    lab.pulumi("destroy", "--stack", "lab", "--yes", "--exclude-protected")
    left = json.loads(lab.pulumi("stack", "export").stdout)["deployment"]["resources"]
    kinds = {row["type"] for row in left if not row["type"].startswith("pulumi:")}
    assert not {kind for kind in kinds if kind.startswith("aws:")}, kinds
    assert group_is_gone(lab)
    lab.command("down")
    processes = subprocess.run(["ps", "-eo", "args"], capture_output=True, text=True).stdout
    for word in ("lab.cloud", "lab.wan", "guest=oslo", "libvirtd"):
        assert word not in processes
    assert str(paths.LAB) not in Path("/proc/mounts").read_text()
    assert (paths.POOL / f"{DATABASE_NODE}-data.qcow2").exists()


def group_is_gone(lab: Lab) -> bool:
    found = lab.aws("autoscaling", "describe_auto_scaling_groups")["AutoScalingGroups"]
    return not found

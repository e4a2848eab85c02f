"""scripts/fleet with the real client library against moto, and `pulumi` and `ssh` as stand-ins."""

import functools
import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import boto3
import pytest
from moto import mock_aws

from claims import ClaimTable
from scripts.fleet_tool import __main__ as fleet
from scripts.fleet_tool.cloud import NOT_A_ROOT_VOLUME, UNTAGGED, Cloud
from scripts.fleet_tool.orphans import Kind, Place
from tests.unit.samples import sample_data

REGION = "eu-central-1"
GROUP = "fortress-and-fleet-prod-frankfurt"
TABLE = f"{GROUP}-claims"
OURS = {"project": "fortress-and-fleet", "stack": "prod", "fleet": "frankfurt"}
THEIRS = {**OURS, "stack": "prod-eu"}


@functools.cache
def client(service: str) -> Any:
    return boto3.client(service, region_name=REGION)  # type: ignore[call-overload]


def tag_list(tags: dict[str, str]) -> list[dict[str, str]]:
    return [{"Key": key, "Value": value} for key, value in tags.items()]


def tagged(kind: str, tags: dict[str, str]) -> list[dict[str, Any]]:
    return [{"ResourceType": kind, "Tags": tag_list(tags)}]


@pytest.fixture(autouse=True)
def _aws(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, "made-up")
    monkeypatch.delenv("AWS_ENDPOINT_URL", raising=False)
    with mock_aws():
        yield


class Engine:
    """Stand-ins for `pulumi` and `ssh` on PATH; the state is what a test puts in."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        config = {"fortress-and-fleet:settings": {"value": json.dumps(sample_data())}}
        self._write("config.json", config)
        self._write("outputs.json", {"fleets": {"frankfurt": GROUP}})
        self.record()
        self._program("ssh", "echo 'ssh: connect to 10.20.0.11 port 22: refused' >&2; exit 255")
        self._program(
            "pulumi",
            f'cd {directory}; case "$1 $2" in "stack export") cat state.json;; '
            '"stack output") cat outputs.json;; "config --json") cat config.json;; '
            "*) exit 9;; esac",
        )

    def record(self, *ids: str, pending: int = 0) -> None:
        deployment = {
            "resources": [{"urn": "stack"}, *({"custom": True, "id": one} for one in ids)],
            "pending_operations": [{"type": "creating"}] * pending,
        }
        self._write("state.json", {"version": 3, "deployment": deployment})

    def _write(self, name: str, content: object) -> None:
        (self._directory / name).write_text(json.dumps(content))

    def _program(self, name: str, text: str) -> None:
        file = self._directory / name
        file.write_text(f"#!/bin/sh\n{text}\n")
        file.chmod(0o755)


@pytest.fixture
def engine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Engine:
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    return Engine(tmp_path)


def run_instance(tags: dict[str, str] = OURS, **arguments: Any) -> str:
    ec2 = client("ec2")
    image = ec2.describe_images(Owners=["amazon"])["Images"][0]["ImageId"]
    answer = ec2.run_instances(
        ImageId=image,
        MinCount=1,
        MaxCount=1,
        InstanceType="t3.medium",
        TagSpecifications=tagged("instance", tags),
        **arguments,
    )
    return str(answer["Instances"][0]["InstanceId"])


def make_table(name: str, tags: dict[str, str]) -> None:
    client("dynamodb").create_table(
        TableName=name,
        KeySchema=[{"AttributeName": "slot", "KeyType": "HASH"}],
        AttributeDefinitions=[{"AttributeName": "slot", "AttributeType": "S"}],
        BillingMode="PAY_PER_REQUEST",
        Tags=tag_list(tags),
    )


def make_group(tags: dict[str, str] = OURS) -> str:
    """A group with one instance; returns the instance's id."""
    ec2 = client("ec2")
    ec2.create_launch_template(
        LaunchTemplateName="member",
        LaunchTemplateData={
            "ImageId": ec2.describe_images(Owners=["amazon"])["Images"][0]["ImageId"],
            "InstanceType": "t3.medium",
            "TagSpecifications": tagged("instance", tags),
        },
        TagSpecifications=tagged("launch-template", tags),
    )
    vpc = ec2.create_vpc(CidrBlock="10.64.0.0/16", TagSpecifications=tagged("vpc", tags))["Vpc"]
    subnet = ec2.create_subnet(VpcId=vpc["VpcId"], CidrBlock="10.64.0.0/20")["Subnet"]
    autoscaling = client("autoscaling")
    autoscaling.create_auto_scaling_group(
        AutoScalingGroupName=GROUP,
        MinSize=1,
        MaxSize=4,
        LaunchTemplate={"LaunchTemplateName": "member"},
        VPCZoneIdentifier=subnet["SubnetId"],
        Tags=[{**tag, "PropagateAtLaunch": False} for tag in tag_list(tags)],
    )
    [group] = autoscaling.describe_auto_scaling_groups()["AutoScalingGroups"]
    return str(group["Instances"][0]["InstanceId"])


def leave_everything_behind(tags: dict[str, str]) -> None:
    """One of each kind under some tags, as an interrupted destroy would leave them."""
    ec2 = client("ec2")
    stack = tags["stack"]
    zone = f"{REGION}a"
    snapshot = ec2.create_snapshot(
        VolumeId=ec2.create_volume(AvailabilityZone=zone, Size=8)["VolumeId"]
    )["SnapshotId"]
    for more in ({"SnapshotId": snapshot}, {}):
        ec2.create_volume(
            AvailabilityZone=zone,
            Size=8,
            VolumeType="gp3",
            TagSpecifications=tagged("volume", tags),
            **more,
        )
    ec2.allocate_address(Domain="vpc", TagSpecifications=tagged("elastic-ip", tags))
    vpc = ec2.create_vpc(CidrBlock="10.65.0.0/16", TagSpecifications=tagged("vpc", tags))["Vpc"]
    subnet = ec2.create_subnet(VpcId=vpc["VpcId"], CidrBlock="10.65.0.0/20")["Subnet"]
    ec2.create_network_interface(SubnetId=subnet["SubnetId"])
    ec2.create_launch_template(
        LaunchTemplateName=f"left-{stack}",
        LaunchTemplateData={"InstanceType": "t3.medium"},
        TagSpecifications=tagged("launch-template", tags),
    )
    make_table(f"fortress-and-fleet-{stack}-london-claims", tags)
    client("ssm").put_parameter(
        Name=f"/fortress-and-fleet/{stack}/london/generation-0/seed", Value="x", Type="SecureString"
    )
    logs = client("logs")
    logs.create_log_group(logGroupName=f"/aws/lambda/fortress-and-fleet-{stack}-mail", tags=tags)
    logs.create_log_group(logGroupName=f"/fortress-and-fleet/{stack}/london")


def cloud() -> Cloud:
    return Cloud(Place(region=REGION), project="fortress-and-fleet", stack="prod")


def test_one_of_each_kind_is_found_and_nothing_of_a_stack_whose_name_begins_alike() -> None:
    leave_everything_behind(OURS)
    leave_everything_behind(THEIRS)
    client("logs").create_log_group(logGroupName="/aws/lambda/fortress-and-fleet-prod-eu-x")
    things, problems = cloud().things()
    assert problems == []
    assert sorted(thing.kind for thing in things) == sorted(
        [
            *(set(Kind) - {Kind.GROUP, Kind.INSTANCE, Kind.CLAIM}),
            *(Kind.VOLUME, Kind.LOG_GROUP, Kind.LOG_GROUP),
        ]
    )
    by_id = {thing.id: thing for thing in things}
    assert by_id["/aws/lambda/fortress-and-fleet-prod-eu-x"].kept == UNTAGGED
    assert "/aws/lambda/fortress-and-fleet-prod-eu-mail" not in by_id
    assert by_id["/fortress-and-fleet/prod/london/generation-0/seed"].fleet == "london"
    assert sorted(str(t.kept) for t in things if t.kind is Kind.VOLUME) == [
        "None",
        NOT_A_ROOT_VOLUME,
    ]


def test_reaping_removes_all_but_what_may_hold_data_or_belong_to_another_stack(
    engine: Engine, capsys: pytest.CaptureFixture[str]
) -> None:
    leave_everything_behind(OURS)
    leave_everything_behind(THEIRS)
    make_group()
    assert fleet.main(["orphans", "--stack", "prod"]) == fleet.ORPHANS
    listed = capsys.readouterr().out
    assert GROUP in listed
    assert "0.76" in listed
    before, _ = cloud().things()
    assert fleet.main(["orphans", "--stack", "prod", "--reap", "--yes"]) == fleet.ORPHANS
    after, _ = cloud().things()
    assert len(before) > len(after)
    assert [(thing.kind, thing.kept) for thing in after] == [(Kind.VOLUME, NOT_A_ROOT_VOLUME)]
    others, _ = Cloud(Place(region=REGION), project=OURS["project"], stack="prod-eu").things()
    assert len(others) == 9
    states = cloud().instances().values()
    assert {one.state for one in states} <= {"shutting-down", "terminated"}


def test_in_a_living_fleet_only_the_claimless_instance_and_the_dead_ones_claim_are_orphans(
    engine: Engine, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    member = make_group()
    idle, dead = run_instance(), run_instance()
    client("ec2").terminate_instances(InstanceIds=[dead])
    make_table(TABLE, OURS)
    claims = ClaimTable(client("dynamodb"), TABLE)
    now = time.time()
    claims.take("frankfurt-0-00", member, now=now, owner=None)
    claims.take("frankfurt-0-01", dead, now=now, owner=None)
    [template] = client("ec2").describe_launch_templates()["LaunchTemplates"]
    engine.record(GROUP, TABLE, template["LaunchTemplateId"])

    assert fleet.main(["orphans", "--stack", "prod", "--json"]) == fleet.ORPHANS
    listed = json.loads(capsys.readouterr().out)["orphans"]
    assert [(one["kind"], one["id"]) for one in listed] == [("claim", "frankfurt-0-01")]

    # Five minutes later the idle one has had its time; the member is as old and holds a slot.
    monkeypatch.setattr(time, "time", lambda: now + 310)
    assert fleet.main(["orphans", "--stack", "prod", "--reap", "--yes"]) == fleet.DONE
    said = capsys.readouterr().out
    assert f"removed instance {idle}" in said
    assert "removed claim frankfurt-0-01" in said
    assert claims.claims().keys() == {"frankfurt-0-00"}
    assert cloud().states([member, idle])[member] == "running"
    assert fleet.main(["orphans", "--stack", "prod"]) == fleet.DONE


def test_when_claims_cannot_be_read_no_instance_is_called_an_orphan(
    engine: Engine, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run_instance()
    engine.record(TABLE)
    now = time.time()
    monkeypatch.setattr(time, "time", lambda: now + 9999)
    assert fleet.main(["orphans", "--stack", "prod"]) == fleet.INCOMPLETE
    out, err = capsys.readouterr()
    assert out == "no orphans among what could be looked at\n"
    assert f"can't read claims from {TABLE}" in err


def test_nothing_is_removed_without_the_stacks_name_or_while_the_engine_is_at_work(
    engine: Engine, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    make_table(TABLE, OURS)
    for answer in ("yes", ""):
        monkeypatch.setattr("builtins.input", lambda _, answer=answer: answer)
        assert fleet.main(["orphans", "--stack", "prod", "--reap"]) == fleet.INCOMPLETE
        assert "nothing was removed" in capsys.readouterr().err
    engine.record(pending=1)
    assert fleet.main(["orphans", "--stack", "prod", "--reap", "--yes"]) == fleet.INCOMPLETE
    assert "1 operations under way" in capsys.readouterr().err
    assert client("dynamodb").list_tables()["TableNames"] == [TABLE]


def test_what_was_accounted_for_while_the_person_read_the_list_stays(
    engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_table(TABLE, OURS)

    def answer(_: str) -> str:
        engine.record(TABLE)
        return "prod"

    monkeypatch.setattr("builtins.input", answer)
    fleet.main(["orphans", "--stack", "prod", "--reap"])
    assert client("dynamodb").list_tables()["TableNames"] == [TABLE]


def test_status_joins_aws_and_says_in_one_line_that_oslo_cannot_be_asked(
    engine: Engine, capsys: pytest.CaptureFixture[str]
) -> None:
    member = make_group()
    make_table(TABLE, OURS)
    claims = ClaimTable(client("dynamodb"), TABLE)
    claims.take("frankfurt-0-03", member, now=time.time(), owner=None)
    claims.describe("frankfurt-0-03", member, tunnel_mtu=1216, now=time.time())
    assert fleet.main(["status", "--stack", "prod"]) == fleet.INCOMPLETE
    out, err = capsys.readouterr()
    head, _, line = out.splitlines()
    assert head == f"frankfurt (eu-central-1, group {GROUP}): 1 of 32 slots claimed"
    assert line.split()[:5] == ["frankfurt-0-03", "10.100.0.67", member, "running", "InService"]
    assert line.split()[-4:] == ["-", "1216", "-", "-"]
    assert err.count("\n") == 1
    assert "oslo-db-01 can't be asked: ssh: connect to 10.20.0.11 port 22: refused" in err
    assert fleet.main(["status", "--stack", "prod", "--json", "--all"]) == fleet.INCOMPLETE
    [shown] = json.loads(capsys.readouterr().out)["fleets"]
    assert (len(shown["rows"]), shown["rows"][3]["tunnel_mtu"]) == (32, 1216)


def test_without_credentials_one_line_says_so(
    engine: Engine, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(boto3.Session, "get_credentials", lambda _: None)
    assert fleet.main(["orphans", "--stack", "prod"]) == fleet.INCOMPLETE
    assert capsys.readouterr().err.count("\n") == 1


@pytest.mark.parametrize(
    "words", [["orphans", "--yes"], ["orphans", "--reap", "--json"], ["reap"], []]
)
def test_a_command_line_that_contradicts_itself_is_refused(words: list[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        fleet.main(words)
    assert ended.value.code == fleet.USAGE

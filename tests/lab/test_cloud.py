"""Holds the lab's cloud to what the fleet relies on, over loopback, with pretended machines."""

import base64
import http.client
import json
import threading
import time
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import boto3
import pytest
from botocore.config import Config
from botocore.exceptions import ClientError
from moto.core.base_backend import BackendDict

from lab.cloud import control, groups
from lab.cloud.daemon import Cloud, Settings
from lab.errors import LabError
from lab.machines import Machine

REGION = "eu-central-1"
IMAGE_NAME = "fortress-lab-debian-13-0a1b2c3d"
USER_DATA = b"#cloud-config\nhostname: \xc3\xa6\n"
TOKEN = "X-aws-ec2-metadata-token"
TTL = "X-aws-ec2-metadata-token-ttl-seconds"


@dataclass
class PretendedMachines:
    """Machines that are on or off at once, and remember what was asked of them."""

    on: dict[str, Machine] = field(default_factory=dict)
    started: list[str] = field(default_factory=list)
    asked_to_shut_down: list[str] = field(default_factory=list)
    destroyed: list[str] = field(default_factory=list)
    may_shut_down: threading.Event = field(default_factory=threading.Event)

    def __post_init__(self) -> None:
        self.may_shut_down.set()

    def start(self, machine: Machine) -> None:
        self.on[machine.name] = machine
        self.started.append(machine.name)

    def shut_down(self, name: str, grace_seconds: float) -> None:
        self.asked_to_shut_down.append(name)
        self.may_shut_down.wait(grace_seconds)
        self.on.pop(name, None)

    def destroy(self, name: str) -> None:
        self.on.pop(name, None)
        self.destroyed.append(name)

    def names(self) -> Collection[str]:
        return [*self.on, "oslo-db-01"]


class Running:
    """One running cloud, seen as a program and as a guest would."""

    def __init__(self, machines: PretendedMachines, memory: Path) -> None:
        self.machines = machines
        settings = Settings(
            image_name=IMAGE_NAME,
            regions=(REGION, "eu-north-1"),
            network="aws",
            memory=memory,
            api_address="127.0.0.1",
            api_port=0,
            metadata_address="0.0.0.0",  # noqa: S104
            metadata_port=0,
        )
        self._stop = threading.Event()
        self._cloud = Cloud(machines, settings)
        self.endpoint = f"http://127.0.0.1:{self._cloud.api_port}"
        self._thread = threading.Thread(target=self._cloud.run, args=(self._stop, 0.02))
        self._thread.start()
        self.ec2, self.autoscaling = self.client("ec2"), self.client("autoscaling")

    def client(self, service: str) -> Any:
        return boto3.client(
            service,  # type: ignore[call-overload]
            region_name=REGION,
            endpoint_url=self.endpoint,
            aws_access_key_id="lab",
            aws_secret_access_key="lab",
            config=Config(retries={"total_max_attempts": 1}),
        )

    def close(self) -> None:
        self._stop.set()
        self._thread.join()
        self._cloud.close()

    def group(self) -> dict[str, Any]:
        found = self.autoscaling.describe_auto_scaling_groups()["AutoScalingGroups"]
        return found[0] if found else {}

    def members(self, state: str = "InService") -> list[str]:
        members = self.group().get("Instances", [])
        return [i["InstanceId"] for i in members if i["LifecycleState"] == state]

    def in_service(self, count: int) -> list[str]:
        until(lambda: len(self.members()) == count)
        return self.members()

    def state_of(self, instance_id: str) -> str:
        found = self.ec2.describe_instances(InstanceIds=[instance_id])
        state: str = found["Reservations"][0]["Instances"][0]["State"]["Name"]
        return state

    def metadata(
        self, address: str, method: str, path: str, headers: dict[str, str] | None = None
    ) -> tuple[int, bytes]:
        connection = http.client.HTTPConnection(
            "127.0.0.1", self._cloud.metadata_port, timeout=10, source_address=(address, 0)
        )
        try:
            connection.request(method, path, headers=headers or {})
            answer = connection.getresponse()
            return answer.status, answer.read()
        finally:
            connection.close()

    def token(self, address: str) -> str:
        status, token = self.metadata(address, "PUT", "/latest/api/token", {TTL: "60"})
        assert status == 200
        return token.decode()

    def read(self, address: str, path: str) -> tuple[int, bytes]:
        return self.metadata(address, "GET", path, {TOKEN: self.token(address)})


def until(condition: Callable[[], object], seconds: float = 15) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it never came true"
        time.sleep(0.01)


@pytest.fixture
def machines() -> PretendedMachines:
    return PretendedMachines()


@pytest.fixture
def cloud(machines: PretendedMachines, tmp_path: Path) -> Iterator[Running]:
    BackendDict.reset()
    groups.use_addresses_from("127.0.8.10")
    running = Running(machines, tmp_path / "memory")
    yield running
    running.machines.may_shut_down.set()
    running.close()


def make_group(cloud: Running, **changes: Any) -> None:
    iam = cloud.client("iam")
    iam.create_role(RoleName="member", AssumeRolePolicyDocument="{}")
    iam.create_instance_profile(InstanceProfileName="member-profile")
    iam.add_role_to_instance_profile(InstanceProfileName="member-profile", RoleName="member")
    vpc = cloud.ec2.create_vpc(CidrBlock="10.64.0.0/16")["Vpc"]["VpcId"]
    subnet = cloud.ec2.create_subnet(VpcId=vpc, CidrBlock="10.64.0.0/20")["Subnet"]["SubnetId"]
    security_group = cloud.ec2.create_security_group(GroupName="m", Description="m", VpcId=vpc)
    image = cloud.ec2.describe_images(
        Owners=["self"], Filters=[{"Name": "name", "Values": ["fortress-lab-debian-13-*"]}]
    )["Images"][0]
    cloud.ec2.create_launch_template(
        LaunchTemplateName="members",
        LaunchTemplateData={
            "ImageId": image["ImageId"],
            "InstanceType": "t3.medium",
            "UserData": base64.b64encode(USER_DATA).decode(),
            "IamInstanceProfile": {"Name": "member-profile"},
            "SecurityGroupIds": [security_group["GroupId"]],
        },
    )
    cloud.autoscaling.create_auto_scaling_group(
        **{
            name: value
            for name, value in {
                "AutoScalingGroupName": "frankfurt",
                "LaunchTemplate": {"LaunchTemplateName": "members", "Version": "$Latest"},
                "MinSize": 0,
                "MaxSize": 4,
                "DesiredCapacity": 1,
                "VPCZoneIdentifier": subnet,
                "HealthCheckGracePeriod": 0,
                **changes,
            }.items()
            if value is not None
        }
    )


def scale(cloud: Running, desired: int) -> None:
    cloud.autoscaling.set_desired_capacity(
        AutoScalingGroupName="frankfurt", DesiredCapacity=desired
    )


def put_hook(cloud: Running, transition: str, **changes: Any) -> None:
    cloud.autoscaling.put_lifecycle_hook(
        **{
            "LifecycleHookName": "hook",
            "AutoScalingGroupName": "frankfurt",
            "LifecycleTransition": transition,
            "HeartbeatTimeout": 600,
            **changes,
        }
    )


def complete(cloud: Running, instance_id: str, result: str = "CONTINUE") -> None:
    cloud.autoscaling.complete_lifecycle_action(
        LifecycleHookName="hook",
        AutoScalingGroupName="frankfurt",
        InstanceId=instance_id,
        LifecycleActionResult=result,
    )


def test_the_lab_image_is_found_by_name_in_every_region(cloud: Running) -> None:
    image = cloud.ec2.describe_images(
        Owners=["self"],
        Filters=[
            {"Name": "name", "Values": ["fortress-lab-debian-13-*"]},
            {"Name": "architecture", "Values": ["x86_64"]},
        ],
    )["Images"]
    assert [found["Name"] for found in image] == [IMAGE_NAME]
    assert image[0]["OwnerId"] == "123456789012"
    assert image[0]["RootDeviceName"] == "/dev/xvda"


def test_every_instance_gets_a_machine_that_looks_like_ec2(cloud: Running) -> None:
    make_group(cloud)
    (name,) = cloud.in_service(1)
    machine = cloud.machines.on[name]
    assert machine.address == "127.0.8.10"
    assert machine.mac == "52:54:00:00:08:0a"
    assert machine.is_ec2
    assert machine.uuid is not None
    assert machine.uuid.startswith("ec2")
    found = cloud.ec2.describe_instances(InstanceIds=[name])["Reservations"][0]["Instances"][0]
    assert found["PrivateIpAddress"] == machine.address


def test_an_instance_is_in_service_only_once_its_machine_runs(
    cloud: Running, machines: PretendedMachines, monkeypatch: pytest.MonkeyPatch
) -> None:
    go_on = threading.Event()
    start = machines.start
    monkeypatch.setattr(machines, "start", lambda machine: go_on.wait(15) and start(machine))
    make_group(cloud)
    until(lambda: len(cloud.members("Pending")) == 1)
    assert cloud.members() == []
    go_on.set()
    cloud.in_service(1)


def test_no_more_than_two_machines_boot_at_once(cloud: Running) -> None:
    make_group(cloud, DesiredCapacity=4)
    cloud.in_service(2)
    assert len(cloud.members("Pending")) == 2
    for address in ("127.0.8.10", "127.0.8.11"):
        cloud.read(address, "/latest/meta-data/iam/security-credentials/")
    cloud.in_service(4)


def test_raising_and_lowering_the_desired_capacity_starts_and_powers_off(cloud: Running) -> None:
    make_group(cloud)
    cloud.in_service(1)
    scale(cloud, 2)
    first, second = cloud.in_service(2)
    cloud.machines.may_shut_down.clear()
    scale(cloud, 1)
    until(lambda: cloud.machines.asked_to_shut_down)
    (left,) = cloud.machines.asked_to_shut_down
    assert left in {first, second}
    assert cloud.state_of(left) == "shutting-down"
    assert cloud.members("Terminating:Proceed") == [left]
    cloud.machines.may_shut_down.set()
    until(lambda: cloud.state_of(left) == "terminated")
    assert left in cloud.machines.destroyed
    assert cloud.in_service(1) == [({first, second} - {left}).pop()]
    assert len(cloud.machines.started) == 2


def test_scaling_in_takes_the_oldest_first_and_spares_protected_ones(cloud: Running) -> None:
    make_group(cloud)
    (first,) = cloud.in_service(1)
    scale(cloud, 2)
    second = ({*cloud.in_service(2)} - {first}).pop()
    cloud.autoscaling.set_instance_protection(
        AutoScalingGroupName="frankfurt", InstanceIds=[first], ProtectedFromScaleIn=True
    )
    scale(cloud, 1)
    until(lambda: cloud.state_of(second) == "terminated")
    assert cloud.members() == [first]


@pytest.mark.parametrize("on_demand_percentage", [0, 50, 100])
def test_a_mixed_group_has_as_many_instances_as_desired(
    cloud: Running, on_demand_percentage: int
) -> None:
    template = {"LaunchTemplateName": "members", "Version": "$Latest"}
    policy = {
        "LaunchTemplate": {
            "LaunchTemplateSpecification": template,
            "Overrides": [{"InstanceType": "t3.small"}, {"InstanceType": "t3a.small"}],
        },
        "InstancesDistribution": {
            "OnDemandBaseCapacity": 1,
            "OnDemandPercentageAboveBaseCapacity": on_demand_percentage,
        },
    }
    make_group(cloud, DesiredCapacity=2, LaunchTemplate=None, MixedInstancesPolicy=policy)
    cloud.in_service(2)
    assert (
        cloud.group()["MixedInstancesPolicy"]["InstancesDistribution"][
            "OnDemandPercentageAboveBaseCapacity"
        ]
        == on_demand_percentage
    )


def test_a_freed_address_goes_to_the_next_instance(cloud: Running) -> None:
    make_group(cloud)
    (first,) = cloud.in_service(1)
    cloud.ec2.terminate_instances(InstanceIds=[first])
    until(lambda: cloud.state_of(first) == "terminated")
    (second,) = cloud.in_service(1)
    assert second != first
    assert cloud.machines.on[second].address == "127.0.8.11"
    scale(cloud, 2)
    cloud.in_service(2)
    assert {m.address for m in cloud.machines.on.values()} == {"127.0.8.10", "127.0.8.11"}


def test_an_instance_whose_machine_goes_off_is_terminated_and_replaced(cloud: Running) -> None:
    make_group(cloud)
    (first,) = cloud.in_service(1)
    cloud.machines.on.clear()
    until(lambda: cloud.members() not in ([], [first]))
    assert cloud.state_of(first) == "terminated"
    assert cloud.machines.asked_to_shut_down == []


def test_a_killed_instance_is_believed_to_run_for_as_long_as_asked(cloud: Running) -> None:
    make_group(cloud)
    (first,) = cloud.in_service(1)
    control.kill(cloud.endpoint, first, silent_seconds=1.0)
    assert first not in cloud.machines.on
    killed = time.monotonic()
    until(lambda: cloud.members() != [first])
    assert time.monotonic() - killed > 0.8
    assert cloud.in_service(1) != [first]


def test_killing_an_unknown_instance_is_refused(cloud: Running) -> None:
    with pytest.raises(LabError, match="no living instance"):
        control.kill(cloud.endpoint, "i-0", silent_seconds=1)


def test_an_instance_marked_unhealthy_is_replaced(cloud: Running) -> None:
    make_group(cloud)
    (first,) = cloud.in_service(1)
    cloud.autoscaling.set_instance_health(InstanceId=first, HealthStatus="Unhealthy")
    until(lambda: cloud.state_of(first) == "terminated")
    assert cloud.in_service(1) != [first]
    assert cloud.machines.asked_to_shut_down == [first]


def test_bad_health_within_the_grace_period_is_ignored_unless_told_otherwise(
    cloud: Running,
) -> None:
    make_group(cloud, HealthCheckGracePeriod=600)
    (first,) = cloud.in_service(1)
    cloud.autoscaling.set_instance_health(InstanceId=first, HealthStatus="Unhealthy")
    assert cloud.group()["Instances"][0]["HealthStatus"] == "Healthy"
    cloud.autoscaling.set_instance_health(
        InstanceId=first, HealthStatus="Unhealthy", ShouldRespectGracePeriod=False
    )
    until(lambda: cloud.state_of(first) == "terminated")


def test_a_terminating_hook_keeps_the_machine_until_the_action_is_completed(
    cloud: Running,
) -> None:
    make_group(cloud)
    (first,) = cloud.in_service(1)
    put_hook(cloud, groups.TERMINATING)
    scale(cloud, 0)
    until(lambda: cloud.members("Terminating:Wait") == [first])
    assert cloud.state_of(first) == "running"
    lifecycle = "/latest/meta-data/autoscaling/target-lifecycle-state"
    assert cloud.read("127.0.8.10", lifecycle) == (200, b"Terminated")
    cloud.autoscaling.record_lifecycle_action_heartbeat(
        LifecycleHookName="hook", AutoScalingGroupName="frankfurt", InstanceId=first
    )
    assert cloud.machines.asked_to_shut_down == []
    complete(cloud, first)
    until(lambda: cloud.state_of(first) == "terminated")
    assert cloud.machines.asked_to_shut_down == [first]


def test_a_terminating_hook_nobody_completes_runs_out(cloud: Running) -> None:
    make_group(cloud)
    (first,) = cloud.in_service(1)
    put_hook(cloud, groups.TERMINATING, HeartbeatTimeout=1)
    scale(cloud, 0)
    until(lambda: cloud.state_of(first) == "terminated")


def test_completing_an_action_nobody_waits_for_is_refused(cloud: Running) -> None:
    make_group(cloud)
    (first,) = cloud.in_service(1)
    put_hook(cloud, groups.TERMINATING)
    with pytest.raises(ClientError, match="No active Lifecycle Action"):
        complete(cloud, first)


@pytest.mark.parametrize("result", ["CONTINUE", "ABANDON"])
def test_a_launching_hook_holds_an_instance_back(cloud: Running, result: str) -> None:
    hook = {"LifecycleHookName": "hook", "LifecycleTransition": groups.LAUNCHING}
    make_group(cloud, LifecycleHookSpecificationList=[hook])
    until(lambda: len(cloud.members("Pending:Wait")) == 1)
    (first,) = cloud.members("Pending:Wait")
    complete(cloud, first, result)
    if result == "CONTINUE":
        assert cloud.in_service(1) == [first]
    else:
        until(lambda: cloud.state_of(first) == "terminated")
        until(lambda: cloud.members("Pending:Wait") not in ([], [first]))


def test_an_instance_refresh_replaces_one_batch_at_a_time_with_the_new_template(
    cloud: Running,
) -> None:
    make_group(cloud, DesiredCapacity=2)
    old = cloud.in_service(2)
    put_hook(cloud, groups.LAUNCHING)
    cloud.ec2.create_launch_template_version(
        LaunchTemplateName="members",
        LaunchTemplateData={
            "ImageId": "ami-2",
            "InstanceType": "t3.medium",
            "UserData": base64.b64encode(b"new").decode(),
        },
    )
    refresh = cloud.autoscaling.start_instance_refresh(
        AutoScalingGroupName="frankfurt",
        Preferences={"MinHealthyPercentage": 50, "InstanceWarmup": 0},
    )["InstanceRefreshId"]

    def status() -> dict[str, Any]:
        answer: dict[str, Any] = cloud.autoscaling.describe_instance_refreshes(
            AutoScalingGroupName="frankfurt", InstanceRefreshIds=[refresh]
        )["InstanceRefreshes"][0]
        return answer

    with pytest.raises(ClientError, match="InstanceRefreshInProgress"):
        cloud.autoscaling.start_instance_refresh(AutoScalingGroupName="frankfurt")
    for done in (50, 100):
        until(lambda: len(cloud.members("Pending:Wait")) == 1)
        assert status()["Status"] == "InProgress"
        until(lambda done=done: status()["PercentageComplete"] == done)  # type: ignore[misc]
        (new,) = cloud.members("Pending:Wait")
        assert cloud.read(cloud.machines.on[new].address or "", "/latest/user-data")[1] == b"new"
        cloud.read(
            cloud.machines.on[new].address or "", "/latest/meta-data/iam/security-credentials/"
        )
        complete(cloud, new)
    until(lambda: status()["Status"] == "Successful")
    assert not set(old) & set(cloud.in_service(2))


def test_a_refresh_that_may_not_lose_capacity_launches_first(cloud: Running) -> None:
    make_group(cloud)
    (old,) = cloud.in_service(1)
    put_hook(cloud, groups.LAUNCHING)
    cloud.autoscaling.start_instance_refresh(
        AutoScalingGroupName="frankfurt",
        Preferences={
            "MinHealthyPercentage": 100,
            "MaxHealthyPercentage": 200,
            "InstanceWarmup": 0,
        },
    )
    until(lambda: cloud.members("Pending:Wait"))
    assert cloud.members() == [old]
    (new,) = cloud.members("Pending:Wait")
    complete(cloud, new)
    until(lambda: cloud.state_of(old) == "terminated")
    assert cloud.in_service(1) == [new]


def test_a_cancelled_refresh_replaces_no_more(cloud: Running) -> None:
    make_group(cloud)
    cloud.in_service(1)
    with pytest.raises(ClientError, match="ActiveInstanceRefreshNotFound"):
        cloud.autoscaling.cancel_instance_refresh(AutoScalingGroupName="frankfurt")
    cloud.autoscaling.start_instance_refresh(AutoScalingGroupName="frankfurt")
    cloud.autoscaling.cancel_instance_refresh(AutoScalingGroupName="frankfurt")
    refreshes = cloud.autoscaling.describe_instance_refreshes(AutoScalingGroupName="frankfurt")
    assert [r["Status"] for r in refreshes["InstanceRefreshes"]] == ["Cancelled"]


def test_a_group_with_instances_is_deleted_only_by_force_and_stays_until_they_are_gone(
    cloud: Running,
) -> None:
    make_group(cloud)
    (first,) = cloud.in_service(1)
    subnet = cloud.group()["VPCZoneIdentifier"]
    with pytest.raises(ClientError, match="ResourceInUse"):
        cloud.autoscaling.delete_auto_scaling_group(AutoScalingGroupName="frankfurt")
    cloud.machines.may_shut_down.clear()
    cloud.autoscaling.delete_auto_scaling_group(AutoScalingGroupName="frankfurt", ForceDelete=True)
    assert cloud.group()["Status"] == "Delete in progress"
    with pytest.raises(ClientError, match="DependencyViolation"):
        cloud.ec2.delete_subnet(SubnetId=subnet)
    cloud.machines.may_shut_down.set()
    until(lambda: cloud.group() == {})
    assert cloud.state_of(first) == "terminated"
    cloud.ec2.delete_subnet(SubnetId=subnet)
    assert cloud.machines.on == {}


def test_a_machine_no_instance_owns_is_removed_and_others_are_left_alone(
    cloud: Running,
) -> None:
    stray, other = "i-0123456789abcdef0", "oslo-web-02"
    for name in (other, stray):
        cloud.machines.on[name] = Machine(name=name, mac="52:54:00:00:00:01")
    until(lambda: stray not in cloud.machines.on)
    assert other in cloud.machines.on


def test_a_machine_that_cannot_start_is_tried_again(
    cloud: Running, machines: PretendedMachines, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("lab.cloud.actuator.RETRY_SECONDS", 0.05)
    start, failures = machines.start, iter([LabError("no memory left")])

    def fail_once(machine: Machine) -> None:
        for failure in failures:
            raise failure
        start(machine)

    monkeypatch.setattr(machines, "start", fail_once)
    make_group(cloud)
    cloud.in_service(1)


def test_the_cloud_remembers_after_a_restart(machines: PretendedMachines, tmp_path: Path) -> None:
    BackendDict.reset()
    groups.use_addresses_from("127.0.8.10")
    before = Running(machines, tmp_path / "memory")
    try:
        make_group(before)
        (first,) = before.in_service(1)
        ssm, lambdas = before.client("ssm"), before.client("lambda")
        ssm.put_parameter(Name="/seed", Value="planted", Type="SecureString")
        lambdas.list_functions()
        # Keys of its own kind are what moto's services hold beside plain data.
        key = before.client("kms").create_key(KeySpec="RSA_2048", KeyUsage="SIGN_VERIFY")
        image = before.ec2.describe_images(Owners=["self"])["Images"]
    finally:
        before.close()
    assert (tmp_path / "memory").stat().st_mode & 0o077 == 0
    assert b"planted" not in (tmp_path / "memory").read_bytes()
    BackendDict.reset()
    machines.on.clear()
    after = Running(machines, tmp_path / "memory")
    try:
        assert after.members() == [first]
        until(lambda: first in machines.on)
        seed = after.client("ssm").get_parameter(Name="/seed", WithDecryption=True)
        assert seed["Parameter"]["Value"] == "planted"
        known = after.client("kms").list_keys()["Keys"]
        assert key["KeyMetadata"]["KeyId"] in {row["KeyId"] for row in known}
        assert after.ec2.describe_images(Owners=["self"])["Images"] == image
        scale(after, 2)
        after.in_service(2)
    finally:
        after.close()


def test_an_unreadable_memory_is_put_aside(machines: PretendedMachines, tmp_path: Path) -> None:
    BackendDict.reset()
    (tmp_path / "memory").write_bytes(b"broken")
    running = Running(machines, tmp_path / "memory")
    running.close()
    assert (tmp_path / "memory.unreadable").read_bytes() == b"broken"


@pytest.mark.parametrize("headers", [{}, {TOKEN: "made-up"}])
def test_metadata_is_refused_without_a_valid_token(cloud: Running, headers: dict[str, str]) -> None:
    make_group(cloud)
    cloud.in_service(1)
    path = "/latest/meta-data/instance-id"
    assert cloud.metadata("127.0.8.10", "GET", path, headers) == (401, b"")


def test_a_token_serves_only_the_instance_it_was_given_to(cloud: Running) -> None:
    make_group(cloud, DesiredCapacity=2)
    cloud.in_service(2)
    stolen = {TOKEN: cloud.token("127.0.8.10")}
    assert cloud.metadata("127.0.8.11", "GET", "/latest/user-data", stolen)[0] == 401


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({}, 400),
        ({TTL: "0"}, 400),
        ({TTL: "21601"}, 400),
        ({TTL: "60", "X-Forwarded-For": "10.0.0.1"}, 403),
    ],
)
def test_a_token_needs_a_lifetime_and_no_proxy(
    cloud: Running, headers: dict[str, str], status: int
) -> None:
    make_group(cloud)
    cloud.in_service(1)
    answer = cloud.metadata("127.0.8.10", "PUT", "/latest/api/token", headers)
    assert answer == (status, b"")


def test_a_token_runs_out(cloud: Running) -> None:
    make_group(cloud)
    cloud.in_service(1)
    _, token = cloud.metadata("127.0.8.10", "PUT", "/latest/api/token", {TTL: "1"})
    headers = {TOKEN: token.decode()}
    path = "/latest/meta-data/mac"
    assert cloud.metadata("127.0.8.10", "GET", path, headers)[0] == 200
    until(lambda: cloud.metadata("127.0.8.10", "GET", path, headers)[0] == 401)


def test_a_stranger_gets_no_token(cloud: Running) -> None:
    assert cloud.metadata("127.0.0.9", "PUT", "/latest/api/token", {TTL: "60"})[0] == 403


def test_an_instance_reads_itself(cloud: Running) -> None:
    make_group(cloud)
    (name,) = cloud.in_service(1)

    def read(path: str) -> str:
        status, body = cloud.read("127.0.8.10", f"/latest/meta-data/{path}")
        assert status == 200
        return body.decode()

    assert read("instance-id") == name
    assert read("instance-type") == "t3.medium"
    assert read("local-ipv4") == "127.0.8.10"
    assert read("placement/region") == REGION
    assert read("placement/availability-zone").startswith(REGION)
    assert read("autoscaling/target-lifecycle-state") == "InService"
    assert read("network/interfaces/macs/") == "52:54:00:00:08:0a/"
    assert read("iam/security-credentials/") == "member"
    credentials = json.loads(read("iam/security-credentials/member"))
    assert credentials["Code"] == "Success"
    assert credentials["AccessKeyId"].startswith("lab")
    assert json.loads(read("iam/info"))["InstanceProfileArn"].endswith("/member-profile")
    assert cloud.read("127.0.8.10", "/latest/user-data") == (200, USER_DATA)
    assert cloud.read("127.0.8.10", "/2021-03-23/user-data") == (200, USER_DATA)
    for absent in ("public-keys/", "spot/instance-action", "nonsense", "instance-id/nonsense"):
        assert cloud.read("127.0.8.10", f"/latest/meta-data/{absent}") == (404, b"")
    document = cloud.read("127.0.8.10", "/latest/dynamic/instance-identity/document")[1]
    assert json.loads(document)["instanceId"] == name


def test_everything_listed_can_be_read_as_cloud_init_walks_it(cloud: Running) -> None:
    make_group(cloud)
    cloud.in_service(1)
    leaves = []

    def walk(path: str) -> None:
        status, listing = cloud.read("127.0.8.10", path)
        assert status == 200, path
        for name in listing.decode().splitlines():
            if name.endswith("/"):
                walk(path + name)
            else:
                assert cloud.read("127.0.8.10", path + name)[0] == 200, path + name
                leaves.append(path + name)

    walk("/2021-03-23/meta-data/")
    walk("/2021-03-23/dynamic/")
    assert len(leaves) > 20


def test_a_spot_interruption_is_announced_and_then_happens(cloud: Running) -> None:
    make_group(cloud)
    (first,) = cloud.in_service(1)
    control.interrupt(cloud.endpoint, first, notice_seconds=1)
    status, notice = cloud.read("127.0.8.10", "/latest/meta-data/spot/instance-action")
    assert status == 200
    assert json.loads(notice)["action"] == "terminate"
    until(lambda: cloud.state_of(first) == "terminated")
    assert cloud.in_service(1) != [first]


def test_the_lab_tells_about_its_guests(cloud: Running) -> None:
    make_group(cloud)
    (first,) = cloud.in_service(1)
    assert control.guests(cloud.endpoint) == [
        {
            "instance": first,
            "region": REGION,
            "group": "frankfurt",
            "address": "127.0.8.10",
            "state": "InService",
            "machine": "on",
        }
    ]


def test_custom_metrics_are_taken_and_given_back(cloud: Running) -> None:
    cloudwatch = cloud.client("cloudwatch")
    cloudwatch.put_metric_data(
        Namespace="Fleet", MetricData=[{"MetricName": "Requests", "Value": 7.0}]
    )
    metrics = cloudwatch.list_metrics(Namespace="Fleet")["Metrics"]
    assert [metric["MetricName"] for metric in metrics] == ["Requests"]

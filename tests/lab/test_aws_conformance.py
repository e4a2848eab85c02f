"""The `aws` plugin in use behaves as the official pulumi-aws 7.51.1 does, as far as we rely on it.

The record behind these cases is the provider's documentation and source, and the names and types
of its Python package. They are not measured against AWS, and the API here is moto's: what passes
says that program and stand-in agree, not that AWS would agree with both.
"""

import base64
import json
import os
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import boto3
import pytest

from tests.lab.conftest import free_port
from tests.lab.engine import Engine

REGION = "eu-central-1"
START_LIMIT_SECONDS = 60
SECRET = "a-seed-nobody-may-read"
# What Debian and Canonical register; moto's own RegisterImage keeps neither processor nor device.
PUBLISHER = "136693071363"
PUBLISHED = {
    "ami-0000000000000000a": ("x86_64", "/dev/xvda"),
    "ami-0000000000000000b": ("arm64", "/dev/sda1"),
}
SERVICES = ("ec2", "iam", "ssm", "dynamodb", "autoscaling", "sts", "logs", "lambda")


@dataclass(frozen=True)
class Api:
    """A private moto server, emptied before each test."""

    url: str

    def client(self, service: str) -> Any:
        """A boto3 client that sees what the plugin has done."""
        return boto3.client(
            service,  # type: ignore[call-overload]
            endpoint_url=self.url,
            region_name=REGION,
            aws_access_key_id="lab",
            aws_secret_access_key="lab",
        )

    def program(self, text: str) -> str:
        """A program whose `options` name a provider for this server."""
        endpoints = dict.fromkeys(SERVICES, self.url)
        return (
            "import base64, json, pulumi\n"
            "import pulumi_aws as aws\n"
            f'provider = aws.Provider("aws", region={REGION!r}, access_key="lab",'
            ' secret_key="lab", skip_credentials_validation=True, skip_metadata_api_check=True,'
            f" skip_region_validation=True, endpoints=[{endpoints!r}],"
            ' default_tags={"tags": {"stack": "test"}})\n'
            "options = pulumi.ResourceOptions(provider=provider)\n"
            "look = pulumi.InvokeOptions(provider=provider)\n" + text
        )


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Api]:
    """moto in a process of its own: another test changes moto inside this one."""
    port = free_port()
    log = tmp_path_factory.mktemp("moto") / "log"
    images = log.with_name("images.json")
    images.write_text(
        json.dumps(
            [
                {
                    "ami_id": identifier,
                    "name": f"published-{architecture}",
                    "owner_id": PUBLISHER,
                    "architecture": architecture,
                    "root_device_name": root_device,
                }
                for identifier, (architecture, root_device) in PUBLISHED.items()
            ]
        )
    )
    with log.open("wb") as output:
        process = subprocess.Popen(
            [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)],
            env=os.environ | {"MOTO_AMIS_PATH": str(images)},
            stdout=output,
            stderr=output,
        )
    api = Api(f"http://127.0.0.1:{port}")
    try:
        _await_server(api, process, log)
        yield api
    finally:
        process.terminate()
        process.wait(10)


def _await_server(api: Api, process: "subprocess.Popen[bytes]", log: Path) -> None:
    deadline = time.monotonic() + START_LIMIT_SECONDS
    while time.monotonic() < deadline and process.poll() is None:
        try:
            _reset(api)
        except urllib.error.URLError:
            time.sleep(0.1)
        else:
            return
    pytest.fail(f"moto did not start: {log.read_text(encoding='utf-8')}")


def _reset(api: Api) -> None:
    request = urllib.request.Request(f"{api.url}/moto-api/reset", method="POST")  # noqa: S310
    urllib.request.urlopen(request, timeout=30).close()  # noqa: S310


def _register_image(api: Api) -> str:
    image: str = api.client("ec2").register_image(
        Name="fortress-lab-debian-13-0a1b2c3d",
        Architecture="x86_64",
        RootDeviceName="/dev/xvda",
        VirtualizationType="hvm",
    )["ImageId"]
    return image


@pytest.fixture
def api(server: Api) -> Api:
    """The server without anything left by another test."""
    _reset(server)
    return server


FLEET = """
zones = aws.get_availability_zones(state="available", opts=look).names
image = aws.ec2.get_ami(owners=["self"], most_recent=True, opts=look,
    filters=[{"name": "name", "values": ["fortress-lab-debian-13-*"]}])
machine = aws.ec2.get_instance_type(instance_type="t3.medium", opts=look)
pulumi.export("zones", zones)
pulumi.export("account", aws.get_caller_identity(opts=look).account_id)
pulumi.export("partition", aws.get_partition(opts=look).partition)
pulumi.export("region", aws.get_region(opts=look).region)
pulumi.export("machine", [machine.supported_architectures, machine.default_vcpus,
    machine.memory_size])

network = aws.ec2.Vpc("network", cidr_block="10.64.0.0/16", enable_dns_hostnames=True,
    tags={"Name": "fleet"}, opts=options)
gateway = aws.ec2.InternetGateway("gateway", vpc_id=network.id, opts=options)
routes = aws.ec2.RouteTable("routes", vpc_id=network.id, opts=options,
    routes=[{"cidr_block": "0.0.0.0/0", "gateway_id": gateway.id}])
subnets = []
for index in range(2):
    subnet = aws.ec2.Subnet(f"subnet-{index}", vpc_id=network.id, availability_zone=zones[index],
        cidr_block=f"10.64.{index}.0/24", map_public_ip_on_launch=True, opts=options)
    aws.ec2.RouteTableAssociation(f"association-{index}", subnet_id=subnet.id,
        route_table_id=routes.id, opts=options)
    subnets.append(subnet.id)
members = aws.ec2.SecurityGroup("members", vpc_id=network.id, ingress=[], opts=options,
    egress=[{"protocol": "-1", "from_port": 0, "to_port": 0, "cidr_blocks": ["0.0.0.0/0"]}])

def policy(**statement):
    return json.dumps({"Version": "2012-10-17", "Statement": [{"Effect": "Allow", **statement}]})

role = aws.iam.Role("role", opts=options, assume_role_policy=policy(Action="sts:AssumeRole",
    Principal={"Service": "ec2.amazonaws.com"}))
aws.iam.RolePolicy("permissions", role=role.name, opts=options,
    policy=policy(Action=["ssm:GetParameter"], Resource="*"))
profile = aws.iam.InstanceProfile("profile", role=role.name, opts=options)
seed = aws.ssm.Parameter("seed", name="/fleet/seed", type="SecureString",
    value=pulumi.Output.secret(SECRET), opts=options)
claims = aws.dynamodb.Table("claims", billing_mode="PAY_PER_REQUEST", hash_key="slot",
    attributes=[{"name": "slot", "type": "S"}], point_in_time_recovery={"enabled": True},
    server_side_encryption={"enabled": True}, deletion_protection_enabled=False,
    ttl={"attribute_name": "until", "enabled": True}, opts=options)
logs = aws.cloudwatch.LogGroup("logs", retention_in_days=7, opts=options)
template = aws.ec2.LaunchTemplate("template", image_id=image.id, instance_type="t3.medium",
    user_data=base64.b64encode(USER_DATA).decode(), update_default_version=True,
    iam_instance_profile={"arn": profile.arn},
    instance_initiated_shutdown_behavior="terminate",
    metadata_options={"http_endpoint": "enabled", "http_tokens": "required",
        "http_put_response_hop_limit": 1},
    block_device_mappings=[{"device_name": "/dev/xvda", "ebs": {"encrypted": "true",
        "volume_type": "gp3", "volume_size": 16, "delete_on_termination": "true"}}],
    network_interfaces=[{"associate_public_ip_address": "true", "delete_on_termination": "true",
        "security_groups": [members.id]}],
    tag_specifications=[{"resource_type": "instance", "tags": {"Name": "member"}}], opts=options)
launch = {"id": template.id, "version": template.latest_version.apply(str)}
group = aws.autoscaling.Group("group", min_size=1, max_size=4, vpc_zone_identifiers=subnets,
    health_check_type="EC2", force_delete=True, opts=options,
    instance_refresh={"strategy": "Rolling", "preferences": {"min_healthy_percentage": 50}},
    tags=[{"key": "Name", "value": "member", "propagate_at_launch": True}], LAUNCH)
aws.autoscaling.Policy("load", autoscaling_group_name=group.name,
    policy_type="TargetTrackingScaling", estimated_instance_warmup=120, opts=options,
    target_tracking_configuration={"target_value": 50, "predefined_metric_specification":
        {"predefined_metric_type": "ASGAverageCPUUtilization"}})
aws.autoscaling.LifecycleHook("leaving", autoscaling_group_name=group.name, opts=options,
    lifecycle_transition="autoscaling:EC2_INSTANCE_TERMINATING", heartbeat_timeout=300,
    default_result="CONTINUE")
for thing in (network, group, role, template, claims):
    pulumi.export(thing._name, {"id": thing.id, "arn": thing.arn})
pulumi.export("tags", network.tags_all)
pulumi.export("versions", [template.latest_version, template.default_version])
pulumi.export("parameter", seed.version)
pulumi.export("group name", group.name)
"""
ONE_TEMPLATE = "launch_template=launch"
# Plain moto launches nothing for such a group, so waiting for its capacity would never end.
MIXED = """mixed_instances_policy={
    "instances_distribution": {"on_demand_percentage_above_base_capacity": 50,
        "spot_allocation_strategy": "price-capacity-optimized"},
    "launch_template": {
        "launch_template_specification": {
            "launch_template_id": launch["id"], "version": launch["version"]},
        "overrides": [{"instance_type": "t3.medium"}, {"instance_type": "t3a.medium"}]}},
    wait_for_capacity_timeout="0" """


def fleet(api: Api, *, user_data: bytes = b"#cloud-config\n", launch: str = ONE_TEMPLATE) -> str:
    """Everything that a fleet is made of."""
    text = FLEET.replace("USER_DATA", repr(user_data)).replace("LAUNCH", launch)
    return api.program(text.replace("SECRET", repr(SECRET)))


def test_a_whole_fleet_comes_up_stays_as_it_is_takes_a_new_template_and_leaves_nothing(
    engine: Engine, api: Api, tmp_path: Path
) -> None:
    image = _register_image(api)
    run = engine.up(fleet(api))
    assert set(run.operations) >= {"network", "group", "template", "seed", "claims", "leaving"}

    outputs = engine.outputs()
    assert outputs["zones"] == [f"{REGION}{letter}" for letter in "abc"]
    assert (outputs["partition"], outputs["region"]) == ("aws", REGION)
    assert outputs["machine"] == [["x86_64"], 2, 4096]
    assert outputs["tags"] == {"Name": "fleet", "stack": "test"}
    assert outputs["versions"] == [1, 1]
    account, network = outputs["account"], outputs["network"]
    assert network["arn"] == f"arn:aws:ec2:{REGION}:{account}:vpc/{network['id']}"
    assert outputs["role"]["arn"] == f"arn:aws:iam::{account}:role/{outputs['role']['id']}"
    assert outputs["group"]["arn"].endswith(f":autoScalingGroupName/{outputs['group name']}")
    prefix, _, digits = outputs["group name"].rpartition("-")
    assert prefix == "group"
    assert len(digits) == 7
    assert int(digits, 16) >= 0

    ec2, scaling = api.client("ec2"), api.client("autoscaling")
    launched = ec2.describe_instances()["Reservations"][0]["Instances"]
    assert [instance["ImageId"] for instance in launched] == [image]
    groups = ec2.describe_security_groups(GroupIds=[_id(engine, "members")])["SecurityGroups"]
    assert groups[0]["IpPermissions"] == []
    assert groups[0]["IpPermissionsEgress"][0]["IpRanges"] == [{"CidrIp": "0.0.0.0/0"}]

    assert engine.up().unchanged
    assert engine.refresh().unchanged
    assert engine.up().unchanged, "a refresh must not make the next run differ"
    assert SECRET not in _everything_in(tmp_path, but="__main__.py")

    name = outputs["group name"]
    scaling.set_desired_capacity(AutoScalingGroupName=name, DesiredCapacity=3)
    assert engine.up().unchanged, "the size belongs to the scaling policy"
    engine.refresh()
    assert engine.up().unchanged

    preview = engine.preview(fleet(api, user_data=b"#cloud-config\nhostname: b\n"))
    assert preview.operations["group"] == ["update"], "the preview must see the new version coming"
    run = engine.up()
    changes = {step for step in run.steps if step[0] != "same"}
    assert changes == {("update", "template"), ("update", "group")}
    assert "knows no StartInstanceRefresh" in run.output
    assert engine.outputs()["versions"] == [2, 2]
    (group,) = scaling.describe_auto_scaling_groups()["AutoScalingGroups"]
    assert group["LaunchTemplate"]["Version"] == "2"
    assert group["DesiredCapacity"] == 3
    assert engine.up().unchanged

    engine.destroy()
    assert _left(api) == {}


def _id(engine: Engine, name: str) -> str:
    identifier: str = engine.state()[name]["id"]
    return identifier


def _everything_in(directory: Path, *, but: str) -> str:
    files = [path for path in directory.rglob("*") if path.is_file() and path.name != but]
    return "\n".join(path.read_text(encoding="utf-8", errors="replace") for path in files)


def _left(api: Api) -> dict[str, Any]:
    ec2, iam = api.client("ec2"), api.client("iam")
    reservations = ec2.describe_instances(
        Filters=[{"Name": "instance-state-name", "Values": ["pending", "running"]}]
    )["Reservations"]
    own = [{"Name": "tag:stack", "Values": ["test"]}]
    found = {
        "instances": reservations,
        "networks": ec2.describe_vpcs(Filters=own)["Vpcs"],
        "gateways": ec2.describe_internet_gateways(Filters=own)["InternetGateways"],
        "subnets": ec2.describe_subnets(Filters=own)["Subnets"],
        "route tables": ec2.describe_route_tables(Filters=own)["RouteTables"],
        "security groups": ec2.describe_security_groups(Filters=own)["SecurityGroups"],
        "templates": ec2.describe_launch_templates()["LaunchTemplates"],
        "groups": api.client("autoscaling").describe_auto_scaling_groups()["AutoScalingGroups"],
        "roles": iam.list_roles()["Roles"],
        "profiles": iam.list_instance_profiles()["InstanceProfiles"],
        "parameters": api.client("ssm").describe_parameters()["Parameters"],
        "tables": api.client("dynamodb").list_tables()["TableNames"],
        "log groups": api.client("logs").describe_log_groups()["logGroups"],
    }
    return {kind: things for kind, things in found.items() if things}


def test_a_group_of_several_machine_types_stays_as_it_is(engine: Engine, api: Api) -> None:
    _register_image(api)
    engine.up(fleet(api, launch=MIXED))
    (group,) = api.client("autoscaling").describe_auto_scaling_groups()["AutoScalingGroups"]
    overrides = group["MixedInstancesPolicy"]["LaunchTemplate"]["Overrides"]
    assert [override["InstanceType"] for override in overrides] == ["t3.medium", "t3a.medium"]
    assert engine.up().unchanged
    assert engine.refresh().unchanged
    assert engine.up().unchanged


def test_a_force_new_input_replaces_and_a_generated_name_lets_the_new_one_come_first(
    engine: Engine, api: Api
) -> None:
    text = (
        "trust = json.dumps({'Version': '2012-10-17', 'Statement': []})\n"
        "aws.iam.Role('role', assume_role_policy=trust, path='PATH', opts=options)\n"
        "aws.dynamodb.Table('table', name='claims', billing_mode='PAY_PER_REQUEST',"
        " hash_key='KEY', attributes=[{'name': 'KEY', 'type': 'S'}], opts=options)\n"
    )
    first = text.replace("PATH", "/").replace("KEY", "slot")
    engine.up(api.program(first))
    before = _id(engine, "role")
    run = engine.up(api.program(text.replace("PATH", "/fleet/").replace("KEY", "place")))
    assert run.operations["role"] == ["create-replacement", "replace", "delete-replaced"]
    # With a name that the program chose, both could not exist at once.
    assert run.operations["table"][0] == "delete-replaced"
    assert _id(engine, "role") != before
    assert [role["Path"] for role in api.client("iam").list_roles()["Roles"]] == ["/fleet/"]
    (key,) = api.client("dynamodb").describe_table(TableName="claims")["Table"]["KeySchema"]
    assert key["AttributeName"] == "place"


@pytest.mark.parametrize(
    ("inputs", "complaint"),
    [
        ({"cidrBlock": "10.64.0.0/16", "cidrBlok": "x"}, "cidrBlok"),
        ({"cidrBlock": "10.64.0.0/16", "enableDnsSupport": "yes"}, "must be of type boolean"),
        ({"cidrBlock": ["10.64.0.0/16"]}, "must be of type string"),
        ({"cidrBlock": "10.64.0.0/16", "ipv6IpamPoolId": "x"}, "does not carry it out"),
    ],
)
def test_an_input_that_would_be_ignored_or_misread_is_refused(
    engine: Engine, api: Api, inputs: dict[str, Any], complaint: str
) -> None:
    # Only a resource without a class of its own sends names that the SDK does not know.
    text = f"pulumi.CustomResource('aws:ec2/vpc:Vpc', 'network', {inputs!r}, options)\n"
    run = engine.try_up(api.program(text))
    assert not run.succeeded
    assert complaint in run.output
    assert "Traceback" not in run.output
    assert _left(api) == {}


def test_a_refusal_of_the_api_is_one_error_with_operation_code_and_message(
    engine: Engine, api: Api
) -> None:
    text = (
        "network = aws.ec2.Vpc('network', cidr_block='10.64.0.0/16', opts=options)\n"
        "aws.ec2.Subnet('subnet', vpc_id=network.id, cidr_block='10.99.0.0/24', opts=options)\n"
    )
    run = engine.try_up(api.program(text))
    assert not run.succeeded
    assert "CreateSubnet, api error InvalidSubnet.Range: The CIDR '10.99.0.0/24'" in run.output
    assert "Traceback" not in run.output


def test_an_image_is_found_by_its_processor_or_id_and_tells_its_root_device(
    engine: Engine, api: Api
) -> None:
    text = (
        "def found(**filters):\n"
        "    image = aws.ec2.get_ami(most_recent=True, include_deprecated=True, opts=look,\n"
        f"        owners=['{PUBLISHER}'],\n"
        "        filters=[{'name': key.replace('_', '-'), 'values': [value]}"
        " for key, value in filters.items()])\n"
        "    return [image.id, image.architecture, image.root_device_name]\n"
    )
    for identifier, (architecture, _) in PUBLISHED.items():
        wanted = f"name='published-*', architecture='{architecture}', state='available'"
        text += f"pulumi.export('{architecture}', found({wanted}))\n"
        text += f"pulumi.export('{identifier}', found(image_id='{identifier}'))\n"
    engine.up(api.program(text))
    outputs = engine.outputs()
    for identifier, facts in PUBLISHED.items():
        assert outputs[facts[0]] == outputs[identifier] == [identifier, *facts]


def test_an_image_that_is_not_there_is_reported_in_the_official_words(
    engine: Engine, api: Api
) -> None:
    run = engine.try_up(api.program("aws.ec2.get_ami(owners=['self'], opts=look)\n"))
    assert not run.succeeded
    assert "Your query returned no results. Please change your search criteria" in run.output


def test_what_was_changed_or_removed_outside_is_put_right_after_a_refresh(
    engine: Engine, api: Api
) -> None:
    text = (
        "network = aws.ec2.Vpc('network', cidr_block='10.64.0.0/16', tags={'Name': 'fleet'},"
        " enable_dns_hostnames=True, opts=options)\n"
        "aws.ssm.Parameter('kept', name='/kept', type='SecureString', value='one', opts=options)\n"
        "aws.ssm.Parameter('lost', name='/lost', type='String', value='two', opts=options)\n"
    )
    engine.up(api.program(text))
    ec2, ssm = api.client("ec2"), api.client("ssm")
    network = _id(engine, "network")
    ec2.modify_vpc_attribute(VpcId=network, EnableDnsHostnames={"Value": False})
    ec2.create_tags(Resources=[network], Tags=[{"Key": "Name", "Value": "other"}])
    ssm.put_parameter(Name="/kept", Value="drifted-secret", Type="SecureString", Overwrite=True)
    ssm.delete_parameter(Name="/lost")

    engine.refresh()
    state = json.dumps(engine.state())
    assert "drifted-secret" not in state
    run = engine.up()
    assert run.operations["network"] == ["update"]
    assert run.operations["kept"] == ["update"]
    assert run.operations["lost"] == ["create"]
    found = ec2.describe_vpc_attribute(VpcId=network, Attribute="enableDnsHostnames")
    assert found["EnableDnsHostnames"]["Value"]
    assert ssm.get_parameter(Name="/kept", WithDecryption=True)["Parameter"]["Value"] == "one"
    assert engine.up().unchanged

    ec2.delete_vpc(VpcId=network)
    engine.destroy()


def test_a_policy_that_only_looks_different_is_no_change(engine: Engine, api: Api) -> None:
    text = "aws.iam.Role('role', assume_role_policy=POLICY, opts=options)\n"
    policy = {"Version": "2012-10-17", "Statement": []}
    engine.up(api.program(text.replace("POLICY", repr(json.dumps(policy)))))
    spread = json.dumps(policy, indent=4, sort_keys=True)
    assert engine.up(api.program(text.replace("POLICY", repr(spread)))).unchanged


def test_a_changed_secret_is_written_in_place_and_shown_nowhere(engine: Engine, api: Api) -> None:
    text = (
        "seed = aws.ssm.Parameter('seed', name='/seed', type='SecureString', value='VALUE',"
        " opts=options)\n"
        "pulumi.export('version', seed.version)\n"
    )
    engine.up(api.program(text.replace("VALUE", "first-seed")))
    run = engine.up(api.program(text.replace("VALUE", "second-seed")))
    assert run.operations["seed"] == ["update"]
    assert engine.outputs() == {"version": 2}
    shown = run.output + json.dumps(engine.state())
    assert "first-seed" not in shown
    assert "second-seed" not in shown


def test_an_unfinished_creation_is_kept_and_completed_by_the_next_run(
    engine: Engine, api: Api
) -> None:
    text = "aws.iam.InstanceProfile('profile', role='member', opts=options)\n"
    run = engine.try_up(api.program(text))
    assert not run.succeeded
    assert "AddRoleToInstanceProfile, api error NoSuchEntity" in run.output
    iam = api.client("iam")
    iam.create_role(RoleName="member", AssumeRolePolicyDocument="{}")
    assert engine.up().operations["profile"] == ["update"]
    (profile,) = iam.list_instance_profiles()["InstanceProfiles"]
    assert [role["RoleName"] for role in profile["Roles"]] == ["member"]
    assert engine.up().unchanged


def test_a_function_takes_new_code_in_place_and_has_a_url(engine: Engine, api: Api) -> None:
    text = (
        "trust = json.dumps({'Version': '2012-10-17', 'Statement': [{'Effect': 'Allow',"
        " 'Principal': {'Service': 'lambda.amazonaws.com'}, 'Action': 'sts:AssumeRole'}]})\n"
        "role = aws.iam.Role('role', assume_role_policy=trust, opts=options)\n"
        "code = pulumi.AssetArchive({'job.py': pulumi.StringAsset('answer = ANSWER')})\n"
        "job = aws.lambda_.Function('job', code=code, runtime='python3.13', handler='job.run',"
        " role=role.arn, architectures=['arm64'], memory_size=256, timeout=20,"
        " reserved_concurrent_executions=2,"
        " environment={'variables': {'PLACE': 'Oslo'}}, opts=options)\n"
        "url = aws.lambda_.FunctionUrl('url', function_name=job.name,"
        " authorization_type='AWS_IAM', opts=options)\n"
        "pulumi.export('sha', job.code_sha256)\n"
        "pulumi.export('url', url.function_url)\n"
    )
    engine.up(api.program(text.replace("ANSWER", "41")))
    first = engine.outputs()
    assert first["url"].startswith("https://")
    assert engine.up().unchanged
    assert engine.refresh().unchanged
    run = engine.up(api.program(text.replace("ANSWER", "42")))
    assert run.operations["job"] == ["update"]
    assert engine.outputs()["sha"] != first["sha"]
    (function,) = api.client("lambda").list_functions()["Functions"]
    assert function["Architectures"] == ["arm64"]
    assert function["Environment"]["Variables"] == {"PLACE": "Oslo"}
    assert base64.b64decode(function["CodeSha256"])
    engine.destroy()
    assert api.client("lambda").list_functions()["Functions"] == []


def test_a_users_key_is_made_once_kept_secret_and_can_be_put_to_rest(
    engine: Engine, api: Api
) -> None:
    text = (
        "policy = json.dumps({'Version': '2012-10-17', 'Statement': [{'Effect': 'Allow',"
        " 'Action': 'cloudwatch:PutMetricData', 'Resource': '*'}]})\n"
        "user = aws.iam.User('user', tags={'Name': 'door'}, opts=options)\n"
        "aws.iam.UserPolicy('permissions', user=user.name, policy=policy, opts=options)\n"
        "key = aws.iam.AccessKey('key', user=user.name, status='STATUS', opts=options)\n"
        "pulumi.export('works', key.secret.apply(lambda secret: len(secret) == 40))\n"
    )
    engine.up(api.program(text.replace("STATUS", "Active")))
    assert engine.outputs()["works"]
    assert isinstance(engine.state()["key"]["outputs"]["secret"], dict), "not encrypted"
    iam = api.client("iam")
    name = _id(engine, "user")
    assert iam.list_user_policies(UserName=name)["PolicyNames"]
    assert {tag["Key"] for tag in iam.list_user_tags(UserName=name)["Tags"]} == {"Name", "stack"}
    assert engine.up().unchanged
    assert engine.refresh().unchanged
    assert engine.up().unchanged

    run = engine.up(api.program(text.replace("STATUS", "Inactive")))
    assert run.operations["key"] == ["update"]
    (key,) = iam.list_access_keys(UserName=name)["AccessKeyMetadata"]
    assert (key["Status"], key["AccessKeyId"]) == ("Inactive", _id(engine, "key"))
    assert engine.outputs()["works"], "the secret is lost"
    engine.destroy()
    assert iam.list_users()["Users"] == []


def test_a_group_may_follow_a_metric_of_ones_own(engine: Engine, api: Api) -> None:
    _register_image(api)
    text = fleet(api).replace(
        """"predefined_metric_specification":
        {"predefined_metric_type": "ASGAverageCPUUtilization"}""",
        """"customized_metric_specification": {"namespace": "Ours", "metric_name": "Pressure",
        "statistic": "Average", "unit": "Percent",
        "metric_dimensions": [{"name": "Stack", "value": "test"}]}""",
    )
    engine.up(text)
    (policy,) = api.client("autoscaling").describe_policies()["ScalingPolicies"]
    metric = policy["TargetTrackingConfiguration"]["CustomizedMetricSpecification"]
    assert metric["Dimensions"] == [{"Name": "Stack", "Value": "test"}]
    assert (metric["Namespace"], metric["MetricName"]) == ("Ours", "Pressure")
    assert engine.up().unchanged
    assert engine.refresh().unchanged
    assert engine.up().unchanged

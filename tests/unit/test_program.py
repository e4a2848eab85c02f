"""The whole program under mocks, for every stack file: wiring, secrets, parents, growth."""

import copy
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pulumi
import pytest

from plan.derivation import encode, fleet_seed, node_private_key, slot_private_key
from tests.unit.recorder import FAKE_PASSWORD, Recorder, is_secret, plain, record_program
from tests.unit.samples import SEED, sample_data
from tests.unit.test_settings import STACK_FILES, stack_settings

COMMAND = "command:remote:Command"


@pytest.fixture(scope="module")
def recorder(ssh_private_key: str) -> Recorder:
    return record_program(sample_data(), ssh_private_key=ssh_private_key)


@pytest.fixture(scope="module", params=STACK_FILES, ids=lambda path: path.name)
def stack(request: pytest.FixtureRequest, ssh_private_key: str) -> Recorder:
    path: Path = request.param
    return record_program(
        stack_settings(path), ssh_private_key=ssh_private_key, stack=path.name.split(".")[1]
    )


def test_every_stack_file_builds_a_door(stack: Recorder) -> None:
    assert stack.stack_outputs["door_url"].startswith("http://")


def test_every_child_has_a_component_as_its_parent(stack: Recorder) -> None:
    for entry in stack.registrations:
        if entry.type.startswith(("fortress:", "pulumi:providers:")):
            continue
        assert "fortress:index:" in entry.parent, f"{entry.name} hangs in the air"


def test_every_component_registers_its_outputs(stack: Recorder) -> None:
    components = {e.urn for e in stack.registrations if e.type.startswith("fortress:")}
    assert components
    assert components <= stack.outputs_registered


def test_no_two_resources_collide(stack: Recorder) -> None:
    urns = [entry.urn for entry in stack.registrations]
    assert len(urns) == len(set(urns))


def test_commands_carry_their_content_as_a_secret_on_stdin(stack: Recorder) -> None:
    commands = stack.of_type(COMMAND)
    assert commands
    for entry in commands:
        assert is_secret(entry.inputs["stdin"]), f"{entry.name} shows its content"
        assert entry.inputs["triggers"], f"{entry.name} would not notice another machine"
        assert "delete" not in entry.inputs, f"{entry.name} would undo itself"
        assert entry.inputs["addPreviousOutputInEnv"] is False
        assert plain(entry.inputs["connection"])["hostKey"], f"{entry.name} trusts any host"


def test_no_secret_stands_in_plain_anywhere(stack: Recorder, ssh_private_key: str) -> None:
    planted = [
        encode(SEED),
        FAKE_PASSWORD,
        ssh_private_key.splitlines()[1],
        *(encode(node_private_key(SEED, f"oslo-{kind}", 0)) for kind in ("db-01", "dev-01")),
        encode(fleet_seed(SEED, "frankfurt", 0)),
        encode(slot_private_key(fleet_seed(SEED, "frankfurt", 0), 0)),
    ]

    def unwrapped(value: Any) -> Any:
        if is_secret(value):
            return "[secret]"
        if isinstance(value, dict):
            return {key: unwrapped(item) for key, item in value.items()}
        if isinstance(value, list):
            return [unwrapped(item) for item in value]
        return value

    shown = [(e.name, e.inputs) for e in stack.registrations] + [("outputs", stack.stack_outputs)]
    for name, inputs in shown:
        text = json.dumps(unwrapped(dict(inputs)), default=str)
        for secret in planted:
            assert secret not in text, f"{name} shows a secret"


def test_the_databases_volume_and_machine_are_protected(recorder: Recorder) -> None:
    volume = recorder.named("oslo-oslo-db-01-data")
    assert volume.protect
    assert {"size", "source"} <= set(volume.ignore_changes)
    assert recorder.named("oslo-oslo-db-01-domain").protect


def test_a_zones_subnet_stays_where_it_is_when_another_zone_is_added(ssh_private_key: str) -> None:
    def subnets(*letters: str) -> dict[str, str]:
        data = sample_data()
        data["fleets"]["frankfurt"]["availability-zones"] = letters
        recorder = record_program(data, ssh_private_key=ssh_private_key)
        return {
            entry.inputs["availabilityZone"]: entry.inputs["cidrBlock"]
            for entry in recorder.of_type("aws:ec2/subnet:Subnet")
        }

    assert subnets("a", "c") == {
        "eu-central-1a": "10.64.0.0/20",
        "eu-central-1c": "10.64.32.0/20",
    }
    assert subnets("a", "c").items() <= subnets("a", "b", "c").items()


def test_the_number_of_resources_does_not_depend_on_the_size_of_the_fleet(
    ssh_private_key: str,
) -> None:
    def resources(max_size: int, block: str) -> int:
        data = sample_data()
        data["mesh"] = {"range": "10.100.0.0/16"}
        data["fleets"]["frankfurt"].update({"max-size": max_size, "block": block})
        return len(record_program(data, ssh_private_key=ssh_private_key).registrations)

    assert resources(8, "10.100.1.0/28") == resources(200, "10.100.2.0/23")


def test_two_fleets_live_beside_each_other(ssh_private_key: str) -> None:
    data = sample_data()
    second = copy.deepcopy(data["fleets"]["frankfurt"])
    second.update({"region": "eu-west-2", "block": "10.100.0.128/26", "vpc-range": "10.65.0.0/16"})
    data["fleets"]["london"] = second
    both = record_program(data, ssh_private_key=ssh_private_key)
    urns = [entry.urn for entry in both.registrations]
    assert len(urns) == len(set(urns))
    assert len(both.of_type("aws:autoscaling/group:Group")) == 2
    regions = {plain(e.inputs["region"]) for e in both.of_type("pulumi:providers:aws")}
    assert regions == {"eu-central-1", "eu-west-2"}


def test_members_need_the_second_version_of_the_metadata_service_and_an_encrypted_disk(
    recorder: Recorder,
) -> None:
    (template,) = recorder.of_type("aws:ec2/launchTemplate:LaunchTemplate")
    assert template.inputs["metadataOptions"]["httpTokens"] == "required"
    assert template.inputs["metadataOptions"]["httpPutResponseHopLimit"] == 1
    assert template.inputs["blockDeviceMappings"][0]["ebs"]["encrypted"] == "true"


def test_nobody_may_connect_to_a_member_from_outside(recorder: Recorder) -> None:
    (group,) = recorder.of_type("aws:ec2/securityGroup:SecurityGroup")
    assert group.inputs["ingress"] == []


def test_the_group_leaves_the_number_of_members_to_its_scaling_policy(recorder: Recorder) -> None:
    (group,) = recorder.of_type("aws:autoscaling/group:Group")
    assert "desiredCapacity" not in group.inputs


def test_outputs_name_every_slot_with_its_public_key(recorder: Recorder) -> None:
    slots = recorder.stack_outputs["slots"]
    assert len(slots) == 32
    assert not recorder.secret_outputs, "nothing that is put out needs to be secret"
    address, public_key = slots["frankfurt-0-00"].split()
    assert (address, len(public_key)) == ("10.100.0.64", 44)
    assert recorder.stack_outputs["revision"]


@pytest.mark.parametrize(
    "secret",
    ["mesh-seed", "ssh-private-key", "database-password", "fleet-database-password"],
)
def test_a_missing_secret_is_named_with_the_command_that_sets_it(
    secret: str, ssh_private_key: str
) -> None:
    with pytest.raises(pulumi.RunError, match=f"secret fortress-and-fleet:{secret} is missing"):
        record_program(sample_data(), ssh_private_key=ssh_private_key, without=secret)


def refusal(data: dict[str, Any], ssh_private_key: str, *, before: Recorder | None = None) -> str:
    """Why the program ends, which it must do before it declares anything."""
    recorder = Recorder(earlier_outputs=before.stack_outputs if before else {})
    with pytest.raises(pulumi.RunError) as raised:
        record_program(data, ssh_private_key=ssh_private_key, recorder=recorder)
    assert recorder.registrations == [], "what is declared is made, whatever comes after"
    return str(raised.value)


def test_a_wrong_setting_stops_the_program_before_any_resource(ssh_private_key: str) -> None:
    data = sample_data()
    data["mesh"] = {"prot": 51820}
    assert "settings.mesh.prot: unknown setting" in refusal(data, ssh_private_key)


@pytest.mark.parametrize(
    ("key", "value", "wrong", "alike"),
    [
        ("region", "eu-centrl-1", "eu-centrl-1", "eu-central-1"),
        ("instance-types", ["t3.large", "t3.meduim"], "t3.meduim", "t3.medium"),
    ],
)
def test_a_name_that_aws_does_not_have_is_told_before_any_resource(
    key: str, value: object, wrong: str, alike: str, ssh_private_key: str
) -> None:
    data = sample_data()
    data["fleets"]["frankfurt"][key] = value
    said = refusal(data, ssh_private_key)
    assert said.startswith(f"settings.fleets.frankfurt.{key}: {wrong!r} is in no list of AWS's")
    assert f"(alike: {alike}" in said


def test_an_api_of_another_maker_may_have_names_of_its_own(ssh_private_key: str) -> None:
    data = sample_data()
    data["fleets"]["frankfurt"].update(
        {
            "region": "no-oslo-1",
            "instance-types": ["b2.c4r8"],
            "endpoint-url": "https://cloud.example.no",
        }
    )
    assert record_program(data, ssh_private_key=ssh_private_key).stack_outputs["fleets"]


def test_user_data_that_is_too_large_is_told_before_any_resource(
    ssh_private_key: str, tmp_path: Path
) -> None:
    data = sample_data()
    data["workload"]["directory"] = str(tmp_path)
    for name in ("install", "start"):
        (tmp_path / name).write_text("#!/bin/sh\n")
    (tmp_path / "page.html").write_text("".join(f"{number * 7919:x}" for number in range(9000)))
    assert "EC2 takes 16384. Largest: " in refusal(data, ssh_private_key)


def test_a_workload_that_is_no_text_is_told_before_any_resource(
    ssh_private_key: str, tmp_path: Path
) -> None:
    data = sample_data() | {"fleets": {}}
    data["workload"]["directory"] = str(tmp_path)
    for name in ("install", "start"):
        (tmp_path / name).write_text("#!/bin/sh\n")
    (tmp_path / "picture").write_bytes(b"\xff\xd8\xff")
    assert "picture is not UTF-8 text" in refusal(data, ssh_private_key)


PARAMETER = "aws:ssm/parameter:Parameter"


def at_generation(
    generation: int, ssh_private_key: str, *, accept: bool = True, before: Recorder | None = None
) -> Recorder:
    data = sample_data()
    data["fleets"]["frankfurt"]["generation"] = generation
    data["fleets"]["frankfurt"]["accept-previous-generation"] = accept
    return record_program(
        data,
        ssh_private_key=ssh_private_key,
        earlier_outputs=before.stack_outputs if before else None,
    )


def seeds(recorder: Recorder) -> dict[str, str]:
    """The seed parameters, physical name by logical name."""
    return {
        entry.name: entry.inputs["name"]
        for entry in recorder.of_type(PARAMETER)
        if entry.name.startswith("frankfurt-seed")
    }


def test_rotating_a_fleet_adds_a_seed_and_replaces_nothing_until_the_old_one_is_dropped(
    ssh_private_key: str,
) -> None:
    path = "/fortress-and-fleet/test/frankfurt"
    before = at_generation(0, ssh_private_key)
    rotating = at_generation(1, ssh_private_key, before=before)
    done = at_generation(1, ssh_private_key, accept=False, before=rotating)
    old = {"frankfurt-seed-0": f"{path}/generation-0/seed"}
    new = {"frankfurt-seed-1": f"{path}/generation-1/seed"}
    assert seeds(before) == old
    assert seeds(rotating) == old | new, "an old member that reboots needs its own seed"
    assert seeds(done) == new, "a seed that is not accepted any more must be gone"

    def others(recorder: Recorder) -> set[str]:
        return {e.urn for e in recorder.registrations if e.name not in old | new}

    assert others(before) == others(rotating) == others(done)
    values = {plain(rotating.named(name).inputs["value"]) for name in old | new}
    assert values == {encode(fleet_seed(SEED, "frankfurt", one)) for one in (0, 1)}


def test_members_may_read_the_seeds_that_are_accepted(ssh_private_key: str) -> None:
    for generation, accept, readable in ((0, True, {0}), (1, True, {0, 1}), (1, False, {1})):
        recorder = at_generation(generation, ssh_private_key, accept=accept)
        (policy,) = recorder.of_type("aws:iam/rolePolicy:RolePolicy")
        found = {one for one in (0, 1, 2) if f"/generation-{one}/seed" in policy.inputs["policy"]}
        assert found == readable


@pytest.mark.parametrize(
    ("what", "whose"),
    [
        (lambda data: data["core"]["nodes"][0], "node oslo-db-01"),
        (lambda data: data["core"]["nodes"][1], "node oslo-web-02"),
        (lambda data: data["fleets"]["frankfurt"], "fleets.frankfurt"),
    ],
    ids=["hub", "core node", "fleet"],
)
@pytest.mark.parametrize("layout", ["single", "core"])
def test_a_generation_that_goes_backwards_is_refused_before_any_resource(
    what: Callable[[dict[str, Any]], dict[str, Any]],
    whose: str,
    layout: str,
    ssh_private_key: str,
) -> None:
    data = sample_data() | {"layout": layout}
    what(data)["generation"] = 1
    before = record_program(data, ssh_private_key=ssh_private_key)
    what(data)["generation"] = 0
    assert f"{whose} has generation 0, but this stack already runs 1" in refusal(
        data, ssh_private_key, before=before
    )


def test_the_group_holds_every_member_until_it_serves(recorder: Recorder) -> None:
    (group,) = recorder.of_type("aws:autoscaling/group:Group")
    hook = recorder.named("frankfurt-joining").inputs
    (first,) = group.inputs["initialLifecycleHooks"]
    assert {key: hook[key] for key in first} == first, "the first members would be held otherwise"
    assert first["defaultResult"] == "ABANDON"
    assert first["heartbeatTimeout"] > 300, "it would end before the member gives up"
    assert "initialLifecycleHooks" in group.ignore_changes, "another value replaces the group"
    assert group.inputs["waitForCapacityTimeout"] == "0", "the core would wait for the fleet"


def test_members_are_launched_after_the_hub_and_the_door_know_their_slots(
    recorder: Recorder,
) -> None:
    (group,) = recorder.of_type("aws:autoscaling/group:Group")
    hub, door = recorder.named("mesh-oslo-db-01"), recorder.named("door-oslo-db-01")
    assert door.urn in group.dependencies
    assert hub.urn in reached(recorder, door.urn)


def test_a_server_on_a_network_of_ours_is_met_after_the_network_is_there(
    recorder: Recorder,
) -> None:
    network = recorder.named("oslo-network")
    assert network.urn in recorder.named("oslo-oslo-web-02-scripts").dependencies


def reached(recorder: Recorder, urn: str) -> set[str]:
    """Everything that a resource waits for, directly or through others."""
    dependencies = {row.urn: row.dependencies for row in recorder.registrations}
    found: set[str] = set()
    todo = {urn}
    while todo:
        todo = {to for one in todo for to in dependencies[one]} - found
        found |= todo
    return found


def test_the_group_waits_for_a_leaving_member_longer_than_its_requests_may_last(
    ssh_private_key: str,
) -> None:
    data = sample_data()
    data["fleets"]["frankfurt"]["drain-seconds"] = 900
    hook = record_program(data, ssh_private_key=ssh_private_key).named("frankfurt-leaving").inputs
    assert hook["lifecycleTransition"] == "autoscaling:EC2_INSTANCE_TERMINATING"
    assert hook["heartbeatTimeout"] > 900
    assert hook["defaultResult"] == "CONTINUE", "a silent member would be kept"


def test_a_member_that_powers_off_is_gone_for_good(recorder: Recorder) -> None:
    (template,) = recorder.of_type("aws:ec2/launchTemplate:LaunchTemplate")
    assert template.inputs["instanceInitiatedShutdownBehavior"] == "terminate"


def refresh(ssh_private_key: str, **changes: object) -> dict[str, Any]:
    data = sample_data()
    data["fleets"]["frankfurt"].update({k.replace("_", "-"): v for k, v in changes.items()})
    recorder = record_program(data, ssh_private_key=ssh_private_key)
    (group,) = recorder.of_type("aws:autoscaling/group:Group")
    preferences: dict[str, Any] = group.inputs["instanceRefresh"]["preferences"]
    return preferences


@pytest.mark.parametrize(
    ("changes", "least", "most"),
    [
        ({}, 100, 200),
        ({"max_size": 20}, 100, 160),
        ({"max_size": 32}, 100, 100),
        ({"refresh_healthy_percent": 50}, 50, 100),
    ],
)
def test_new_members_serve_before_old_ones_leave_as_far_as_there_are_slots(
    changes: dict[str, object], least: int, most: int, ssh_private_key: str
) -> None:
    preferences = refresh(ssh_private_key, **changes)
    assert preferences["minHealthyPercentage"] == least
    assert preferences["maxHealthyPercentage"] == most


def test_rotating_the_hub_moves_new_members_to_its_new_key(ssh_private_key: str) -> None:
    data = sample_data()
    before = record_program(data, ssh_private_key=ssh_private_key)
    data["core"]["nodes"][0]["generation"] = 1
    data["fleets"]["frankfurt"]["generation"] = 1
    after = record_program(
        data, ssh_private_key=ssh_private_key, earlier_outputs=before.stack_outputs
    )
    assert after.stack_outputs["hub"]["endpoint"] == "198.51.100.11:51821"
    assert after.stack_outputs["hub"]["public_key"] != before.stack_outputs["hub"]["public_key"]
    urns = {entry.urn for entry in before.registrations}
    assert {e.name for e in after.registrations if e.urn not in urns} == {"frankfurt-seed-1"}


def test_without_spill_pressure_oslo_holds_no_identity_at_aws(recorder: Recorder) -> None:
    assert not [e.name for e in recorder.registrations if e.type.startswith("aws:iam/user")]
    (policy,) = recorder.of_type("aws:autoscaling/policy:Policy")
    tracking = policy.inputs["targetTrackingConfiguration"]
    assert tracking["predefinedMetricSpecification"] == {
        "predefinedMetricType": "ASGAverageCPUUtilization"
    }
    assert tracking["targetValue"] == 60


def test_a_cold_fleet_follows_the_number_that_the_door_tells(ssh_private_key: str) -> None:
    data = sample_data()
    data["fleets"]["frankfurt"].update(
        {"min-size": 0, "scaling": {"kind": "spill-pressure", "target-percent": 10}}
    )
    cold = record_program(data, ssh_private_key=ssh_private_key)
    (group,) = cold.of_type("aws:autoscaling/group:Group")
    assert group.inputs["minSize"] == 0
    (policy,) = cold.of_type("aws:autoscaling/policy:Policy")
    tracking = policy.inputs["targetTrackingConfiguration"]
    metric = tracking["customizedMetricSpecification"]
    door = json.loads(plain(cold.named("door-oslo-db-01").inputs["stdin"]))
    told = {file["path"]: file for file in door["meter"]["files"]}
    described = json.loads(told["/etc/fortress/spill-pressure.json"]["content"])
    (fleet,) = described["fleets"]
    assert metric["namespace"] == described["namespace"]
    assert metric["metricName"] == described["member_metric"]
    assert {d["name"]: d["value"] for d in metric["metricDimensions"]} == fleet["dimensions"]
    assert tracking["targetValue"] == 10

    credentials = told["/etc/fortress/spill-pressure.credentials"]
    assert credentials["mode"] == "0600"
    assert "aws_access_key_id = spill-publisher-id\n" in credentials["content"]
    assert "aws_secret_access_key = made-up-secret-key\n" in credentials["content"]
    (permission,) = cold.of_type("aws:iam/userPolicy:UserPolicy")
    (statement,) = json.loads(permission.inputs["policy"])["Statement"]
    assert statement["Action"] == "cloudwatch:PutMetricData"
    assert statement["Condition"]["StringEquals"]["cloudwatch:namespace"] == metric["namespace"]
    for entry in cold.registrations:
        inputs = {key: value for key, value in entry.inputs.items() if not is_secret(value)}
        assert "made-up-secret-key" not in json.dumps(inputs, default=str), entry.name


JOB = {"directory": "workload/demo", "runtime": "python3.13", "handler": "serve.main"}


def test_a_function_writes_its_own_log_and_has_no_way_into_a_network(ssh_private_key: str) -> None:
    data = sample_data()
    data["fleets"]["frankfurt"]["functions"] = {"job": JOB}
    made = record_program(data, ssh_private_key=ssh_private_key)
    (function,) = made.of_type("aws:lambda/function:Function")
    (log_group,) = made.of_type("aws:cloudwatch/logGroup:LogGroup")
    assert function.inputs["name"] == "fortress-and-fleet-test-frankfurt-job"
    assert log_group.inputs["name"] == f"/aws/lambda/{function.inputs['name']}"
    assert log_group.inputs["retentionInDays"] == 14
    assert "vpcConfig" not in function.inputs
    assert function.inputs["reservedConcurrentExecutions"] == 5
    assert function.inputs["architectures"] == ["arm64"]
    (policy,) = (
        entry.inputs["policy"]
        for entry in made.of_type("aws:iam/rolePolicy:RolePolicy")
        if entry.name == "frankfurt-function-job-role"
    )
    (statement,) = json.loads(policy)["Statement"]
    assert statement["Resource"] == f"arn:aws:test:::{log_group.name}:*"
    assert made.of_type("aws:lambda/functionUrl:FunctionUrl") == []
    assert made.stack_outputs["functions"] == {
        "frankfurt": {"job": {"name": function.inputs["name"]}}
    }


def test_a_functions_address_asks_who_is_calling(ssh_private_key: str) -> None:
    data = sample_data()
    data["fleets"]["frankfurt"]["functions"] = {"job": {**JOB, "function-url": True}}
    made = record_program(data, ssh_private_key=ssh_private_key)
    (address,) = made.of_type("aws:lambda/functionUrl:FunctionUrl")
    assert address.inputs["authorizationType"] == "AWS_IAM"


def test_a_function_name_that_aws_would_refuse_is_told_before_any_resource(
    ssh_private_key: str,
) -> None:
    data = sample_data()
    data["fleets"]["frankfurt"]["functions"] = {"a-job-with-a-rather-long-name-ok": JOB}
    assert "66 characters, and AWS takes 64" in refusal(data, ssh_private_key)

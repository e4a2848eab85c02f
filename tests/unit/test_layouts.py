"""One system in one stack or in two: the halves are the same, and contradictions are told first."""

import copy
import json
from collections.abc import Callable
from typing import Any

import pulumi
import pytest

import settings
from plan.derivation import encode, fleet_seed, slot_private_key
from settings import SettingsError
from tests import born
from tests.unit.recorder import (
    FAKE_PASSWORD,
    Recorder,
    Registration,
    is_secret,
    plain,
    record_program,
)
from tests.unit.samples import SEED, sample_data
from tests.unit.test_policies import allows

CORE_STACK = "organization/fortress-and-fleet/prod-core"
REGIONS = {"frankfurt": "eu-central-1", "london": "eu-west-2", "stockholm": "eu-north-1"}


def three_fleets() -> dict[str, Any]:
    """The sample with three fleets: Stockholm is preferred, then Frankfurt, then London."""
    data = sample_data()
    data["mesh"] = {"range": "10.200.0.0/24"}
    frankfurt = data["fleets"].pop("frankfurt")
    for index, (name, preference) in enumerate(
        [("frankfurt", 1), ("london", 2), ("stockholm", 0)], start=1
    ):
        data["fleets"][name] = {
            **copy.deepcopy(frankfurt),
            "region": REGIONS[name],
            "block": f"10.200.0.{64 * index}/26",
            "vpc-range": f"10.{63 + index}.0.0/16",
            "preference": preference,
        }
    data["fleets"]["london"].update({"instance-types": ["t3.medium", "t3a.medium"]})
    data["fleets"]["london"].update({"min-size": 2, "max-size": 5})
    data["fleets"]["stockholm"].update({"spot-percent": 70, "generation": 1})
    return data


def edge_data(**changes: object) -> dict[str, Any]:
    """What is left of it for the stack that holds the fleets."""
    data = three_fleets()
    return {
        "layout": "edge",
        "core-stack": CORE_STACK,
        "workload": data["workload"],
        "fleets": data["fleets"],
        **changes,
    }


@pytest.fixture(scope="module")
def single(ssh_private_key: str) -> Recorder:
    return record_program(three_fleets(), ssh_private_key=ssh_private_key)


@pytest.fixture(scope="module")
def core(ssh_private_key: str) -> Recorder:
    return record_program(three_fleets() | {"layout": "core"}, ssh_private_key=ssh_private_key)


@pytest.fixture(scope="module")
def edge(core: Recorder) -> Recorder:
    return record_program(edge_data(), recorder=Recorder(core_outputs=core.stack_outputs))


def in_aws(entry: Registration) -> bool:
    return entry.type.startswith(("aws:", "pulumi:providers:aws", "fortress:index:BurstFleet"))


def described(entries: list[Registration]) -> dict[str, Any]:
    return {entry.urn: (entry.parent, entry.provider, entry.inputs) for entry in entries}


def test_the_cores_half_is_all_of_a_whole_stack_but_what_is_in_aws(
    single: Recorder, core: Recorder
) -> None:
    assert not [entry.name for entry in core.registrations if in_aws(entry)]
    whole = [entry for entry in single.registrations if not in_aws(entry)]
    assert described(core.registrations) == described(whole)


def test_the_fleets_half_is_all_of_a_whole_stack_that_is_in_aws(
    single: Recorder, edge: Recorder
) -> None:
    whole = [entry for entry in single.registrations if in_aws(entry)]
    assert len(whole) > 3 * 10
    assert described(edge.registrations) == described(whole)


def test_the_core_puts_out_one_secret_and_the_fleets_none(core: Recorder, edge: Recorder) -> None:
    assert core.secret_outputs == {"join_bundles"}
    assert not edge.secret_outputs
    assert edge.stack_outputs["fleets"] == {
        name: f"fortress-and-fleet-test-{name}" for name in REGIONS
    }


def test_a_bundle_opens_its_own_fleet_and_nothing_else(core: Recorder) -> None:
    for name, bundle in core.stack_outputs["join_bundles"].items():
        text = json.dumps(bundle)
        assert encode(SEED) not in text
        assert FAKE_PASSWORD + "-oslo" not in text
        for other in set(REGIONS) - {name}:
            for generation in (0, 1):
                assert encode(fleet_seed(SEED, other, generation)) not in text


def test_the_fleets_half_shows_no_secret_of_its_bundles(edge: Recorder) -> None:
    def unwrapped(value: Any) -> Any:
        if is_secret(value):
            return "[secret]"
        if isinstance(value, dict):
            return {key: unwrapped(item) for key, item in value.items()}
        if isinstance(value, list):
            return [unwrapped(item) for item in value]
        return value

    text = json.dumps([unwrapped(dict(entry.inputs)) for entry in edge.registrations], default=str)
    planted = [
        FAKE_PASSWORD,
        encode(fleet_seed(SEED, "frankfurt", 0)),
        encode(slot_private_key(fleet_seed(SEED, "frankfurt", 0), 0)),
    ]
    shown = text + json.dumps([member(edge, name) for name in REGIONS], default=str)
    assert not [secret for secret in planted if secret in shown]


def test_a_core_without_fleets_has_no_bundles(ssh_private_key: str) -> None:
    data = sample_data() | {"layout": "core", "fleets": {}}
    alone = record_program(data, ssh_private_key=ssh_private_key)
    assert alone.stack_outputs["join_bundles"] == {}


Change = Callable[[dict[str, Any]], object]
CONTRADICTIONS: list[tuple[str, Change, str]] = [
    (
        "a fleet that Oslo does not know",
        lambda data: data["fleets"].update(paris=data["fleets"].pop("london")),
        f"fleets.paris is not in core-stack {CORE_STACK}: .* Add it to the core stack and run",
    ),
    (
        "another block",
        lambda data: data["fleets"]["frankfurt"].update({"block": "10.201.0.64/26"}),
        r"block 10\.201\.0\.64/26 is not the 10\.200\.0\.64/26 of .* Set it to 10\.200\.0\.64/26",
    ),
    (
        "a generation that the core has left behind",
        lambda data: data["fleets"]["stockholm"].update({"generation": 0}),
        r"generation 0 is behind the 1 of .* Set it to 1",
    ),
    (
        "a generation that the core does not know yet",
        lambda data: data["fleets"]["frankfurt"].update({"generation": 1}),
        "generation 1 is ahead of the 0 of .* Raise it there and run pulumi up there first",
    ),
    (
        "a network inside the mesh",
        lambda data: data["fleets"]["london"].update({"vpc-range": "10.200.0.0/20"}),
        r"vpc-range 10\.200\.0\.0/20 overlaps the mesh's 10\.200\.0\.0/24",
    ),
    (
        "another port",
        lambda data: data["workload"].update({"port": 9090}),
        "workload.port 9090 is not the 8080 of",
    ),
    (
        "another health port",
        lambda data: data["workload"].update({"health-port": 9091}),
        "workload.health-port 9091 is not the 8081 of",
    ),
    (
        "a region that AWS does not have",
        lambda data: data["fleets"]["stockholm"].update({"region": "eu-nort-1"}),
        "fleets.stockholm.region: 'eu-nort-1' is in no list .*alike: eu-north-1",
    ),
]


@pytest.mark.parametrize(
    ("change", "message"),
    [row[1:] for row in CONTRADICTIONS],
    ids=[row[0] for row in CONTRADICTIONS],
)
def test_what_the_core_or_aws_would_not_take_is_told_before_any_resource(
    core: Recorder, change: Change, message: str
) -> None:
    data = edge_data()
    change(data)
    recorder = Recorder(core_outputs=core.stack_outputs)
    with pytest.raises(pulumi.RunError, match=message) as raised:
        record_program(data, recorder=recorder)
    assert recorder.registrations == []
    assert encode(fleet_seed(SEED, "frankfurt", 0)) not in str(raised.value)


@pytest.mark.parametrize(
    ("outputs", "message"),
    [
        ({}, "has no secret output join_bundles: .* pulumi up there first, with layout core"),
        ({"join_bundles": {}}, "or this run does not have the passphrase or key of its secrets"),
        ({"join_bundles": {"frankfurt": {"fleet_seed": "planted"}}}, "of another form"),
    ],
)
def test_a_core_stack_that_cannot_be_joined_is_told(outputs: dict[str, Any], message: str) -> None:
    recorder = Recorder(core_outputs=outputs)
    with pytest.raises(pulumi.RunError, match=message) as raised:
        record_program(edge_data(), recorder=recorder)
    assert recorder.registrations == []
    assert "planted" not in str(raised.value)


def test_the_fleets_half_may_leave_fleets_to_other_stacks(core: Recorder) -> None:
    data = edge_data()
    del data["fleets"]["london"]
    some = record_program(data, recorder=Recorder(core_outputs=core.stack_outputs))
    assert set(some.stack_outputs["fleets"]) == {"frankfurt", "stockholm"}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"core-stack": None}, "give core-stack"),
        ({"core-stack": "prod-core"}, "settings.core-stack: 'prod-core' is not accepted"),
        ({"mesh": {}, "door": {}}, "layout edge takes door, mesh from core-stack"),
        ({"core": sample_data()["core"]}, "layout edge takes core from core-stack"),
        ({"layout": "core"}, "layout core builds the core itself"),
    ],
)
def test_each_layout_refuses_what_the_other_half_decides(
    changes: dict[str, object], message: str
) -> None:
    with pytest.raises(SettingsError, match=message):
        settings.validate(edge_data(**changes))


def member(recorder: Recorder, fleet: str) -> dict[str, Any]:
    """What a fleet's members read as their settings."""
    template = next(
        entry
        for entry in recorder.of_type("aws:ec2/launchTemplate:LaunchTemplate")
        if entry.name == f"{fleet}-member"
    )
    files = born.files(template.inputs["userData"])
    found: dict[str, Any] = json.loads(files["/etc/fortress/member.json"])
    return found


def test_every_fleets_members_are_told_of_their_own_fleet(edge: Recorder) -> None:
    told = {name: member(edge, name) for name in REGIONS}
    assert {name: row["region"] for name, row in told.items()} == REGIONS
    assert {name: (row["first_address"], row["slot_count"]) for name, row in told.items()} == {
        "frankfurt": ("10.200.0.64", 32),
        "london": ("10.200.0.128", 32),
        # The upper half belongs to odd generations; the mesh's broadcast address stays out.
        "stockholm": ("10.200.0.224", 31),
    }
    for key in ("claim_table", "seed_parameter", "workload_parameter", "group"):
        assert len({row[key] for row in told.values()}) == 3
    assert {row["mesh"]["hub_endpoint"] for row in told.values()} == {"198.51.100.11:51820"}


def test_a_role_may_what_its_own_fleets_members_ask_for_and_nothing_of_another_fleets(
    edge: Recorder,
) -> None:
    assert {e.type for e in edge.registrations if e.type.startswith("aws:iam/")} == {
        "aws:iam/role:Role",
        "aws:iam/rolePolicy:RolePolicy",
        "aws:iam/instanceProfile:InstanceProfile",
    }, "a policy from elsewhere would not be judged here"
    documents = {
        entry.name.removesuffix("-member"): json.loads(entry.inputs["policy"])
        for entry in edge.of_type("aws:iam/rolePolicy:RolePolicy")
    }
    for name in REGIONS:
        told = member(edge, name)
        place = f"{told['region']}:123456789012"
        group = f"autoScalingGroup:any:autoScalingGroupName/{told['group']}"
        for action, resource in (
            ("dynamodb:Scan", f"dynamodb:{place}:table/{told['claim_table']}"),
            ("dynamodb:PutItem", f"dynamodb:{place}:table/{told['claim_table']}"),
            ("ssm:GetParameters", f"ssm:{place}:parameter{told['seed_parameter']}"),
            ("ssm:GetParameters", f"ssm:{place}:parameter{told['workload_parameter']}"),
            ("autoscaling:SetInstanceHealth", f"autoscaling:{place}:{group}"),
            ("autoscaling:CompleteLifecycleAction", f"autoscaling:{place}:{group}"),
        ):
            may = {
                role for role in REGIONS if allows(documents[role], action, f"arn:aws:{resource}")
            }
            assert may == {name}, f"{action} on {resource}"


def test_every_fleet_is_in_its_own_region_and_network(edge: Recorder) -> None:
    providers = {
        entry.urn: plain(entry.inputs["region"]) for entry in edge.of_type("pulumi:providers:aws")
    }
    assert sorted(providers.values()) == sorted(REGIONS.values())
    by_region: dict[str, set[str]] = {}
    for entry in edge.registrations:
        if entry.type.startswith("aws:"):
            region = providers[entry.provider.rpartition("::")[0]]
            by_region.setdefault(region, set()).add(entry.name.split("-")[0])
    assert by_region == {region: {name} for name, region in REGIONS.items()}
    images = [
        providers[provider.rpartition("::")[0]]
        for token, provider in edge.lookups
        if token == "aws:ec2/getAmi:getAmi"
    ]
    assert sorted(images) == sorted(REGIONS.values())
    networks = {entry.inputs["cidrBlock"] for entry in edge.of_type("aws:ec2/vpc:Vpc")}
    assert networks == {"10.64.0.0/16", "10.65.0.0/16", "10.66.0.0/16"}


def test_every_group_has_its_own_limits(edge: Recorder) -> None:
    groups = {
        entry.name.removesuffix("-group"): (entry.inputs["minSize"], entry.inputs["maxSize"])
        for entry in edge.of_type("aws:autoscaling/group:Group")
    }
    assert groups == {"frankfurt": (1, 8), "london": (2, 5), "stockholm": (1, 8)}


def test_several_instance_types_or_a_spot_share_make_a_mixed_group(edge: Recorder) -> None:
    groups = {entry.name: entry.inputs for entry in edge.of_type("aws:autoscaling/group:Group")}
    assert "mixedInstancesPolicy" not in groups["frankfurt-group"]
    london = groups["london-group"]["mixedInstancesPolicy"]
    assert london["instancesDistribution"]["onDemandPercentageAboveBaseCapacity"] == 100
    assert [row["instanceType"] for row in london["launchTemplate"]["overrides"]] == [
        "t3.medium",
        "t3a.medium",
    ]
    stockholm = groups["stockholm-group"]["mixedInstancesPolicy"]
    assert stockholm["instancesDistribution"]["onDemandPercentageAboveBaseCapacity"] == 30
    assert "launchTemplate" not in groups["stockholm-group"]


def test_the_door_tries_fleets_by_preference(core: Recorder) -> None:
    (command,) = [
        entry for entry in core.of_type("command:remote:Command") if entry.name.startswith("door-")
    ]
    text = json.loads(plain(command.inputs["stdin"]))["configuration"]["content"]
    places = [text.index(f"use_backend burst_{name}") for name in REGIONS]
    frankfurt, london, stockholm = places
    assert stockholm < frankfurt < london

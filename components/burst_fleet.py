"""BurstFleet: stateless frontends in an AWS Auto Scaling Group of one region."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from ipaddress import IPv4Network
from typing import Any, NoReturn, TypedDict

import pulumi
import pulumi_aws as aws

from components.stateless_function import StatelessFunction, StatelessFunctionArgs
from plan.mesh import FleetPlan
from plan.names import (
    METRIC_NAMESPACE,
    SPILL_PRESSURE_PER_MEMBER,
    FleetNames,
    function_name,
    metric_dimensions,
)
from plan.names import group_name as group_name_of
from render.member import JoinFacts, user_data
from render.policies import fleet_role, instance_trust
from render.workload import workload_secrets as render_secrets
from settings import DatabaseSettings, FleetSettings, Workload

# Enough for a /16 to hold 16 zones' subnets; AWS takes ranges from /16 to /28 (VPC user guide).
SUBNET_BITS = 4
JOINING_HOOK = "joining"
LEAVING_HOOK = "leaving"
# The group counts from the launch, a member from the start of its program: booting comes between.
JOIN_MARGIN_SECONDS = 120
# A member's termination waits this much longer than its drain, for stopping and releasing.
LEAVE_MARGIN_SECONDS = 60
# A member in service serves (its hook waited for that); the door needs two checks, one a second,
# to send it requests, and one of them may be lost.
REFRESH_WARMUP_SECONDS = 10


class JoiningHook(TypedDict):
    """What is said of the launching hook twice: with the group, and on its own."""

    name: str
    lifecycle_transition: str
    default_result: str
    heartbeat_timeout: int


@dataclass(frozen=True, kw_only=True)
class FleetSeed:
    """The secret of one accepted generation, base64, and the parameter that holds it."""

    generation: int
    parameter: str
    value: pulumi.Input[str]


@dataclass(frozen=True, kw_only=True)
class BurstFleetArgs:
    """What a fleet is made of.

    Attributes:
        fleet: the fleet's settings.
        plan: its slots.
        facts: what members must know of the core.
        names: physical names members are told.
        fleet_seeds: of every accepted generation: a member of the previous one that reboots reads
            its own again.
        workload: what members run.
        database: which database they read.
        fleet_password: of the fleet's database role.
        tags: on every resource that takes them.
        launch_after: what must be as declared before members are launched or replaced: a hub that
            accepts them and a door that sends them requests.
    """

    fleet: FleetSettings
    plan: FleetPlan
    facts: pulumi.Output[JoinFacts]
    names: FleetNames
    fleet_seeds: Sequence[FleetSeed]
    workload: Workload
    database: DatabaseSettings
    fleet_password: pulumi.Input[str]
    tags: dict[str, str]
    launch_after: Sequence[pulumi.Resource] = ()


def subnet_ranges(vpc_range: IPv4Network, letters: Sequence[str]) -> dict[str, str]:
    """One subnet per zone, by its letter, at a place that does not move when zones are added."""
    subnets = list(vpc_range.subnets(prefixlen_diff=SUBNET_BITS))
    return {letter: str(subnets[ord(letter) - ord("a")]) for letter in letters}


def joining_hook(fleet: FleetSettings) -> JoiningHook:
    """Hold a launched instance until it serves; one that never does is replaced."""
    return {
        "name": JOINING_HOOK,
        "lifecycle_transition": "autoscaling:EC2_INSTANCE_LAUNCHING",
        "default_result": "ABANDON",
        "heartbeat_timeout": fleet.join_seconds + JOIN_MARGIN_SECONDS,
    }


def refresh_preferences(
    fleet: FleetSettings, plan: FleetPlan
) -> aws.autoscaling.GroupInstanceRefreshPreferencesArgs:
    """How many members are replaced at a time.

    At 100 percent new members serve before old ones leave, up to as many as there are, but never
    more together than there are slots: a fleet as large as its slots replaces one at a time.
    """
    room = 100 * len(plan.claimable) // fleet.max_size
    return aws.autoscaling.GroupInstanceRefreshPreferencesArgs(
        min_healthy_percentage=fleet.refresh_healthy_percent,
        # AWS takes 100 to 200, and at most 100 above the minimum (RefreshPreferences).
        max_healthy_percentage=min(200, room) if fleet.refresh_healthy_percent == 100 else 100,
        instance_warmup=str(REFRESH_WARMUP_SECONDS),
    )


def target_tracking(
    args: BurstFleetArgs,
) -> aws.autoscaling.PolicyTargetTrackingConfigurationArgsDict:
    """What the group's size follows: its processors, or what the door says of Oslo."""
    scaling = args.fleet.scaling
    if scaling.kind == "cpu":
        return {
            "predefined_metric_specification": {
                "predefined_metric_type": "ASGAverageCPUUtilization"
            },
            "target_value": scaling.target_percent,
        }
    dimensions = metric_dimensions(pulumi.get_stack(), args.plan.name)
    return {
        "customized_metric_specification": {
            "namespace": METRIC_NAMESPACE,
            "metric_name": SPILL_PRESSURE_PER_MEMBER,
            "metric_dimensions": [
                {"name": key, "value": value} for key, value in dimensions.items()
            ],
            "statistic": "Average",
            "unit": "Percent",
        },
        "target_value": scaling.target_percent,
    }


class BurstFleet(pulumi.ComponentResource):
    """Cattle: members claim a slot at boot and hold nothing that would be missed.

    Creates network, closed security group, role, secrets, claim table, launch template, group,
    scaling policy and lifecycle hook, and the fleet's functions. Nothing here grows with the
    fleet's size.

    Attributes:
        group_name: of the Auto Scaling Group.
        functions: stateless jobs beside the members, by name.
    """

    group_name: pulumi.Output[str]
    functions: dict[str, StatelessFunction]

    def __init__(
        self, name: str, args: BurstFleetArgs, opts: pulumi.ResourceOptions | None = None
    ) -> None:
        super().__init__("fortress:index:BurstFleet", name, None, opts)
        subnets, security_group = self._network(name, args)
        table = aws.dynamodb.Table(
            f"{name}-claims",
            name=args.names.claim_table,
            billing_mode="PAY_PER_REQUEST",
            hash_key="slot",
            attributes=[{"name": "slot", "type": "S"}],
            tags=args.tags,
            opts=self._child(),
        )
        seeds = [self._seed(name, args, seed) for seed in args.fleet_seeds]
        workload_secrets = aws.ssm.Parameter(
            f"{name}-workload-secrets",
            name=args.names.workload_parameter,
            type="SecureString",
            value=pulumi.Output.secret(args.fleet_password).apply(render_secrets),
            description="Environment of the workload that is secret.",
            tags=args.tags,
            opts=self._child(),
        )
        group_name = group_name_of(pulumi.get_project(), pulumi.get_stack(), args.plan.name)
        profile, permissions = self._role(name, args, group_name)
        template = self._launch_template(
            name, args, group_name, profile, security_group, workload_secrets
        )
        # Members find these by name, so the engine can't see that they must be there first.
        needed = (table, *seeds, workload_secrets, permissions, *args.launch_after)
        group = self._group(name, args, group_name, template, subnets, needed)
        aws.autoscaling.Policy(
            f"{name}-scaling",
            autoscaling_group_name=group.name,
            policy_type="TargetTrackingScaling",
            estimated_instance_warmup=args.fleet.join_seconds,
            target_tracking_configuration=target_tracking(args),
            opts=self._child(),
        )
        aws.autoscaling.LifecycleHook(
            f"{name}-joining",
            autoscaling_group_name=group.name,
            opts=self._child(),
            **joining_hook(args.fleet),
        )
        aws.autoscaling.LifecycleHook(
            f"{name}-leaving",
            name=LEAVING_HOOK,
            autoscaling_group_name=group.name,
            lifecycle_transition="autoscaling:EC2_INSTANCE_TERMINATING",
            default_result="CONTINUE",
            heartbeat_timeout=args.fleet.drain_seconds + LEAVE_MARGIN_SECONDS,
            opts=self._child(),
        )
        self.functions = {
            function: StatelessFunction(
                f"{name}-function-{function}",
                StatelessFunctionArgs(
                    function=settings,
                    name=function_name(
                        pulumi.get_project(), pulumi.get_stack(), args.plan.name, function
                    ),
                    tags=args.tags,
                ),
                self._child(),
            )
            for function, settings in args.fleet.functions.items()
        }
        self.group_name = group.name
        self.register_outputs({"group_name": self.group_name})

    def _child(self) -> pulumi.ResourceOptions:
        return pulumi.ResourceOptions(parent=self)

    def _seed(self, name: str, args: BurstFleetArgs, seed: FleetSeed) -> aws.ssm.Parameter:
        return aws.ssm.Parameter(
            f"{name}-seed-{seed.generation}",
            name=seed.parameter,
            type="SecureString",
            value=pulumi.Output.secret(seed.value),
            description="Slot keys of this fleet's members follow from it.",
            tags=args.tags,
            opts=self._child(),
        )

    def _network(
        self, name: str, args: BurstFleetArgs
    ) -> tuple[list[aws.ec2.Subnet], aws.ec2.SecurityGroup]:
        """Public subnets, because a NAT gateway costs more than an address per member."""
        tags = {**args.tags, "Name": name}
        vpc = aws.ec2.Vpc(
            f"{name}-vpc",
            cidr_block=str(args.fleet.vpc_range),
            enable_dns_support=True,
            enable_dns_hostnames=True,
            tags=tags,
            opts=self._child(),
        )
        gateway = aws.ec2.InternetGateway(
            f"{name}-gateway", vpc_id=vpc.id, tags=tags, opts=self._child()
        )
        routes = aws.ec2.RouteTable(
            f"{name}-routes",
            vpc_id=vpc.id,
            routes=[{"cidr_block": "0.0.0.0/0", "gateway_id": gateway.id}],
            tags=tags,
            opts=self._child(),
        )
        ranges = subnet_ranges(args.fleet.vpc_range, args.fleet.availability_zones)
        subnets = []
        for letter, network in ranges.items():
            zone = f"{args.fleet.region}{letter}"
            subnet = aws.ec2.Subnet(
                f"{name}-subnet-{zone}",
                vpc_id=vpc.id,
                availability_zone=zone,
                cidr_block=network,
                map_public_ip_on_launch=True,
                tags=tags,
                opts=self._child(),
            )
            aws.ec2.RouteTableAssociation(
                f"{name}-route-{zone}",
                subnet_id=subnet.id,
                route_table_id=routes.id,
                opts=self._child(),
            )
            subnets.append(subnet)
        security_group = aws.ec2.SecurityGroup(
            f"{name}-members",
            vpc_id=vpc.id,
            description="Members call the hub; nobody calls them except through the tunnel.",
            ingress=[],
            egress=[{"protocol": "-1", "from_port": 0, "to_port": 0, "cidr_blocks": ["0.0.0.0/0"]}],
            tags=tags,
            opts=self._child(),
        )
        return subnets, security_group

    def _role(
        self, name: str, args: BurstFleetArgs, group_name: str
    ) -> tuple[aws.iam.InstanceProfile, aws.iam.RolePolicy]:
        caller = aws.get_caller_identity_output(opts=self._invoke_output())
        partition = aws.get_partition_output(opts=self._invoke_output())
        role = aws.iam.Role(
            f"{name}-member",
            assume_role_policy=partition.dns_suffix.apply(
                lambda suffix: json.dumps(instance_trust(service_suffix=suffix))
            ),
            tags=args.tags,
            opts=self._child(),
        )
        permissions = aws.iam.RolePolicy(
            f"{name}-member",
            role=role.name,
            policy=pulumi.Output.all(partition.partition, caller.account_id).apply(
                lambda values: json.dumps(
                    fleet_role(
                        partition=values[0],
                        region=args.fleet.region,
                        account=values[1],
                        claim_table=args.names.claim_table,
                        parameters=[
                            *(seed.parameter for seed in args.fleet_seeds),
                            args.names.workload_parameter,
                        ],
                        group_name=group_name,
                    )
                )
            ),
            opts=self._child(),
        )
        profile = aws.iam.InstanceProfile(
            f"{name}-member", role=role.name, tags=args.tags, opts=self._child()
        )
        return profile, permissions

    def _invoke_output(self) -> pulumi.InvokeOutputOptions:
        return pulumi.InvokeOutputOptions(parent=self)

    def _launch_template(
        self,
        name: str,
        args: BurstFleetArgs,
        group_name: str,
        profile: aws.iam.InstanceProfile,
        security_group: aws.ec2.SecurityGroup,
        workload_secrets: aws.ssm.Parameter,
    ) -> aws.ec2.LaunchTemplate:
        image = self._image(args)
        return aws.ec2.LaunchTemplate(
            f"{name}-member",
            image_id=image.id,
            instance_type=args.fleet.instance_types[0],
            update_default_version=True,
            iam_instance_profile={"arn": profile.arn},
            # Poweroff ends a member for good: the group replaces what left.
            instance_initiated_shutdown_behavior="terminate",
            metadata_options={
                "http_endpoint": "enabled",
                "http_tokens": "required",
                "http_put_response_hop_limit": 1,
            },
            block_device_mappings=[
                {
                    # By another name it would be a second volume, beside a root left as it is.
                    "device_name": image.root_device_name,
                    "ebs": {
                        "encrypted": "true",
                        "volume_size": args.fleet.root_gib,
                        "volume_type": "gp3",
                        "delete_on_termination": "true",
                    },
                }
            ],
            network_interfaces=[
                {
                    "associate_public_ip_address": "true",
                    "delete_on_termination": "true",
                    "security_groups": [security_group.id],
                }
            ],
            user_data=pulumi.Output.all(args.facts, workload_secrets.version).apply(
                lambda values: user_data(
                    facts=values[0],
                    secrets_version=int(values[1]),
                    fleet=args.fleet,
                    plan=args.plan,
                    names=args.names,
                    group_name=group_name,
                    launch_hook=JOINING_HOOK,
                    terminate_hook=LEAVING_HOOK,
                    workload=args.workload,
                    database=args.database,
                )
            ),
            tag_specifications=[
                {"resource_type": kind, "tags": {**args.tags, "Name": name}}
                for kind in ("instance", "volume")
            ],
            tags=args.tags,
            opts=self._child(),
        )

    def _image(self, args: BurstFleetArgs) -> pulumi.Output[aws.ec2.GetAmiResult]:
        """The image members boot from.

        Raises:
            RunError: in the output, when there is none, or none that the instance types can run.
        """
        fleet, image = args.fleet, args.fleet.image
        setting = f"fleets.{args.plan.name}.image"
        types = f"instance-types {', '.join(fleet.instance_types)}"
        wanted = (
            {"image-id": image.id}
            if image.id is not None
            # An image that is still being made can't be launched.
            else {"name": image.name, "architecture": fleet.architecture, "state": "available"}
        )

        def missing(error: Exception) -> NoReturn:
            described = ", ".join(f"{key} {value}" for key, value in wanted.items())
            owner = f"owner {image.owner}, " if image.owner is not None else ""
            msg = (
                f"{setting}: no image ({owner}{described}) was found in {fleet.region} for "
                f"{types}, and members boot from it. Correct the image or the types. EC2 said: "
                f"{error}"
            )
            raise pulumi.RunError(msg)

        def fitting(found: aws.ec2.GetAmiResult) -> aws.ec2.GetAmiResult:
            if found.architecture != fleet.architecture:
                msg = (
                    f"{setting}: {found.id} is made for {found.architecture}, but {types} are "
                    f"{fleet.architecture}, so no member would boot. Give an image or types of "
                    "the other architecture"
                )
                raise pulumi.RunError(msg)
            return found

        return (
            aws.ec2.get_ami_output(
                owners=None if image.owner is None else [image.owner],
                most_recent=True,
                # Whoever names an image by its id may launch it as long as it is there.
                include_deprecated=image.id is not None,
                filters=[{"name": key, "values": [str(value)]} for key, value in wanted.items()],
                opts=self._invoke_output(),
            )
            .recover(missing)
            .apply(fitting)
        )

    def _group(
        self,
        name: str,
        args: BurstFleetArgs,
        group_name: str,
        template: aws.ec2.LaunchTemplate,
        subnets: Sequence[aws.ec2.Subnet],
        needed: Sequence[pulumi.Resource],
    ) -> aws.autoscaling.Group:
        version = template.latest_version.apply(str)
        fleet = args.fleet
        launch: dict[str, Any] = {"launch_template": {"id": template.id, "version": version}}
        if len(fleet.instance_types) > 1 or fleet.spot_percent:
            launch = {
                "mixed_instances_policy": {
                    "instances_distribution": {
                        "on_demand_percentage_above_base_capacity": 100 - fleet.spot_percent,
                        "spot_allocation_strategy": "price-capacity-optimized",
                    },
                    "launch_template": {
                        "launch_template_specification": {
                            "launch_template_id": template.id,
                            "version": version,
                        },
                        "overrides": [{"instance_type": kind} for kind in fleet.instance_types],
                    },
                }
            }
        return aws.autoscaling.Group(
            f"{name}-group",
            name=group_name,
            min_size=fleet.min_size,
            max_size=fleet.max_size,
            vpc_zone_identifiers=[subnet.id for subnet in subnets],
            health_check_type="EC2",
            health_check_grace_period=fleet.join_seconds,
            # Members wait for the hub as long as they must; `pulumi up` does not wait for them.
            wait_for_capacity_timeout="0",
            initial_lifecycle_hooks=[
                aws.autoscaling.GroupInitialLifecycleHookArgs(**joining_hook(fleet))
            ],
            instance_refresh=aws.autoscaling.GroupInstanceRefreshArgs(
                strategy="Rolling", preferences=refresh_preferences(fleet, args.plan)
            ),
            tags=[
                {"key": key, "value": value, "propagate_at_launch": False}
                for key, value in {**args.tags, "Name": name}.items()
            ],
            opts=pulumi.ResourceOptions(
                parent=self,
                depends_on=list(needed),
                # They hold the first members only, and another value would replace the group.
                ignore_changes=["initialLifecycleHooks"],
            ),
            **launch,
        )

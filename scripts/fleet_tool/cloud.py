"""What AWS has under a stack's tags and names in one region, and how a thing there is removed.

Owns every request. It refuses to decide what is an orphan, and never touches what bears no tag or
unmistakable name of this project and stack.
"""

import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import boto3
import botocore.config
import botocore.exceptions

from claims import Claim, ClaimTable, instance_states
from scripts.fleet_tool.orphans import Kind, Orphan, Place, Thing
from scripts.fleet_tool.stack import ToolError
from scripts.fleet_tool.status import Instance

CONFIGURATION = botocore.config.Config(
    connect_timeout=5, read_timeout=20, retries={"mode": "standard", "total_max_attempts": 4}
)
UNTAGGED = "it has no tags, and its name could also be one of another stack's"
NOT_A_ROOT_VOLUME = "it was not made from an image, so it may hold data"
REQUESTER_MANAGED = "an AWS service made it and removes it itself"


@contextmanager
def _explained(what: str) -> Iterator[None]:
    try:
        yield
    except (botocore.exceptions.ClientError, botocore.exceptions.BotoCoreError) as error:
        message = f"{what}: {error}"
        raise ToolError(message) from None


def require_credentials() -> None:
    """Say once, instead of for every kind of thing, that nobody is logged in.

    Raises:
        ToolError: when boto3 finds no credentials.
    """
    if boto3.Session().get_credentials() is None:
        message = (
            "there are no AWS credentials in the environment, so nothing can be looked at. Log in "
            "as for `pulumi up`, for example with AWS_PROFILE"
        )
        raise ToolError(message)


@functools.cache
def _client(service: str, place: Place) -> Any:
    """A client costs a large part of a second, so each is made once."""
    return boto3.client(
        service,  # type: ignore[call-overload]
        region_name=place.region,
        endpoint_url=place.endpoint_url,
        config=CONFIGURATION,
    )


class Cloud:
    """One region as the person's own AWS credentials see it.

    Parameters:
        place: region and API.
        project: the project's name.
        stack: the stack's own name.
    """

    def __init__(self, place: Place, *, project: str, stack: str) -> None:
        self.place = place
        self._tags = {"project": project, "stack": stack}

    def _client(self, service: str) -> Any:
        return _client(service, self.place)

    def _pages(self, service: str, operation: str, key: str, **arguments: Any) -> Iterator[Any]:
        pages = self._client(service).get_paginator(operation).paginate(**arguments)
        for page in pages:
            yield from page[key]

    def _tag_filters(self) -> list[dict[str, Any]]:
        return [{"Name": f"tag:{key}", "Values": [value]} for key, value in self._tags.items()]

    def _is_ours(self, tags: Mapping[str, str]) -> bool:
        return self._tags.items() <= tags.items()

    def claims(self, table: str) -> dict[str, Claim]:
        """All claims of a fleet by slot.

        Raises:
            ToolError: when the table can't be read.
        """
        with _explained(f"can't read claims from {table} in {self.place.region}"):
            return ClaimTable(self._client("dynamodb"), table).claims()

    def states(self, instances: Sequence[str]) -> dict[str, str]:
        """EC2's states of instances by id, whatever tags they bear; unknown ones are absent.

        Raises:
            ToolError: when EC2 does not say.
        """
        with _explained(f"can't read instances in {self.place.region}"):
            return instance_states(self._client("ec2"), instances)

    def instances(self) -> dict[str, Instance]:
        """All instances of the stack by id, with their group's view of them.

        Raises:
            ToolError: when EC2 or Auto Scaling does not say.
        """
        with _explained(f"can't read instances in {self.place.region}"):
            found = {
                one["InstanceId"]: Instance(
                    id=one["InstanceId"],
                    fleet=_tags(one).get("fleet", ""),
                    state=one["State"]["Name"],
                    launched_at=one["LaunchTime"].timestamp(),
                    type=one["InstanceType"],
                )
                for reservation in self._pages(
                    "ec2", "describe_instances", "Reservations", Filters=self._tag_filters()
                )
                for one in reservation["Instances"]
            }
        with _explained(f"can't read Auto Scaling Groups in {self.place.region}"):
            for group in self._groups():
                for member in group["Instances"]:
                    known = found.get(member["InstanceId"])
                    if known is not None:
                        found[known.id] = replace(
                            known,
                            lifecycle=member["LifecycleState"],
                            healthy=member["HealthStatus"] == "Healthy",
                        )
        return found

    def things(self) -> tuple[list[Thing], list[str]]:
        """Everything but instances and claims that bears the stack's tags or name.

        Returns:
            What was found, and one line for each kind that AWS does not let us list.
        """
        readers: Mapping[str, Callable[[], Iterator[Thing]]] = {
            "Auto Scaling Groups": self._read_groups,
            "network interfaces": self._read_interfaces,
            "addresses": self._read_addresses,
            "volumes": self._read_volumes,
            "launch templates": self._read_launch_templates,
            "tables": self._read_tables,
            "parameters": self._read_parameters,
            "log groups": self._read_log_groups,
        }
        found: list[Thing] = []
        problems = []
        for what, read in readers.items():
            try:
                with _explained(f"can't list {what} in {self.place.region}"):
                    found += read()
            except ToolError as error:
                problems.append(str(error))
        return found, problems

    def _thing(self, kind: Kind, thing_id: str, tags: Mapping[str, str], **facts: Any) -> Thing:
        return Thing(kind=kind, id=thing_id, place=self.place, fleet=tags.get("fleet"), **facts)

    def _groups(self) -> Iterator[Any]:
        return self._pages(
            "autoscaling",
            "describe_auto_scaling_groups",
            "AutoScalingGroups",
            Filters=self._tag_filters(),
        )

    def _read_groups(self) -> Iterator[Thing]:
        for one in self._groups():
            # A group has a status only while it is being deleted.
            if "Status" not in one:
                yield self._thing(
                    Kind.GROUP,
                    one["AutoScalingGroupName"],
                    _tags(one),
                    created_at=one["CreatedTime"].timestamp(),
                )

    def _read_interfaces(self) -> Iterator[Thing]:
        """Unattached ones, tagged or in a VPC that is: members' interfaces bear no tags."""
        vpcs = [
            one["VpcId"]
            for one in self._pages("ec2", "describe_vpcs", "Vpcs", Filters=self._tag_filters())
        ]
        unattached = {"Name": "status", "Values": ["available"]}
        searches = [self._tag_filters()]
        if vpcs:
            searches.append([{"Name": "vpc-id", "Values": vpcs}])
        seen = {
            one["NetworkInterfaceId"]: one
            for filters in searches
            for one in self._pages(
                "ec2",
                "describe_network_interfaces",
                "NetworkInterfaces",
                Filters=[unattached, *filters],
            )
        }
        for interface, one in seen.items():
            # Not every API that speaks EC2 knows the filter.
            if one["Status"] == "available":
                kept = REQUESTER_MANAGED if one.get("RequesterManaged") else None
                yield self._thing(Kind.INTERFACE, interface, _tags(one, key="TagSet"), kept=kept)

    def _read_addresses(self) -> Iterator[Thing]:
        answer = self._client("ec2").describe_addresses(Filters=self._tag_filters())
        for one in answer["Addresses"]:
            if not one.get("AssociationId"):
                yield self._thing(Kind.ADDRESS, one["AllocationId"], _tags(one))

    def _read_volumes(self) -> Iterator[Thing]:
        unattached = {"Name": "status", "Values": ["available"]}
        for one in self._pages(
            "ec2", "describe_volumes", "Volumes", Filters=[unattached, *self._tag_filters()]
        ):
            tags = _tags(one)
            root = "fleet" in tags and one.get("SnapshotId")
            yield self._thing(
                Kind.VOLUME,
                one["VolumeId"],
                tags,
                created_at=one["CreateTime"].timestamp(),
                size_gib=one["Size"],
                type=one.get("VolumeType", ""),
                kept=None if root else NOT_A_ROOT_VOLUME,
            )

    def _read_launch_templates(self) -> Iterator[Thing]:
        for one in self._pages(
            "ec2", "describe_launch_templates", "LaunchTemplates", Filters=self._tag_filters()
        ):
            yield self._thing(
                Kind.LAUNCH_TEMPLATE,
                one["LaunchTemplateId"],
                _tags(one),
                created_at=one["CreateTime"].timestamp(),
            )

    def _read_tables(self) -> Iterator[Thing]:
        dynamodb = self._client("dynamodb")
        for name in self._pages("dynamodb", "list_tables", "TableNames"):
            if not name.startswith(self._dashed()):
                continue
            table = dynamodb.describe_table(TableName=name)["Table"]
            tags = {
                tag["Key"]: tag["Value"]
                for tag in self._pages(
                    "dynamodb",
                    "list_tags_of_resource",
                    "Tags",
                    ResourceArn=table["TableArn"],
                )
            }
            if table["TableStatus"] != "DELETING" and (self._is_ours(tags) or not tags):
                yield self._thing(
                    Kind.TABLE,
                    name,
                    tags,
                    created_at=table["CreationDateTime"].timestamp(),
                    kept=None if tags else UNTAGGED,
                )

    def _read_parameters(self) -> Iterator[Thing]:
        for one in self._pages(
            "ssm",
            "describe_parameters",
            "Parameters",
            ParameterFilters=[{"Key": "Path", "Option": "Recursive", "Values": [self._slashed()]}],
        ):
            yield self._thing(
                Kind.PARAMETER,
                one["Name"],
                {"fleet": one["Name"].removeprefix(self._slashed()).split("/")[1]},
                created_at=one["LastModifiedDate"].timestamp(),
            )

    def _read_log_groups(self) -> Iterator[Thing]:
        """By name, because a function that outlives its log group makes a new one without tags."""
        slashed = f"{self._slashed()}/"
        for prefix in (slashed, f"/aws/lambda/{self._dashed()}"):
            for one in self._pages(
                "logs", "describe_log_groups", "logGroups", logGroupNamePrefix=prefix
            ):
                tags = self._client("logs").list_tags_for_resource(
                    resourceArn=one["arn"].removesuffix(":*")
                )["tags"]
                if tags and not self._is_ours(tags):
                    continue
                yield self._thing(
                    Kind.LOG_GROUP,
                    one["logGroupName"],
                    tags,
                    created_at=one["creationTime"] / 1000,
                    kept=None if tags or prefix == slashed else UNTAGGED,
                )

    def _dashed(self) -> str:
        """How names begin that stack `prod` shares with a stack called `prod-eu`."""
        return f"{self._tags['project']}-{self._tags['stack']}-"

    def _slashed(self) -> str:
        return f"/{self._tags['project']}/{self._tags['stack']}"

    def remove(self, orphan: Orphan) -> None:
        """Remove one thing.

        Raises:
            ToolError: when AWS refuses, or a claim is not the gone instance's any more.
        """
        if orphan.kept is not None:
            message = f"{orphan.id} is never removed here: {orphan.kept}"
            raise ToolError(message)
        with _explained(f"can't remove {orphan.kind} {orphan.id}"):
            self._remove(orphan)

    def _remove(self, orphan: Orphan) -> None:
        ec2, thing = self._client("ec2"), orphan.id
        match orphan.kind:
            case Kind.GROUP:
                self._client("autoscaling").delete_auto_scaling_group(
                    AutoScalingGroupName=thing, ForceDelete=True
                )
            case Kind.INSTANCE:
                ec2.terminate_instances(InstanceIds=[thing])
            case Kind.CLAIM:
                claims = ClaimTable(self._client("dynamodb"), orphan.table)
                if not claims.release(thing, orphan.owner):
                    message = f"{thing} is not {orphan.owner}'s any more: somebody took it over"
                    raise ToolError(message)
            case Kind.INTERFACE:
                ec2.delete_network_interface(NetworkInterfaceId=thing)
            case Kind.ADDRESS:
                ec2.release_address(AllocationId=thing)
            case Kind.VOLUME:
                ec2.delete_volume(VolumeId=thing)
            case Kind.LAUNCH_TEMPLATE:
                ec2.delete_launch_template(LaunchTemplateId=thing)
            case Kind.TABLE:
                self._client("dynamodb").delete_table(TableName=thing)
            case Kind.PARAMETER:
                self._client("ssm").delete_parameter(Name=thing)
            case Kind.LOG_GROUP:
                self._client("logs").delete_log_group(logGroupName=thing)


def _tags(described: Mapping[str, Any], key: str = "Tags") -> dict[str, str]:
    return {tag["Key"]: tag["Value"] for tag in described.get(key) or []}

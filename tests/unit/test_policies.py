"""What a fleet's instances may and may not ask of AWS, judged by a small evaluator."""

from fnmatch import fnmatchcase
from typing import Any

import pytest

from plan.names import fleet_names
from render.policies import (
    Document,
    fleet_role,
    function_role,
    function_trust,
    instance_trust,
    publisher,
)

ACCOUNT = "123456789012"
OWN = fleet_names("fortress-and-fleet", "prod", "frankfurt", 0)
OTHER = fleet_names("fortress-and-fleet", "prod", "london", 0)
NEXT = fleet_names("fortress-and-fleet", "prod", "frankfurt", 1)
KEY = f"arn:aws:kms:eu-central-1:{ACCOUNT}:key/1234"


def table(name: str, region: str = "eu-central-1") -> str:
    return f"arn:aws:dynamodb:{region}:{ACCOUNT}:table/{name}"


def parameter(name: str) -> str:
    return f"arn:aws:ssm:eu-central-1:{ACCOUNT}:parameter{name}"


def group(name: str) -> str:
    return (
        f"arn:aws:autoscaling:eu-central-1:{ACCOUNT}:autoScalingGroup:uuid"
        f":autoScalingGroupName/{name}"
    )


ROLE = fleet_role(
    partition="aws",
    region="eu-central-1",
    account=ACCOUNT,
    claim_table=OWN.claim_table,
    parameters=[OWN.seed_parameter, OWN.workload_parameter],
    group_name="fortress-prod-frankfurt",
    key_arn=KEY,
)


def listed(value: Any) -> list[str]:
    return [value] if isinstance(value, str) else list(value)


def allows(document: Document, action: str, resource: str, **context: str) -> bool:
    """IAM's rule for documents that only allow: one statement must match in every part."""
    for statement in document["Statement"]:
        assert statement["Effect"] == "Allow"
        conditions = statement.get("Condition", {}).get("StringEquals", {})
        if (
            any(fnmatchcase(action.lower(), one.lower()) for one in listed(statement["Action"]))
            and any(fnmatchcase(resource, one) for one in listed(statement["Resource"]))
            and all(context.get(key) in listed(value) for key, value in conditions.items())
        ):
            return True
    return False


@pytest.mark.parametrize(
    ("action", "resource", "context"),
    [
        ("dynamodb:Scan", table(OWN.claim_table), {}),
        ("dynamodb:PutItem", table(OWN.claim_table), {}),
        ("dynamodb:UpdateItem", table(OWN.claim_table), {}),
        ("dynamodb:DeleteItem", table(OWN.claim_table), {}),
        ("ssm:GetParameters", parameter(OWN.seed_parameter), {}),
        ("ssm:GetParameters", parameter(OWN.workload_parameter), {}),
        ("autoscaling:SetInstanceHealth", group("fortress-prod-frankfurt"), {}),
        ("autoscaling:CompleteLifecycleAction", group("fortress-prod-frankfurt"), {}),
        ("ec2:DescribeInstances", "*", {"aws:RequestedRegion": "eu-central-1"}),
        (
            "kms:Decrypt",
            KEY,
            {"kms:EncryptionContext:PARAMETER_ARN": parameter(OWN.seed_parameter)},
        ),
    ],
)
def test_a_member_may(action: str, resource: str, context: dict[str, str]) -> None:
    assert allows(ROLE, action, resource, **context)


@pytest.mark.parametrize(
    ("action", "resource", "context"),
    [
        ("dynamodb:PutItem", table(OTHER.claim_table), {}),
        ("dynamodb:PutItem", table(OWN.claim_table, "eu-west-2"), {}),
        ("dynamodb:PutItem", table(f"{OWN.claim_table}-more"), {}),
        ("dynamodb:DeleteTable", table(OWN.claim_table), {}),
        ("dynamodb:UpdateTable", table(OWN.claim_table), {}),
        ("dynamodb:ListTables", "*", {}),
        ("ssm:GetParameters", parameter(OTHER.seed_parameter), {}),
        ("ssm:GetParameters", parameter(OTHER.workload_parameter), {}),
        ("ssm:GetParameters", parameter(NEXT.seed_parameter), {}),
        ("ssm:PutParameter", parameter(OWN.seed_parameter), {}),
        ("ssm:DescribeParameters", "*", {}),
        ("ssm:GetParametersByPath", parameter("/fortress-and-fleet/prod"), {}),
        ("autoscaling:SetInstanceHealth", group("fortress-prod-london"), {}),
        ("autoscaling:SetDesiredCapacity", group("fortress-prod-frankfurt"), {}),
        ("autoscaling:UpdateAutoScalingGroup", group("fortress-prod-frankfurt"), {}),
        ("ec2:DescribeInstances", "*", {"aws:RequestedRegion": "eu-west-2"}),
        ("ec2:DescribeLaunchTemplateVersions", "*", {"aws:RequestedRegion": "eu-central-1"}),
        ("ec2:RunInstances", "*", {"aws:RequestedRegion": "eu-central-1"}),
        ("ec2:TerminateInstances", "*", {"aws:RequestedRegion": "eu-central-1"}),
        ("iam:PassRole", f"arn:aws:iam::{ACCOUNT}:role/any", {}),
        ("sts:AssumeRole", f"arn:aws:iam::{ACCOUNT}:role/any", {}),
        ("s3:GetObject", "arn:aws:s3:::any/thing", {}),
        ("kms:Decrypt", KEY, {}),
        (
            "kms:Decrypt",
            KEY,
            {"kms:EncryptionContext:PARAMETER_ARN": parameter(OTHER.seed_parameter)},
        ),
    ],
)
def test_a_member_may_not(action: str, resource: str, context: dict[str, str]) -> None:
    assert not allows(ROLE, action, resource, **context)


def test_no_action_has_a_wildcard() -> None:
    assert not [one for s in ROLE["Statement"] for one in listed(s["Action"]) if "*" in one]


def test_only_ec2_of_the_partition_takes_the_role() -> None:
    (statement,) = instance_trust(service_suffix="amazonaws.eu")["Statement"]
    assert statement["Principal"] == {"Service": "ec2.amazonaws.eu"}


def test_without_a_key_of_ones_own_nothing_is_said_of_kms() -> None:
    role = fleet_role(
        partition="aws",
        region="eu-central-1",
        account=ACCOUNT,
        claim_table=OWN.claim_table,
        parameters=[OWN.seed_parameter],
        group_name="group",
    )
    assert not [one for s in role["Statement"] for one in listed(s["Action"]) if "kms" in one]


def test_while_both_generations_are_accepted_both_seeds_may_be_read_and_no_third() -> None:
    role = fleet_role(
        partition="aws",
        region="eu-central-1",
        account=ACCOUNT,
        claim_table=OWN.claim_table,
        parameters=[NEXT.seed_parameter, OWN.seed_parameter, OWN.workload_parameter],
        group_name="fortress-prod-frankfurt",
    )
    third = fleet_names("fortress-and-fleet", "prod", "frankfurt", 2).seed_parameter
    assert allows(role, "ssm:GetParameters", parameter(OWN.seed_parameter))
    assert allows(role, "ssm:GetParameters", parameter(NEXT.seed_parameter))
    assert not allows(role, "ssm:GetParameters", parameter(third))
    assert not allows(role, "ssm:GetParameters", parameter(OTHER.seed_parameter))


DOOR = publisher(namespace="FortressAndFleet", regions=["eu-central-1", "eu-north-1"])
NUMBERS = {"cloudwatch:namespace": "FortressAndFleet", "aws:RequestedRegion": "eu-central-1"}


def test_the_door_may_add_numbers_to_its_own_namespace() -> None:
    assert allows(DOOR, "cloudwatch:PutMetricData", "*", **NUMBERS)


@pytest.mark.parametrize(
    ("action", "context"),
    [
        ("cloudwatch:PutMetricData", {}),
        ("cloudwatch:PutMetricData", {**NUMBERS, "cloudwatch:namespace": "AWS/EC2"}),
        ("cloudwatch:PutMetricData", {**NUMBERS, "aws:RequestedRegion": "us-east-1"}),
        ("cloudwatch:GetMetricData", NUMBERS),
        ("cloudwatch:PutMetricAlarm", NUMBERS),
        ("autoscaling:SetDesiredCapacity", NUMBERS),
        ("ssm:GetParameters", NUMBERS),
        ("dynamodb:Scan", NUMBERS),
        ("iam:CreateAccessKey", NUMBERS),
        ("sts:AssumeRole", NUMBERS),
    ],
)
def test_the_door_may_do_nothing_else(action: str, context: dict[str, str]) -> None:
    assert not allows(DOOR, action, "*", **context)


LOG = f"arn:aws:logs:eu-central-1:{ACCOUNT}:log-group:/aws/lambda/prod-frankfurt-job"
JOB = function_role(log_group_arn=LOG)


def test_a_function_may_write_its_own_log() -> None:
    assert allows(JOB, "logs:CreateLogStream", f"{LOG}:log-stream:one")
    assert allows(JOB, "logs:PutLogEvents", f"{LOG}:log-stream:one")


@pytest.mark.parametrize(
    ("action", "resource"),
    [
        ("logs:PutLogEvents", f"{LOG}-other:log-stream:one"),
        ("logs:CreateLogGroup", f"{LOG}:*"),
        ("logs:GetLogEvents", f"{LOG}:log-stream:one"),
        ("logs:DeleteLogGroup", f"{LOG}:*"),
        ("ssm:GetParameters", parameter(OWN.seed_parameter)),
        ("dynamodb:Scan", table(OWN.claim_table)),
        ("ec2:CreateNetworkInterface", "*"),
        ("s3:GetObject", "arn:aws:s3:::any/thing"),
        ("sts:AssumeRole", f"arn:aws:iam::{ACCOUNT}:role/any"),
    ],
)
def test_a_function_may_not(action: str, resource: str) -> None:
    assert not allows(JOB, action, resource)


def test_only_lambda_takes_a_functions_role() -> None:
    (statement,) = function_trust()["Statement"]
    assert statement["Principal"] == {"Service": "lambda.amazonaws.com"}

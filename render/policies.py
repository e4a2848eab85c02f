"""IAM documents of a fleet: what its instances may do, and nothing else.

Owns actions, resources and their reasons. It refuses to know how a document reaches AWS.
"""

from collections.abc import Sequence
from typing import Any

VERSION = "2012-10-17"

Document = dict[str, Any]


def instance_trust(*, service_suffix: str = "amazonaws.com") -> Document:
    """Who may take the role: EC2 instances.

    Parameters:
        service_suffix: the partition's DNS suffix.
    """
    return {
        "Version": VERSION,
        "Statement": [
            {
                "Sid": "Instances",
                "Effect": "Allow",
                "Principal": {"Service": f"ec2.{service_suffix}"},
                "Action": "sts:AssumeRole",
            }
        ],
    }


def fleet_role(
    *,
    partition: str,
    region: str,
    account: str,
    claim_table: str,
    parameters: Sequence[str],
    group_name: str,
    key_arn: str | None = None,
) -> Document:
    """What a fleet's instances may do.

    Parameters:
        partition: aws, aws-eusc, …
        account: account id.
        claim_table: name of the fleet's claim table.
        parameters: names of its SSM parameters: seed and workload secrets.
        group_name: of its Auto Scaling Group.
        key_arn: customer key of the parameters; AWS's own key for SSM needs no permission here.
    """
    parameter_arns = [
        f"arn:{partition}:ssm:{region}:{account}:parameter/{name.lstrip('/')}"
        for name in parameters
    ]
    statements: list[Document] = [
        {
            "Sid": "Claims",
            "Effect": "Allow",
            "Action": [
                "dynamodb:Scan",
                "dynamodb:PutItem",
                "dynamodb:UpdateItem",
                "dynamodb:DeleteItem",
            ],
            "Resource": f"arn:{partition}:dynamodb:{region}:{account}:table/{claim_table}",
        },
        {
            "Sid": "Secrets",
            "Effect": "Allow",
            "Action": "ssm:GetParameters",
            "Resource": parameter_arns,
        },
        {
            "Sid": "OwnGroup",
            "Effect": "Allow",
            "Action": ["autoscaling:SetInstanceHealth", "autoscaling:CompleteLifecycleAction"],
            "Resource": (
                f"arn:{partition}:autoscaling:{region}:{account}:autoScalingGroup:*"
                f":autoScalingGroupName/{group_name}"
            ),
        },
        {
            # EC2's Describe actions know no resources (Service Authorization Reference, EC2), so
            # this can be limited to the region only: members see the states of other instances.
            "Sid": "OwnersOfClaims",
            "Effect": "Allow",
            "Action": "ec2:DescribeInstances",
            "Resource": "*",
            "Condition": {"StringEquals": {"aws:RequestedRegion": region}},
        },
    ]
    if key_arn is not None:
        statements.append(
            {
                "Sid": "SecretsKey",
                "Effect": "Allow",
                "Action": "kms:Decrypt",
                "Resource": key_arn,
                "Condition": {
                    "StringEquals": {"kms:EncryptionContext:PARAMETER_ARN": parameter_arns}
                },
            }
        )
    return {"Version": VERSION, "Statement": statements}


def publisher(*, namespace: str, regions: Sequence[str]) -> Document:
    """What the door in Oslo may do: add numbers to one namespace of CloudWatch.

    PutMetricData knows no resources, and no condition for a metric's name or dimensions (Service
    Authorization Reference, CloudWatch), so the namespace is the narrowest limit there is.

    Parameters:
        namespace: of the metrics.
        regions: of the fleets that are scaled by them.
    """
    return {
        "Version": VERSION,
        "Statement": [
            {
                "Sid": "SpillPressure",
                "Effect": "Allow",
                "Action": "cloudwatch:PutMetricData",
                "Resource": "*",
                "Condition": {
                    "StringEquals": {
                        "cloudwatch:namespace": namespace,
                        "aws:RequestedRegion": sorted(regions),
                    }
                },
            }
        ],
    }


def function_trust() -> Document:
    """Who may take a function's role: Lambda."""
    return {
        "Version": VERSION,
        "Statement": [
            {
                "Sid": "Functions",
                "Effect": "Allow",
                "Principal": {"Service": "lambda.amazonaws.com"},
                "Action": "sts:AssumeRole",
            }
        ],
    }


def function_role(*, log_group_arn: str) -> Document:
    """What a function may do: write into its own log group, which it may not even create."""
    return {
        "Version": VERSION,
        "Statement": [
            {
                "Sid": "OwnLog",
                "Effect": "Allow",
                "Action": ["logs:CreateLogStream", "logs:PutLogEvents"],
                "Resource": f"{log_group_arn}:*",
            }
        ],
    }

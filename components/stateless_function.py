"""StatelessFunction: a Lambda function beside a fleet, without a way into the mesh."""

import json
from dataclasses import dataclass

import pulumi
import pulumi_aws as aws

from render.policies import function_role, function_trust
from settings import ROOT, FunctionSettings

LOG_RETENTION_DAYS = 14


@dataclass(frozen=True, kw_only=True)
class StatelessFunctionArgs:
    """What a function is made of.

    Attributes:
        function: its settings.
        name: at AWS; the log group's name follows from it.
        tags: on every resource that takes them.
    """

    function: FunctionSettings
    name: str
    tags: dict[str, str]


def code_of(function: FunctionSettings) -> pulumi.AssetArchive:
    """The directory as an archive, without what Python leaves beside its sources."""
    root = ROOT / function.directory
    return pulumi.AssetArchive(
        {
            path.relative_to(root).as_posix(): pulumi.FileAsset(str(path))
            for path in sorted(root.rglob("*"))
            if path.is_file() and "__pycache__" not in path.parts
        }
    )


class StatelessFunction(pulumi.ComponentResource):
    """A job with a role that may only write its own log, and no network but AWS's own.

    Attributes:
        outputs: its name at AWS and, when asked for, its URL.
    """

    outputs: dict[str, pulumi.Output[str]]

    def __init__(
        self, name: str, args: StatelessFunctionArgs, opts: pulumi.ResourceOptions | None = None
    ) -> None:
        super().__init__("fortress:index:StatelessFunction", name, None, opts)
        child = pulumi.ResourceOptions(parent=self)
        function = args.function
        # Lambda writes to the group of this name; made here, it has an end and is deleted with us.
        log_group = aws.cloudwatch.LogGroup(
            f"{name}-log",
            name=f"/aws/lambda/{args.name}",
            retention_in_days=LOG_RETENTION_DAYS,
            tags=args.tags,
            opts=child,
        )
        role = aws.iam.Role(
            f"{name}-role",
            assume_role_policy=json.dumps(function_trust()),
            tags=args.tags,
            opts=child,
        )
        permissions = aws.iam.RolePolicy(
            f"{name}-role",
            role=role.name,
            policy=log_group.arn.apply(lambda arn: json.dumps(function_role(log_group_arn=arn))),
            opts=child,
        )
        made = aws.lambda_.Function(
            name,
            name=args.name,
            role=role.arn,
            code=code_of(function),
            runtime=function.runtime,
            handler=function.handler,
            architectures=[function.architecture],
            memory_size=function.memory_mib,
            timeout=function.timeout_seconds,
            # A flood of events costs this many runs at a time and no more.
            reserved_concurrent_executions=function.concurrency,
            environment={"variables": function.environment} if function.environment else None,
            tags=args.tags,
            opts=pulumi.ResourceOptions(parent=self, depends_on=[log_group, permissions]),
        )
        self.outputs = {"name": made.name}
        if function.function_url:
            address = aws.lambda_.FunctionUrl(
                f"{name}-url",
                function_name=made.name,
                authorization_type="AWS_IAM",
                opts=child,
            )
            self.outputs["url"] = address.function_url
        self.register_outputs(self.outputs)

"""SpillPublisher: the one AWS identity that Oslo holds, for telling fleets how full Oslo is."""

import json
from collections.abc import Sequence
from dataclasses import dataclass

import pulumi
import pulumi_aws as aws

from plan.names import METRIC_NAMESPACE
from render.policies import publisher
from render.spill_pressure import credentials_text


@dataclass(frozen=True, kw_only=True)
class SpillPublisherArgs:
    """Where the door publishes.

    Attributes:
        regions: of the fleets that are scaled by spill pressure.
        tags: on every resource that takes them.
    """

    regions: Sequence[str]
    tags: dict[str, str]


class SpillPublisher(pulumi.ComponentResource):
    """A user that may add numbers to one namespace of CloudWatch, and its key.

    A user, because a machine outside AWS has no role; docs/security.md names the alternatives.

    Attributes:
        credentials: the key as AWS's shared credentials file; secret.
    """

    credentials: pulumi.Output[str]

    def __init__(
        self, name: str, args: SpillPublisherArgs, opts: pulumi.ResourceOptions | None = None
    ) -> None:
        super().__init__("fortress:index:SpillPublisher", name, None, opts)
        child = pulumi.ResourceOptions(parent=self)
        user = aws.iam.User(f"{name}-publisher", tags=args.tags, opts=child)
        aws.iam.UserPolicy(
            f"{name}-publisher",
            user=user.name,
            policy=json.dumps(publisher(namespace=METRIC_NAMESPACE, regions=args.regions)),
            opts=child,
        )
        key = aws.iam.AccessKey(f"{name}-publisher", user=user.name, opts=child)
        self.credentials = pulumi.Output.secret(
            pulumi.Output.all(key.id, key.secret).apply(lambda both: credentials_text(*both))
        )
        self.register_outputs({})

"""Owns AWS as moto plays it in this process, and tells of every request that is made to it.

It knows nothing of what is compared, and no request leaves the process.
"""

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Final
from unittest import mock

import boto3
from moto import mock_aws
from moto.autoscaling.responses import AutoScalingResponse
from moto.core.responses import EmptyResult

from cloud import CONFIGURATION

REGION: Final = "eu-central-1"
SERVICES: Final = ("autoscaling", "dynamodb", "ec2", "ssm")
"""All that a member's `Cloud` makes clients of."""


@contextmanager
def pretended_aws(tell: Callable[[str, str], None]) -> Iterator[dict[str, Any]]:
    """Clients by service, with the configuration that members use.

    Parameters:
        tell: gets service and operation before every HTTP request of any client, botocore's own
            repetitions included, in the thread that makes it.
    """

    def before_send(event_name: str, **_: object) -> None:
        service, operation = event_name.split(".")[1:]
        tell(service, operation)

    session = boto3.Session(region_name=REGION)
    # Before moto, whose answer ends the event.
    session.events.register_first("before-send", before_send)
    with (
        mock_aws(),
        mock.patch.dict(os.environ),
        mock.patch.object(boto3, "DEFAULT_SESSION", session),
        # moto has no such action.
        mock.patch.object(
            AutoScalingResponse, "complete_lifecycle_action", _complete_nothing, create=True
        ),
    ):
        os.environ.pop("AWS_ENDPOINT_URL", None)
        yield {service: session.client(service, config=CONFIGURATION) for service in SERVICES}


def _complete_nothing(_response: AutoScalingResponse) -> EmptyResult:
    return EmptyResult()


def make_claim_table(dynamodb: Any, name: str) -> None:
    """Make an empty claim table, as `components/burst_fleet.py` does."""
    dynamodb.create_table(
        TableName=name,
        KeySchema=[{"AttributeName": "slot", "KeyType": "HASH"}],
        AttributeDefinitions=[{"AttributeName": "slot", "AttributeType": "S"}],
        BillingMode="PAY_PER_REQUEST",
    )

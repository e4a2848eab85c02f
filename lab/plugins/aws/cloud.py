"""Owns the way to the AWS API: settings, clients, refusals as sentences, bounded waiting.

It knows no resource type.
"""

import os
import re
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Final

import boto3
from botocore.config import Config
from botocore.exceptions import BotoCoreError, ClientError
from botocore.parsers import ResponseParserError

from lab.plugins.values import Properties

POLL_SECONDS: Final = 1.0
PROGRESS_SECONDS: Final = 15.0
DEPENDENCY_SECONDS: Final = 900.0
"""How long the official provider repeats a delete that AWS refuses with DependencyViolation."""

ENDPOINT_NAMES: Final[Mapping[str, tuple[str, ...]]] = {
    "autoscaling": ("autoscaling",),
    "dynamodb": ("dynamodb",),
    "ec2": ("ec2",),
    "iam": ("iam",),
    "lambda": ("lambda",),
    "logs": ("logs", "cloudwatchlogs", "cloudwatchlog"),
    "ssm": ("ssm",),
    "sts": ("sts",),
}
"""boto3's name of each service and the names that the provider's `endpoints` may give it."""

NOT_IMPLEMENTED: Final = "NotImplemented"
"""Code of an answer that says the API server lacks the operation."""

GONE_CODES: Final = frozenset(
    {
        "NoSuchEntity",
        "ParameterNotFound",
        "ResourceNotFoundException",
        "InvalidAssociationID.NotFound",
        "InvalidGroup.NotFound",
        "InvalidInternetGatewayID.NotFound",
        "InvalidLaunchTemplateId.NotFound",
        "InvalidLaunchTemplateId.VersionNotFound",
        "InvalidRouteTableID.NotFound",
        "InvalidSubnetID.NotFound",
        "InvalidVpcID.NotFound",
    }
)


class RefusedError(Exception):
    """AWS, or this stand-in, will not do it; the message is meant for the person at the console."""

    def __init__(self, message: str, code: str = "") -> None:
        super().__init__(message)
        self.code = code


class GoneError(RefusedError):
    """What was asked for does not exist (any more)."""


def _say_nothing(_message: str) -> None:
    """Stand for a console before the engine's is known."""


@dataclass(frozen=True)
class Cloud:
    """One region of one account, with the provider's settings.

    Parameters:
        settings: the provider's configuration, decoded.
        region: where the calls go.
        say: shows one line of progress.
        warn: shows one warning.
    """

    settings: Properties
    region: str
    say: Callable[[str], None] = _say_nothing
    warn: Callable[[str], None] = _say_nothing
    _clients: dict[tuple[str, str], Any] = field(default_factory=dict)

    @classmethod
    def configured(cls, settings: Properties) -> "Cloud":
        """Read the provider's settings and, unless told to skip it, try the credentials.

        Raises:
            RefusedError: no region, or credentials that AWS refuses.
        """
        region = settings.get("region") or os.environ.get("AWS_REGION", "")
        if not region:
            message = "no region: the provider needs one to choose its endpoints; set aws:region"
            raise RefusedError(message)
        cloud = cls(settings, region)
        if settings.get("skipCredentialsValidation") is not True:
            cloud.call("sts", "get_caller_identity")
        return cloud

    def in_region(self, region: str) -> "Cloud":
        """The same account, seen from another region."""
        return Cloud(self.settings, region, self.say, self.warn, self._clients)

    def client(self, service: str) -> Any:
        """A boto3 client, made once per service and region."""
        key = (service, self.region)
        if key not in self._clients:
            self._clients[key] = boto3.client(
                service,  # type: ignore[call-overload]
                region_name=self.region,
                endpoint_url=self._endpoint(service),
                aws_access_key_id=self.settings.get("accessKey"),
                aws_secret_access_key=self.settings.get("secretKey"),
                aws_session_token=self.settings.get("token"),
                config=Config(
                    retries={
                        "mode": "standard",
                        "max_attempts": int(self.settings.get("maxRetries", 3)),
                    },
                    connect_timeout=10,
                    read_timeout=60,
                ),
            )
        return self._clients[key]

    def call(self, service: str, operation: str, /, **parameters: Any) -> Any:
        """Ask AWS for one operation (boto3's name, as `describe_vpcs`).

        Raises:
            GoneError: the thing does not exist.
            RefusedError: any other refusal, or no answer at all.
        """
        try:
            return getattr(self.client(service), operation)(**parameters)
        except ClientError as error:
            code = str(error.response["Error"].get("Code", ""))
            said = str(error.response["Error"].get("Message", ""))
            message = (
                f"operation error {service.upper()}: {error.operation_name}, "
                f"api error {code}: {said}"
            )
            absent = code in GONE_CODES or (
                code == "ValidationError" and re.search(r"not found|does not exist", said, re.I)
            )
            raise (GoneError if absent else RefusedError)(message, code) from error
        except ResponseParserError as error:
            # What stands before the API (or moto, at an operation it lacks) answered with a page.
            message = f"operation error {service.upper()}: {operation}: no API answer: {error}"
            missing = "500 Internal Server Error" in message
            raise RefusedError(message, NOT_IMPLEMENTED if missing else "NoAnswer") from error
        except BotoCoreError as error:
            message = f"operation error {service.upper()}: {operation}: {error}"
            raise RefusedError(message, type(error).__name__) from error

    def call_when_free(self, service: str, operation: str, /, **parameters: Any) -> Any:
        """`call`, repeated while something still depends on the thing, as the official one does."""

        def attempt() -> Any:
            try:
                return self.call(service, operation, **parameters) or True
            except RefusedError as error:
                if error.code not in {"DependencyViolation", "InstanceRefreshInProgress"}:
                    raise
                return None

        return self.wait(f"{operation}: waiting for what still uses it", attempt)

    def wait(
        self, what: str, probe: Callable[[], Any], bound_seconds: float = DEPENDENCY_SECONDS
    ) -> Any:
        """Repeat `probe` until it gives something true, and give that.

        Raises:
            RefusedError: it did not within `bound_seconds`.
        """
        began = time.monotonic()
        spoke = began
        while not (found := probe()):
            now = time.monotonic()
            if now - began > bound_seconds:
                message = f"{what}: not done after {bound_seconds:.0f} s, the longest allowed"
                raise RefusedError(message)
            if now - spoke > PROGRESS_SECONDS:
                self.say(f"{what} ({now - began:.0f} s)")
                spoke = now
            time.sleep(POLL_SECONDS)
        return found

    @property
    def partition(self) -> str:
        """The partition of ARNs in this region: `aws`, `aws-cn`, …"""
        partition: str = self.client("ec2").meta.partition
        return partition

    @property
    def account(self) -> str:
        """The account's number; empty when the settings forbid asking for it."""
        if self.settings.get("skipRequestingAccountId") is True:
            return ""
        account: str = self.call("sts", "get_caller_identity")["Account"]
        return account

    def arn(self, service: str, owner: str, thing: str) -> str:
        """The ARN of a thing whose own description has none."""
        return f"arn:{self.partition}:{service}:{self.region}:{owner}:{thing}"

    def all_tags(self, tags: Mapping[str, str] | None) -> dict[str, str]:
        """A resource's own tags over the provider's default ones."""
        defaults = (self.settings.get("defaultTags") or {}).get("tags") or {}
        return {**defaults, **(tags or {})}

    def _endpoint(self, service: str) -> str | None:
        for endpoints in self.settings.get("endpoints") or []:
            for name in ENDPOINT_NAMES[service]:
                if endpoints.get(name):
                    url: str = endpoints[name]
                    return url
        return None

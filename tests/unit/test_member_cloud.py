"""What a member asks of AWS, with the real client library against moto."""

from collections.abc import Callable, Iterator
from typing import Any

import boto3
import pytest
from botocore.stub import Stubber
from moto import mock_aws

from cloud import Cloud
from system import FailureError, System


@pytest.fixture(autouse=True)
def _aws(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, "made-up")
    monkeypatch.delenv("AWS_ENDPOINT_URL", raising=False)
    with mock_aws():
        yield


def cloud(instance: str = "i-one", **clients: Any) -> Cloud:
    return Cloud(
        region="eu-central-1",
        endpoint_url=None,
        table="claims",
        instance=instance,
        system=System(),
        clients=clients,
    )


def make_table() -> None:
    boto3.client("dynamodb", region_name="eu-central-1").create_table(
        TableName="claims",
        KeySchema=[{"AttributeName": "slot", "KeyType": "HASH"}],
        AttributeDefinitions=[{"AttributeName": "slot", "AttributeType": "S"}],
        BillingMode="PAY_PER_REQUEST",
    )


def test_a_claim_is_made_described_and_released() -> None:
    make_table()
    one = cloud()
    assert one.claim(["frankfurt-0-00"]) == "frankfurt-0-00"
    one.describe("frankfurt-0-00", 1360)
    assert one.release("frankfurt-0-00")
    assert not one.release("frankfurt-0-00")


def test_when_ec2_does_not_say_who_is_alive_nobody_is_replaced_and_free_slots_still_serve() -> None:
    make_table()
    cloud("i-gone").claim(["frankfurt-0-00"])

    class Refusing:
        def get_paginator(self, name: str) -> Any:
            raise boto3.client("ec2", region_name="eu-central-1").exceptions.ClientError(
                {"Error": {"Code": "UnauthorizedOperation", "Message": "no"}}, name
            )

    two = cloud("i-two", ec2=Refusing())
    assert two.claim(["frankfurt-0-00", "frankfurt-0-01"]) == "frankfurt-0-01"
    assert "UnauthorizedOperation" in two.notes[0]


def test_a_missing_table_is_one_failure_that_names_it() -> None:
    with pytest.raises(
        FailureError, match=r"can't claim a slot in table claims: .*ResourceNotFound"
    ):
        cloud().claim(["frankfurt-0-00"])


@pytest.mark.parametrize(
    ("service", "operation", "ask", "what"),
    [
        ("dynamodb", "scan", lambda c: c.claim(["s"]), "can't claim a slot in table claims"),
        ("dynamodb", "delete_item", lambda c: c.release("s"), "can't release the claim of s"),
        ("ssm", "get_parameters", lambda c: c.secrets(["/a"]), "can't read /a from SSM"),
        (
            "autoscaling",
            "set_instance_health",
            lambda c: c.report_unhealthy(),
            "can't report the instance unhealthy",
        ),
        (
            "autoscaling",
            "complete_lifecycle_action",
            lambda c: c.complete_lifecycle_action("group", "leaving", "CONTINUE"),
            "can't complete lifecycle hook leaving",
        ),
    ],
)
def test_a_refusal_is_one_failure_with_what_was_asked_and_aws_s_own_reason(
    service: str, operation: str, ask: Callable[[Cloud], object], what: str
) -> None:
    client: Any = boto3.client(service, region_name="eu-central-1")  # type: ignore[call-overload]
    reason = "role member is not authorized to perform this"
    stub = Stubber(client)
    stub.add_client_error(operation, "AccessDenied", reason)
    with stub, pytest.raises(FailureError) as raised:
        ask(cloud(**{service: client}))
    assert str(raised.value).startswith(f"{what}: ")
    assert "AccessDenied" in str(raised.value)
    assert reason in str(raised.value)
    assert "\n" not in str(raised.value)


def test_the_group_is_told_of_bad_health_at_once_and_how_a_hook_ends() -> None:
    client: Any = boto3.client("autoscaling", region_name="eu-central-1")
    stub = Stubber(client)
    stub.add_response(
        "set_instance_health",
        {},
        {"InstanceId": "i-one", "HealthStatus": "Unhealthy", "ShouldRespectGracePeriod": False},
    )
    stub.add_response(
        "complete_lifecycle_action",
        {},
        {
            "AutoScalingGroupName": "group",
            "LifecycleHookName": "joining",
            "InstanceId": "i-one",
            "LifecycleActionResult": "ABANDON",
        },
    )
    one = cloud(autoscaling=client)
    with stub:
        one.report_unhealthy()
        one.complete_lifecycle_action("group", "joining", "ABANDON")
    stub.assert_no_pending_responses()


def test_secrets_come_decrypted_in_the_order_asked_for_and_a_missing_one_is_named() -> None:
    ssm = boto3.client("ssm", region_name="eu-central-1")
    for name in ("/b", "/a"):
        ssm.put_parameter(Name=name, Value=f"value of {name}", Type="SecureString")
    assert cloud().secrets(["/a", "/b"]) == ["value of /a", "value of /b"]
    with pytest.raises(FailureError, match="SSM has no parameter /c"):
        cloud().secrets(["/a", "/c"])

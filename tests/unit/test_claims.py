"""The claim protocol against DynamoDB and EC2 as moto plays them, one request after the other."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import boto3
import pytest
from moto import mock_aws

from claims import (
    UNKNOWN_OWNER_SECONDS,
    Claim,
    ClaimTable,
    NoFreeSlotError,
    claim_slot,
    instance_states,
    is_gone,
    walk,
)

SLOTS = [f"frankfurt-0-{index:02d}" for index in range(4)]
NOW = 1_800_000_000.0


@pytest.fixture(autouse=True)
def _aws(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, "made-up")
    monkeypatch.delenv("AWS_ENDPOINT_URL", raising=False)
    with mock_aws():
        yield


def client(service: str) -> Any:
    return boto3.client(service, region_name="eu-central-1")  # type: ignore[call-overload]


@pytest.fixture
def table() -> ClaimTable:
    dynamodb = client("dynamodb")
    dynamodb.create_table(
        TableName="claims",
        KeySchema=[{"AttributeName": "slot", "KeyType": "HASH"}],
        AttributeDefinitions=[{"AttributeName": "slot", "AttributeType": "S"}],
        BillingMode="PAY_PER_REQUEST",
    )
    return ClaimTable(dynamodb, "claims")


def claim(table: ClaimTable, instance: str, states: Mapping[str, str], *, now: float = NOW) -> str:
    return claim_slot(table, SLOTS, instance, states_of=lambda _: states, clock=lambda: now)


def test_the_first_slot_tried_is_the_first_of_the_instances_own_order(table: ClaimTable) -> None:
    assert claim(table, "i-one", {}) == walk("i-one", SLOTS)[0]


def test_an_instance_that_comes_back_keeps_its_slot_even_when_its_first_choice_is_free_again(
    table: ClaimTable,
) -> None:
    first = walk("i-one", SLOTS)[0]
    table.take(first, "i-other", now=NOW, owner=None)
    slot = claim(table, "i-one", {"i-other": "running"})
    table.release(first, "i-other")
    assert claim(table, "i-one", {}) == slot != first


def test_a_terminated_owner_is_replaced_before_free_slots_are_used(table: ClaimTable) -> None:
    for index in (1, 3):
        table.take(SLOTS[index], f"i-dead-{index}", now=NOW, owner=None)
    states = {"i-dead-1": "terminated", "i-dead-3": "terminated"}
    assert {claim(table, "i-one", states), claim(table, "i-two", states)} == {SLOTS[1], SLOTS[3]}


@pytest.mark.parametrize("state", ["pending", "running", "shutting-down", "stopping", "stopped"])
def test_an_owner_that_may_still_be_at_work_keeps_its_slot(table: ClaimTable, state: str) -> None:
    for slot in SLOTS:
        table.take(slot, f"i-{slot}", now=NOW, owner=None)
    with pytest.raises(NoFreeSlotError, match="no free slot among 4"):
        claim(table, "i-one", {f"i-{slot}": state for slot in SLOTS})


def test_an_owner_unknown_to_ec2_is_gone_only_after_an_hour() -> None:
    one = Claim(slot=SLOTS[0], instance="i-one", claimed_at=int(NOW))
    assert not is_gone(one, {}, NOW + UNKNOWN_OWNER_SECONDS)
    assert is_gone(one, {}, NOW + UNKNOWN_OWNER_SECONDS + 1)


def test_only_one_of_two_takes_over_from_the_same_owner(table: ClaimTable) -> None:
    table.take(SLOTS[0], "i-dead", now=NOW, owner=None)
    assert table.take(SLOTS[0], "i-one", now=NOW, owner="i-dead")
    assert not table.take(SLOTS[0], "i-two", now=NOW, owner="i-dead")
    assert table.claims()[SLOTS[0]].instance == "i-one"


def test_a_request_whose_answer_was_lost_can_be_repeated(table: ClaimTable) -> None:
    assert table.take(SLOTS[0], "i-one", now=NOW, owner=None)
    assert table.take(SLOTS[0], "i-one", now=NOW, owner=None)
    assert table.take(SLOTS[0], "i-one", now=NOW, owner="i-dead")


def test_nobody_releases_or_describes_what_is_not_theirs(table: ClaimTable) -> None:
    table.take(SLOTS[0], "i-one", now=NOW, owner=None)
    assert not table.release(SLOTS[0], "i-two")
    assert not table.describe(SLOTS[0], "i-two", tunnel_mtu=1360, now=NOW)
    assert not table.describe(SLOTS[1], "i-two", tunnel_mtu=1360, now=NOW)
    assert table.describe(SLOTS[0], "i-one", tunnel_mtu=1236, now=NOW)
    assert list(table.claims()) == [SLOTS[0]]
    assert table.release(SLOTS[0], "i-one")
    assert table.claims() == {}


def test_claims_of_slots_that_are_not_in_the_list_are_left_alone(table: ClaimTable) -> None:
    table.take("frankfurt-1-00", "i-dead", now=NOW, owner=None)
    claim(table, "i-one", {"i-dead": "terminated"})
    assert table.claims()["frankfurt-1-00"].instance == "i-dead"


def test_a_second_claim_of_the_same_instance_is_given_back(table: ClaimTable) -> None:
    for slot in SLOTS[1:3]:
        table.take(slot, "i-one", now=NOW, owner=None)
    assert claim(table, "i-one", {}) == SLOTS[1]
    assert list(table.claims()) == [SLOTS[1]]


def test_ec2_is_asked_in_portions_and_may_not_know_an_instance() -> None:
    ec2 = client("ec2")
    ids = [
        instance["InstanceId"]
        for instance in ec2.run_instances(ImageId="ami-12c6146b", MinCount=2, MaxCount=2)[
            "Instances"
        ]
    ]
    ec2.terminate_instances(InstanceIds=ids[:1])
    unknown = [f"i-{number:017x}" for number in range(250)]
    assert instance_states(ec2, [ids[0], *unknown, ids[1]]) == {
        ids[0]: "terminated",
        ids[1]: "running",
    }


def test_simultaneous_joiners_look_at_different_slots_first() -> None:
    slots = [f"frankfurt-0-{index}" for index in range(128)]
    orders = [walk(f"i-{number:017x}", slots) for number in range(64)]
    assert len({order[0] for order in orders}) > 40
    # Those that met at one slot part at the next.
    assert len({(order[0], order[1]) for order in orders}) == 64


def test_who_lost_twice_looks_again_instead_of_asking_for_every_slot(table: ClaimTable) -> None:
    slots = walk("i-one", SLOTS)
    asked: list[str] = []
    take = table.take

    def lose(slot: str, instance: str, **facts: Any) -> bool:
        """Somebody else is quicker, and takes all others too."""
        asked.append(slot)
        for other in slots[:-1]:
            take(other, "i-other", now=NOW, owner=None)
        return take(slot, instance, **facts)

    table.take = lose  # type: ignore[method-assign]
    assert claim(table, "i-one", {"i-other": "running"}) == slots[-1]
    assert asked == [slots[0], slots[1], slots[-1]]


def test_five_hundred_launches_with_a_tenth_dying_silently_leave_claims_equal_to_the_living(
    table: ClaimTable,
) -> None:
    slots = [f"frankfurt-0-{index:02d}" for index in range(12)]
    states: dict[str, str] = {}
    living: dict[str, str] = {}

    def states_of(instances: Sequence[str]) -> Mapping[str, str]:
        return {name: states[name] for name in instances}

    for number in range(500):
        if len(living) == 8:
            leaver = next(iter(living))
            slot = living.pop(leaver)
            states[leaver] = "terminated"
            if number % 10 != 0:
                assert table.release(slot, leaver)
        instance = f"i-{number:017x}"
        states[instance] = "running"
        slot = claim_slot(table, slots, instance, states_of=states_of, clock=lambda: NOW)
        assert slot not in living.values(), "a slot is held twice"
        living[instance] = slot
        held = table.claims()
        assert all(held[slot].instance == one for one, slot in living.items()), "a claim is lost"
    assert {claim.instance: slot for slot, claim in table.claims().items()} == living

"""Who holds which slot of a fleet: one item per held slot in a DynamoDB table.

Owns the claim protocol (docs/claims.md): every request that reads or writes the table, and the rule
for when an owner counts as gone. It refuses to know keys, tunnels and what a slot is used for.
Clients and clocks are handed in.
"""

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

# EC2 lists a terminated instance for about an hour (AWS, "Terminate Amazon EC2 instances"), and a
# new one only after some seconds (EC2 API, "Eventual consistency"). An owner that EC2 does not know
# is therefore gone only when its claim is older than this. AWS refuses requests of a machine whose
# clock is more than minutes off, so claims are never dated wrong by more than a fraction of it.
UNKNOWN_OWNER_SECONDS = 3600

# Who loses twice in a row is among many that join at once: most of what it saw free is taken, and
# looking again costs one request instead of one for each slot (docs/benchmarks.md, joiners).
PUTS_PER_LOOK = 2

# DescribeInstances takes at most 200 values in one filter (EC2 API reference, Filter).
INSTANCES_PER_REQUEST = 200


class NoFreeSlotError(Exception):
    """Every slot is held by an instance that is not known to be gone."""


@dataclass(frozen=True, kw_only=True)
class Claim:
    """One item of the table: a slot, the instance that holds it and since when (Unix time).

    The tunnel's MTU in bytes is noted when the instance serves; the protocol does not look at it.
    """

    slot: str
    instance: str
    claimed_at: int
    tunnel_mtu: int | None = None


class ClaimTable:
    """The requests of the protocol, each of them atomic in DynamoDB.

    Parameters:
        dynamodb: boto3 client for DynamoDB.
        name: the fleet's claim table, whose only key is the string `slot`.
    """

    def __init__(self, dynamodb: Any, name: str) -> None:
        self._dynamodb = dynamodb
        self._name = name

    def claims(self) -> dict[str, Claim]:
        """All claims by slot, read consistently: what was written before is seen."""
        pages = self._dynamodb.get_paginator("scan").paginate(
            TableName=self._name, ConsistentRead=True
        )
        found = {}
        for page in pages:
            for item in page["Items"]:
                claim = Claim(
                    slot=item["slot"]["S"],
                    instance=item["instance"]["S"],
                    claimed_at=int(item["claimed_at"]["N"]),
                    tunnel_mtu=int(item["tunnel_mtu"]["N"]) if "tunnel_mtu" in item else None,
                )
                found[claim.slot] = claim
        return found

    def take(self, slot: str, instance: str, *, now: float, owner: str | None) -> bool:
        """Claim a slot that is free, or that `owner` held, or that is already one's own.

        The last makes the request repeatable when its answer was lost.

        Returns:
            Whether the instance holds the slot; False when somebody else was quicker.
        """
        previous = "attribute_not_exists(slot)" if owner is None else "#instance = :owner"
        values = {":me": {"S": instance}}
        if owner is not None:
            values[":owner"] = {"S": owner}
        return self._conditional(
            self._dynamodb.put_item,
            Item={
                "slot": {"S": slot},
                "instance": {"S": instance},
                "claimed_at": {"N": str(int(now))},
            },
            ConditionExpression=f"{previous} OR #instance = :me",
            ExpressionAttributeValues=values,
        )

    def describe(self, slot: str, instance: str, *, tunnel_mtu: int, now: float) -> bool:
        """Note on one's own claim what the member measured, for scripts/fleet status."""
        return self._conditional(
            self._dynamodb.update_item,
            Key={"slot": {"S": slot}},
            UpdateExpression="SET tunnel_mtu = :mtu, serving_since = :now",
            ConditionExpression="#instance = :me",
            ExpressionAttributeValues={
                ":me": {"S": instance},
                ":mtu": {"N": str(tunnel_mtu)},
                ":now": {"N": str(int(now))},
            },
        )

    def release(self, slot: str, instance: str) -> bool:
        """Give a slot back; returns False when it was not (or no longer) the instance's own."""
        return self._conditional(
            self._dynamodb.delete_item,
            Key={"slot": {"S": slot}},
            ConditionExpression="#instance = :me",
            ExpressionAttributeValues={":me": {"S": instance}},
        )

    def _conditional(self, request: Callable[..., Any], **arguments: Any) -> bool:
        try:
            # `instance` is no reserved word today; the alias keeps it so.
            request(
                TableName=self._name,
                ExpressionAttributeNames={"#instance": "instance"},
                **arguments,
            )
        except self._dynamodb.exceptions.ConditionalCheckFailedException:
            return False
        return True


def instance_states(ec2: Any, instances: Sequence[str]) -> dict[str, str]:
    """EC2's state of each instance it knows; unknown ones are absent.

    Filters are used, because naming an unknown instance outright is an error.
    """
    states = {}
    for start in range(0, len(instances), INSTANCES_PER_REQUEST):
        pages = ec2.get_paginator("describe_instances").paginate(
            Filters=[
                {
                    "Name": "instance-id",
                    "Values": list(instances[start : start + INSTANCES_PER_REQUEST]),
                }
            ]
        )
        for page in pages:
            for reservation in page["Reservations"]:
                for instance in reservation["Instances"]:
                    states[instance["InstanceId"]] = instance["State"]["Name"]
    return states


def is_gone(claim: Claim, states: Mapping[str, str], now: float) -> bool:
    """Whether a claim's owner can never come back.

    Only `terminated` is final. An instance that is `shutting-down` may still be ending its running
    requests in its slot, and a stopped one may be started again.
    """
    state = states.get(claim.instance)
    if state is None:
        return now - claim.claimed_at > UNKNOWN_OWNER_SECONDS
    return state == "terminated"


def walk(instance: str, slots: Sequence[str]) -> list[str]:
    """The order in which an instance looks at slots: another one for each instance.

    Members that join together so seldom ask for the same slot, and one that lost does not meet the
    same others again at the next.
    """

    def place(slot: str) -> bytes:
        return hashlib.blake2b(f"{instance} {slot}".encode(), digest_size=8).digest()

    return sorted(slots, key=place)


def claim_slot(
    table: ClaimTable,
    slots: Sequence[str],
    instance: str,
    *,
    states_of: Callable[[Sequence[str]], Mapping[str, str]],
    clock: Callable[[], float],
) -> str:
    """Run the protocol and return the slot that the instance now holds.

    Its own claim comes first (it may have rebooted), then slots whose owner is gone, so that
    claims of the dead do not pile up, then free ones.

    Parameters:
        table: the fleet's claims.
        slots: names of the slots of the instance's generation.
        instance: its id.
        states_of: EC2's states of instances (see `instance_states`).
        clock: Unix time in seconds.

    Raises:
        NoFreeSlotError: when all slots are held.
        Exception: whatever the clients raise. The outcome is then unknown; another round finds out.
    """
    order = walk(instance, slots)
    while True:
        held = table.claims()
        own = [slot for slot in slots if slot in held and held[slot].instance == instance]
        for superfluous in own[1:]:
            table.release(superfluous, instance)
        if own:
            return own[0]

        owned = [held[slot] for slot in order if slot in held]
        states = states_of(sorted({claim.instance for claim in owned})) if owned else {}
        now = clock()
        gone: list[tuple[str, str | None]] = [
            (claim.slot, claim.instance) for claim in owned if is_gone(claim, states, now)
        ]
        free: list[tuple[str, str | None]] = [(slot, None) for slot in order if slot not in held]
        if not gone and not free:
            break
        # Every lost put is somebody else's success, so this ends.
        for slot, owner in (gone + free)[:PUTS_PER_LOOK]:
            if table.take(slot, instance, now=now, owner=owner):
                return slot
    message = (
        f"no free slot among {len(slots)} ({slots[0]} to {slots[-1]}): each is held by an instance "
        "that is not known to be gone, and two members must never share one. Lower the group's "
        "max-size, widen the fleet's block, or see scripts/fleet orphans"
    )
    raise NoFreeSlotError(message)

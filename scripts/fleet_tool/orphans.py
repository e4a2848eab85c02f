"""Which things nobody accounts for, what they cost, and whether they may be removed.

Pure: everything is handed in. A thing is accounted for when the engine's state has its id, or when
it belongs to something that does (an instance by its claim, a volume by its instance).
"""

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from enum import StrEnum

from claims import Claim, is_gone
from scripts.fleet_tool.status import Instance


class Kind(StrEnum):
    """What can be left behind, in the order in which it is removed."""

    GROUP = "group"
    INSTANCE = "instance"
    CLAIM = "claim"
    INTERFACE = "interface"
    ADDRESS = "address"
    VOLUME = "volume"
    LAUNCH_TEMPLATE = "launch-template"
    TABLE = "table"
    PARAMETER = "parameter"
    LOG_GROUP = "log-group"


@dataclass(frozen=True, kw_only=True)
class Place:
    """One region of one AWS-compatible API."""

    region: str
    endpoint_url: str | None = None


@dataclass(frozen=True, kw_only=True)
class Thing:
    """Something in AWS that bears the stack's tags or name.

    Attributes:
        id: as the engine records it.
        created_at: Unix time, where AWS says it.
        size_gib: of a volume.
        volume_type: of a volume.
        type: of an instance.
        kept: why it is never removed here, or None.
    """

    kind: Kind
    id: str
    place: Place
    fleet: str | None = None
    created_at: float | None = None
    size_gib: int | None = None
    type: str = ""
    kept: str | None = None


@dataclass(frozen=True, kw_only=True)
class Orphan:
    """A thing that nobody accounts for.

    Attributes:
        why: what is missing.
        age_seconds: since it was made, where AWS says it.
        monthly_usd: list price without tax, where one is documented here.
        kept: why it is never removed here, or None.
        table: of a claim.
        owner: of a claim, the instance that is gone.
    """

    kind: Kind
    id: str
    place: Place
    fleet: str | None
    why: str
    age_seconds: int | None
    monthly_usd: float | None
    kept: str | None = None
    table: str = ""
    owner: str = ""


# A month has 730 hours in AWS's own calculator.
HOURS_PER_MONTH = 730

# US dollars without tax. Public IPv4 addresses, attached or idle: AWS News Blog, "New - AWS Public
# IPv4 Address Charge", in force since 1 February 2024, the same in all regions.
ADDRESS_USD_PER_HOUR = 0.005

# EBS gp3 per GiB and month, EC2 on demand (Linux) per hour: price lists as published by third
# parties in 2025-26, not checked against AWS's price list API. Elsewhere a dash is shown.
GP3_USD_PER_GIB: Mapping[str, float] = {"eu-north-1": 0.0836, "eu-central-1": 0.0952}
INSTANCE_USD_PER_HOUR: Mapping[tuple[str, str], float] = {
    ("eu-north-1", "t3.small"): 0.0216,
    ("eu-north-1", "t3.medium"): 0.0432,
    ("eu-north-1", "t4g.small"): 0.0172,
    ("eu-north-1", "t4g.medium"): 0.0344,
    ("eu-central-1", "t3.small"): 0.0240,
    ("eu-central-1", "t3.medium"): 0.0480,
    ("eu-central-1", "t4g.small"): 0.0192,
    ("eu-central-1", "t4g.medium"): 0.0384,
}

# Nothing is charged for these as such (EC2 Auto Scaling pricing; EC2 user guide, "Elastic network
# interfaces" and "Launch templates"), and standard SSM parameters are free (Systems Manager
# pricing). What they start or hold has its own line. Advanced parameters are not used here.
FREE = frozenset({Kind.GROUP, Kind.INTERFACE, Kind.LAUNCH_TEMPLATE, Kind.PARAMETER})


def monthly_usd(thing: Thing) -> float | None:
    """What a thing costs in a month of doing nothing; None where no price is documented here."""
    if thing.kind in FREE:
        return 0.0
    if thing.kind is Kind.ADDRESS:
        return ADDRESS_USD_PER_HOUR * HOURS_PER_MONTH
    if thing.kind is Kind.VOLUME and thing.type == "gp3" and thing.size_gib is not None:
        price = GP3_USD_PER_GIB.get(thing.place.region)
        return None if price is None else price * thing.size_gib
    if thing.kind is Kind.INSTANCE:
        price = INSTANCE_USD_PER_HOUR.get((thing.place.region, thing.type))
        return None if price is None else price * HOURS_PER_MONTH
    return None


def instances_without_claim(
    instances: Mapping[str, Instance],
    claims: Mapping[str, Claim],
    place: Place,
    *,
    join_seconds: int,
    now: float,
) -> list[Orphan]:
    """Instances of one fleet that run, hold no slot and are too old to be still joining.

    Those that their group already ends or replaces are left to it.
    """
    owners = {claim.instance for claim in claims.values()}
    found = []
    for instance in instances.values():
        age = int(now - instance.launched_at)
        leaving = not instance.healthy or (instance.lifecycle or "").startswith("Terminat")
        if (
            instance.id in owners
            or instance.state in ("shutting-down", "terminated")
            or leaving
            or age <= join_seconds
        ):
            continue
        thing = Thing(kind=Kind.INSTANCE, id=instance.id, place=place, type=instance.type)
        found.append(
            Orphan(
                kind=Kind.INSTANCE,
                id=instance.id,
                place=place,
                fleet=instance.fleet,
                why=f"{instance.state} without claim for more than {join_seconds} s",
                age_seconds=age,
                # A stopped instance costs only its volumes.
                monthly_usd=monthly_usd(thing) if instance.state == "running" else None,
            )
        )
    return found


def claims_without_instance(
    claims: Mapping[str, Claim],
    states: Mapping[str, str],
    place: Place,
    *,
    fleet: str,
    table: str,
    now: float,
) -> list[Orphan]:
    """Claims whose instance can never come back, by the members' own rule."""
    return [
        Orphan(
            kind=Kind.CLAIM,
            id=claim.slot,
            place=place,
            fleet=fleet,
            why=f"{claim.instance} is {states.get(claim.instance, 'unknown to EC2')}",
            age_seconds=max(0, int(now) - claim.claimed_at),
            monthly_usd=None,
            table=table,
            owner=claim.instance,
        )
        for claim in claims.values()
        if is_gone(claim, states, now)
    ]


def left_behind(things: Collection[Thing], managed: Collection[str], *, now: float) -> list[Orphan]:
    """Things that bear the stack's tags or name and are not in the engine's state."""
    return [
        Orphan(
            kind=thing.kind,
            id=thing.id,
            place=thing.place,
            fleet=thing.fleet,
            why="not in the stack's state",
            age_seconds=None if thing.created_at is None else max(0, int(now - thing.created_at)),
            monthly_usd=monthly_usd(thing),
            kept=thing.kept,
        )
        for thing in things
        if thing.id not in managed
    ]


def removal_order(orphans: Collection[Orphan]) -> list[Orphan]:
    """What starts or holds others comes before what is started or held."""
    kinds = list(Kind)
    return sorted(orphans, key=lambda one: (kinds.index(one.kind), one.place.region, one.id))

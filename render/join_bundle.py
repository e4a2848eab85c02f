"""What the core's half hands to the fleets' half, and whether both halves say the same.

Owns the form that crosses from one stack to another. It is secret as a whole, because it holds a
fleet's seed and password; it refuses to hold anything that another fleet or the core could be
opened with.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field
from ipaddress import IPv4Network
from typing import Any

from pydantic import TypeAdapter, ValidationError

from render.member import JoinFacts
from settings import DatabaseSettings, FleetSettings, Settings, SettingsError, Workload


@dataclass(frozen=True, kw_only=True)
class JoinBundle:
    """Everything one fleet needs of the core.

    Attributes:
        facts: what members must know of the core; not secret.
        block: mesh addresses that Oslo lists for this fleet.
        generation: of the slot keys that Oslo lists.
        fleet_seeds: secrets by accepted generation, base64.
        fleet_password: of the fleet's database role.
        database: which database members read.
        workload_port: where the door asks members.
        health_port: where the door looks after members.
    """

    facts: JoinFacts
    block: IPv4Network
    generation: int
    fleet_seeds: dict[int, str] = field(repr=False)
    fleet_password: str = field(repr=False)
    database: DatabaseSettings
    workload_port: int
    health_port: int


_BUNDLE = TypeAdapter(JoinBundle)
_BUNDLES = TypeAdapter(dict[str, JoinBundle])


def bundle_output(bundle: JoinBundle) -> dict[str, Any]:
    """A bundle as a stack output holds it."""
    output: dict[str, Any] = _BUNDLE.dump_python(bundle, mode="json", by_alias=True)
    return output


def agreed_bundles(outputs: object, settings: Settings) -> dict[str, JoinBundle]:
    """Read the core stack's bundles for this stack's fleets.

    Parameters:
        outputs: the core stack's output; None when it has none.
        settings: of the stack that holds the fleets.

    Raises:
        SettingsError: with one line for each fleet's setting that the core stack contradicts; no
            secret is repeated.
    """
    core_stack = settings.core_stack
    if outputs is None:
        msg = (
            f"core-stack {core_stack} has no secret output join_bundles: fleets join with what it "
            "says. Run pulumi up there first, with layout core"
        )
        raise SettingsError(msg)
    try:
        bundles = _BUNDLES.validate_python(outputs)
    except ValidationError:
        msg = (
            f"core-stack {core_stack} has join_bundles of another form: another revision of the "
            "program made them. Run pulumi up there with this revision"
        )
        raise SettingsError(msg) from None
    if settings.fleets and not bundles:
        # The engine puts an empty object in the place of what it cannot decrypt.
        msg = (
            f"core-stack {core_stack} hands over no fleet: either it declares none, or this run "
            "does not have the passphrase or key of its secrets. Add the fleets there and run "
            "pulumi up there first, or run this with that stack's passphrase"
        )
        raise SettingsError(msg)
    broken = []
    for name, fleet in settings.fleets.items():
        if name not in bundles:
            broken.append(
                f"fleets.{name} is not in core-stack {core_stack}: Oslo lists the slots of fleets "
                "it knows only. Add it to the core stack and run pulumi up there first"
            )
            continue
        broken += _contradictions(name, fleet, settings.workload, bundles[name], str(core_stack))
    if broken:
        raise SettingsError("\n".join(broken))
    return {name: bundles[name] for name in settings.fleets}


def _contradictions(
    name: str, fleet: FleetSettings, workload: Workload, bundle: JoinBundle, core_stack: str
) -> Iterator[str]:
    if fleet.block != bundle.block:
        yield (
            f"fleets.{name}.block {fleet.block} is not the {bundle.block} of core-stack "
            f"{core_stack}: Oslo lists that block's slots only, so no member could join. Set it to "
            f"{bundle.block}, or change it there and run pulumi up there first"
        )
    if fleet.generation < bundle.generation:
        yield (
            f"fleets.{name}.generation {fleet.generation} is behind the {bundle.generation} of "
            f"core-stack {core_stack}: Oslo gives up the older keys. Set it to {bundle.generation}"
        )
    if fleet.generation > bundle.generation:
        yield (
            f"fleets.{name}.generation {fleet.generation} is ahead of the {bundle.generation} of "
            f"core-stack {core_stack}: Oslo does not list its keys yet. Raise it there and run "
            "pulumi up there first"
        )
    if fleet.vpc_range.overlaps(bundle.facts.range):
        yield (
            f"fleets.{name}.vpc-range {fleet.vpc_range} overlaps the mesh's {bundle.facts.range} "
            f"of core-stack {core_stack}: a packet for a shared address could take either way. "
            "Move vpc-range"
        )
    for key, here, there in (
        ("port", workload.port, bundle.workload_port),
        ("health-port", workload.health_port, bundle.health_port),
    ):
        if here != there:
            yield (
                f"workload.{key} {here} is not the {there} of core-stack {core_stack}: the door "
                f"asks fleet {name} on that port only. Set the same in both stacks"
            )

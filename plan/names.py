"""Names that two sides must agree on: what a component creates and what a member looks up."""

import hashlib
from dataclasses import dataclass

from settings import SettingsError

# The door may publish here and nowhere else.
METRIC_NAMESPACE = "FortressAndFleet"
SPILL_PRESSURE = "SpillPressure"
SPILL_PRESSURE_PER_MEMBER = "SpillPressurePerMember"
# AWS Lambda API, CreateFunction: FunctionName.
FUNCTION_NAME_LIMIT = 64


@dataclass(frozen=True, kw_only=True)
class FleetNames:
    """Physical names of one fleet's AWS objects that members are told."""

    claim_table: str
    seed_parameter: str
    workload_parameter: str


def seed_parameter(project: str, stack: str, fleet: str, generation: int) -> str:
    """Name the parameter that holds the seed of one of a fleet's generations.

    Each has its own, so that both can be read while members of both are accepted.
    """
    return f"/{project}/{stack}/{fleet}/generation-{generation}/seed"


def fleet_names(project: str, stack: str, fleet: str, generation: int) -> FleetNames:
    """Name a fleet's claim table and secrets.

    Claims of both generations share one table, because their slots are told apart by name.
    """
    return FleetNames(
        claim_table=f"{project}-{stack}-{fleet}-claims",
        seed_parameter=seed_parameter(project, stack, fleet, generation),
        workload_parameter=f"/{project}/{stack}/{fleet}/workload-secrets",
    )


def group_name(project: str, stack: str, fleet: str) -> str:
    """Name a fleet's Auto Scaling Group, which its role and its members know by name."""
    return f"{project}-{stack}-{fleet}"


def mac_address(stack: str, node: str) -> str:
    """A stable address for a machine's network card, upper case as libvirt keeps it.

    52:54:00 is QEMU's locally administered prefix; the rest follows from stack and node.
    """
    tail = hashlib.blake2b(f"{stack}/{node}".encode(), digest_size=3).digest()
    return ":".join(f"{byte:02X}" for byte in b"\x52\x54\x00" + tail)


def tags(project: str, stack: str, fleet: str) -> dict[str, str]:
    """Tags of every AWS resource of a fleet; orphans are found by them."""
    return {"project": project, "stack": stack, "fleet": fleet}


def metric_dimensions(stack: str, fleet: str) -> dict[str, str]:
    """What tells one fleet's metrics from another's."""
    return {"Stack": stack, "Fleet": fleet}


def function_name(project: str, stack: str, fleet: str, function: str) -> str:
    """Name a Lambda function; its log group follows from the name.

    Raises:
        SettingsError: when it is longer than AWS takes.
    """
    name = f"{project}-{stack}-{fleet}-{function}"
    if len(name) > FUNCTION_NAME_LIMIT:
        msg = (
            f"settings.fleets.{fleet}.functions.{function}: its name at AWS would be {name}, "
            f"{len(name)} characters, and AWS takes {FUNCTION_NAME_LIMIT}. Shorten the function's "
            "name or the stack's"
        )
        raise SettingsError(msg)
    return name

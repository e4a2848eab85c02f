"""Which steps of key generations are safe, seen from what the stack ran with before.

Owns what is recorded of generations and the rules for the next step. It refuses to know where the
record is kept: the program reads it from the stack's own outputs, before anything is touched.
"""

from collections.abc import Mapping
from typing import Any

from plan.mesh import MeshPlan
from settings import SettingsError


def record(plan: MeshPlan) -> dict[str, Any]:
    """What the next run must know of this one: plain data for the stack's outputs.

    For every accepted generation of a fleet it says by which generation of the hub's key its
    members reach the hub.
    """
    fleets: dict[str, dict[str, int]] = {fleet.name: {} for fleet in plan.fleets}
    for interface in plan.hub_interfaces:
        for slot in interface.slots:
            fleets[slot.fleet][str(slot.generation)] = interface.generation
    return {
        "hub": plan.hub.name,
        "nodes": {node.name: node.generation for node in plan.nodes},
        "fleets": fleets,
    }


def refuse_unsafe_steps(before: Mapping[str, Any], plan: MeshPlan) -> None:
    """Refuse a generation that goes backwards or would cut off members nobody meant to.

    Parameters:
        before: the record of the stack's last run; empty at the first.
        plan: what the settings ask for now.

    Raises:
        SettingsError: with value, rule, reason and remedy.
    """
    for node in plan.nodes:
        _refuse_backwards(
            f"node {node.name}", node.generation, before.get("nodes", {}).get(node.name)
        )
    now = record(plan)
    for fleet in plan.fleets:
        known = _by_generation(before.get("fleets", {}).get(fleet.name, {}))
        if not known:
            continue
        _refuse_backwards(f"fleets.{fleet.name}", fleet.generation, max(known))
        if fleet.generation > max(known) + 1 and fleet.generation - 1 in fleet.generations:
            msg = (
                f"fleets.{fleet.name}.generation goes from {max(known)} to {fleet.generation}: one "
                "previous generation is accepted, so all members would be cut off before they are "
                f"replaced. Raise it to {max(known) + 1}, or set accept-previous-generation: "
                "false to cut them off on purpose"
            )
            raise SettingsError(msg)
        if before.get("hub") == plan.hub.name and plan.accept_previous_hub:
            _refuse_moves(fleet.name, known, _by_generation(now["fleets"][fleet.name]))


def _by_generation(recorded: Mapping[str, Any]) -> dict[int, int]:
    # The engine hands numbers back as floating point.
    return {int(generation): int(hub) for generation, hub in recorded.items()}


def _refuse_backwards(what: str, now: int, before: float | None) -> None:
    if before is None or now >= before:
        return
    msg = (
        f"{what} has generation {now}, but this stack already runs {int(before)}: an older key may "
        "be known to somebody, and that is why it was replaced. To leave the present key raise "
        f"the generation to {int(before) + 1}"
    )
    raise SettingsError(msg)


def _refuse_moves(fleet: str, before: Mapping[int, int], now: Mapping[int, int]) -> None:
    for generation in before.keys() & now.keys():
        if before[generation] != now[generation]:
            msg = (
                f"fleets.{fleet}: members of generation {generation} reach the hub by its key of "
                f"generation {before[generation]}, and these settings would expect them at "
                f"{now[generation]}, so they would be cut off. Raise the hub by one together with "
                "every fleet by one; while the hub's previous key is accepted raise nothing else. "
                "When it is not needed any more, or to cut members off on purpose, set "
                "mesh.accept-previous-hub: false"
            )
            raise SettingsError(msg)

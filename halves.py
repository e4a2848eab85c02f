"""The program's two halves: one stack holds both, or two stacks hold one each.

Owns which components a half is made of, what it reads of the stack's secrets and what it puts out.
The core's half creates nothing in AWS but the door's key, and that only beside fleets of the same
stack; the fleets' half knows of the core its join bundles only.
"""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pulumi

from components.burst_fleet import BurstFleet, BurstFleetArgs, FleetSeed
from components.edge_balancer import EdgeBalancer, EdgeBalancerArgs
from components.providers import aws_provider, libvirt_providers
from components.refusals import refuse_unfit
from components.sovereign_core import SovereignCore, SovereignCoreArgs
from components.sovereign_services import SovereignServices, SovereignServicesArgs
from components.spill_publisher import SpillPublisher, SpillPublisherArgs
from components.wireguard_mesh import WireGuardMesh, WireGuardMeshArgs
from plan.derivation import decode_seed
from plan.generations import record, refuse_unsafe_steps
from plan.keys import authorized_key
from plan.mesh import FleetPlan, MeshPlan, plan_fleet, plan_mesh
from plan.names import fleet_names, seed_parameter, tags
from plan.secrets import checked_certificate, checked_password
from render.join_bundle import JoinBundle, agreed_bundles, bundle_output
from render.member import join_facts
from render.workload import workload_files
from settings import (
    PROJECT,
    DatabaseSettings,
    Layout,
    Role,
    Settings,
    SettingsError,
    core_of,
    load_secret,
)

# The engine writes its state while the program starts, and does not read it under a lock.
STATE_UNREADABLE = "failed to load checkpoint"
READ_ATTEMPTS = 25
READ_PAUSE_SECONDS = 0.2

# What is put out of one fleet: `group`, its name, and `functions`, names and URLs by function.
FleetOutputs = dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class CoreHalf:
    """The fortress in Oslo with its door.

    Attributes:
        plan: the mesh, with every slot of every declared fleet.
        door: what sends requests to members.
        outputs: what the stack puts out of it; nothing is secret.
        bundles: by fleet, what it needs to join; secret.
    """

    plan: MeshPlan
    door: EdgeBalancer
    outputs: Mapping[str, pulumi.Input[Any]]
    bundles: Mapping[str, pulumi.Output[JoinBundle]]

    @property
    def join_bundles(self) -> pulumi.Output[dict[str, Any]]:
        """What another stack's fleets read; secret."""
        bundles = pulumi.Output.all(*self.bundles.values())
        return pulumi.Output.secret(
            bundles.apply(lambda row: dict(zip(self.bundles, map(bundle_output, row), strict=True)))
        )


def own_outputs() -> Mapping[str, Any]:
    """What this stack put out when it last succeeded; empty at the first time.

    A StackReference would say the same, but as a resource, which is there too late to refuse
    anything first; this is the engine's function behind it.
    """
    name = f"{pulumi.get_organization()}/{pulumi.get_project()}/{pulumi.get_stack()}"
    for attempt in range(1, READ_ATTEMPTS + 1):
        try:
            found = pulumi.runtime.invoke("pulumi:pulumi:readStackOutputs", {"name": name}).value
        except Exception as error:
            # The SDK raises nothing narrower. A file of state that the engine replaces at this
            # moment is read in part.
            if STATE_UNREADABLE not in str(error) or attempt == READ_ATTEMPTS:
                raise
            time.sleep(READ_PAUSE_SECONDS)
        else:
            break
    outputs: Mapping[str, Any] = (found or {}).get("outputs") or {}
    return outputs


def build_core(settings: Settings, config: pulumi.Config) -> CoreHalf:
    """Core, mesh, services and door, for all slots of the declared fleets.

    Raises:
        SettingsError: when a secret is missing, addresses do not fit, or AWS would refuse a fleet.
    """
    core = core_of(settings)
    plan = plan_mesh(settings.mesh, core.nodes, settings.fleets)
    refuse_unsafe_steps(own_outputs().get("generations", {}), plan)
    # What is declared is made even when the program fails later, so refusals come first.
    workload_files(settings.workload)
    if settings.layout is Layout.SINGLE:
        for fleet in plan.fleets:
            refuse_unfit(settings, fleet, settings.database)
    seed = load_secret(config, "mesh-seed", decode_seed)
    ssh_private_key = load_secret(config, "ssh-private-key", authorized_key)
    app_password = load_secret(config, "database-password", checked_password)
    fleet_password = load_secret(config, "fleet-database-password", checked_password)
    certificate = (
        load_secret(config, "door-certificate", checked_certificate) if settings.door.tls else None
    )

    sovereign = SovereignCore(
        "oslo",
        SovereignCoreArgs(
            settings=settings,
            core=core,
            mesh=plan,
            stack=pulumi.get_stack(),
            seed=seed,
            ssh_private_key=ssh_private_key,
        ),
        pulumi.ResourceOptions(providers=libvirt_providers(core)),
    )
    mesh = WireGuardMesh("mesh", WireGuardMeshArgs(plan=plan, hosts=sovereign.hosts, seed=seed))
    services = SovereignServices(
        "services",
        SovereignServicesArgs(
            settings=settings,
            core=core,
            mesh=plan,
            hosts=mesh.hosts,
            app_password=app_password,
            fleet_password=fleet_password,
        ),
    )
    edge_node = plan.only(Role.EDGE).name
    door = EdgeBalancer(
        "door",
        EdgeBalancerArgs(
            settings=settings,
            node=next(node for node in core.nodes if node.name == edge_node),
            mesh=plan,
            host=services.hosts[edge_node],
            certificate=certificate,
            credentials=_publisher_credentials(settings),
        ),
    )

    return CoreHalf(
        plan=plan,
        door=door,
        outputs={
            "door_url": door.public_url,
            "statistics_address": door.statistics_address,
            "hub": {"endpoint": mesh.hub_endpoint, "public_key": mesh.hub_public_key},
            "hosts": [
                {
                    "name": node.name,
                    "address": str(node.lan_address),
                    "mesh_address": str(node.mesh_address),
                    "roles": sorted(node.roles),
                }
                for node in plan.nodes
            ],
            "slots": mesh.slots,
            "generations": record(plan),
        },
        bundles={
            fleet.name: pulumi.Output.all(
                mesh.hub_public_key,
                fleet_password,
                *(mesh.fleet_seeds[fleet.name, number] for number in fleet.generations),
            ).apply(_bundle(settings, plan, fleet))
            for fleet in plan.fleets
        },
    )


def _publisher_credentials(settings: Settings) -> pulumi.Output[str] | None:
    """The door's key at AWS, when a fleet is scaled by what the door tells."""
    told = {
        name: fleet
        for name, fleet in settings.fleets.items()
        if fleet.scaling.kind == "spill-pressure"
    }
    if not told:
        return None
    # IAM knows no regions, so any of these fleets' providers would reach the account.
    name, fleet = next(iter(told.items()))
    return SpillPublisher(
        "spill",
        SpillPublisherArgs(
            regions=[fleet.region for fleet in told.values()],
            tags={"project": PROJECT, "stack": pulumi.get_stack()},
        ),
        pulumi.ResourceOptions(provider=aws_provider(f"{name}-publisher", fleet)),
    ).credentials


def _bundle(
    settings: Settings, plan: MeshPlan, fleet: FleetPlan
) -> Callable[[Sequence[str]], JoinBundle]:
    return lambda values: JoinBundle(
        facts=join_facts(plan, hub_public_key=values[0]),
        block=fleet.block,
        generation=fleet.generation,
        fleet_password=values[1],
        fleet_seeds=dict(zip(fleet.generations, values[2:], strict=True)),
        database=settings.database,
        workload_port=settings.workload.port,
        health_port=settings.workload.health_port,
    )


def build_fleets(settings: Settings, core: CoreHalf) -> dict[str, FleetOutputs]:
    """The fleets of a stack that holds the core too."""
    return {
        plan.name: _fleet(
            settings,
            plan,
            core.bundles[plan.name],
            settings.database,
            plan.generations,
            launch_after=[core.door],
        )
        for plan in core.plan.fleets
    }


async def build_fleets_of_another_core(settings: Settings) -> dict[str, FleetOutputs]:
    """The fleets of a stack whose core another stack holds.

    The bundles are awaited before any fleet is declared, so that a contradiction between both
    stacks is told while nothing has been touched. Reading another stack takes no lock.

    Raises:
        RunError: when the core stack does not know these fleets as this stack describes them, or
            AWS would refuse one.
    """
    reference = pulumi.StackReference("core", settings.core_stack)
    details = await reference.get_output_details("join_bundles")
    try:
        bundles = agreed_bundles(details.secret_value, settings)
        plans = {
            name: plan_fleet(name, settings.fleets[name], bundle.facts.range)
            for name, bundle in bundles.items()
        }
        for name, bundle in bundles.items():
            refuse_unfit(settings, plans[name], bundle.database)
    except SettingsError as error:
        raise pulumi.RunError(str(error)) from None
    return {
        name: _fleet(
            settings,
            plans[name],
            pulumi.Output.secret(bundle),
            bundle.database,
            # What the core accepts counts, not what this stack would.
            sorted(bundle.fleet_seeds, reverse=True),
        )
        for name, bundle in bundles.items()
    }


def _fleet(
    settings: Settings,
    plan: FleetPlan,
    bundle: pulumi.Output[JoinBundle],
    database: DatabaseSettings,
    generations: Sequence[int],
    launch_after: Sequence[pulumi.Resource] = (),
) -> FleetOutputs:
    stack = pulumi.get_stack()
    fleet = settings.fleets[plan.name]
    made = BurstFleet(
        plan.name,
        BurstFleetArgs(
            fleet=fleet,
            plan=plan,
            # Of all that is in the bundle, facts are what user-data may show.
            facts=pulumi.Output.unsecret(bundle.apply(lambda joined: joined.facts)),
            names=fleet_names(PROJECT, stack, plan.name, plan.generation),
            fleet_seeds=[
                FleetSeed(
                    generation=number,
                    parameter=seed_parameter(PROJECT, stack, plan.name, number),
                    value=bundle.apply(_seed_of(number)),
                )
                for number in generations
            ],
            workload=settings.workload,
            database=database,
            fleet_password=bundle.apply(lambda joined: joined.fleet_password),
            tags=tags(PROJECT, stack, plan.name),
            launch_after=launch_after,
        ),
        pulumi.ResourceOptions(provider=aws_provider(plan.name, fleet)),
    )
    functions = {name: function.outputs for name, function in made.functions.items()}
    return {"group": made.group_name, "functions": functions}


def _seed_of(generation: int) -> Callable[[JoinBundle], str]:
    return lambda bundle: bundle.fleet_seeds[generation]

"""WireGuardMesh: kernel WireGuard on core nodes, every slot of every fleet known in advance."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import pulumi

from components.host import Host, run_script
from plan.derivation import decode_seed, encode, fleet_seed
from plan.keys import node_public_key, slot_table
from plan.mesh import MeshNode, MeshPlan
from render.wireguard import mesh_content


@dataclass(frozen=True, kw_only=True)
class WireGuardMeshArgs:
    """What the mesh is made of.

    Attributes:
        plan: nodes, fleets and addresses.
        hosts: core nodes by name.
        seed: mesh seed, base64.
    """

    plan: MeshPlan
    hosts: Mapping[str, Host]
    seed: pulumi.Output[str]


class WireGuardMesh(pulumi.ComponentResource):
    """The hub in Oslo, the other core nodes as spokes, and what fleets need to join.

    No resource belongs to a slot: members come and go without a change here.

    Attributes:
        hub_endpoint: address:port of the hub, UDP.
        hub_public_key: base64, not secret.
        slots: by name, address and public key of every slot; not secret.
        fleet_seeds: by fleet and accepted generation, the secret its members derive their keys
            from, base64.
        hosts: core nodes, usable only when they are in the mesh.
    """

    hub_endpoint: pulumi.Output[str]
    hub_public_key: pulumi.Output[str]
    slots: pulumi.Output[dict[str, str]]
    fleet_seeds: Mapping[tuple[str, int], pulumi.Output[str]]
    hosts: Mapping[str, Host]

    def __init__(
        self, name: str, args: WireGuardMeshArgs, opts: pulumi.ResourceOptions | None = None
    ) -> None:
        super().__init__("fortress:index:WireGuardMesh", name, None, opts)
        plan = args.plan
        seed = args.seed.apply(decode_seed)
        hub = self._member(name, args, plan.hub, seed, after=())
        joined = {
            node.name: self._member(name, args, node, seed, after=(hub,)) for node in plan.spokes
        }
        joined[plan.hub.name] = hub
        self.hosts = {
            host.name: Host(
                name=host.name,
                user=host.user,
                connection=host.connection,
                identity=host.identity,
                after=(*host.after, joined[host.name]),
            )
            for host in args.hosts.values()
        }
        self.hub_endpoint = pulumi.Output.from_input(plan.hub_endpoint)
        self.hub_public_key = pulumi.Output.unsecret(
            seed.apply(lambda s: node_public_key(s, plan.hub))
        )
        self.slots = pulumi.Output.unsecret(seed.apply(lambda s: slot_table(s, plan)))
        self.fleet_seeds = {
            (fleet.name, generation): seed.apply(_seed_of(fleet.name, generation))
            for fleet in plan.fleets
            for generation in fleet.generations
        }
        self.register_outputs(
            {
                "hub_endpoint": self.hub_endpoint,
                "hub_public_key": self.hub_public_key,
                "slots": self.slots,
            }
        )

    def _member(
        self,
        name: str,
        args: WireGuardMeshArgs,
        node: MeshNode,
        seed: pulumi.Output[bytes],
        after: Sequence[pulumi.Resource],
    ) -> pulumi.Resource:
        return run_script(
            f"{name}-{node.name}",
            script="mesh",
            content=seed.apply(lambda s: mesh_content(mesh=args.plan, node=node, seed=s)),
            host=args.hosts[node.name],
            parent=self,
            after=after,
        )


def _seed_of(fleet: str, generation: int) -> Callable[[bytes], str]:
    return lambda seed: encode(fleet_seed(seed, fleet, generation))

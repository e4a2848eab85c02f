"""EdgeBalancer: the door. HAProxy in Oslo, Oslo's frontends first, fleets when they are full."""

from dataclasses import dataclass

import pulumi

from components.host import Host, run_script
from plan.mesh import MeshPlan
from render.haproxy import edge_content
from render.spill_pressure import meter_content
from settings import Node, Settings


@dataclass(frozen=True, kw_only=True)
class EdgeBalancerArgs:
    """What the door is made of.

    Attributes:
        settings: the stack's settings.
        node: core node with the role edge.
        mesh: Oslo's frontends and every slot of every fleet.
        host: that node, in the mesh.
        certificate: chain and private key in PEM, when settings.door.tls.
        credentials: for telling the spill pressure, when a fleet is scaled by it.
    """

    settings: Settings
    node: Node
    mesh: MeshPlan
    host: Host
    certificate: pulumi.Output[str] | None
    credentials: pulumi.Output[str] | None


class EdgeBalancer(pulumi.ComponentResource):
    """HAProxy with validated, hitless configuration.

    Attributes:
        public_url: where users come in.
        statistics_address: address:port on the mesh, for statistics and metrics.
    """

    public_url: pulumi.Output[str]
    statistics_address: pulumi.Output[str]

    def __init__(
        self, name: str, args: EdgeBalancerArgs, opts: pulumi.ResourceOptions | None = None
    ) -> None:
        super().__init__("fortress:index:EdgeBalancer", name, None, opts)
        door = args.settings.door
        stack = pulumi.get_stack()
        secrets = pulumi.Output.all(args.certificate or "", args.credentials or "")
        configured = run_script(
            f"{name}-{args.node.name}",
            script="edge",
            content=secrets.apply(
                lambda texts: {
                    **edge_content(
                        node=args.node,
                        settings=args.settings,
                        mesh=args.mesh,
                        certificate=texts[0] or None,
                    ),
                    "meter": meter_content(
                        settings=args.settings, mesh=args.mesh, stack=stack, credentials=texts[1]
                    ),
                }
            ),
            host=args.host,
            parent=self,
        )
        address = args.node.public_address or args.node.address
        scheme, port, usual = (
            ("https", door.https_port, 443) if door.tls else ("http", door.http_port, 80)
        )
        url = f"{scheme}://{address}{'' if port == usual else f':{port}'}/"
        mesh_address = next(
            node.mesh_address for node in args.mesh.nodes if node.name == args.node.name
        )
        statistics = f"{mesh_address}:{door.statistics_port}"
        # Known only when the door is open.
        self.public_url = configured.id.apply(lambda _: url)
        self.statistics_address = configured.id.apply(lambda _: statistics)
        self.register_outputs(
            {"public_url": self.public_url, "statistics_address": self.statistics_address}
        )

"""SovereignServices: PostgreSQL and the workload on the core, once its machines are in the mesh."""

from collections.abc import Mapping
from dataclasses import dataclass

import pulumi

from components.host import Host, run_script
from plan.mesh import MeshPlan
from render.postgresql import database_content
from render.workload import workload_content
from settings import CoreSettings, Node, Role, Settings


@dataclass(frozen=True, kw_only=True)
class SovereignServicesArgs:
    """What runs on the core.

    Attributes:
        settings: the stack's settings.
        core: its core part.
        mesh: addresses and roles.
        hosts: core nodes that are in the mesh, by name.
        app_password: of the database's owner.
        fleet_password: of the fleet's database role.
    """

    settings: Settings
    core: CoreSettings
    mesh: MeshPlan
    hosts: Mapping[str, Host]
    app_password: pulumi.Output[str]
    fleet_password: pulumi.Output[str]


class SovereignServices(pulumi.ComponentResource):
    """The database on its node, then the workload on every Oslo frontend.

    Attributes:
        hosts: core nodes, usable only when their services run.
        database: what those wait for who need the database.
    """

    hosts: Mapping[str, Host]
    database: pulumi.Resource

    def __init__(
        self, name: str, args: SovereignServicesArgs, opts: pulumi.ResourceOptions | None = None
    ) -> None:
        super().__init__("fortress:index:SovereignServices", name, None, opts)
        by_name = {node.name: node for node in args.core.nodes}
        keeper = by_name[args.mesh.only(Role.DATABASE).name]
        self.database = run_script(
            f"{name}-{keeper.name}-database",
            script="database",
            content=pulumi.Output.all(args.app_password, args.fleet_password).apply(
                lambda passwords: database_content(
                    node=keeper,
                    settings=args.settings,
                    mesh=args.mesh,
                    app_password=passwords[0],
                    fleet_password=passwords[1],
                )
            ),
            host=args.hosts[keeper.name],
            parent=self,
        )
        done: dict[str, list[pulumi.Resource]] = {keeper.name: [self.database]}
        for planned in args.mesh.with_role(Role.FRONTEND):
            workload = self._workload(name, args, by_name[planned.name])
            done.setdefault(planned.name, []).append(workload)
        self.hosts = {
            host.name: Host(
                name=host.name,
                user=host.user,
                connection=host.connection,
                identity=host.identity,
                after=(*host.after, *done.get(host.name, [])),
            )
            for host in args.hosts.values()
        }
        self.register_outputs({"database": keeper.name})

    def _workload(self, name: str, args: SovereignServicesArgs, node: Node) -> pulumi.Resource:
        return run_script(
            f"{name}-{node.name}-workload",
            script="workload",
            content=args.app_password.apply(
                lambda password: workload_content(
                    node=node, settings=args.settings, mesh=args.mesh, app_password=password
                )
            ),
            host=args.hosts[node.name],
            parent=self,
            after=(self.database,),
        )

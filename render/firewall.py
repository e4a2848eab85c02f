"""nftables rules of a core node: who may reach what, from outside and inside the mesh.

The file holds the node's final state from the first day; rules name the mesh's interfaces whether
they are there or not.
"""

from ipaddress import IPv4Network, collapse_addresses

from plan.mesh import HUB_INTERFACES, MeshPlan
from render.templates import render
from settings import Node, Role, Settings


def firewall_rules(*, node: Node, settings: Settings, mesh: MeshPlan) -> str:
    """One node's own table.

    Parameters:
        node: the core node it is for.
        settings: ports and SSH ranges.
        mesh: all core nodes and slots.

    Raises:
        ValueError: for settings without a core.
    """
    if settings.core is None:
        msg = "settings without a core have no core node to protect"
        raise ValueError(msg)
    workload, door, database = settings.workload, settings.door, settings.database
    is_hub = Role.HUB in node.roles
    is_edge = Role.EDGE in node.roles
    is_frontend = Role.FRONTEND in node.roles
    interfaces = [one.name for one in mesh.hub_interfaces] if is_hub else HUB_INTERFACES[:1]
    quoted = [f'"{name}"' for name in sorted(interfaces)]
    database_node = mesh.only(Role.DATABASE)
    service_ports = [workload.port, workload.health_port] if is_frontend else []
    if is_edge:
        service_ports.append(door.statistics_port)
    return render(
        "firewall.nft",
        mesh_range=mesh.range,
        slots=list(collapse_addresses(IPv4Network(slot.address) for slot in mesh.slots)),
        core_nodes=[other.mesh_address for other in mesh.nodes],
        ssh_ranges=list(collapse_addresses(settings.core.ssh.allowed_ranges)),
        ssh_port=node.ssh_port if node.placement == "existing" else 22,
        is_hub=is_hub,
        mesh=_one_or_set(quoted),
        quoted_interfaces=quoted,
        hub_ports=_one_or_set(sorted(str(one.port) for one in mesh.hub_interfaces))
        if is_hub
        else None,
        door_ports=[door.http_port, *([door.https_port] if door.tls else [])] if is_edge else [],
        database_port=database.port if Role.DATABASE in node.roles else None,
        remote_database=None if node.name == database_node.name else database_node.mesh_address,
        remote_database_port=database.port,
        service_ports=service_ports,
    )


def _one_or_set(words: list[str]) -> str:
    return words[0] if len(words) == 1 else f"{{ {', '.join(words)} }}"

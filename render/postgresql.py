"""PostgreSQL's configuration and who may connect from where.

Owns settings and access rules. Sizes come from plan/postgresql.py; how the database is made on a
machine, and the roles in it, is scripts/host/database.py.
"""

from dataclasses import dataclass
from ipaddress import IPv4Network, collapse_addresses
from typing import Any

from plan.mesh import MeshPlan
from plan.postgresql import sizes_for
from render.templates import render
from settings import Node, Settings

# Releases that the supported systems bring: Ubuntu 22.04, Debian 12, Ubuntu 24.04, Debian 13.
VERSIONS = (14, 15, 16, 17)
MOUNT = "/var/lib/fortress-data"
CERTIFICATE_PATH = "/etc/postgresql/fortress.crt"
KEY_PATH = "/etc/postgresql/fortress.key"
# libvirt shows a volume's serial number to the guest; components/ gives the data volume this one.
DATA_DEVICE = "/dev/disk/by-id/virtio-data"


@dataclass(frozen=True, kw_only=True)
class FleetAddresses:
    """Where one fleet's members connect from, as few ranges as cover exactly its slots."""

    name: str
    addresses: tuple[IPv4Network, ...]


def fleet_role(settings: Settings) -> str:
    """Name of the fleet's role; the owner's is the database's own name."""
    return f"{settings.database.name}_fleet"


def fleet_connection_limit(settings: Settings) -> int:
    """Connections the fleets may have together: 70 %, so that Oslo always gets some."""
    return settings.database.max_connections * 7 // 10


def postgresql_config(*, node: Node, settings: Settings, mesh: MeshPlan, version: int) -> str:
    """The settings that differ from the system's defaults.

    Parameters:
        node: the machine with the role database.
        version: PostgreSQL's major version.
    """
    database = settings.database
    return render(
        "postgresql.conf",
        mesh_address=next(n.mesh_address for n in mesh.nodes if n.name == node.name),
        port=database.port,
        max_connections=database.max_connections,
        certificate_path=CERTIFICATE_PATH,
        key_path=KEY_PATH,
        memory_mib=node.memory_mib,
        sizes=sizes_for(node.memory_mib, database.max_connections),
        version=version,
    )


def access_rules(*, settings: Settings, mesh: MeshPlan) -> str:
    """The whole pg_hba.conf: scram over TLS from known addresses, everything else refused."""
    return render(
        "pg_hba.conf",
        database=settings.database.name,
        owner=settings.database.name,
        fleet_role=fleet_role(settings),
        core_addresses=["127.0.0.1/32", *(f"{node.mesh_address}/32" for node in mesh.nodes)],
        fleets=[
            FleetAddresses(
                name=fleet.name,
                addresses=tuple(
                    collapse_addresses(IPv4Network(slot.address) for slot in fleet.slots)
                ),
            )
            for fleet in mesh.fleets
        ],
    )


def data_device(node: Node) -> str | None:
    """The disk for the data, or None where the root file system holds it."""
    return DATA_DEVICE if node.placement == "libvirt" else node.data_device


def database_content(
    *, node: Node, settings: Settings, mesh: MeshPlan, app_password: str, fleet_password: str
) -> dict[str, Any]:
    """Everything scripts/host/database.py needs; secret as a whole.

    Parameters:
        node: the machine with the role database.
        app_password: of the owner, for Oslo.
        fleet_password: of the fleet's role.
    """
    database = settings.database
    return {
        "node": node.name,
        "device": data_device(node),
        "mount": MOUNT,
        "port": database.port,
        "mesh_address": str(next(n.mesh_address for n in mesh.nodes if n.name == node.name)),
        "configurations": {
            str(version): postgresql_config(
                node=node, settings=settings, mesh=mesh, version=version
            )
            for version in VERSIONS
        },
        "access_rules": access_rules(settings=settings, mesh=mesh),
        "unit": render(
            "postgresql.service.conf", mount=MOUNT, interface=mesh.interface_of(node.name)
        ),
        "certificate_path": CERTIFICATE_PATH,
        "key_path": KEY_PATH,
        "database": database.name,
        "owner": {"name": database.name, "password": app_password},
        "fleet": {
            "name": fleet_role(settings),
            "password": fleet_password,
            "privileges": list(database.fleet_privileges),
            "connection_limit": fleet_connection_limit(settings),
        },
    }

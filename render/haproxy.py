"""HAProxy's configuration: Oslo first, the fleets when Oslo is full or down.

Owns every number at the door. It refuses to know how a configuration becomes the running one:
that is scripts/host/edge.py.
"""

import hashlib
from dataclasses import dataclass
from ipaddress import IPv4Address
from typing import Any

from plan.mesh import MeshPlan
from render.templates import render
from settings import Node, Role, Settings

CONFIGURATION_PATH = "/etc/haproxy/haproxy.cfg"
SEED_PATH = "/etc/haproxy/server-state.seed"
CERTIFICATES = "/etc/haproxy/certificates"
UNIT_PATH = "/etc/systemd/system/haproxy.service.d/fortress.conf"
PRESSURE_TABLE = "spill_pressure"
HEADER = "# Managed by Fortress and Fleet: changes made here are undone by the next `pulumi up`."


@dataclass(frozen=True, kw_only=True)
class Server:
    """One line of a backend."""

    name: str
    address: IPv4Address


@dataclass(frozen=True, kw_only=True)
class Backend:
    """Servers that are equal to each other; connections is each one's limit."""

    name: str
    servers: tuple[Server, ...]
    connections: int


def oslo_backend(settings: Settings, mesh: MeshPlan) -> Backend:
    """The frontends in Oslo."""
    return Backend(
        name="oslo",
        servers=tuple(
            Server(name=node.name, address=node.mesh_address)
            for node in mesh.with_role(Role.FRONTEND)
        ),
        connections=settings.door.oslo_connections,
    )


def burst_backends(settings: Settings, mesh: MeshPlan) -> tuple[Backend, ...]:
    """One backend per fleet, in order of preference, with every slot it could ever fill."""
    return tuple(
        Backend(
            name=f"burst_{fleet.name.replace('-', '_')}",
            servers=tuple(Server(name=slot.name, address=slot.address) for slot in fleet.slots),
            connections=settings.door.fleet_connections,
        )
        for fleet in mesh.fleets
    )


def measures_pressure(settings: Settings) -> bool:
    """Whether a fleet is scaled by what the door counts."""
    return any(fleet.scaling.kind == "spill-pressure" for fleet in settings.fleets.values())


def certificate_path(certificate: str) -> str:
    """Where a certificate lies: under a name of its own, so that the one in use stays untouched
    until a configuration that was checked with the new one takes over.
    """
    return f"{CERTIFICATES}/door-{hashlib.sha256(certificate.encode()).hexdigest()[:16]}.pem"


def haproxy_config(
    *, node: Node, settings: Settings, mesh: MeshPlan, certificate: str | None
) -> str:
    """The whole haproxy.cfg.

    Parameters:
        node: the edge.
        certificate: PEM chain with private key when door.tls is set; only its digest is used.
    """
    door = settings.door
    burst = burst_backends(settings, mesh)
    backends = (oslo_backend(settings, mesh), *burst)
    places = sum(len(backend.servers) * backend.connections for backend in backends)
    return render(
        "haproxy.cfg",
        # 1000: visitors between two requests, each for at most the 10 s of http-keep-alive.
        connections=2 * places + 1000,
        certificate_path=certificate_path(certificate) if certificate and door.tls else None,
        http_port=door.http_port,
        https_port=door.https_port,
        https_suffix="" if door.https_port == 443 else f":{door.https_port}",
        oslo_only_paths=door.oslo_only_paths,
        pressure_table=PRESSURE_TABLE if measures_pressure(settings) else None,
        burst=burst,
        backends=backends,
        workload_port=settings.workload.port,
        health_port=settings.workload.health_port,
        statistics_address=next(n.mesh_address for n in mesh.nodes if n.name == node.name),
        statistics_port=door.statistics_port,
    )


def server_state_seed(*, settings: Settings, mesh: MeshPlan) -> str:
    """What a starting HAProxy shall presume, in its server-state format, version 1.

    Slots are down (srv_op_state 0), because most of them are empty at most times; Oslo is up (2)
    with the health of a server that was never checked, so that the first failure takes it down.
    A slot has the check result of a refused connection (8 2 0), as HAProxy itself writes it: with
    zeros there, 2.6 keeps checking and never calls the server up (measured).
    The numeric ids are 0: HAProxy goes by names.
    """
    port = settings.workload.port
    lines = ["1", "# be_id be_name srv_id srv_name srv_addr srv_op_state ..."]
    for backend in (oslo_backend(settings, mesh), *burst_backends(settings, mesh)):
        # From srv_op_state to srv_check_state.
        state = "2 0 1 1 0 1 0 2 6" if backend.name == "oslo" else "0 0 1 1 0 8 2 0 6"
        lines += [
            f"0 {backend.name} 0 {server.name} {server.address} {state} 0 0 0 - {port} -"
            for server in backend.servers
        ]
    return "\n".join(lines) + "\n"


def edge_content(
    *, node: Node, settings: Settings, mesh: MeshPlan, certificate: str | None
) -> dict[str, Any]:
    """Everything scripts/host/edge.py needs; secret when it holds a certificate.

    Parameters:
        certificate: PEM chain with private key; ignored unless door.tls is set.
    """
    door = settings.door
    config = haproxy_config(node=node, settings=settings, mesh=mesh, certificate=certificate)
    address = next(n.mesh_address for n in mesh.nodes if n.name == node.name)
    listen: list[dict[str, Any]] = [{"address": "*", "port": door.http_port}]
    content: dict[str, Any] = {
        "node": node.name,
        "configuration": {"path": CONFIGURATION_PATH, "content": config, "mode": "0640"},
        "header": HEADER,
        "seed": {
            "path": SEED_PATH,
            "content": server_state_seed(settings=settings, mesh=mesh),
        },
        "unit": {
            "path": UNIT_PATH,
            "content": render("haproxy.service.conf", interface=mesh.interface_of(node.name)),
        },
        "certificate": None,
        "certificates": CERTIFICATES,
        "listen": listen,
    }
    if certificate and door.tls:
        content["certificate"] = {
            "path": certificate_path(certificate),
            "content": certificate,
            "mode": "0600",
        }
        listen.append({"address": "*", "port": door.https_port})
    listen.append({"address": str(address), "port": door.statistics_port})
    return content

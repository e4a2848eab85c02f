"""WireGuard's configuration of core nodes: the hub knows every slot the fleet could ever fill.

Fleet members write their own (`scripts/node/member.py`): theirs holds a key only they may have.
"""

from dataclasses import dataclass, replace
from ipaddress import IPv4Address, IPv4Network, collapse_addresses
from typing import Any

from plan.derivation import encode, node_private_key
from plan.keys import node_public_key, slot_keys
from plan.mesh import HUB_INTERFACES, HubInterface, MeshNode, MeshPlan
from render.templates import render
from settings import Role

DIRECTORY = "/etc/wireguard"
# An emulated hub that boots at the same time has been seen to need more than two minutes.
HANDSHAKE_SECONDS = 240


@dataclass(frozen=True, kw_only=True)
class Peer:
    """One [Peer] section (wg(8))."""

    name: str
    public_key: str
    allowed: str
    preshared_key: str | None = None
    endpoint: str | None = None
    keepalive_seconds: int | None = None


def hub_config(mesh: MeshPlan, seed: bytes, interface: HubInterface | None = None) -> str:
    """The configuration of one of the hub's interfaces; by default that of its current key.

    Peers have no endpoint: one in the file would overwrite where a spoke has been seen last.
    """
    interface = interface or mesh.hub_interfaces[0]
    keys = slot_keys(seed, interface.slots)
    peers = [
        Peer(
            name=node.name,
            public_key=node_public_key(seed, node),
            allowed=f"{node.mesh_address}/32",
        )
        for node in interface.spokes
    ]
    peers += [
        Peer(
            name=slot.name,
            public_key=keys[slot].public_key,
            preshared_key=keys[slot].preshared_key,
            allowed=f"{slot.address}/32",
        )
        for slot in interface.slots
    ]
    return _config(
        mesh,
        _hub_of(mesh, interface),
        seed,
        listen_port=interface.port,
        peers=peers,
        routes=hub_routes(mesh, interface),
    )


def hub_routes(mesh: MeshPlan, interface: HubInterface) -> list[str]:
    """Addresses that are routed to one of the hub's interfaces; none while there is only one.

    Each has the address of the whole mesh, so that none is restarted when another comes or goes;
    these routes are narrower and say where a peer is.
    """
    if len(mesh.hub_interfaces) == 1:
        return []
    addresses: list[IPv4Address] = [node.mesh_address for node in interface.spokes]
    addresses += [slot.address for slot in interface.slots]
    return [str(route) for route in collapse_addresses(map(IPv4Network, addresses))]


def _hub_of(mesh: MeshPlan, interface: HubInterface) -> MeshNode:
    """The hub with the key of one of its interfaces."""
    return replace(mesh.hub, generation=interface.generation)


def spoke_config(mesh: MeshPlan, node: MeshNode, seed: bytes) -> str:
    """The wg0.conf of a core node that is not the hub; it reaches the hub where Pulumi does."""
    hub = mesh.hub
    peer = Peer(
        name=hub.name,
        public_key=node_public_key(seed, hub),
        allowed=str(mesh.range),
        endpoint=_hub_endpoint(mesh),
        keepalive_seconds=mesh.keepalive_seconds,
    )
    return _config(mesh, node, seed, listen_port=None, peers=[peer], routes=[])


def _hub_endpoint(mesh: MeshPlan) -> str:
    """Where other core nodes find the hub: where Pulumi does."""
    return f"{mesh.hub.lan_address}:{mesh.hub_interfaces[0].port}"


def _config(
    mesh: MeshPlan,
    node: MeshNode,
    seed: bytes,
    *,
    listen_port: int | None,
    peers: list[Peer],
    routes: list[str],
) -> str:
    return render(
        "wg0.conf",
        address=f"{node.mesh_address}/{mesh.range.prefixlen}",
        listen_port=listen_port,
        private_key=encode(node_private_key(seed, node.name, node.generation)),
        mtu=mesh.mtu,
        routes=routes,
        source=node.mesh_address,
        peers=peers,
    )


def mesh_content(*, mesh: MeshPlan, node: MeshNode, seed: bytes) -> dict[str, Any]:
    """Everything scripts/host/mesh.py needs; secret as a whole.

    Parameters:
        mesh: the whole mesh.
        node: the core node it is for.
        seed: the mesh seed, 32 bytes.
    """
    is_hub = Role.HUB in node.roles
    interfaces = (
        [_hub_interface(mesh, interface, seed) for interface in mesh.hub_interfaces]
        if is_hub
        else [
            _interface(
                mesh,
                node,
                seed,
                name=HUB_INTERFACES[0],
                text=spoke_config(mesh, node, seed),
                listen_port=None,
                peer_count=1,
                routes=[],
            )
        ]
    )
    names = {interface["interface"] for interface in interfaces}
    return {
        "node": node.name,
        "interfaces": interfaces,
        "retired": [
            {"interface": name, "path": f"{DIRECTORY}/{name}.conf"}
            for name in HUB_INTERFACES
            if name not in names
        ],
        "hub": None
        if is_hub
        else {
            "public_key": node_public_key(seed, mesh.hub),
            "endpoint": _hub_endpoint(mesh),
            "mesh_address": str(mesh.hub.mesh_address),
            "handshake_seconds": HANDSHAKE_SECONDS,
        },
    }


def _hub_interface(mesh: MeshPlan, interface: HubInterface, seed: bytes) -> dict[str, Any]:
    return _interface(
        mesh,
        _hub_of(mesh, interface),
        seed,
        name=interface.name,
        text=hub_config(mesh, seed, interface),
        listen_port=interface.port,
        peer_count=len(interface.spokes) + len(interface.slots),
        routes=hub_routes(mesh, interface),
    )


def _interface(
    mesh: MeshPlan,
    node: MeshNode,
    seed: bytes,
    *,
    name: str,
    text: str,
    listen_port: int | None,
    peer_count: int,
    routes: list[str],
) -> dict[str, Any]:
    return {
        "interface": name,
        "config": {"path": f"{DIRECTORY}/{name}.conf", "content": text, "mode": "0600"},
        "address": f"{node.mesh_address}/{mesh.range.prefixlen}",
        "mtu": mesh.mtu,
        "listen_port": listen_port,
        "public_key": node_public_key(seed, node),
        "peer_count": peer_count,
        "routes": routes,
    }

"""Who is in the mesh and at which address: core nodes, fleets and all slots they could ever fill.

Everything follows from settings; nothing here is secret. It refuses to know keys and files.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Network

from settings import FleetSettings, MeshSettings, Node, Role, SettingsError

# The hub's, for even and for odd key generations; every other machine has the first one only.
HUB_INTERFACES = ("wg0", "wg1")


@dataclass(frozen=True, kw_only=True)
class MeshNode:
    """A core node as the mesh sees it."""

    name: str
    roles: frozenset[Role]
    lan_address: IPv4Address
    public_address: IPv4Address
    mesh_address: IPv4Address
    generation: int


@dataclass(frozen=True, kw_only=True)
class Slot:
    """One address and key that a fleet member may claim."""

    fleet: str
    generation: int
    index: int
    address: IPv4Address

    @property
    def name(self) -> str:
        """Name in HAProxy, claims and tables, e.g. frankfurt-0-07."""
        return f"{self.fleet}-{self.generation}-{self.index:02d}"


@dataclass(frozen=True, kw_only=True)
class FleetPlan:
    """One fleet's slots: those that are accepted now, newest generation first."""

    name: str
    block: IPv4Network
    generation: int
    preference: int
    slots: tuple[Slot, ...]

    @property
    def generations(self) -> tuple[int, ...]:
        """Accepted key generations, newest first."""
        return tuple(sorted({slot.generation for slot in self.slots}, reverse=True))

    @property
    def claimable(self) -> tuple[Slot, ...]:
        """Slots new members claim: those of the current generation."""
        return tuple(slot for slot in self.slots if slot.generation == self.generation)


@dataclass(frozen=True, kw_only=True)
class HubInterface:
    """One of the hub's WireGuard interfaces: one key generation with its port and its peers."""

    name: str
    generation: int
    port: int
    spokes: tuple[MeshNode, ...]
    slots: tuple[Slot, ...]


@dataclass(frozen=True, kw_only=True)
class MeshPlan:
    """The whole mesh."""

    range: IPv4Network
    port: int
    mtu: int
    keepalive_seconds: int
    accept_previous_hub: bool
    nodes: tuple[MeshNode, ...]
    fleets: tuple[FleetPlan, ...]

    @property
    def hub(self) -> MeshNode:
        """The centre of the mesh, in Oslo."""
        return self.only(Role.HUB)

    @property
    def slots(self) -> tuple[Slot, ...]:
        """All accepted slots of all fleets."""
        return tuple(slot for fleet in self.fleets for slot in fleet.slots)

    @property
    def spokes(self) -> tuple[MeshNode, ...]:
        """Core nodes other than the hub."""
        return tuple(node for node in self.nodes if Role.HUB not in node.roles)

    @property
    def hub_interfaces(self) -> tuple[HubInterface, ...]:
        """The hub's interfaces, that of its current key first (decision 10).

        While the hub's key rotates, an address tells its interface: the previous generation of
        each fleet stays with the hub's previous key, all others are with the current one.
        """
        current = self.hub.generation
        staying: tuple[Slot, ...] = ()
        if self.accept_previous_hub and current > 0:
            staying = tuple(
                slot
                for fleet in self.fleets
                for slot in fleet.slots
                if slot.generation < fleet.generation
            )
        moved = tuple(slot for slot in self.slots if slot not in set(staying))
        interfaces = [self._hub_interface(current, self.spokes, moved)]
        if staying:
            interfaces.append(self._hub_interface(current - 1, (), staying))
        return tuple(interfaces)

    def interface_of(self, node: str) -> str:
        """Name of a core node's WireGuard interface; of the hub's the one of its current key."""
        return self.hub_interfaces[0].name if node == self.hub.name else HUB_INTERFACES[0]

    @property
    def hub_endpoint(self) -> str:
        """Where the hub is found from outside: address and port of its current key."""
        return f"{self.hub.public_address}:{self.hub_interfaces[0].port}"

    def _hub_interface(
        self, generation: int, spokes: tuple[MeshNode, ...], slots: tuple[Slot, ...]
    ) -> HubInterface:
        place = generation % len(HUB_INTERFACES)
        return HubInterface(
            name=HUB_INTERFACES[place],
            generation=generation,
            port=self.port + place,
            spokes=spokes,
            slots=slots,
        )

    def with_role(self, role: Role) -> tuple[MeshNode, ...]:
        """Core nodes that have a role."""
        return tuple(node for node in self.nodes if role in node.roles)

    def only(self, role: Role) -> MeshNode:
        """The one core node with a role that exactly one has (checked in settings)."""
        return self.with_role(role)[0]

    def fleet(self, name: str) -> FleetPlan:
        """One fleet by name."""
        return next(fleet for fleet in self.fleets if fleet.name == name)


def slots_of(
    name: str, block: IPv4Network, generation: int, mesh_range: IPv4Network
) -> tuple[Slot, ...]:
    """All slots of one generation: even ones fill the lower half of the block, odd the upper.

    Two halves, because an address belongs to one peer only while both generations are accepted.
    The mesh's network and broadcast addresses stay out; the other indices keep their place.
    """
    half = block.num_addresses // 2
    first = int(block.network_address) + (generation % 2) * half
    unusable = {mesh_range.network_address, mesh_range.broadcast_address}
    return tuple(
        Slot(fleet=name, generation=generation, index=index, address=IPv4Address(first + index))
        for index in range(half)
        if IPv4Address(first + index) not in unusable
    )


def plan_fleet(name: str, fleet: FleetSettings, mesh_range: IPv4Network) -> FleetPlan:
    """Lay out one fleet.

    Raises:
        SettingsError: when its half of the block has fewer usable addresses than max-size.
    """
    slots = slots_of(name, fleet.block, fleet.generation, mesh_range)
    if len(slots) < fleet.max_size:
        msg = (
            f"fleets.{name}.block {fleet.block} has only {len(slots)} usable addresses per key "
            f"generation, fewer than max-size {fleet.max_size}, because it touches the first or "
            f"last address of mesh.range {mesh_range}. Choose another block, or lower max-size"
        )
        raise SettingsError(msg)
    if fleet.accept_previous_generation and fleet.generation > 0:
        slots += slots_of(name, fleet.block, fleet.generation - 1, mesh_range)
    return FleetPlan(
        name=name,
        block=fleet.block,
        generation=fleet.generation,
        preference=fleet.preference,
        slots=slots,
    )


def plan_mesh(
    mesh: MeshSettings, nodes: Sequence[Node], fleets: dict[str, FleetSettings]
) -> MeshPlan:
    """Give every core node and every slot its address.

    The hub has the first address of the range; other nodes follow in the order of the list, so
    that appending one moves nobody.

    Raises:
        SettingsError: when addresses run out, lie outside the range or meet a fleet's block.
    """
    first = int(mesh.range.network_address)
    taken: dict[IPv4Address, str] = {}
    planned = []
    following = 2
    for node in nodes:
        is_hub = Role.HUB in node.roles
        address = node.mesh_address or IPv4Address(first + (1 if is_hub else following))
        if not is_hub:
            following += 1
        if (
            address not in mesh.range
            or address == mesh.range.broadcast_address
            or address == mesh.range.network_address
        ):
            msg = (
                f"node {node.name} would have mesh address {address}, which is no host address of "
                f"mesh.range {mesh.range}. Widen the range, or set its mesh-address"
            )
            raise SettingsError(msg)
        if address in taken:
            msg = (
                f"nodes {taken[address]} and {node.name} would both have mesh address {address}: "
                "an address belongs to one peer only. Set another mesh-address"
            )
            raise SettingsError(msg)
        for name, fleet in fleets.items():
            if address in fleet.block:
                msg = (
                    f"node {node.name} has mesh address {address} inside fleets.{name}.block "
                    f"{fleet.block}: an address belongs to one peer only. Move the block"
                )
                raise SettingsError(msg)
        taken[address] = node.name
        planned.append(
            MeshNode(
                name=node.name,
                roles=node.roles,
                lan_address=node.address,
                public_address=node.public_address or node.address,
                mesh_address=address,
                generation=node.generation,
            )
        )
    return MeshPlan(
        range=mesh.range,
        port=mesh.port,
        mtu=mesh.mtu,
        keepalive_seconds=mesh.keepalive_seconds,
        accept_previous_hub=mesh.accept_previous_hub,
        nodes=tuple(planned),
        fleets=tuple(
            plan_fleet(name, fleet, mesh.range)
            for name, fleet in sorted(
                fleets.items(), key=lambda item: (item[1].preference, item[0])
            )
        ),
    )

"""A member's end of the mesh: wg0's configuration, its handshake and the path's largest packet.

Owns everything that is said about wg0 on a member. It refuses to know AWS and to keep keys.
"""

from dataclasses import dataclass

from plan.derivation import encode, slot_preshared_key, slot_private_key
from system import FailureError, System

# In memory only: a member leaves no key behind, not even on its encrypted disk.
CONFIGURATION = "/run/fortress/wg0.conf"
# IPv4 header and ICMP header: what `ping -s` does not count.
PING_OVERHEAD_BYTES = 28
# Every IPv4 link carries this much (RFC 791); a path below it is no path.
SMALLEST_MTU = 576
# A packet can be lost for other reasons than its size.
PING_TRIES = 3


@dataclass(frozen=True, kw_only=True)
class MeshSettings:
    """What a member is told about the mesh; nothing in it is secret."""

    range: str
    mtu: int
    keepalive_seconds: int
    hub_endpoint: str
    hub_public_key: str
    hub_address: str


def configuration(mesh: MeshSettings, *, address: str, index: int, seed: bytes) -> str:
    """Text of wg0.conf for a slot: the hub is the only peer and carries the whole mesh.

    Parameters:
        mesh: what user-data says about the mesh.
        address: the slot's mesh address.
        index: the slot's index within the fleet.
        seed: the fleet's seed, 32 bytes.
    """
    return (
        "[Interface]\n"
        f"Address = {address}/32\n"
        f"PrivateKey = {encode(slot_private_key(seed, index))}\n"
        f"MTU = {mesh.mtu}\n"
        "\n"
        "[Peer]\n"
        f"PublicKey = {mesh.hub_public_key}\n"
        f"PresharedKey = {encode(slot_preshared_key(seed, index))}\n"
        f"AllowedIPs = {mesh.range}\n"
        f"Endpoint = {mesh.hub_endpoint}\n"
        f"PersistentKeepalive = {mesh.keepalive_seconds}\n"
    )


def bring_up(system: System, text: str) -> bool:
    """Make wg0 what the text says; one that is so already keeps its session.

    Returns:
        Whether wg0 was made anew.
    """
    running = system.succeeds(["ip", "link", "show", "dev", "wg0"])
    if running and system.read(CONFIGURATION) == text:
        return False
    if running:
        system.run(["ip", "link", "delete", "dev", "wg0"])
    system.write(CONFIGURATION, text, mode=0o600)
    system.run(["wg-quick", "up", CONFIGURATION])
    return True


def take_down(system: System) -> None:
    """Leave the mesh and forget the slot's key."""
    system.remove(CONFIGURATION)
    if system.succeeds(["ip", "link", "show", "dev", "wg0"]):
        system.run(["ip", "link", "delete", "dev", "wg0"])


def has_handshake(system: System) -> bool:
    """Whether the hub has ever answered on this wg0."""
    lines = system.run(["wg", "show", "wg0", "latest-handshakes"]).split()
    return len(lines) > 1 and lines[1] != "0"


def packet_passes(system: System, address: str, size: int) -> bool:
    """Whether an IPv4 packet of `size` bytes reaches the address and comes back whole."""
    argv = ["ping", "-n", "-q", "-M", "do", "-c", "1", "-W", "1"]
    argv += ["-s", str(size - PING_OVERHEAD_BYTES), address]
    return any(system.succeeds(argv, timeout=5) for _ in range(PING_TRIES))


def fit_mtu(system: System, mesh: MeshSettings) -> int:
    """Find the largest packet that passes the tunnel both ways, and lower wg0's MTU to it.

    An echo comes back as large as it went, so one search measures both directions; TCP follows by
    the segment size that this end announces.

    Returns:
        The MTU in use, in bytes.

    Raises:
        FailureError: when not even the smallest IPv4 packet passes.
    """
    if packet_passes(system, mesh.hub_address, mesh.mtu):
        return mesh.mtu
    if not packet_passes(system, mesh.hub_address, SMALLEST_MTU):
        message = (
            f"no packet of {SMALLEST_MTU} bytes comes back from the hub {mesh.hub_address} through "
            "the tunnel, although it answered the handshake"
        )
        raise FailureError(message)
    passes, fails = SMALLEST_MTU, mesh.mtu
    while fails - passes > 1:
        middle = (passes + fails) // 2
        if packet_passes(system, mesh.hub_address, middle):
            passes = middle
        else:
            fails = middle
    system.run(["ip", "link", "set", "dev", "wg0", "mtu", str(passes)])
    return passes

"""Key pairs of every machine, derived from the mesh seed: WireGuard keys and SSH host keys.

Owns public halves and file formats of keys; the derivation itself is `plan.derivation`.
"""

import base64
from dataclasses import dataclass

from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec
from nacl.public import PrivateKey
from nacl.signing import SigningKey

from plan.derivation import (
    clamp,
    derive,
    encode,
    fleet_seed,
    node_private_key,
    slot_preshared_key,
    slot_private_key,
)
from plan.mesh import MeshNode, MeshPlan, Slot

# Order of the group of NIST P-256 (FIPS 186-5 / SP 800-186, section 3.2.1.3).
P256_ORDER = 0xFFFFFFFF00000000FFFFFFFFFFFFFFFFBCE6FAADA7179E84F3B9CAC2FC632551


@dataclass(frozen=True, kw_only=True)
class PeerKeys:
    """What the other end must know of a slot, in base64; the pre-shared key is secret."""

    public_key: str
    preshared_key: str


@dataclass(frozen=True, kw_only=True)
class HostKey:
    """An SSH host key: the private half as a file for sshd, the public half as one line."""

    private_file: str
    public_line: str


def public_key(private_key: bytes) -> str:
    """Public WireGuard key in base64, as `wg pubkey` prints it."""
    return encode(bytes(PrivateKey(clamp(private_key)).public_key))


def node_public_key(seed: bytes, node: MeshNode) -> str:
    """Public WireGuard key of a core node, in base64."""
    return public_key(node_private_key(seed, node.name, node.generation))


def slot_keys(seed: bytes, slots: tuple[Slot, ...]) -> dict[Slot, PeerKeys]:
    """Public and pre-shared key of each slot."""
    seeds = {
        (fleet, generation): fleet_seed(seed, fleet, generation)
        for fleet, generation in {(slot.fleet, slot.generation) for slot in slots}
    }
    result = {}
    for slot in slots:
        one = seeds[slot.fleet, slot.generation]
        result[slot] = PeerKeys(
            public_key=public_key(slot_private_key(one, slot.index)),
            preshared_key=encode(slot_preshared_key(one, slot.index)),
        )
    return result


def slot_table(seed: bytes, mesh: MeshPlan) -> dict[str, str]:
    """All slots for the stack's outputs: name → address and public key, one line each.

    Nothing in it is secret. Outputs are shown at every run, so a slot takes one line and not seven.
    """
    keys = slot_keys(seed, mesh.slots)
    return {slot.name: f"{slot.address} {keys[slot].public_key}" for slot in mesh.slots}


def bootstrap_host_key(seed: bytes, name: str) -> HostKey:
    """ECDSA P-256 host key a new machine is born with.

    It travels in the machine's cloud-init disk, which others on the KVM host may read, so it is
    good for the first contact only; another key type lets both be valid while the first is retired.
    """
    scalar = int.from_bytes(
        derive(seed, "ssh-bootstrap", name) + derive(seed, "ssh-bootstrap-more", name),
        "big",
    )
    key = ec.derive_private_key(scalar % (P256_ORDER - 1) + 1, ec.SECP256R1())
    return HostKey(
        private_file=key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.TraditionalOpenSSL,
            serialization.NoEncryption(),
        ).decode("ascii"),
        public_line=key.public_key()
        .public_bytes(serialization.Encoding.OpenSSH, serialization.PublicFormat.OpenSSH)
        .decode("ascii"),
    )


def host_key(seed: bytes, name: str) -> HostKey:
    """Ed25519 host key for a machine's life; it reaches the machine on stdin only."""
    signing = SigningKey(derive(seed, "ssh-host", name))
    public = bytes(signing.verify_key)
    return HostKey(
        private_file=_openssh_ed25519(bytes(signing), public),
        public_line=f"ssh-ed25519 {encode(_text(b'ssh-ed25519') + _text(public))}",
    )


def _text(value: bytes) -> bytes:
    return len(value).to_bytes(4, "big") + value


def _openssh_ed25519(private: bytes, public: bytes) -> str:
    """Write an Ed25519 key in OpenSSH's own format (openssh-portable PROTOCOL.key).

    Written here because the library's writer puts random check bytes in, and a key that reads
    differently at every run would change the machine at every run.
    """
    public_blob = _text(b"ssh-ed25519") + _text(public)
    check = derive(private, "openssh-check")[:4]
    inner = check + check + public_blob + _text(private + public) + _text(b"")
    inner += bytes(range(1, 1 + (-len(inner)) % 8))
    blob = (
        b"openssh-key-v1\0"
        + _text(b"none")
        + _text(b"none")
        + _text(b"")
        + (1).to_bytes(4, "big")
        + _text(public_blob)
        + _text(inner)
    )
    lines = base64.encodebytes(blob).decode("ascii").replace("\n", "")
    body = "\n".join(lines[start : start + 70] for start in range(0, len(lines), 70))
    return f"-----BEGIN OPENSSH PRIVATE KEY-----\n{body}\n-----END OPENSSH PRIVATE KEY-----\n"


def authorized_key(private_file: str) -> str:
    """Public line of the SSH key that Pulumi logs in with.

    Raises:
        ValueError: when the text is not an unencrypted private SSH key; it is not repeated.
    """
    try:
        key = serialization.load_ssh_private_key(private_file.encode(), password=None)
    except (ValueError, TypeError):
        msg = (
            "ssh-private-key is not an unencrypted OpenSSH private key: Pulumi logs in with it and "
            "cannot ask for a passphrase. Make one: ssh-keygen -t ed25519 -N '' -f fortress_ed25519"
        )
        raise ValueError(msg) from None
    return (
        key.public_key()
        .public_bytes(serialization.Encoding.OpenSSH, serialization.PublicFormat.OpenSSH)
        .decode("ascii")
    )

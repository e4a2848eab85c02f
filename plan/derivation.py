"""How every secret of the mesh follows from one seed. Standard library only: members run it too.

This file is shipped to fleet members as it is, so that core and fleet derive by the same lines. It
refuses to know public keys (see `plan.keys`), addresses or files.
"""

import base64
import hashlib

KEY_BYTES = 32


def derive(secret: bytes, *parts: str | int) -> bytes:
    """Derive 32 bytes from a secret by keyed BLAKE2b (RFC 7693).

    Each part is preceded by its length, so that no two lists of parts make the same message.

    Parameters:
        secret: key of 32 to 64 bytes.
        parts: purpose first, then what it is for.

    Raises:
        ValueError: when the secret is shorter than 32 or longer than 64 bytes.
    """
    if not KEY_BYTES <= len(secret) <= hashlib.blake2b.MAX_KEY_SIZE:
        msg = f"a secret of {len(secret)} bytes: BLAKE2b's key must have 32 to 64. Make a new one"
        raise ValueError(msg)
    message = b"".join(
        len(text).to_bytes(4, "big") + text for text in (str(part).encode() for part in parts)
    )
    return hashlib.blake2b(message, key=secret, digest_size=KEY_BYTES).digest()


def clamp(key: bytes) -> bytes:
    """Clamp a private key for Curve25519 (RFC 7748 section 5).

    The kernel clamps what it stores but compares a configured key raw: an unclamped one would end
    every peer's session at each `wg syncconf`.
    """
    clamped = bytearray(key)
    clamped[0] &= 248
    clamped[31] &= 127
    clamped[31] |= 64
    return bytes(clamped)


def node_private_key(seed: bytes, name: str, generation: int) -> bytes:
    """Private WireGuard key, 32 clamped bytes, of a core node."""
    return clamp(derive(seed, "node", name, generation))


def fleet_seed(seed: bytes, fleet: str, generation: int) -> bytes:
    """The only secret a fleet's members hold, 32 bytes; it cannot yield a core node's key."""
    return derive(seed, "fleet", fleet, generation)


def slot_private_key(one_fleet_seed: bytes, index: int) -> bytes:
    """Private WireGuard key, 32 clamped bytes, of one slot of a fleet's generation."""
    return clamp(derive(one_fleet_seed, "slot", index))


def slot_preshared_key(one_fleet_seed: bytes, index: int) -> bytes:
    """Key of 32 bytes shared by the hub and one slot (wg(8), PresharedKey)."""
    return derive(one_fleet_seed, "psk", index)


def encode(key: bytes) -> str:
    """Write a key as wg(8) does: base64."""
    return base64.b64encode(key).decode("ascii")


def decode_seed(text: str) -> bytes:
    """Read a seed of 32 bytes written in base64.

    Raises:
        ValueError: when it is not base64 or has another length; the value itself is not repeated.
    """
    try:
        seed = base64.b64decode(text.strip(), validate=True)
    except ValueError:
        seed = b""
    if len(seed) != KEY_BYTES:
        msg = (
            "mesh-seed is not 32 bytes in base64: every key follows from it, so it must be "
            "complete. Make one with scripts/secrets new-seed"
        )
        raise ValueError(msg)
    return seed

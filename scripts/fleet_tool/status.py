"""What every slot does: claims, EC2, the group, WireGuard and the door, joined into one table.

Pure: everything is handed in, and whatever nobody said is None.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from claims import Claim
from scripts.fleet_tool.core import CoreReport

# WireGuard uses no session longer than this (WireGuard paper, REJECT_AFTER_TIME), so an older
# handshake of an unclaimed slot is only a memory of somebody who left.
SESSION_SECONDS = 180


@dataclass(frozen=True, kw_only=True)
class Instance:
    """A fleet's instance as EC2 and its group see it; launched_at in Unix time."""

    id: str
    fleet: str
    state: str
    launched_at: float
    type: str = ""
    lifecycle: str | None = None
    healthy: bool = True


@dataclass(frozen=True, kw_only=True)
class Row:
    """One slot, or one instance that has none."""

    slot: str | None
    address: str | None
    instance: str | None
    ec2_state: str | None
    lifecycle: str | None
    claim_age_seconds: int | None
    handshake_age_seconds: int | None
    tunnel_mtu: int | None
    door_state: str | None
    requests: int | None


@dataclass(frozen=True, kw_only=True)
class FleetStatus:
    """One fleet; claimed is None when AWS did not say."""

    name: str
    region: str
    group: str | None
    slots: int
    claimed: int | None
    rows: tuple[Row, ...]


TITLES: Mapping[str, str] = {
    "slot": "slot",
    "address": "mesh address",
    "instance": "instance",
    "ec2_state": "EC2",
    "lifecycle": "group",
    "claim_age_seconds": "claimed",
    "handshake_age_seconds": "handshake",
    "tunnel_mtu": "MTU",
    "door_state": "door",
    "requests": "requests",
}


def fleet_rows(
    slots: Sequence[tuple[str, str]],
    claims: Mapping[str, Claim] | None,
    instances: Mapping[str, Instance] | None,
    core: CoreReport,
    *,
    now: float,
) -> list[Row]:
    """Join all views of one fleet: its slots in order, then instances without a slot.

    Parameters:
        slots: name and mesh address of each slot the hub accepts.
        claims: by slot; None when AWS did not say.
        instances: by id; None when AWS did not say.
        core: what Oslo sees.
        now: Unix time in seconds.
    """
    claims = claims or {}
    addresses = dict(slots)
    names = [*addresses, *sorted(claims.keys() - addresses.keys())]
    rows = []
    for name in names:
        claim = claims.get(name)
        owner = (instances or {}).get(claim.instance) if claim else None
        server = core.servers.get(name)
        rows.append(
            Row(
                slot=name,
                address=addresses.get(name),
                instance=claim.instance if claim else None,
                ec2_state=_state(owner, known=claim is not None and instances is not None),
                lifecycle=owner.lifecycle if owner else None,
                claim_age_seconds=max(0, int(now) - claim.claimed_at) if claim else None,
                handshake_age_seconds=core.handshake_ages.get(addresses.get(name, "")),
                tunnel_mtu=claim.tunnel_mtu if claim else None,
                door_state=server.state if server else None,
                requests=server.requests if server else None,
            )
        )
    owners = {claim.instance for claim in claims.values()}
    for instance in sorted((instances or {}).values(), key=lambda one: one.launched_at):
        if instance.id not in owners and instance.state != "terminated":
            rows.append(
                Row(
                    slot=None,
                    address=None,
                    instance=instance.id,
                    ec2_state=instance.state,
                    lifecycle=instance.lifecycle,
                    claim_age_seconds=None,
                    handshake_age_seconds=None,
                    tunnel_mtu=None,
                    door_state=None,
                    requests=None,
                )
            )
    return rows


def _state(owner: Instance | None, *, known: bool) -> str | None:
    if owner is not None:
        return owner.state
    return "unknown" if known else None


def in_use(row: Row) -> bool:
    """Whether anybody says that somebody is there."""
    age = row.handshake_age_seconds
    return (
        row.instance is not None
        or (age is not None and age <= SESSION_SECONDS)
        or (row.door_state is not None and row.door_state.split()[0] not in ("DOWN", "MAINT"))
    )


def age_text(seconds: float | None) -> str:
    """An age in its largest unit, as in 90 s, 12 min, 5 h, 3 d."""
    if seconds is None:
        return "-"
    for unit, length in (("d", 86400), ("h", 3600), ("min", 60)):
        if seconds >= 2 * length:
            return f"{int(seconds // length)} {unit}"
    return f"{int(seconds)} s"


def table(titles: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    """Columns as wide as what is in them."""
    widths = [max(map(len, column)) for column in zip(titles, *lines, strict=True)]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip()
        for line in (titles, *lines)
    )


def fleet_text(fleet: FleetStatus) -> str:
    """A fleet for a person; what is not known is a dash."""
    claimed = "-" if fleet.claimed is None else fleet.claimed
    head = (
        f"{fleet.name} ({fleet.region}, group {fleet.group or '-'}): "
        f"{claimed} of {fleet.slots} slots claimed"
    )
    if not fleet.rows:
        return f"{head}\nnobody is there"
    lines = [[_cell(row, name) for name in TITLES] for row in fleet.rows]
    return f"{head}\n{table(list(TITLES.values()), lines)}"


def _cell(row: Row, name: str) -> str:
    value = getattr(row, name)
    if name.endswith("_seconds"):
        return age_text(value)
    return "-" if value is None else str(value)

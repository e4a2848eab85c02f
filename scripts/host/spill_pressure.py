"""Tells CloudWatch how much of the door's work found Oslo full: run by a systemd timer each minute.

Owns the two numbers that fleets are scaled by. The door counts, over the last minute, how many of
Oslo and the fleets in their order had no free place for a request (render/haproxy.py). A fleet's
spill pressure is the percentage of requests for which Oslo and every fleet before it was full,
whether they then waited or were served by a fleet: so an empty fleet has pressure too. It does not
fall when the fleet grows, which target tracking needs, so it is also told per serving member.

Keeps nothing between runs. Without an answer from the door it tells nothing: a number that is
missing lets no fleet shrink.
"""

import csv
import json
import os
import re
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from server_state import SOCKET, ask

SETTINGS = Path("/etc/fortress/spill-pressure.json")


class RefusedError(Exception):
    """What AWS, or the way to it, did not let pass."""


@dataclass(frozen=True)
class Pressure:
    """One fleet's numbers of the last minute, in percent of the requests that may leave Oslo."""

    share: float
    per_member: float


def requests_by_level(table: str) -> dict[int, int]:
    """Requests of the last minute by how many of Oslo and the fleets were full, from `show table`.

    Raises:
        ValueError: when it is not the table's dump.
    """
    if not table.startswith("# table:"):
        message = f"the door has no table of its requests: it says {table.strip()[:80]!r}"
        raise ValueError(message)
    found = re.findall(r"key=(\d+) .*http_req_rate\(\d+\)=(\d+)", table)
    return {int(level): int(count) for level, count in found}


def serving_members(statistics: str) -> dict[str, int]:
    """Members in rotation by backend, from `show stat`; draining ones do not count.

    Raises:
        ValueError: when it is not HAProxy's table.
    """
    if not statistics.startswith("# pxname,svname,"):
        message = f"the door has no statistics: it says {statistics.strip()[:80]!r}"
        raise ValueError(message)
    rows = csv.DictReader(statistics.removeprefix("# ").splitlines())
    return {row["pxname"]: int(row["act"]) for row in rows if row["svname"] == "BACKEND"}


def pressures(
    levels: Mapping[int, int], members: Mapping[str, int], backends: Sequence[str]
) -> list[Pressure]:
    """Each fleet's pressure.

    Parameters:
        levels: requests by how many of Oslo and the fleets were full.
        members: in rotation, by backend.
        backends: of the fleets, in the door's order.
    """
    total = sum(levels.values())
    found = []
    for place, backend in enumerate(backends, start=1):
        full = sum(count for level, count in levels.items() if level >= place)
        share = 100 * full / total if total else 0.0
        found.append(Pressure(share, share / max(1, members.get(backend, 0))))
    return found


def publish(settings: Mapping[str, Any], fleet: Mapping[str, Any], pressure: Pressure) -> None:
    """Tell CloudWatch one fleet's numbers, in the fleet's region.

    Raises:
        RefusedError: when it does not take them.
    """
    # Here, because only an edge whose fleets need it has Debian's python3-boto3.
    import boto3
    import botocore.config
    import botocore.exceptions

    client = boto3.client(
        "cloudwatch",
        region_name=fleet["region"],
        # Older client libraries do not read the variable by themselves.
        endpoint_url=fleet["endpoint_url"] or os.environ.get("AWS_ENDPOINT_URL"),
        # A run has a minute; the next one tells a fresher number anyway.
        config=botocore.config.Config(
            connect_timeout=5,
            read_timeout=10,
            retries={"mode": "standard", "total_max_attempts": 2},
        ),
    )
    dimensions = [{"Name": key, "Value": value} for key, value in fleet["dimensions"].items()]
    numbers = {
        settings["share_metric"]: pressure.share,
        settings["member_metric"]: pressure.per_member,
    }
    try:
        client.put_metric_data(
            Namespace=settings["namespace"],
            MetricData=[
                {"MetricName": name, "Dimensions": dimensions, "Value": value, "Unit": "Percent"}
                for name, value in numbers.items()
            ],
        )
    except (botocore.exceptions.ClientError, botocore.exceptions.BotoCoreError) as error:
        raise RefusedError(str(error)) from None


def run(settings: Mapping[str, Any], *, socket: Path = SOCKET) -> list[str]:
    """Measure once and tell every fleet that is scaled by it; return what went wrong."""
    fleets = settings["fleets"]
    try:
        levels = requests_by_level(ask(f"show table {settings['table']}", path=socket))
        members = serving_members(ask("show stat", path=socket))
    except (OSError, ValueError) as error:
        return [f"{socket}: {error}. Nothing was told; see systemctl status haproxy"]
    wrong = []
    measured = pressures(levels, members, [fleet["backend"] for fleet in fleets])
    for fleet, pressure in zip(fleets, measured, strict=True):
        if not fleet["publishes"]:
            continue
        try:
            publish(settings, fleet, pressure)
        except RefusedError as error:
            wrong.append(f"spill pressure of {fleet['name']} was not told: {error}")
        else:
            numbers = f"{pressure.share:.1f} %, {pressure.per_member:.1f} % per member"
            print(f"spill pressure of {fleet['name']}: {numbers}")
    return wrong


if __name__ == "__main__":
    problems = run(json.loads(SETTINGS.read_text()))
    for problem in problems:
        print(f"error: {problem}", file=sys.stderr)
    raise SystemExit(1 if problems else 0)

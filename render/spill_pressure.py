"""What the edge needs to tell CloudWatch the fleets' spill pressure, or to stop telling it.

Owns the unit, its timer and its settings. It refuses to know how the numbers come about:
render/haproxy.py counts, scripts/host/spill_pressure.py tells.
"""

import json
from typing import Any

from plan.mesh import MeshPlan
from plan.names import (
    METRIC_NAMESPACE,
    SPILL_PRESSURE,
    SPILL_PRESSURE_PER_MEMBER,
    metric_dimensions,
)
from render.haproxy import PRESSURE_TABLE, burst_backends, measures_pressure
from render.templates import render
from settings import Settings

SETTINGS_PATH = "/etc/fortress/spill-pressure.json"
CREDENTIALS_PATH = "/etc/fortress/spill-pressure.credentials"
TIMER = "fortress-spill-pressure.timer"
SERVICE = "fortress-spill-pressure.service"
UNITS = "/etc/systemd/system"


def credentials_text(key_id: str, secret: str) -> str:
    """The key as AWS's shared credentials file; secret."""
    return f"[default]\naws_access_key_id = {key_id}\naws_secret_access_key = {secret}\n"


def meter_content(
    *, settings: Settings, mesh: MeshPlan, stack: str, credentials: str
) -> dict[str, Any]:
    """The part `meter` of what scripts/host/edge.py reads; no files when no fleet wants it.

    Parameters:
        stack: whose fleets these are.
        credentials: text of the credentials file; secret.
    """
    paths = [SETTINGS_PATH, CREDENTIALS_PATH, f"{UNITS}/{SERVICE}", f"{UNITS}/{TIMER}"]
    content: dict[str, Any] = {"timer": TIMER, "paths": paths, "files": []}
    if not measures_pressure(settings):
        return content
    described = {
        "table": PRESSURE_TABLE,
        "namespace": METRIC_NAMESPACE,
        "share_metric": SPILL_PRESSURE,
        "member_metric": SPILL_PRESSURE_PER_MEMBER,
        "fleets": [
            {
                "name": fleet.name,
                "backend": backend.name,
                "region": settings.fleets[fleet.name].region,
                "endpoint_url": settings.fleets[fleet.name].endpoint_url,
                "dimensions": metric_dimensions(stack, fleet.name),
                "publishes": settings.fleets[fleet.name].scaling.kind == "spill-pressure",
            }
            for fleet, backend in zip(mesh.fleets, burst_backends(settings, mesh), strict=True)
        ],
    }
    texts = [
        json.dumps(described, indent=2) + "\n",
        credentials,
        render(SERVICE, credentials_path=CREDENTIALS_PATH),
        render(TIMER),
    ]
    for path, text in zip(paths, texts, strict=True):
        mode = "0600" if path == CREDENTIALS_PATH else "0644"
        content["files"].append({"path": path, "content": text, "mode": mode})
    return content

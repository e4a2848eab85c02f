"""The door: makes a checked HAProxy configuration the running one without losing a request.

Runs on the edge node. It owns haproxy.cfg, the certificate, the seed of the server states, the
unit's drop-in and the timer of spill_pressure.py; it refuses to decide anything about routing
(render/haproxy.py) or about which servers count as up (server_state.py).
"""

import hashlib
import json
from pathlib import Path
from typing import Any

from files import (
    File,
    HostError,
    await_condition,
    enable_unit,
    main,
    one_line,
    put_back_on_failure,
    report,
    run,
    unit_is_active,
    write_file,
    write_files,
)
from ports import listeners, refuse_taken_port
from server_state import ask

UNIT = "haproxy.service"
# Digest of what the running process was started with: an interrupted run is finished by the next.
APPLIED = Path("/var/lib/fortress/edge-applied")
# A new process reads its file and binds in well under a second; emulated machines need longer.
START_SECONDS = 60


def digest(content: dict[str, Any]) -> str:
    """What the running process depends on, as one word."""
    parts = [content[key] for key in ("configuration", "seed", "unit", "certificate")]
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


def worker() -> str | None:
    """Process id of the HAProxy worker that answers, or None."""
    try:
        answer = ask("show info")
    except OSError:
        return None
    lines = [line.partition(": ")[2] for line in answer.splitlines() if line.startswith("Pid: ")]
    return lines[0] if lines else None


def journal() -> str:
    """HAProxy's own last words."""
    lines = run(["journalctl", "--unit", UNIT, "--lines", "30", "--output", "cat"], check=False)
    alerts = [line for line in lines.splitlines() if "ALERT" in line]
    return one_line("\n".join(alerts[-3:])) or f"see journalctl --unit {UNIT}"


def keep_foreign_configuration(path: Path, header: str) -> None:
    """Set aside a configuration that is not ours, once: it may be somebody's work."""
    kept = path.with_name(f"{path.name}.before-fortress")
    if kept.exists() or not path.is_file():
        return
    if not path.read_text(errors="replace").startswith(header):
        kept.write_bytes(path.read_bytes())


def write_checked(configuration: File) -> bool:
    """Write haproxy.cfg when HAProxy itself finds nothing wrong; say whether it changed.

    Raises:
        HostError: with HAProxy's alerts, without its warnings about every empty slot.
    """
    try:
        return write_file(configuration, validate=["/usr/sbin/haproxy", "-c", "-f", "{}"])
    except HostError as error:
        first, *others = str(error).split(" | ")
        msg = " | ".join([first, *(part for part in others if "ALERT" in part)])
        raise HostError(msg) from None


def begin(listen: list[dict[str, Any]]) -> None:
    """Start HAProxy, or let a new worker take over, and see that it listens.

    Raises:
        HostError: when it does not, with what HAProxy said.
    """
    running = unit_is_active(UNIT)
    for place in listen:
        refuse_taken_port(
            place["address"],
            place["port"],
            for_whom="the door (HAProxy)",
            ours="haproxy" if running else None,
        )
    before = worker() if running else None
    try:
        run(["systemctl", "reload" if running else "start", UNIT])
        await_condition(
            "no new HAProxy process took over; the old one, if any, goes on",
            lambda: worker() not in {None, before},
            START_SECONDS,
        )
        for place in listen:
            if not any(program.startswith("haproxy ") for _, program in listeners(place["port"])):
                msg = f"HAProxy runs but does not listen at {place['address']}:{place['port']}"
                raise HostError(msg)
    except HostError as error:
        msg = f"{error}. HAProxy says: {journal()}"
        raise HostError(msg) from None


def resume() -> None:
    """After old files are back: let a running HAProxy read them again."""
    if unit_is_active(UNIT):
        run(["systemctl", "daemon-reload"])
        run(["systemctl", "reload", UNIT])


def apply_meter(meter: dict[str, Any]) -> list[str]:
    """Let the spill pressure be told, or stop that and remove its key; return what changed."""
    timer = meter["timer"]
    if not meter["files"]:
        present = [path for path in map(Path, meter["paths"]) if path.exists()]
        if present:
            run(["systemctl", "disable", "--now", "--quiet", timer])
            for path in present:
                path.unlink()
            run(["systemctl", "daemon-reload"])
        return [f"{path} removed" for path in present]
    changed = sorted(write_files(meter["files"]))
    if changed:
        run(["systemctl", "daemon-reload"])
    if enable_unit(timer):
        changed.append(f"{timer} enabled")
    if changed or not unit_is_active(timer):
        run(["systemctl", "restart", timer])
        changed.append(f"{timer} started")
    return changed


def apply(content: dict[str, Any]) -> None:
    """Make the door as described."""
    changed = []
    files = [content[key] for key in ("unit", "seed", "configuration")]
    configuration = Path(content["configuration"]["path"])
    keep_foreign_configuration(configuration, content["header"])
    certificate = content["certificate"]
    if certificate is not None:
        Path(content["certificates"]).mkdir(mode=0o700, parents=True, exist_ok=True)
        if write_file(certificate):
            changed.append(certificate["path"])
    with put_back_on_failure([file["path"] for file in files], resume):
        # First, because the others are of no use without it, and it is the one that can be wrong.
        if write_checked(content["configuration"]):
            changed.append(str(configuration))
        changed += [file["path"] for file in files[:2] if write_file(file)]
        if content["unit"]["path"] in changed:
            run(["systemctl", "daemon-reload"])
        if enable_unit(UNIT):
            changed.append(f"{UNIT} enabled")
        wanted = digest(content)
        applied = APPLIED.read_text() if APPLIED.is_file() else None
        if applied != wanted or not unit_is_active(UNIT):
            begin(content["listen"])
            changed.append(f"{UNIT} started or reloaded")
    write_file({"path": str(APPLIED), "content": wanted, "mode": "0600"})
    changed += apply_meter(content["meter"])
    for old in Path(content["certificates"]).glob("door-*.pem"):
        if certificate is None or str(old) != certificate["path"]:
            old.unlink()
            changed.append(f"{old} removed")
    report(changed)


if __name__ == "__main__":
    main(apply)

"""Puts the workload and its health responder on an Oslo frontend.

Reads what render/workload.py gives. A workload that does not become healthy is put back as it was.
"""

import http.client
import time
from pathlib import Path
from typing import Any

from files import (
    await_condition,
    enable_unit,
    install_packages,
    main,
    put_back_on_failure,
    report,
    run,
    unit_is_active,
    write_file,
    write_files,
)
from ports import refuse_taken_port

WORKLOAD = "fortress-workload.service"
HEALTH = "fortress-health.service"
DRAINING = Path("/run/fortress/draining")
INSTALLED = Path("/var/lib/fortress/workload-installed")
INSTALL_SECONDS = 900
HEALTHY_SECONDS = 120
# The door asks once a second and takes 404 as drain at once (measured 1.03 s).
DOOR_NOTICES_SECONDS = 2.0


def stale_files(directory: Path, wanted: set[str]) -> list[Path]:
    """Files of an earlier version of the workload, and what Python left beside them."""
    return [
        path
        for path in sorted(directory.rglob("*"))
        if path.is_file() and str(path) not in wanted and "__pycache__" not in path.parts
    ]


def answers_ok(address: str, port: int, path: str) -> bool:
    """Whether GET answers 200."""
    connection = http.client.HTTPConnection(address, port, timeout=2)
    try:
        connection.request("GET", path)
        return connection.getresponse().status == http.HTTPStatus.OK
    except (OSError, http.client.HTTPException):
        return False
    finally:
        connection.close()


def is_installed(content: dict[str, Any]) -> bool:
    """Whether `install` ran for this content."""
    return INSTALLED.is_file() and INSTALLED.read_text() == content["hash"]


def install(content: dict[str, Any]) -> None:
    """Run the workload's `install` as root."""
    run([f"{content['directory']}/install"], seconds=INSTALL_SECONDS)
    write_file({"path": str(INSTALLED), "content": content["hash"]})


def restart(content: dict[str, Any]) -> None:
    """Start the workload anew, with its requests elsewhere while there is an elsewhere."""
    if content["drain"] and unit_is_active(WORKLOAD):
        write_file({"path": str(DRAINING), "content": "the workload is being replaced\n"})
        time.sleep(DOOR_NOTICES_SECONDS)
    try:
        # Stopped as the unit was, not as it will be: a container is not stopped like a script.
        run(["systemctl", "stop", WORKLOAD])
        run(["systemctl", "daemon-reload"])
        run(["systemctl", "start", WORKLOAD])
        await_condition(
            f"the workload did not answer 200 on {content['health_path']} at "
            f"{content['address']}:{content['port']}. See journalctl -u {WORKLOAD}",
            lambda: answers_ok(content["address"], content["port"], content["health_path"]),
            HEALTHY_SECONDS,
        )
    finally:
        DRAINING.unlink(missing_ok=True)


def apply_workload(content: dict[str, Any]) -> list[str]:
    """Bring files, installation and process in line; return what changed."""
    directory = Path(content["directory"])
    files = [*content["workload_files"], *content["files"]]
    stale = stale_files(directory, {file["path"] for file in content["workload_files"]})
    with put_back_on_failure(
        [*(file["path"] for file in files), *map(str, stale), str(INSTALLED)],
        then=lambda: run(["systemctl", "restart", WORKLOAD]),
    ):
        changed = sorted(write_files(files))
        for path in stale:
            path.unlink()
            changed.append(str(path))
        if content["kind"] == "script" and not is_installed(content):
            install(content)
            changed.append("installation")
        if changed or not unit_is_active(WORKLOAD):
            restart(content)
            changed.append(WORKLOAD)
    return changed


def apply_health(content: dict[str, Any]) -> list[str]:
    """Bring the health responder in line; return what changed."""
    changed = sorted(write_files(content["health_files"]))
    if changed or not unit_is_active(HEALTH):
        run(["systemctl", "daemon-reload"])
        run(["systemctl", "restart", HEALTH])
        changed.append(HEALTH)
    await_condition(
        f"the health responder did not answer 200 at {content['address']}:"
        f"{content['health_port']}/health. See journalctl -u {HEALTH}",
        lambda: answers_ok(content["address"], content["health_port"], "/health"),
        HEALTHY_SECONDS,
    )
    return changed


def apply(content: dict[str, Any]) -> None:
    """Do everything this script is for.

    Raises:
        HostError: when the workload can't be installed or does not become healthy.
    """
    changed = install_packages(content["packages"])
    if DRAINING.exists() and not unit_is_active(WORKLOAD):
        # Left by an interrupted run.
        DRAINING.unlink()
    for unit, port in ((WORKLOAD, content["port"]), (HEALTH, content["health_port"])):
        if not unit_is_active(unit):
            refuse_taken_port(content["address"], port, for_whom=unit)
    changed += apply_workload(content)
    changed += apply_health(content)
    changed += [f"{unit} at boot" for unit in (WORKLOAD, HEALTH) if enable_unit(unit)]
    report(changed)


if __name__ == "__main__":
    main(apply)

"""The workload on a machine, in Oslo and in a fleet alike: its files, environment and units.

Owns what `start` and a container find around them. It refuses to know how a machine is reached and
where a fleet member's secrets come from.
"""

import hashlib
import json
from pathlib import Path
from typing import Any

from plan.mesh import MeshPlan
from render.templates import render
from settings import (
    ROOT,
    DatabaseSettings,
    Node,
    Role,
    ScriptWorkload,
    Settings,
    SettingsError,
    Workload,
)

DIRECTORY = "/usr/local/lib/fortress/workload"
NODE_DIRECTORY = "/usr/local/lib/fortress/node"
ENVIRONMENT_PATH = "/etc/fortress/workload.env"
HEALTH_SETTINGS_PATH = "/etc/fortress/health.json"
UNITS = ("fortress-workload.service", "fortress-health.service")
OSLO = "oslo"

File = dict[str, str]


def script_files(workload: ScriptWorkload) -> list[File]:
    """The directory's files as they lie on machines, sorted by path.

    Raises:
        SettingsError: when a file is no UTF-8 text, because it travels inside JSON.
    """
    root = ROOT / workload.directory
    files = []
    for path in sorted(root.rglob("*")):
        name = path.relative_to(root)
        if not path.is_file() or "__pycache__" in name.parts:
            continue
        try:
            content = path.read_text(encoding="utf-8")
        except UnicodeDecodeError:
            msg = (
                f"workload.directory {workload.directory}: {name} is not UTF-8 text, and the "
                "directory reaches machines as text. Let `install` fetch it, or use a container"
            )
            raise SettingsError(msg) from None
        executable = name in {Path("install"), Path("start")} or path.stat().st_mode & 0o100
        files.append(
            {
                "path": f"{DIRECTORY}/{name}",
                "content": content,
                "mode": "0755" if executable else "0644",
            }
        )
    return files


def workload_files(workload: Workload) -> list[File]:
    """Files of the workload itself; a container has none."""
    return script_files(workload) if workload.kind == "script" else []


def workload_hash(workload: Workload) -> str:
    """Changes whenever `install` has to run again."""
    return hashlib.sha256(json.dumps(workload_files(workload)).encode()).hexdigest()


def environment(
    *,
    workload: Workload,
    database: DatabaseSettings,
    database_address: str,
    user: str,
    site: str,
) -> dict[str, str]:
    """What the workload finds in its environment, except what only the machine knows.

    Parameters:
        database_address: the database's mesh address.
        user: database role.
        site: oslo, or the fleet's name.
    """
    return {
        "PORT": str(workload.port),
        "SITE": site,
        "PGHOST": database_address,
        "PGPORT": str(database.port),
        "PGDATABASE": database.name,
        "PGUSER": user,
        "PGSSLMODE": "require",
        "PGCHANNELBINDING": "require",
        "PGCONNECT_TIMEOUT": "5",
        **workload.environment,
    }


def environment_text(values: dict[str, str]) -> str:
    """Write values as systemd.exec(5) EnvironmentFile reads them."""
    lines = []
    for name, value in values.items():
        for character in '\\"`$':
            value = value.replace(character, f"\\{character}")
        lines.append(f'{name}="{value}"\n')
    return "".join(lines)


def workload_secrets(password: str) -> str:
    """Text of a fleet's SSM parameter with its workload's secrets; secret."""
    return environment_text({"PGPASSWORD": password})


def units(
    workload: Workload, *, environment_path: str, names: list[str], log_output: bool
) -> list[File]:
    """The two units of a machine that runs the workload.

    Parameters:
        environment_path: where the machine keeps the workload's environment.
        names: of all variables in it; a container is given them by name, never by value.
        log_output: whether the workload's output is kept.
    """
    return [
        {
            "path": "/etc/systemd/system/fortress-workload.service",
            "content": render(
                "fortress-workload.service",
                kind=workload.kind,
                environment_path=environment_path,
                directory=DIRECTORY,
                port=workload.port,
                log_output=log_output,
                image=workload.image if workload.kind == "container" else "",
                names=sorted(names),
            ),
        },
        {
            "path": "/etc/systemd/system/fortress-health.service",
            "content": render(
                "fortress-health.service",
                directory=NODE_DIRECTORY,
                health_port=workload.health_port,
            ),
        },
    ]


def health_settings(workload: Workload, address: str) -> str:
    """Text of health.json on a machine with this mesh address."""
    return json.dumps(
        {
            "address": address,
            "health_port": workload.health_port,
            "port": workload.port,
            "health_path": workload.health_path,
        }
    )


def workload_content(
    *, node: Node, settings: Settings, mesh: MeshPlan, app_password: str
) -> dict[str, Any]:
    """What scripts/host/workload.py reads on an Oslo frontend; secret as a whole.

    Parameters:
        node: a core node with the role frontend.
        app_password: of the application's database role.
    """
    workload = settings.workload
    address = str(next(one.mesh_address for one in mesh.nodes if one.name == node.name))
    values = {
        **environment(
            workload=workload,
            database=settings.database,
            database_address=str(mesh.only(Role.DATABASE).mesh_address),
            user=settings.database.name,
            site=OSLO,
        ),
        "PGPASSWORD": app_password,
        "NODE_NAME": node.name,
        "LISTEN_ADDRESS": address,
    }
    return {
        "node": node.name,
        "kind": workload.kind,
        "directory": DIRECTORY,
        "hash": workload_hash(workload),
        "packages": ["podman"] if workload.kind == "container" else [],
        "address": address,
        "port": workload.port,
        "health_port": workload.health_port,
        "health_path": workload.health_path,
        # Somebody else can take the requests while the workload is replaced.
        "drain": len(mesh.with_role(Role.FRONTEND)) > 1 or bool(mesh.fleets),
        "workload_files": workload_files(workload),
        "files": [
            {
                "path": ENVIRONMENT_PATH,
                "content": environment_text(values),
                "mode": "0600",
            },
            *units(
                workload,
                environment_path=ENVIRONMENT_PATH,
                names=list(values),
                log_output=True,
            )[:1],
        ],
        "health_files": [
            {
                "path": HEALTH_SETTINGS_PATH,
                "content": health_settings(workload, address),
            },
            {
                "path": f"{NODE_DIRECTORY}/health.py",
                "content": (ROOT / "scripts/node/health.py").read_text(),
            },
            *units(
                workload,
                environment_path=ENVIRONMENT_PATH,
                names=list(values),
                log_output=True,
            )[1:],
        ],
    }

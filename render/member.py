"""A fleet member's user-data: its scripts, units and facts as one compressed cloud-config.

User-data is readable in the launch template and from the machine, so nothing here is secret: keys
and passwords are fetched from SSM by the member. It refuses to know AWS resources beyond names.
"""

import ast
import base64
import functools
import gzip
import hashlib
import io
import json
import lzma
import tarfile
import tokenize
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Network
from typing import Any

from plan.mesh import FleetPlan, MeshPlan
from plan.names import FleetNames
from render.templates import render
from render.workload import (
    NODE_DIRECTORY,
    environment,
    environment_text,
    units,
    workload_files,
    workload_hash,
)
from settings import ROOT, DatabaseSettings, FleetSettings, Role, SettingsError, Workload

# EC2 user guide, "Run commands when you launch an EC2 instance": 16 KB before base64.
LIMIT_BYTES = 16384
SETTINGS_PATH = "/etc/fortress/member.json"
FIREWALL_PATH = "/etc/fortress/nftables/member.nft"
ENVIRONMENT_PATH = "/run/fortress/workload.env"
SCRIPTS = ("member", "claims", "cloud", "tunnel", "metadata", "system", "health")
# Besides draining: unit stops, the tunnel, two requests to AWS with their retries.
STOP_MARGIN_SECONDS = 90

HARDENING = {
    "/etc/sysctl.d/60-fortress.conf": (
        "# Memory of requests and keys must not reach a disk.\n"
        "kernel.core_pattern=|/bin/false\n"
        "fs.suid_dumpable=0\n"
        "vm.swappiness=0\n"
    ),
    "/etc/systemd/journald.conf.d/60-fortress.conf": (
        "# A member keeps nothing: its journal is in memory and bounded.\n"
        "[Journal]\n"
        "Storage=volatile\n"
        "RuntimeMaxUse=32M\n"
        "ForwardToSyslog=no\n"
    ),
}

# Once in a machine's life; a first boot that was cut short does it again.
#
# systemd finds a unit that it never loaded by itself. Each of the reloads that are left out here
# would read all units again and run all generators, in the busiest moment of the boot.
START = """\
set -e
echo {archive} | base64 --decode | python3 -c '{unpack}'
# The member's unit waits for it.
systemctl restart --no-block systemd-journald.service
# Ubuntu's crash handler sets two of the following values itself, at every boot.
systemctl mask --quiet --no-reload apport.service
systemctl stop --quiet apport.service 2>/dev/null || true
sysctl --quiet --load /etc/sysctl.d/60-fortress.conf
systemctl enable --quiet --no-reload fortress-member.service
# A crash from here on must find all of this on disk.
sync
systemctl start --no-block fortress-member.service
"""
# An image may lack xz, not Python: cloud-init is written in it. Decompressed as a whole, because a
# stream that ends early can look like an archive that ends.
UNPACK = """\
import io, lzma, sys, tarfile
whole = io.BytesIO(lzma.decompress(sys.stdin.buffer.read()))
tarfile.open(fileobj=whole).extractall("/", filter="data")"""


@dataclass(frozen=True, kw_only=True)
class JoinFacts:
    """What a member must know of the core; nothing in it is secret.

    Attributes:
        range: the mesh's addresses.
        mtu: of the tunnel, in bytes.
        hub_endpoint: public address and port of the hub.
        hub_address: the hub's mesh address.
        database_address: the database's mesh address.
        edge_addresses: mesh addresses of the edge nodes.
    """

    range: IPv4Network
    mtu: int
    keepalive_seconds: int
    hub_endpoint: str
    hub_public_key: str
    hub_address: IPv4Address
    database_address: IPv4Address
    edge_addresses: tuple[IPv4Address, ...]


# As long as any facts and version, and as hard to compress: so user-data that fits with them fits
# with the true ones, which are known only in the middle of a run.
LONG_FACTS = JoinFacts(
    range=IPv4Network("213.145.168.128/25"),
    mtu=8920,
    keepalive_seconds=65535,
    hub_endpoint="197.246.183.159:64937",
    hub_public_key=base64.b64encode(hashlib.blake2b(digest_size=32).digest()).decode("ascii"),
    hub_address=IPv4Address("213.145.169.206"),
    database_address=IPv4Address("173.250.184.147"),
    edge_addresses=(IPv4Address("158.209.176.235"),),
)
HIGH_VERSION = 2**31


def join_facts(mesh: MeshPlan, *, hub_public_key: str) -> JoinFacts:
    """The facts of a mesh whose core is in the same stack."""
    return JoinFacts(
        range=mesh.range,
        mtu=mesh.mtu,
        keepalive_seconds=mesh.keepalive_seconds,
        hub_endpoint=mesh.hub_endpoint,
        hub_public_key=hub_public_key,
        hub_address=mesh.hub.mesh_address,
        database_address=mesh.only(Role.DATABASE).mesh_address,
        edge_addresses=tuple(node.mesh_address for node in mesh.with_role(Role.EDGE)),
    )


def member_settings(
    *,
    facts: JoinFacts,
    fleet: FleetSettings,
    plan: FleetPlan,
    names: FleetNames,
    group_name: str,
    launch_hook: str | None,
    terminate_hook: str | None,
    workload: Workload,
    database: DatabaseSettings,
    secrets_version: int,
) -> dict[str, Any]:
    """What scripts/node/member.py reads as member.json.

    Slots are given as a first one and a count, because a thousand of them would fill user-data.
    """
    first = plan.claimable[0]
    return {
        "fleet": plan.name,
        "region": fleet.region,
        "endpoint_url": fleet.endpoint_url,
        "group": group_name,
        "launch_hook": launch_hook,
        "terminate_hook": terminate_hook,
        "claim_table": names.claim_table,
        "seed_parameter": names.seed_parameter,
        "workload_parameter": names.workload_parameter,
        # Nobody reads it: with another version the template is another, and members are replaced.
        "secrets_version": secrets_version,
        "slot_name": f"{plan.name}-{plan.generation}-{{:02d}}",
        "first_index": first.index,
        "first_address": str(first.address),
        "slot_count": len(plan.claimable),
        "mesh": {
            "range": str(facts.range),
            "mtu": facts.mtu,
            "keepalive_seconds": facts.keepalive_seconds,
            "hub_endpoint": facts.hub_endpoint,
            "hub_public_key": facts.hub_public_key,
            "hub_address": str(facts.hub_address),
        },
        "probe_address": str(facts.database_address),
        "probe_port": database.port,
        "workload_kind": workload.kind,
        "workload_port": workload.port,
        "health_port": workload.health_port,
        "health_path": workload.health_path,
        "workload_hash": workload_hash(workload),
        "environment": environment_text(
            environment(
                workload=workload,
                database=database,
                database_address=str(facts.database_address),
                user=f"{database.name}_fleet",
                site=plan.name,
            )
        ),
        "join_seconds": fleet.join_seconds,
        "drain_seconds": fleet.drain_seconds,
    }


def member_files(
    settings: dict[str, Any], *, facts: JoinFacts, workload: Workload
) -> list[dict[str, str]]:
    """All files of a member, with path, content and, where it is not 0644, mode."""
    names = [line.split("=")[0] for line in settings["environment"].splitlines()]
    return [
        {"path": SETTINGS_PATH, "content": json.dumps(settings, sort_keys=True)},
        *(
            {
                "path": f"{NODE_DIRECTORY}/{name}.py",
                "content": without_explanations((ROOT / "scripts/node" / f"{name}.py").read_text()),
            }
            for name in SCRIPTS
        ),
        {
            "path": f"{NODE_DIRECTORY}/plan/derivation.py",
            "content": without_explanations((ROOT / "plan/derivation.py").read_text()),
        },
        {
            "path": FIREWALL_PATH,
            "content": render(
                "member.nft",
                edge_addresses=[str(address) for address in facts.edge_addresses],
                workload_port=workload.port,
                health_port=workload.health_port,
            ),
        },
        *({"path": path, "content": content} for path, content in HARDENING.items()),
        *units(
            workload,
            environment_path=ENVIRONMENT_PATH,
            names=[*names, "PGPASSWORD", "NODE_NAME", "LISTEN_ADDRESS"],
            log_output=workload.log_output,
        ),
        {
            "path": "/etc/systemd/system/fortress-member.service",
            "content": render(
                "fortress-member.service",
                directory=NODE_DIRECTORY,
                stop_seconds=settings["drain_seconds"] + STOP_MARGIN_SECONDS,
            ),
        },
        *workload_files(workload),
    ]


def user_data(
    *,
    facts: JoinFacts,
    fleet: FleetSettings,
    plan: FleetPlan,
    names: FleetNames,
    group_name: str,
    launch_hook: str | None,
    terminate_hook: str | None,
    workload: Workload,
    database: DatabaseSettings,
    secrets_version: int,
) -> str:
    """User-data of a fleet's launch template: base64 of a gzipped cloud-config.

    Parameters:
        facts: what members must know of the core.
        plan: the fleet's slots; members claim those of its current generation.
        group_name: of the Auto Scaling Group.
        launch_hook: lifecycle hook that waits until a member serves, if there is one.
        terminate_hook: lifecycle hook that waits until a member has left, if there is one.
        secrets_version: of the parameter that holds the workload's secrets.

    Raises:
        SettingsError: when it is larger than EC2 takes.
    """
    settings = member_settings(
        facts=facts,
        fleet=fleet,
        plan=plan,
        names=names,
        group_name=group_name,
        launch_hook=launch_hook,
        terminate_hook=terminate_hook,
        workload=workload,
        database=database,
        secrets_version=secrets_version,
    )
    files = member_files(settings, facts=facts, workload=workload)
    document = {
        # Nobody logs in: no default user, no password, no root.
        "users": [],
        "ssh_pwauth": False,
        "disable_root": True,
        # So one host key is plenty; making an RSA one costs a small machine a second.
        "ssh_genkeytypes": ["ed25519"],
        "no_ssh_fingerprints": True,
        "ssh": {"emit_keys_to_console": False},
        # Before anything else that cloud-init does. With `write_files` it would read all files as
        # YAML, in each of its stages (docs/decisions/0011).
        "bootcmd": [["cloud-init-per", "instance", "fortress-start", "sh", "-c", start(files)]],
    }
    packed = pack(("#cloud-config\n" + json.dumps(document)).encode())
    if len(packed) > LIMIT_BYTES:
        sizes = sorted(
            ((len(pack(file["content"].encode())), file["path"]) for file in files), reverse=True
        )
        largest = ", ".join(f"{path} {size}" for size, path in sizes[:3])
        msg = (
            f"user-data of fleet {plan.name} has {len(packed)} bytes compressed; EC2 takes "
            f"{LIMIT_BYTES}. Largest: {largest} bytes. Let the workload's `install` fetch its "
            "larger files or bake them into the image, or use a container"
        )
        raise SettingsError(msg)
    return base64.b64encode(packed).decode("ascii")


def start(files: list[dict[str, str]]) -> str:
    """The command that puts all files in place and starts the member.

    Parameters:
        files: with path, content and, where it is not 0644, mode.
    """
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w", format=tarfile.USTAR_FORMAT) as archive:
        for file in files:
            content = file["content"].encode()
            member = tarfile.TarInfo(file["path"].removeprefix("/"))
            member.size = len(content)
            member.mode = int(file.get("mode", "0644"), 8)
            archive.addfile(member, io.BytesIO(content))
    # The text that is left of it is compressed once more: gzip twice would not fit.
    compressed = lzma.compress(packed.getvalue(), preset=9 | lzma.PRESET_EXTREME)
    return START.format(archive=base64.b64encode(compressed).decode("ascii"), unpack=UNPACK)


def pack(content: bytes) -> bytes:
    """Compress without a date, so that equal content makes equal user-data."""
    return gzip.compress(content, compresslevel=9, mtime=0)


@functools.cache
def without_explanations(source: str) -> str:
    """Leave comments, docstrings and empty lines out of a Python source: a third of user-data.

    Works on lines, not on a syntax tree written anew, so that another Python version on the
    machine that runs Pulumi makes the same user-data and replaces nobody.

    Parameters:
        source: with every docstring on lines of its own.
    """
    lines = source.splitlines()
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type == tokenize.COMMENT:
            row, column = token.start
            lines[row - 1] = lines[row - 1][:column].rstrip()
    for node in ast.walk(ast.parse(source)):
        if not isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef):
            continue
        first = node.body[0]
        if ast.get_docstring(node) is None or first.end_lineno is None:
            continue
        remaining = " " * first.col_offset + "pass" if len(node.body) == 1 else ""
        lines[first.lineno - 1 : first.end_lineno] = [
            remaining,
            *[""] * (first.end_lineno - first.lineno),
        ]
    return "".join(f"{line}\n" for line in lines if line.strip())

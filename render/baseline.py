"""What every core node gets before its roles: packages, kernel settings, firewall, SSH, updates."""

from plan.mesh import MeshPlan
from render.firewall import firewall_rules
from render.haproxy import measures_pressure
from render.templates import render
from settings import Node, Role, Settings

# iputils-ping: the mesh is probed with it; iproute2 and procps: absent from the smallest images.
COMMON_PACKAGES = (
    "iproute2",
    "iputils-ping",
    "nftables",
    "procps",
    "unattended-upgrades",
    "wireguard-tools",
)
ROLE_PACKAGES = {Role.DATABASE: ("postgresql",), Role.EDGE: ("haproxy",)}
MODULES = ("tcp_bbr", "wireguard")


def baseline_content(*, node: Node, settings: Settings, mesh: MeshPlan) -> dict[str, object]:
    """Everything scripts/host/baseline.py needs, but the host keys to retire. Nothing is secret.

    Parameters:
        node: the core node it is for.
        settings: ports, SSH ranges and the declared memory.
        mesh: all core nodes and slots, for the firewall.

    Raises:
        ValueError: for settings without a core.
    """
    if settings.core is None:
        msg = "settings without a core have no core node to prepare"
        raise ValueError(msg)
    is_database = Role.DATABASE in node.roles
    packages = set(COMMON_PACKAGES).union(*(ROLE_PACKAGES.get(role, ()) for role in node.roles))
    if Role.EDGE in node.roles and measures_pressure(settings):
        packages.add("python3-boto3")
    return {
        "node": node.name,
        "memory_mib": node.memory_mib,
        "ssh_ranges": [str(allowed) for allowed in settings.core.ssh.allowed_ranges],
        # Without this file Debian's package makes a cluster of its own on the root file system.
        "before_packages": [
            {
                "path": "/etc/postgresql-common/createcluster.d/fortress.conf",
                "content": "create_main_cluster = false\n",
            }
        ]
        if is_database
        else [],
        "packages": sorted(packages),
        "modules": {
            "path": "/etc/modules-load.d/fortress.conf",
            "content": "".join(f"{module}\n" for module in MODULES),
        },
        "sysctl": {
            "path": "/etc/sysctl.d/90-fortress.conf",
            "content": render(
                "90-fortress.conf", is_hub=Role.HUB in node.roles, is_database=is_database
            ),
        },
        "scheduler": {
            "path": "/etc/udev/rules.d/60-fortress-scheduler.rules",
            "content": render("60-fortress-scheduler.rules"),
        },
        "firewall": {
            "rules": {
                "path": "/etc/fortress/nftables/fortress.nft",
                "content": firewall_rules(node=node, settings=settings, mesh=mesh),
            },
            "loader": {
                "path": "/etc/fortress/nftables.conf",
                "content": render("nftables.conf"),
            },
            "units": [
                {
                    "path": "/etc/systemd/system/fortress-firewall.service",
                    "content": render("fortress-firewall.service"),
                },
                {
                    "path": "/etc/systemd/system/nftables.service.d/fortress.conf",
                    "content": render("nftables.service.conf"),
                },
            ],
        },
        "sshd": {
            "path": "/etc/ssh/sshd_config.d/10-fortress.conf",
            "content": render("10-fortress.sshd.conf"),
        },
        "updates": {
            "path": "/etc/apt/apt.conf.d/52fortress-security-updates",
            "content": render("52fortress-security-updates"),
        },
    }

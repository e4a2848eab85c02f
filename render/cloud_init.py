"""What a core machine is born with: a login, a bootstrap host key, a static address.

Owns cloud-init documents for core machines. Everything that may change later is done by
`scripts/host`; nothing here is worth stealing after the first contact.
"""

import json
from typing import Any

from plan.keys import HostKey
from settings import LibvirtNode, NetworkSettings


def cloud_config(document: dict[str, Any]) -> str:
    """Serialise a cloud-config; JSON is YAML, and nothing needs quoting by hand."""
    return "#cloud-config\n" + json.dumps(document, indent=1, sort_keys=True) + "\n"


def user_data(node: LibvirtNode, *, authorized_key: str, bootstrap_key: HostKey) -> str:
    """User-data of a core machine.

    Parameters:
        node: the machine.
        authorized_key: public line of the key Pulumi logs in with.
        bootstrap_key: host key for the first contact only.
    """
    return cloud_config(
        {
            "hostname": node.name,
            "preserve_hostname": False,
            "manage_etc_hosts": True,
            "users": [
                {
                    "name": node.user,
                    "lock_passwd": True,
                    "shell": "/bin/bash",
                    "sudo": "ALL=(ALL) NOPASSWD:ALL",
                    "ssh_authorized_keys": [authorized_key],
                }
            ],
            "disable_root": True,
            "ssh_pwauth": False,
            # Given keys stop cloud-init from making others, so only the pinned one is offered.
            "ssh_keys": {
                "ecdsa_private": bootstrap_key.private_file,
                "ecdsa_public": bootstrap_key.public_line,
            },
        }
    )


def network_config(node: LibvirtNode, network: NetworkSettings, mac_address: str) -> str:
    """Network configuration, version 2, with the node's static address on its only card."""
    card: dict[str, Any] = {
        "match": {"macaddress": mac_address.lower()},
        "addresses": [f"{node.address}/{network.range.prefixlen}"],
        "routes": [{"to": "0.0.0.0/0", "via": str(network.gateway)}],
    }
    if network.name_servers:
        card["nameservers"] = {"addresses": [str(address) for address in network.name_servers]}
    return json.dumps({"version": 2, "ethernets": {"lan": card}}, indent=1) + "\n"

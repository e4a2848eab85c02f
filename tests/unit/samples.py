"""The sample system that pure tests render: shaped like Pulumi.prod.yaml, with a made-up seed."""

from typing import Any

import settings
from plan.mesh import MeshNode, MeshPlan, plan_mesh
from settings import Node, Settings

SEED = b"\x07" * 32


def sample_data() -> dict[str, Any]:
    """A fresh settings object as YAML would give it, to be changed by a test before validation."""
    return {
        "core": {
            "ssh": {"allowed-ranges": ["192.0.2.0/24", "10.20.0.1/32"]},
            "libvirt": {
                "uri": "qemu+ssh://root@192.0.2.5/system",
                "network": {
                    "bridge": "br0",
                    "range": "10.20.0.0/24",
                    "gateway": "10.20.0.1",
                    "name-servers": ["10.20.0.1"],
                },
                "image": {"source": "debian-13-generic-amd64.qcow2", "sha256": "07" * 32},
            },
            "nodes": [
                {
                    "name": "oslo-db-01",
                    "placement": "libvirt",
                    "roles": ["hub", "database", "frontend", "edge"],
                    "address": "10.20.0.11",
                    "public-address": "198.51.100.11",
                    "vcpu": 4,
                    "memory-mib": 8192,
                    "data-gib": 100,
                },
                {
                    "name": "oslo-web-02",
                    "placement": "existing",
                    "roles": ["frontend"],
                    "address": "10.20.0.12",
                    "memory-mib": 2048,
                    "host-key": "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIAcHBwcHBwcHBwcHBwcHBwcHBwcH",
                },
            ],
        },
        "workload": {
            "kind": "script",
            "directory": "workload/demo",
            "health-path": "/health",
            "environment": {"GREETING": "god dag"},
        },
        "door": {"oslo-only-paths": ["/account"]},
        "fleets": {
            "frankfurt": {
                "region": "eu-central-1",
                "block": "10.100.0.64/26",
                "max-size": 8,
                "image": {"owner": "136693071363", "name": "debian-13-amd64-*"},
                "vpc-range": "10.64.0.0/16",
            }
        },
    }


def container_workload() -> dict[str, Any]:
    """A workload of kind container, to put in place of the sample's script."""
    return {
        "kind": "container",
        "image": "localhost/greeter:1.0",
        "health-path": "/health",
        "environment": {"GREETING": "god dag"},
    }


def sample() -> Settings:
    """The sample's settings."""
    return settings.validate(sample_data())


def core_nodes(of: Settings) -> tuple[Node, ...]:
    """Core nodes of settings that have a core."""
    if of.core is None:
        msg = "these settings have no core"
        raise ValueError(msg)
    return of.core.nodes


def node_of(of: Settings, name: str) -> Node:
    """One core node's settings by name."""
    return next(node for node in core_nodes(of) if node.name == name)


def mesh_of(of: Settings) -> MeshPlan:
    """The mesh these settings plan."""
    return plan_mesh(of.mesh, core_nodes(of), of.fleets)


def mesh_node_of(of: Settings, name: str) -> MeshNode:
    """One core node as the mesh sees it, by name."""
    return next(node for node in mesh_of(of).nodes if node.name == name)

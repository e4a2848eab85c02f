"""What Pulumi says of a stack: its settings, its outputs and what it manages.

Everything is asked of the `pulumi` program, without secrets. It refuses to know AWS and machines.
"""

import json
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from settings import PROJECT, Role, Settings, SettingsError, validate


class ToolError(Exception):
    """What went wrong, why, and what to do; shown as one message."""


@dataclass(frozen=True, kw_only=True)
class Machine:
    """A core node as `ssh` reaches it; without a user the person's own configuration decides."""

    name: str
    user: str | None
    address: str
    port: int
    roles: frozenset[str]


@dataclass(frozen=True, kw_only=True)
class Deployed:
    """What the engine has recorded: physical ids, and how many operations are under way."""

    ids: frozenset[str]
    pending_operations: int


@dataclass(frozen=True, kw_only=True)
class Stack:
    """One stack.

    Attributes:
        reference: as given to `pulumi --stack`, perhaps with organization and project.
        settings: of its stack file.
    """

    reference: str
    settings: Settings

    @property
    def name(self) -> str:
        """The stack's own name, which AWS objects bear."""
        return self.reference.rpartition("/")[2]

    def outputs(self) -> dict[str, Any]:
        """What the last `up` handed out; empty before the first and after a destroy."""
        return _outputs(self.reference)

    def deployed(self) -> Deployed:
        """What the stack manages at this moment, secrets left encrypted."""
        exported = json.loads(_pulumi("stack", "export", "--stack", self.reference))
        deployment = exported.get("deployment") or {}
        return Deployed(
            ids=frozenset(
                resource["id"]
                for resource in deployment.get("resources") or []
                if resource.get("id")
            ),
            pending_operations=len(deployment.get("pending_operations") or []),
        )

    def machines(self) -> tuple[Machine, ...]:
        """The core's nodes: from the settings, or from the stack that holds the core."""
        if self.settings.core is not None:
            return tuple(
                Machine(
                    name=node.name,
                    user=node.user,
                    address=str(node.address),
                    port=node.ssh_port if node.placement == "existing" else 22,
                    roles=frozenset(node.roles),
                )
                for node in self.settings.core.nodes
            )
        hosts: Sequence[Mapping[str, Any]] = _outputs(str(self.settings.core_stack)).get(
            "hosts", []
        )
        return tuple(
            Machine(
                name=host["name"],
                user=None,
                address=host["address"],
                port=22,
                roles=frozenset(Role(role) for role in host["roles"]),
            )
            for host in hosts
        )


def load(reference: str | None) -> Stack:
    """Read a stack's settings.

    Parameters:
        reference: as for `pulumi --stack`; None is the selected one.

    Raises:
        ToolError: when Pulumi does not know the stack, or a setting breaks a rule.
    """
    if reference is None:
        reference = _pulumi("stack", "--show-name").strip()
    config = json.loads(_pulumi("config", "--json", "--stack", reference))
    settings = config.get(f"{PROJECT}:settings", {}).get("value")
    if settings is None:
        message = (
            f"stack {reference} has no {PROJECT}:settings, so nothing is known of its fleets. Run "
            "this where `pulumi up` runs, next to the stack file"
        )
        raise ToolError(message)
    try:
        return Stack(reference=reference, settings=validate(json.loads(settings)))
    except SettingsError as error:
        raise ToolError(str(error)) from None


def _outputs(reference: str) -> dict[str, Any]:
    outputs: dict[str, Any] = json.loads(
        _pulumi("stack", "output", "--json", "--stack", reference) or "{}"
    )
    return outputs


def _pulumi(*words: str) -> str:
    try:
        done = subprocess.run(
            ["pulumi", *words, "--non-interactive"],
            capture_output=True,
            text=True,
            check=False,
            stdin=subprocess.DEVNULL,
        )
    except FileNotFoundError:
        message = "pulumi is not on PATH, and it knows what the stack holds. See scripts/setup"
        raise ToolError(message) from None
    if done.returncode != 0:
        reason = done.stderr.strip() or f"status {done.returncode}"
        message = f"`pulumi {' '.join(words)}` failed: {reason}"
        raise ToolError(message)
    return done.stdout

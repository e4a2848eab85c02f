"""Owns the lab's stack: project directory, secrets, stack file, and running `pulumi` on them.

The project directory is the repository by symbolic links, with one file of its own:
`Pulumi.lab.yaml`, made of the committed one, this machine's facts and this lab's secrets
(encrypted). So `pulumi` runs there as anywhere.
"""

import json
import os
import re
import secrets
import stat
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, Final

import yaml

from lab import commands, paths
from lab.engine import toolchain
from lab.errors import LabError
from lab.namespace import Namespace

STACK: Final = "lab"
PROJECT_NAME: Final = "fortress-and-fleet"
STACK_FILE: Final = f"Pulumi.{STACK}.yaml"
SECRETS: Final = paths.LAB / "secrets"
SSH_KEY: Final = SECRETS / "ssh_key"
AWS_ENDPOINT: Final = "http://10.64.0.1:5000"

_NOT_LINKED: Final = {".git", ".lab", STACK_FILE}
_PLACEHOLDER: Final = re.compile(r"\$\{lab:([a-z0-9-]+)\}")


def environment(region: str = "eu-central-1") -> dict[str, str]:
    """The environment for `pulumi`, `aws` and whatever else a person runs inside the lab."""
    # There is no way out of the lab, and a proxy would be asked for the addresses inside it.
    base = {name: value for name, value in os.environ.items() if "proxy" not in name.lower()}
    for name in ("AWS_PROFILE", "AWS_SESSION_TOKEN", "PULUMI_CONFIG_PASSPHRASE"):
        base.pop(name, None)
    return toolchain.environment(base) | {
        "PULUMI_BACKEND_URL": f"file://{paths.STATE}",
        "PULUMI_CONFIG_PASSPHRASE_FILE": str(SECRETS / "passphrase"),
        "AWS_ENDPOINT_URL": AWS_ENDPOINT,
        "AWS_ACCESS_KEY_ID": "lab",
        "AWS_SECRET_ACCESS_KEY": "lab",
        "AWS_DEFAULT_REGION": region,
        "AWS_REGION": region,
    }


def ensure_keys(*names: str) -> None:
    """Make the passphrase and the named SSH key pairs; what exists stays."""
    SECRETS.mkdir(parents=True, exist_ok=True)
    SECRETS.chmod(stat.S_IRWXU)
    passphrase = SECRETS / "passphrase"
    if not passphrase.exists():
        _write_private(passphrase, secrets.token_urlsafe(32))
    for name in names:
        if not (SECRETS / f"{name}.pub").exists():
            (SECRETS / name).unlink(missing_ok=True)
            commands.run(
                ["ssh-keygen", "-q", "-N", "", "-t", "ed25519", "-C", name, "-f", SECRETS / name]
            )


def public_key(name: str) -> str:
    """A key pair's public line, without its comment."""
    return " ".join((SECRETS / f"{name}.pub").read_text().split()[:2])


def link_project() -> None:
    """Link what is at the top level of the repository now into the project directory."""
    paths.PROJECT.mkdir(parents=True, exist_ok=True)
    wanted = {entry.name: entry for entry in paths.ROOT.iterdir() if entry.name not in _NOT_LINKED}
    for link in paths.PROJECT.iterdir():
        if link.is_symlink() and (link.name not in wanted or link.readlink() != wanted[link.name]):
            link.unlink()
    for name, target in wanted.items():
        link = paths.PROJECT / name
        if not link.is_symlink():
            link.symlink_to(target)


def prepare_project(facts: Mapping[str, str]) -> None:
    """Link the project directory and write its stack file; secrets already in it stay.

    Parameters:
        facts: values for the ${lab:NAME} placeholders of the committed stack file.

    Raises:
        LabError: the committed stack file asks for a fact that the lab does not know.
    """
    paths.STATE.mkdir(parents=True, exist_ok=True)
    link_project()
    generated = paths.PROJECT / STACK_FILE
    document = _substituted(yaml.safe_load((paths.ROOT / STACK_FILE).read_text()), facts)
    with suppress(FileNotFoundError):
        before = yaml.safe_load(generated.read_text()) or {}
        if "encryptionsalt" in before:
            document["encryptionsalt"] = before["encryptionsalt"]
            for key, value in before.get("config", {}).items():
                if isinstance(value, dict) and "secure" in value:
                    document["config"].setdefault(key, value)
    text = yaml.safe_dump(document, sort_keys=False, allow_unicode=True)
    if not generated.exists() or generated.read_text() != text:
        beside = generated.with_suffix(".new")
        _write_private(beside, text)
        beside.rename(generated)


def ensure_stack(namespace: Namespace) -> None:
    """Create the stack and its secrets where they are missing, and free it of dead locks."""
    _remove_dead_locks(namespace)
    if not (paths.STATE / ".pulumi" / "stacks" / PROJECT_NAME / f"{STACK}.json").exists():
        pulumi(namespace, "stack", "init", STACK, "--secrets-provider", "passphrase")
    else:
        pulumi(namespace, "stack", "select", STACK)
    config = settings_document()
    for key, value in {
        "mesh-seed": _seed,
        "ssh-private-key": SSH_KEY.read_text,
        "database-password": secrets.token_urlsafe,
        "fleet-database-password": secrets.token_urlsafe,
    }.items():
        if f"{PROJECT_NAME}:{key}" not in config:
            words = ["config", "set", "--stack", STACK, "--secret", key]
            pulumi(namespace, *words, stdin=value())


def settings_document() -> dict[str, Any]:
    """The configuration in the generated stack file; secrets are encrypted in it.

    Raises:
        LabError: there is none yet.
    """
    file = paths.PROJECT / STACK_FILE
    if not file.exists():
        message = "this clone's lab was never started: start it with scripts/lab up."
        raise LabError(message)
    config: dict[str, Any] = yaml.safe_load(file.read_text())["config"]
    return config


def pulumi(namespace: Namespace, *words: str, stdin: str | None = None) -> str:
    """Run `pulumi` in the project directory to its end and give what it printed."""
    return namespace.run(
        ["env", f"--chdir={paths.PROJECT}", "pulumi", *words, "--non-interactive"],
        stdin=stdin,
        environment=environment(),
    )


def outputs(namespace: Namespace) -> dict[str, Any]:
    """The stack's outputs that are no secrets; empty when it has none yet."""
    try:
        text = pulumi(namespace, "stack", "output", "--stack", STACK, "--json")
    except LabError:
        return {}
    found: dict[str, Any] = json.loads(text or "{}")
    return found


def _seed() -> str:
    return commands.run([paths.ROOT / "scripts" / "secrets", "new-seed"])


def _substituted(value: Any, facts: Mapping[str, str]) -> Any:
    if isinstance(value, dict):
        return {key: _substituted(entry, facts) for key, entry in value.items()}
    if isinstance(value, list):
        return [_substituted(entry, facts) for entry in value]
    if not isinstance(value, str):
        return value

    def fact(match: re.Match[str]) -> str:
        if match[1] not in facts:
            message = (
                f"{STACK_FILE} asks for {match[0]}, which the lab does not know. "
                f"It knows: {', '.join(sorted(facts))}."
            )
            raise LabError(message)
        return facts[match[1]]

    return _PLACEHOLDER.sub(fact, value)


def _remove_dead_locks(namespace: Namespace) -> None:
    for lock in (paths.STATE / ".pulumi" / "locks").rglob("*.json"):
        pid = json.loads(lock.read_text() or "{}").get("pid")
        try:
            alive = namespace.run(["cat", f"/proc/{pid}/comm"]).strip() == "pulumi"
        except LabError:
            alive = False
        if not alive:
            lock.unlink()


def _write_private(file: Path, text: str) -> None:
    file.unlink(missing_ok=True)
    file.touch(mode=stat.S_IRUSR | stat.S_IWUSR)
    file.write_text(text)
